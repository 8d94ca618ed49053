"""Calls and streams through the protocol object, against servers that follow a script."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest
from conftest import virtual_time
from peers import CLOSE, PING, PONG, TEXT, Peer, echo_server, frame, peer, peer_in_memory

from utcp_websocket_anyio import (
    MissingArgumentError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)
from utcp_websocket_anyio.pool import Pool

pytestmark = pytest.mark.anyio


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, **fields)


def pool_of(protocol: WebSocketCommunicationProtocol) -> Pool:
    assert protocol._pool is not None
    return protocol._pool


async def until_idle(protocol: WebSocketCommunicationProtocol, connections: int, *, every: float = 0.001) -> None:
    """Wait until no call runs and that many connections are left."""
    shown = f"<Pool [Connections: {connections} open, {connections} idle | Calls: 0 waiting]>"
    while repr(pool_of(protocol)) != shown:
        await anyio.sleep(every)


@asynccontextmanager
async def entered() -> AsyncIterator[WebSocketCommunicationProtocol]:
    with anyio.fail_after(20):
        async with WebSocketCommunicationProtocol() as protocol:
            yield protocol


async def answer_everything(peer: Peer) -> None:
    """Answers ``{"n": …}`` with ``{"n": …}``, and everything else with itself."""
    await peer.handshake()
    while True:
        await peer.send(await peer.receive())


# Calls


async def test_fifty_calls_at_once_get_fifty_right_answers() -> None:
    async with entered() as protocol, echo_server() as url:
        answers: dict[int, Any] = {}

        async def call(n: int) -> None:
            answers[n] = await protocol.call_tool(None, "manual.echo", {"n": n}, template(url, response_format="json"))

        async with anyio.create_task_group() as task_group:
            for n in range(50):
                task_group.start_soon(call, n)
        assert answers == {n: {"n": n} for n in range(50)}
        await until_idle(protocol, 10)


async def test_after_a_timeout_the_next_call_gets_its_own_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        first = await peer.receive_text()
        if first == "slow":
            await peer.receive_frame()
            await peer.send("the late answer")
        await peer.send(f"answer to {first}")

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="slow", response_timeout=0.05))
        assert caught.value.phase == "response"
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="quick")) == "answer to quick"


async def test_a_cancelled_call_never_gives_its_answer_to_the_next_one() -> None:
    received = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        question = await peer.receive_text()
        received.set()
        if question != "cancelled":
            await peer.send(f"answer to {question}")

    async with entered() as protocol, peer(script) as url:
        one = {"max_connections": 1}
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(protocol.call_tool, None, "manual.t", {}, template(url, message="cancelled", **one))
            await received.wait()
            task_group.cancel_scope.cancel()
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="next", **one)) == "answer to next"


async def test_what_arrives_while_a_connection_is_idle_is_discarded() -> None:
    pushed = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(f"answer to {await peer.receive_text()}")
        await peer.send("unasked for")
        await peer.send("and again")
        pushed.set()
        await peer.send(f"answer to {await peer.receive_text()}")

    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="a")) == "answer to a"
        await pushed.wait()
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="b")) == "answer to b"
        await until_idle(protocol, 1)


async def test_an_unawaited_answer_never_reaches_another_call() -> None:
    async with entered() as protocol, echo_server() as url:
        for n in range(5):
            tell = template(url, message=f"tell {n}", expected_responses=0)
            assert await protocol.call_tool(None, "manual.tell", {}, tell) is None
            assert await protocol.call_tool(None, "manual.ask", {}, template(url, message=f"ask {n}")) == f"ask {n}"


async def test_the_next_call_works_after_the_server_was_restarted() -> None:
    async with entered() as protocol:
        async with peer(answer_everything) as url:
            assert await protocol.call_tool(None, "manual.t", {}, template(url, message="before")) == "before"
        port = int(url.rsplit(":", 1)[1].strip("/"))
        async with peer(answer_everything, port=port):
            assert await protocol.call_tool(None, "manual.t", {}, template(url, message="after")) == "after"


async def test_a_server_that_dies_mid_call_is_told_at_once_and_the_request_not_sent_again() -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        await peer.handshake()
        await peer.receive()
        requests += 1
        await peer.reset()

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketClosedError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        assert caught.value.code == 1006
        await until_idle(protocol, 0)
    assert requests == 1


async def test_cancelled_at_every_stage_nothing_is_left() -> None:
    connected, asked, shaken, held = (anyio.Event() for _ in range(4))

    async def silent(peer: Peer) -> None:
        await peer.read_request()
        connected.set()
        await peer.until_gone()

    async def deaf(peer: Peer) -> None:
        await peer.handshake()
        shaken.set()
        await anyio.sleep_forever()

    async def mute(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()

    async with entered() as protocol, peer(silent) as silent_url, peer(deaf) as deaf_url, peer(mute) as mute_url:

        async def cancelled(call_template: WebSocketCallTemplate, when: anyio.Event, **arguments: Any) -> None:
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(protocol.call_tool, None, "manual.t", arguments, call_template)
                await when.wait()
                await anyio.wait_all_tasks_blocked()
                task_group.cancel_scope.cancel()

        await cancelled(template(silent_url), connected)
        await cancelled(template(deaf_url, message="{{args.x}}"), shaken, x="x" * 50_000_000)
        await cancelled(template(mute_url), asked)

        async def hold() -> None:
            await protocol.call_tool(None, "manual.t", {}, template(mute_url, max_connections=1))

        asked = anyio.Event()
        held.set()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(hold)
            await asked.wait()
            await cancelled(template(mute_url, max_connections=1), held)
            task_group.cancel_scope.cancel()
        await until_idle(protocol, 0)


async def test_waiting_for_a_connection_is_bounded_by_timeout() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()

    async with entered() as protocol, peer(script) as url, anyio.create_task_group() as task_group:
        first = template(url, max_connections=1)
        task_group.start_soon(protocol.call_tool, None, "manual.t", {}, first)
        await asked.wait()
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, max_connections=1, timeout=0.02))
        assert caught.value.phase == "pool"
        task_group.cancel_scope.cancel()


async def test_a_silent_handshake_times_out_in_phase_connect() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_gone()

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, connection_timeout=0.05))
        assert caught.value.phase == "connect"
        assert str(caught.value).endswith(f"({url})")


async def test_a_missing_argument_is_named_and_nothing_is_contacted() -> None:
    contacted = False

    async def script(peer: Peer) -> None:
        nonlocal contacted
        contacted = True

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(MissingArgumentError) as caught:
            await protocol.call_tool(
                None, "manual.t", {"b": 1}, template(url, message={"a": "UTCP_ARG_a_UTCP_ARG", "b": "{{args.c}}"})
            )
        assert caught.value.names == ("a", "c")
    assert not contacted


async def test_a_tool_error_carries_the_response_and_no_body_in_its_text() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.send({"type": "tool_error", "request_id": request["id"], "error": "the secret reason"})

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, message={"id": "{{uuid}}"}))
        assert caught.value.response["error"] == "the secret reason"
        assert "secret" not in str(caught.value)


async def test_another_calls_envelope_is_skipped_and_one_without_id_is_an_ordinary_response() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.send({"type": "tool_response", "request_id": "another", "result": 1})
        await peer.send({"type": "tool_response", "request_id": request["id"], "result": 2})
        await peer.receive()
        await peer.send({"type": "tool_response", "result": 3})

    async with entered() as protocol, peer(script) as url:
        call_template = template(url, message={"id": "{{uuid}}"})
        assert await protocol.call_tool(None, "manual.t", {}, call_template) == 2
        answer = await protocol.call_tool(None, "manual.t", {}, call_template)
        assert json.loads(answer) == {"type": "tool_response", "result": 3}


async def test_several_responses_are_a_list() -> None:
    async with entered() as protocol, echo_server(respond=lambda _: ["1", "2", "3"]) as url:
        three = template(url, message="go", response_format="json", expected_responses=3)
        assert await protocol.call_tool(None, "manual.t", {}, three) == [1, 2, 3]


async def test_what_cannot_be_decoded_is_a_protocol_error_with_its_beginning() -> None:
    async with entered() as protocol, echo_server(respond=lambda _: ["no json " + "x" * 200]) as url:
        with pytest.raises(WebSocketProtocolError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="go", response_format="json"))
        assert "no json xxx" in str(caught.value)
        assert "x" * 100 not in str(caught.value)


# Connections


async def test_close_after_response_and_keep_alive_decide_about_the_connection() -> None:
    async with entered() as protocol, echo_server() as url:
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        await until_idle(protocol, 1)
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x", close_after_response=True))
        await until_idle(protocol, 0)
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x", keep_alive=False))
        await until_idle(protocol, 0)


async def test_an_idle_connection_answers_pings_and_notices_its_end() -> None:
    ponged = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.send_frame(PING, b"still there")
        assert await peer.receive_frame() == (PONG, b"still there")
        ponged.set()
        await peer.close(1001)

    async with entered() as protocol, peer(script) as url:
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        await ponged.wait()
        await until_idle(protocol, 0)


async def test_deregistering_closes_the_manuals_connections_and_fails_its_calls() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        failures: list[BaseException] = []

        async def call() -> None:
            try:
                await protocol.call_tool(None, "manual.t", {}, template(url))
            except WebSocketClosedError as error:
                failures.append(error)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(call)
            await asked.wait()
            await protocol.deregister_manual(None, template(url))
        assert len(failures) == 1
        await until_idle(protocol, 0)
        await protocol.deregister_manual(None, template(url))


async def test_leaving_the_block_fails_the_calls_that_still_run() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()
        await peer.until_closed()

    failures: list[BaseException] = []
    with anyio.fail_after(20):
        async with (
            peer(script) as url,
            anyio.create_task_group() as task_group,
            WebSocketCommunicationProtocol() as protocol,
        ):

            async def call() -> None:
                try:
                    await protocol.call_tool(None, "manual.t", {}, template(url))
                except WebSocketClosedError as error:
                    failures.append(error)

            task_group.start_soon(call)
            await asked.wait()
    assert len(failures) == 1
    with anyio.fail_after(5), pytest.raises(RuntimeError, match="closed"):
        await protocol.call_tool(None, "manual.t", {}, template(url))


async def test_an_exception_in_the_block_comes_out_as_it_is() -> None:
    with anyio.fail_after(10), pytest.raises(KeyError):
        async with echo_server() as url:
            try:
                async with WebSocketCommunicationProtocol() as protocol:
                    await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
                    raise KeyError("mine")
            except KeyError as error:
                failure = error
        raise failure


async def test_it_is_entered_once() -> None:
    async with entered() as protocol:
        with pytest.raises(RuntimeError, match="already been entered"):
            async with protocol:
                pass  # pragma: no cover


# Streams


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


async def test_a_subscription_ends_well_when_its_time_is_over() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("1")
        await peer.send("2")

    async with entered() as protocol, peer(script) as url:
        some_time = template(url, listen_only=True, expected_responses=-1, response_timeout=0.1)
        assert await protocol.call_tool(None, "manual.t", {}, some_time) == ["1", "2"]
        stream = protocol.call_tool_streaming(None, "manual.t", {}, some_time)
        assert [item async for item in stream] == ["1", "2"]
        with pytest.raises(WebSocketTimeoutError):
            async for _item in protocol.call_tool_streaming(
                None, "manual.t", {}, template(url, listen_only=True, response_timeout=0.1)
            ):
                pass
        silence = template(url, listen_only=True, idle_timeout=0.1)
        assert [item async for item in protocol.call_tool_streaming(None, "manual.t", {}, silence)] == ["1", "2"]
        await until_idle(protocol, 0)


# Time, on a clock that jumps


on_a_jumping_clock = pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])


@on_a_jumping_clock
async def test_a_peer_that_stops_answering_pings_is_noticed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        for _ in range(3):
            opcode, payload = await peer.receive_frame()
            assert opcode == PING
            await peer.send_frame(PONG, payload)
        await peer.until_gone()

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        call_template = template(url, message="x", ping_interval=20, pong_timeout=5)
        await protocol.call_tool(None, "manual.t", {}, call_template)
        began = anyio.current_time()
        await until_idle(protocol, 0, every=1)
        assert 60 <= anyio.current_time() - began <= 4 * 20 + 5 + 1


# Secrets


async def test_no_log_record_and_no_error_text_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("hunter2-in-a-message")
        await peer.send_raw(frame(TEXT, b"hunter2-\xff"))

    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    async with entered() as protocol, peer(script) as url:
        secret = template(
            url + "path?token=hunter2-in-query",
            headers={"X-Key": "hunter2-in-header"},
            auth={"auth_type": "basic", "username": "hunter2", "password": "hunter2"},
            message="hunter2-in-request",
        )
        for call_template in (secret, secret.model_copy(update={"url": "ws://127.0.0.1:1/?token=hunter2"})):
            try:
                await protocol.call_tool(None, "manual.t", {}, call_template)
                await protocol.call_tool(None, "manual.t", {}, call_template)
            except (WebSocketProtocolError, WebSocketConnectionError, WebSocketClosedError) as error:
                chain: BaseException | None = error
                while chain is not None:
                    texts += [str(chain), repr(chain)]
                    chain = chain.__cause__ or chain.__context__
    assert texts
    assert caplog.records
    for text in [*texts, caplog.text, *(str(record.__dict__) for record in caplog.records)]:
        assert "hunter2" not in text
