"""The opening handshake: answers that are valid however a server writes them, and what a refusal says."""

from __future__ import annotations

import datetime as dt
import email.utils
from typing import Any

import anyio
import pytest
from support.engines import Opener, anyio_backend, connect, engine
from support.peers import TEXT, Peer, frame, peer
from websockets.utils import accept_key

from utcp_websocket_anyio._wire import Target, _asyncio, _trio
from utcp_websocket_anyio._wire._handshake import Handshake
from utcp_websocket_anyio.errors import (
    WebSocketAuthError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
)

__all__ = ["anyio_backend", "connect", "engine"]

URL = "ws://127.0.0.1/"


def answered(*lines: str, status: str = "HTTP/1.1 101 Switching Protocols", **settings: Any) -> Handshake:
    """A handshake that was answered with a status and header lines; `{accept}` stands for the right key."""
    handshake = Handshake(Target(URL, URL, **settings))
    key = handshake.request().partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
    head = "\r\n".join([status, *lines, "", ""]).replace("{accept}", accept_key(key))
    handshake.feed(head.encode("latin-1"))
    return handshake


MINIMAL = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}")
ACCEPT = MINIMAL[2]

GOOD: dict[str, tuple[str, ...]] = {
    "as usual": MINIMAL,
    "several connection options": ("Upgrade: websocket", "Connection: keep-alive, Upgrade", ACCEPT),
    "connection options in two lines": ("Upgrade: websocket", "Connection: keep-alive", "connection: upgrade", ACCEPT),
    "other case and white space": ("UPGRADE:WebSocket", "CONNECTION: \t ,UPGRADE,  ", f"{ACCEPT} \t"),
    "empty lists": (*MINIMAL, "Sec-WebSocket-Extensions:", "Sec-WebSocket-Protocol: ,"),
    "fields that mean nothing": (*MINIMAL, "Transfer-Encoding: chunked", "Content-Length: 12", "Server: é"),
    "a long line": (*MINIMAL, f"X-Long: {'x' * 16 * 1024}"),
    "many lines": (*(f"X-{number}: y" for number in range(500)), *MINIMAL),
    "a folded line": (*MINIMAL, "X-Folded: a", "\tb"),
    "an empty value": (*MINIMAL, "X-Empty:"),
}


@pytest.mark.parametrize("what", GOOD)
def test_a_valid_answer_is_accepted_however_it_is_written(what: str) -> None:
    assert answered(*GOOD[what]).is_good


@pytest.mark.parametrize("status", ["HTTP/1.1 101", "HTTP/1.1 101 ", "HTTP/1.1 101 Sure, why not"])
def test_the_reason_phrase_may_be_anything(status: str) -> None:
    assert answered(*MINIMAL, status=status).is_good


def test_informational_answers_may_come_first() -> None:
    handshake = answered("Link: </style.css>", status="HTTP/1.1 103 Early Hints")
    assert (handshake.failure, handshake.is_good) == (None, False)
    handshake.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(handshake.failure, WebSocketConnectionError)
    assert handshake.failure.status == 404


def test_an_answer_may_come_byte_by_byte_and_what_is_behind_it_is_given_back() -> None:
    handshake = Handshake(Target(URL, URL))
    key = handshake.request().partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
    head = "\r\n".join(["HTTP/1.1 101 X", *MINIMAL, "", ""]).replace("{accept}", accept_key(key)).encode()
    for at in range(len(head) - 1):
        assert handshake.feed(head[at : at + 1]) == b""
        assert not handshake.is_good
    assert handshake.feed(head[-1:] + b"a frame") == b"a frame"
    assert handshake.is_good


BAD: dict[str, tuple[str, ...]] = {
    "no upgrade": MINIMAL[1:],
    "an upgrade to something else": ("Upgrade: h2c", *MINIMAL[1:]),
    "no connection option": (MINIMAL[0], "Connection: keep-alive", ACCEPT),
    "no key": MINIMAL[:2],
    "a wrong key": (*MINIMAL[:2], "Sec-WebSocket-Accept: c29tZXRoaW5nIGVsc2U="),
    "two keys": (*MINIMAL, ACCEPT),
    "a line without a colon": (*MINIMAL, "nonsense"),
    "white space in a name": (*MINIMAL, "X : y"),
    "a folded first line": (" folded", *MINIMAL),
}


