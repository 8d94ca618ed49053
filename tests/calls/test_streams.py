"""Streams through the protocol object."""

from __future__ import annotations

import gc
from contextlib import aclosing

import anyio
import pytest
from support.backends import virtual_time
from support.peers import BINARY, CLOSE, PING, PONG, TEXT, Peer, frame, peer, peer_in_memory
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketProtocolError,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio


async def count(peer: Peer) -> None:
    await peer.handshake()

    async def send() -> None:
        n = 0
        while True:
            await peer.send(f"{n}")
            n += 1

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(send)
        payload = await peer.receive_close()
        task_group.cancel_scope.cancel()
    await peer.send_frame(CLOSE, payload)


async def test_a_stream_ends_with_a_normal_close_and_fails_with_another() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        code = int(await peer.receive())
        await peer.send("1")
        await peer.send("2")
        await peer.close(code)

    async with entered() as protocol, peer(script) as url:
        for code in (1000, 1001):
            stream = protocol.call_tool_streaming(None, "manual.t", {}, template(url, message=str(code)))
            assert [item async for item in stream] == ["1", "2"]
        received: list[str] = []
        with pytest.raises(WebSocketClosedError) as caught:
            async for item in protocol.call_tool_streaming(None, "manual.t", {}, template(url, message="1011")):
                received.append(item)
        assert received == ["1", "2"]
        assert caught.value.code == 1011
        everything = template(url, message="1011", end_on_close="any")
        assert [i async for i in protocol.call_tool_streaming(None, "manual.t", {}, everything)] == ["1", "2"]
        await until_idle(protocol, 0)


async def test_a_stream_of_envelopes_gives_results_until_its_end_and_the_connection_is_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            for result in (1, None, {"a": [2]}):
                await peer.send({"type": "tool_response", "request_id": request["id"], "result": result})
            await peer.send({"type": "tool_response", "result": "without an id"})
            await peer.send({"type": "stream_end", "request_id": request["id"]})

    async with entered() as protocol, peer(script) as url:
        for _ in range(2):
            stream = protocol.call_tool_streaming(None, "manual.t", {}, template(url, message={"id": "{{uuid}}"}))
            assert [item async for item in stream] == [1, None, {"a": [2]}, "without an id"]
            await until_idle(protocol, 1)


@pytest.mark.parametrize("binary", [None, 800], ids=["text", "one-is-binary"])
async def test_an_envelope_is_found_among_many_short_messages_of_one_read(binary: int | None) -> None:
    sent: list[str | bytes] = [f'{{"price":{n}}}' for n in range(1000)]
    expected: list[object] = list(sent)
    sent[700], expected[700] = '{"type":"tool_response","result":"seven hundred"}', "seven hundred"
    if binary is not None:
        sent[binary] = expected[binary] = b"\x00"

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("first")
        # The second is there for whoever has taken the first, and everything else behind it.
        data = [message.encode() if isinstance(message, str) else message for message in sent]
        kinds = [TEXT if isinstance(message, str) else BINARY for message in sent]
        await peer.send_raw(b"".join(frame(kind, payload) for kind, payload in zip(kinds, data, strict=True)))
        await peer.close()

    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "manual.t", {}, template(url, message="go"))
        assert [item async for item in stream] == ["first", *expected]


async def test_what_sends_nothing_and_keeps_no_connection_opens_one_unless_it_ends_a_session() -> None:
    opened = 0

    async def script(peer: Peer) -> None:
        nonlocal opened
        opened += 1
        await peer.handshake()
        await peer.send("one")
        await peer.send("end")

    async with entered() as protocol, peer(script) as url:
        listen = template(url, listen_only=True, keep_alive=False, end_filter="^end$")
        assert (
            await protocol.call_tool(None, "manual.t", {}, template(url, listen_only=True, keep_alive=False)) == "one"
        )
        assert [item async for item in protocol.call_tool_streaming(None, "manual.t", {}, listen)] == ["one"]
        assert opened == 2
        nothing = template(url, listen_only=True, keep_alive=False, expected_responses=0, session="s")
        assert await protocol.call_tool(None, "manual.t", {}, nothing) is None
        assert opened == 2


