"""The examples of `utcp-websocket`'s README and of the UTCP documentation's WebSocket page, as they stand there.

Only their addresses are replaced. Each is a manual with one tool, called through a UTCP client: the stock one on
asyncio, `open_client` on both backends.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from support.backends import BACKENDS
from support.peers import Peer, peer
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import open_client

pytestmark = pytest.mark.anyio

OpenClient = Callable[[dict[str, Any]], AbstractAsyncContextManager[UtcpClient]]


@asynccontextmanager
async def open_stock_client(config: dict[str, Any]) -> AsyncIterator[UtcpClient]:
    async with AsyncExitStack() as stack:
        client = await UtcpClient.create(config=config)
        stack.push_async_callback(client.close)
        yield client


_CLIENTS = [
    pytest.param((backend.values[0], opener), id=f"{backend.id}-{name}")
    for backend in BACKENDS
    for name, opener in {"ours": open_client, "stock": open_stock_client}.items()
    if name == "ours" or backend.id == "asyncio"
]


@pytest.fixture(params=_CLIENTS)
def client(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(client: Any) -> Any:
    return client[0]


@pytest.fixture
def open_any_client(client: Any) -> OpenClient:
    opener: OpenClient = client[1]
    return opener


class Recorder:
    """A server that keeps what it is sent and answers everything with the same messages."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers or ('{"ok": true}',)
        self.messages: list[str | bytes] = []
        self.peers: list[Peer] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.peers.append(peer)
        while True:
            self.messages.append(await peer.receive())
            for answer in self.answers:
                await peer.send(answer)

    @property
    def path(self) -> str:
        return self.peers[-1].request.split(" ")[1]

    def header(self, name: str) -> str | None:
        return self.peers[-1].header(name)


async def call(
    open_any_client: OpenClient,
    server: Recorder,
    template: dict[str, Any],
    arguments: dict[str, Any],
    *,
    inputs: dict[str, Any] | None = None,
    variables: dict[str, str] | None = None,
    path: str = "",
) -> Any:
    """Call the one tool of a manual; `path` is the rest of its URL."""
    with anyio.fail_after(20):
        async with peer(server) as url:
            tool = {
                "name": "tool",
                "description": "",
                "inputs": inputs or {"type": "object", "properties": {name: {} for name in arguments}},
                "tool_call_template": {"call_template_type": "websocket", "url": url + path, **template},
            }
            manual = {"name": "docs", "call_template_type": "websocket", "url": url, "tools": [tool]}
            names = {f"docs_{name}": value for name, value in (variables or {}).items()}
            async with open_any_client({"variables": names, "manual_call_templates": [manual]}) as client:
                return await client.call_tool("docs.tool", arguments)


README_MESSAGES: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "no template": (None, {"user_id": "123", "action": "getData"}, '{"user_id": "123", "action": "getData"}'),
    "dict template": (
        {
            "type": "request",
            "action": "UTCP_ARG_action_UTCP_ARG",
            "params": {"user_id": "UTCP_ARG_user_id_UTCP_ARG", "query": "UTCP_ARG_query_UTCP_ARG"},
        },
        {"action": "search", "user_id": "123", "query": "test"},
        {"type": "request", "action": "search", "params": {"user_id": "123", "query": "test"}},
    ),
    "string template": (
        "CMD:UTCP_ARG_command_UTCP_ARG;DEVICE:UTCP_ARG_device_id_UTCP_ARG;VALUE:UTCP_ARG_value_UTCP_ARG",
        {"command": "SET_TEMP", "device_id": "dev123", "value": "25"},
        "CMD:SET_TEMP;DEVICE:dev123;VALUE:25",
    ),
    "JSON-RPC": (
        {"jsonrpc": "2.0", "method": "UTCP_ARG_method_UTCP_ARG", "params": "UTCP_ARG_params_UTCP_ARG", "id": 1},
        {"method": "getUser", "params": {"id": 123}},
        '{"jsonrpc": "2.0", "method": "getUser", "params": "{\\"id\\": 123}", "id": 1}',
    ),
    "several lines": (
        "GET UTCP_ARG_resource_UTCP_ARG HTTP/1.1\r\nHost: UTCP_ARG_host_UTCP_ARG\r\n\r\n",
        {"resource": "/x", "host": "h"},
        "GET /x HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    "nested": (
        {
            "type": "command",
            "data": {
                "commands": ["UTCP_ARG_cmd1_UTCP_ARG", "UTCP_ARG_cmd2_UTCP_ARG"],
                "metadata": {"user": "UTCP_ARG_user_UTCP_ARG", "timestamp": "2025-01-01"},
            },
        },
        {"cmd1": "a", "cmd2": "b", "user": "u"},
        {
            "type": "command",
            "data": {"commands": ["a", "b"], "metadata": {"user": "u", "timestamp": "2025-01-01"}},
        },
    ),
    "IoT": (
        "DEVICE:UTCP_ARG_device_id_UTCP_ARG CMD:UTCP_ARG_command_UTCP_ARG VAL:UTCP_ARG_value_UTCP_ARG",
        {"device_id": "light_01", "command": "SET_BRIGHTNESS", "value": "75"},
        "DEVICE:light_01 CMD:SET_BRIGHTNESS VAL:75",
    ),
}


