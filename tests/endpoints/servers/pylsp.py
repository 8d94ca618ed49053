"""python-lsp-server, speaking JSON-RPC over WebSocket."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .installing import python_module
from .process import free_port, listens, running

__all__ = ["pylsp"]

# With --ws it listens on every interface, whatever --host says. Only that is changed.
_ON_LOOPBACK = """
import functools, runpy, websockets
websockets.serve = functools.partial(websockets.serve, host="127.0.0.1")
runpy.run_module("pylsp", run_name="__main__", alter_sys=True)
"""


@contextmanager
def pylsp(installed: Path, folder: Path) -> Iterator[int]:
    """The port of a running server."""
    python_module("pylsp")
    port = free_port()
    command = [sys.executable, "-c", _ON_LOOPBACK, "--ws", "--port", str(port)]
    with running(command, folder=folder, ready=lambda: listens(port)):
        yield port
