"""The checks of all values that go into a handshake, wherever they come from."""

from __future__ import annotations

from typing import Any

import pytest

from utcp_websocket_anyio import NetworkSettings, WebSocketSecurityError, configure
from utcp_websocket_anyio._net.security import check_captured_url, check_subprotocol, check_websocket_url, is_loopback
from utcp_websocket_anyio._net.transport import connection_failure
from utcp_websocket_anyio._wire import Target

SECRET = "geheim"


@pytest.mark.parametrize(
    "fields",
    [
        {"subprotocols": (f"{SECRET}\r\nX-Evil: 1",)},
        {"subprotocols": ("good", f"{SECRET}, other")},
        {"subprotocols": (f"{SECRET} x",)},
        {"subprotocols": (f"{SECRET}\0",)},
        {"subprotocols": (f"{SECRET}é",)},
        {"subprotocols": ("",)},
        {"headers": (("X-Token", f"{SECRET}\r\nX-Evil: 1"),)},
        {"headers": (("X-Token", f"{SECRET}\0"),)},
        {"headers": (("X-Token\r\n", SECRET),)},
        {"headers": (("Host", SECRET),)},
        {"headers": (("Sec-WebSocket-Protocol", SECRET),)},
        {"headers": (("X-Token", f"{SECRET}\ud800"),)},
    ],
    ids=str,
)
def test_no_engine_gets_what_could_change_the_handshake_and_no_error_shows_it(fields: dict[str, Any]) -> None:
    with pytest.raises(WebSocketSecurityError) as caught:
        Target("wss://tools.example/?x", "wss://tools.example/", **fields)
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.__dict__}"
    assert caught.value.endpoint == "wss://tools.example/"
    assert caught.value.__context__ is None


def test_tokens_are_subprotocols_even_strange_ones() -> None:
    for subprotocol in ("graphql-transport-ws", "v4.channel.k8s.io", "Bearer.abc~_-", "!#$%&'*+-.^_`|~09azAZ"):
        check_subprotocol(subprotocol)


def test_a_field_that_holds_a_subprotocol_is_named() -> None:
    with pytest.raises(WebSocketSecurityError, match=r"^protocol\[1\]: a subprotocol must be a token"):
        check_subprotocol("a b", "protocol[1]")


@pytest.mark.parametrize(
    "host",
    [
        "localhost4",
        "localhost6",
        "LOCALHOST6.",
        "localhost4.localdomain",
        "localhost4.localdomain4",
        "localhost6.localdomain6",
        "ip6-localhost.localdomain",
    ],
)
def test_the_names_that_distributions_give_loopback_are_known_where_loopback_is_refused(host: str) -> None:
    assert is_loopback(f"wss://{host}/")
    # They are no literal loopback: what they lead to is up to a file.
    with pytest.raises(WebSocketSecurityError):
        check_websocket_url(f"ws://{host}/")


@pytest.mark.parametrize("url", ["wss://tools.example/\ud800", "wss://tools.example/?k=\udfff"])
def test_a_url_that_cannot_be_encoded_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(WebSocketSecurityError, match="lone surrogate") as caught:
        check_websocket_url(url)
    assert caught.value.endpoint == "<invalid URL>"


def test_the_codec_for_host_names_shows_nothing_of_the_name() -> None:
    try:
        f"{SECRET * 20}.example".encode("idna")
    except UnicodeError as error:
        failure = connection_failure(error, "wss://x/")
    assert str(failure) == "cannot connect: the host name is not valid (wss://x/)"
    assert not failure.transient


@pytest.mark.parametrize(
    "url", ["ws://127.0.0.1:9222/devtools", "wss://localhost6/", "wss://0x7f.1/", "wss://nas.home/"]
)
def test_what_a_remote_server_answers_leads_to_none_of_the_users_own_hosts(url: str) -> None:
    configure(NetworkSettings(trusted_hosts=["nas.home"]))
    with pytest.raises(
        WebSocketSecurityError, match=r"^url: a remote server \(https://api.example/open\) names a "
    ) as caught:
        check_captured_url(f"{url}?ticket={SECRET}", f"https://api.example/open?key={SECRET}", "url")
    assert SECRET not in str(caught.value)
    check_captured_url(url, "http://127.0.0.1:8080/open", "url")


def test_what_a_server_answers_may_lead_elsewhere_and_to_itself() -> None:
    configure(NetworkSettings(trusted_hosts=["nas.home"]))
    check_captured_url("wss://gateway.example/?ticket=1", "https://api.example/open", "url")
    check_captured_url("ws://nas.home:81/", "http://NAS.home/login", "url")