@pytest.mark.parametrize("name", README_MESSAGES)
async def test_a_message_of_the_readme_is_sent_as_written_there(open_any_client: OpenClient, name: str) -> None:
    message, arguments, expected = README_MESSAGES[name]
    server = Recorder()
    template = {} if message is None else {"message": message}
    assert await call(open_any_client, server, template, arguments) == '{"ok": true}'
    (sent,) = server.messages
    assert sent == (expected if isinstance(expected, str) else json.dumps(expected))


async def test_the_chat_of_the_readme_is_sent_with_the_time(open_any_client: OpenClient) -> None:
    message = {
        "type": "message",
        "channel": "UTCP_ARG_channel_UTCP_ARG",
        "user": "UTCP_ARG_user_UTCP_ARG",
        "text": "UTCP_ARG_text_UTCP_ARG",
        "timestamp": "{{now}}",
    }
    server = Recorder()
    await call(open_any_client, server, {"message": message}, {"channel": "c", "user": "u", "text": "t"})
    sent = json.loads(server.messages[0])
    assert sent.pop("timestamp").endswith("Z")
    assert sent == {"type": "message", "channel": "c", "user": "u", "text": "t"}


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [(None, '{"a": [1]}'), ("raw", '{"a": [1]}'), ("text", '{"a": [1]}'), ("json", {"a": [1]})],
)
async def test_formats_of_the_readme(open_any_client: OpenClient, response_format: str | None, expected: Any) -> None:
    template = {} if response_format is None else {"response_format": response_format}
    assert await call(open_any_client, Recorder('{"a": [1]}'), template, {"foo": "bar", "baz": 123}) == expected


async def test_credentials_of_the_documents_are_where_they_say(open_any_client: OpenClient) -> None:
    async def seen(auth: dict[str, str], **variables: str) -> Recorder:
        server = Recorder()
        await call(open_any_client, server, {"auth": auth}, {"x": 1}, variables=variables)
        return server

    key = {"auth_type": "api_key", "api_key": "${API_KEY}"}
    header = await seen({**key, "var_name": "Authorization", "location": "header"}, API_KEY="k1")
    assert header.header("Authorization") == "k1"
    query = await seen({**key, "var_name": "token", "location": "query"}, API_KEY="k2")
    assert query.path == "/?token=k2"
    cookie = await seen({**key, "var_name": "token", "location": "cookie"}, API_KEY="k3")
    assert cookie.header("Cookie") == "token=k3"
    basic = await seen(
        {"auth_type": "basic", "username": "${USERNAME}", "password": "${PASSWORD}"}, USERNAME="u", PASSWORD="p"
    )
    assert basic.header("Authorization") == "Basic dTpw"


async def test_the_call_template_of_the_docs_page(open_any_client: OpenClient) -> None:
    template = {
        "message": {"type": "request", "action": "${action}", "data": "${data}"},
        "connection_timeout": 10,
        "response_timeout": 30,
        "auth": {"auth_type": "api_key", "api_key": "${WS_API_KEY}", "location": "query"},
    }
    server = Recorder()
    await call(open_any_client, server, template, {"action": "a", "data": {"b": 1}}, variables={"WS_API_KEY": "k"})
    assert json.loads(server.messages[0]) == {"type": "request", "action": "a", "data": {"b": 1}}
    assert server.path == "/?X-Api-Key=k"


