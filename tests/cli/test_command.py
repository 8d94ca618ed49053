"""`utcp-ws` in processes of its own: how it begins, how it is interrupted, and what it leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.terminal import BACKENDS, done, run, served, started, ws

from utcp_websocket_anyio import ToolServer
from utcp_websocket_anyio._version import __version__
from utcp_websocket_anyio.cli import main
from utcp_websocket_anyio.cli.failures import EXIT_CODES

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")

TOOLS = '''
from collections.abc import AsyncIterator

import trio


def add(a: int, b: int = 1) -> int:
    """Add two integers."""
    return a + b


async def tick() -> AsyncIterator[int]:
    """Tick for ever."""
    number = 0
    while True:
        yield number
        number += 1
        await trio.sleep(0.01)


def _hidden() -> None: ...
'''


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(TOOLS, encoding="utf-8")
    return path


def test_the_console_script_is_the_command() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="utcp-ws")
    assert script.value == "utcp_websocket_anyio.cli:main"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo_leaves_nothing_behind(backend: str) -> None:
    told = run("demo", "--backend", backend)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith("Your own tools: utcp-ws serve FILE.py\n")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo_goes_through_every_step(backend: str) -> None:
    told = done("demo", "--backend", backend)
    assert f"runs on {backend}" in told
    for part in (
        "demo.countdown   Count down to zero.",
        "   42\n",
        "   50 right answers",
        "   9 8 7 6 5 4 3 2 1 0\n",
        "WebSocketToolError: ZeroDivisionError",
        "WebSocketTimeoutError, in phase 'response'",
        "the next call gets its own: 'And now? 42.'",
        "Every connection is closed.",
    ):
        assert part in told


def test_the_script_hands_over_to_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(sys, "argv", ["utcp-ws", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"utcp-ws, version {__version__}\n")
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 69
    assert capsys.readouterr().err.startswith("utcp-ws needs rich, ")


@pytest.mark.parametrize(("name", "other"), [("click", "rich"), ("rich", "click")])
def test_without_its_extra_it_says_how_to_get_it(name: str, other: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; from utcp_websocket_anyio.cli import main; main()"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert told.returncode == 69
    assert "python -m pip install 'utcp-websocket-anyio[cli]'" in told.stderr
    assert name in told.stderr
    assert other not in told.stderr
    assert "Traceback" not in told.stderr


def test_the_package_imports_without_what_the_command_needs() -> None:
    code = "import sys, utcp_websocket_anyio, utcp_websocket_anyio.cli; print({'click', 'rich'} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert told.stdout == "set()\n"


def test_help_lists_the_commands_and_every_exit_code() -> None:
    shown = done("--help")
    for command in ("demo", "discover", "call", "stream", "listen", "check", "serve"):
        assert f"  {command} " in shown
        assert "--help" in done(command, "--help")
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in shown


@pytest.mark.parametrize("command", ["demo", "discover", "call", "stream", "listen", "check", "schema", "serve"])
def test_every_help_has_examples_that_fit_the_terminal(command: str) -> None:
    shown = done(command, "--help", env={"COLUMNS": "80"})
    assert "\nExamples:\n  utcp-ws " in shown or f"| utcp-ws {command}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_no_summary_is_cut() -> None:
    assert "..." not in done("--help", env={"COLUMNS": "60"}).partition("Commands:")[2]


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "utcp_websocket_anyio", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, f"utcp-ws, version {__version__}\n", "")


def test_usage_errors_are_json_where_json_is_asked_for() -> None:
    told = ws("call", "--json")
    assert told.exit_code == 2
    assert json.loads(told.stderr)["error"] == "UsageError"
    assert "Usage: " in ws("call").stderr


def test_an_unknown_command_is_a_mistake_of_the_user() -> None:
    assert ws("cal").exit_code == 2


def test_functions_of_a_file_are_served_and_called(tools: Path) -> None:
    with started("serve", str(tools), "--port", "0", "--json") as server:
        assert server.stdout is not None
        about = json.loads(server.stdout.readline())
        assert about["tools"] == ["add", "tick"]
        told = run("call", about["url"], "add", "a=2")
        assert (told.returncode, told.stdout, told.stderr) == (0, "3\n", "")


def test_functions_of_a_named_module_are_served_from_the_working_directory(tools: Path) -> None:
    with started("serve", "tools", "--port", "0", cwd=tools.parent) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert done("discover", url).splitlines()[1:] == [
            "add   a=integer [b=integer]  Add two integers.",
            "tick                         Tick for ever.",
        ]


@needs_signals
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_and_its_server_without_a_word(tools: Path, backend: str, number: int) -> None:
    with started("serve", str(tools), "--port", "0") as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with started("stream", url, "tick", "--backend", backend) as stream:
            assert stream.stdout is not None
            assert [stream.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
            stream.send_signal(number)
            _, errors = stream.communicate(timeout=20)
            assert (stream.returncode, errors) == (128 + number, "")
        server.send_signal(number)
        _, errors = server.communicate(timeout=20)
        assert server.returncode == 128 + number
        assert errors.endswith("Ctrl-C ends it\n")
        assert errors.count("\n") == 3  # each of the two tools, and for whom


@needs_signals
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pipe_that_is_closed_ends_a_stream_without_a_word(tools: Path, backend: str) -> None:
    with started("serve", str(tools), "--port", "0") as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with started("stream", url, "tick", "--backend", backend) as stream:
            assert stream.stdout is not None
            assert stream.stderr is not None
            stream.stdout.readline()
            stream.stdout.close()
            assert stream.wait(timeout=20) == 141
            assert stream.stderr.read() == ""


def test_verbose_tells_of_connections_and_of_no_message() -> None:
    server = ToolServer("test")

    @server.tool
    def secret(word: str) -> str:
        return word

    with served(server) as url:
        seen = set()
        for arguments in (("--verbose", "call", url), ("call", "-v", url), ("-v", "call", url, "-v")):
            told = run(*arguments, "secret", "word=swordfish")
            assert told.stdout == "swordfish\n"
            assert "swordfish" not in told.stderr
            seen.add(told.stderr.count("connection opened: ws://127.0.0.1"))
    # However often it is asked for, each event is told once.
    assert len(seen) == 1
    assert seen != {0}
