"""Autobahn's cases for WebSocket clients, through the package's own wire: `nox -s autobahn`.

Starts the fuzzing server of autobahntestsuite, plays the echoing client to it with every engine, and compares its
judgement with what is expected; what deviates and why is explained in ARCHITECTURE.md. The cases of compression, 12 and
13, take the better part of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio

from utcp_websocket_anyio._wire import Target, Wire, open_wire
from utcp_websocket_anyio.errors import WebSocketError

LONGEST_MESSAGE = 64 * 2**20
GOOD = ("OK", "INFORMATIONAL")

AGENTS: dict[str, tuple[str, Callable[[Target], Coroutine[Any, Any, Wire]], bool]] = {
    "asyncio": ("asyncio", open_wire, True),
    "trio": ("trio", open_wire, True),
}
"""By name: backend, what opens a wire, and whether it can compress."""

# A message and a violation come at once. Where one read brings both, the message is received, but not echoed any more.
_NOT_ECHOED = ("3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15")
# Text is checked when the message is complete.
_NOT_FAILED_AT_ONCE = ("6.4.1", "6.4.2", "6.4.3", "6.4.4")
_LENIENT = dict.fromkeys((*_NOT_ECHOED, *_NOT_FAILED_AT_ONCE), "NON-STRICT")

DEVIATIONS = dict.fromkeys(AGENTS, _LENIENT)
"""The judgements that may differ from OK, by agent and case."""


@contextlib.contextmanager
def fuzzing_server(wstest: str, folder: Path, cases: list[str]) -> Iterator[str]:
    """The server, in a process of its own; gives its URL. It writes its reports to `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"
    specification = folder / "specification.json"
    excluded = {agent: ["12.*", "13.*"] for agent, (*_, compresses) in AGENTS.items() if not compresses}
    specification.write_text(
        json.dumps(
            {"url": url, "outdir": str(folder), "cases": cases, "exclude-cases": [], "exclude-agent-cases": excluded}
        )
    )
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [wstest, "-m", "fuzzingserver", "-u", "0", "-s", str(specification)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            wait_for(url, server)
            yield url
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    port = int(url.rpartition(":")[2])
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit("wstest does not start")


async def play(agent: str, url: str) -> None:
    """Every case in turn, and then the reports."""
    _, open_one, compression = AGENTS[agent]

    async def connect(path: str, **query: object) -> Wire:
        address = f"{url}/{path}?{urlencode({'agent': agent, **query})}"
        return await open_one(
            Target(url=address, endpoint=url, compression=compression, max_message_size=LONGEST_MESSAGE)
        )

    wire = await connect("getCaseCount")
    count = int(await wire.receive())
    await wire.close()
    for case in range(1, count + 1):
        wire = await connect("runCase", case=case)
        with contextlib.suppress(WebSocketError):
            while True:
                await wire.send(await wire.receive())
        await wire.close()
        if case % 50 == 0 or case == count:
            print(f"{agent}: {case} of {count}", flush=True)
    wire = await connect("updateReports")
    await wire.close()


def judge(folder: Path) -> bool:
    """Show what the server thinks; whether all of it was expected."""
    index: dict[str, dict[str, dict[str, Any]]] = json.loads((folder / "index.json").read_text())
    as_expected = True
    for agent, cases in index.items():
        behaviours = Counter(case["behavior"] for case in cases.values())
        print(f"\n{agent}: {len(cases)} cases, {dict(behaviours)}")
        for name, case in cases.items():
            excuse = DEVIATIONS[agent].get(name)
            closed_well = case["behaviorClose"] in GOOD or excuse == "FAILED"
            if case["behavior"] not in (*GOOD, excuse) or not closed_well:
                as_expected = False
                print(f"  {name} is {case['behavior']}, its close {case['behaviorClose']}")
    return as_expected


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("wstest", type=Path, help="the program of autobahntestsuite")
    arguments.add_argument("cases", nargs="*", default=["*"], help="such as 6.* or 7.1.1")
    arguments.add_argument("--reports", type=Path, help="where the reports go; a temporary folder by default")
    given = arguments.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.reports or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        with fuzzing_server(str(given.wstest.absolute()), folder.resolve(), given.cases) as url:
            for agent, (backend, *_) in AGENTS.items():
                anyio.run(play, agent, url, backend=backend)
        if not judge(folder):
            sys.exit(1)


if __name__ == "__main__":
    main()
