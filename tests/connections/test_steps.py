"""Conversations around requests: login, what goes before a request, automatic replies, farewell."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.peers import Peer, peer
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketConnectionError,
    WebSocketTimeoutError,
    WebSocketToolError,
)

pytestmark = pytest.mark.anyio

LOGIN: dict[str, Any] = {
    "on_connect": [
        {"expect": {"type": "auth_required"}},
        {
            "send": {"type": "auth", "nonce": "{{uuid}}", "n": "{{call_id}}"},
            "expect": {"type": "auth_ok"},
            "reject": {"type": "auth_invalid"},
            "capture": {"session": {"path": "data.id"}},
        },
        {"send": {"type": "hello", "session": "{{captured.session}}", "nonce": "{{uuid}}"}},
    ]
}


async def log_in(peer: Peer, session: Any = 7) -> dict[str, Any]:
    await peer.handshake()
    await peer.send({"type": "welcome"})
    await peer.send({"type": "auth_required"})
    auth: dict[str, Any] = await peer.receive_json()
    await peer.send({"type": "news"})
    await peer.send({"type": "auth_ok", "data": {"id": session}})
    hello = await peer.receive_json()
    assert hello == {"type": "hello", "session": session, "nonce": auth["nonce"]}
    return auth


async def test_a_login_comes_before_the_first_request_and_what_it_captured_is_used_by_every_call() -> None:
    logins = 0

    async def script(peer: Peer) -> None:
        nonlocal logins
        auth = await log_in(peer)
        logins += 1
        last = auth["n"]
        while True:
            request = await peer.receive_json()
            assert request["n"] > last
            last = request["n"]
            await peer.send({"session": request["session"]})

    async with entered() as protocol, peer(script) as url:
        call_template = template(
            url, **LOGIN, message={"session": "{{captured.session}}", "n": "{{call_id}}"}, result={"path": "session"}
        )
        for _ in range(3):
            assert await protocol.call_tool(None, "manual.t", {}, call_template) == 7
    assert logins == 1


async def test_a_rejected_login_is_an_auth_error_and_leaves_no_connection() -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"type": "auth_required"})
        await peer.receive()
        await peer.send({"type": "auth_invalid", "code": 7, "message": "wrong\npassword"})
        await peer.until_gone()
        gone.set()

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketAuthError, match="rejected step 2 of on_connect: 7: wrong") as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, **LOGIN))
        assert caught.value.response["type"] == "auth_invalid"
        assert "\n" not in str(caught.value)
        await gone.wait()


async def test_a_login_runs_inside_connection_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.until_gone()

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, **LOGIN, connection_timeout=0.1))
        assert caught.value.phase == "connect"


async def test_a_login_fails_if_a_value_to_capture_is_missing() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"type": "auth_required"})
        await peer.receive()
        await peer.send({"type": "auth_ok"})

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketConnectionError, match=r"step 2 of on_connect failed: .*data\.id"):
            await protocol.call_tool(None, "manual.t", {}, template(url, **LOGIN))


async def test_before_goes_ahead_of_each_request_with_its_arguments() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            use = await peer.receive_json()
            await peer.send({"noise": True})
            await peer.send({"using": use["use"]} if use["use"] != "bad" else {"refused": use["use"]})
            request = await peer.receive()
            await peer.send(request)

    steps = [
        {"send": {"use": "{{args.db}}"}, "expect": {"using": "{{args.db}}"}, "reject": {"refused": {"$any": True}}}
    ]
    async with entered() as protocol, peer(script) as url:
        call_template = template(url, before=steps, message="SELECT {{args.db}}")
        for db in ("one", "two"):
            assert await protocol.call_tool(None, "manual.t", {"db": db}, call_template) == f"SELECT {db}"
        with pytest.raises(WebSocketToolError, match=r"step 1 of before: .*bad") as caught:
            await protocol.call_tool(None, "manual.t", {"db": "bad"}, call_template)
        assert caught.value.response == {"refused": "bad"}
        await until_idle(protocol, 0)


async def test_before_runs_inside_response_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()

    async with entered() as protocol, peer(script) as url:
        call_template = template(url, before=[{"send": "a", "expect": "b"}], message="x", response_timeout=0.05)
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "manual.t", {}, call_template)
        assert caught.value.phase == "response"


async def test_with_listen_only_before_subscribes_and_what_is_pushed_is_the_response() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        assert await peer.receive() == "SUB news"
        await peer.send("+OK")
        await peer.send("first")
        await peer.send("second")
        await peer.close()

    async with entered() as protocol, peer(script) as url:
        listen = template(
            url, listen_only=True, before=[{"send": "SUB {{args.topic}}", "expect": r"^\+OK"}], expected_responses=-1
        )
        assert await protocol.call_tool(None, "manual.t", {"topic": "news"}, listen) == ["first", "second"]


@pytest.mark.parametrize("multiplex", [False, True], ids=["exclusive", "multiplexed"])
async def test_an_application_ping_is_answered_at_any_time_and_hidden_from_calls(multiplex: bool) -> None:
    pongs = 0
    idle_pong = anyio.Event()

    async def ping(peer: Peer) -> None:
        nonlocal pongs
        await peer.send({"ping": pongs})
        assert await peer.receive_json() == {"pong": pongs}
        pongs += 1

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await ping(peer)  # before the login is over
        await peer.send("ready")
        while True:
            request = await peer.receive()
            await ping(peer)  # before the answer
            await peer.send(request)
            await ping(peer)  # while idle
            idle_pong.set()

    pinging = {
        "on_connect": [{"expect": "ready"}],
        "auto_reply": [
            {
                "match": {"ping": {"$any": True}},
                "capture": {"token": {"path": "ping"}},
                "reply": {"pong": "{{captured.token}}"},
            }
        ],
    }
    async with entered() as protocol, peer(script) as url:
        for n in (1, 2):
            sharing = {"multiplex": True, "message_filter": f"call {n}"} if multiplex else {}
            answer = await protocol.call_tool(
                None, "manual.t", {}, template(url, **pinging, **sharing, message=f"call {n}")
            )
            assert answer == f"call {n}"
            await idle_pong.wait()
            idle_pong = anyio.Event()
    assert pongs == 5


FAREWELL: dict[str, Any] = {
    "on_connect": [{"expect": {"session": {"$any": True}}, "capture": {"id": {"path": "session"}}}],
    "on_close": [{"send": {"bye": "{{captured.id}}"}, "expect": {"bye": "ok"}}],
}


@pytest.mark.parametrize("how", ["leaving", "deregistering", "timeout", "cancellation", "closing template"])
async def test_a_farewell_is_sent_whenever_a_logged_in_connection_is_closed(how: str) -> None:
    said = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"session": 5})
        while True:
            request = await peer.receive_json()
            if "bye" in request:
                assert request == {"bye": 5}
                await peer.send({"bye": "ok"})
                said.set()
                return
            if how in ("timeout", "cancellation"):
                asked.set()
                continue
            await peer.send({"result": 1})

    asked = anyio.Event()
    with anyio.fail_after(10):
        async with peer(script) as url:
            async with entered() as protocol:
                fields = {**FAREWELL, "message": {}, "error_filter": {"error": {"$any": True}}}
                if how == "timeout":
                    with pytest.raises(WebSocketTimeoutError):
                        await protocol.call_tool(None, "manual.t", {}, template(url, **fields, response_timeout=0.1))
                elif how == "cancellation":
                    async with anyio.create_task_group() as task_group:
                        task_group.start_soon(protocol.call_tool, None, "manual.t", {}, template(url, **fields))
                        await asked.wait()
                        task_group.cancel_scope.cancel()
                else:
                    closing = how == "closing template"
                    call_template = template(url, **fields, close_after_response=closing)
                    await protocol.call_tool(None, "manual.t", {}, call_template)
                    if how == "deregistering":
                        await protocol.deregister_manual(None, call_template)
                if how != "leaving":
                    await said.wait()
            await said.wait()


async def test_a_farewell_that_is_not_answered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utcp_websocket_anyio._connections.connection.CLOSING_TIME", 0.1)

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"session": 5})
        await peer.receive()
        await peer.send({})
        assert await peer.receive_json() == {"bye": 5}

    with anyio.fail_after(10):
        async with peer(script) as url, entered() as protocol:
            await protocol.call_tool(None, "manual.t", {}, template(url, **FAREWELL, message={}))


async def test_without_a_completed_login_there_is_no_farewell() -> None:
    heard: list[str | bytes] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        try:
            while True:
                heard.append(await peer.receive())
        finally:
            done.set()

    done = anyio.Event()
    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketTimeoutError):
            await protocol.call_tool(
                None, "manual.t", {}, template(url, **FAREWELL, message={}, connection_timeout=0.1)
            )
        await done.wait()
    assert heard == []


async def test_a_reply_that_lacks_a_captured_value_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"type": "ping"})
        await peer.send({"ok": True, "s": 1})
        await peer.send(await peer.receive())

    early = {
        "on_connect": [{"expect": {"ok": True}, "capture": {"s": {"path": "s"}}}],
        "auto_reply": [{"match": {"type": "ping"}, "reply": {"s": "{{captured.s}}"}}],
    }
    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "manual.t", {}, template(url, **early, message="x")) == "x"
    assert "captured as 's'" in caplog.text


async def test_a_rejection_counts_before_an_expectation() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send({"id": 1, "error": "no"})

    both = [{"expect": {"id": 1}, "reject": {"error": {"$any": True}}}]
    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketAuthError):
            await protocol.call_tool(None, "manual.t", {}, template(url, on_connect=both, message="x"))