async def test_message_formats_of_the_docs_page(open_any_client: OpenClient) -> None:
    server = Recorder()
    request = {"id": "{{uuid}}", "method": "getData", "params": {"query": "${query}", "limit": 10}}
    await call(open_any_client, server, {"message": request}, {"query": "q"})
    sent = json.loads(server.messages[0])
    assert len(sent.pop("id")) == 36
    assert sent == {"method": "getData", "params": {"query": "q", "limit": 10}}
    await call(open_any_client, server, {"message": "GET_DATA:${query}"}, {"query": "q"})
    assert server.messages[1] == "GET_DATA:q"
    binary = {"message": {"type": "binary", "data": "${base64_data}"}}
    await call(open_any_client, server, binary, {"base64_data": "AP8="})
    assert server.messages[2] == b"\x00\xff"


async def test_the_subscription_of_the_docs_page_lasts_its_duration(open_any_client: OpenClient) -> None:
    inputs = {
        "type": "object",
        "properties": {"symbol": {"type": "string"}, "duration": {"type": "number", "default": 0.2}},
        "required": ["symbol"],
    }
    template = {
        "message": {"action": "subscribe", "symbol": "${symbol}", "type": "price"},
        "response_timeout": "${duration}",
        "expected_responses": -1,
        "close_after_response": False,
    }
    server = Recorder("1", "2")
    assert await call(open_any_client, server, template, {"symbol": "AAPL"}, inputs=inputs) == ["1", "2"]
    assert json.loads(server.messages[0]) == {"action": "subscribe", "symbol": "AAPL", "type": "price"}


async def test_the_chat_bot_of_the_docs_page(open_any_client: OpenClient) -> None:
    template = {
        "message": {"type": "message", "user_id": "${user_id}", "content": "${message}", "timestamp": "{{now}}"},
        "headers": {"Authorization": "Bearer ${CHAT_TOKEN}"},
    }
    server = Recorder()
    arguments = {"message": "hi ${user_id}", "user_id": "u"}
    await call(open_any_client, server, template, arguments, variables={"CHAT_TOKEN": "t"})
    assert json.loads(server.messages[0])["content"] == "hi ${user_id}"
    assert server.header("Authorization") == "Bearer t"


async def test_the_device_of_the_docs_page_is_in_the_url(open_any_client: OpenClient) -> None:
    template = {
        "message": {"command": "${command}", "value": "${value}", "timestamp": "{{now}}"},
        "connection_timeout": 5,
        "response_timeout": 10,
    }
    server = Recorder()
    arguments = {"device_id": "a/b", "command": "on", "value": 3}
    await call(open_any_client, server, template, arguments, path="device/${device_id}")
    assert server.path == "/device/a%2Fb"
    assert json.loads(server.messages[0])["value"] == 3


async def test_responses_of_the_docs_page(open_any_client: OpenClient) -> None:
    async def responses(template: dict[str, Any], *answers: Any) -> Any:
        return await call(open_any_client, Recorder(*answers), {"message": {"action": "ping"}, **template}, {})

    assert await responses({"expected_responses": 1, "close_after_response": True}, "1") == "1"
    assert await responses({"expected_responses": 5, "response_timeout": 60}, *"12345") == ["1", "2", "3", "4", "5"]
    assert await responses({"close_after_response": False, "ping_interval": 30}, "1") == "1"


async def test_the_filter_of_the_docs_page(open_any_client: OpenClient) -> None:
    prices = [{"type": "stock_price", "symbol": symbol, "price": 1} for symbol in ("MSFT", "AAPL")]
    template = {
        "message": {"subscribe": "all"},
        "message_filter": {"type": "stock_price", "symbol": "${symbol}"},
        "response_format": "json",
    }
    answer = await call(open_any_client, Recorder({"type": "hello"}, *prices), template, {"symbol": "AAPL"})
    assert answer == prices[1]


async def test_the_headers_of_the_docs_page(open_any_client: OpenClient) -> None:
    headers = {"User-Agent": "UTCP-Client/1.0", "X-Client-ID": "${CLIENT_ID}", "Authorization": "Bearer ${TOKEN}"}
    server = Recorder()
    await call(open_any_client, server, {"headers": headers}, {}, variables={"CLIENT_ID": "c", "TOKEN": "t"})
    assert server.header("User-Agent") == "UTCP-Client/1.0"
    assert server.header("X-Client-ID") == "c"
    assert server.header("Authorization") == "Bearer t"


async def test_the_compression_of_the_docs_page_is_offered(open_any_client: OpenClient) -> None:
    server = Recorder()
    await call(open_any_client, server, {"compression": "deflate", "compression_threshold": 1024}, {})
    assert "permessage-deflate" in (server.header("Sec-WebSocket-Extensions") or "")
