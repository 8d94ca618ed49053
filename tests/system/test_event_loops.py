"""One protocol object, or one stock client, in any number of event loops and threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import anyio
import pytest
import trio
from anyio.from_thread import start_blocking_portal
from support.peers import Peer, echo_server, peer
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    open_client,
)

Result = TypeVar("Result")

FACTORIES: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
try:
    import uvloop

    FACTORIES.append(uvloop.new_event_loop)
except ImportError:
    pass


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.__module__.partition(".")[0])
def new_loop(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An echo server, in a thread of its own that runs trio."""

    async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        async with echo_server() as url:
            task_status.started(url)
            await anyio.sleep_forever()

    with start_blocking_portal("trio") as portal:
        future, url = portal.start_task(serve)
        yield url
        future.cancel()


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, **fields)


async def echo(protocol: WebSocketCommunicationProtocol, url: str, text: str = "x", **fields: Any) -> Any:
    with anyio.fail_after(60):
        return await protocol.call_tool(None, "manual.t", {}, template(url, message=text, **fields))


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], main: Awaitable[Result]) -> Result:
    """As `asyncio.run`, which has no choice of loops before Python 3.12."""

    async def as_coroutine() -> Result:
        return await main

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(as_coroutine())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def until_descriptors(at_most: int) -> None:
    """The server of these tests is in this process, and closes its side some time later."""
    deadline = time.monotonic() + 30
    while descriptors() > at_most:
        assert time.monotonic() < deadline, f"{descriptors()} descriptors are open, {at_most} were before"
        gc.collect()
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")


