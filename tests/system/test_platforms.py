"""Nothing in the package needs what only some platforms have: on Windows there is no `poll`, `fork` or Unix socket.

The tests run on Linux, so what is missing elsewhere is taken away, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

POORER = """
import asyncio, anyio, trio, selectors  # which need what they find when they are imported
import os, select, signal, socket, sys

for module, names in {
    select: ["poll", "kqueue", "devpoll"],
    os: ["fork", "register_at_fork", "getuid", "sendfile"],
    signal: ["SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "pthread_sigmask"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
"""

CALL = """
import contextlib
from utcp_websocket_anyio import ToolServer, open_client

async def main():
    server = ToolServer("poor")

    @server.tool
    def double(n: int) -> int:
        return 2 * n

    async with anyio.create_task_group() as task_group:
        await task_group.start(server.serve, "127.0.0.1", 0)
        template = {"name": "poor", "call_template_type": "websocket", "url": server.url}
        async with open_client({"manual_call_templates": [template]}) as client:
            print([await client.call_tool("poor.double", {"n": n}) for n in (1, 2)])
        task_group.cancel_scope.cancel()

anyio.run(main, backend=sys.argv[1])
"""

EVERYTHING = """
import importlib, pkgutil
import utcp_websocket_anyio

for module in pkgutil.walk_packages(utcp_websocket_anyio.__path__, "utcp_websocket_anyio."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("all of it")
"""


def run(*arguments: str) -> str:
    """The output of a program, which must end well."""
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_needs_nothing_that_windows_lacks(backend: str) -> None:
    assert run(POORER + CALL, backend) == "[2, 4]\n"


def test_every_module_can_be_imported_where_windows_lacks_something() -> None:
    assert run(POORER + EVERYTHING) == "all of it\n"
