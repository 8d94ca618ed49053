"""The tool server, as its clients see it. Both are on the same backend, each in a thread of its own."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import math
import ssl
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
import trustme
from pydantic import BaseModel, Field
from support.backends import BACKENDS
from support.peers import reset
from support.tool_server import UPGRADE, Thread, discovered, entered, port_of, said
from trio_websocket import CloseReason, ConnectionClosed
from utcp.data.call_template import CallTemplate

from utcp_websocket_anyio import (
    ToolServer,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketTimeoutError,
    WebSocketToolError,
)

pytestmark = pytest.mark.anyio


class Place(BaseModel):
    name: str
    height: float = Field(ge=0)


async def echo(text: str) -> str:
    return text


async def happened(event: threading.Event) -> None:
    """Wait for an event of the server's thread."""
    assert await anyio.to_thread.run_sync(event.wait, 10)


def arithmetic() -> ToolServer:
    server = ToolServer("arithmetic")

    @server.tool
    async def add(a: int, b: int = 1) -> int:
        """Add two integers."""
        return a + b

    @server.tool(name="divide", description="One by another.", tags=["numbers", "fractions"], timeout=2.5)
    def _divide(dividend: float, divisor: float) -> float:
        """Not this text."""
        return dividend / divisor

    @server.tool
    async def count(to: int) -> AsyncIterator[int]:
        """Count."""
        for number in range(to):
            yield number

    return server


# Discovery


@pytest.mark.parametrize("question", [{"type": "utcp"}, {"type": "discover"}, "manual"])
async def test_each_form_of_discovery_gives_the_manual(thread: Thread, question: Any) -> None:
    server = arithmetic()
    url = await thread.serve(server)
    async with entered() as protocol:
        manual = await said(protocol, url, question)
    assert manual == server.manual(url)
    assert [tool["name"] for tool in manual["tools"]] == ["add", "divide", "count"]
    assert manual["utcp_version"]
    assert manual["manual_version"]


async def test_a_tool_is_called_where_the_manual_was_asked_for(thread: Thread) -> None:
    url = (await thread.serve(arithmetic())).replace("127.0.0.1", "localhost") + "/some/path"
    async with entered() as protocol:
        templates = await discovered(protocol, f"{url}?key=secret")
        assert {template.url for template in templates.values()} == {url}  # type: ignore[attr-defined]  # WebSocket templates
        assert await protocol.call_tool(None, "manual.add", {"a": 1, "b": 2}, templates["add"]) == 3


def test_tags_description_and_timeout_are_in_the_manual() -> None:
    add, divide, _ = arithmetic().manual("ws://127.0.0.1:9")["tools"]
    assert (add["description"], add["tags"]) == ("Add two integers.", [])
    assert "response_timeout" not in add["tool_call_template"]
    assert (divide["description"], divide["tags"]) == ("One by another.", ["numbers", "fractions"])
    assert divide["tool_call_template"]["response_timeout"] == 2.5


def test_schemas_come_from_type_hints() -> None:
    server = ToolServer("schemas")

    @server.tool
    async def measure(
        places: list[Place], unit: Literal["m", "ft"] = "m", *, note: Annotated[str | None, Field(max_length=9)] = None
    ) -> dict[str, float]:
        return {}

    @server.tool
    async def follow(name: str) -> AsyncIterator[Place]:
        yield Place(name=name, height=0)

    @server.tool
    def untyped(value, other=(1, 2)):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - it has no types on purpose
        return value

    measuring, following, anything = server.manual("ws://127.0.0.1:9")["tools"]
    inputs = measuring["inputs"]
    assert inputs["type"] == "object"
    assert inputs["required"] == ["places"]
    assert inputs["additionalProperties"] is False
    place = inputs["properties"]["places"]["items"]
    assert place["properties"]["height"] == {"minimum": 0, "title": "Height", "type": "number"}
    assert "$" not in json.dumps(inputs)
    assert inputs["properties"]["unit"]["enum"] == ["m", "ft"]
    assert inputs["properties"]["unit"]["default"] == "m"
    assert inputs["properties"]["note"]["default"] is None
    assert {"type": "null"} in inputs["properties"]["note"]["anyOf"]
    assert measuring["outputs"] == {"additionalProperties": {"type": "number"}, "type": "object"}
    assert set(following["outputs"]["properties"]) == {"name", "height"}
    assert anything["inputs"]["required"] == ["value"]
    assert anything["inputs"]["properties"]["other"]["default"] == [1, 2]
    assert anything["outputs"] == {}


