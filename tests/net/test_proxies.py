"""The choice of a proxy, and HTTP requests through one: the bytes that leave this machine, and the errors."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trustme
from support.http_peer import answering, serve_http
from support.peers import silent_server
from support.proxy import observed_network, run_proxy

from utcp_websocket_anyio import NetworkSettings, WebSocketConnectionError, configure
from utcp_websocket_anyio._net import transport
from utcp_websocket_anyio._net.http import request
from utcp_websocket_anyio._net.proxies import Proxy, proxy_of_environment
from utcp_websocket_anyio._net.security import check_http_url, check_websocket_url
from utcp_websocket_anyio._net.transport import Network

pytestmark = pytest.mark.anyio

USER = ("alice", "geheim")
NAME = "tools.nowhere.invalid"


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "ws", "wss", "socks", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def get(url: str, settings: NetworkSettings) -> tuple[int, Any]:
    with anyio.fail_after(30):
        answer = await request("GET", url, network=Network(settings), what="test request")
    return answer.status, answer.json()


# Through a proxy


@pytest.mark.parametrize(
    ("served", "named"),
    [("http", "http"), ("https", "https"), ("socks5", "socks5h")],
)
@pytest.mark.parametrize("user", [None, USER], ids=["anybody", "a user"])
async def test_a_name_is_resolved_by_the_proxy_and_never_here(
    served: str, named: str, user: tuple[str, str] | None, server_tls: ssl.SSLContext, ca_file: str
) -> None:
    async with serve_http(answering({"ok": 1}), ssl_context=server_tls) as server:
        port = int(server.url.rpartition(":")[2])
        tls = server_tls if served == "https" else None
        async with run_proxy(served, hosts={NAME: port}, ssl_context=tls, user=user) as proxy:
            given = "" if user is None else ":".join(user) + "@"
            settings = NetworkSettings(proxy=proxy.url(named, given), ca_file=ca_file)
            with observed_network() as (names, addresses):
                assert await get(f"https://{NAME}:8443/", settings) == (200, {"ok": 1})
    assert proxy.requests == [(NAME, 8443)]
    assert names == []
    assert {address[1] for address in addresses} <= {proxy.port, port}
    assert b"GET /" not in proxy.received[0]  # TLS goes through it


async def test_socks5_resolves_the_name_here_and_gives_the_proxy_an_address(
    server_tls: ssl.SSLContext, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups: list[Any] = []

    async def look_up(host: str, port: int) -> Any:
        lookups.append(host)
        return [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(transport, "resolve", look_up)
    async with serve_http(answering({"ok": 1}), ssl_context=server_tls) as server:
        port = int(server.url.rpartition(":")[2])
        async with run_proxy("socks5") as proxy:
            settings = NetworkSettings(proxy=proxy.url("socks5"), ca_file=ca_file)
            assert await get(f"https://{NAME}:{port}/", settings) == (200, {"ok": 1})
    assert lookups == [NAME]
    assert proxy.requests == [("127.0.0.1", port)]


@pytest.mark.parametrize("named", ["http", "https", "socks5", "socks5h"])
async def test_nothing_goes_direct_when_the_proxy_is_down(named: str) -> None:
    with socket.socket() as taken, socket.socket() as elsewhere:
        taken.bind(("127.0.0.1", 0))
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.setblocking(False)
        port = taken.getsockname()[1]
        configure(NetworkSettings(trusted_hosts=["127.0.0.1"]))
        settings = NetworkSettings(proxy=f"{named}://alice:geheim@127.0.0.1:{port}")
        with observed_network() as (names, addresses), pytest.raises(WebSocketConnectionError) as caught:
            await get(f"https://{NAME}/", settings)
    assert names == []
    assert {address[1] for address in addresses} <= {port}
    assert f"the proxy {named}://127.0.0.1:{port} cannot be reached: Connection refused" in str(caught.value)
    assert caught.value.transient
    assert list(chain(caught.value)) == [caught.value]
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("served", "settings", "given", "says", "transient"),
    [
        ("http", {"user": USER}, "", "asks for a user name and password (status 407 ", False),
        ("http", {"user": USER}, "alice:wrong@", "refused the user name or password (status 407 ", False),
        ("http", {"refuse": b"HTTP/1.1 403 geheim\r\n\r\n"}, "", "did not connect: status 403 Forbidden", False),
        ("http", {"refuse": b"HTTP/1.1 503 geheim\r\n\r\n"}, "", "did not connect: status 503 ", True),
        ("http", {"refuse": b"SSH-2.0-geheim\r\n\r\n"}, "", "does not answer as an HTTP proxy", False),
        ("http", {"refuse": b"HTTP/1.1 200"}, "", "closed the connection", True),
        ("http", {"refuse": b""}, "", "closed the connection", True),
        ("http", {"refuse": b"HTTP/1.1 200 OK\r\n\r\ngeheim"}, "", "does not answer as an HTTP proxy", False),
        ("http", {"refuse": b"x" * 100_000}, "", "does not answer as an HTTP proxy", False),
        ("socks5", {"user": USER}, "", "asks for a user name and password, or does not speak SOCKS 5", False),
        ("socks5", {"user": USER}, "alice:wrong@", "refused the user name or password", False),
        ("socks5", {"refuse": 2}, "", "could not connect: not allowed by its rules", False),
        ("socks5", {"refuse": 4}, "", "could not connect: the host is unreachable", True),
        ("socks5", {"refuse": 99}, "", "", False),
    ],
)
async def test_the_error_for_a_proxys_refusal_names_the_proxy_and_the_reason_without_quoting_it(
    served: str, settings: dict[str, Any], given: str, says: str, transient: bool
) -> None:
    async with run_proxy(served, **settings) as proxy:
        named = "socks5h" if served == "socks5" else served
        with pytest.raises(WebSocketConnectionError) as caught:
            await get(f"https://{NAME}/", NetworkSettings(proxy=proxy.url(named, given)))
    text = str(caught.value)
    assert f"the proxy {named}://127.0.0.1:{proxy.port} {says}" in text
    assert text.endswith(f"(https://{NAME}/)")
    assert caught.value.transient is transient
    assert list(chain(caught.value)) == [caught.value]
    assert not [word for word in ("geheim", "alice", "wrong", "SSH", "xxx") if word in text]


async def test_the_error_for_a_server_that_is_not_a_proxy_says_so() -> None:
    async with serve_http(answering({}), ssl_context=None) as server:
        port = server.url.rpartition(":")[2]
        with pytest.raises(WebSocketConnectionError, match=r"the proxy socks5h://127\.0\.0\.1:"):
            await get(f"https://{NAME}/", NetworkSettings(proxy=f"socks5h://127.0.0.1:{port}"))


@pytest.mark.parametrize("trusting", [True, False], ids=["endpoint not trusted", "proxy not trusted"])
async def test_errors_of_tls_say_with_whom(trusting: bool, server_tls: ssl.SSLContext, ca_file: str) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(NAME, "127.0.0.1").configure_cert(other)
    async with serve_http(answering({}), ssl_context=other) as server:
        port = int(server.url.rpartition(":")[2])
        async with run_proxy("https", hosts={NAME: port}, ssl_context=server_tls if trusting else other) as proxy:
            with pytest.raises(WebSocketConnectionError, match="TLS: the certificate is not trusted") as caught:
                await get(f"https://{NAME}/", NetworkSettings(proxy=proxy.url(), ca_file=ca_file))
    leg = "the test request failed behind" if trusting else "the test request failed:"
    assert f"{leg} the proxy https://127.0.0.1:{proxy.port}: TLS" in str(caught.value)
    assert not caught.value.transient


async def test_a_request_cancelled_while_the_proxy_is_silent_closes_its_socket() -> None:
    with anyio.fail_after(60):
        async with silent_server() as proxy, anyio.create_task_group() as requests:
            requests.start_soon(get, f"https://{NAME}/", NetworkSettings(proxy=f"http://127.0.0.1:{proxy.port}"))
            await proxy.asked.wait()
            requests.cancel_scope.cancel()


async def test_the_credentials_for_the_proxy_go_to_the_proxy_only(server_tls: ssl.SSLContext, ca_file: str) -> None:
    async with serve_http(answering({}), ssl_context=server_tls) as server:
        port = int(server.url.rpartition(":")[2])
        async with run_proxy("http", hosts={NAME: port}, user=USER) as proxy:
            url = proxy.url(user="alice:geheim@")
            await get(f"https://{NAME}/", NetworkSettings(proxy=url, ca_file=ca_file))
    basic = base64.b64encode(":".join(USER).encode())
    assert bytes(proxy.received[0]).count(basic) == 1
    assert not {"proxy-authorization", "authorization"} & server.peers[0].headers.keys()


# Which proxy


def route_of(url: str, settings: NetworkSettings) -> Proxy | None:
    is_http = url.startswith("http")
    address = check_http_url(url, "url") if is_http else check_websocket_url(url)
    return Network(settings).route("http" if is_http else "ws", address, url).proxy


@pytest.mark.parametrize(
    "url", ["ws://localhost/", "wss://127.0.0.9:1/", "http://[::1]/", "https://a.localhost/", "wss://localhost6/"]
)
def test_loopback_is_never_reached_through_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert route_of(url, NetworkSettings(proxy="http://127.0.0.1:9")) is None
    assert route_of(url, NetworkSettings()) is None


@pytest.mark.parametrize(
    ("environment", "scheme", "proxy"),
    [
        ({}, "wss", None),
        ({"https_proxy": "http://p:1"}, "wss", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "https", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:2"}, "wss", "http://q:2"),
        ({"HTTPS_PROXY": "http://p:1", "WSS_PROXY": "http://q:2"}, "wss", "http://q:2"),
        ({"HTTPS_PROXY": "http://p:1", "WSS_PROXY": "http://q:2"}, "https", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "SOCKS_PROXY": "socks5://q"}, "wss", "socks5://q:1080"),
        ({"ALL_PROXY": "socks5h://p:1"}, "wss", "socks5h://p:1"),
        ({"ALL_PROXY": "socks5h://p:1", "HTTPS_PROXY": "http://q"}, "wss", "http://q:80"),
        ({"HTTP_PROXY": "http://p:1"}, "wss", None),
        ({"HTTP_PROXY": "http://p:1"}, "ws", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, "http", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:2"}, "ws", "http://q:2"),
        ({"HTTPS_PROXY": "p.example:3128"}, "wss", "http://p.example:3128"),
        ({"HTTPS_PROXY": "https://u:w@P.Example/"}, "wss", "https://p.example:443"),
        ({"HTTPS_PROXY": "http://[fd00::1]:8"}, "wss", "http://[fd00::1]:8"),
        ({"HTTPS_PROXY": ""}, "wss", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "wss", None),
    ],
    ids=str,
)
def test_the_environment_is_read_as_everybody_reads_it(
    environment: dict[str, str], scheme: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of_environment(scheme, "tools.example", 443)
    assert (None if found is None else found.display) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "excluded"),
    [
        ("tools.example", "tools.example", 443, True),
        ("Tools.Example", "tools.example.", 443, True),
        ("example", "tools.example", 443, True),
        (".example", "tools.example", 443, True),
        ("*.example", "tools.example", 443, True),
        (".tools.example", "tools.example", 443, True),
        ("ools.example", "tools.example", 443, False),
        ("tools.example.com", "tools.example", 443, False),
        ("a.example, tools.example", "tools.example", 443, True),
        ("a.example tools.example", "tools.example", 443, True),
        ("tools.example:443", "tools.example", 443, True),
        ("tools.example:444", "tools.example", 443, False),
        ("10.0.0.1", "10.0.0.1", 443, True),
        ("10.0.0.1:8", "10.0.0.1", 443, False),
        ("10.0.0.0/8", "10.9.9.9", 443, True),
        ("10.0.0.0/8", "11.0.0.1", 443, False),
        ("10.0.0.0/8", "10.example", 443, False),
        ("fd00::1", "fd00:0::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("[fd00::1]:444", "fd00::1", 443, False),
        ("fd00::/8", "fd12::1", 443, True),
        ("", "tools.example", 443, False),
        ("a/b/c, tools.example", "tools.example", 443, True),
    ],
)
def test_no_proxy_knows_domains_addresses_networks_and_ports(
    no_proxy: str, host: str, port: int, excluded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_of_environment("wss", host, port) is None) is excluded


def test_an_environment_that_names_no_usable_proxy_is_an_error_and_no_way_around(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in ("socks4://p:1", "http://geheim:x@:80", "http://u:geheim@p:99999"):
        monkeypatch.setenv("HTTPS_PROXY", value)
        with pytest.raises(WebSocketConnectionError, match=r"the proxy of the environment \(HTTPS_PROXY\): ") as caught:
            route_of("wss://tools.example/", NetworkSettings())
        assert "geheim" not in str(caught.value)
        assert list(chain(caught.value)) == [caught.value]
    assert route_of("wss://tools.example/", NetworkSettings(proxy=None)) is None


def test_a_proxy_that_the_user_names_wins_over_the_environment_and_its_exceptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://q:1")
    monkeypatch.setenv("NO_PROXY", "*")
    found = route_of("wss://tools.example/", NetworkSettings(proxy="socks5h://p:1"))
    assert found is not None
    assert found.display == "socks5h://p:1"
