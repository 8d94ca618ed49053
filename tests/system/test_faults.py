"""Random runs over a network and against a server that misbehave: nothing is lost, mixed up, leaked or stuck.

A run is decided by its seed, which is in the test's name. ``FAULT_SEEDS=17,40-99`` names other seeds than the two of
an ordinary test run; the summary of the test run adds up what has become of all calls.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import sniffio
import trio
import trustme
from support.collecting import collecting
from support.fault_proxy import FaultProxy, fault_proxy
from support.faulty_server import CLOSES, FaultyServer
from support.leftovers import nothing_is_left
from support.peers import peer
from support.protocol import pool_of, port_of, template

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio


def seeds(told: str) -> list[int]:
    """The numbers of a list of numbers and ranges."""
    found: list[int] = []
    for part in told.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


SEEDS = seeds(os.environ.get("FAULT_SEEDS", "1,2"))
CALLERS = 12
CALLS = 12
TIMEOUT = 0.8
STREAM_TIMEOUT = 1.5
TICK = 0.01
PATIENCE = 10
"""Seconds that a call may take beyond its deadlines, counted in ticks of the same event loop: on a machine that does
other things, too, they take longer."""

REQUEST = {name: f"{{{{args.{name}}}}}" for name in ("n", "parts", "pad", "pause", "ends")}
COMMON: dict[str, Any] = {
    "timeout": TIMEOUT,
    "connection_timeout": TIMEOUT,
    "ping_interval": 0.1,
    "pong_timeout": 0.3,
    "max_connections": 5,
    "response_format": "json",
    "message": {**REQUEST, "id": "{{uuid}}", "start": 0},
}
OWN: dict[str, Any] = {"message_filter": {"id": "{{uuid}}"}}


def asking(what: str, **more: Any) -> dict[str, Any]:
    """A step that says something and waits for the answer."""
    message = {"say": what, **more}
    return {"send": message, "expect": message}


CONVERSING: dict[str, Any] = {
    **OWN,
    "on_connect": [asking("login")],
    "heartbeat": {**asking("beat"), "every": 0.1, "timeout": 0.4},
    "before": [asking("before", id="{{uuid}}")],
    "on_end": [asking("end", id="{{uuid}}"), asking("really", id="{{uuid}}")],
    "on_close": [asking("bye")],
}
MODES: dict[str, dict[str, Any]] = {
    "exclusive": {},
    "conversing": CONVERSING,
    "multiplexed": {"multiplex": True, **OWN},
    "multiplexed and conversing": {"multiplex": True, **CONVERSING},
    "compressed": {"compression": "deflate", "compression_threshold": 0},
    "over TLS": {},
    "multiplexed over TLS": {"multiplex": True, **OWN},
}
UNTIL_LAST: dict[str, Any] = {
    "last_filter": {"id": "{{uuid}}", "last": True},
    "response_timeout": STREAM_TIMEOUT,
}
KINDS: dict[str, dict[str, Any]] = {
    "call": {},
    "call for several": {"expected_responses": 3},
    "stream of several": {"expected_responses": 3},
    "stream": {**UNTIL_LAST},
    "resumed": {
        **UNTIL_LAST,
        "on_response": {"capture": {"next": {"path": "next"}}},
        "resume": {"request": [{"send": {**REQUEST, "id": "{{uuid}}", "start": "{{captured.next}}"}}]},
    },
    "dropped": {"response_timeout": STREAM_TIMEOUT},
}
"""The kinds of calls, and what their templates have beyond that of the mode."""


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for the server, and for a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def trouble(proxy: FaultProxy, seed: int, outcomes: Counter[str]) -> AsyncIterator[None]:
    """Connections are dropped and the server breaks down, again and again.

    It goes by the calls that have ended and not by the clock, so that as many are right on a busy machine.
    """
    randomly = random.Random(seed)

    async def make() -> None:
        while True:
            until = outcomes.total() + randomly.randrange(1, 10)
            while outcomes.total() < until:
                await anyio.sleep(0.005)
            await anyio.sleep(randomly.random() / 50)
            if randomly.random() < 0.2:
                await proxy.break_down(randomly.random() / 20)
            else:
                proxy.kill_one()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(make)
        yield
        task_group.cancel_scope.cancel()


class Run:
    """One run: its callers, and what becomes of their calls.

    Args:
        templates: That of each kind of call.
        outcomes: Counts how often a call ends in which way.
    """

    def __init__(
        self,
        protocol: WebSocketCommunicationProtocol,
        server: FaultyServer,
        templates: dict[str, WebSocketCallTemplate],
        outcomes: Counter[str],
    ) -> None:
        self._outcomes = outcomes
        self._protocol = protocol
        self._server = server
        self._templates = templates
        self._ticks = 0

    async def tick(self) -> None:
        """Count time as this event loop gets it."""
        while True:
            await anyio.sleep(TICK)
            self._ticks += 1

    async def call_again_and_again(self, seed: int) -> None:
        randomly = random.Random(seed)
        for _ in range(CALLS):
            kind = randomly.choice(["call", "call", "call", *KINDS])
            parts = {"call": 1, "call for several": 3, "stream of several": 3}.get(kind, randomly.randrange(1, 20))
            arguments = {
                "n": randomly.randrange(10**9),
                "parts": parts,
                "pad": "x" * randomly.choice([0, 10, 5000]),
                "pause": 0 if parts <= 3 else randomly.choice([0, 0.002, 0.02]),
                "ends": kind != "dropped",
            }
            # Some callers lose patience: in no time, while connecting, while waiting for the answer.
            patience = randomly.choice([0, 0.001, 0.01, 0.05, *[100] * 10])
            began = self._ticks
            with anyio.move_on_after(patience) as scope:
                try:
                    if kind == "dropped":
                        await self._drop(arguments, randomly)
                    else:
                        await self._call(kind, arguments)
                except WebSocketError as error:
                    self._check(error)
                    self._outcomes[type(error).__name__] += 1
            if scope.cancelled_caught:
                self._outcomes["cancelled"] += 1
            # Waiting for a connection, opening one and the response have a deadline each.
            limit = TIMEOUT if parts <= 3 else STREAM_TIMEOUT
            assert (self._ticks - began) * TICK < 2 * TIMEOUT + limit + PATIENCE, kind

    async def _call(self, kind: str, arguments: dict[str, Any]) -> None:
        if kind.startswith("call"):
            answer = await self._protocol.call_tool(None, "manual.t", arguments, self._templates[kind])
            received = [answer] if kind == "call" else answer
        else:
            stream = self._protocol.call_tool_streaming(None, "manual.t", arguments, self._templates[kind])
            received = [part async for part in stream]
        self._compare(received, arguments)
        if len(received) == arguments["parts"]:
            self._outcomes["right"] += 1
        else:
            # A close can be the end of a stream; one that resumes goes on behind it.
            assert kind == "stream"
            assert self._server.closes[1000] + self._server.closes[1001] > 0
            self._outcomes["ended by a close"] += 1

    @staticmethod
    def _compare(received: list[Any], arguments: dict[str, Any]) -> None:
        """What has come is the beginning of the answer, nothing missing, nothing twice."""
        told = [(part["n"], part["part"], part["pad"]) for part in received]
        assert told == [(arguments["n"], part, arguments["pad"]) for part in range(len(received))]

    async def _drop(self, arguments: dict[str, Any], randomly: random.Random) -> None:
        """Take some responses of a stream that has no end, and leave it to the garbage collector."""
        held: list[Any] = [self._protocol.call_tool_streaming(None, "manual.t", arguments, self._templates["dropped"])]
        received: list[Any] = []
        try:
            for _ in range(randomly.randrange(arguments["parts"] + 1)):
                received.append(await held[0].__anext__())
        except StopAsyncIteration:
            assert self._server.closes[1000] + self._server.closes[1001] > 0
        self._compare(received, arguments)
        await randomly.choice(WAYS_TO_DROP)(held)
        self._outcomes["dropped"] += 1

    def _check(self, error: WebSocketError) -> None:
        """An error is one that the trouble explains."""
        if isinstance(error, WebSocketClosedError):
            if error.code in CLOSES and self._server.closes[error.code] and error.reason:
                assert error.reason == CLOSES[error.code], repr(error)
            else:
                assert error.code in (1006, 1011, 1012), repr(error)
        elif isinstance(error, WebSocketProtocolError):
            assert "control frames in a row" in str(error), repr(error)
            assert self._server.exceeded
        elif isinstance(error, WebSocketAuthError):
            assert self._server.closes[1008] + self._server.closes[4000] > 0
        else:
            assert type(error) in (WebSocketConnectionError, WebSocketTimeoutError), repr(error)


async def drop_here(held: list[Any]) -> None:
    held.clear()


async def drop_in_a_cycle(held: list[Any]) -> None:
    held.append(held)


async def drop_in_a_callback(held: list[Any]) -> None:
    if sniffio.current_async_library() == "trio":
        trio.lowlevel.current_trio_token().run_sync_soon(held.clear)
    else:
        asyncio.get_running_loop().call_soon(held.clear)


async def drop_in_a_thread(held: list[Any]) -> None:
    await anyio.to_thread.run_sync(held.clear)


async def drop_with_an_error(held: list[Any]) -> None:
    """As the local variable of a task that has failed: its traceback holds it."""

    async def fail(stream: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail(held.pop())


WAYS_TO_DROP = [drop_here, drop_in_a_cycle, drop_in_a_callback, drop_in_a_thread, drop_with_an_error]


async def check_nothing_is_held(protocol: WebSocketCommunicationProtocol) -> None:
    """The pool of a protocol object without calls holds connections that are idle or closing, and nothing else."""
    pool = pool_of(protocol)
    gc.collect()
    while (statistics := protocol.statistics()).active or pool._notes:
        await anyio.sleep(0.005)
    assert (statistics.waiting, statistics.opening, statistics.active) == (0, 0, 0)
    assert all(not site.slots_lent and not site.waiters for site in pool._endpoints.values())
    assert not pool._resuming
    assert not any((pool.deadlines._new, pool.deadlines._admitted, pool.deadlines._tokens))
    for site in pool._endpoints.values():
        assert not any(connection.farewells for connection in site.connections)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", MODES)
async def test_whatever_happens_each_answer_belongs_to_its_call_and_nothing_is_left(
    mode: str, seed: int, tls: tuple[ssl.SSLContext, ssl.SSLContext], record_property: Any
) -> None:
    is_secure = mode.endswith("over TLS")
    server_tls, client_tls = tls if is_secure else (None, None)
    fields = MODES[mode]
    server = FaultyServer(seed, harm=0.8, compressed=mode == "compressed", pushes="message_filter" in fields)
    outcomes: Counter[str] = Counter()
    with anyio.fail_after(150):
        async with nothing_is_left():
            async with (
                peer(server, tls=server_tls) as url,
                fault_proxy(port_of(url), seed=seed, harm=0.5, tls=is_secure) as proxy,
                WebSocketCommunicationProtocol(ssl_context=client_tls) as protocol,
            ):
                address = url.replace(str(port_of(url)), str(proxy.port))
                templates = {kind: template(address, **COMMON, **fields, **more) for kind, more in KINDS.items()}
                run = Run(protocol, server, templates, outcomes)
                async with trouble(proxy, seed, outcomes), collecting(seed), anyio.create_task_group() as clock:
                    clock.start_soon(run.tick)
                    async with anyio.create_task_group() as callers:
                        for caller in range(CALLERS):
                            callers.start_soon(run.call_again_and_again, 1000 * seed + caller)
                    clock.cancel_scope.cancel()
                await check_nothing_is_held(protocol)
                # With everything in order again there is a good answer at once.
                proxy.harm = server.harm = 0
                await until_answered(protocol, templates["call"])
                resumed = protocol.statistics().resumes
            assert not pool_of(protocol)._endpoints
            assert not pool_of(protocol)._idle_until
            del protocol, run
    record_property("calls", dict(outcomes))
    done = {f"network {what.name}": count for what, count in proxy.inflicted.items()}
    done |= {f"server {what.name}": count for what, count in server.done.items()}
    record_property("faults", {**done, "streams resumed": resumed})
    assert outcomes.total() == CALLERS * CALLS


async def until_answered(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    """Call until an answer comes; connections that stall from before have to be found out first."""
    arguments = {"n": 1, "parts": 1, "pad": "", "pause": 0, "ends": True}
    while True:
        try:
            answer = await protocol.call_tool(None, "manual.t", arguments, call_template)
        except WebSocketError:
            continue
        assert answer["n"] == 1
        return
