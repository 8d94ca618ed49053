"""A process that was forked while other threads were busy: nothing waits there for what will not happen."""

from __future__ import annotations

import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from utcp.data.auth_implementations import OAuth2Auth

from utcp_websocket_anyio import NetworkSettings, WebSocketCallTemplateSerializer
from utcp_websocket_anyio._net import auth, resolver, settings
from utcp_websocket_anyio._net.transport import Network
from utcp_websocket_anyio._templates import call_template

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # From Python 3.12 on; it is what is tested.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

CREDENTIALS = OAuth2Auth(token_url="https://login.example/token", client_id="a", client_secret="b", scope=None)


def in_child(work: Callable[[], Any]) -> None:
    """Do something in a process that is forked now; it has half a minute."""
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            work()
            os._exit(0)
        finally:  # it must not go on as a second pytest
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextmanager
def in_thread(work: Callable[[threading.Event, threading.Event], Any]) -> Iterator[None]:
    """Another thread in the middle of something: it sets the first event, and goes on when the second one is set."""
    begun, released = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(begun, released))
    thread.start()
    assert begun.wait(30)
    try:
        yield
    finally:
        released.set()
        thread.join()


CACHE = auth.TokenCache()
TEMPLATE = {"name": "m", "call_template_type": "websocket", "url": "ws://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("owner", "name", "work"),
    [
        (CACHE, "_lock", lambda: CACHE.discard(CREDENTIALS, "token")),
        (call_template._cache, "_lock", lambda: WebSocketCallTemplateSerializer().validate_dict(TEMPLATE)),
        (resolver._lookups, "_lock", lambda: anyio.run(resolver._lookups.find, "127.0.0.1")),
        (settings, "_lock", lambda: NetworkSettings(unix_sockets={"here": "/run/here"})),
    ],
    ids=["tokens", "templates", "lookups", "settings"],
)
def test_a_lock_of_another_thread_is_not_waited_for(owner: Any, name: str, work: Callable[[], Any]) -> None:
    def hold(begun: threading.Event, released: threading.Event) -> None:
        with getattr(owner, name):
            begun.set()
            released.wait()

    with in_thread(hold):
        in_child(work)
    work()


def test_a_name_that_another_thread_looks_up_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]

    def look_up(begun: threading.Event, released: threading.Event) -> None:
        def slow(host: str, *_: Any, flags: int = 0, **__: Any) -> Any:
            if flags:
                raise socket.gaierror
            begun.set()
            released.wait()
            return found

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        anyio.run(resolver.resolve, "slow.example", 1)

    def quick(host: str, *_: Any, flags: int = 0, **__: Any) -> Any:
        if flags:
            raise socket.gaierror
        return found

    def again() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", quick)
        for backend in ("asyncio", "trio"):
            assert anyio.run(resolver.resolve, "slow.example", 1, backend=backend)

    with in_thread(look_up):
        in_child(again)


def test_a_token_that_another_thread_fetches_is_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = auth.TokenCache()
    network = Network()

    async def token() -> str:
        return await cache.token(CREDENTIALS, network=network, endpoint="wss://api.example")

    def fetch(begun: threading.Event, released: threading.Event) -> None:
        async def slow(*_: Any) -> tuple[str, float]:
            begun.set()
            await anyio.to_thread.run_sync(released.wait)
            return "parent's", 3600

        monkeypatch.setattr(auth, "_fetch_token", slow)
        assert anyio.run(token) == "parent's"

    async def quick(*_: Any) -> tuple[str, float]:
        return "child's", 3600

    def again() -> None:
        monkeypatch.setattr(auth, "_fetch_token", quick)
        monkeypatch.setattr(auth, "_PATIENCE", 1000)
        assert anyio.run(token) == "child's"
        assert anyio.run(token, backend="trio") == "child's"

    with in_thread(fetch):
        in_child(again)
    assert anyio.run(token) == "parent's"


def test_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = auth.TokenCache()
    network = Network()

    async def token() -> str:
        return await cache.token(CREDENTIALS, network=network, endpoint="wss://api.example")

    async def fetched(*_: Any) -> tuple[str, float]:
        return "token", 3600

    def kept() -> None:
        monkeypatch.delattr(auth, "_fetch_token")
        assert anyio.run(token) == "token"

    monkeypatch.setattr(auth, "_fetch_token", fetched)
    assert anyio.run(token) == "token"
    in_child(kept)
