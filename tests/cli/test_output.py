"""Received text on a terminal and in a pipe: no escape in it is obeyed, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.peers import Peer
from support.terminal import BACKENDS, COMMAND, done, endpoint, failed, manual, run, written, ws

from utcp_websocket_anyio.cli.output import json_text, visible

# What a terminal obeys: clear the screen, set the title, write the clipboard, C1's own introducer, text turned around.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07\x9b31m\x7f\r\u202egnp.exe\u2066 [red]b[/red] :smile:"
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
OBEYED = ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\x7f", "\u202e", "\u2066")

backends = pytest.mark.parametrize("backend", BACKENDS)


def assert_harmless(shown: str) -> None:
    for sequence in OBEYED:
        assert sequence not in shown, repr(sequence)


def says(value: Any) -> Any:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send(value)
        await peer.until_gone()

    return script


def test_every_control_character_is_shown_as_an_escape() -> None:
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
    shown = visible("".join(controls))
    assert [character for character in shown if not character.isprintable()] == ["\t", "\n"]
    assert visible("\x1b\r\x9b\u202e\ud800") == r"\x1b\r\x9b\u202e\ud800"
    assert visible("a\n\tb", one_line=True) == r"a\n\tb"
    assert visible("Grüße 🎉\n\tλ") == "Grüße 🎉\n\tλ"


@pytest.mark.parametrize("value", [HOSTILE, [HOSTILE], {HOSTILE: 1}, "\ud800", "\u2028"])
def test_json_is_safe_everywhere_and_loses_nothing(value: Any) -> None:
    text = json_text(value)
    assert all(character.isprintable() for character in text)
    assert json.loads(text) == value


def test_json_has_no_nan() -> None:
    value = {"a": [float("nan"), {"b": float("inf")}], "c": (-float("inf"), 1.5)}
    assert json_text(value) == '{"a": [null, {"b": null}], "c": [null, 1.5]}'


@backends
@pytest.mark.parametrize("command", ["call", "stream"])
@pytest.mark.parametrize("format_", ["json", "text"])
def test_a_hostile_response_is_shown_on_a_terminal_and_obeyed_nowhere(
    backend: str, command: str, format_: str, tmp_path: Path
) -> None:
    sent = json.dumps({"x": HOSTILE}) if format_ == "json" else HOSTILE
    with endpoint(says(sent)) as url:
        file = written(tmp_path / "m.json", manual(url, response_format=format_, expected_responses=1))
        shown = ws(command, file, "tool", "--backend", backend, env=TERMINAL)
        assert shown.exit_code == 0
        assert_harmless(shown.stdout)
        assert "[red]b[/red] :smile:" in shown.stdout
        # Into a pipe text goes as it is, and JSON escaped.
        piped = done(command, file, "tool", "--backend", backend)
        assert (json.loads(piped)["x"] if format_ == "json" else piped.removesuffix("\n")) == HOSTILE


@backends
def test_a_hostile_error_and_close_reason_are_harmless(backend: str, tmp_path: Path) -> None:
    async def closes(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.close(1011, HOSTILE)

    options = ("tool", "--backend", backend)
    with endpoint(says(json.dumps({"error": HOSTILE}))) as url:
        file = written(tmp_path / "m.json", manual(url, error_filter={"error": {"$any": True}}))
        assert_harmless(failed(1, "call", file, *options, env=TERMINAL))
        assert json.loads(failed(1, "call", file, *options, "--json"))["response"] == {"error": HOSTILE}
    with endpoint(closes) as url:
        assert_harmless(failed(6, "call", written(tmp_path / "c.json", manual(url)), *options, env=TERMINAL))


@backends
def test_hostile_messages_are_harmless_where_every_message_is_shown(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(HOSTILE + "\n00:00:00.000 > forged")
        await peer.receive()
        await peer.send(HOSTILE.encode())
        await peer.close(1000, HOSTILE)

    with endpoint(script) as url:
        listened = ws("listen", url, "--send", "x", "--backend", backend, env=TERMINAL)
        assert listened.exit_code == 0
        assert_harmless(listened.stdout)
        assert "\n00:00:00.000 > forged" not in listened.stdout
        assert "> forged" in listened.stdout
        file = written(tmp_path / "m.json", manual(url, expected_responses=1))
        traced = ws("call", file, "tool", "--trace", "--backend", backend, env=TERMINAL)
        assert_harmless(traced.stdout)
        assert_harmless(traced.stderr)
        assert "> forged" in traced.stderr


@backends
def test_nan_in_a_response_is_null_in_json(backend: str, tmp_path: Path) -> None:
    with endpoint(says("[NaN, Infinity, 1]")) as url:
        file = written(tmp_path / "m.json", manual(url, response_format="json"))
        told = ws("call", file, "tool", "--json", "--backend", backend)
    assert "NaN" not in told.stdout
    assert told.exit_code in (0, 6)


@backends
def test_a_hostile_manual_is_listed_checked_and_logged_harmlessly(backend: str, tmp_path: Path) -> None:
    content = manual("ws://127.0.0.1:1/", inputs={HOSTILE: {"type": "string"}}, **{HOSTILE: 1})
    content["tools"][0] |= {"name": HOSTILE, "description": HOSTILE}
    file = written(tmp_path / "m.json", content)
    for command in (("discover", file, "--backend", backend), ("check", file), ("check", file, "-v")):
        shown = ws(*command, env=TERMINAL)
        assert shown.exit_code == 0
        assert "[red]b[/red] :smile:" in shown.stdout
        assert_harmless(shown.stdout)
        assert_harmless(shown.stderr)


@backends
def test_a_lone_surrogate_is_shown_escaped(backend: str, tmp_path: Path) -> None:
    with endpoint(says('{"x": "a\\ud800b"}')) as url:
        file = written(tmp_path / "m.json", manual(url, response_format="json", result={"path": "x"}))
        assert done("call", file, "tool", "--backend", backend) == "a\\ud800b\n"
        assert json.loads(done("call", file, "tool", "--backend", backend, "--json")) == "a\ud800b"


@backends
@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_turned_off(backend: str, variables: dict[str, str], tmp_path: Path) -> None:
    with endpoint(says('{"x": 1}')) as url:
        file = written(tmp_path / "m.json", manual(url, response_format="json"))
        shown = ws("call", file, "tool", "--backend", backend, env={**TERMINAL, **variables})
        assert shown.stdout == '{\n  "x": 1\n}\n'
        listed = ws("discover", file, "--backend", backend, env={**TERMINAL, **variables})
        assert "\x1b[3" not in listed.output
        assert "\x1b[3" not in failed(2, "call", "none.json", "tool", env={**TERMINAL, **variables})


full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@full_disk
@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("discover", "FILE"), ("check", "FILE"), ("schema",), ("discover", "FILE", "--json"), ("demo",)],
)
def test_a_full_disk_is_one_line_and_an_exit_code(arguments: tuple[str, ...], tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", manual("ws://127.0.0.1:1/"))
    command = [*COMMAND, *(file if argument == "FILE" else argument for argument in arguments)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=50, check=False)
    assert ended.returncode == 74
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]


async def keeps_talking(peer: Peer) -> None:
    await peer.handshake()
    while True:
        await peer.send("x" * 1000)
        await anyio.sleep(0.01)


@full_disk
@backends
@pytest.mark.parametrize("command", [("call", "tool"), ("stream", "tool"), ("listen",), ("call", "tool", "--json")])
def test_a_full_disk_ends_what_is_connected(backend: str, command: tuple[str, ...], tmp_path: Path) -> None:
    with endpoint(keeps_talking) as url, Path("/dev/full").open("w") as full:
        file = written(tmp_path / "m.json", manual(url, listen_only=True))
        arguments = [*COMMAND, command[0], file, *command[1:], "--backend", backend]
        ended = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, timeout=50, check=False
        )
    assert ended.returncode == 74, ended.stderr
    assert "No space left on device" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
@pytest.mark.parametrize("arguments", [("--help",), ("discover", "FILE"), ("check", "FILE"), ("schema",)])
def test_a_closed_pipe_gives_an_exit_code_and_no_message(arguments: tuple[str, ...], tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", manual("ws://127.0.0.1:1/"))
    command = [*COMMAND, *(file if argument == "FILE" else argument for argument in arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=50, check=False)
    finally:
        os.close(writer)
    # A remark about the result may come before it is noticed that nobody takes the result.
    assert (ended.returncode, "Traceback" in ended.stderr, "Exception" in ended.stderr) == (141, False, False)


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000 + "]" * 100_000)
    file = written(tmp_path / "m.json", manual("ws://127.0.0.1:1/", inputs={"a": {"type": "array"}}))
    for arguments in (
        ("call", str(deep), "tool"),
        ("check", str(deep)),
        ("discover", str(deep)),
        ("call", file, "tool", f"a=@{deep}"),
        ("call", file, "tool", "--args", f"@{deep}"),
        ("call", file, "tool", "--auth", f"@{deep}"),
    ):
        told = run(*arguments)
        assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (2, "", 1), told.stderr


@backends
def test_a_deeply_nested_response_is_one_line(backend: str, tmp_path: Path) -> None:
    with endpoint(says('{"a":' * 50_000 + "1" + "}" * 50_000)) as url:
        file = written(tmp_path / "m.json", manual(url, response_format="json"))
        told = run("call", file, "tool", "--backend", backend)
        assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (6, "", 1), told.stderr[:500]
