"""`utcp-ws listen`: every message of a connection is seen, in the order in which it went over it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.peers import Peer
from support.terminal import BACKENDS, COMMAND, done, endpoint, failed, manual, written, ws

from utcp_websocket_anyio.cli.typed import Pipe, Silence, open_lines

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def heard(*arguments: str, code: int = 0, **options: Any) -> list[tuple[str, Any]]:
    """Direction and content of what is listened to."""
    result = ws("listen", *arguments, "--json", **options)
    assert result.exit_code == code, result.output
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    return [
        (entry["event"], entry.get("text") or entry.get("binary") or (entry.get("code"), entry.get("reason")))
        for entry in shown
    ]


async def logs_in(peer: Peer) -> None:
    """Says hello, wants a token, pings in JSON, and echoes."""
    await peer.handshake(
        *[f"Sec-WebSocket-Protocol: {name}" for name in [peer_protocol(await peer.read_request())] if name]
    )
    await peer.send({"hello": 7})
    while True:
        message = await peer.receive_json()
        if "login" in message:
            await peer.send({"welcome": message["login"]})
            await peer.send({"ping": 1})
        else:
            await peer.send({"echo": message})


def peer_protocol(request: str) -> str | None:
    found = re.search(r"Sec-WebSocket-Protocol: (\S+)", request)
    return found[1] if found else None


LOGIN: dict[str, Any] = {
    "on_connect": [
        {"expect": {"hello": {"$any": True}}, "capture": {"number": {"path": "hello"}}},
        {"send": {"login": "{{captured.number}}"}, "expect": {"welcome": {"$any": True}}},
    ],
    "auto_reply": [{"match": {"ping": {"$any": True}}, "reply": {"pong": 1}}],
}


def test_lines_have_time_and_direction(backend: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.send(bytes(range(70)))
        await peer.close(1000, "that was it")

    with endpoint(script) as url:
        result = ws("listen", url, "--send", "[red]hi", "--backend", backend)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} [<>x] ", line) for line in lines)
    first_bytes = bytes(range(64)).hex(" ")
    assert [line[13:] for line in lines] == [
        "> [red]hi",
        "< [red]hi",
        f"< binary, 70 bytes: {first_bytes} …",
        "x closed: 1000 that was it",
    ]
    assert result.stderr == f"connected to {url}\n"


def test_json_has_the_same_with_bytes_in_base64(backend: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("text")
        await peer.send(b"\x00\xff")
        await peer.close(1001)

    with endpoint(script) as url:
        assert heard(url, "--backend", backend) == [
            ("received", "text"),
            ("received", "AP8="),
            ("closed", (1001, "")),
        ]


def test_an_unfriendly_close_is_shown_and_is_a_failure(backend: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.close(1008, "no")

    with endpoint(script) as url:
        assert heard(url, "--backend", backend, code=6) == [("closed", (1008, "no"))]


def test_login_and_automatic_replies_of_a_file_are_seen(backend: str, tmp_path: Path) -> None:
    with endpoint(logs_in) as url:
        file = written(tmp_path / "m.json", {**manual(url, **LOGIN), "message": {"never": "sent"}})
        events = [(event, json.loads(text)) for event, text in heard(file, "--send", '{"a": 1}', "--count", "1")]
        assert events[:5] == [
            ("received", {"hello": 7}),
            ("sent", {"login": 7}),
            ("received", {"welcome": 7}),
            ("sent", {"a": 1}),
            ("received", {"ping": 1}),
        ]
        # A reply goes out by a task of its own.
        assert sorted(events[5:], key=str) == [("received", {"echo": {"a": 1}}), ("sent", {"pong": 1})]


def test_a_rejected_login_is_a_refusal_of_credentials(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"denied": True})

    steps = [{"expect": {"ok": True}, "reject": {"denied": True}}]
    with endpoint(script) as url:
        file = written(tmp_path / "m.json", manual(url, on_connect=steps))
        assert heard(file, "--backend", backend, code=4) == [("received", '{"denied": true}')]


def test_a_tool_is_listened_to_where_its_template_and_arguments_say(backend: str, tmp_path: Path) -> None:
    asked: list[str] = []

    async def script(peer: Peer) -> None:
        asked.append(await peer.read_request())
        await peer.handshake()
        assert await peer.receive_json() == {}
        await peer.send("hi")

    with endpoint(script) as url:
        content = manual(url, inputs={"room": {"type": "string"}})
        content["tools"][0]["tool_call_template"] = {
            "call_template_type": "websocket",
            "url": url + "rooms/{{args.room}}",
            "headers": {"X-Token": "${TOKEN}"},
        }
        file = written(tmp_path / "m.json", content)
        arguments = ("tool", "room=a b", "--var", "TOKEN=t", "--count", "1", "--backend", backend)
        assert heard(file, *arguments) == [("sent", "{}"), ("received", "hi")]
        assert "/rooms/a%20b " in asked[0]
        assert "X-Token: t" in asked[0]
        assert "missing argument: room" in failed(2, "listen", file, "tool", "--var", "TOKEN=t", "--backend", backend)


def test_time_and_subprotocol_can_be_given(backend: str) -> None:
    with endpoint(logs_in) as url:
        arguments = ("--protocol", "chat.v1", "--for", "0.5", "--backend", backend)
        assert heard(url, *arguments) == [("received", '{"hello": 7}')]


def test_nothing_is_asked_of_the_endpoint(backend: str, tmp_path: Path) -> None:
    received: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("hi")
        received.append(await peer.receive_text())

    with endpoint(script) as url:
        file = written(tmp_path / "m.json", {"url": url})
        done("listen", url, "--count", "1", "--backend", backend)
        done("listen", file, "--count", "1", "--backend", backend)
    assert received == []


def test_several_manuals_are_not_listened_to_at_once(backend: str, tmp_path: Path) -> None:
    templates = [{**manual("ws://127.0.0.1:1/"), "name": name} for name in ("one", "two")]
    file = written(tmp_path / "config.json", {"manual_call_templates": templates})
    assert "name a tool as MANUAL.TOOL" in failed(2, "listen", file, "--backend", backend)


async def echoes(peer: Peer) -> None:
    await peer.handshake()
    while True:
        await peer.send(await peer.receive())


def test_messages_are_sent_in_the_order_given_as_text_bytes_and_files(backend: str, tmp_path: Path) -> None:
    text, data = tmp_path / "text", tmp_path / "data"
    text.write_text("Grüße")
    data.write_bytes(b"\xff\x00")
    arguments = ("--send", "one", "--send-hex", "00 ff", f"--send=@{text}", "--send", f"@{data}", "--send-hex=01")
    with endpoint(echoes) as url:
        said = heard(url, *arguments, "--count", "5", "--backend", backend)
    assert [content for event, content in said if event == "sent"] == ["one", "AP8=", "Grüße", "/wA=", "AQ=="]
    assert [content for event, content in said if event == "received"] == ["one", "AP8=", "Grüße", "/wA=", "AQ=="]


def test_what_cannot_be_sent_is_named(backend: str) -> None:
    arguments = ("listen", "ws://127.0.0.1:1/", "--backend", backend)
    assert "--send-hex 0x: write bytes in hexadecimal" in failed(2, *arguments, "--send-hex", "0x")
    assert "--send @/none/file: No such file" in failed(2, *arguments, "--send", "@/none/file")


def test_lines_of_a_pipe_are_messages(backend: str) -> None:
    with endpoint(echoes) as url:
        said = heard(url, "--send", "first", "--count", "4", "--backend", backend, stdin="a\nb\r\nGrüße")
    assert [content for event, content in said if event == "sent"] == ["first", "a", "b", "Grüße"]


def test_lines_of_a_pipe_are_sent_as_they_come_and_its_end_ends_nothing(backend: str) -> None:
    with endpoint(echoes) as url:
        command = [*COMMAND, "listen", url, "--json", "--count", "3", "--backend", backend]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listening:
            assert listening.stdin is not None
            assert listening.stdout is not None
            for line in ("one", "two"):
                listening.stdin.write(line + "\n")
                listening.stdin.flush()
                assert [json.loads(listening.stdout.readline())["text"] for _ in range(2)] == [line, line]
            listening.stdin.write("three")
            listening.stdin.close()
            assert [json.loads(line)["text"] for line in listening.stdout] == ["three", "three"]
            assert listening.wait(timeout=20) == 0


def test_text_in_binary_messages_is_shown_as_text(backend: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(b'{"a": 1}')
        await peer.send(b"\x1b[2J")
        await peer.close(1000)

    with endpoint(script) as url:
        shown = [line[13:] for line in done("listen", url, "--backend", backend).splitlines()]
        assert shown[:2] == ['< binary, 8 bytes, text: {"a": 1}', "< binary, 4 bytes: 1b 5b 32 4a"]
        first = json.loads(done("listen", url, "--json", "--count", "1", "--backend", backend))
    assert (first["binary"], first["text"]) == ("eyJhIjogMX0=", '{"a": 1}')


class Terminal:
    """A command at a terminal of 80 columns."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._descriptor = descriptor
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until the text has been shown; what was shown before it is forgotten."""
        until = time.monotonic() + 40
        while text not in self.shown:
            assert time.monotonic() < until, self.shown
            if select.select([self._descriptor], [], [], 1)[0]:
                self.shown += os.read(self._descriptor, 65536).decode()
        self.shown = self.shown.partition(text)[2]

    def echoes_what_is_typed(self) -> bool:
        import termios

        return bool(termios.tcgetattr(self._descriptor)[3] & termios.ECHO)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}

    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield Terminal(ours, process)
            finally:
                process.kill()
    finally:
        os.close(theirs)
        os.close(ours)


needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo terminals")


@needs_terminal
def test_a_terminal_has_a_prompt_that_remembers(backend: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            await peer.send(f"you said {await peer.receive_text()}")

    with endpoint(script) as url, terminal("listen", url, "--send", "first", "--backend", backend) as screen:
        screen.wait_for("you said first")
        screen.wait_for("> ")
        screen.type("\x1b[A?\r")  # what the command line said
        screen.wait_for("you said first?")
        screen.wait_for("> ")
        screen.type("hello\r")
        screen.wait_for("you said hello")
        screen.wait_for("> ")
        screen.type("\x1b[A!\r")  # what was sent before, and more
        screen.wait_for("you said hello!")
        screen.wait_for("> ")
        screen.type("hel\t?\r")  # completed
        screen.wait_for("you said hello")
        screen.wait_for("> ")
        screen.type("\x04")
        assert screen.process.wait(timeout=20) == 0
        assert screen.echoes_what_is_typed()


@needs_terminal
def test_a_job_in_the_background_does_not_ask_the_terminal(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
        assert isinstance(open_lines(), Silence)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
        # Its output goes elsewhere, so there is no prompt.
        assert isinstance(open_lines(), Pipe)


@needs_terminal
def test_a_message_leaves_alone_what_is_being_typed(backend: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("in between")
        await peer.send(await peer.receive())
        await peer.until_gone()

    with endpoint(script) as url, terminal("listen", url, "--backend", backend) as screen:
        screen.wait_for("> ")
        screen.type("first\r")
        screen.wait_for("in between")
        screen.wait_for("> ")
        screen.type("second\r")
        screen.wait_for("second")
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(timeout=20) == 130
        assert screen.echoes_what_is_typed()


def test_a_tools_call_is_made_and_each_message_named(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            message = await peer.receive_json()
            await peer.send({"ready": True} if "sub" in message else {"news": 1})
            await peer.send({**message, "echo": True})

    template = {
        "before": [{"send": {"sub": "{{args.room}}"}, "expect": {"ready": True}}],
        "message": {"ask": "{{args.room}}", "id": "{{uuid}}"},
        "message_filter": {"id": "{{uuid}}"},
        "expected_responses": 1,
    }
    with endpoint(script) as url:
        file = written(tmp_path / "m.json", manual(url, inputs={"room": {"type": "string"}}, **template))
        arguments = (
            "tool",
            "room=a",
            "--send",
            '{"typed": "{{uuid}}"}',
            "--json",
            "--count",
            "6",
            "--backend",
            backend,
        )
        told = [json.loads(line) for line in done("listen", file, *arguments, "--backend", backend).splitlines()]
    shown = [(entry["event"], json.loads(entry["text"]), entry["taken_for"]) for entry in told]
    sent = {json.dumps(message): meaning for event, message, meaning in shown if event == "sent"}
    assert sent['{"sub": "a"}'] == "step 1 of before"
    assert sent['{"typed": "{{uuid}}"}'] == "typed"
    assert list(sent.values()).count("request") == 1
    received = [(sorted(message), meaning) for event, message, meaning in shown if event == "received"]
    assert (["ready"], "step 1 of before") in received
    assert (["ask", "echo", "id"], "response") in received
    assert any(meaning.startswith("skipped by message_filter") for _, meaning in received)
