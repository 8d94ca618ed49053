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
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import Outcome
from workloads import WORKLOADS

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contender:
    """Who runs.

    Attributes:
        script: What its process executes.
        environment: Which of the environments it is installed in.
        workloads: What it takes part in.
    """

    name: str
    script: str
    environment: str
    workloads: frozenset[str]


PROTOCOL = frozenset({"call-64", "call-64k", "call-1m", "tasks", "stream-64", "stream-64k", "connect", "idle"})
BY_HAND = frozenset({"call-64", "call-64k", "call-1m", "stream-64", "stream-64k", "connect", "multiplexed"})

CONTENDERS = [
    Contender("ours-asyncio", "ours.py", "ours", PROTOCOL | {"client-64", "multiplexed", "growth"}),
    Contender("ours-uvloop", "ours.py", "ours", PROTOCOL - {"idle"} | {"client-64", "multiplexed"}),
    Contender("ours-trio", "ours.py", "ours", PROTOCOL | {"client-64", "multiplexed", "growth"}),
    Contender("ours-stock", "ours.py", "ours", frozenset({"client-64"})),
    Contender("ours", "importing.py", "ours", frozenset({"import"})),
    Contender("plugin-quiet", "plugin.py", "plugin", PROTOCOL | {"client-64"}),
    Contender("plugin", "plugin.py", "plugin", PROTOCOL - {"idle"} | {"client-64"}),
    Contender("plugin", "importing.py", "plugin", frozenset({"import"})),
    Contender("blocking socket", "by_hand.py", "by-hand", BY_HAND - {"multiplexed"}),
    *(
        Contender(name, "by_hand.py", "by-hand", BY_HAND)
        for name in ("picows", "aiohttp", "websockets", "websockets.trio", "trio-websocket")
    ),
]

Results = dict[str, dict[str, list[Outcome]]]
"""By workload and contender, one outcome a round."""


@contextmanager
def server(python: str, cores: list[int]) -> Iterator[str]:
    """The server's URL."""
    command = [*pinned(cores[-1:] if len(cores) > 1 else []), python, str(HERE / "server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"ws://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def pinned(cores: list[int]) -> list[str]:
    """The beginning of a command that keeps to some cores."""
    return ["taskset", "-c", ",".join(map(str, cores))] if cores else []


def run(contender: Contender, workload: str, url: str, python: str, cores: list[int]) -> Outcome:
    """Run a contender once; what fails is an outcome, too."""
    command = [*pinned(cores), python, str(HERE / contender.script), contender.name, workload, url]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return Outcome(wrong=WORKLOADS[workload].count)


def run_all(environments: dict[str, str], workloads: list[str], rounds: int) -> Results:
    """Every contender on every workload, `rounds` times."""
    cores = sorted(os.sched_getaffinity(0))
    results: Results = {}
    rounds_of = [
        [workload for workload in workloads if number < WORKLOADS[workload].rounds] for number in range(rounds)
    ]
    jobs = [job for chosen in rounds_of for job in shuffled(chosen)]
    total, began = len(jobs), time.monotonic()
    with server(environments["by-hand"], cores) as url:
        for done, (workload, contender) in enumerate(jobs):
            show_progress(done, total, began, f"{workload}, {contender.name}")
            python = environments[contender.environment]
            outcome = run(contender, workload, url, python, cores[:1] if len(cores) > 1 else [])
            results.setdefault(workload, {}).setdefault(contender.name, []).append(outcome)
    show_progress(total, total, began, "done")
    print(file=sys.stderr)
    return results


def shuffled(workloads: list[str]) -> list[tuple[str, Contender]]:
    """The runs of one round."""
    jobs = []
    for workload in random.sample(workloads, len(workloads)):
        contenders = [contender for contender in CONTENDERS if workload in contender.workloads]
        jobs += [(workload, contender) for contender in random.sample(contenders, len(contenders))]
    return jobs


def describe(environments: dict[str, str]) -> str:
    """What ran where, in a line."""
    ask = "import platform; print(platform.python_version())"
    python = subprocess.run([environments["ours"], "-c", ask], capture_output=True, text=True, check=True).stdout
    ask = "from importlib.metadata import version; print(version('utcp-websocket'))"
    plugin = subprocess.run([environments["plugin"], "-c", ask], capture_output=True, text=True, check=True).stdout
    cores = len(os.sched_getaffinity(0))
    return f"Python {python.strip()}, utcp-websocket {plugin.strip()}, {platform.system()}, {cores} cores"


def show_progress(done: int, total: int, began: float, what: str) -> None:
    width = 30
    filled = width * done // total
    left = (time.monotonic() - began) / done * (total - done) if done else 0
    bar = "█" * filled + "·" * (width - filled)
    print(f"\r{bar} {done}/{total}, {left / 60:.0f} min left: {what:40}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", action="append", required=True, metavar="NAME=PYTHON")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("workloads", nargs="*", default=[], metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}")
    options = parser.parse_args()
    environments = dict(pair.split("=", 1) for pair in options.environment)
    about = describe(environments)
    results = run_all(environments, options.workloads or list(WORKLOADS), options.rounds)
    plain = {
        workload: {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in contenders.items()}
        for workload, contenders in results.items()
    }
    options.output.write_text(json.dumps({"about": about, "results": plain}), encoding="utf-8")


if __name__ == "__main__":
    main()
