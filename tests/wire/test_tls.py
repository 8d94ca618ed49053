"""TLS as it should be, as it should not, and what arrives over it in unusual pieces."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSStream
from support.engines import anyio_backend, engine
from support.http_peer import answering, serve_http
from support.peers import CLOSE, TEXT, Peer, echo_server, frame, peer
from utcp.data.auth_implementations import OAuth2Auth

from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._connections import connector
from utcp_websocket_anyio._net.transport import Network
from utcp_websocket_anyio._wire import Target

__all__ = ["anyio_backend", "engine"]

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _chosen(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "open_wire", engine[1])


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def server(authority: trustme.CA) -> ssl.SSLContext:
    return serving(authority.issue_cert("127.0.0.1"))


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def entered(context: ssl.SSLContext | None) -> AsyncIterator[WebSocketCommunicationProtocol]:
    with anyio.fail_after(15):
        async with WebSocketCommunicationProtocol(ssl_context=context) as protocol:
            yield protocol


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, **{"message": "hello", **fields})


async def call(protocol: WebSocketCommunicationProtocol, url: str, **fields: Any) -> Any:
    return await protocol.call_tool(None, "manual.t", {}, template(url, **fields))


async def refused(context: ssl.SSLContext | None, url: str, says: str) -> None:
    """A call is refused, and not tried again."""
    async with entered(context) as protocol:
        with pytest.raises(WebSocketConnectionError, match=says) as caught:
            await call(protocol, f"{url}?token=geheim", reconnect_attempts=5)
    assert not caught.value.transient
    assert caught.value.endpoint == url
    assert caught.value.__cause__ is caught.value.__context__ is None


async def hold(connection: Peer) -> None:
    await connection.handshake()


# Who is at the other end


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_with_a_valid_certificate_is_accepted(
    server: ssl.SSLContext, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    server.minimum_version = server.maximum_version = version
    async with entered(trusting) as protocol, echo_server(tls=server) as url:
        assert url.startswith("wss://")
        assert await call(protocol, url) == "hello"
        long = "é" * 500_000
        assert await call(protocol, url, message=long) == long
        assert "1 open" in repr(protocol)


class Untouchable(ssl.SSLContext):
    """A context of the user's, who does not want it changed: it may be in use for something else."""

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        raise AssertionError("somebody has set ALPN")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError(f"somebody has set {name}")


