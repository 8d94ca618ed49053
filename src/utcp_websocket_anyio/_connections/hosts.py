"""The places where pools run: the block of an object that was entered, or a host task of each event loop.

A pool needs a task group, and a task group needs a block that is entered. There are two kinds:

*Entered* (`Entered`, asyncio and trio): the block is the user's, ``async with protocol``. There is one pool, it belongs
to the event loop of the block, and it ends with the block.

*Hosted* (`Hosts`, asyncio only): a stock `UtcpClient` never enters its protocols. It calls them from any task, of one
event loop after the other, or of several at once in several threads. So the first use in an event loop starts a *host
task* in it, whose block has a pool of its own. These are the only tasks that belong to no task group. A host ends, and
closes its connections, in one of these ways:

1. `Hosts.close` dismisses it, from whatever loop and thread.
2. `asyncio.run` cancels all tasks that are left when its coroutine has returned.
3. A plain ``loop.close()`` gives no notice, and afterwards no task can run any more: sockets would stay open, and each
   task would complain when it is collected. So a loop that has a host has its `close` replaced, for that time and on
   that one object, by one that first runs the loop until its hosts have ended.
4. At the exit of the interpreter, `atexit` does the same for loops that were stopped and never closed.
5. When the protocol object is garbage collected, its connections can no longer be used: its hosts are dismissed.
   That is why a host refers to `Hosts`, but never to the protocol object.
6. After a fork, the child has copies of the parent's hosts, whose sockets are the parent's as well. It keeps them as
   they are, without using them: even a clean end would say goodbye on the parent's connections.

A loop that was stopped may go on, so its host stays. If loops are dropped without being closed, these hosts are all
that refers to them; so only the `_MAX_STOPPED` of them that were made last are kept.

Two locks protect what several threads change. `Hosts._lock`: the hosts of one object, whether it is closed, and what
ended hosts have counted. `_registry_lock`: the table of all hosts, and which loops have their `close` replaced. Nothing
waits while it holds one, no one holds both, and no finalizer takes any.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import inspect
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
import sniffio
from anyio.abc import TaskGroup

from .._net.forks import in_each_child
from ..errors import WebSocketError
from .pool import Pool
from .statistics import Counters, Statistics, total
from .task_groups import single_error_task_group

__all__ = ["Entered", "Hosts", "Runtime"]

_log = logging.getLogger(__name__)

_MAX_STOPPED = 16
"""The number of stopped event loops of which one object keeps the hosts."""

_CLOSING_TIME = 10.0
"""Seconds that hosts of other threads get to end. A pool takes half of that at most, unless its thread is blocked."""

_POLL_INTERVAL = 0.01
"""Seconds between two looks at hosts of other threads, as an event loop gives no notice when it stops."""

_MANY_TASKS = 8
"""When so many started tasks are known, those that have begun are forgotten."""

_CLOSED = "this WebSocketCommunicationProtocol is closed; create another one"


class Runtime:
    """An object's state in one event loop: its pool and its counters.

    It is made in that event loop.
    """

    __slots__ = ("_loop", "_thread", "counters", "late", "pool")

    def __init__(self, pool: Pool, counters: Counters) -> None:
        self.pool = pool
        self.counters = counters
        # Where to count what comes after the host's figures were added to those of others that have ended.
        self.late: Callable[[Statistics], None] | None = None
        self._thread = threading.get_ident()
        self._loop = asyncio.get_running_loop() if sniffio.current_async_library() == "asyncio" else None

    def failed(self, error: WebSocketError) -> None:
        """Count a call that failed."""
        self.counters.failed(error)
        if self.late is not None:
            self.late(Statistics(errors={type(error).__name__: 1}))

    def is_here(self) -> bool:
        """True in the event loop that it was made in."""
        # Comparing anyio's tokens takes ten times as long, at every call. A thread runs one loop of trio at a time.
        if self._loop is None:
            return threading.get_ident() == self._thread and sniffio.thread_local.name == "trio"
        try:
            # trio's guest mode runs on top of an asyncio loop.
            return asyncio.get_running_loop() is self._loop and sniffio.thread_local.name is None
        except RuntimeError:
            return False


OpenRuntime = Callable[[TaskGroup], Runtime]


@asynccontextmanager
async def _running(open_runtime: OpenRuntime) -> AsyncIterator[Runtime]:
    """A pool for the length of a block; an error or a cancellation in the block aborts its connections."""
    quiet: _QuietTaskGroup | None = None
    try:
        async with single_error_task_group() as task_group:
            quiet = _QuietTaskGroup(task_group)
            runtime = open_runtime(cast("TaskGroup", quiet))
            quiet.start_soon(runtime.pool.run)
            try:
                yield runtime
                await runtime.pool.aclose()
            except BaseException:
                await runtime.pool.abort()  # noqa: ASYNC102 - shields and bounds itself
                raise
            task_group.cancel_scope.cancel()
    finally:
        if quiet is not None:
            quiet.close_unstarted()


class _QuietTaskGroup:
    """A task group of whose tasks it does not matter that they were cancelled before their first step.

    `asyncio.run` cancels all tasks that are left, also those that were started a moment ago. Python warns of a
    coroutine that nobody awaited when such a one is collected; one that was closed is fine.
    """

    def __init__(self, task_group: TaskGroup) -> None:
        self._task_group = task_group
        self._unstarted: list[Coroutine[Any, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task_group, name)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, name: object = None) -> None:
        coroutine = function(*args)
        if len(self._unstarted) >= _MANY_TASKS:
            # Not at every start: a coroutine that was asked for its frame keeps it, which is 200 bytes more.
            self._unstarted = [known for known in self._unstarted if _is_unstarted(known)]
        self._unstarted.append(coroutine)
        # Interned, as the tasks of all connections have the same few names.
        name = name or sys.intern(f"{function.__module__}.{function.__qualname__}")
        self._task_group.start_soon(lambda: coroutine, name=name)

    def close_unstarted(self) -> None:
        for coroutine in filter(_is_unstarted, self._unstarted):
            coroutine.close()


def _is_unstarted(coroutine: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


class Entered:
    """The pool of an object that was entered, in the event loop of its block."""

    was_used = True

    def __init__(self, open_runtime: OpenRuntime) -> None:
        self._open_runtime = open_runtime
        self._runtime: Runtime | None = None
        self.is_closed = False
        _all_homes.add(self)

    def __repr__(self) -> str:
        return "closed" if self.is_closed or self._runtime is None else repr(self._runtime.pool)

    @asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        async with _running(self._open_runtime) as self._runtime:
            try:
                yield
            finally:
                self.is_closed = True

    def _is_here(self) -> bool:
        """True in the event loop of the block."""
        return self._runtime is not None and self._runtime.is_here()

    def runtime_here(self) -> Runtime | None:
        """The pool, if this is its event loop and it is open."""
        runtime = self._runtime
        return runtime if runtime is not None and not self.is_closed and runtime.is_here() else None

    async def runtime(self) -> Runtime:
        """Like `runtime_here`, but raise an error instead of returning None.

        Raises:
            RuntimeError: The block was left, or this is another event loop.
        """
        runtime = self.runtime_here()
        if runtime is not None:
            return runtime
        if self.is_closed:
            raise RuntimeError(_CLOSED)
        raise RuntimeError("this WebSocketCommunicationProtocol belongs to the event loop in which it was entered")

    async def deregister(self, manual: str) -> None:
        """Close the connections of a manual."""
        if self._runtime is not None and not self.is_closed:
            await (await self.runtime()).pool.deregister(manual)

    async def close(self) -> None:
        """Close the pool; the block stays.

        Raises:
            RuntimeError: This is another event loop.
        """
        if self._is_here():
            was_closed, self.is_closed = self.is_closed, True
            if self._runtime is not None and not was_closed:
                await self._runtime.pool.aclose()
        elif not self.is_closed:
            raise RuntimeError("close() must be called in the event loop in which the protocol was entered")

    def statistics(self) -> Statistics:
        return Statistics() if self._runtime is None else self._runtime.pool.statistics()

    def leave_to_parent(self) -> None:
        """Belong to no event loop of this process, which was forked."""
        _of_the_parent.append(self._runtime)
        self.is_closed = True


class _Host:
    """A pool in a task of one asyncio event loop.

    Attributes:
        runtime: The pool and counters, once the task has made its first step.
        is_open: True until the task begins to close them.
        is_over: True when the task has ended.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, open_runtime: OpenRuntime, on_end: Callable[[_Host], None]
    ) -> None:
        self.loop = loop
        self.runtime: Runtime | None = None
        self.is_open = True
        self.is_over = False
        self._open_runtime = open_runtime
        self._on_end = on_end
        self._begun = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_dismissed = False
        self._deregistered: deque[str] = deque()
        # Not in the caller's context, whose variables should not live as long as the connections do; and not through
        # the loop's task factory: an eager one would run the first step inside the caller's.
        self.task = contextvars.Context().run(
            lambda: asyncio.Task(self._run(), loop=loop, name="utcp-websocket-anyio host")
        )
        # A task that is cancelled before its first step runs none of its code; its callbacks come all the same.
        self.task.add_done_callback(self._ended)

    async def _run(self) -> None:
        async with _running(self._open_runtime) as self.runtime:
            self._begun.set()
            try:
                while not self._is_dismissed:
                    while self._deregistered:
                        await self.runtime.pool.deregister(self._deregistered.popleft())
                    await self._wake.wait()
                    self._wake.clear()
            finally:
                self.is_open = False

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.is_open = False
        self.is_over = True
        self._begun.set()
        _unregister(self)
        self._on_end(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the host task of an event loop failed: %s", type(error).__qualname__)

    @property
    def is_running(self) -> bool:
        """True while the task can make a step."""
        return not self.is_over and self.loop.is_running()

    async def begun(self) -> None:
        await self._begun.wait()

    def dismiss(self) -> None:
        """Tell the host to close its connections and end, from any thread. In a stopped loop it does once that runs."""
        self._is_dismissed = True
        self._wake_up()

    def deregister(self, manual: str) -> None:
        """Tell the host to close the connections of a manual, from any thread."""
        self._deregistered.append(manual)
        self._wake_up()

    def _wake_up(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._wake.set)


class Hosts:
    """The pools of an object that was not entered: one in each event loop that uses it."""

    def __init__(self, open_runtime: OpenRuntime) -> None:
        self._open_runtime = open_runtime
        self._lock = threading.Lock()
        self._hosts: dict[asyncio.AbstractEventLoop, _Host] = {}
        self._ended = Statistics()
        self.is_closed = False
        self.was_used = False
        _all_homes.add(self)

    def __repr__(self) -> str:
        if self.is_closed:
            return "closed"
        pools = [repr(host.runtime.pool) for host in list(self._hosts.values()) if host.runtime is not None]
        return ", ".join(pools) or "unused"

    def runtime_here(self) -> Runtime | None:
        """The pool of the running event loop, if there is one already."""
        if self.is_closed:
            return None
        try:
            host = self._hosts.get(asyncio.get_running_loop())
        except RuntimeError:
            return None
        # trio's guest mode runs on top of an asyncio loop.
        if host is None or not host.is_open or host.task.cancelling() or sniffio.thread_local.name is not None:
            return None
        return host.runtime

    async def runtime(self) -> Runtime:
        """The pool of the running event loop, with a new host if it has none.

        Raises:
            RuntimeError: The object is closed, or this is not asyncio.
        """
        while True:
            if self.is_closed:
                raise RuntimeError(_CLOSED)
            if sniffio.current_async_library() != "asyncio":
                raise RuntimeError(
                    "on trio a WebSocketCommunicationProtocol must be entered: use it with 'async with', or let"
                    " open_client() do so"
                )
            host = self._host_here()
            await host.begun()
            if host.is_open and not host.task.cancelling() and host.runtime is not None:
                return host.runtime
            # It was cancelled, perhaps with all other tasks of the loop, and is replaced.
            await asyncio.wait([host.task])

    def _host_here(self) -> _Host:
        loop = asyncio.get_running_loop()
        with self._lock:
            host = self._hosts.get(loop)
            if host is not None and not host.is_over:
                return host
            if self.is_closed:
                raise RuntimeError(_CLOSED)
            self.was_used = True
            host = self._hosts[loop] = _Host(loop, self._open_runtime, self._host_ended)
            others = [other for other in self._hosts.values() if other is not host]
        _register(host)
        stopped = [other for other in others if not other.loop.is_running() and not other.loop.is_closed()]
        # A closed loop that has a host is one whose `close` could not be replaced.
        closed = [other for other in others if other.loop.is_closed()]
        for other in closed + stopped[:-_MAX_STOPPED]:
            self._forget(other)
        return host

    def _forget(self, host: _Host) -> None:
        """End the host of an event loop that was closed, or stopped and probably dropped."""
        _run_until_ended([host])
        if not host.is_over:
            _unregister(host)
            self._host_ended(host)

    def _host_ended(self, host: _Host) -> None:
        with self._lock:
            if self._hosts.get(host.loop) is not host:
                return
            del self._hosts[host.loop]
            if host.runtime is not None:
                self._ended = total([self._ended, host.runtime.pool.statistics()])
                host.runtime.late = self._count_late

    def _count_late(self, figures: Statistics) -> None:
        with self._lock:
            self._ended = total([self._ended, figures])

    async def deregister(self, manual: str) -> None:
        """Close the connections of a manual in all event loops, and wait for those of this one."""
        runtime = self.runtime_here()
        for host in list(self._hosts.values()):
            if host.runtime is not runtime:
                host.deregister(manual)
        if runtime is not None:
            await runtime.pool.deregister(manual)

    def dismiss(self) -> None:
        """End all hosts, without waiting for it. A finalizer may call it: it takes no lock."""
        self.is_closed = True
        for host in list(self._hosts.values()):
            host.dismiss()

    async def close(self) -> None:
        """End all hosts, and wait for those that can make a step.

        Raises:
            RuntimeError: An event loop in another thread did not end its host in time.
        """
        with self._lock:
            self.is_closed = True
            hosts = list(self._hosts.values())
        for host in hosts:
            host.dismiss()
        loop = asyncio.get_running_loop() if sniffio.current_async_library() == "asyncio" else None
        for host in hosts:
            if host.loop is loop:
                await asyncio.wait([host.task])
        with anyio.move_on_after(_CLOSING_TIME):
            while any(host.is_running for host in hosts):  # noqa: ASYNC110 - in other threads, whose loops may stop
                await anyio.sleep(_POLL_INTERVAL)
        if any(host.is_running for host in hosts):
            raise RuntimeError(
                f"an event loop in another thread did not close its connections within {_CLOSING_TIME:g} s;"
                " that thread is blocked"
            )

    def statistics(self) -> Statistics:
        with self._lock:
            runtimes = [host.runtime for host in self._hosts.values() if host.runtime is not None]
            return total([self._ended, *(runtime.pool.statistics() for runtime in runtimes)])

    def leave_to_parent(self) -> None:
        """Begin anew in a process that was forked; the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        self._hosts = {}
        self._ended = Statistics()


# All hosts, by event loop

_registry: dict[asyncio.AbstractEventLoop, dict[_Host, None]] = {}
_registry_lock = threading.Lock()
_all_homes: weakref.WeakSet[Entered | Hosts] = weakref.WeakSet()
_of_the_parent: list[object] = []


def _register(host: _Host) -> None:
    with _registry_lock:
        hosts = _registry.setdefault(host.loop, {})
        if not hosts:
            _replace_close(host.loop)
        hosts[host] = None


def _unregister(host: _Host) -> None:
    with _registry_lock:
        hosts = _registry.get(host.loop, {})
        hosts.pop(host, None)
        if not hosts and _registry.pop(host.loop, None) is not None:
            _restore_close(host.loop)


class _Close:
    """`loop.close` of a loop that has hosts."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._close = loop.close

    def __call__(self) -> None:
        # A running loop cannot be closed; the loop says so itself.
        if not self._loop.is_running():
            _run_until_ended(list(_registry.get(self._loop, ())))
        self._close()


def _replace_close(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(AttributeError):  # an implementation without a __dict__
        loop.close = _Close(loop)  # type: ignore[method-assign]  # wrapped on purpose


def _restore_close(loop: asyncio.AbstractEventLoop) -> None:
    # Other code may have wrapped it meanwhile; what is left then does nothing more.
    if isinstance(getattr(loop, "__dict__", {}).get("close"), _Close):
        del loop.close


def _run_until_ended(hosts: Iterable[_Host]) -> None:
    """Run event loops that are stopped until the given hosts have ended, their connections aborted.

    In a thread of its own where one is running already, as a thread can run only one.
    """
    for host in hosts:
        if host.is_over or host.loop.is_closed() or host.loop.is_running():
            continue
        try:
            sniffio.current_async_library()
        except sniffio.AsyncLibraryNotFoundError:
            _run_until_host_ended(host)
        else:
            thread = threading.Thread(target=_run_until_host_ended, args=(host,), daemon=True)
            thread.start()
            thread.join(_CLOSING_TIME)


def _run_until_host_ended(host: _Host) -> None:
    contextvars.Context().run(_run_loop_until_ended, host.loop, host.task)


def _run_loop_until_ended(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    loop.call_soon_threadsafe(task.cancel)
    limit = loop.call_later(_CLOSING_TIME, loop.stop)
    # A `stop` called while the loop did not run, or by one of the user's callbacks, ends a run before its time.
    for _ in range(3):
        with suppress(RuntimeError, asyncio.CancelledError):
            if not task.done():
                loop.run_until_complete(task)
    limit.cancel()
    # Transports close their sockets in a callback of their own; this is one turn of the loop.
    with suppress(RuntimeError):
        for _ in range(3):
            loop.call_soon(loop.stop)
            loop.run_forever()


def _end_all() -> None:
    """At the exit of the interpreter: nothing stays open, and nothing is printed."""
    hosts = [host for hosts in list(_registry.values()) for host in list(hosts)]
    _run_until_ended(hosts)
    for host in hosts:
        host.dismiss()
    ended = threading.Event()
    for _ in range(int(_CLOSING_TIME / _POLL_INTERVAL)):
        # Loops in daemon threads go on meanwhile.
        if not any(host.is_running for host in hosts):
            break
        ended.wait(_POLL_INTERVAL)


def _begin_anew() -> None:
    global _registry_lock  # noqa: PLW0603 - the parent's may be held by a thread that the child does not have
    _registry_lock = threading.Lock()
    for loop in _registry:
        _restore_close(loop)
    # Kept, so that no finalizer of a connection, a task or a loop runs here.
    _of_the_parent.extend(hosts for hosts in _registry.values())
    _registry.clear()
    for home in list(_all_homes):
        home.leave_to_parent()


atexit.register(_end_all)
in_each_child(_begin_anew)