def test_a_default_that_json_has_no_number_for_is_one_that_pydantic_reads() -> None:
    server = ToolServer("limits")

    @server.tool
    async def up_to(limit: float = math.inf) -> float:
        return limit

    (tool,) = server.manual("ws://127.0.0.1:9")["tools"]
    assert json.loads(json.dumps(tool, allow_nan=False))["inputs"]["properties"]["limit"]["default"] == "Infinity"


def test_a_name_is_published_once() -> None:
    server = arithmetic()
    with pytest.raises(ValueError, match="there is a tool named 'add' already"):
        server.tool(name="add")(len)


def test_a_parameter_that_json_cannot_name_is_refused() -> None:
    server = ToolServer("refusing")
    with pytest.raises(TypeError, match="first: the parameter numbers cannot be given by name"):

        @server.tool
        def first(*numbers: int) -> int:
            return numbers[0]

    with pytest.raises(TypeError, match="second: the parameter number cannot be given by name"):

        @server.tool
        def second(number: int, /) -> int:
            return number


def test_the_decorator_gives_the_function_back() -> None:
    server = ToolServer("decorating")

    def double(n: int) -> int:
        return n + n

    assert server.tool(double) is double
    assert server.tool(name="twice")(double) is double
    assert [tool["name"] for tool in server.manual("ws://127.0.0.1:9")["tools"]] == ["double", "twice"]


def test_before_it_serves_it_has_no_url() -> None:
    server = ToolServer("idle")
    assert repr(server) == "<ToolServer 'idle', 0 tools, not serving>"
    with pytest.raises(RuntimeError, match="not serving; start it with"):
        _ = server.url


# Calls


async def test_functions_of_every_kind_are_called(thread: Thread) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        assert await protocol.call_tool(None, "manual.add", {"a": 1, "b": 2}, templates["add"]) == 3
        assert await protocol.call_tool(None, "manual.add", {"a": 1}, templates["add"]) == 2
        quotient = await protocol.call_tool(None, "manual.divide", {"dividend": 1, "divisor": 4}, templates["divide"])
        assert quotient == 0.25
        numbers = protocol.call_tool_streaming(None, "manual.count", {"to": 5}, templates["count"])
        assert [number async for number in numbers] == [0, 1, 2, 3, 4]
        nothing = protocol.call_tool_streaming(None, "manual.count", {"to": 0}, templates["count"])
        assert [number async for number in nothing] == []
        assert "2 open" in repr(protocol)  # one for discovery, one for all calls


async def test_a_plain_function_runs_in_a_worker_thread(thread: Thread) -> None:
    server = ToolServer("threads")

    @server.tool
    def plain() -> bool:
        return anyio.from_thread.run_sync(threading.get_ident) != threading.get_ident()

    @server.tool
    async def asynchronous() -> bool:
        return bool(anyio.get_current_task())

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        assert await protocol.call_tool(None, "manual.plain", {}, templates["plain"])
        assert await protocol.call_tool(None, "manual.asynchronous", {}, templates["asynchronous"])


async def test_arguments_and_results_are_converted(thread: Thread) -> None:
    server = ToolServer("converting")

    @server.tool
    async def higher(place: Place, day: dt.date, by: float = 1) -> tuple[Place, dt.date, set[int]]:
        assert isinstance(day, dt.date)
        return Place(name=place.name, height=place.height + by), day + dt.timedelta(1), {1}

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        arguments = {"place": {"name": "Brocken", "height": 1141}, "day": "2024-02-28"}
        result = await protocol.call_tool(None, "manual.higher", arguments, templates["higher"])
    assert result == [{"name": "Brocken", "height": 1142.0}, "2024-02-29", [1]]


