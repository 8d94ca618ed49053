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
from support.peers import Peer, echo_server, peer, silent_server
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
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, "127.0.0.1").configure_cert(context)
    return context


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


def opened_by(url: str, **http: Any) -> WebSocketCallTemplate:
    """A template whose URL a request tells."""
    step = {
        "http": {"method": "POST", "url": url, "json": {"key": "geheim"}, **http},
        "capture": {"url": {"path": "url"}},
    }
    return template("{{captured.url}}", prepare=[step])


@asynccontextmanager
async def telling(
    answer: Any, tls: ssl.SSLContext, ca_file: str
) -> AsyncIterator[tuple[str, ProxyServer, NetworkSettings]]:
    """A remote server that answers a request, and an endpoint; both behind a proxy, by names of their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other = "api.nowhere.invalid"
    authority = trustme.CA()
    authority.issue_cert(other).configure_cert(context)
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "ca.pem"
        known = Path(ca_file).read_bytes()  # noqa: ASYNC240 - a kilobyte
        both.write_bytes(known + authority.cert_pem.bytes())

        async def respond(peer: HttpPeer) -> None:
            await peer.answer(answer)
            await peer.stream.aclose()

        async with serve_http(respond, ssl_context=context) as api, echo_server(tls=tls) as url:
            hosts = {NAME: port_of(url), other: port_of(api.url)}
            async with run_proxy("http", hosts=hosts) as proxy:
                yield f"https://{other}/open", proxy, NetworkSettings(proxy=proxy.url(), ca_file=str(both))


async def test_a_url_that_a_request_tells_is_reached_the_same_way(tls: ssl.SSLContext, ca_file: str) -> None:
    configure(NetworkSettings())  # the name is nobody's own here
    answer = {"url": f"wss://{NAME}/?ticket=geheim"}
    async with telling(answer, tls, ca_file) as (url, proxy, settings), entered(settings) as protocol:
        await call(protocol, opened_by(url))
    assert proxy.requests == [("api.nowhere.invalid", 443), (NAME, 443)]


@pytest.mark.parametrize("told", ["ws://127.0.0.1:9/", "wss://localhost6/", "ws://tools.nowhere.invalid/"])
async def test_a_remote_server_leads_to_none_of_the_users_own_hosts(
    told: str, tls: ssl.SSLContext, ca_file: str
) -> None:
    answer = {"url": f"{told}?ticket=geheim"}
    async with telling(answer, tls, ca_file) as (url, proxy, settings), entered(settings) as protocol:
        with pytest.raises(WebSocketSecurityError, match=r"a remote server .* names a ") as caught:
            await call(protocol, opened_by(url))
    assert proxy.requests == [("api.nowhere.invalid", 443)]
    assert "geheim" not in str(caught.value)


async def test_a_request_of_a_step_leads_nowhere_else_either(tls: ssl.SSLContext, ca_file: str) -> None:
    async with serve_http(lambda peer: peer.answer({"url": "x"})) as local:
        async with telling({"url": f"{local.url}/?ticket=geheim"}, tls, ca_file) as (url, _, settings):
            first = {"http": {"method": "GET", "url": url}, "capture": {"next": {"path": "url"}}}
            second = {"http": {"method": "GET", "url": "{{captured.next}}"}, "capture": {"url": {"path": "url"}}}
            called = template("{{captured.url}}", prepare=[first, second])
            async with entered(settings) as protocol:
                with pytest.raises(WebSocketSecurityError, match=r"a remote server .* names a loopback address"):
                    await call(protocol, called)
        assert not local.connected.is_set()


async def test_a_remote_server_cannot_move_a_stream_to_the_users_own_hosts(tls: ssl.SSLContext, ca_file: str) -> None:
    configure(NetworkSettings())

    async def move(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        await connection.send({"move": spied})
        await connection.send("one")
        await connection.reset()

    async with echo_server() as spied, peer(move, tls=tls) as url:
        answer = {"url": f"wss://{NAME}/"}
        async with telling(answer, tls, ca_file) as (api, proxy, settings), entered(settings) as protocol:
            proxy.hosts[NAME] = port_of(url)
            moved = {"match": {"move": {"$any": True}}, "capture": {"url": {"path": "move"}}, "deliver": False}
            called = opened_by(api).model_copy(update={"on_message": [moved], "resume": {"prepare": [], "attempts": 1}})
            received = []
            with pytest.raises(WebSocketSecurityError, match=r"a remote server .* names a loopback address"):
                async for item in protocol.call_tool_streaming(None, "m.t", {"text": "go"}, called):
                    received.append(item)
    assert received == ["one"]


async def test_the_users_own_server_may_lead_to_loopback(tls: ssl.SSLContext, ca_file: str) -> None:
    async with echo_server() as url:

        async def respond(peer: HttpPeer) -> None:
            await peer.answer({"url": url})
            await peer.stream.aclose()

        async with serve_http(respond) as api, entered(NetworkSettings()) as protocol:
            await call(protocol, opened_by(f"{api.url}/open"))


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
    with anyio.fail_after(60):
        async with (
            silent_server() as proxy,
            entered(NetworkSettings(proxy=f"socks5h://127.0.0.1:{proxy.port}")) as protocol,
            anyio.create_task_group() as calls,
        ):
            calls.start_soon(call, protocol, template(f"wss://{NAME}/"))
            await proxy.asked.wait()
            calls.cancel_scope.cancel()


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
