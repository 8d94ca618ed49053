"""Each recipe drives a peer that speaks what the recipe is for, and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.peers import Peer, peer

from utcp_websocket_anyio import AnyioUtcpClient, WebSocketAuthError, WebSocketToolError, open_client

pytestmark = pytest.mark.anyio

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@asynccontextmanager
async def recipe(
    name: str, script: Callable[[Peer], Awaitable[None]], **variables: str
) -> AsyncIterator[AnyioUtcpClient]:
    """A client that knows the tools of a recipe, and a peer that they lead to."""
    template = json.loads((RECIPES / f"{name}.json").read_text(encoding="utf-8"))
    with anyio.fail_after(20):
        async with peer(script) as url:
            variables["PORT"] = url.rpartition(":")[2].strip("/")
            named = {f"{template['name']}_{key}": value for key, value in variables.items()}
            async with open_client({"variables": named, "manual_call_templates": [template]}) as client:
                yield client


def test_every_recipe_is_on_the_page_and_tested() -> None:
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in RECIPES.glob("*.json"):
        assert f"({path.name})" in page
        assert f'recipe("{path.stem}"' in tests


async def test_json_rpc_answers_in_any_order_are_told_apart() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        requests = [await peer.receive_json() for _ in range(3)]
        for request in reversed(requests):
            assert request["jsonrpc"] == "2.0"
            await peer.send({"jsonrpc": "2.0", "method": "log", "params": {}})
            answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
            if request["method"] == "subtract":
                answer["result"] = request["params"]["minuend"] - request["params"]["subtrahend"]
            else:
                answer["error"] = {"code": -32601, "message": "Method not found"}
            await peer.send(answer)

    results: list[Any] = []

    async def subtract(minuend: int) -> None:
        results.append(await client.call_tool("rpc.subtract", {"minuend": minuend, "subtrahend": 1}))

    async def get_user() -> None:
        with pytest.raises(WebSocketToolError) as caught:
            await client.call_tool("rpc.get_user", {"id": 7})
        results.append(caught.value.response["error"]["message"])

    async with recipe("json-rpc", script) as client, anyio.create_task_group() as group:
        group.start_soon(subtract, 10)
        group.start_soon(subtract, 20)
        group.start_soon(get_user)
    assert sorted(results, key=str) == [19, 9, "Method not found"]


async def order(peer: Peer, said: list[Any]) -> None:
    await peer.handshake()
    await peer.send({"event": "hello", "nonce": "n1"})
    login = await peer.receive_json()
    said.append(login)
    if login["password"] != "right":
        await peer.send({"event": "denied"})
        return
    await peer.send({"event": "welcome", "session": "s1"})
    await peer.send({"event": "ping"})
    while True:
        message = await peer.receive_json()
        said.append(message)
        if message["event"] == "order":
            await peer.send({"event": "news"})
            await peer.send({"event": "ordered", "ref": message["ref"], "item": message["item"]})


async def test_the_login_is_had_once_and_its_session_is_in_each_request() -> None:
    said: list[Any] = []
    async with recipe("login", lambda peer: order(peer, said), USER="ada", PASSWORD="right") as client:
        for item in ("tea", "milk"):
            assert (await client.call_tool("broker.order", {"item": item}))["item"] == item
    orders = [message for message in said if message["event"] == "order"]
    assert said[0] == {"event": "login", "user": "ada", "password": "right", "nonce": "n1"}
    assert [(order["item"], order["session"]) for order in orders] == [("tea", "s1"), ("milk", "s1")]
    assert {"event": "pong"} in said
    assert said[-1] == {"event": "logout", "session": "s1"}


async def test_a_rejected_login_is_an_authentication_error() -> None:
    async with recipe("login", lambda peer: order(peer, []), USER="ada", PASSWORD="wrong") as client:
        with pytest.raises(WebSocketAuthError):
            await client.call_tool("broker.order", {"item": "tea"})


async def test_a_subprotocol_is_insisted_on_and_its_lists_are_matched() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        assert peer.header("Sec-WebSocket-Protocol") == "wamp.2.json"
        await peer.handshake("Sec-WebSocket-Protocol: wamp.2.json")
        assert (await peer.receive_json())[:2] == [1, "realm1"]
        await peer.send([2, 1234, {"roles": {"dealer": {}}}])
        while True:
            message = await peer.receive_json()
            if message[0] == 6:
                await peer.send([6, {}, "wamp.close.goodbye_and_out"])
                continue
            _, number, _, procedure, arguments = message
            if procedure == "sum":
                await peer.send([50, number, {}, [sum(arguments)]])
            else:
                await peer.send([8, 48, number, {}, "wamp.error.no_such_procedure"])

    async with recipe("subprotocol", script) as client:
        assert await client.call_tool("wamp.call", {"procedure": "sum", "arguments": [1, 2, 3]}) == [6]
        assert await client.call_tool("wamp.call", {"procedure": "sum"}) == [0]
        with pytest.raises(WebSocketToolError) as caught:
            await client.call_tool("wamp.call", {"procedure": "none"})
        assert caught.value.response[4] == "wamp.error.no_such_procedure"


async def graphql(peer: Peer) -> None:
    await peer.handshake("Sec-WebSocket-Protocol: graphql-transport-ws")
    assert await peer.receive_json() == {"type": "connection_init"}
    await peer.send({"type": "connection_ack"})
    while True:
        request = await peer.receive_json()
        await peer.send({"type": "ping"})
        assert await peer.receive_json() == {"type": "pong"}
        if "broken" in request["payload"]["query"]:
            await peer.send({"id": request["id"], "type": "error", "payload": [{"message": "Syntax Error"}]})
        else:
            for number in range(3):
                await peer.send({"id": request["id"], "type": "next", "payload": {"data": {"number": number}}})
            await peer.send({"id": request["id"], "type": "complete"})


async def test_a_graphql_subscription_is_a_stream_until_it_is_complete() -> None:
    async with recipe("graphql-subscription", graphql) as client:
        stream = client.call_tool_streaming("graphql.subscribe", {"query": "subscription { number }"})
        assert [item async for item in stream] == [{"number": 0}, {"number": 1}, {"number": 2}]
        with pytest.raises(WebSocketToolError):
            await client.call_tool("graphql.subscribe", {"query": "broken"})


async def test_a_socketio_event_is_acknowledged() -> None:
    pongs: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send('0{"sid": "x", "pingInterval": 25000}')
        assert await peer.receive() == "40"
        await peer.send('40{"sid": "y"}')
        await peer.send("2")
        while (text := await peer.receive_text()) != "41":
            if text == "3":
                pongs.append(text)
                continue
            number, bracket, content = text.removeprefix("42").partition("[")
            event, data = json.loads(bracket + content)
            await peer.send('42["news",1]')
            await peer.send(f"43{number}{json.dumps([event, data])}")

    async with recipe("socketio", script) as client:
        for data in (1, 'a "quoted" ] text', {"a": [None]}):
            assert await client.call_tool("socketio.emit", {"event": "echo", "data": data}) == ["echo", data]
    assert pongs == ["3"]


async def devtools(peer: Peer) -> None:
    await peer.handshake()
    assert "/devtools/page/P1 " in peer.request
    while True:
        request = await peer.receive_json()
        answer: dict[str, Any] = {"id": request["id"], "result": {}}
        if request["method"] == "Runtime.evaluate":
            expression = request["params"]["expression"]
            if expression == "throw":
                answer["result"] = {"result": {"type": "object"}, "exceptionDetails": {"text": "Uncaught"}}
            else:
                answer["result"] = {"result": {"type": "string", "value": f"value of {expression}"}}
        await peer.send(answer)
        if request["method"] == "Runtime.enable":
            await peer.send({"method": "Runtime.executionContextCreated", "params": {}})
            for text in ("one", "two"):
                await peer.send({"method": "Runtime.consoleAPICalled", "params": {"args": [{"value": text}]}})


async def test_devtools_give_values_errors_and_events() -> None:
    async with recipe("devtools", devtools, PAGE="P1") as client:
        assert await client.call_tool("devtools.evaluate", {"expression": "1 + 1"}) == "value of 1 + 1"
        with pytest.raises(WebSocketToolError):
            await client.call_tool("devtools.evaluate", {"expression": "throw"})
        async with aclosing(client.call_tool_streaming("devtools.console", {})) as console:
            assert [await anext(console), await anext(console)] == ["one", "two"]


async def test_binary_messages_go_both_ways() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            message = await peer.receive()
            assert isinstance(message, bytes)
            if message[0] == 1:
                await peer.send(b"\x7f")
                await peer.send(b"\x81" + message[1:] * 2)
            else:
                await peer.send({"bytes": len(message)})

    async with recipe("binary", script) as client:
        assert await client.call_tool("device.read", {"register": "0a"}) == b"\x81\x0a\x0a"
        content = base64.b64encode(b"\x02" * 1000).decode()
        assert await client.call_tool("device.upload", {"content": content}) == {"bytes": 1000}
        with pytest.raises(ValueError, match="message"):
            await client.call_tool("device.read", {"register": "zz"})


async def test_a_subscription_lasts_as_long_as_the_call_says() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        for symbol, price in (("MSFT", 1), (request["symbol"], 2), ("MSFT", 3), (request["symbol"], 4)):
            await peer.send({"type": "price", "symbol": symbol, "price": price})

    async with recipe("subscription", script) as client:
        assert await client.call_tool("market.prices", {"symbol": "AAPL", "seconds": 0.3}) == [2, 4]
        stream = client.call_tool_streaming("market.prices", {"symbol": "AAPL", "seconds": 0.3})
        assert [price async for price in stream] == [2, 4]


async def test_what_the_server_pushes_needs_no_request() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        assert "/alerts/north%20east " in peer.request
        while True:
            for level in ("info", "warning"):
                await peer.send({"level": level})
            await anyio.sleep(0.01)

    async with recipe("server-push", script) as client:
        region = {"region": "north east"}
        assert await client.call_tool("alerts.watch", region) == {"level": "warning"}
        async with aclosing(client.call_tool_streaming("alerts.watch", region)) as alerts:
            assert [await anext(alerts), await anext(alerts)] == [{"level": "warning"}] * 2
