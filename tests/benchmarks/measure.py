"""What each contender's process does: warm up, run, check, and print what it took as one line of JSON."""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass
class Step:
    """One step of a growth: what a call then costs, in microseconds on the clock and on the processor."""

    series: str
    label: str
    clock: float
    cpu: float


@dataclass
class Outcome:
    """What one run of a workload came to.

    Attributes:
        right: Answers that were as they should be.
        wrong: Answers that were not, and calls that failed.
        seconds: On the clock.
        cpu: Seconds of this process on the processor.
        memory: Bytes that the workload holds, where that is what is measured.
        growth: Steps, where growth is what is measured.
    """

    right: int = 0
    wrong: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    growth: list[Step] = field(default_factory=list)

    def start(self) -> None:
        """Forget what was before, and take the time from now on."""
        self.right = self.wrong = 0
        self.cpu, self.seconds = -time.process_time(), -time.perf_counter()

    def stop(self) -> None:
        """Take the time until now."""
        self.cpu += time.process_time()
        self.seconds += time.perf_counter()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the time of what is inside."""
        self.cpu, self.seconds = -time.process_time(), -time.perf_counter()
        yield
        self.stop()

    def check(self, answer: object, expected: object) -> None:
        """Count an answer."""
        if answer == expected:
            self.right += 1
        else:
            self.wrong += 1

    def report(self) -> None:
        print(json.dumps(asdict(self)), flush=True)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def allow_files(number: int) -> None:
    """Raise the limit of open files as far as that many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < number + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number + 200, hard), hard))


def hold_still() -> int:
    """Bytes of this process in memory, after what nobody uses has gone."""
    gc.collect()
    return resident()


def without_logging() -> None:
    """Undo the log handler that the published plugin installs."""
    logging.getLogger().handlers.clear()
    logging.disable(logging.CRITICAL)


def arguments() -> tuple[str, str, str]:
    """Contender, workload and URL, from the command line."""
    contender, workload, url = sys.argv[1:4]
    return contender, workload, url