async def test_a_server_that_does_not_know_a_session_any_more_has_the_stream_begin_anew() -> None:
    logins: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        logins.append(str(await peer.receive()))
        if logins[-1] == "resume s1":
            await peer.send("unknown session")
            await peer.until_gone()
            return
        await peer.send(f"s{len(logins)}")
        await peer.send(f"item {len(logins)}")
        if len(logins) == 1:
            await peer.close(1012)
        else:
            await peer.send("end")

    fields = {
        "on_connect": [{"send": "login", "expect": "^s", "capture": {"id": {"regex": "(s.)"}}}],
        "on_message": [{"match": "^unknown", "resume": {}}],
        "resume": {"on_connect": [{"send": "resume {{captured.id}}", "expect": "^s"}]},
    }
    async with entered() as protocol, peer(script) as url:
        listen = template(url, listen_only=True, message_filter="^item", end_filter="^end", **fields)
        with anyio.fail_after(60):
            stream = protocol.call_tool_streaming(None, "manual.t", {}, listen)
            assert [item async for item in stream] == ["item 1", "item 3"]
    assert logins == ["login", "resume s1", "login"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_what_came_before_a_loss_is_not_lost_by_a_stream_that_resumes(shared: bool, ending: str) -> None:
    asked: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        asked.append(await peer.receive_text())
        first = int(asked[-1])
        for n in range(first, first + 5):
            await peer.send({"n": n})
        if first:
            await peer.send("end")
            return
        await anyio.sleep(0.1)  # a reset takes what the other side has not read
        await (peer.close(1012) if ending == "close" else peer.reset())

    fields = {
        "multiplex": shared,
        "on_connect": [{"compute": {"next": 0}}],
        "on_message": [{"match": {"n": {"$any": True}}, "capture": {"next": {"select": "sum([n, `1`])"}}}],
        "before": [{"send": "{{captured.next|text}}"}],
        "resume": {"on_connect": []},
    }
    async with entered() as protocol, peer(script) as url:
        listen = template(
            url,
            listen_only=True,
            message_filter={"n": {"$any": True}},
            end_filter="^end",
            result={"path": "n"},
            **fields,
        )
        with anyio.fail_after(60):
            items = []
            async for item in protocol.call_tool_streaming(None, "manual.t", {}, listen):
                items.append(item)
                if item == 0:
                    while len(asked) < 2:  # the consumer is slow, and the stream has moved on already
                        await anyio.sleep(0.01)
    assert items == list(range(10))


async def test_joined_text_is_decoded_as_a_whole_even_where_a_result_is_taken_of_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        snow = "snow ☃".encode()
        for part in (snow[:-1], snow[-1:]):
            await peer.send(b"\x01" + part)
        await peer.send("end")
        await peer.receive()
        await peer.send(b"\x01\xff")
        await peer.send("end")

    async with entered() as protocol, peer(script) as url:
        joined = template(
            url,
            expected_responses=-1,
            end_filter="^end",
            collect="join",
            response_format="text",
            result={"slice": [1, None]},
        )
        assert await protocol.call_tool(None, "manual.t", {}, joined) == "snow ☃"
        with pytest.raises(WebSocketProtocolError, match="not text"):
            await protocol.call_tool(None, "manual.t", {}, joined)


@pytest.mark.parametrize("how", ["break", "aclose", "garbage", "exception", "cancellation"])
async def test_an_abandoned_stream_gives_its_connection_up_at_once(how: str) -> None:
    async with entered() as protocol, peer(count) as url:
        listen = template(url, listen_only=True)
        if how == "break":
            async for _item in protocol.call_tool_streaming(None, "manual.t", {}, listen):
                break
        elif how == "aclose":
            async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, listen)) as stream:
                await stream.__anext__()
        elif how == "garbage":
            stream = protocol.call_tool_streaming(None, "manual.t", {}, listen)
            await stream.__anext__()
            del stream
            gc.collect()
        elif how == "exception":
            with pytest.raises(KeyError):
                async for _item in protocol.call_tool_streaming(None, "manual.t", {}, listen):
                    raise KeyError
        else:
            async with anyio.create_task_group() as task_group:
                started = anyio.Event()

                async def consume() -> None:
                    async for _item in protocol.call_tool_streaming(None, "manual.t", {}, listen):
                        started.set()
                        await anyio.lowlevel.checkpoint()

                task_group.start_soon(consume)
                await started.wait()
                task_group.cancel_scope.cancel()
        gc.collect()
        await until_idle(protocol, 0)


async def test_a_slow_consumer_holds_the_sender_back_and_loses_nothing() -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.handshake()
        while sent < 3_000:
            await peer.send(f"{sent} " + "x" * 20_000)
            sent += 1
        await peer.close()

    async with entered() as protocol, peer(script) as url:
        listen = template(url, listen_only=True, timeout=60)
        received = 0
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, listen)) as stream:
            async for item in stream:
                assert item.startswith(f"{received} ")
                received += 1
                if received == 10:
                    before = -1
                    while before != sent:
                        before = sent
                        await anyio.sleep(0.2)
                    assert sent < 1_500
        assert received == 3_000


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_no_pong_is_expected_while_messages_wait_for_a_slow_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for number in range(1_000):
            await peer.send(f"{number} " + "x" * 20_000)
        await peer.send("the end")
        while True:
            opcode, payload = await peer.receive_frame()
            await peer.send_frame({PING: PONG}.get(opcode, opcode), payload)
            if opcode == CLOSE:
                break

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        beating = template(
            url, listen_only=True, end_filter="^the end$", ping_interval=30, pong_timeout=10, timeout=1000
        )
        received = 0
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, beating)) as stream:
            async for _ in stream:
                received += 1
                if received == 10:
                    await anyio.sleep(300)
        assert received == 1_000
        await anyio.sleep(100)
        assert protocol.statistics().idle == 1


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_no_answer_to_a_heartbeat_is_expected_while_messages_wait_for_a_slow_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for number in range(100):
            await peer.send(str(number))
        await peer.send("the end")
        while await peer.receive() == "beat":
            await peer.send("beaten")

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        beat = {"send": "beat", "expect": "^beaten$", "every": 30, "timeout": 10}
        beating = template(url, listen_only=True, end_filter="^the end$", heartbeat=beat, timeout=1000)
        received = 0
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, beating)) as stream:
            async for _ in stream:
                received += 1
                if received == 10:
                    await anyio.sleep(300)
        assert received == 100
        await anyio.sleep(100)
        assert protocol.statistics().idle == 1


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_a_subscription_ends_well_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("1")
        await peer.send("2")

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        some_time = template(url, listen_only=True, expected_responses=-1, response_timeout=10)
        assert await protocol.call_tool(None, "manual.t", {}, some_time) == ["1", "2"]
        stream = protocol.call_tool_streaming(None, "manual.t", {}, some_time)
        assert [item async for item in stream] == ["1", "2"]
        with pytest.raises(WebSocketTimeoutError):
            async for _item in protocol.call_tool_streaming(
                None, "manual.t", {}, template(url, listen_only=True, response_timeout=10)
            ):
                pass
        silence = template(url, listen_only=True, idle_timeout=10)
        assert [item async for item in protocol.call_tool_streaming(None, "manual.t", {}, silence)] == ["1", "2"]
        await until_idle(protocol, 0)
