"""Calls through the protocol object: their answers, their failures, their cancellation."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from support.peers import Peer, echo_server, peer
from support.protocol import answer_everything, entered, template, until_idle

from utcp_websocket_anyio import (
    MissingArgumentError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_exchanges")]


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


async def test_the_death_of_a_server_fails_the_call_at_once_and_the_request_is_not_sent_again() -> None:
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


async def test_a_tool_error_says_what_the_tool_said() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.send({"type": "tool_error", "request_id": request["id"], "error": "the\x1b[2J reason"})

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketToolError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, message={"id": "{{uuid}}"}))
        assert caught.value.response["error"] == "the\x1b[2J reason"
        assert str(caught.value).startswith("the\\x1b[2J reason (ws://")


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