async def test_the_users_own_context_is_used_as_it_is(server: ssl.SSLContext, authority: trustme.CA) -> None:
    context = Untouchable(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    async with entered(context) as protocol, echo_server(tls=server) as url:
        assert await call(protocol, url) == "hello"


async def test_a_name_with_a_dot_at_its_end_is_verified_without_it(
    authority: trustme.CA, trusting: ssl.SSLContext, engine: Any
) -> None:
    named: list[str | None] = []
    context = serving(authority.issue_cert("localhost"))
    context.sni_callback = lambda _, name, __: named.append(name)
    async with echo_server(tls=context) as url:
        dotted = url.replace("127.0.0.1", "localhost.")
        with anyio.fail_after(15):
            wire = await engine[1](Target(url=dotted, endpoint=dotted, network=Network(ssl_context=trusting)))
            await wire.send("hello")
            assert await wire.receive() == "hello"
            await wire.close()
    assert named == ["localhost"]


async def test_a_certificate_of_another_name_is_refused(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    context = serving(authority.issue_cert("other.example", "127.0.0.2"))
    async with peer(hold, tls=context) as url:
        await refused(trusting, url, "TLS: the certificate is not trusted: .*IP address mismatch")


async def test_a_certificate_that_has_expired_is_refused(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    now = dt.datetime.now(dt.UTC)
    expired = authority.issue_cert("127.0.0.1", not_before=now - dt.timedelta(9), not_after=now - dt.timedelta(1))
    async with peer(hold, tls=serving(expired)) as url:
        await refused(trusting, url, "TLS: the certificate is not trusted: certificate has expired")


async def test_a_certificate_of_an_unknown_authority_is_refused(server: ssl.SSLContext) -> None:
    unrelated = ssl.create_default_context()
    trustme.CA().configure_trust(unrelated)
    async with peer(hold, tls=server) as url:
        for context in (None, unrelated):
            await refused(context, url, "TLS: the certificate is not trusted: ")


async def test_nothing_in_a_call_template_turns_verification_off(server: ssl.SSLContext) -> None:
    fields = {"verify": False, "verify_ssl": False, "ssl": False, "ssl_context": None, "insecure": True}
    async with peer(hold, tls=server) as url, entered(None) as protocol:
        with pytest.raises(WebSocketConnectionError, match="not trusted"):
            await call(protocol, url, **fields)


async def test_a_client_certificate_in_the_context_is_shown_to_the_server(
    authority: trustme.CA, server: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    async with echo_server(tls=server) as url:
        async with entered(trusting) as protocol:
            with pytest.raises(WebSocketConnectionError):
                await call(protocol, url, reconnect_attempts=0)
        authority.issue_cert("client@example.com").configure_cert(trusting)
        async with entered(trusting) as protocol:
            assert await call(protocol, url) == "hello"


async def test_one_context_is_for_tokens_and_manuals_too(server: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    tool = {"name": "t", "inputs": {"type": "object"}}
    content = {"access_token": "token", "tools": [tool]}
    async with echo_server(tls=server) as url, serve_http(answering(content), ssl_context=server) as https:
        auth = OAuth2Auth(token_url=https.url, client_id="client", client_secret="geheim", scope=None)
        own = template(url, auth=auth, discovery_url=https.url)
        async with entered(trusting) as protocol:
            found = await protocol.register_manual(None, own)
            assert [tool.name for tool in found.manual.tools] == ["t"]
            assert await protocol.call_tool(None, "manual.t", {}, own) == "hello"
        asked = len(https.peers)
        async with entered(None) as protocol:
            with pytest.raises(WebSocketConnectionError, match="not trusted"):
                await protocol.register_manual(None, own)
            with pytest.raises(WebSocketConnectionError, match=r"token request .* not trusted"):
                await protocol.call_tool(None, "manual.t", {}, own)
        assert len(https.peers) == asked


# What is no TLS


async def test_a_plain_server_where_tls_is_due_is_refused(trusting: ssl.SSLContext) -> None:
    greeted = 0

    async def greet(connection: Peer) -> None:
        nonlocal greeted
        greeted += 1
        await connection.stream.receive()
        await connection.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with peer(greet) as url:
        await refused(trusting, url.replace("ws://", "wss://"), "TLS: ")
    assert greeted == 1


async def test_tls_from_a_server_without_it_fails_the_handshake(server: ssl.SSLContext) -> None:
    async with peer(hold, tls=server) as url, entered(None) as protocol:
        with pytest.raises(WebSocketConnectionError):
            await call(protocol, url.replace("wss://", "ws://"), reconnect_attempts=0)


async def test_a_server_that_hangs_up_in_the_tls_handshake_is_tried_again(trusting: ssl.SSLContext) -> None:
    attempts = 0

    async def hang_up(connection: Peer) -> None:
        nonlocal attempts
        attempts += 1
        await connection.stream.receive()
        await (connection.reset() if attempts % 2 else connection.stream.aclose())

    async with peer(hang_up) as url, entered(trusting) as protocol:
        for _ in range(2):
            with pytest.raises(WebSocketConnectionError, match=r"cannot connect: Connection reset|connection was lost"):
                await call(protocol, url.replace("ws://", "wss://"), reconnect_attempts=2)
    assert attempts == 6


async def test_a_server_that_says_nothing_in_the_tls_handshake_is_left_in_time(trusting: ssl.SSLContext) -> None:
    left = anyio.Event()

    async def say_nothing(connection: Peer) -> None:
        await connection.until_gone()
        left.set()

    async with peer(say_nothing) as url, entered(trusting) as protocol:
        with pytest.raises(WebSocketTimeoutError) as caught:
            await call(protocol, url.replace("ws://", "wss://"), connection_timeout=0.1)
        assert caught.value.phase == "connect"
        await left.wait()


# What breaks off


def transport(connection: Peer) -> anyio.abc.ByteStream:
    """The TCP stream below TLS."""
    assert isinstance(connection.stream, TLSStream)
    stream = connection.stream.transport_stream
    assert isinstance(stream, anyio.abc.ByteStream)
    return stream


async def half_a_message_then_reset(connection: Peer) -> None:
    await connection.send_raw(frame(TEXT, b"x" * 100)[:50])
    await connection.reset()


async def half_a_message_then_eof(connection: Peer) -> None:
    await connection.send_raw(frame(TEXT, b"x" * 100)[:50])
    await transport(connection).aclose()


async def half_a_message_then_close_notify(connection: Peer) -> None:
    await connection.send_raw(frame(TEXT, b"x" * 100)[:50])
    assert isinstance(connection.stream, TLSStream)
    with suppress(ssl.SSLWantReadError):
        connection.stream._ssl_object.unwrap()
    await transport(connection).send(connection.stream._write_bio.read())
    while True:
        await transport(connection).receive()


async def half_a_record_then_eof(connection: Peer) -> None:
    await transport(connection).send(b"\x17\x03\x03\x40\x00" + bytes(100))
    await transport(connection).aclose()


async def half_the_head_of_a_record_then_eof(connection: Peer) -> None:
    await transport(connection).send(b"\x17\x03")
    await transport(connection).aclose()


async def a_forged_record(connection: Peer) -> None:
    await transport(connection).send(b"\x17\x03\x03\x00\x40" + bytes(64))


async def what_is_no_record(connection: Peer) -> None:
    await transport(connection).send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    "end",
    [
        half_a_message_then_reset,
        half_a_message_then_eof,
        half_a_message_then_close_notify,
        half_a_record_then_eof,
        half_the_head_of_a_record_then_eof,
        a_forged_record,
        what_is_no_record,
    ],
    ids=lambda end: end.__name__,
)
async def test_tls_that_breaks_off_within_a_call_fails_it_at_once_and_the_next_connects_anew(
    server: ssl.SSLContext, trusting: ssl.SSLContext, end: Callable[[Peer], Awaitable[None]]
) -> None:
    connections = 0

    async def script(connection: Peer) -> None:
        nonlocal connections
        connections += 1
        await connection.handshake()
        await connection.receive()
        if connections == 1:
            await end(connection)
        else:
            await connection.send("answer")

    async with entered(trusting) as protocol, peer(script, tls=server) as url:
        with pytest.raises(WebSocketClosedError) as caught:
            await call(protocol, url)
        assert caught.value.code == 1006
        assert await call(protocol, url) == "answer"
    assert connections == 2


# What arrives in unusual pieces


@pytest.mark.parametrize("size", [3, 5, 20])
async def test_half_a_record_is_unread_data(
    server: ssl.SSLContext, trusting: ssl.SSLContext, engine: Any, size: int
) -> None:
    """A connection on which something is on its way is not quiet, although nothing of it can be decrypted yet."""
    go = anyio.Event()

    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.send("first")
        data = records(connection, frame(TEXT, b"second"))
        await transport(connection).send(data[:size])
        await go.wait()
        await transport(connection).send(data[size:])

    with anyio.fail_after(15):
        async with peer(script, tls=server) as url:
            wire = await engine[1](Target(url=url, endpoint=url, network=Network(ssl_context=trusting)))
            assert await wire.receive() == "first"
            while not wire.has_unread_data():
                await anyio.sleep(0.001)
            with anyio.move_on_after(0.05):
                await wire.receive()  # takes the half from the kernel
            assert wire.has_unread_data()
            go.set()
            assert await wire.receive() == "second"
            wire.abort()


def records(connection: Peer, *payloads: bytes) -> bytes:
    """Each payload as a TLS record of its own, not sent yet."""
    assert isinstance(connection.stream, TLSStream)
    for payload in payloads:
        connection.stream._ssl_object.write(payload)
    return connection.stream._write_bio.read()


async def test_a_call_whose_time_is_up_still_says_farewell(server: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    said: list[tuple[int, bytes]] = []
    closed = anyio.Event()

    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        said.append(await connection.receive_frame())
        await connection.send("until then")
        said.append(await connection.receive_frame())
        closed.set()

    async with peer(script, tls=server) as url, entered(trusting) as protocol:
        with pytest.raises(WebSocketTimeoutError):
            await call(protocol, url, timeout=0.2, on_close=[{"send": "farewell", "expect": "^until then$"}])
        await closed.wait()
    assert said == [(TEXT, b"farewell"), (CLOSE, b"\x03\xe8")]


async def test_messages_and_records_in_one_segment_all_arrive_in_order(
    server: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        frames = [frame(TEXT, b"%d" % n) for n in range(300)]
        together = b"".join(frames[:100])
        cut = b"".join(frames[200:])
        pieces = [cut[at : at + 3] for at in range(0, len(cut), 3)]
        await transport(connection).send(records(connection, together, *frames[100:200], *pieces))

    async with entered(trusting) as protocol, peer(script, tls=server) as url:
        stream = protocol.call_tool_streaming(None, "manual.t", {}, template(url, expected_responses=300))
        async with aclosing(stream):
            assert [item async for item in stream] == [str(n) for n in range(300)]


async def test_a_slow_consumer_gets_all_that_tls_has_kept_back(
    server: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        payloads = [frame(TEXT, f"{n:1020}".encode()) for n in range(500)]
        for at in range(0, 500, 50):
            await transport(connection).send(records(connection, *payloads[at : at + 50]))

    async with entered(trusting) as protocol, peer(script, tls=server) as url:
        stream = protocol.call_tool_streaming(None, "manual.t", {}, template(url, expected_responses=500))
        received = 0
        async with aclosing(stream):
            async for item in stream:
                assert int(item) == received
                received += 1
                if received % 50 == 0:
                    await anyio.wait_all_tasks_blocked()
    assert received == 500


async def test_a_message_in_byte_by_byte_segments_arrives(server: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        data = records(connection, frame(TEXT, b"first"), frame(TEXT, b"second"))
        raw = connection.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(6, 1, 1)  # TCP_NODELAY
        for byte in data:
            await transport(connection).send(bytes([byte]))
            await anyio.lowlevel.checkpoint()

    async with entered(trusting) as protocol, peer(script, tls=server) as url:
        assert await call(protocol, url, expected_responses=2) == ["first", "second"]


async def in_the_record_of_the_answer(connection: Peer, answer: bytes, pushed: bytes) -> None:
    await connection.send_raw(answer + pushed)


async def in_the_segment_of_the_answer(connection: Peer, answer: bytes, pushed: bytes) -> None:
    await transport(connection).send(records(connection, answer, pushed))


async def cut_in_two_records(connection: Peer, answer: bytes, pushed: bytes) -> None:
    await transport(connection).send(records(connection, answer + pushed[:5], pushed[5:]))


async def in_many_records(connection: Peer, answer: bytes, pushed: bytes) -> None:
    await transport(connection).send(records(connection, answer, *[pushed] * 200))


async def in_records_of_a_kibibyte(connection: Peer, answer: bytes, pushed: bytes) -> None:
    # Buffers are full exactly where a record ends.
    await transport(connection).send(records(connection, answer, *[frame(TEXT, b"unasked for".ljust(1020))] * 32))


async def afterwards(connection: Peer, answer: bytes, pushed: bytes) -> None:
    await connection.send_raw(answer)
    await connection.send_raw(pushed)


@pytest.mark.parametrize(
    "push",
    [
        in_the_record_of_the_answer,
        in_the_segment_of_the_answer,
        cut_in_two_records,
        in_many_records,
        in_records_of_a_kibibyte,
        afterwards,
    ],
    ids=lambda push: push.__name__,
)
async def test_what_is_pushed_behind_an_answer_reaches_no_later_call(
    server: ssl.SSLContext,
    trusting: ssl.SSLContext,
    push: Callable[[Peer, bytes, bytes], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that reading is paused in the middle of what is pushed.
    monkeypatch.setattr("utcp_websocket_anyio._wire._asyncio._MAX_QUEUED_MESSAGES", 16)
    pushed = anyio.Semaphore(0)

    async def script(connection: Peer) -> None:
        await connection.handshake()
        while True:
            question = await connection.receive_text()
            unasked = frame(TEXT, b"unasked for 1") + frame(TEXT, b"unasked for 2")
            await push(connection, frame(TEXT, f"answer to {question:1010}".encode()), unasked)
            pushed.release()

    async with entered(trusting) as protocol, peer(script, tls=server) as url:
        for n in range(20):
            assert (await call(protocol, url, message=str(n))).rstrip() == f"answer to {n}"
            await pushed.acquire()
