"""What the published plugin, utcp-websocket 1.2.1, does and what this one does in the same situation.

The page `docs/how-to/moving.md` has a line for each test. The published plugin runs on asyncio.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import utcp_websocket
from pydantic import ValidationError
from support.backends import BACKENDS
from support.http_peer import HttpPeer, serve_http
from support.peers import Peer, peer

import utcp_websocket_anyio
from utcp_websocket_anyio import WebSocketClosedError, WebSocketProtocolError, WebSocketTimeoutError

pytestmark = pytest.mark.anyio

_PUBLISHED = pytest.param((BACKENDS[0].values[0], utcp_websocket), id="published")
_OURS = [pytest.param((backend.values[0], utcp_websocket_anyio), id=f"ours-{backend.id}") for backend in BACKENDS]


@pytest.fixture(params=[_PUBLISHED, *_OURS])
def plugin(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(plugin: Any) -> Any:
    return plugin[0]


class Driver:
    """One protocol object of a plugin, and a template of the same plugin."""

    def __init__(self, protocol: Any, template: Any) -> None:
        self.protocol = protocol
        self.template = template

    async def call(self, **arguments: Any) -> Any:
        return await self.protocol.call_tool(None, "manual.tool", arguments, self.template)

    def stream(self, **arguments: Any) -> Any:
        return self.protocol.call_tool_streaming(None, "manual.tool", arguments, self.template)


@pytest.fixture
def published(plugin: Any) -> bool:
    return plugin[1] is utcp_websocket


@pytest.fixture
def drive(plugin: Any) -> Any:
    _, module = plugin

    @asynccontextmanager
    async def drive(script: Callable[[Peer], Awaitable[None]], **fields: Any) -> AsyncIterator[Driver]:
        with anyio.fail_after(20):
            async with peer(script) as url:
                template = {"name": "manual", "call_template_type": "websocket", "url": url, **fields}
                validated = module.WebSocketCallTemplateSerializer().validate_dict(template)
                if module is utcp_websocket_anyio:
                    async with module.WebSocketCommunicationProtocol() as protocol:
                        yield Driver(protocol, validated)
                else:
                    protocol = module.WebSocketCommunicationProtocol()
                    try:
                        yield Driver(protocol, validated)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await protocol.close()

    return drive


async def outcome(call: Awaitable[Any]) -> Any:
    """A result, or the error in its place."""
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - it is the outcome
        return error


async def echo(peer: Peer) -> None:
    await peer.handshake()
    while True:
        await peer.send(await peer.receive())


def test_it_is_the_published_plugin_that_is_compared() -> None:
    assert importlib.metadata.version("utcp-websocket") == "1.2.1"


async def test_calls_at_once_get_their_answers(drive: Any, published: bool) -> None:
    outcomes: dict[int, Any] = {}

    async def one(driver: Driver, number: int) -> None:
        outcomes[number] = await outcome(driver.call(n=number))

    async with drive(echo, response_format="json") as driver:
        await one(driver, 0)
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(one, driver, number)
    right = sum(result == {"n": number} for number, result in outcomes.items())
    assert right < 10 if published else right == 10


async def test_a_late_answer_is_not_the_next_calls(drive: Any, published: bool) -> None:
    timed_out = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_text()
        if "late" in request:
            await timed_out.wait()
            await peer.send(request)
            request = await peer.receive_text()
        await peer.send(request)

    async with drive(script) as driver:
        patient = driver.template
        driver.template = patient.model_copy(update={"timeout": 1})
        assert isinstance(await outcome(driver.call(q="late")), RuntimeError if published else WebSocketTimeoutError)
        timed_out.set()
        driver.template = patient
        assert await driver.call(q="next") == ('{"q": "late"}' if published else '{"q": "next"}')


async def test_a_stream_left_early_leaves_nothing_to_the_next_call(drive: Any, published: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        for number in range(3) if request["q"] == "stream" else ():
            await peer.send(f"part {number}")
        if request["q"] == "stream":
            request = await peer.receive_json()
        await peer.send(f"answer to {request['q']}")

    async with drive(script) as driver:
        stream = driver.stream(q="stream")
        assert await anext(stream) == "part 0"
        await stream.aclose()
        assert await driver.call(q="call") == ("part 1" if published else "answer to call")


async def test_a_connection_that_closes_before_the_answer_is_an_error(drive: Any, published: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.close(1011)

    async with drive(script) as driver:
        result = await outcome(driver.call())
    assert result is None if published else isinstance(result, WebSocketClosedError)


async def test_a_connection_that_was_closed_between_calls_is_replaced(drive: Any, published: bool) -> None:
    closed = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.close()
        closed.set()

    async with drive(script) as driver:
        await driver.call(n=1)
        await closed.wait()
        result = await outcome(driver.call(n=2))
    assert result == (None if published else '{"n": 2}')


async def test_an_answer_that_is_not_json_is_an_error_where_json_was_declared(drive: Any, published: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("<html>")

    async with drive(script, response_format="json") as driver:
        result = await outcome(driver.call())
    assert result == "<html>" if published else isinstance(result, WebSocketProtocolError)


async def test_a_stream_takes_any_json(drive: Any, published: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send([1])
        await peer.send({"type": "stream_end"})

    async def items(driver: Driver) -> list[Any]:
        return [item async for item in driver.stream()]

    async with drive(script) as driver:
        result = await outcome(items(driver))
    assert isinstance(result, AttributeError) if published else result == ["[1]"]


async def test_an_api_key_is_sent_in_query_and_cookie(drive: Any, published: bool) -> None:
    seen: list[Peer] = []

    async def script(peer: Peer) -> None:
        seen.append(peer)
        await echo(peer)

    for location in ("query", "cookie"):
        auth = {"auth_type": "api_key", "api_key": "k", "var_name": "token", "location": location}
        async with drive(script, auth=auth) as driver:
            await driver.call()
    sent = ["/?token=k " in seen[0].request, seen[1].header("Cookie") == "token=k"]
    assert sent == ([False, False] if published else [True, True])


async def test_arguments_named_in_header_fields_are_sent_as_headers(drive: Any, published: bool) -> None:
    seen: list[Peer] = []

    async def script(peer: Peer) -> None:
        seen.append(peer)
        await echo(peer)

    async with drive(script, header_fields=["X-Tenant"]) as driver:
        await driver.call(**{"X-Tenant": "t"})
    assert seen[0].header("X-Tenant") == (None if published else "t")


async def test_a_server_that_picks_no_subprotocol_is_refused(drive: Any, published: bool) -> None:
    async with drive(echo, protocol="chat.v1") as driver:
        result = await outcome(driver.call(n=1))
    assert result == '{"n": 1}' if published else isinstance(result, WebSocketProtocolError)


async def test_an_argument_that_looks_like_a_placeholder_stays_what_it_is(drive: Any, published: bool) -> None:
    async with drive(echo, message="UTCP_ARG_a_UTCP_ARG UTCP_ARG_b_UTCP_ARG") as driver:
        result = await driver.call(a="UTCP_ARG_b_UTCP_ARG", b="secret")
    assert result == ("secret secret" if published else "UTCP_ARG_b_UTCP_ARG secret")


async def test_an_argument_that_is_missing_is_an_error_and_nothing_is_sent(drive: Any, published: bool) -> None:
    async with drive(echo, message="do UTCP_ARG_what_UTCP_ARG") as driver:
        result = await outcome(driver.call())
    assert result == "do UTCP_ARG_what_UTCP_ARG" if published else isinstance(result, ValueError)


async def test_an_argument_keeps_its_json_type_where_the_template_wants_it(drive: Any, published: bool) -> None:
    async with drive(echo, message={"n": "{{args.n}}"}) as driver:
        assert json.loads(await driver.call(n=3)) == ({"n": "{{args.n}}"} if published else {"n": 3})


async def test_messages_that_are_no_responses_are_skipped(drive: Any, published: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"event": "news"})
        await peer.send({"id": 1})

    async with drive(script, message_filter={"id": 1}, response_format="json") as driver:
        assert await driver.call() == ({"event": "news"} if published else {"id": 1})


async def test_an_endpoint_is_asked_for_its_tools(drive: Any, published: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        assert await peer.receive_json() == {"type": "utcp"}
        template = {"call_template_type": "websocket", "url": "ws://127.0.0.1:1/"}
        tool = {"name": "tool", "description": "", "inputs": {}, "outputs": {}, "tool_call_template": template}
        await peer.send({"utcp_version": "1.0.0", "manual_version": "1.0.0", "tools": [tool]})

    async with drive(script) as driver:
        result = await outcome(driver.protocol.register_manual(None, driver.template))
    if published:
        assert isinstance(result, ValidationError)
    else:
        assert [tool.name for tool in result.manual.tools] == ["tool"]


async def test_a_connection_without_keep_alive_is_closed_after_the_call(drive: Any, published: bool) -> None:
    handshakes = []

    async def script(peer: Peer) -> None:
        handshakes.append(await peer.read_request())
        await echo(peer)

    async with drive(script, keep_alive=False) as driver:
        await driver.call()
        await driver.call()
    assert len(handshakes) == (1 if published else 2)


async def test_an_expired_token_is_renewed(drive: Any, published: bool) -> None:
    tokens = iter(["first", "second", "third"])
    seen: list[str | None] = []

    async def token_endpoint(request: HttpPeer) -> None:
        content_type = ("Content-Type", "application/json")
        await request.answer({"access_token": next(tokens), "expires_in": 1}, headers=[content_type])
        await request.stream.aclose()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        seen.append(peer.header("Authorization"))
        await peer.handshake()
        await peer.receive()
        await peer.send("done")
        await peer.close()

    async with serve_http(token_endpoint) as tokens_at:
        auth = {"auth_type": "oauth2", "token_url": tokens_at.url, "client_id": "i", "client_secret": "s"}
        async with drive(script, auth=auth, keep_alive=False) as driver:
            await driver.call()
            # The published plugin has a connection for each name.
            driver.template = driver.template.model_copy(update={"name": "other"})
            await driver.call()
    assert seen == ["Bearer first", "Bearer first" if published else "Bearer second"]


async def test_it_runs_on_trio(plugin: Any, drive: Any) -> None:
    async with drive(echo) as driver:
        assert await driver.call(n=1) == '{"n": 1}'


def test_every_test_has_its_line_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "moving.md").read_text(encoding="utf-8")
    own = [name for name in globals() if name.startswith("test_")]
    compared = [name for name in own if "published" in globals()[name].__code__.co_varnames[:3]]
    assert len(compared) > 10
    assert [name for name in compared if f"`{name}`" not in page] == []
