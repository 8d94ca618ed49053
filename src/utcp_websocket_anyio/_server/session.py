"""One connection to a tool server, and the calls on it.

One task reads, and starts a task for each request; these run at once and answer in any order, each answer with the
`request_id` of its request. When the client goes, or the server ends, they are cancelled.

A client that gives up on a single call says ``{"type": "cancel", "request_id": …}``, and gets no answer to either. That
is acted on as soon as it is read: it must not wait its turn behind the calls that it is to end. The cases:

- the call runs: it is cancelled, but never while a message is being sent, of which half would be out by then;
- it waits for its turn: it is not begun;
- there is none, or not any more: nothing happens.

What a client can make the server hold is bounded by a budget of its connection:

1. `max_calls` requests are answered at once. Those beyond wait, as they came, and are begun in their order. Meanwhile
   the server reads on: a client that sends pings of its own must get its pongs, and one that goes must be noticed.
2. Requests that are answered or wait, and answers that wait for the client to read, may together have as many bytes as
   the longest message. A single request always has room. Ten times `max_calls` may wait.
3. When that is used up, the server stops reading, its small buffers fill up, and the client is held up by TCP.

A further task sends pings. A client is dead if, after a ping, nothing at all moves for `pong_timeout`: no byte from it,
and none to it. A long message on a slow line does not count as dead, nor does silence while the server does not read.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import anyio
from pydantic_core import to_jsonable_python

from .threads import Workers
from .tools import Tool, WrongArguments
from .transport import GOING_AWAY, Connection, Disconnected, Scope, Tasks

__all__ = ["Service", "Session"]

_log = logging.getLogger(__name__)

_DISCOVERY_TYPES = ("utcp", "discover")
# It is a part of every answer, so a long one would make much out of little.
_MAX_ID_LENGTH = 1000
# Of a "cancel" that is acted on at once; a longer one waits its turn.
_MAX_CANCEL_LENGTH = 2000
_EXCERPT_LENGTH = 100
_WAITING_PER_CALL = 10
# Times of `pong_timeout`. A client that is gone is not noticed while the server does not read.
_MAX_SILENCE_FACTOR = 20


@dataclass(frozen=True, slots=True)
class Service:
    """State shared by all connections of a server."""

    name: str
    tools: Mapping[str, Tool]
    workers: Workers
    open_tasks: Callable[[], AbstractAsyncContextManager[Tasks]]
    open_scope: Callable[[], Scope]
    is_cancelled: Callable[[], bool]
    max_calls: int
    max_bytes: int
    ping_interval: float | None
    pong_timeout: float


class _BadRequest(Exception):  # noqa: N818 - the text is all that it is for
    """A client's message is not a request.

    Args:
        request_id: Id of the request, as JSON.
    """

    def __init__(self, text: str, request_id: str = "null") -> None:
        super().__init__(text)
        self.request_id = request_id


class _Call:
    """A call that is running.

    Attributes:
        scope: The scope that it runs in.
        is_left: True if its client has given it up.
    """

    __slots__ = ("_is_sending", "is_left", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.is_left = False
        self._is_sending = False

    def leave(self) -> None:
        """Cancel it, as soon as it is not sending."""
        self.is_left = True
        if not self._is_sending:
            self.scope.cancel()

    def sending_begins(self) -> None:
        self._is_sending = True

    def sending_ends(self) -> None:
        self._is_sending = False
        if self.is_left:
            self.scope.cancel()


class _GivenUp:
    """Ids of calls that were given up before they were parsed.

    Each stands there with the number of requests that had come by then, as a client may use an id again.

    Args:
        limit: Most ids kept; the oldest goes first, as its call is likely to be past.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, request_id: str, number: int) -> None:
        """Note that the request of this id is given up, if it is one of the first `number`."""
        self._numbers.pop(request_id, None)
        self._numbers[request_id] = number
        if len(self._numbers) > self._limit:
            del self._numbers[next(iter(self._numbers))]

    def has(self, request_id: str, number: int) -> bool:
        """True if this request, the one of this number, is given up."""
        return self._numbers.get(request_id, 0) >= number

    def forget(self, number: int) -> None:
        """Forget what is only about the first `number` requests."""
        for request_id in [one for one, up_to in self._numbers.items() if up_to <= number]:
            del self._numbers[request_id]