async def test_an_answer_carries_the_request_id_as_it_was_given(thread: Thread) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:
        for request_id in ("abc", 7, None, {"nested": [1]}):
            request = {"type": "call_tool", "request_id": request_id, "tool_name": "add", "arguments": {"a": 1}}
            answer = {"type": "tool_response", "request_id": request_id, "result": 2}
            assert await said(protocol, url, request) == answer


async def test_many_calls_share_one_connection_and_each_gets_its_own_answer(thread: Thread) -> None:
    server = ToolServer("crowd")
    together = anyio.Event()
    present = 0

    @server.tool
    async def double(n: int) -> int:
        # Nobody is answered before everybody has asked, so the calls do run at the same time.
        nonlocal present
        present += 1
        if present == 100:
            together.set()
        await together.wait()
        return n + n

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        answers: dict[int, Any] = {}

        async def call(n: int) -> None:
            answers[n] = await protocol.call_tool(None, "manual.double", {"n": n}, templates["double"])

        async with anyio.create_task_group() as task_group:
            for n in range(100):
                task_group.start_soon(call, n)
        assert answers == {n: n + n for n in range(100)}
        assert "2 open" in repr(protocol)  # one for discovery, one for all calls


async def test_beyond_the_limit_of_concurrent_calls_the_others_wait(thread: Thread) -> None:
    server = ToolServer("limited", max_calls=2)
    held, released = threading.Semaphore(0), threading.Event()

    @server.tool
    def hold() -> bool:
        held.release()
        return released.wait(10)

    @server.tool(timeout=0.1)
    async def hurry() -> str:
        return "done"

    url = await thread.serve(server)
    async with entered() as protocol, anyio.create_task_group() as task_group:
        templates = await discovered(protocol, url)
        for _ in range(2):
            task_group.start_soon(protocol.call_tool, None, "manual.hold", {}, templates["hold"])
        for _ in range(2):
            assert await anyio.to_thread.run_sync(held.acquire, True, 10)
        with pytest.raises(WebSocketTimeoutError):
            await protocol.call_tool(None, "manual.hurry", {}, templates["hurry"])
        released.set()
        hurry_up = WebSocketCallTemplate.model_validate({**templates["hurry"].model_dump(), "response_timeout": 10})
        assert await protocol.call_tool(None, "manual.hurry", {}, hurry_up) == "done"


# Errors


async def test_a_message_that_is_not_a_request_is_answered_with_an_error(thread: Thread) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:

        async def error(message: Any) -> Any:
            return await said(protocol, url, message)

        assert await error("hello") == {
            "type": "tool_error",
            "request_id": None,
            "error": "the message is not JSON",
        }
        assert (await error("[" * 100_000))["error"] == "the message is not JSON"
        assert (await error({"type": "binary", "data": "/w=="}))["error"] == "the message is not JSON"
        assert (await error("[1]"))["error"] == "the message is not a JSON object"
        assert await error({"type": "other", "request_id": 5}) == {
            "type": "tool_error",
            "request_id": 5,
            "error": '"type" must be "utcp", "discover", "call_tool" or "cancel"',
        }
        assert "1 open" in repr(protocol)


async def test_an_unknown_tool_is_the_callers_error(thread: Thread) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:
        request = {"type": "call_tool", "request_id": "r", "tool_name": "subtract", "arguments": {}}
        answer = {"type": "tool_error", "request_id": "r", "error": "unknown tool 'subtract'"}
        assert await said(protocol, url, request) == answer


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"b": 1}, "wrong arguments: a: Field required"),
        ({"a": "x"}, "wrong arguments: a: Input should be a valid integer"),
        ({"a": 1, "c": 2}, "wrong arguments: c: Extra inputs are not permitted"),
    ],
)
async def test_wrong_arguments_are_named_and_the_tool_not_called(
    thread: Thread, arguments: dict[str, Any], says: str
) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.add", arguments, templates["add"])
        assert caught.value.response["error"].startswith(says)


async def test_arguments_that_are_no_object_are_wrong(thread: Thread) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:
        for arguments in ([1], "a", 7):
            request = {"type": "call_tool", "request_id": "r", "tool_name": "add", "arguments": arguments}
            answer = await said(protocol, url, request)
            assert answer["error"] == "wrong arguments: Input should be a valid dictionary"


