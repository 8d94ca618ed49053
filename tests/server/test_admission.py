"""Admission of clients to a tool server: by `Host`, by `Origin`, by token."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import pytest
from support.tool_server import Thread, discovered, entered, port_of
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from utcp_websocket_anyio import ToolServer, WebSocketAuthError, WebSocketCallTemplate
from utcp_websocket_anyio._server.admission import Admission
from utcp_websocket_anyio._server.transport import Handshake

pytestmark = pytest.mark.anyio


def greeter(**options: Any) -> ToolServer:
    server = ToolServer("greeter", **options)

    @server.tool
    async def greet() -> str:
        return "hello"

    @server.tool
    async def count() -> Any:
        return 1

    return server


async def status(url: str, host: str | None = None, **headers: str) -> int:
    """The status of a server's answer to a handshake with these headers; 101: the client may connect."""
    return (await answered(url, host, **headers))[0]


async def answered(url: str, host: str | None = None, **headers: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        parts = urlsplit(url)
        with socket.create_connection(("127.0.0.1", port_of(f"x:{parts.port}")), timeout=30) as sock:
            uri = url if host is None else parts._replace(netloc=host).geturl()
            try:
                with connect(uri, sock=sock, additional_headers=given, compression=None) as client:
                    client.send('{"type": "utcp"}')
                    return 101, str(client.recv())
            except InvalidStatus as error:
                return error.response.status_code, bytes(error.response.body or b"").decode()

    with anyio.fail_after(30):
        return await anyio.to_thread.run_sync(ask)


# Origin


async def test_programs_send_no_origin_and_may_connect(thread: Thread) -> None:
    assert await status(await thread.serve(greeter())) == 101


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost",
        "http://127.0.0.1",
        "null",
        "",
        "file://",
        "https://good.example.evil",
    ],
)
async def test_a_page_of_another_origin_may_not(thread: Thread, origin: str) -> None:
    url = await thread.serve(greeter(origins=["https://good.example"]))
    code, text = await answered(url, Origin=origin)
    assert code == 403
    assert "may not connect; if they should, add it to origins" in text


async def test_not_even_one_of_the_servers_own_address(thread: Thread) -> None:
    url = await thread.serve(greeter())
    assert await status(url, Origin=url.replace("ws://", "http://")) == 403


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://good.example", "https://good.example"),
        ("HTTPS://Good.Example:443", "https://good.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("null", "null"),
        ("chrome-extension://abc", "chrome-extension://abc"),
    ],
)
async def test_a_page_of_an_allowed_origin_may(thread: Thread, allowed: str, origin: str) -> None:
    url = await thread.serve(greeter(origins=[allowed]))
    assert await status(url, Origin=origin) == 101
    assert await status(url, Origin=f"{origin}0") == 403


def test_two_origins_are_none() -> None:
    admission = Admission(hosts=(), origins=["https://good.example"], token=None)
    both = Handshake("/", "127.0.0.1", ("https://good.example", "https://evil.example"), (), "127.0.0.1")
    refusal = admission.refusal(both, "127.0.0.1")
    assert refusal is not None
    assert refusal.status == 403


@pytest.mark.parametrize("origin", ["good.example", "https://good.example/", "https://a:b@good.example", "*", ""])
def test_an_origin_that_could_never_match_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="must be scheme://host"):
        ToolServer("origins", origins=[origin])


# Host


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"]
)
async def test_a_foreign_name_that_resolves_to_this_machine_is_refused(thread: Thread, host: str) -> None:
    code, text = await answered(await thread.serve(greeter()), host)
    assert code == 403
    assert "is not a name of this server; if it should be, add it to hosts" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost.:1", "localhost:9999", "[::1]:1", "127.0.0.2"])
async def test_every_name_of_loopback_is_the_servers_at_any_port(thread: Thread, host: str) -> None:
    # A tunnel has a port of its own.
    code, text = await answered(await thread.serve(greeter()), host)
    assert code == 101
    (tool, _) = json.loads(text)["tools"]
    assert tool["tool_call_template"]["url"] == f"ws://{host.lower()}"


async def test_further_names_are_given_by_hosts(thread: Thread) -> None:
    url = await thread.serve(greeter(hosts=["tools.example", "192.0.2.7"]))
    for host, expected in {
        "tools.example": 101,
        "Tools.Example.:8080": 101,
        "192.0.2.7": 101,
        "192.0.2.8": 403,
    }.items():
        assert await status(url, host) == expected


async def test_the_machines_name_is_the_servers(thread: Thread) -> None:
    assert await status(await thread.serve(greeter()), socket.gethostname()) == 101


def refuses(host: str, local_address: str, served: str) -> bool:
    admission = Admission(hosts=(), origins=(), token=None)
    return admission.refusal(Handshake("/", host, (), (), local_address), served) is not None


def test_beyond_loopback_the_address_that_was_reached_is_the_servers() -> None:
    assert not refuses("192.0.2.7:80", "192.0.2.7", "0.0.0.0")
    assert not refuses("192.0.2.7:80", "::ffff:192.0.2.7", "::")
    assert not refuses("[fe80::1]:80", "fe80::1%eth0", "::")
    assert not refuses("[FE80:0::1]", "fe80::1", "::")
    assert not refuses("tools.example", "192.0.2.7", "tools.example")
    assert refuses("192.0.2.8:80", "192.0.2.7", "0.0.0.0")
    assert refuses("localhost", "192.0.2.7", "0.0.0.0")
    assert refuses("127.0.0.1", "192.0.2.7", "0.0.0.0")
    assert refuses("0.0.0.0", "192.0.2.7", "192.0.2.7")