@pytest.mark.parametrize("what", BAD)
def test_an_answer_that_is_not_a_websocket_servers_fails_the_handshake(what: str) -> None:
    failure = answered(*BAD[what]).failure
    assert isinstance(failure, WebSocketConnectionError)
    assert not failure.transient
    assert "no WebSocket handshake" in str(failure)


@pytest.mark.parametrize(
    "status", ["HTTP/1.0 101 Ok", "HTTP/2 101", "HTTP/1.1 1010 X", "SSH-2.0-OpenSSH", "HTTP/1.1 abc"]
)
def test_an_answer_that_is_not_http_fails_the_handshake(status: str) -> None:
    assert isinstance(answered(*MINIMAL, status=status).failure, WebSocketConnectionError)


def test_a_head_without_end_is_given_up() -> None:
    handshake = answered("X: y")
    handshake = Handshake(Target(URL, URL))
    handshake.feed(b"HTTP/1.1 101 X\r\n")
    for _ in range(300):
        handshake.feed(b"X-Long: " + b"x" * 1024 + b"\r\n")
    assert isinstance(handshake.failure, WebSocketConnectionError)


@pytest.mark.parametrize(
    ("offered", "line", "chosen"),
    [
        ((), "X: y", None),
        (("a", "b"), "Sec-WebSocket-Protocol: b", "b"),
        (("a", "b"), "Sec-WebSocket-Protocol: , a ,", "a"),
    ],
)
def test_the_subprotocol_is_the_one_that_the_server_chose(
    offered: tuple[str, ...], line: str, chosen: str | None
) -> None:
    handshake = answered(*MINIMAL, line, subprotocols=offered)
    assert handshake.is_good
    assert handshake.subprotocol == chosen


@pytest.mark.parametrize(
    ("offered", "line"),
    [
        ((), "Sec-WebSocket-Protocol: a"),
        (("secret-a",), "X: y"),
        (("secret-a",), "Sec-WebSocket-Protocol: A"),
        (("secret-a", "b"), "Sec-WebSocket-Protocol: secret-a, b"),
        ((), "Sec-WebSocket-Extensions: permessage-deflate"),
        ((), "Sec-WebSocket-Extensions: x-unknown"),
    ],
)
def test_what_was_not_offered_breaks_the_protocol_and_no_error_shows_a_subprotocol(
    offered: tuple[str, ...], line: str
) -> None:
    failure = answered(*MINIMAL, line, subprotocols=offered).failure
    assert isinstance(failure, WebSocketProtocolError)
    assert "secret" not in str(failure)


def refused(status: str, *lines: str, body: bytes = b"", ends: bool = True) -> WebSocketConnectionError:
    handshake = answered(*lines, status=f"HTTP/1.1 {status}")
    handshake.feed(body)
    if ends:
        handshake.end()
    assert isinstance(handshake.failure, WebSocketConnectionError)
    return handshake.failure


@pytest.mark.parametrize(
    ("status", "transient"),
    [(400, False), (404, False), (429, True), (500, False), (501, False), (502, True), (503, True), (504, True)],
)
def test_trying_again_may_help_where_the_server_is_busy(status: int, transient: bool) -> None:
    assert refused(f"{status} X").transient is transient


