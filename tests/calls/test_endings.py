"""When an exchange is over: counts, filters, silence, durations, closes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio.lowlevel
import trio.testing
from support.backends import virtual_time
from support.peers import TEXT, Peer, echo_server, frame, peer, peer_in_memory
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)
from utcp_websocket_anyio._templates.filters import Filter

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_exchanges")]

on_a_jumping_clock = pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])


def saying(*messages: Any, code: int | None = None) -> Any:
    """A peer that answers each request with the same messages, and closes with `code` if there is one."""

    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            await peer.receive()
            for message in messages:
                await peer.send(message)
            if code is not None:
                await peer.close(code)
                return

    return script


async def everything(protocol: WebSocketCommunicationProtocol, call_template: Any) -> list[Any]:
    return [item async for item in protocol.call_tool_streaming(None, "manual.t", {}, call_template)]


async def test_messages_that_do_not_match_are_never_returned() -> None:
    script = saying({"type": "noise"}, {"type": "price", "p": 1}, {"type": "noise"}, {"type": "price", "p": 2})
    async with entered() as protocol, peer(script) as url:
        # The script says more than the first call asks for, which would be there for the second one.
        prices = {
            "message": "go",
            "message_filter": {"type": "price"},
            "result": {"path": "p"},
            "close_after_response": True,
        }
        assert await protocol.call_tool(None, "manual.t", {}, template(url, **prices)) == 1
        assert await protocol.call_tool(None, "manual.t", {}, template(url, **prices, expected_responses=2)) == [1, 2]


async def test_an_error_filter_comes_first_and_gives_the_message() -> None:
    async with entered() as protocol, peer(saying({"id": 1, "error": {"code": -1}})) as url:
        rpc = template(url, message="go", message_filter={"id": 1}, error_filter={"error": {"$any": True}})
        for call in (protocol.call_tool(None, "manual.t", {}, rpc), everything(protocol, rpc)):
            with pytest.raises(WebSocketToolError) as caught:
                await call
            assert caught.value.response == {"id": 1, "error": {"code": -1}}
        # An answered failure leaves the connection good.
        await until_idle(protocol, 1)


async def test_an_end_message_ends_a_stream_is_not_a_response_and_keeps_the_connection() -> None:
    async with entered() as protocol, peer(saying("1", "2", "done")) as url:
        lines = {"message": "go", "end_filter": "^done$"}
        for _ in range(2):
            assert await everything(protocol, template(url, **lines)) == ["1", "2"]
            await until_idle(protocol, 1)
        assert await protocol.call_tool(None, "manual.t", {}, template(url, **lines, expected_responses=-1)) == [
            "1",
            "2",
        ]


async def test_an_end_before_the_last_expected_response_fails_at_once() -> None:
    async with entered() as protocol, peer(saying("1", "done")) as url:
        two = template(url, message="go", end_filter="^done$", expected_responses=2)
        for call in (protocol.call_tool(None, "manual.t", {}, two), everything(protocol, two)):
            with pytest.raises(WebSocketProtocolError, match="after 1 of 2 responses"):
                await call


async def test_a_stream_with_a_fixed_count_ends_after_it() -> None:
    async with entered() as protocol, peer(saying(*map(str, range(5)))) as url:
        assert await everything(protocol, template(url, message="go", expected_responses=3)) == ["0", "1", "2"]
        assert await everything(protocol, template(url, message="go", expected_responses=0)) == []


async def test_a_close_before_the_last_expected_response_is_an_error_whatever_its_code() -> None:
    async with entered() as protocol, peer(saying("1", code=1000)) as url:
        for fields in ({"expected_responses": 2}, {"expected_responses": 2, "end_on_close": "any"}):
            with pytest.raises(WebSocketClosedError) as caught:
                await protocol.call_tool(None, "manual.t", {}, template(url, message="go", **fields))
            assert caught.value.code == 1000


@pytest.mark.parametrize("loss", ["close 1011", "reset"])
async def test_end_on_close_any_takes_every_close_for_the_end(loss: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("1")
        # So that the message is not lost with the connection.
        await peer.receive()
        await (peer.reset() if loss == "reset" else peer.close(1011))

    async with entered() as protocol, peer(script) as url:
        for end_on_close in ("any", "normal"):
            call_template = template(url, message="go", end_on_close=end_on_close, before=[{"send": "a"}])
            received = []
            ended = None
            try:
                async for item in protocol.call_tool_streaming(None, "manual.t", {}, call_template):
                    received.append(item)
            except WebSocketClosedError as error:
                ended = error.code
            assert received == ["1"]
            assert ended == (None if end_on_close == "any" else 1011 if loss == "close 1011" else 1006)


@on_a_jumping_clock
async def test_silence_ends_an_open_ended_exchange_well_and_closes_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for n in range(4):
            await peer.send(f"{n}")
            await anyio.sleep(4 if n < 2 else 6)

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        began = anyio.current_time()
        quiet = template(url, listen_only=True, idle_timeout=5)
        assert await everything(protocol, quiet) == ["0", "1", "2"]
        assert anyio.current_time() - began == pytest.approx(13, abs=0.1)
        assert await protocol.call_tool(
            None, "manual.t", {}, template(url, listen_only=True, idle_timeout=5, expected_responses=-1)
        ) == ["0", "1", "2"]
        await until_idle(protocol, 0, every=1)


@on_a_jumping_clock
async def test_messages_that_are_skipped_do_not_break_the_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("value")
        for _ in range(10):
            await anyio.sleep(1)
            await peer.send("noise")

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        began = anyio.current_time()
        values = template(url, listen_only=True, idle_timeout=5, message_filter="^value$")
        assert await everything(protocol, values) == ["value"]
        assert anyio.current_time() - began == pytest.approx(5, abs=0.1)


@on_a_jumping_clock
async def test_a_subscription_lasts_as_long_as_its_argument_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        n = 0
        while True:
            await peer.send(f"{n}")
            n += 1
            await anyio.sleep(10)

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        began = anyio.current_time()
        subscription = template(
            url, listen_only=True, expected_responses=-1, response_timeout="{{args.duration}}", pong_timeout=1000
        )
        ticks = await protocol.call_tool(None, "manual.t", {"duration": 45}, subscription)
        assert ticks == ["0", "1", "2", "3", "4"]
        assert anyio.current_time() - began == pytest.approx(45, abs=0.1)
        for duration in (0, -1, "soon", True, float("nan")):
            with pytest.raises(ValueError, match="response_timeout"):
                await protocol.call_tool(None, "manual.t", {"duration": duration}, subscription)


@on_a_jumping_clock
async def test_without_the_declaration_a_deadline_is_an_error_also_in_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("1")

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        began = anyio.current_time()
        pushed = template(url, listen_only=True, response_timeout=20)
        stream = protocol.call_tool_streaming(None, "manual.t", {}, pushed)
        assert await stream.__anext__() == "1"
        with pytest.raises(WebSocketTimeoutError) as caught:
            await stream.__anext__()
        assert caught.value.phase == "response"
        assert anyio.current_time() - began == pytest.approx(20, abs=0.1)


@on_a_jumping_clock
async def test_the_deadline_holds_although_messages_come_faster_than_they_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matches = Filter.matches

    def takes_a_second(self: Filter, *arguments: Any) -> bool:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(1)
        return matches(self, *arguments)

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send_raw(frame(TEXT, b"noise") * 100 + frame(TEXT, b"value"))

    monkeypatch.setattr(Filter, "matches", takes_a_second)
    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        value = template(url, message="go", message_filter="^value$", response_timeout=10)
        began = anyio.current_time()
        with pytest.raises(WebSocketTimeoutError):
            await protocol.call_tool(None, "manual.t", {}, value)
        assert anyio.current_time() - began < 15


@on_a_jumping_clock
async def test_an_answer_to_a_request_that_is_not_read_to_its_end_is_given_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive_exactly(1000)
        await peer.send("too long")
        await anyio.sleep_forever()

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        # Without pings, which would find out that the server does not read.
        long = {"message": "x" * 2**22, "response_timeout": 10, "ping_interval": None}
        began = anyio.current_time()
        assert await protocol.call_tool(None, "manual.t", {}, template(url, **long)) == "too long"
        with pytest.raises(WebSocketProtocolError, match="JSON"):
            await protocol.call_tool(None, "manual.t", {}, template(url, **long, response_format="json"))
        assert await everything(protocol, template(url, **long, expected_responses=1)) == ["too long"]
        with pytest.raises(WebSocketToolError, match="too long"):
            await everything(protocol, template(url, **long, error_filter="^too"))
        assert anyio.current_time() - began == pytest.approx(40, abs=1)
        # Nor is such a connection used again.
        await until_idle(protocol, 0, every=1)


async def test_the_time_in_a_filter_is_that_of_the_request() -> None:
    async with entered() as protocol, echo_server() as url:
        for number in ("{{uuid}}", "{{call_id}}"):
            dated = {"id": number, "time": "{{now|unix_ns}}"}
            for steps in ({}, {"before": [{"send": "hello", "expect": "^hello$"}]}):
                call_template = template(url, message=dated, message_filter=dated, response_format="json", **steps)
                assert (await protocol.call_tool(None, "manual.t", {}, call_template)).keys() == dated.keys()


async def test_formats_give_text_bytes_or_json() -> None:
    async with entered() as protocol, echo_server() as url:

        async def say(message: Any, **fields: Any) -> Any:
            return await protocol.call_tool(None, "manual.t", {}, template(url, message=message, **fields))

        binary = {"type": "binary", "data": "7b7d", "encoding": "hex"}
        assert await say("{}") == "{}"
        assert await say(binary) == b"{}"
        assert await say(binary, response_format="raw") == b"{}"
        assert await say(binary, response_format="text") == "{}"
        assert await say(binary, response_format="json") == {}
        assert await say("[1, null]", response_format="json") == [1, None]
        assert await say('{"a": [{"b": null}]}', result={"path": "a.0.b"}) is None
        assert await say('{"a": "1"}', result={"path": "a"}, response_format="text") == "1"
        assert await say("42[1, 2]", result={"after": "42", "path": "1"}) == 2
        assert await say("price=17 EUR", result={"regex": r"price=(\d+)"}) == "17"
        assert await say('430[{"a": 1}]', result={"regex": r"430(.*)"}, response_format="json") == [{"a": 1}]
        for unreadable in ({"response_format": "json"}, {"result": {"path": "a.b"}}, {"result": {"regex": "(z)"}}):
            with pytest.raises(WebSocketProtocolError):
                await say("x", **unreadable)


async def test_raw_leaves_an_envelope_as_it_is() -> None:
    envelope = '{"type": "tool_error", "request_id": null}'
    async with entered() as protocol, echo_server() as url:
        raw = template(url, message=envelope, response_format="raw")
        assert await protocol.call_tool(None, "manual.t", {}, raw) == envelope


async def test_a_pattern_that_takes_too_long_fails_the_call_and_does_not_block() -> None:
    async with entered() as protocol, echo_server() as url:
        slow = template(url, message="a" * 40 + "!", message_filter=r"^(?:a|a|aa)+$")
        with pytest.raises(WebSocketProtocolError, match="100 ms"):
            await protocol.call_tool(None, "manual.t", {}, slow)
