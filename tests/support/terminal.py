"""`utcp-ws` as somebody at a terminal has it: commands in this process or in one of their own, and endpoints for them.

The endpoints live in a thread, on trio, so that a command can have the main thread and either event loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from click.testing import CliRunner, Result

from support.peers import Peer, peer
from utcp_websocket_anyio import ToolServer
from utcp_websocket_anyio.cli.program import program

BACKENDS = ["trio", "asyncio"]
COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-c", "from utcp_websocket_anyio.cli import main; main()"]


def ws(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
    """A command in this process. What no user should see, an exception that is not caught, is raised."""
    result = CliRunner().invoke(program, arguments, input=stdin, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: str, **options: Any) -> str:
    """The output of a command that has to end well."""
    result = ws(*arguments, **options)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def failed(code: int, *arguments: str, **options: Any) -> str:
    """The error text of a command that must fail; nothing is on stdout."""
    result = ws(*arguments, **options)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, where every warning is an error."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=150, cwd=cwd, check=False)


@contextmanager
def endpoint(script: Callable[[Peer], Awaitable[None]]) -> Iterator[str]:
    """An endpoint that follows a script; gives its URL."""
    with start_blocking_portal("trio") as portal, portal.wrap_async_context_manager(peer(script)) as url:
        yield url


@contextmanager
def served(server: ToolServer) -> Iterator[str]:
    """A tool server; gives its URL."""
    with start_blocking_portal("trio") as portal:
        serving, _ = portal.start_task(server.serve, "127.0.0.1", 0)
        try:
            yield server.url
        finally:
            serving.cancel()


def written(path: Path, content: Any) -> str:
    """A JSON file; gives its path."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def manual(url: str, *, inputs: dict[str, Any] | None = None, **template: Any) -> dict[str, Any]:
    """A manual named ``manual`` with a tool named ``tool``, which has the fields of `template`."""
    tool = {
        "name": "tool",
        "description": "Does it.",
        "inputs": {"type": "object", "properties": inputs or {}, "required": sorted(inputs or {})},
    }
    return {"name": "manual", "call_template_type": "websocket", "url": url, **template, "tools": [tool]}


@contextmanager
def started(*arguments: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is stopped."""
    command = [COMMAND[0], "-u", *COMMAND[1:], *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd) as process:
        try:
            yield process
        finally:
            process.kill()