class Session:
    """A connection from its handshake to its end.

    Args:
        manual: Makes the manual that this client is given.
    """

    def __init__(self, connection: Connection, service: Service, manual: Callable[[], dict[str, Any]]) -> None:
        self._connection = connection
        self._service = service
        self._manual = manual
        self._budget = _Budget(service.max_calls, service.max_bytes)
        self._tasks: Tasks
        self._running: dict[str, _Call] = {}
        self._given_up = _GivenUp(_WAITING_PER_CALL * service.max_calls)
        # Numbers of requests so far. One that has begun may be parsed only after the next message has come.
        self._received = 0
        self._begun = 0
        self._parsed = 0

    async def run(self) -> None:
        """Serve the client until it goes. If cancelled, say goodbye to it first."""
        try:
            async with self._service.open_tasks() as self._tasks:
                if self._service.ping_interval is not None:
                    self._tasks.start_soon(self._keep_alive, self._service.ping_interval)
                with suppress(Disconnected):
                    await self._receive()
                self._tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):  # bounded by the connection
                await self._connection.close(GOING_AWAY, "going away")

    async def _receive(self) -> None:
        while True:
            message = await self._connection.receive()
            left = _left_by(message)
            if left is not None:
                self._cancel(left, self._received)
                continue
            self._received += 1
            await self._budget.wait_for_room(len(message))
            self._budget.keep(message)
            del message  # the budget has it
            self._begin()

    def _begin(self) -> None:
        """Begin the requests that there is room for."""
        while (message := self._budget.take()) is not None:
            self._begun += 1
            self._tasks.start_soon(self._answer, [message], len(message), self._begun)

    async def _answer(self, held: list[str | bytes], size: int, number: int) -> None:
        """Answer a request.

        Args:
            held: The message, and the only reference to it: it is not needed once it is parsed.
            number: Its place among the requests of the connection.
        """
        try:
            request = self._parse(held.pop(), number)
            if request is None:
                pass  # it was given up while it waited
            elif request["type"] == "call_tool":
                await self._call(request)
            elif request["type"] == "cancel":
                self._cancel(request["request_id"], number)
            else:
                await self._send(json.dumps(self._manual()))
        except _BadRequest as error:
            with suppress(Disconnected):
                await self._send(_error(error.request_id, str(error)))
        except Disconnected:
            pass
        except Exception:  # noqa: BLE001 - one request does not end the server
            _log.exception("a request to server %s failed", self._service.name)
        finally:
            self._budget.give_back(size)
        # Not if it was cancelled: then the client has gone, and nothing more is begun for it.
        self._begin()

    def _parse(self, message: str | bytes, number: int) -> dict[str, Any] | None:
        """A request; None if its client has given it up since."""
        try:
            request = _read(message)
        finally:
            self._parsed += 1
        if not self._given_up:
            return request
        is_given_up = self._given_up.has(request["request_id"], number)
        if self._parsed == self._begun:
            self._given_up.forget(self._begun)
        return None if is_given_up else request

    def _cancel(self, request_id: str, received: int) -> None:
        """End a call that its client has given up.

        Args:
            received: Number of requests that came before that was said.
        """
        call = self._running.get(request_id)
        if call is not None:
            call.leave()
        elif self._parsed < received:
            self._given_up.add(request_id, received)

    async def _call(self, request: dict[str, Any]) -> None:
        request_id: str = request["request_id"]
        name = request.get("tool_name")
        tool = self._service.tools.get(name) if isinstance(name, str) else None
        if tool is None:
            await self._send(_error(request_id, f"unknown tool {_shown(name)}"))
            return
        try:
            arguments = tool.read_arguments(request.pop("arguments", None))
        except WrongArguments as error:
            await self._send(_error(request_id, str(error)))
            return
        call = self._running[request_id] = _Call(self._service.open_scope())
        answer = ""
        try:
            with call.scope:
                result = await tool.run(arguments, self._service.workers)
                if tool.is_stream:
                    await self._send_items(call, request_id, result)
                    answer = f'{{"type": "stream_end", "request_id": {request_id}}}'
                else:
                    answer = _response(request_id, result)
        except Disconnected:
            raise
        except anyio.get_cancelled_exc_class():  # noqa: ASYNC103 - the tool's own, not this task's
            if self._service.is_cancelled():
                raise
            answer = _error(request_id, "CancelledError: what the tool waited for was cancelled")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool may be a program's main function, and exit
            _log.exception("tool %s of server %s failed", tool.name, self._service.name)
            answer = _error(request_id, _error_text(error))
        finally:
            if self._running.get(request_id) is call:
                del self._running[request_id]
        if not call.is_left:
            await self._send(answer)

    async def _send_items(self, call: _Call, request_id: str, items: Any) -> None:
        async with aclosing(items) if hasattr(items, "aclose") else nullcontext():
            async for item in items:
                if call.is_left:  # and has taken no notice of it
                    return
                text = _response(request_id, item)
                call.sending_begins()
                await self._send(text)
                call.sending_ends()

    async def _send(self, text: str) -> None:
        self._budget.add_bytes(len(text))
        try:
            await self._connection.send(text)
        finally:
            self._budget.add_bytes(-len(text))
        self._begin()

    async def _keep_alive(self, interval: float) -> None:
        is_open = True
        while is_open:
            await anyio.sleep(interval)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._abort_if_dead)
                try:
                    await self._connection.ping()
                except Disconnected:
                    is_open = False
                tasks.cancel_scope.cancel()

    async def _abort_if_dead(self) -> None:
        seen, silent = None, 0
        while (progress := self._connection.progress) != seen or (
            self._budget.is_waited_for and silent < _MAX_SILENCE_FACTOR
        ):
            silent = silent + 1 if progress == seen else 0
            seen = progress
            await anyio.sleep(self._service.pong_timeout)
        _log.debug("a client of server %s does not answer pings", self._service.name)
        self._connection.abort()


