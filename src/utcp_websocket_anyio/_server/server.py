"""`ToolServer`: Python functions as UTCP tools, published over WebSocket.

It runs on trio, on `trio-websocket`: an implementation of the protocol that shares nothing with the client's engines,
so that the two test each other. Each connection has a nursery for its calls, which run concurrently; when the client
goes away they are cancelled.
"""

from __future__ import annotations

import inspect
import json
import logging
import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, overload

import trio
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_server_stream
from utcp.python_specific_tooling.version import __version__ as utcp_version

from .schemas import inputs_of, outputs_of

__all__ = ["ToolServer"]

_log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

_HANDSHAKE_TIME = 10.0
_CLOSING_TIME = 2.0
_DISCOVERY_TYPES = ("utcp", "discover")


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    description: str
    tags: tuple[str, ...]
    function: Callable[..., Any]
    arguments: TypeAdapter[dict[str, Any]]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    timeout: float | None


class ToolServer:
    """Publishes functions as UTCP tools.

    ::

        server = ToolServer("arithmetic")

        @server.tool
        async def add(a: int, b: int) -> int:
            "Add two integers."
            return a + b

        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, "127.0.0.1", 0)
            print(server.url)

    The schemas of a tool come from its function's type hints, its description from the docstring; arguments are
    validated and converted by pydantic before the function is called, and results are turned into JSON by it.

    An ``async`` function runs in the server's event loop. A plain one runs in a worker thread, which is left to itself
    when the call is cancelled. An asynchronous generator is a stream. What a function raises is the tool's error; its
    text goes to the caller, its traceback to the log.

    Args:
        name: Of the server, for logs.
        max_concurrent_calls: Per connection; beyond it, the server stops reading from that connection.
        max_message_size: Longest incoming message, in bytes.
        ssl_context: To serve ``wss://``.
    """

    def __init__(
        self,
        name: str,
        *,
        max_concurrent_calls: int = 1000,
        max_message_size: int = 16 * 2**20,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self._max_concurrent_calls = max_concurrent_calls
        self._max_message_size = max_message_size
        self._ssl_context = ssl_context
        self._tools: dict[str, _Tool] = {}
        self._url: str | None = None

    def __repr__(self) -> str:
        return f"<ToolServer {self.name!r}, {len(self._tools)} tools, {self._url or 'not serving'}>"

    @property
    def url(self) -> str:
        """Where the tools are, once it is serving.

        Raises:
            RuntimeError: It is not.
        """
        if self._url is None:
            raise RuntimeError(
                "the server is not serving; start it with: await nursery.start(server.serve, host, port)"
            )
        return self._url

    @overload
    def tool(self, function: Function) -> Function: ...

    @overload
    def tool(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] = (),
        timeout: float | None = None,
    ) -> Callable[[Function], Function]: ...

    def tool(
        self,
        function: Function | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] = (),
        timeout: float | None = None,
    ) -> Function | Callable[[Function], Function]:
        """Publish a function; also as a decorator, with or without arguments.

        Args:
            name: Of the tool, instead of the function's.
            description: Instead of the docstring.
            tags: For searching.
            timeout: Seconds that a client is to wait for the whole response (`response_timeout`).

        Returns:
            The function, unchanged.

        Raises:
            ValueError: There is a tool of that name already.
            TypeError: The function has parameters that cannot be named in JSON.
        """
        if function is None:
            return partial(self.tool, name=name, description=description, tags=tags, timeout=timeout)
        name = name or function.__name__
        if name in self._tools:
            raise ValueError(f"there is a tool named {name!r} already")
        arguments, inputs = inputs_of(function, name)
        self._tools[name] = _Tool(
            name=name,
            description=description if description is not None else inspect.getdoc(function) or "",
            tags=tuple(tags),
            function=function,
            arguments=arguments,
            inputs=inputs,
            outputs=outputs_of(function),
            timeout=timeout,
        )
        return function

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled. Cancelling it cancels the calls and closes the connections (code 1001, within 2 s).

        Args:
            host: The address to listen at.
            port: 0: any free one; see `url`.
        """
        listeners = await self._listeners(host, port)
        port = _port(listeners[0])
        scheme = "ws" if self._ssl_context is None else "wss"
        shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host  # noqa: S104 - compared
        self._url = f"{scheme}://{shown}:{port}"
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self._serve_client, listeners)
                task_status.started()
        finally:
            self._url = None

    def manual(self, url: str | None = None) -> dict[str, Any]:
        """The UTCP manual of the tools, as JSON.

        Args:
            url: Where the tools are called; None: at `url`.
        """
        url = url or self.url
        return {
            "utcp_version": utcp_version,
            "manual_version": "1.0.0",
            "tools": [_described(tool, url) for tool in self._tools.values()],
        }

    async def _listeners(self, host: str, port: int) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        if self._ssl_context is None:
            return await trio.open_tcp_listeners(port, host=host)
        return await trio.open_ssl_over_tcp_listeners(port, self._ssl_context, host=host, https_compatible=True)

    async def _serve_client(self, stream: trio.abc.Stream) -> None:
        """One connection, from its handshake to its end; whatever it does, the others go on."""
        try:
            async with trio.open_nursery() as nursery:
                reading = await nursery.start(_keep_reading, nursery.cancel_scope)
                try:
                    await self._accept(stream, reading)
                finally:
                    reading.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)

    async def _accept(self, stream: trio.abc.Stream, reading: trio.Nursery) -> None:
        try:
            with trio.fail_after(_HANDSHAKE_TIME):
                request = await wrap_server_stream(
                    reading,
                    stream,
                    message_queue_size=self._max_concurrent_calls,
                    max_message_size=self._max_message_size,
                )
                connection = await request.accept()
        except (trio.TooSlowError, HandshakeError, ConnectionClosed):
            return
        # Where the client came to, so it can come back: a listener's own address may mean nothing to it. The query may
        # hold credentials. trio-websocket keeps Host apart from the other headers, and to itself.
        scheme = "ws" if self._ssl_context is None else "wss"
        path = request.path.partition("?")[0]
        url = f"{scheme}://{request._event.host}{'' if path == '/' else path}"
        await _Session(self, connection, url).run()


async def _keep_reading(  # noqa: ASYNC114 - only ever started in a nursery of its own
    client: trio.CancelScope, *, task_status: trio.TaskStatus[trio.Nursery]
) -> None:
    """A nursery for trio-websocket's reader, which the closing handshake of a cancelled server still needs."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            task_status.started(nursery)
            await trio.sleep_forever()
    except Exception as error:  # noqa: BLE001 - some clients make it raise; that is the end of their connection only
        _log.debug("lost a client: %r", error)
    client.cancel()


