"""Tokens shared by event loops in several threads: one request for all of them, and nobody waits for a dead loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from support.backends import BACKENDS
from support.http_peer import HttpPeer, serve_http
from utcp.data.auth_implementations import OAuth2Auth

from utcp_websocket_anyio import WebSocketAuthError, WebSocketError
from utcp_websocket_anyio._net import auth as auth_module
from utcp_websocket_anyio._net.auth import TokenCache
from utcp_websocket_anyio._net.transport import Network
from utcp_websocket_anyio._net.wakeup import Wakeup

LOOPS: list[Any] = [backend.values[0] for backend in BACKENDS]
PATIENCE = 60


class Issuer:
    """A token endpoint in a thread of its own that answers when it is told to.

    Attributes:
        requests: How often it was asked.
        asked: Set when it was.
        answering: Set it to let the answers go.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.asked = threading.Event()
        self.answering = threading.Event()
        self.answers: tuple[Any, int] = ({"access_token": "token", "expires_in": 3600}, 200)
        self.url = ""

    async def __call__(self, peer: HttpPeer) -> None:
        self.requests += 1
        self.asked.set()
        while not self.answering.is_set():
            await anyio.sleep(0.005)
        await peer.answer(*self.answers)
        await peer.stream.aclose()

    def auth(self) -> OAuth2Auth:
        return OAuth2Auth(token_url=f"{self.url}/token", client_id="id", client_secret="secret", scope=None)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    with start_blocking_portal("trio") as portal, portal.wrap_async_context_manager(serve_http(issuer)) as server:
        issuer.url = server.url
        yield issuer


async def ask(cache: TokenCache, issuer: Issuer, endpoint: str = "wss://x/") -> str:
    return await cache.token(issuer.auth(), network=Network(), endpoint=endpoint)


def wait_for(followers: list[Any], count: int) -> None:
    while len(followers) < count:
        time.sleep(0.005)


@contextmanager
def loops(function: Callable[[], Awaitable[None]], count: int) -> Iterator[list[BaseException]]:
    """Run a function in so many event loops at once, each in a thread; the block ends when they have."""
    failures: list[BaseException] = []

    def run(backend: tuple[str, dict[str, Any]]) -> None:
        try:
            anyio.run(function, backend=backend[0], backend_options=backend[1])
        except BaseException as error:  # noqa: ASYNC103, BLE001 - looked at by the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(LOOPS[n % len(LOOPS)],)) for n in range(count)]
    for thread in threads:
        thread.start()
    yield failures
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_one_request_serves_every_loop_in_every_thread(issuer: Issuer) -> None:
    cache = TokenCache()
    tokens: list[str] = []
    ready = threading.Semaphore(0)

    async def several() -> None:
        async def one() -> None:
            ready.release()
            tokens.append(await ask(cache, issuer))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(one)

    with loops(several, 9) as failures:
        for _ in range(45):
            assert ready.acquire(timeout=PATIENCE)
        issuer.answering.set()
    assert not failures
    assert tokens == ["token"] * 45
    assert issuer.requests == 1


def test_a_refusal_is_raised_in_every_loop_as_an_error_of_its_own(issuer: Issuer) -> None:
    cache = TokenCache()
    issuer.answers = ({"error": "invalid_scope"}, 400)
    errors: list[WebSocketError] = []

    async def fail() -> None:
        with pytest.raises(WebSocketAuthError) as caught:
            await ask(cache, issuer, f"wss://{threading.get_ident()}/")
        errors.append(caught.value)

    with loops(fail, 6) as failures:
        assert issuer.asked.wait(PATIENCE)
        followers = next(iter(cache._fetches.values())).followers
        wait_for(followers, 5)
        issuer.answering.set()
    assert not failures
    assert issuer.requests == 1
    assert len({error.endpoint for error in errors}) == 6


@pytest.mark.parametrize("backend", LOOPS, ids=lambda backend: f"{backend[0]}{len(backend[1])}")
def test_when_the_loop_that_asks_is_cancelled_another_loop_takes_over(backend: Any, issuer: Issuer) -> None:
    cache = TokenCache()
    tokens: list[str] = []
    following = threading.Event()

    async def follow() -> None:
        tokens.append(await ask(cache, issuer))

    async def lead() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, cache, issuer)
            await anyio.to_thread.run_sync(following.wait, PATIENCE)
            tasks.cancel_scope.cancel()

    leader = threading.Thread(target=lambda: anyio.run(lead, backend=backend[0], backend_options=backend[1]))
    leader.start()
    assert issuer.asked.wait(PATIENCE)
    with loops(follow, 3) as failures:
        followers = next(iter(cache._fetches.values())).followers
        wait_for(followers, 3)
        following.set()
        leader.join(PATIENCE)
        issuer.answering.set()
    assert not failures
    assert tokens == ["token"] * 3
    assert issuer.requests == 2


def test_no_caller_waits_for_ever_for_a_loop_that_was_stopped(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "_PATIENCE", 0.05)
    cache = TokenCache()
    tokens: list[str] = []
    stopped = asyncio.new_event_loop()
    task = stopped.create_task(ask(cache, issuer))
    while not issuer.asked.is_set():
        stopped.run_until_complete(asyncio.sleep(0.01))

    async def follow() -> None:
        tokens.append(await ask(cache, issuer))

    issuer.answering.set()
    with loops(follow, 3) as failures:
        pass
    assert not failures
    assert tokens == ["token"] * 3
    assert issuer.requests == 2
    # Where it goes on, it gets its own answer.
    assert stopped.run_until_complete(task) == "token"
    stopped.run_until_complete(stopped.shutdown_default_executor())
    stopped.close()
    assert not cache._fetches


def test_a_leader_that_is_collected_with_its_closed_loop_delays_no_other_caller(issuer: Issuer) -> None:
    cache = TokenCache()
    closed = asyncio.new_event_loop()
    coroutine = ask(cache, issuer)
    asyncio.set_event_loop(closed)
    try:
        # As a task would begin it, without the task that asyncio would complain about.
        closed.call_soon(lambda: None)

        async def begin() -> None:
            coroutine.send(None)

        closed.run_until_complete(begin())
    finally:
        asyncio.set_event_loop(None)
    assert len(cache._fetches) == 1
    coroutine.close()
    closed.close()
    assert not cache._fetches
    issuer.answering.set()
    assert anyio.run(ask, cache, issuer) == "token"


def test_waking_a_loop_that_has_ended_does_nothing() -> None:
    wakeups: list[Wakeup] = []

    async def make() -> None:
        wakeups.append(Wakeup())

    for name, options in LOOPS:
        anyio.run(make, backend=name, backend_options=options)
    for wakeup in wakeups:
        wakeup.set()
