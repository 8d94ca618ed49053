"""A WebSocket by every way: directly, through each kind of proxy, and over a Unix socket."""

from __future__ import annotations

import functools
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
import trustme
from support.http_peer import HttpPeer, serve_http
from support.peers import Peer, echo_server, peer
from support.proxy import ProxyServer, observed_network, run_proxy

from utcp_websocket_anyio import (
    NetworkSettings,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketSecurityError,
    configure,
)
from utcp_websocket_anyio._net.settings import current_settings

pytestmark = pytest.mark.anyio

NAME = "tools.nowhere.invalid"
WAYS = [("http", "http"), ("https", "https"), ("socks5", "socks5h")]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(autouse=True)
def _plain_connections_to_the_name() -> Iterator[None]:
    before = current_settings()
    configure(NetworkSettings(trusted_hosts=[NAME], proxy=None))
    yield
    configure(before)


@asynccontextmanager
async def entered(settings: NetworkSettings) -> AsyncIterator[WebSocketCommunicationProtocol]:
    with anyio.fail_after(60):
        async with WebSocketCommunicationProtocol(network=settings) as protocol:
            yield protocol


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    values = {"name": "m", "url": url, "message": "{{args.text}}", "reconnect_attempts": 0, **fields}
    return WebSocketCallTemplate.model_validate(values)


async def call(protocol: WebSocketCommunicationProtocol, called: WebSocketCallTemplate, text: str = "hello") -> None:
    assert await protocol.call_tool(None, "m.t", {"text": text}, called) == text


def port_of(url: str) -> int:
    return int(url.rstrip("/").rpartition(":")[2])


@asynccontextmanager
async def proxied(
    way: tuple[str, str], url: str, tls: ssl.SSLContext, ca_file: str
) -> AsyncIterator[tuple[ProxyServer, NetworkSettings]]:
    context = tls if way[0] == "https" else None
    async with run_proxy(way[0], hosts={NAME: port_of(url)}, ssl_context=context) as proxy:
        yield proxy, NetworkSettings(proxy=proxy.url(way[1]), ca_file=ca_file)


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[1])
async def test_calls_go_through_a_proxy_on_one_connection(
    way: tuple[str, str], secure: bool, tls: ssl.SSLContext, ca_file: str
) -> None:
    scheme = "wss" if secure else "ws"
    with observed_network() as (names, _):
        async with (
            echo_server(tls=tls if secure else None) as url,
            proxied(way, url, tls, ca_file) as (proxy, settings),
            entered(settings) as protocol,
        ):
            called = template(f"{scheme}://{NAME}:4433/path?x=1")
            for text in ("hello", "x" * 1_000_000, "", "é" * 70_000, "again"):
                await call(protocol, called, text)
            await anyio.wait_all_tasks_blocked()
            assert protocol.statistics().idle == 1
    assert proxy.requests == [(NAME, 4433)]
    assert names == []
    seen = b"".join(proxy.received) if way[0] != "https" else b""
    assert (b"GET /path?x=1 HTTP/1.1" in seen) is (not secure and way[0] != "https")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[1])
async def test_a_stream_and_a_peer_that_closes_are_the_same_behind_a_proxy(
    way: tuple[str, str], tls: ssl.SSLContext, ca_file: str
) -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        for n in range(2000):
            await connection.send(f"{n}")
        await connection.close(4001, "enough")

    received = []
    async with (
        peer(script, tls=tls) as url,
        proxied(way, url, tls, ca_file) as (_, settings),
        entered(settings) as protocol,
    ):
        with pytest.raises(WebSocketClosedError) as caught:
            async for item in protocol.call_tool_streaming(None, "m.t", {"text": "go"}, template(f"wss://{NAME}/")):
                received.append(item)
    assert received == [str(n) for n in range(2000)]
    assert (caught.value.code, caught.value.reason) == (4001, "enough")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[1])
async def test_idle_connections_behind_a_proxy_notice_that_they_were_closed(
    way: tuple[str, str], tls: ssl.SSLContext, ca_file: str
) -> None:
    async def once(connection: Peer) -> None:
        await connection.handshake()
        await connection.send(await connection.receive())
        await connection.close(1001, "")

    async with (
        peer(once, tls=tls) as url,
        proxied(way, url, tls, ca_file) as (proxy, settings),
        entered(settings) as protocol,
    ):
        for _ in range(3):
            await call(protocol, template(f"wss://{NAME}/"))
            await anyio.sleep(0.1)
    assert len(proxy.requests) == 3