class _Session:
    """One connection and the calls on it."""

    def __init__(self, server: ToolServer, connection: WebSocketConnection, url: str) -> None:
        self._server = server
        self._connection = connection
        self._url = url
        self._slots = trio.CapacityLimiter(server._max_concurrent_calls)

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await self._receive(nursery)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(_CLOSING_TIME, shield=True):
                await self._connection.aclose(1001, "going away")

    async def _receive(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                message = await self._connection.get_message()
            except ConnectionClosed:
                return
            token = object()
            await self._slots.acquire_on_behalf_of(token)
            nursery.start_soon(self._answer, message, token)

    async def _answer(self, message: str | bytes, token: object) -> None:
        try:
            await self._handle(message)
        except ConnectionClosed:
            pass
        except Exception:  # noqa: BLE001 - one request does not end the server
            _log.exception("a request to server %s failed", self._server.name)
        finally:
            self._slots.release_on_behalf_of(token)

    async def _handle(self, message: str | bytes) -> None:
        if message == "manual":
            await self._send(self._server.manual(self._url))
            return
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            await self._send_error(None, "the message is not JSON")
            return
        if not isinstance(request, dict):
            await self._send_error(None, "the message is not a JSON object")
        elif request.get("type") in _DISCOVERY_TYPES:
            await self._send(self._server.manual(self._url))
        elif request.get("type") == "call_tool":
            await self._call(request)
        else:
            await self._send_error(request.get("request_id"), "the message has no type of utcp, discover or call_tool")

    async def _call(self, request: dict[str, Any]) -> None:
        request_id = request.get("request_id")
        name = request.get("tool_name")
        tool = self._server._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            await self._send_error(request_id, f"there is no tool {name!r}")
            return
        given = request.get("arguments")
        try:
            arguments = tool.arguments.validate_python({} if given is None else given)
        except ValidationError as error:
            faults = (
                ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"]))) for fault in error.errors()
            )
            await self._send_error(request_id, f"wrong arguments: {'; '.join(faults)}")
            return
        try:
            await self._run(tool, arguments, request_id)
        except Exception as error:
            if isinstance(error, ConnectionClosed) and self._connection.closed:
                raise  # not a connection of the tool's own
            _log.exception("tool %s of server %s failed", tool.name, self._server.name)
            await self._send_error(request_id, f"{type(error).__name__}: {error}")

    async def _run(self, tool: _Tool, arguments: dict[str, Any], request_id: Any) -> None:
        function = tool.function
        if inspect.isasyncgenfunction(function):
            async with aclosing(function(**arguments)) as items:
                async for item in items:
                    await self._send_result(request_id, item)
            await self._send({"type": "stream_end", "request_id": request_id})
        elif inspect.iscoroutinefunction(function):
            await self._send_result(request_id, await function(**arguments))
        else:
            call = partial(function, **arguments)
            await self._send_result(request_id, await trio.to_thread.run_sync(call, abandon_on_cancel=True))

    async def _send_result(self, request_id: Any, result: Any) -> None:
        await self._send({"type": "tool_response", "request_id": request_id, "result": to_jsonable_python(result)})

    async def _send_error(self, request_id: Any, text: str) -> None:
        await self._send({"type": "tool_error", "request_id": request_id, "error": text})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._connection.send_message(json.dumps(message, allow_nan=False))


def _port(listener: trio.abc.Listener[Any]) -> int:
    tcp = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
    assert isinstance(tcp, trio.SocketListener)
    port: int = tcp.socket.getsockname()[1]
    return port


def _described(tool: _Tool, url: str) -> dict[str, Any]:
    template: dict[str, Any] = {
        "call_template_type": "websocket",
        "name": tool.name,
        "url": url,
        "message": {
            "type": "call_tool",
            "request_id": "{{uuid}}",
            "tool_name": tool.name,
            "arguments": "{{args}}",
        },
        "message_filter": {"request_id": "{{uuid}}"},
        "multiplex": True,
    }
    if tool.timeout is not None:
        template["response_timeout"] = tool.timeout
    return {
        "name": tool.name,
        "description": tool.description,
        "inputs": tool.inputs,
        "outputs": tool.outputs,
        "tags": list(tool.tags),
        "tool_call_template": template,
    }
