"""Random runs over a network that misbehaves: nothing is lost, mixed up, leaked or stuck.

A run is decided by its seed, which is in the test's name; ``FAULT_SEEDS=17,18`` replays some.
"""

from __future__ import annotations

import json
import os
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from support.fault_proxy import FaultProxy, fault_proxy
from support.peers import Peer, peer
from support.protocol import pool_of, template

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol, WebSocketError

pytestmark = pytest.mark.anyio

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1,2").split(",")]
CALLERS = 12
CALLS = 15
TIMEOUT = 0.8
PATIENCE = 10
"""Seconds that a call may take beyond its deadlines on a machine that does other things, too."""

COMMON: dict[str, Any] = {
    "timeout": TIMEOUT,
    "connection_timeout": TIMEOUT,
    "ping_interval": 0.05,
    "pong_timeout": 0.2,
    "max_connections": 5,
    "response_format": "json",
    "message": {"id": "{{uuid}}", "n": "{{args.n}}", "parts": "{{args.parts}}", "pad": "{{args.pad}}"},
}
MODES: dict[str, dict[str, Any]] = {
    "exclusive": {},
    "filtered": {"message_filter": {"id": "{{uuid}}"}},
    "multiplexed": {"multiplex": True, "message_filter": {"id": "{{uuid}}"}},
    "compressed": {"compression": "deflate", "compression_threshold": 0},
    "over TLS": {},
    "multiplexed over TLS": {"multiplex": True, "message_filter": {"id": "{{uuid}}"}},
}


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for the server, and for a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def answer(peer: Peer) -> None:
    """Answers each request with as many parts as it asks for, sometimes late, never for somebody else."""
    await peer.handshake()
    async with anyio.create_task_group() as task_group:
        lock = anyio.Lock()

        async def respond(request: dict[str, Any]) -> None:
            if request["n"] % 7 == 0:
                await anyio.sleep(0.01)
            for part in range(request["parts"]):
                async with lock:
                    await peer.send({"id": request["id"], "n": request["n"], "part": part, "pad": request["pad"]})

        while True:
            task_group.start_soon(respond, await peer.receive_json())


async def patiently(peer: Peer) -> None:
    """As `answer`; a connection that ends is no reason to complain."""
    try:
        await answer(peer)
    except AssertionError:
        raise
    except Exception:  # noqa: BLE001 - whatever the connection ended with
        raise anyio.EndOfStream from None


@asynccontextmanager
async def trouble(proxy: FaultProxy, seed: int) -> AsyncIterator[None]:
    """Connections are dropped and the server breaks down, again and again."""
    randomly = random.Random(seed)

    async def make() -> None:
        while True:
            await anyio.sleep(randomly.random() / 5)
            if randomly.random() < 0.2:
                await proxy.break_down(randomly.random() / 20)
            else:
                proxy.kill_one()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(make)
        yield
        task_group.cancel_scope.cancel()


async def call_again_and_again(
    protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate, seed: int, outcomes: Counter[str]
) -> None:
    randomly = random.Random(seed)
    for _ in range(CALLS):
        parts = randomly.choice([1, 1, 1, 3])
        arguments = {"n": randomly.randrange(10**9), "parts": parts, "pad": "x" * randomly.choice([0, 10, 5000])}
        # Some callers lose patience: in no time, while connecting, while waiting for the answer.
        patience = randomly.choice([0, 0.001, 0.01, 100, 100, 100, 100, 100])
        began = anyio.current_time()
        with anyio.move_on_after(patience) as scope:
            try:
                if parts == 1:
                    received = [await protocol.call_tool(None, "manual.t", arguments, call_template)]
                else:
                    several = call_template.model_copy(update={"expected_responses": parts})
                    received = [
                        part async for part in protocol.call_tool_streaming(None, "manual.t", arguments, several)
                    ]
            except WebSocketError as error:
                outcomes[type(error).__name__] += 1
            else:
                expected = [{"n": arguments["n"], "part": part, "pad": arguments["pad"]} for part in range(parts)]
                assert [{key: part[key] for key in ("n", "part", "pad")} for part in received] == expected
                outcomes["right"] += 1
        if scope.cancelled_caught:
            outcomes["cancelled"] += 1
        # Waiting for a connection, opening one and the response have a deadline each.
        assert anyio.current_time() - began < 3 * TIMEOUT + PATIENCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", MODES)
async def test_whatever_the_network_does_each_answer_belongs_to_its_call_and_nothing_is_left(
    mode: str, seed: int, tls: tuple[ssl.SSLContext, ssl.SSLContext], record_property: Any
) -> None:
    server, client = tls if mode.endswith("over TLS") else (None, None)
    outcomes: Counter[str] = Counter()
    with anyio.fail_after(50):
        async with (
            peer(patiently, tls=server) as url,
            fault_proxy(int(url.rsplit(":", 1)[1].strip("/")), seed=seed, harm=0.3) as proxy,
            WebSocketCommunicationProtocol(ssl_context=client) as protocol,
        ):
            scheme = url.partition(":")[0]
            call_template = template(f"{scheme}://127.0.0.1:{proxy.port}/", **COMMON, **MODES[mode])
            async with trouble(proxy, seed), anyio.create_task_group() as callers:
                for caller in range(CALLERS):
                    callers.start_soon(call_again_and_again, protocol, call_template, 1000 * seed + caller, outcomes)
            pool = pool_of(protocol)
            statistics = protocol.statistics()
            assert (statistics.waiting, statistics.opening, statistics.active) == (0, 0, 0)
            assert all(not site.slots_lent and not site.waiters for site in pool._endpoints.values())
            # With the network in order again there is a good answer at once.
            proxy._harm = 0
            await until_answered(protocol, call_template)
        assert not pool._endpoints
    record_property("outcomes", json.dumps(outcomes))
    assert outcomes["right"] > 0, outcomes
    assert outcomes.total() == CALLERS * CALLS


async def until_answered(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    """Call until an answer comes; connections that stall from before have to be found out first."""
    arguments = {"n": 1, "parts": 1, "pad": ""}
    while True:
        try:
            answer = await protocol.call_tool(None, "manual.t", arguments, call_template)
        except WebSocketError:
            continue
        assert answer["n"] == 1
        return
