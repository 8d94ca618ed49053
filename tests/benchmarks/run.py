"""Runs every contender on every workload, in interleaved rounds, and writes what came out.

Each run is a fresh process; one server process answers all. Within a round the contenders of a workload run one after
the other, in random order, so that what else the machine does hits them alike, and ratios are taken within the round.
Where the machine has two cores, client and server have one each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import Outcome
from workloads import LIBRARIES, WORKLOADS

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contender:
    """One of the compared programs.

    Attributes:
        script: What its process executes.
        environment: Which of the environments it is installed in.
        workloads: What it takes part in.
    """

    name: str
    script: str
    environment: str
    workloads: frozenset[str]


CALLS = frozenset({"call-64", "call-64k", "call-1m", "stream-64", "stream-64k", "connect"})
PLUGIN = CALLS | {"client-64", "pool", "refused", "answer"}
OURS = CALLS | {"client-64", "pool", "multiplexed"}
BY_HAND = CALLS | {"pool", "multiplexed", "idle"}
EVERY_LOOP = OURS | {"idle", "refused", "answer", "growth"}

CONTENDERS = [
    *(
        Contender(f"{tree}-{loop}", "ours.py", tree, workloads)
        for tree in ("ours", "also")
        for loop, workloads in {"asyncio": EVERY_LOOP, "uvloop": OURS, "trio": EVERY_LOOP}.items()
    ),
    Contender("ours-stock", "ours.py", "ours", frozenset({"client-64"})),
    Contender("plugin", "plugin.py", "plugin", PLUGIN | {"idle"}),
    Contender("plugin-uvloop", "plugin.py", "plugin", CALLS | {"client-64"}),
    Contender("plugin-logging", "plugin.py", "plugin", frozenset({"call-64", "call-64k", "client-64"})),
    Contender("utcp", "first_use.py", "ours", frozenset({"refused"})),
    Contender("blocking socket", "blocking.py", "by-hand", CALLS),
    *(Contender(name, "by_hand.py", "by-hand", BY_HAND) for name in LIBRARIES),
]
SCRIPTS = {"refused": "first_use.py", "answer": "first_use.py"}
"""Of workloads for which every contender is a process that does no more than that."""

Results = dict[str, dict[str, list[Outcome]]]
"""By workload and contender, one outcome a round."""


@contextmanager
def server(python: str, cores: list[int]) -> Iterator[str]:
    """The server's URL."""
    command = [*pinned(cores[-1:] if len(cores) > 1 else []), python, str(HERE / "server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"ws://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a port that refuses connections: it is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{taken.getsockname()[1]}"


def pinned(cores: list[int]) -> list[str]:
    """The beginning of a command that keeps to some cores."""
    return ["taskset", "-c", ",".join(map(str, cores))] if cores else []


@dataclass(frozen=True)
class Runner:
    """Runs contenders.

    Attributes:
        environments: The interpreter of each environment.
        cores: What this process may use.
        url: The server.
        refused: A port without one.
    """

    environments: dict[str, str]
    cores: list[int]
    url: str
    refused: str

    def run(self, contender: Contender, workload: str) -> Outcome:
        """Run a contender once; what fails is an outcome, too."""
        command = [
            *pinned(self.cores[:1] if len(self.cores) > 1 else []),
            self.environments[contender.environment],
            str(HERE / SCRIPTS.get(workload, contender.script)),
            contender.name,
            workload,
            self.refused if workload == "refused" else self.url,
        ]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=180, check=False)
            return Outcome(**json.loads(done.stdout.splitlines()[-1]))
        except (subprocess.TimeoutExpired, IndexError, ValueError):
            print(f"\n{workload}, {contender.name}: no outcome", file=sys.stderr)
            return Outcome(wrong=WORKLOADS[workload].count)

    def run_job(self, workload: str, contenders: list[Contender]) -> list[Outcome]:
        """Run contenders at once."""
        with ThreadPoolExecutor(len(contenders)) as threads:
            return list(threads.map(self.run, contenders, [workload] * len(contenders)))


Job = tuple[str, list[Contender]]
"""A workload, and who does it at the same time."""


def run_all(environments: dict[str, str], contenders: list[Contender], workloads: list[str], rounds: int) -> Results:
    """Every contender on every workload, `rounds` times."""
    cores = sorted(os.sched_getaffinity(0))
    results: Results = {}
    jobs: list[Job] = []
    for number in range(rounds):
        chosen = [workload for workload in workloads if number < WORKLOADS[workload].rounds]
        for workload in random.sample(chosen, len(chosen)):
            jobs += jobs_of(workload, [contender for contender in contenders if workload in contender.workloads])
    total, began = len(jobs), time.monotonic()
    with server(environments["by-hand"], cores) as url, nobody() as refused:
        runner = Runner(environments, cores, url, refused)
        for done, (workload, at_once) in enumerate(jobs):
            show_progress(done, total, began, f"{workload}, {', '.join(each.name for each in at_once)}")
            for contender, outcome in zip(at_once, runner.run_job(workload, at_once), strict=True):
                results.setdefault(workload, {}).setdefault(contender.name, []).append(outcome)
    show_progress(total, total, began, "done")
    print(file=sys.stderr)
    return results


def jobs_of(workload: str, contenders: list[Contender]) -> list[Job]:
    """A round of a workload."""
    if WORKLOADS[workload].side_by_side:
        return [(workload, contenders)] if contenders else []
    runs = WORKLOADS[workload].runs
    return [(workload, [each]) for _ in range(runs) for each in random.sample(contenders, len(contenders))]


def describe(environments: dict[str, str]) -> str:
    """What ran where, in a line."""
    ask = "import platform; print(platform.python_version())"
    about = [f"Python {ask_python(environments['by-hand'], ask)}"]
    if "plugin" in environments:
        ask = "from importlib.metadata import version; print(version('utcp-websocket'))"
        about.append(f"utcp-websocket {ask_python(environments['plugin'], ask)}")
    return ", ".join([*about, platform.system(), f"{len(os.sched_getaffinity(0))} cores"])


def ask_python(python: str, question: str) -> str:
    return subprocess.run([python, "-c", question], capture_output=True, text=True, check=True).stdout.strip()


def show_progress(done: int, total: int, began: float, what: str) -> None:
    width = 30
    filled = width * done // total
    left = (time.monotonic() - began) / done * (total - done) if done else 0
    bar = "█" * filled + "·" * (width - filled)
    print(f"\r{bar} {done}/{total}, {left / 60:.0f} min left: {what[:40]:40}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environment",
        action="append",
        required=True,
        metavar="NAME=PYTHON",
        help="ours, also (another source tree of this package), plugin, by-hand; one that is not given takes no part",
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], metavar="CONTENDER", help="all, if not given")
    parser.add_argument("workloads", nargs="*", default=[], metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(WORKLOADS) | set(options.only) - {each.name for each in CONTENDERS}:
        parser.error(f"no such workload or contender: {', '.join(sorted(unknown))}")
    environments = dict(pair.split("=", 1) for pair in options.environment)
    contenders = [
        contender
        for contender in CONTENDERS
        if contender.environment in environments and (not options.only or contender.name in options.only)
    ]
    about = describe(environments)
    results = run_all(environments, contenders, options.workloads or list(WORKLOADS), options.rounds)
    plain = {
        workload: {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in by_name.items()}
        for workload, by_name in results.items()
    }
    options.output.write_text(
        json.dumps({"about": about, "rounds": options.rounds, "results": plain}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