def test_how_long_to_wait_is_known() -> None:
    assert refused("503 Busy", "Retry-After: 7").retry_after == 7
    in_a_minute = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
    seconds = refused("429 Slow", f"Retry-After: {email.utils.format_datetime(in_a_minute, usegmt=True)}").retry_after
    assert seconds is not None
    assert 0 < seconds <= 60
    assert refused("503 Busy", "Retry-After: Mon, 01 Jan 1990 00:00:00 GMT").retry_after == 0
    for strange in ("", "soon", "-1", "9" * 5000, "Mon, 01 Jan 99999 00:00:00 GMT", "²"):
        assert refused("503 Busy", f"Retry-After: {strange}".encode().decode("latin-1")).retry_after is None
    assert refused("503 Busy").retry_after is None


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("text/plain; charset=utf-8", b"Token expired.\n", "Token expired."),
        ("text/plain", b"two\r\nlines\x1b[0m", r"two lines\x1b[0m"),
        ("application/json", b'{"error": {"message": "no such key", "code": 7}}', "no such key"),
        (
            "application/json",
            b'{"error": "invalid_token", "error_description": "It is old"}',
            "invalid_token: It is old",
        ),
        ("application/problem+json", b'{"message": "Not yours"}', "Not yours"),
        ("", b"bare", "bare"),
    ],
)
def test_a_refusal_says_why_if_the_server_does(kind: str, body: bytes, says: str) -> None:
    lines = [f"Content-Type: {kind}"] if kind else []
    for how in (
        [f"Content-Length: {len(body)}"],
        [],
    ):
        assert f"status 403 Forbidden: {says} (" in str(refused("403 Forbidden", *lines, *how, body=body, ends=not how))
    chunked = b"".join(b"%x;ext=1\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\n\r\n"
    error = refused("403 Forbidden", *lines, "Transfer-Encoding: chunked", body=chunked, ends=False)
    assert f"status 403 Forbidden: {says} (" in str(error)
    assert isinstance(error, WebSocketAuthError)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (("Content-Type: text/html",), b"<html>Go away</html>"),
        (("Content-Type: text/plain",), b"<!doctype html> Go away"),
        (("Content-Type: text/plain", "Content-Encoding: gzip"), b"Go away"),
        (("Content-Type: application/octet-stream",), b"Go away"),
        (("Content-Type: text/plain",), b"Go away\xff"),
        (("Content-Type: text/plain",), b"Go away " * 1000),
        (("Content-Type: application/json",), b"[" * 3000),
        (("Transfer-Encoding: chunked",), b"nonsense\r\nGo away\r\n"),
    ],
)
def test_a_body_that_cannot_be_shown_is_not(lines: tuple[str, ...], body: bytes) -> None:
    assert "Go away" not in str(refused("403 Forbidden", *lines, body=body))


def test_a_redirect_is_not_followed_and_its_body_is_not_shown() -> None:
    error = refused("302 Found", "Location: ws://elsewhere/", body=b"moved", ends=False)
    assert "a redirect, which is not followed" in str(error)
    assert "moved" not in str(error)


# The request


def request_to(url: str, **settings: Any) -> list[str]:
    return Handshake(Target(url, url, **settings)).request().decode().split("\r\n")


def test_the_request_names_host_and_resource_as_the_url_does() -> None:
    assert request_to("ws://[::1]:8080/a/b?c=d%20e")[:2] == ["GET /a/b?c=d%20e HTTP/1.1", "Host: [::1]:8080"]
    assert request_to("wss://Tools.Example:443?q=1#fragment")[:2] == ["GET /?q=1 HTTP/1.1", "Host: tools.example"]
    assert request_to("ws://127.0.0.1")[:2] == ["GET / HTTP/1.1", "Host: 127.0.0.1"]
    assert request_to("wss://a.example/ü?ö=%C3%A4|")[0] == "GET /%C3%BC?%C3%B6=%C3%A4| HTTP/1.1"


def test_a_lone_surrogate_is_an_error_that_shows_nothing() -> None:
    with pytest.raises(WebSocketError) as caught:
        Handshake(Target(f"{URL}?key=geheim\ud800", URL)).request()
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


# Over sockets


@pytest.mark.anyio
@pytest.mark.parametrize("what", GOOD)
async def test_both_backends_accept_what_is_valid(connect: Opener, what: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        accept = accept_key(peer.header("Sec-WebSocket-Key") or "")
        head = "\r\n".join(["HTTP/1.1 101", *GOOD[what], "", ""]).replace("{accept}", accept)
        await peer.send_raw(head.encode("latin-1") + frame(TEXT, b"welcome"))

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            assert await wire.receive() == "welcome"
            await wire.close()


@pytest.mark.anyio
@pytest.mark.parametrize("ends", ["with a length", "with the connection", "never"])
async def test_the_reason_of_a_refusal_is_waited_for_but_not_for_long(
    connect: Opener, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_asyncio, _trio):
        monkeypatch.setattr(module, "REASON_TIME", 0.1 if ends == "never" else 1000)

    async def script(peer: Peer) -> None:
        length = {"with a length": ["Content-Length: 9"], "never": ["Content-Length: 1000"]}.get(ends, [])
        if ends == "never":
            await peer.answer("403 Forbidden", *length, body=b"not today")
        else:
            await peer.answer("403 Forbidden", *length)
            await anyio.sleep(0.05)
            await peer.send_raw(b"not today")
        if ends == "with the connection":
            await peer.stream.aclose()
        else:
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with peer(script) as url:
            with pytest.raises(WebSocketAuthError, match="status 403 Forbidden: not today") as caught:
                await connect(url)
    assert caught.value.__cause__ is caught.value.__context__ is None
