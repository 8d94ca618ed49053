"""From a call template to its tools: written in it, fetched by HTTP, or asked of the endpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from support.http_peer import HttpPeer, answering, serve_http, silent
from support.peers import Peer, peer
from utcp.data.tool import JsonSchema, Tool
from utcp_http.http_call_template import HttpCallTemplate

from utcp_websocket_anyio import (
    MissingArgumentError,
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketSecurityError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._calls import discovery
from utcp_websocket_anyio._connections import connector
from utcp_websocket_anyio._net.http import Answer
from utcp_websocket_anyio._net.http import request as ask
from utcp_websocket_anyio._wire import Target, Wire, open_wire

pytestmark = pytest.mark.anyio

SECRET = "geheim"
NOWHERE = "ws://127.0.0.1:1/"

ADD = {
    "name": "add",
    "description": "Add two integers.",
    "inputs": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}}},
}


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, **fields)


def over_websocket(url: str, **fields: Any) -> dict[str, Any]:
    return {"call_template_type": "websocket", "url": url, **fields}


def over_http(url: str, **fields: Any) -> dict[str, Any]:
    return {"call_template_type": "http", "http_method": "GET", "url": url, **fields}


def manual(*templates: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """A manual with a tool for each call template."""
    tools = [{**ADD, "name": f"tool{n}", "tool_call_template": value} for n, value in enumerate(templates)]
    return {"utcp_version": "1.0.1", "manual_version": "7.0.0", "tools": tools, **fields}


@asynccontextmanager
async def entered() -> AsyncIterator[WebSocketCommunicationProtocol]:
    with anyio.fail_after(15):
        async with WebSocketCommunicationProtocol() as protocol:
            yield protocol


async def registered(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> list[Tool]:
    found = await protocol.register_manual(None, call_template)
    assert found.success
    assert found.manual_call_template is call_template
    assert not found.errors
    tools: list[Tool] = found.manual.tools
    return tools


class Publisher:
    """A WebSocket endpoint that answers its first message with what it is given, and the others with themselves.

    Attributes:
        asked: Every first message.
        left: How many clients have gone.
    """

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.asked: list[str] = []
        self.left = anyio.Semaphore(0)

    async def __call__(self, connection: Peer) -> None:
        try:
            await connection.handshake()
            self.asked.append(await connection.receive_text())
            for answer in self._answers:
                await connection.send(answer)
            while True:
                await connection.send(await connection.receive())
        finally:
            self.left.release()


# The tools in the template


async def test_inline_tools_need_no_network() -> None:
    own = template(NOWHERE, message="{{args.a}}+{{args.b}}", timeout=7, tools=[ADD])
    async with entered() as protocol:
        (tool,) = await registered(protocol, own)
    assert (tool.name, tool.description) == ("add", "Add two integers.")
    inherited = tool.tool_call_template
    assert isinstance(inherited, WebSocketCallTemplate)
    assert (inherited.url, inherited.message, inherited.timeout) == (NOWHERE, "{{args.a}}+{{args.b}}", 7)
    assert inherited.tools is None


async def test_no_tools_are_tools_too() -> None:
    async with entered() as protocol:
        assert await registered(protocol, template(NOWHERE, tools=[], discovery_url="http://127.0.0.1:1/")) == []


async def test_an_inline_tool_may_be_an_object_and_keeps_a_template_of_another_protocol() -> None:
    called = HttpCallTemplate(name="web", url="https://example.com/add", http_method="POST")
    tool = Tool(name="add", inputs=JsonSchema.model_validate(ADD["inputs"]), tool_call_template=called)
    async with entered() as protocol:
        (found,) = await registered(protocol, template(NOWHERE, tools=[tool]))
    assert found.tool_call_template == called
    assert isinstance(found.tool_call_template, HttpCallTemplate)


async def test_an_inline_tool_is_called_with_the_defaults_of_its_schema_until_it_is_deregistered() -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        while True:
            await connection.send(await connection.receive())

    async with entered() as protocol, peer(script) as url:
        own = template(url, message="{{args.a}}+{{args.b}}", tools=[ADD])
        (tool,) = await registered(protocol, own)
        assert await protocol.call_tool(None, "manual.add", {"a": 2}, tool.tool_call_template) == "2+1"
        with pytest.raises(MissingArgumentError) as caught:
            await protocol.call_tool(None, "manual.add", {}, tool.tool_call_template)
        assert caught.value.names == ("a",)
        await protocol.deregister_manual(None, own)
        with pytest.raises(MissingArgumentError) as caught:
            await protocol.call_tool(None, "manual.add", {}, tool.tool_call_template)
        assert caught.value.names == ("a", "b")


# By HTTP


async def test_a_manual_is_fetched_from_its_discovery_url() -> None:
    content = manual(over_websocket("wss://example.com/a"), over_http("https://example.com/b"), None)
    async with entered() as protocol, serve_http(answering(content)) as server:
        own = template(NOWHERE, discovery_url=f"{server.url}/manual?v=1", headers={"X-Key": SECRET})
        found = await protocol.register_manual(None, own)
    (request,) = server.peers
    assert (request.method, request.target) == ("GET", "/manual?v=1")
    assert SECRET not in str(request.headers)
    assert (found.manual.utcp_version, found.manual.manual_version) == ("1.0.1", "7.0.0")
    first, second, third = (tool.tool_call_template for tool in found.manual.tools)
    assert isinstance(first, WebSocketCallTemplate)
    assert isinstance(second, HttpCallTemplate)
    assert isinstance(third, WebSocketCallTemplate)
    assert [first.url, second.url, third.url] == ["wss://example.com/a", "https://example.com/b", NOWHERE]
    assert third.headers == {"X-Key": SECRET}
    assert third.discovery_url is None


async def test_tools_in_the_template_come_before_its_discovery_url() -> None:
    async with entered() as protocol, serve_http(silent) as server, peer(Publisher()) as url:
        (tool,) = await registered(protocol, template(url, tools=[ADD], discovery_url=server.url))
        assert tool.name == "add"
        assert not server.connected.is_set()


async def test_dollar_placeholders_of_declared_inputs_become_arguments_in_every_kind_of_discovery() -> None:
    called = over_websocket(NOWHERE, message="${a} ${OTHER}")
    content = manual(called)
    async with entered() as protocol, serve_http(answering(content)) as server, peer(Publisher(content)) as url:
        for own in (template(url), template(url, discovery_url=server.url), template(url, tools=content["tools"])):
            (tool,) = await registered(protocol, own)
            assert isinstance(tool.tool_call_template, WebSocketCallTemplate)
            assert tool.tool_call_template.message == "{{args.a}} ${OTHER}"


@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_a_discovery_url_that_answers_with_an_error_raises_it(status: int) -> None:
    async with entered() as protocol, serve_http(answering(manual(None), status)) as server:
        own = template(NOWHERE, discovery_url=f"{server.url}/m?key={SECRET}")
        with pytest.raises(WebSocketConnectionError, match=f"answered with status {status}") as caught:
            await protocol.register_manual(None, own)
    assert (caught.value.status, caught.value.endpoint) == (status, f"{server.url}/m")


async def test_a_redirected_discovery_is_refused() -> None:
    async with entered() as protocol, serve_http(answering({}, 302, [("Location", "/other")])) as server:
        with pytest.raises(WebSocketConnectionError, match="redirect, which is not followed"):
            await protocol.register_manual(None, template(NOWHERE, discovery_url=server.url))
    assert len(server.peers) == 1


async def test_a_silent_discovery_url_times_out_and_is_left() -> None:
    async with entered() as protocol, serve_http(silent) as server:
        with pytest.raises(WebSocketTimeoutError, match=r"no manual within 0\.1 s") as caught:
            await protocol.register_manual(None, template(NOWHERE, discovery_url=server.url, timeout=0.1))
        assert caught.value.phase == "response"
        await server.left.wait()


async def test_a_discovery_url_elsewhere_needs_https() -> None:
    with pytest.raises(ValueError, match="discovery_url"):
        template(NOWHERE, discovery_url="http://example.com/manual")
    async with entered() as protocol:
        with pytest.raises(WebSocketSecurityError, match="discovery_url"):
            own = template(NOWHERE).model_copy(update={"discovery_url": "http://example.com/manual"})
            await protocol.register_manual(None, own)


# By the WebSocket itself


async def test_the_endpoint_is_asked_for_its_manual_and_the_connection_used_again() -> None:
    publisher = Publisher(manual(None, over_http("https://example.com/")))
    async with entered() as protocol, peer(publisher) as url:
        own, other = await registered(protocol, template(url, message="call"))
        assert isinstance(other.tool_call_template, HttpCallTemplate)
        assert await protocol.call_tool(None, "manual.tool0", {}, own.tool_call_template) == "call"
    assert [json.loads(message) for message in publisher.asked] == [{"type": "utcp"}]


async def test_the_first_object_with_a_list_of_tools_is_the_manual() -> None:
    publisher = Publisher(
        "welcome",
        b"\x00\x01",
        "[1]",
        [{"tools": []}],
        {"type": "tool_response", "result": {"tools": []}},
        {"type": "tool_error", "error": "?"},
        {"type": "stream_end"},
        {"tools": "later"},
        manual(None),
        manual(None, None),
    )
    async with entered() as protocol, peer(publisher) as url:
        tools = await registered(protocol, template(url))
    assert [tool.name for tool in tools] == ["tool0"]


@pytest.mark.parametrize("message", ["manual {{uuid}}", {"ask": "manual", "id": "{{call_id}}"}])
async def test_the_discovery_message_is_a_template_as_those_of_on_connect(message: Any) -> None:
    publisher = Publisher(manual(None))
    async with entered() as protocol, peer(publisher) as url:
        (tool,) = await registered(protocol, template(url, discovery_message=message))
    (asked,) = publisher.asked
    assert "manual" in asked
    assert "{{" not in asked
    assert isinstance(tool.tool_call_template, WebSocketCallTemplate)
    assert tool.tool_call_template.discovery_message == {"type": "utcp"}


async def test_how_tools_are_called_does_not_change_how_the_endpoint_is_asked() -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        assert connection.header("X-Key") == "k"
        assert await connection.receive_json() == {"login": True}
        await connection.send({"welcome": True})
        assert await connection.receive_json() == {"type": "utcp"}
        await connection.send({"ping": 1})
        assert await connection.receive_json() == {"pong": 1}
        await connection.send({"done": True, "bad": True})
        await connection.send(manual(None))

    fields: list[dict[str, Any]] = [
        {"message_filter": {"id": "{{uuid}}"}, "multiplex": True},
        {"end_filter": {"tools": {"$any": True}}, "error_filter": {"bad": True}, "expected_responses": -1},
        {"listen_only": True, "result": {"path": "not.there"}, "response_format": "raw"},
        {"message": "{{args.x}}", "before": [{"send": "before", "expect": "never"}], "response_timeout": 0.001},
    ]
    async with entered() as protocol, peer(script) as url:
        for used in fields:
            own = template(
                url,
                headers={"X-Key": "k"},
                on_connect=[{"send": {"login": True}, "expect": {"welcome": True}}],
                auto_reply=[{"match": {"ping": 1}, "reply": {"pong": 1}}],
                **used,
            )
            (tool,) = await registered(protocol, own)
            assert tool.name == "tool0"
            await protocol.deregister_manual(None, own)


async def test_an_endpoint_whose_url_takes_arguments_cannot_be_asked() -> None:
    publisher = Publisher()
    async with entered() as protocol, peer(publisher) as url:
        with pytest.raises(MissingArgumentError) as caught:
            await protocol.register_manual(None, template(url + "{{args.room}}"))
        assert caught.value.names == ("room",)
        assert caught.value.endpoint == f"{url}{{{{args.room}}}}"
    assert not publisher.asked


# What fails, and what is left of it


async def until_none_is_open(protocol: WebSocketCommunicationProtocol) -> None:
    while "Connections: 0 open" not in repr(protocol):
        await anyio.sleep(0.001)


async def fails(
    protocol: WebSocketCommunicationProtocol,
    own: WebSocketCallTemplate,
    error: type[Exception],
    says: str | None = None,
) -> Any:
    """Register what cannot be registered; afterwards no connection is open."""
    with pytest.raises(error, match=says) as caught:
        await protocol.register_manual(None, own)
    await until_none_is_open(protocol)
    return caught.value


async def test_an_endpoint_that_gives_no_manual_in_time_is_left() -> None:
    publisher = Publisher("welcome", {"hello": 1})
    async with entered() as protocol, peer(publisher) as url:
        error = await fails(protocol, template(url, timeout=0.1), WebSocketTimeoutError)
        assert error.phase == "response"
        await publisher.left.acquire()


async def test_an_endpoint_that_closes_instead_of_answering_is_an_error() -> None:
    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        await connection.close(1000, "nothing here")

    async with entered() as protocol, peer(script) as url:
        error = await fails(protocol, template(url), WebSocketClosedError)
        assert (error.code, error.reason) == (1000, "nothing here")


async def test_an_endpoint_that_cannot_be_reached_or_refuses_is_an_error() -> None:
    async def refuse(connection: Peer) -> None:
        await connection.answer("401 Unauthorized", "Content-Length: 0")

    async with entered() as protocol, peer(refuse) as url:
        await fails(protocol, template(url), WebSocketAuthError)
    async with entered() as protocol:
        await fails(protocol, template(url, reconnect_attempts=0), WebSocketConnectionError)


async def test_a_registration_that_is_cancelled_leaves_no_connection() -> None:
    publisher = Publisher("welcome")
    asked = anyio.Event()

    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        asked.set()
        await connection.until_closed()
        publisher.left.release()

    async with entered() as protocol, peer(script) as url:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(protocol.register_manual, None, template(url))
            await asked.wait()
            task_group.cancel_scope.cancel()
        await publisher.left.acquire()
        await until_none_is_open(protocol)


WRONG: list[tuple[Any, str]] = [
    ({"tools": [1]}, r"the manual's tools\[0\] must be an object"),
    ({"tools": [{}]}, r"the manual's tools\[0\]\.name: Field required"),
    ({"tools": [ADD, {**ADD, "tags": 3}]}, r"the manual's tools\[1\]\.tags: Input should be a valid list"),
    (manual({"url": "wss://example.com/"}), r"tools\[0\]\.tool_call_template must be an object with a call_templ"),
    (
        {"tools": [{**ADD, "tool_call_template": "x"}]},
        r"tool_call_template must be an object with a call_template_type",
    ),
    (
        manual({"call_template_type": "carrier_pigeon"}),
        r'is of type "carrier_pigeon", for which no plugin is installed',
    ),
    (manual(None, over_websocket("ws://example.com/")), r"tools\[1\]\.tool_call_template: .*url"),
    (manual(over_websocket("wss://example.com/", timeout=-1)), r"tools\[0\]\.tool_call_template: .*timeout"),
    (manual(over_http("https://example.com/", http_method=SECRET)), r"tools\[0\]\.tool_call_template: is not valid"),
    (manual(over_websocket("wss://example.com/", headers={"X": f"{SECRET}\n"})), r"headers: .*control character"),
]


@pytest.mark.parametrize(("content", "says"), WRONG)
async def test_a_wrong_manual_is_a_value_error_that_says_where_and_leaves_no_connection(
    content: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    publisher = Publisher(content)
    async with entered() as protocol, peer(publisher) as url, serve_http(answering(content)) as server:
        error: BaseException | None = await fails(protocol, template(url), ValueError, says)
        await publisher.left.acquire()
        assert not isinstance(error, WebSocketError)
        while error is not None:
            assert SECRET not in f"{error} {error!r}"
            error = error.__cause__ or error.__context__
        await fails(protocol, template(url, discovery_url=server.url), ValueError, says)
    assert SECRET not in "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)


@pytest.mark.parametrize("content", [b"<html>", b"", [], {}, {"tools": {}}, {"tool": []}])
async def test_an_answer_that_is_not_a_manual_is_a_value_error(content: Any) -> None:
    async with entered() as protocol, serve_http(answering(content)) as server:
        own = template(NOWHERE, discovery_url=server.url)
        await fails(protocol, own, ValueError, "must be a JSON object with a list of tools")


async def test_after_a_failed_registration_the_next_one_may_succeed() -> None:
    answers: list[Any] = [{"tools": [1]}, manual(None)]

    async def script(connection: Peer) -> None:
        await connection.handshake()
        await connection.receive()
        await connection.send(answers.pop(0))

    async with entered() as protocol, peer(script) as url:
        await fails(protocol, template(url), ValueError, "must be an object")
        assert len(await registered(protocol, template(url))) == 1


async def test_only_a_websocket_template_can_be_registered() -> None:
    async with entered() as protocol:
        with pytest.raises(ValueError, match=r"a WebSocket call template is needed, not utcp_http\."):
            await protocol.register_manual(None, HttpCallTemplate(name="web", url="https://example.com/"))


# Manuals from elsewhere


Publish = Callable[[Any], AbstractAsyncContextManager[WebSocketCallTemplate]]


@pytest.fixture(params=["websocket", "http"])
def afar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publishes a manual that seems to come from a remote origin, by either way; gives the template to register."""

    @asynccontextmanager
    async def by_websocket(content: Any) -> AsyncIterator[WebSocketCallTemplate]:
        async with peer(Publisher(content)) as url:

            async def nearby(target: Target) -> Wire:
                assert target.url == "wss://remote.example/"
                return await open_wire(dataclasses.replace(target, url=url))

            monkeypatch.setattr(connector, "open_wire", nearby)
            yield template("wss://remote.example/")

    @asynccontextmanager
    async def by_http(content: Any) -> AsyncIterator[WebSocketCallTemplate]:
        async with serve_http(answering(content)) as server:

            async def nearby(method: str, url: str, **options: Any) -> Answer:
                assert url == "https://remote.example/manual"
                return await ask(method, server.url, **options)

            monkeypatch.setattr(discovery, "request", nearby)
            yield template(NOWHERE, discovery_url="https://remote.example/manual")

    return by_websocket if request.param == "websocket" else by_http