async def test_what_a_tool_raises_is_its_callers_error_and_its_traceback_in_the_log(
    thread: Thread, caplog: pytest.LogCaptureFixture
) -> None:
    url = await thread.serve(arithmetic())
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.divide", {"dividend": 1, "divisor": 0}, templates["divide"])
        # What follows differs between versions of Python.
        assert caught.value.response["error"].startswith("ZeroDivisionError: ")
        assert await protocol.call_tool(None, "manual.add", {"a": 1}, templates["add"]) == 2
    (record,) = [record for record in caplog.records if record.name == "utcp_websocket_anyio._server.session"]
    assert record.getMessage() == "tool divide of server arithmetic failed"
    assert record.exc_info is not None
    assert record.levelno == logging.ERROR


async def test_a_tool_that_loses_a_connection_of_its_own_fails_as_any_other(thread: Thread) -> None:
    server = ToolServer("gateway")

    @server.tool
    async def ask_elsewhere() -> None:
        raise ConnectionClosed(CloseReason(1011, "elsewhere"))

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.ask_elsewhere", {}, templates["ask_elsewhere"])
        assert caught.value.response["error"].startswith("ConnectionClosed: ")


@pytest.mark.parametrize("result", [object(), float("nan"), [float("inf")]], ids=["object", "nan", "infinity"])
async def test_a_result_that_json_cannot_hold_is_an_error(thread: Thread, result: Any) -> None:
    server = ToolServer("unspeakable")

    @server.tool
    async def speak() -> Any:
        return result

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError):
            await protocol.call_tool(None, "manual.speak", {}, templates["speak"])