def test_each_event_loop_after_the_other_is_served(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    for n in range(5):
        assert run(new_loop, echo(protocol, url, f"{n}")) == f"{n}"
        assert repr(protocol) == "<WebSocketCommunicationProtocol unused>"
    assert protocol.statistics().calls == 5
    run(new_loop, protocol.close())
    with pytest.raises(RuntimeError, match="closed"):
        run(new_loop, echo(protocol, url))


def test_one_stock_client_serves_asyncio_run_after_asyncio_run(new_loop: Any, url: str) -> None:
    tool = {"name": "echo", "description": "", "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    manual = {"name": "m", "call_template_type": "websocket", "url": url, "response_format": "json", "tools": [tool]}
    client = run(new_loop, UtcpClient.create(config={"manual_call_templates": [manual]}))
    for n in range(3):
        assert run(new_loop, client.call_tool("m.echo", {"n": n})) == {"n": n}
    run(new_loop, client.close())


@needs_proc
@pytest.mark.parametrize("end", ["asyncio.run", "loop.close()"])
def test_many_short_loops_leave_no_descriptor_thread_or_memory(
    new_loop: Any, end: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = WebSocketCommunicationProtocol()

    def use() -> None:
        if end == "asyncio.run":
            run(new_loop, echo(protocol, url))
        else:
            loop = new_loop()
            loop.run_until_complete(echo(protocol, url))
            loop.close()

    # Of each connection two records, which pytest would keep.
    caplog.set_level(logging.ERROR, logger="utcp_websocket_anyio")
    for _ in range(20):
        use()
    gc.collect()
    before, threads = descriptors(), threading.active_count()
    tracemalloc.start()
    try:
        for _ in range(20):
            use()
        gc.collect()
        begin = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            use()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - begin
    finally:
        tracemalloc.stop()
    until_descriptors(before)
    assert threading.active_count() <= threads
    # A pool with its connection takes twenty kilobytes; a hundred that were kept would show.
    assert grown < 100_000
    assert repr(protocol) == "<WebSocketCommunicationProtocol unused>"


def test_a_plain_close_of_the_loop_closes_the_connections_at_once(new_loop: Any) -> None:
    """The server sees the end while the loop's `close` is running, not when something is collected later."""
    ended = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        try:
            await peer.receive()
        finally:
            ended.set()

    async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        async with peer(script) as url:
            task_status.started(url)
            await anyio.sleep_forever()

    protocol = WebSocketCommunicationProtocol()
    with start_blocking_portal("trio") as portal:
        future, url = portal.start_task(serve)
        loop = new_loop()
        loop.run_until_complete(echo(protocol, url))
        assert "close" in vars(loop)
        loop.close()
        assert loop.is_closed()
        assert "close" not in vars(loop)
        assert ended.wait(30)
        future.cancel()


def test_a_loop_is_closed_by_another_one_that_runs(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    loop = new_loop()
    loop.run_until_complete(echo(protocol, url))

    async def close() -> None:
        loop.close()
        assert await echo(protocol, url) == "x"

    run(new_loop, close())
    assert loop.is_closed()
    assert repr(protocol) == "<WebSocketCommunicationProtocol unused>"


def test_a_loop_that_goes_on_after_a_stop_keeps_its_connections(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    loop = new_loop()
    try:
        for _ in range(3):
            loop.run_until_complete(echo(protocol, url))
        assert repr(protocol).count("1 open, 1 idle") == 1
        loop.stop()
    finally:
        loop.close()
    assert repr(protocol) == "<WebSocketCommunicationProtocol unused>"


@needs_proc
def test_loops_that_are_dropped_without_being_closed_do_not_pile_up(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    loops = []
    # libuv keeps some for its first loop.
    run(new_loop, echo(protocol, url))
    gc.collect()
    before = descriptors()
    for _ in range(60):
        loop = new_loop()
        loop.run_until_complete(echo(protocol, url))
        loops.append(loop)
    assert len(protocol._home._hosts) <= 17  # type: ignore[union-attr]  # it exists by now
    for loop in loops:
        loop.close()
    until_descriptors(before)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_whose_close_cannot_be_replaced_is_forgotten_at_the_next_use(url: str) -> None:
    class Fixed(asyncio.SelectorEventLoop):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "close":
                raise AttributeError("'Fixed' object attribute 'close' is read-only")
            super().__setattr__(name, value)

    protocol = WebSocketCommunicationProtocol()
    loop = Fixed()
    loop.run_until_complete(echo(protocol, url))
    loop.close()
    assert asyncio.run(echo(protocol, url)) == "x"
    assert repr(protocol) == "<WebSocketCommunicationProtocol unused>"
    assert protocol.statistics().calls == 2
    asyncio.run(protocol.close())
    del loop
    gc.collect()


def test_several_threads_at_once_use_one_object(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(protocol.statistics().calls)
            repr(protocol)

    async def use(thread: int) -> None:
        async def call(n: int) -> None:
            assert await echo(protocol, url, f"{thread} {n}") == f"{thread} {n}"

        async with anyio.create_task_group() as tasks:
            for n in range(25):
                tasks.start_soon(call, n)
        stream = protocol.call_tool_streaming(
            None, "manual.t", {}, template(url, message=f"s{thread}", expected_responses=1)
        )
        assert [item async for item in stream] == [f"s{thread}"]
        manual = template(url, tools=[])
        manual.name = f"m{thread}"
        assert (await protocol.register_manual(None, manual)).success
        await protocol.deregister_manual(None, manual)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(6) as threads:
            for _ in range(3):
                for outcome in [threads.submit(run, new_loop, use(thread)) for thread in range(6)]:
                    outcome.result(60)
    finally:
        done.set()
        watcher.join()
    assert protocol.statistics().calls == 3 * 6 * 26
    assert sorted(seen) == seen
    run(new_loop, protocol.close())


def test_close_ends_the_calls_of_all_event_loops_and_waits_for_them(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    waiting = threading.Barrier(4)

    async def silent(peer: Peer) -> None:
        await peer.handshake()
        await anyio.sleep_forever()

    async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        async with peer(silent) as url:
            task_status.started(url)
            await anyio.sleep_forever()

    async def call(url: str) -> None:
        calling = asyncio.ensure_future(protocol.call_tool(None, "manual.t", {}, template(url, message="x")))
        while (runtime := protocol._home.runtime_here()) is None or "1 open" not in repr(runtime.pool):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(waiting.wait)
        with pytest.raises(WebSocketClosedError):
            await calling
        with pytest.raises(RuntimeError, match="closed"):
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))

    async def close() -> None:
        await asyncio.to_thread(waiting.wait)
        with anyio.fail_after(30):
            await protocol.close()
        statistics = protocol.statistics()
        assert (statistics.idle, statistics.active, statistics.closing) == (0, 0, 0)

    with start_blocking_portal("trio") as portal, ThreadPoolExecutor(4) as threads:
        future, url = portal.start_task(serve)
        calls = [threads.submit(run, new_loop, call(url)) for _ in range(3)]
        threads.submit(run, new_loop, close()).result(60)
        for outcome in calls:
            outcome.result(60)
        # Also those that were told after their event loop's connections had ended.
        assert protocol.statistics().errors == {"WebSocketClosedError": 3}
        future.cancel()


def test_close_does_not_wait_for_a_loop_that_is_stopped(new_loop: Any, url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    loop = new_loop()
    loop.run_until_complete(echo(protocol, url))

    async def close() -> None:
        with anyio.fail_after(5):
            await protocol.close()

    run(new_loop, close())
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_until_complete(echo(protocol, url))
    loop.run_until_complete(protocol.close())
    assert protocol.statistics().idle == 0
    loop.close()


def test_close_may_be_called_on_trio(url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    used, closed = threading.Event(), threading.Event()

    async def use() -> None:
        await echo(protocol, url)
        used.set()
        await asyncio.to_thread(closed.wait)

    with ThreadPoolExecutor(1) as threads:
        using = threads.submit(asyncio.run, use())
        assert used.wait(30)
        trio.run(protocol.close)
        assert protocol.statistics().idle == 0
        closed.set()
        using.result(30)


def test_close_says_so_where_a_thread_is_blocked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utcp_websocket_anyio._connections.hosts._CLOSING_TIME", 0.2)
    protocol = WebSocketCommunicationProtocol()

    async def use() -> None:
        await echo(protocol, url)
        # What an application should not do: wait for another loop in a coroutine.
        with ThreadPoolExecutor(1) as threads, pytest.raises(RuntimeError, match="thread is blocked"):
            threads.submit(asyncio.run, protocol.close()).result(30)

    asyncio.run(use())


def test_a_manual_is_deregistered_in_all_event_loops(url: str) -> None:
    protocol = WebSocketCommunicationProtocol()
    used, gone = threading.Event(), threading.Event()

    async def use() -> None:
        await echo(protocol, url)
        used.set()
        await asyncio.to_thread(gone.wait)
        with anyio.fail_after(30):
            while protocol.statistics().idle:
                await asyncio.sleep(0.001)
        assert await echo(protocol, url) == "x"

    with ThreadPoolExecutor(1) as threads:
        using = threads.submit(asyncio.run, use())
        assert used.wait(30)
        asyncio.run(protocol.deregister_manual(None, template(url)))
        gone.set()
        using.result(60)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks(url: str) -> None:
    protocol = WebSocketCommunicationProtocol()

    async def use() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # of Python 3.12
        calls = [asyncio.create_task(echo(protocol, url, f"{n}")) for n in range(20)]
        assert await asyncio.gather(*calls) == [f"{n}" for n in range(20)]

    asyncio.run(use())
    asyncio.run(use())
    asyncio.run(protocol.close())


def test_a_host_that_is_cancelled_at_any_step_is_replaced(new_loop: Any, url: str) -> None:
    """Also before its first one, where none of its code runs."""

    async def use(turns: int) -> bool:
        protocol = WebSocketCommunicationProtocol()
        call = asyncio.ensure_future(echo(protocol, url))
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if "host" in task.get_name():
                task.cancel()
        finished = call.done()
        with contextlib.suppress(WebSocketClosedError):
            assert await call == "x"
        assert await echo(protocol, url) == "x"
        with anyio.fail_after(30):
            await protocol.close()
        return finished

    turns = 0
    while not run(new_loop, use(turns)):
        turns += 1
    assert turns > 3


def test_an_object_that_is_dropped_closes_its_connections(new_loop: Any, url: str) -> None:
    async def use() -> None:
        protocol = WebSocketCommunicationProtocol()
        hosts = protocol._home
        await echo(protocol, url)
        del protocol
        gc.collect()
        with anyio.fail_after(30):
            while hosts._hosts:  # type: ignore[union-attr]  # it exists by now
                await asyncio.sleep(0.001)
        assert hosts.statistics().idle == 0
        assert len(asyncio.all_tasks()) == 1

    run(new_loop, use())


def test_a_stream_keeps_its_object_alive(new_loop: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        for n in range(3):
            await peer.send(f"{n}")
            await anyio.sleep(0.01)

    async def use() -> list[Any]:
        items = []
        async with peer(script) as url:
            fields = {"message": "x", "expected_responses": 3}
            stream = WebSocketCommunicationProtocol().call_tool_streaming(None, "manual.t", {}, template(url, **fields))
            with anyio.fail_after(30):
                async for item in stream:
                    items.append(item)
                    gc.collect()
        return items

    assert run(new_loop, use()) == ["0", "1", "2"]


@pytest.mark.parametrize("fields", [{}, {"multiplex": True, "message_filter": {"$text": "x"}}], ids=["own", "shared"])
def test_a_stream_belongs_to_the_event_loop_in_which_it_began(new_loop: Any, url: str, fields: Any) -> None:
    protocol = WebSocketCommunicationProtocol()
    stream = protocol.call_tool_streaming(
        None, "manual.t", {}, template(url, message="x", expected_responses=-1, **fields)
    )

    async def step() -> Any:
        with anyio.fail_after(30):
            return await stream.__anext__()

    async def misuse() -> None:
        with pytest.raises(RuntimeError, match="belongs to the event loop in which it began"):
            await step()

    async def use() -> None:
        assert await step() == "x"
        await asyncio.to_thread(run, new_loop, misuse())
        await asyncio.to_thread(run, new_loop, stream.aclose())
        with anyio.fail_after(30):
            while protocol.statistics().active:
                await asyncio.sleep(0.001)
        with pytest.raises(StopAsyncIteration):
            await step()

    run(new_loop, use())


async def open_and_use(url: str, elsewhere: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]) -> None:
    async with WebSocketCommunicationProtocol() as protocol:
        assert await echo(protocol, url) == "x"
        await elsewhere(lambda: echo(protocol, url))
        await elsewhere(protocol.close)
        assert await echo(protocol, url) == "x"
    with pytest.raises(RuntimeError, match="closed"):
        await echo(protocol, url)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("other", ["asyncio", "trio"])
def test_an_entered_object_belongs_to_its_event_loop_and_says_so(backend: str, other: str, url: str) -> None:
    async def elsewhere(use: Callable[[], Awaitable[Any]]) -> None:
        def misuse() -> None:
            with pytest.raises(RuntimeError, match="event loop in which"):
                anyio.run(use, backend=other)

        await anyio.to_thread.run_sync(misuse)

    anyio.run(open_and_use, url, elsewhere, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_client_is_used_from_other_threads_through_a_portal(backend: str, url: str) -> None:
    tool = {"name": "echo", "description": "", "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    manual = {"name": "m", "call_template_type": "websocket", "url": url, "response_format": "json", "tools": [tool]}
    with (
        start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(open_client({"manual_call_templates": [manual]})) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        answers = threads.map(lambda n: portal.call(client.call_tool, "m.echo", {"n": n}), range(20))
        assert list(answers) == [{"n": n} for n in range(20)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_was_forked_begins_anew(url: str) -> None:
    source = """
        import asyncio, os, sys
        from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol

        url = sys.argv[1]
        protocol = WebSocketCommunicationProtocol()

        async def echo(text):
            template = WebSocketCallTemplate(name="m", url=url, message=text)
            assert await protocol.call_tool(None, "m.t", {}, template) == text

        loop = asyncio.new_event_loop()
        loop.run_until_complete(echo("parent"))
        child = os.fork()
        if not child:
            assert repr(protocol) == "<WebSocketCommunicationProtocol unused>"
            asyncio.run(echo("child"))
            asyncio.run(protocol.close())
            print("child done", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        # On the connection of before: the child has neither used nor closed it.
        loop.run_until_complete(echo("parent again"))
        assert "1 open, 1 idle" in repr(protocol), protocol
        loop.close()
        print("parent done")
    """
    outcome = program(source, url)
    assert outcome.stdout.split("\n") == ["child done", "parent done", ""]


def test_the_interpreter_may_end_with_a_loop_that_was_only_stopped(url: str) -> None:
    program(
        """
        import asyncio, sys, warnings
        from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol

        protocol = WebSocketCommunicationProtocol()
        template = WebSocketCallTemplate(name="m", url=sys.argv[1], message="x")
        loop = asyncio.new_event_loop()
        loop.run_until_complete(protocol.call_tool(None, "m.t", {}, template))
        # That the loop itself was not closed is another matter, of which asyncio warns.
        warnings.filterwarnings("ignore", "unclosed event loop")
        """,
        url,
    )


def test_the_interpreter_may_end_while_daemon_threads_run_event_loops(url: str) -> None:
    program(
        """
        import asyncio, sys, threading
        from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol

        protocol = WebSocketCommunicationProtocol()
        template = WebSocketCallTemplate(name="m", url=sys.argv[1], message="x")
        ready = threading.Barrier(4)

        async def use():
            await protocol.call_tool(None, "m.t", {}, template)
            ready.wait()
            await asyncio.Event().wait()

        for _ in range(3):
            threading.Thread(target=asyncio.run, args=(use(),), daemon=True).start()
        ready.wait()
        """,
        url,
    )


def test_a_plain_close_prints_nothing(url: str) -> None:
    program(
        """
        import asyncio, gc, sys
        from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol

        protocol = WebSocketCommunicationProtocol()
        template = WebSocketCallTemplate(name="m", url=sys.argv[1], message="x", expected_responses=-1)

        async def use():
            async for item in protocol.call_tool_streaming(None, "m.t", {}, template):
                break
            left = protocol.call_tool_streaming(None, "m.t", {}, template)
            await left.__anext__()
            return left

        for _ in range(3):
            loop = asyncio.new_event_loop()
            left = loop.run_until_complete(use())
            loop.close()
            del loop, left
            gc.collect()
        """,
        url,
    )


def program(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which everything suspicious is an error, and which must print no error."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(source), *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # utcp-websocket, where it is installed, has added a log handler, which also shows how long debug mode takes.
    noise = re.compile(r"\[INFO\]|\[WARNING\] base_events.* took [\d.]+ seconds")
    lines = [line for line in outcome.stderr.splitlines() if not noise.search(line)]
    assert (lines, outcome.returncode) == ([], 0)
    return outcome
