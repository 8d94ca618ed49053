"""Protocols of other plugins: unchanged on asyncio; on trio, those that need asyncio say so."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from support.plugin import WEBSOCKET, FakeProtocol, config, install, manual
from utcp.data.call_template import CallTemplateSerializer
from utcp.data.register_manual_response import RegisterManualResult
from utcp.data.utcp_manual import UtcpManual

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketSecurityError, open_client

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("registries")]


class NeedsAsyncio(FakeProtocol):
    """Does with asyncio what plugins do with it, wherever `what` is asked."""

    def __init__(self, what: str, use: Callable[[], Awaitable[None]]) -> None:
        async def hook(asked: str) -> None:
            if asked.startswith(what):
                await use()

        super().__init__(hook)


class Stubborn(NeedsAsyncio):
    """Turns its failures into failed results, as several plugins do."""

    async def register_manual(self, caller: Any, manual_call_template: Any) -> RegisterManualResult:
        try:
            return await super().register_manual(caller, manual_call_template)
        except Exception:  # noqa: BLE001 - as plugins do
            return RegisterManualResult(
                manual_call_template=manual_call_template,
                manual=UtcpManual(tools=[]),
                success=False,
                errors=[traceback.format_exc()],
            )


class Buffered(FakeProtocol):
    """Its stream waits on asyncio after the first item."""

    def call_tool_streaming(self, *args: Any) -> AsyncGenerator[Any, None]:  # type: ignore[override]  # core declares it as a coroutine
        async def items() -> AsyncGenerator[Any, None]:
            yield 1
            await asyncio.sleep(0)
            yield 2

        return items()


async def sleeps() -> None:
    await asyncio.sleep(0.001)


async def yields() -> None:
    await asyncio.sleep(0)


async def waits_for_a_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_soon(lock.release)
    await lock.acquire()


async def contends_for_a_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    await lock.acquire()


async def wraps_its_failure() -> None:
    try:
        await sleeps()
    except RuntimeError as error:
        raise LookupError("it did not work") from error


NEEDS_ASYNCIO = r"^the 'fake' protocol \([\w.]+\) needs asyncio and cannot be used from trio$"
USES = [sleeps, yields, waits_for_a_lock, contends_for_a_lock, wraps_its_failure]


@pytest.mark.parametrize("use", USES)
def test_on_trio_a_call_that_needs_asyncio_says_so(use: Any) -> None:
    install(lambda: NeedsAsyncio("call", use))

    async def call() -> None:
        with anyio.fail_after(10):
            async with open_client(config(manual())) as client:
                with pytest.raises(RuntimeError, match=NEEDS_ASYNCIO):
                    await client.call_tool("m.tool", {})

    trio.run(call)


@pytest.mark.parametrize("protocol", [NeedsAsyncio, Stubborn])
def test_on_trio_a_registration_that_needs_asyncio_says_so(
    protocol: type[NeedsAsyncio], caplog: pytest.LogCaptureFixture
) -> None:
    install(lambda: protocol("register", sleeps))

    async def register() -> None:
        with anyio.fail_after(10):
            async with open_client(config(manual("configured"))) as client:
                with pytest.raises(RuntimeError, match=NEEDS_ASYNCIO):
                    await client.register_manual(CallTemplateSerializer().validate_dict(manual()))

    trio.run(register)
    assert "the manual configured could not be registered: RuntimeError: the 'fake' protocol" in caplog.text


def test_on_trio_a_deregistration_that_needs_asyncio_says_so() -> None:
    install(lambda: NeedsAsyncio("deregister", sleeps))

    async def deregister() -> None:
        with anyio.fail_after(10):
            async with open_client(config(manual())) as client:
                with pytest.raises(RuntimeError, match=NEEDS_ASYNCIO):
                    await client.deregister_manual("m")

    trio.run(deregister)


def test_on_trio_a_stream_that_needs_asyncio_says_so() -> None:
    install(Buffered)

    async def stream() -> None:
        with anyio.fail_after(10):
            async with (
                open_client(config(manual())) as client,
                aclosing(client.call_tool_streaming("m.tool", {})) as items,
            ):
                assert await items.__anext__() == 1
                with pytest.raises(RuntimeError, match=NEEDS_ASYNCIO):
                    await items.__anext__()

    trio.run(stream)


def test_on_trio_a_protocol_that_needs_asyncio_to_close_has_nothing_to_close() -> None:
    protocol = NeedsAsyncio("close", sleeps)
    install(lambda: protocol)

    async def use() -> None:
        with anyio.fail_after(10):
            async with open_client():
                pass

    trio.run(use)
    assert protocol.log == ["close"]


async def test_an_error_that_has_nothing_to_do_with_asyncio_comes_out_as_it_is() -> None:
    async def fail() -> None:
        try:
            raise KeyError("x")
        except KeyError:
            raise RuntimeError("the loop of the machine is stuck") from None

    install(lambda: NeedsAsyncio("", fail))
    with anyio.fail_after(10):
        with pytest.raises(Exception, match="the loop of the machine is stuck"):
            async with open_client() as client:
                with pytest.raises(RuntimeError, match=r"^the loop of the machine is stuck$"):
                    await client.register_manual(CallTemplateSerializer().validate_dict(manual()))


async def test_an_error_of_a_call_comes_out_as_it_is() -> None:
    async def fail() -> None:
        raise LookupError("nobody home")

    install(lambda: NeedsAsyncio("call", fail))
    with anyio.fail_after(10):
        async with open_client(config(manual())) as client:
            with pytest.raises(LookupError, match="nobody home"):
                await client.call_tool("m.tool", {})
            assert repr(client._protocol_for("fake")) == "<PluginProtocolAdapter fake: NeedsAsyncio>"


async def test_what_a_failed_registration_says_is_in_its_result(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LookupError("nobody home")

    install(lambda: Stubborn("register", fail))
    with anyio.fail_after(10):
        async with open_client() as client:
            result = await client.register_manual(CallTemplateSerializer().validate_dict(manual()))
            assert not result.success
            assert "nobody home" in result.errors[0]
            [result] = await client.register_manuals([CallTemplateSerializer().validate_dict(manual())])
            assert "nobody home" in result.errors[0]
            assert await client.config.tool_repository.get_manuals() == []
    assert "the manual m could not be registered; its result says why" in caplog.text


def test_on_asyncio_what_it_does_with_asyncio_works() -> None:
    install(lambda: NeedsAsyncio("", waits_for_a_lock))

    async def use() -> None:
        with anyio.fail_after(10):
            async with open_client(config(manual())) as client:
                assert (await client.call_tool("m.tool", {"x": 1}))["args"] == {"x": 1}
                assert [item["number"] async for item in client.call_tool_streaming("m.tool", {})] == [0, 1, 2]
                assert await client.deregister_manual("m")

    asyncio.run(use())


@pytest.mark.parametrize("origin", ["https://tools.example/utcp", "http://10.0.0.1/utcp"])
async def test_a_remote_manual_of_another_protocol_may_not_name_loopback(origin: str) -> None:
    protocol = FakeProtocol()
    install(lambda: protocol)
    protocol.found["m"] = [{"name": "t", "tool_call_template": {**WEBSOCKET, "url": "ws://127.0.0.1:1/"}}]
    values = manual(url=origin, allowed_communication_protocols=["websocket"])
    with anyio.fail_after(10):
        async with open_client() as client:
            with pytest.raises(WebSocketSecurityError, match="loopback address in url"):
                await client.register_manual(CallTemplateSerializer().validate_dict(values))
            assert await client.config.tool_repository.get_tools() == []


@pytest.mark.parametrize("origin", [None, "http://127.0.0.1/utcp"])
async def test_a_local_manual_of_another_protocol_may_name_loopback(origin: str | None) -> None:
    protocol = FakeProtocol()
    install(lambda: protocol)
    protocol.found["m"] = [{"name": "t", "tool_call_template": {**WEBSOCKET, "url": "ws://127.0.0.1:1/"}}]
    with anyio.fail_after(10):
        async with open_client(config(manual(url=origin, allowed_communication_protocols=["websocket"]))) as client:
            assert [tool.name for tool in await client.config.tool_repository.get_tools()] == ["m.t"]


async def test_a_manual_of_the_http_plugin_brings_websocket_tools_on_asyncio_and_says_what_it_needs_on_trio(
    anyio_backend_name: str,
) -> None:
    inputs = {"type": "object", "properties": {"q": {"type": "string"}}}
    found = {
        "utcp_version": "1.0.0",
        "tools": [{"name": "ask", "inputs": inputs, "tool_call_template": {**WEBSOCKET, "message": {"q": "${q}"}}}],
    }
    body = json.dumps(found).replace("wss://api.example/tools", "ws://127.0.0.1:1/").encode()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            await stream.send(head.encode() + body)

    with anyio.fail_after(20):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener,
            anyio.create_task_group() as task_group,
        ):
            task_group.start_soon(listener.serve, serve)
            url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/utcp"
            values = {"name": "m", "call_template_type": "http", "url": url, "http_method": "GET"}
            template = CallTemplateSerializer().validate_dict(
                {**values, "allowed_communication_protocols": ["http", "websocket"]}
            )
            async with open_client() as client:
                if anyio_backend_name == "trio":
                    with pytest.raises(RuntimeError, match=r"the 'http' protocol \(utcp_http.*needs asyncio"):
                        await client.register_manual(template)
                else:
                    await client.register_manual(template)
                    tool = await client.config.tool_repository.get_tool("m.ask")
                    assert tool is not None
                    assert isinstance(tool.tool_call_template, WebSocketCallTemplate)
                    assert tool.tool_call_template.message == {"q": "{{args.q}}"}
            task_group.cancel_scope.cancel()