@pytest.mark.parametrize("host", ["", ":80", "a b", "a/b", "a@b", "[::1", "a:b:c", "::1]", "127.0.0.1:x"])
def test_an_invalid_host_is_not_one_of_the_servers_own(host: str) -> None:
    assert refuses(host, "127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("host", ["", "a b", "http://a", "a/"])
def test_a_host_that_could_never_match_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is not a host name or an address"):
        ToolServer("hosts", hosts=[host])


async def test_what_is_refused_is_shown_short_and_escaped(thread: Thread) -> None:
    _, text = await answered(await thread.serve(greeter()), Origin="https://\x9b2J" + "x" * 4000)
    assert "\x9b" not in text
    assert len(text) < 300


# Token


TOKEN = "s3cret-token"


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("", {}, 401),
        ("?token=", {}, 401),
        ("?token=wrong", {}, 401),
        ("?token=s3cret-toke", {}, 401),
        ("?other=s3cret-token", {}, 401),
        ("?token=s3cret-token", {}, 101),
        ("", {"Authorization": "Bearer wrong"}, 401),
        ("", {"Authorization": "Bearer "}, 401),
        ("", {"Authorization": "s3cret-token"}, 401),
        ("", {"Authorization": "Basic s3cret-token"}, 401),
        ("", {"Authorization": "Bearer s3cret-token"}, 101),
        ("", {"Authorization": "bearer s3cret-token"}, 101),
        ("?token=wrong", {"Authorization": "Bearer s3cret-token"}, 101),
    ],
)
async def test_a_token_is_needed_where_there_is_one(
    thread: Thread, query: str, headers: dict[str, str], expected: int
) -> None:
    url = await thread.serve(greeter(token=TOKEN))
    code, text = await answered(f"{url}/{query}", **headers)
    assert code == expected
    if expected == 401:
        assert "this server needs a token" in text
        assert TOKEN not in text


@pytest.mark.parametrize(
    ("query", "auth"),
    [
        ("?token=s3cret-token", None),
        ("", {"auth_type": "api_key", "api_key": f"Bearer {TOKEN}", "var_name": "Authorization", "location": "header"}),
        ("", {"auth_type": "api_key", "api_key": TOKEN, "var_name": "token", "location": "query"}),
    ],
)
async def test_a_client_that_found_the_tools_with_a_token_can_call_them(
    thread: Thread, query: str, auth: dict[str, Any] | None
) -> None:
    server = greeter(token=TOKEN)
    url = await thread.serve(server)
    async with entered() as protocol:
        template = WebSocketCallTemplate.model_validate({"name": "manual", "url": f"{url}/{query}", "auth": auth})
        found = await protocol.register_manual(None, template)
        greet = found.manual.tools[0].tool_call_template
        assert await protocol.call_tool(None, "manual.greet", {}, greet) == "hello"
        assert TOKEN not in str(greet.url)  # type: ignore[attr-defined]  # a WebSocket template
        with pytest.raises(WebSocketAuthError) as caught:
            await protocol.call_tool(None, "manual.greet", {}, greet.model_copy(update={"auth": None}))
        assert caught.value.status == 401
    assert TOKEN not in json.dumps(server.manual(url))


@pytest.mark.parametrize("token", ["", "a b", "pa$word", "{{uuid}}", "ü", "a\r\nb", "="])
def test_a_token_that_cannot_be_sent_everywhere_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token must consist of") as caught:
        ToolServer("tokens", token=token)
    assert repr(token) not in str(caught.value)


# What is logged


async def test_serving_beyond_loopback_without_a_token_is_warned_of(
    thread: Thread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "utcp_websocket_anyio")
    await thread.serve(greeter())
    await thread.serve(greeter(), "localhost")
    await thread.serve(greeter(token=TOKEN), "0.0.0.0")
    assert caplog.messages == []
    url = await thread.serve(greeter(), "0.0.0.0")
    assert caplog.messages == [
        "server greeter has no token, and can be called by everybody who can reach 0.0.0.0; no page in a browser"
    ]
    async with entered() as protocol:
        assert set(await discovered(protocol, url)) == {"greet", "count"}


@pytest.mark.parametrize(
    ("host", "options", "audience"),
    [
        ("127.0.0.1", {}, "programs on this machine; no page in a browser"),
        ("localhost", {"token": TOKEN}, "programs on this machine that know the token; no page in a browser"),
        (
            "0.0.0.0",
            {"token": TOKEN, "origins": ["http://b.example", "http://a.example"]},
            "everybody who can reach 0.0.0.0 and knows the token; pages of http://a.example, http://b.example",
        ),
    ],
)
async def test_a_server_says_who_can_call_it(thread: Thread, host: str, options: dict[str, Any], audience: str) -> None:
    server = greeter(**options)
    with pytest.raises(RuntimeError, match="not serving"):
        _ = server.audience
    await thread.serve(server, host)
    assert server.audience == audience


async def test_no_log_record_holds_the_token(thread: Thread, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = await thread.serve(greeter(token=TOKEN))
    assert await status(f"{url}/?token={TOKEN}") == 101
    assert await status(url, Authorization=f"Bearer {TOKEN}") == 101
    assert await status(f"{url}/?token={TOKEN}", "evil.example", Authorization=f"Bearer {TOKEN}") == 403
    # What this test's own client logs is its own.
    records = [record for record in caplog.records if record.name != "websockets.client"]
    assert any("refused a client" in record.getMessage() for record in records)
    assert not any(TOKEN in record.getMessage() for record in records)
