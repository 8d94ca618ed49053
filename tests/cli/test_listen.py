"""`utcp-ws listen`: every message of a connection is seen, in the order in which it went over it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.peers import Peer
from support.terminal import BACKENDS, done, endpoint, failed, manual, written, ws

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
        assert [(event, json.loads(text)) for event, text in heard(file, "--send", '{"a": 1}', "--count", "1")] == [
            ("received", {"hello": 7}),
            ("sent", {"login": 7}),
            ("received", {"welcome": 7}),
            ("sent", {"a": 1}),
            ("received", {"ping": 1}),
            ("sent", {"pong": 1}),
            ("received", {"echo": {"a": 1}}),
        ]


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
        assert heard(file, *arguments) == [("received", "hi")]
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