@pytest.mark.parametrize("anyio_backend", [one for one in BACKENDS if one.id != "trio"])
async def test_a_tool_that_waits_for_something_that_is_cancelled_fails_as_any_other(thread: Thread) -> None:
    server = ToolServer("waiting")

    @server.tool
    async def wait_for_another() -> None:
        other = asyncio.create_task(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(other.cancel)
        await other

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.wait_for_another", {}, templates["wait_for_another"])
        assert caught.value.response["error"] == "CancelledError: what the tool waited for was cancelled"


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise NotImplementedError


async def test_an_error_without_a_text_is_reported_by_its_name(thread: Thread) -> None:
    server = arithmetic()

    @server.tool
    async def fail() -> None:
        raise UnprintableError

    url = await thread.serve(server)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.fail", {}, templates["fail"])
        assert caught.value.response["error"] == "UnprintableError"
        assert await protocol.call_tool(None, "manual.add", {"a": 1}, templates["add"]) == 2


async def test_a_stream_that_fails_gives_what_it_had_and_then_the_error(thread: Thread) -> None:
    server = ToolServer("breaking")

    @server.tool
    async def break_off() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise LookupError("no third one")

    url = await thread.serve(server)
    received: list[Any] = []
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        with pytest.raises(WebSocketToolError) as caught:
            async for item in protocol.call_tool_streaming(None, "manual.break_off", {}, templates["break_off"]):
                received.append(item)
    assert received == [1, 2]
    assert caught.value.response["error"] == "LookupError: no third one"


async def test_a_message_over_the_limit_closes_the_connection(thread: Thread) -> None:
    server = ToolServer("small", max_message_size=1000)
    url = await thread.serve(server)
    async with entered() as protocol:
        assert (await said(protocol, url, "x" * 1000))["error"] == "the message is not JSON"
        with pytest.raises(WebSocketClosedError) as caught:
            await said(protocol, url, "x" * 1001)
        assert caught.value.code == 1009


# Clients that go away, and the server's own end


class Endless:
    """A server of tools that never end, and what happens to them."""

    def __init__(self) -> None:
        self.server = ToolServer("endless")
        self.started, self.cancelled = threading.Event(), threading.Event()
        self.released, self.finished = threading.Event(), threading.Event()
        self.server.tool(self.waiting)
        self.server.tool(self.streaming)
        self.server.tool(self.blocking)

    async def waiting(self) -> None:
        self.started.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled.set()
            raise

    async def streaming(self) -> AsyncIterator[int]:
        self.started.set()
        try:
            yield 1
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled.set()
            raise

    def blocking(self) -> str:
        self.started.set()
        self.released.wait(10)
        self.finished.set()
        return "released"


async def fails_as_closed(
    protocol: WebSocketCommunicationProtocol, template: CallTemplate, code: int | None = None
) -> None:
    with pytest.raises(WebSocketClosedError) as caught:
        await protocol.call_tool(None, "manual.tool", {}, template)
    assert code is None or caught.value.code == code


async def test_when_the_client_goes_away_its_calls_are_cancelled(thread: Thread) -> None:
    endless = Endless()
    url = await thread.serve(endless.server)
    async with anyio.create_task_group() as task_group:
        async with entered() as protocol:
            template = (await discovered(protocol, url))["waiting"]
            task_group.start_soon(fails_as_closed, protocol, template)  # noqa: ASYNC111 - its end is what fails the call
            await happened(endless.started)
            assert not endless.cancelled.is_set()
        await happened(endless.cancelled)


async def test_when_the_client_goes_away_its_streams_are_cancelled(thread: Thread) -> None:
    endless = Endless()
    url = await thread.serve(endless.server)
    async with entered() as protocol:
        template = (await discovered(protocol, url))["streaming"]
        stream = protocol.call_tool_streaming(None, "manual.streaming", {}, template)
        assert await stream.__anext__() == 1
        assert not endless.cancelled.is_set()
    await happened(endless.cancelled)


@pytest.mark.parametrize("how", ["cancelled", "timed out", "left"])
async def test_a_call_that_its_client_gives_up_is_cancelled_and_the_others_go_on(thread: Thread, how: str) -> None:
    endless = Endless()
    url = await thread.serve(endless.server)
    async with entered() as protocol, anyio.create_task_group() as task_group:
        templates = await discovered(protocol, url)
        answers: list[Any] = []

        async def stay() -> None:
            answers.append(await protocol.call_tool(None, "manual.blocking", {}, templates["blocking"]))

        task_group.start_soon(stay)
        await happened(endless.started)
        endless.started.clear()
        if how == "left":
            stream = protocol.call_tool_streaming(None, "manual.streaming", {}, templates["streaming"])
            assert await stream.__anext__() == 1
            await stream.aclose()
        elif how == "timed out":
            short = templates["waiting"].model_copy(update={"response_timeout": 0.1})
            with pytest.raises(WebSocketTimeoutError):
                await protocol.call_tool(None, "manual.waiting", {}, short)
        else:
            async with anyio.create_task_group() as given_up:
                given_up.start_soon(protocol.call_tool, None, "manual.waiting", {}, templates["waiting"])
                await happened(endless.started)
                given_up.cancel_scope.cancel()
        await happened(endless.cancelled)
        endless.released.set()
        while not answers:
            await anyio.sleep(0.01)
        statistics = protocol.statistics()
        assert (statistics.active, statistics.idle, statistics.closing) == (0, 2, 0)  # one was for discovery
    assert answers == ["released"]


async def test_a_client_that_goes_away_ends_only_its_own_calls(thread: Thread) -> None:
    endless = Endless()
    url = await thread.serve(endless.server)
    async with entered() as protocol, anyio.create_task_group() as task_group:
        templates = await discovered(protocol, url)
        answers: list[Any] = []

        async def stay() -> None:
            answers.append(await protocol.call_tool(None, "manual.blocking", {}, templates["blocking"]))

        task_group.start_soon(stay)
        await happened(endless.started)
        endless.started.clear()
        async with entered() as other:
            task_group.start_soon(fails_as_closed, other, templates["waiting"])  # noqa: ASYNC111 - it ends with `other`
            await happened(endless.started)
        await happened(endless.cancelled)
        endless.released.set()
    assert answers == ["released"]


async def test_a_cancelled_server_tells_its_clients_and_cancels_their_calls(thread: Thread) -> None:
    endless = Endless()
    url = await thread.serve(endless.server)
    async with entered() as protocol, anyio.create_task_group() as task_group:
        template = (await discovered(protocol, url))["waiting"]
        task_group.start_soon(fails_as_closed, protocol, template, 1001)
        await happened(endless.started)
        await anyio.to_thread.run_sync(thread.join)
        await happened(endless.cancelled)


async def test_a_plain_function_that_goes_on_does_not_hold_up_a_cancelled_server(thread: Thread) -> None:
    endless = Endless()
    url = await thread.serve(endless.server)
    try:
        async with entered() as protocol, anyio.create_task_group() as task_group:
            template = (await discovered(protocol, url))["blocking"]
            task_group.start_soon(fails_as_closed, protocol, template, 1001)
            await happened(endless.started)
            await anyio.to_thread.run_sync(thread.join)
            assert not endless.finished.is_set()
    finally:
        endless.released.set()


async def test_clients_that_break_off_or_talk_nonsense_do_not_disturb_others(thread: Thread) -> None:
    server = arithmetic()
    url = await thread.serve(server)
    port = port_of(url)
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        for sent in (
            b"",
            b"GET",
            b"SSH-2.0-x\r\n\r\n",
            b"\x16\x03\x01",
            UPGRADE,
            UPGRADE + b"\x81",
            UPGRADE + b"\xff" * 99,
        ):
            for abortively in (False, True):
                stream = await anyio.connect_tcp("127.0.0.1", port)
                if sent:
                    await stream.send(sent)
                if abortively:
                    reset(stream)
                await stream.aclose()
        assert await protocol.call_tool(None, "manual.add", {"a": 1, "b": 2}, templates["add"]) == 3


@pytest.mark.parametrize("field", ["request_id", "tool_name", "arguments"])
async def test_json_nested_as_deep_as_python_goes_does_not_disturb_others(thread: Thread, field: str) -> None:
    server = arithmetic()
    url = await thread.serve(server)
    request = {"type": "call_tool", "request_id": "r", "tool_name": "add", "arguments": {"a": 1}}
    async with entered() as protocol:
        for depth in (*range(900, 1000, 3), 3_000, 9_000, 9_990, 9_995, 9_998, 100_000):
            nested = json.dumps({**request, field: "?"}).replace('"?"', "[" * depth + "]" * depth)
            tell = WebSocketCallTemplate(name="manual", url=url, message=nested, expected_responses=0)
            await protocol.call_tool(None, "manual.raw", {}, tell)
        assert (await said(protocol, url, request))["result"] == 2


async def test_it_serves_over_tls(thread: Thread) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = ToolServer("secure", ssl_context=context)
    server.tool(echo)
    url = await thread.serve(server)
    assert url.startswith("wss://127.0.0.1:")
    async with entered(ssl_context=trusting) as protocol:
        templates = await discovered(protocol, url.replace("127.0.0.1", "localhost"))
        assert await protocol.call_tool(None, "manual.echo", {"text": "é"}, templates["echo"]) == "é"


# In a task group


async def test_in_a_task_group_it_serves_until_it_is_cancelled() -> None:
    endless = Endless()
    async with entered() as protocol:
        async with anyio.create_task_group() as task_group:
            await task_group.start(endless.server.serve, "127.0.0.1", 0)
            url = endless.server.url
            assert repr(endless.server) == f"<ToolServer 'endless', 3 tools, {url}>"
            template = (await discovered(protocol, url))["waiting"]
            async with anyio.create_task_group() as calls:
                calls.start_soon(fails_as_closed, protocol, template, 1001)
                await happened(endless.started)
                task_group.cancel_scope.cancel()
        assert endless.cancelled.is_set()
        with pytest.raises(RuntimeError, match="not serving"):
            _ = endless.server.url


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_it_is_started_in_a_trio_nursery_as_well() -> None:
    server = ToolServer("nursery")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, "127.0.0.1", 0)
        assert server.url.startswith("ws://127.0.0.1:")
        nursery.cancel_scope.cancel()


async def test_it_serves_once_at_a_time_and_again_afterwards() -> None:
    server = ToolServer("again")
    for _ in range(2):
        async with anyio.create_task_group() as task_group:
            await task_group.start(server.serve, "127.0.0.1", 0)
            with pytest.raises(RuntimeError, match="serving already, at ws://"):
                await server.serve("127.0.0.1", 0)
            task_group.cancel_scope.cancel()