async def test_a_token_and_the_handshake_go_the_same_way(tls: ssl.SSLContext, ca_file: str) -> None:
    async def issue(peer: HttpPeer) -> None:
        await peer.answer({"access_token": "token"})

    async with serve_http(issue, ssl_context=tls) as issuer, echo_server(tls=tls) as url:
        hosts = {NAME: port_of(url), "issuer.nowhere.invalid": port_of(issuer.url)}
        async with run_proxy("http", hosts=hosts) as proxy:
            auth = {"auth_type": "oauth2", "token_url": f"https://127.0.0.1:{port_of(issuer.url)}/", "client_id": "i"}
            called = template(f"wss://{NAME}/", auth={**auth, "client_secret": "s"})
            async with entered(NetworkSettings(proxy=proxy.url(), ca_file=ca_file)) as protocol:
                await call(protocol, called)
    # Loopback is asked directly, the name through the proxy.
    assert proxy.requests == [(NAME, 443)]
    assert len(issuer.peers) == 1


@pytest.mark.parametrize("named", ["http", "https", "socks5", "socks5h"])
async def test_no_handshake_goes_direct_when_the_proxy_is_down(named: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        settings = NetworkSettings(proxy=f"{named}://alice:geheim@127.0.0.1:{port}")
        with observed_network() as (names, addresses):
            async with entered(settings) as protocol:
                with pytest.raises(WebSocketConnectionError) as caught:
                    await call(protocol, template(f"wss://{NAME}/"))
    assert names == []
    assert {address[1] for address in addresses} <= {port}
    assert str(caught.value) == (
        f"cannot connect: the proxy {named}://127.0.0.1:{port} cannot be reached: Connection refused (wss://{NAME}/)"
    )


async def test_a_failure_behind_the_proxy_names_both(tls: ssl.SSLContext) -> None:
    async with (
        echo_server(tls=tls) as url,
        run_proxy("http", hosts={NAME: port_of(url)}) as proxy,
        entered(NetworkSettings(proxy=proxy.url(user="alice:geheim@"))) as protocol,
    ):
        with pytest.raises(WebSocketConnectionError, match="the certificate is not trusted") as caught:
            await call(protocol, template(f"wss://{NAME}/"))
    assert f"behind the proxy http://127.0.0.1:{proxy.port}" in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_a_cancelled_handshake_with_a_silent_proxy_leaves_nothing_open() -> None:
    asked, left = anyio.Event(), anyio.Event()

    async def say_nothing(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            asked.set()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            left.set()

    with anyio.fail_after(60):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, say_nothing)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with entered(NetworkSettings(proxy=f"socks5h://127.0.0.1:{port}")) as protocol:
                async with anyio.create_task_group() as calls:
                    calls.start_soon(call, protocol, template(f"wss://{NAME}/"))
                    await asked.wait()
                    calls.cancel_scope.cancel()
                await left.wait()
            tasks.cancel_scope.cancel()


async def test_the_environments_proxy_is_used_and_no_proxy_heeded(
    monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext, ca_file: str
) -> None:
    async with echo_server(tls=tls) as url, run_proxy("http", hosts={NAME: port_of(url)}) as proxy:
        for name in ("NO_PROXY", "no_proxy", "wss_proxy", "socks_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("WSS_PROXY", proxy.url())
        async with entered(NetworkSettings(ca_file=ca_file)) as protocol:
            await call(protocol, template(f"wss://{NAME}/"))
        assert len(proxy.requests) == 1
        monkeypatch.setenv("NO_PROXY", "nowhere.invalid")
        async with entered(NetworkSettings(ca_file=ca_file)) as protocol:
            with pytest.raises(WebSocketConnectionError, match="cannot be resolved"):
                await call(protocol, template(f"wss://{NAME}/", connection_timeout=30))
        assert len(proxy.requests) == 1


# Unix sockets


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "s")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
async def test_a_websocket_over_a_unix_socket(path: str) -> None:
    heard: list[str] = []

    async def script(connection: Peer) -> None:
        await connection.handshake()
        heard.append(connection.request)
        while True:
            await connection.send(await connection.receive())

    async def serve_one(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await script(Peer(stream))

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(functools.partial(listener.serve, serve_one))
        settings = NetworkSettings(unix_sockets={"docker.local": path}, proxy="http://127.0.0.1:9")
        called = template("ws://docker.local/v1")
        async with entered(settings) as protocol:
            for text in ("hello", "x" * 500_000):
                await call(protocol, called, text)
        async with entered(NetworkSettings()) as protocol:
            with pytest.raises(WebSocketSecurityError, match="trusted hosts only"):
                await call(protocol, called)
        tasks.cancel_scope.cancel()
    assert len(heard) == 1
    assert "GET /v1 HTTP/1.1" in heard[0]
    assert "Host: docker.local" in heard[0]


async def test_a_unix_socket_that_is_not_there_is_a_connection_error(path: str) -> None:
    async with entered(NetworkSettings(unix_sockets={"docker.local": path})) as protocol:
        with pytest.raises(WebSocketError, match="No such file or directory"):
            await call(protocol, template("ws://docker.local/"))
