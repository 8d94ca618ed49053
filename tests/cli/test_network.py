"""The command behind a proxy, with certificates and with hosts that the user trusts."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from support.http_peer import answering, serve_http
from support.proxy import ProxyServer, run_proxy
from support.terminal import done, failed, ws

from utcp_websocket_anyio._net.settings import NetworkSettings, current_settings

NAME = "tools.nowhere.invalid"
MANUAL = {
    "tools": [{"name": "greet", "tool_call_template": {"call_template_type": "websocket", "url": f"wss://{NAME}/"}}]
}


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def manual(tmp_path: Path) -> str:
    path = tmp_path / "manual.json"
    template = {"name": "m", "call_template_type": "websocket", "url": f"wss://{NAME}/"}
    path.write_text(json.dumps({**template, "discovery_url": f"https://{NAME}/utcp"}))
    return str(path)


@contextmanager
def proxied(authority: trustme.CA, **settings: Any) -> Iterator[ProxyServer]:
    """A proxy that leads to an endpoint of a name that nobody else knows, in a thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    with start_blocking_portal("trio") as portal:
        server = serve_http(answering(MANUAL), ssl_context=context)
        with portal.wrap_async_context_manager(server) as http:
            hosts = {NAME: int(http.url.rpartition(":")[2])}
            with portal.wrap_async_context_manager(run_proxy("http", hosts=hosts, **settings)) as proxy:
                yield proxy


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_command_goes_through_the_proxy_and_trusts_the_users_authority(
    backend: str, authority: trustme.CA, manual: str, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    with proxied(authority, user=("alice", "geheim")) as proxy:
        options = ("--proxy", proxy.url(user="alice:${PASSWORD}@"), "--cacert", str(ca), "--backend", backend)
        assert "greet" in done("discover", manual, *options, env={"PASSWORD": "geheim"})
    assert proxy.requests == [(NAME, 443)]
    assert current_settings() == NetworkSettings()


def test_the_environments_proxy_is_used_unless_the_command_line_says_no(
    authority: trustme.CA, manual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(authority) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert "the certificate is not trusted" in failed(3, "discover", manual)
        assert proxy.connections == 1
        failed(3, "discover", manual, "--no-proxy", "--timeout", "20")
        assert proxy.connections == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--proxy", "ftp://u:geheim@p:1"), "--proxy: ftp:// is not a kind of proxy"),
        (("--proxy", "http://p:1", "--no-proxy"), "--proxy and --no-proxy contradict each other"),
        (("--proxy", "http://u:${NOT_THERE}@p:1"), "--proxy: there is no NOT_THERE in the environment"),
        (("--cacert", "nowhere.pem"), "--cacert: nowhere.pem: No such file or directory"),
        (("--key", "nowhere.pem"), "--key and UTCP_WS_KEY_PASSWORD need a --cert"),
        (("--cert", "nowhere.pem"), "--cert: nowhere.pem: No such file or directory"),
        (("--trust-host", "http://nas"), "--trust-host: 'http://nas' is not a host name"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: tuple[str, ...], says: str, manual: str) -> None:
    said = failed(2, "discover", manual, *options)
    assert says in said
    assert "geheim" not in said


def test_check_knows_hosts_that_are_trusted(tmp_path: Path) -> None:
    path = tmp_path / "nas.json"
    template = {"call_template_type": "websocket", "url": "ws://nas.home/"}
    tool = {"name": "t", "tool_call_template": template}
    path.write_text(json.dumps({"name": "nas", **template, "tools": [tool]}))
    assert "trusted hosts only" in ws("check", str(path)).output
    assert "ws://nas.home/" in done("check", str(path), "--trust-host", "nas.home")
    assert current_settings() == NetworkSettings()
