"""One connection to a tool server, and the calls on it.

One task reads, and starts a task for each request; these run at once and answer in any order, each answer with the
`request_id` of its request. When the client goes, or the server ends, they are cancelled.

What a client can make the server hold is bounded by a budget of its connection. It has room for `max_calls` requests,
and for as many bytes as the longest message may have: those of the requests that are being answered, and of the answers
that are waiting for the client to read. The next request is begun when there is room for it; until then the reading
task waits, the connection's small buffers fill up, and the client is held up by TCP. A single request always has room.

A third task sends pings. A client is dead if, after a ping, nothing at all moves for `pong_timeout`: no byte from it,
and none to it. A long message on a slow line is no death, nor is silence while the server itself does not read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from typing import Any

import anyio
from pydantic_core import to_jsonable_python

from .threads import Workers
from .tools import Tool, WrongArguments
from .transport import GOING_AWAY, Connection, Disconnected, Tasks

__all__ = ["Service", "Session"]

_log = logging.getLogger(__name__)

_DISCOVERY_TYPES = ("utcp", "discover")
# It is a part of every answer, so a long one would make much out of little.
_LONGEST_ID = 1000
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Service:
    """What all connections of a server have in common."""

    name: str
    tools: Mapping[str, Tool]
    workers: Workers
    open_tasks: Callable[[], AbstractAsyncContextManager[Tasks]]
    is_cancelled: Callable[[], bool]
    max_calls: int
    max_bytes: int
    ping_interval: float | None
    pong_timeout: float


class _BadRequest(Exception):  # noqa: N818 - the text is all that it is for
    """What a client sent is not a request.

    Args:
        request_id: Its id, as JSON.
    """

    def __init__(self, text: str, request_id: str = "null") -> None:
        super().__init__(text)
        self.request_id = request_id


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

    async def run(self) -> None:
        """Serve the client until it goes. If cancelled, say goodbye to it first."""
        try:
            async with self._service.open_tasks() as tasks:
                if self._service.ping_interval is not None:
                    tasks.start_soon(self._keep_alive, self._service.ping_interval)
                with suppress(Disconnected):
                    await self._receive(tasks)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):  # bounded by the connection
                await self._connection.close(GOING_AWAY, "going away")

    async def _receive(self, tasks: Tasks) -> None:
        while True:
            message = await self._connection.receive()
            size = len(message)
            await self._budget.wait_for_room(size)
            try:
                request = _read(message)
            except _BadRequest as error:
                # Here, not in a task of its own: who talks nonsense is served no faster than it reads.
                await self._send_error(error.request_id, str(error))
                continue
            finally:
                del message  # the request is what counts from now on
            self._budget.take(size)
            tasks.start_soon(self._answer, request, size)

    async def _answer(self, request: dict[str, Any], size: int) -> None:
        try:
            if request["type"] == "call_tool":
                await self._call(request)
            else:
                await self._send(json.dumps(self._manual()))
        except Disconnected:
            pass
        except Exception:  # noqa: BLE001 - one request does not end the server
            _log.exception("a request to server %s failed", self._service.name)
        finally:
            self._budget.give_back(size)

    async def _call(self, request: dict[str, Any]) -> None:
        request_id: str = request["request_id"]
        name = request.get("tool_name")
        tool = self._service.tools.get(name) if isinstance(name, str) else None
        if tool is None:
            await self._send_error(request_id, f"there is no tool {_shown(name)}")
            return
        try:
            arguments = tool.read_arguments(request.pop("arguments", None))
        except WrongArguments as error:
            await self._send_error(request_id, str(error))
            return
        try:
            result = await tool.run(arguments, self._service.workers)
            if tool.is_stream:
                await self._send_items(request_id, result)
            else:
                await self._send_result(request_id, result)
        except Disconnected:
            raise
        except anyio.get_cancelled_exc_class():
            if self._service.is_cancelled():
                raise
            await self._send_error(request_id, "CancelledError: what the tool waited for was cancelled")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool may be a program's main function, and exit
            _log.exception("tool %s of server %s failed", tool.name, self._service.name)
            await self._send_error(request_id, _told(error))

    async def _send_items(self, request_id: str, items: Any) -> None:
        if hasattr(items, "aclose"):
            async with aclosing(items):
                async for item in items:
                    await self._send_result(request_id, item)
        else:
            async for item in items:
                await self._send_result(request_id, item)
        await self._send(f'{{"type": "stream_end", "request_id": {request_id}}}')

    async def _send_result(self, request_id: str, result: Any) -> None:
        encoded = json.dumps(to_jsonable_python(result), allow_nan=False)
        await self._send(f'{{"type": "tool_response", "request_id": {request_id}, "result": {encoded}}}')

    async def _send_error(self, request_id: str, text: str) -> None:
        await self._send(f'{{"type": "tool_error", "request_id": {request_id}, "error": {json.dumps(text)}}}')

    async def _send(self, text: str) -> None:
        self._budget.add_bytes(len(text))
        try:
            await self._connection.send(text)
        finally:
            self._budget.add_bytes(-len(text))

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
        seen = None
        while (progress := self._connection.progress) != seen or self._budget.is_waited_for:
            seen = progress
            await anyio.sleep(self._service.pong_timeout)
        _log.debug("a client of server %s does not answer pings", self._service.name)
        self._connection.abort()


class _Budget:
    """What the requests of one connection may take up at once."""

    def __init__(self, calls: int, size: int) -> None:
        self._calls = calls
        self._bytes = size
        self._free_calls = calls
        self._used_bytes = 0
        self._change: anyio.Event | None = None

    @property
    def is_waited_for(self) -> bool:
        """True while there is no room for the next request."""
        return self._change is not None

    async def wait_for_room(self, size: int) -> None:
        """Wait until there is room for one more request of this many bytes."""
        while not self._free_calls or (self._used_bytes and self._used_bytes + size > self._bytes):
            self._change = anyio.Event()
            try:
                await self._change.wait()
            finally:
                self._change = None

    def take(self, size: int) -> None:
        self._free_calls -= 1
        self._used_bytes += size

    def give_back(self, size: int) -> None:
        self._free_calls += 1
        self.add_bytes(-size)

    def add_bytes(self, size: int) -> None:
        """Account for bytes that do not wait for room: those of answers."""
        self._used_bytes += size
        if self._change is not None:
            self._change.set()


def _read(message: str | bytes) -> dict[str, Any]:
    """A request, with a known `type`, and with its `request_id` as JSON.

    Raises:
        _BadRequest: It is none.
    """
    if message in ("manual", b"manual"):
        return {"type": "utcp"}
    try:
        text = message if isinstance(message, str) else message.decode()
        request = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        fault = "the message is not JSON"
    else:
        if isinstance(request, dict):
            return _checked(request)
        fault = "the message is not a JSON object"
    raise _BadRequest(fault)


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    try:
        request_id = json.dumps(request.get("request_id"), allow_nan=False)
    except (ValueError, RecursionError):
        request_id = ""
    if not 0 < len(request_id) <= _LONGEST_ID:
        raise _BadRequest(f'"request_id" must be JSON of at most {_LONGEST_ID} characters')
    kind = request.get("type")
    if kind != "call_tool" and kind not in _DISCOVERY_TYPES:
        raise _BadRequest('"type" must be "utcp", "discover" or "call_tool"', request_id)
    request["request_id"] = request_id
    return request


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _shown(name: Any) -> str:
    """A tool's name that the client made up, short."""
    if not isinstance(name, str):
        return "whose name is not a string"
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _told(error: BaseException) -> str:
    """The text of a tool's failure."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception may be unable to tell what it is
        return type(error).__name__