class _Budget:
    """Limits what the requests of one connection take up at once; the others wait."""

    def __init__(self, calls: int, size: int) -> None:
        self._max_calls = calls
        self._max_bytes = size
        self._calls = 0
        self._bytes = 0
        self._waiting: deque[str | bytes] = deque()
        self._change: anyio.Event | None = None

    @property
    def is_waited_for(self) -> bool:
        """True while there is no room to keep the next request."""
        return self._change is not None

    async def wait_for_room(self, size: int) -> None:
        """Wait until there is room to keep one more request of this many bytes."""
        while (self._bytes and self._bytes + size > self._max_bytes) or (
            len(self._waiting) >= _WAITING_PER_CALL * self._max_calls
        ):
            self._change = anyio.Event()
            try:
                await self._change.wait()
            finally:
                self._change = None

    def keep(self, message: str | bytes) -> None:
        """Keep a request until it can be answered."""
        self._waiting.append(message)
        self._bytes += len(message)

    def take(self) -> str | bytes | None:
        """The next request, if it can be answered now."""
        has_room = self._calls == 0 or (self._calls < self._max_calls and self._bytes <= self._max_bytes)
        if not self._waiting or not has_room:
            return None
        self._calls += 1
        self._changed()
        return self._waiting.popleft()

    def give_back(self, size: int) -> None:
        """A request of this many bytes was answered."""
        self._calls -= 1
        self.add_bytes(-size)

    def add_bytes(self, size: int) -> None:
        """Account for bytes that do not wait for room: those of answers."""
        self._bytes += size
        self._changed()

    def _changed(self) -> None:
        if self._change is not None:
            self._change.set()


def _left_by(message: str | bytes) -> str | None:
    """The id of the call that a message cancels; None if it is another kind of message, or a long one."""
    says_so = "cancel" in message if isinstance(message, str) else b"cancel" in message
    if not says_so or len(message) > _MAX_CANCEL_LENGTH:
        return None
    try:
        request = _read(message)
    except _BadRequest:  # answered in its turn
        return None
    return str(request["request_id"]) if request["type"] == "cancel" else None


def _read(message: str | bytes) -> dict[str, Any]:
    """A request, with a known `type`, and with its `request_id` as JSON.

    Raises:
        _BadRequest: The message is not a request.
    """
    if message in ("manual", b"manual"):
        return {"type": "utcp", "request_id": "null"}
    try:
        text = message if isinstance(message, str) else message.decode()
        request = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        reason = "the message is not JSON"
    else:
        if isinstance(request, dict):
            return _checked(request)
        reason = "the message is not a JSON object"
    raise _BadRequest(reason)


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    try:
        request_id = json.dumps(request.get("request_id"), allow_nan=False)
    except (ValueError, RecursionError):
        request_id = ""
    if not 0 < len(request_id) <= _MAX_ID_LENGTH:
        raise _BadRequest(f'"request_id" must be JSON of at most {_MAX_ID_LENGTH} characters')
    kind = request.get("type")
    if kind not in ("call_tool", "cancel", *_DISCOVERY_TYPES):
        raise _BadRequest('"type" must be "utcp", "discover", "call_tool" or "cancel"', request_id)
    if kind == "cancel" and request_id == "null":
        raise _BadRequest('"cancel" needs the "request_id" of a call')
    request["request_id"] = request_id
    return request


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _response(request_id: str, result: Any) -> str:
    encoded = json.dumps(to_jsonable_python(result), allow_nan=False)
    return f'{{"type": "tool_response", "request_id": {request_id}, "result": {encoded}}}'


def _error(request_id: str, text: str) -> str:
    return f'{{"type": "tool_error", "request_id": {request_id}, "error": {json.dumps(text)}}}'


def _shown(name: Any) -> str:
    """A tool's name that the client made up, short."""
    if not isinstance(name, str):
        return "whose name is not a string"
    return repr(name if len(name) <= _EXCERPT_LENGTH else f"{name[:_EXCERPT_LENGTH]}...")


def _error_text(error: BaseException) -> str:
    """The text of a tool's failure."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception may be unable to tell what it is
        return type(error).__name__
