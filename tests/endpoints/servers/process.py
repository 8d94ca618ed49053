"""A server process that is there for as long as a block, and gone after it with everything it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["free_port", "listens", "running"]

_START = 60.0
_STOP = 10.0


@contextmanager
def running(
    command: Sequence[str],
    *,
    folder: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Run a server in a folder of its own until the block is left; its output goes to ``server.log`` there.

    Args:
        ready: Whether it can be used yet. It is asked until it says so.

    Raises:
        RuntimeError: The server ended, or was not ready in time; the text ends with what it printed last.
    """
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, ready, log)
        yield
    finally:
        _stop(process)


def free_port() -> int:
    """A free port of loopback, for servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """True if a server accepts connections at a port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "was not ready in time" if process.returncode is None else f"ended with {process.returncode}"
            raise RuntimeError(f"{process.args!r} {state}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, politely at first, and then whatever is left of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