@pytest.mark.parametrize(
    ("field", "called"),
    [
        ("url", over_websocket("ws://127.0.0.1:8080/")),
        ("url", over_websocket("wss://localhost/")),
        ("discovery_url", over_websocket("wss://example.com/", discovery_url="http://[::1]/")),
        (
            r"auth\.token_url",
            over_websocket(
                "wss://example.com/",
                auth={
                    "auth_type": "oauth2",
                    "token_url": "http://127.0.0.2/",
                    "client_id": "client",
                    "client_secret": SECRET,
                },
            ),
        ),
    ],
)
async def test_a_remote_manual_that_names_loopback_is_refused(
    afar: Publish, field: str, called: dict[str, Any]
) -> None:
    content = manual(over_websocket("wss://example.com/"), called)
    async with entered() as protocol, afar(content) as own:
        says = f"the tool 'tool1' of a remote manual names a loopback address in {field}"
        await fails(protocol, own, WebSocketSecurityError, says)


async def test_a_remote_manuals_tools_of_other_protocols_may_not_name_loopback_either(afar: Publish) -> None:
    async with entered() as protocol, afar(manual(over_http("http://127.0.0.1/"))) as own:
        await fails(protocol, own, WebSocketSecurityError, "names a loopback address in url")


async def test_a_remote_manual_may_name_other_hosts(afar: Publish) -> None:
    content = manual(over_websocket("wss://example.com/"), over_http("http://example.com/"))
    async with entered() as protocol, afar(content) as own:
        first, second = await registered(protocol, own)
    assert isinstance(first.tool_call_template, WebSocketCallTemplate)
    assert isinstance(second.tool_call_template, HttpCallTemplate)


async def test_a_local_manual_may_name_loopback_and_inline_tools_are_the_users_own() -> None:
    content = manual(over_websocket("ws://127.0.0.1:8080/"))
    async with entered() as protocol, peer(Publisher(content)) as url, serve_http(answering(content)) as server:
        assert len(await registered(protocol, template(url))) == 1
        assert len(await registered(protocol, template("wss://remote.example/", discovery_url=server.url))) == 1
        assert len(await registered(protocol, template("wss://remote.example/", tools=content["tools"]))) == 1


async def test_a_registration_runs_beside_others() -> None:
    held = anyio.Event()

    async def slow(connection: HttpPeer) -> None:
        await held.wait()
        await connection.answer(manual(None))

    found: list[int] = []

    async with entered() as protocol, serve_http(slow) as server, peer(Publisher(manual(None, None))) as url:

        async def register(own: WebSocketCallTemplate) -> None:
            found.append(len(await registered(protocol, own)))

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(register, template(NOWHERE, discovery_url=server.url))
            await server.asked.wait()
            await register(template(url))
            held.set()
    assert found == [2, 1]
