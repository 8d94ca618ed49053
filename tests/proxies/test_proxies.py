"""A token, a manual and a call through proxies that others wrote. Loopback stands for the rest of the world here."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from endpoints.servers.installing import CannotInstallError
from support.http_peer import HttpPeer, serve_http
from support.peers import echo_server

from utcp_websocket_anyio import (
    NetworkSettings,
    WebSocketCallTemplate,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
)
from utcp_websocket_anyio._net import transport

from .servers import Proxy, microsocks, squid, tinyproxy

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120, func_only=True)]

KINDS = [(tinyproxy, "http"), (squid, "https"), (microsocks, "socks5"), (microsocks, "socks5h")]


@dataclass
class World:
    proxy: Proxy
    scheme: str
    ca_file: str
    server: ssl.SSLContext

    def settings(self, **options: Any) -> NetworkSettings:
        return NetworkSettings(proxy=self.proxy.url(self.scheme, **options), ca_file=self.ca_file)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0].__name__}-{kind[1]}")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    start, scheme = request.param
    folder = tmp_path_factory.mktemp("proxy")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    try:
        with start(folder, authority) as proxy:
            yield World(proxy, scheme, str(folder / "ca.pem"), context)
    except CannotInstallError as error:
        pytest.skip(f"{start.__name__} cannot be installed on this machine: {error}")


@pytest.fixture(autouse=True)
def _loopback_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "is_local", lambda host: False)


async def publish(peer: HttpPeer) -> None:
    """A token endpoint, and a manual."""
    await peer.answer({"access_token": "token", "expires_in": 3600} if peer.method == "POST" else {"tools": []})
    await peer.stream.aclose()


@pytest.mark.parametrize("secure", [True, False], ids=["wss", "ws"])
async def test_a_login_and_calls_go_through_the_proxy(world: World, secure: bool) -> None:
    tls = world.server if secure else None
    with anyio.fail_after(100):
        async with serve_http(publish, ssl_context=tls) as http, echo_server(tls=tls) as url:
            auth = {"auth_type": "oauth2", "token_url": f"{http.url}/token", "client_id": "i", "client_secret": "s"}
            template = WebSocketCallTemplate.model_validate(
                {"name": "m", "url": url, "auth": auth, "message": "{{args.text}}", "discovery_url": f"{http.url}/utcp"}
            )
            long = "x" * 3_000_000
            async with WebSocketCommunicationProtocol(network=world.settings()) as protocol:
                await protocol.register_manual(None, template)
                for text in ("hello", long, "again"):
                    assert await protocol.call_tool(None, "m.t", {"text": text}, template) == text
            assert len(http.peers) == 2


async def test_a_wrong_password_is_the_proxys_refusal(world: World) -> None:
    with anyio.fail_after(100):
        async with echo_server(tls=world.server) as url:
            template = WebSocketCallTemplate(name="m", url=url, message="x")
            settings = world.settings(user="alice:wrong")
            async with WebSocketCommunicationProtocol(network=settings) as protocol:
                with pytest.raises(WebSocketConnectionError, match="refused the user name or password") as caught:
                    await protocol.call_tool(None, "m.t", {}, template)
    assert f"the proxy {world.scheme}://127.0.0.1:{world.proxy.port}" in str(caught.value)
    assert "wrong" not in str(caught.value)


async def test_the_error_for_a_missing_endpoint_behind_a_proxy_says_so(world: World, unused: int) -> None:
    with anyio.fail_after(100):
        template = WebSocketCallTemplate(name="m", url=f"wss://127.0.0.1:{unused}/", message="x", reconnect_attempts=0)
        async with WebSocketCommunicationProtocol(network=world.settings()) as protocol:
            with pytest.raises(WebSocketConnectionError, match=r"the proxy .* (did not|could not) connect"):
                await protocol.call_tool(None, "m.t", {}, template)


@pytest.fixture
def unused(tmp_path: Path) -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
