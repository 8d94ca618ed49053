"""The UTCP communication protocol: its five methods, and where its background tasks live.

A protocol object is *entered* (``async with``, on both backends) or, on asyncio only, *hosted*: the stock `UtcpClient`
never enters the protocols it creates and calls them from many tasks, so the first use starts one host task that enters
in its place. Either way there is one task group per object, and the pool in it.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import sniffio
from utcp.data.call_template import CallTemplate
from utcp.data.register_manual_response import RegisterManualResult
from utcp.data.tool import Tool
from utcp.interfaces.communication_protocol import CommunicationProtocol

from ._calls.discovery import discover
from ._calls.exchange import Exchange
from ._calls.request import prepare
from ._calls.streams import ResponseStream
from ._connections.connector import Connector
from ._connections.pool import Pool
from ._connections.statistics import Counters, Statistics
from ._net.settings import NetworkSettings
from ._net.transport import Network
from ._templates.call_template import WebSocketCallTemplate
from .errors import MissingArgumentError, WebSocketError

if TYPE_CHECKING:
    from utcp.utcp_client import UtcpClient

    from ._templates.plan import Plan

__all__ = ["WebSocketCommunicationProtocol"]


class WebSocketCommunicationProtocol(anyio.AsyncContextManagerMixin, CommunicationProtocol):
    """Calls tools at WebSocket endpoints, on asyncio and on trio.

    Enter it, on either backend::

        async with WebSocketCommunicationProtocol() as protocol:
            result = await protocol.call_tool(None, "manual.tool", {"x": 1}, call_template)

    Every background task belongs to that block; leaving it closes every connection. On asyncio it also works without
    being entered, as the stock `UtcpClient` uses it: the first use starts a host task, `close` ends it.

    All methods raise this package's errors, `ValueError` for arguments that cannot be put into the template, and
    cancellation; never an exception group. Cancelling a method ends its call at once, gives up its connection unless
    that is shared, and disturbs no other call.

    Args:
        ssl_context: For every TLS connection, used as it is; None: made of the network settings.
        network: How the network is reached; None: as `configure` says.

    Raises:
        ValueError: Both an `ssl_context` and certificates in `network` are given.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None, network: NetworkSettings | None = None) -> None:
        self._counters = Counters()
        self._connector = Connector(Network(network, ssl_context), self._counters)
        self._pool: Pool | None = None
        self._token: object = None
        self._thread: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._host: asyncio.Task[None] | None = None
        self._hosted: anyio.Event | None = None
        self._dismissed: anyio.Event | None = None
        self._inputs: dict[str, dict[str, Tool]] = {}

    def __repr__(self) -> str:
        state = "closed" if self._closed else "unused" if self._pool is None else repr(self._pool)
        return f"<WebSocketCommunicationProtocol {state}>"

    def _reach_through(self, network: NetworkSettings) -> None:
        """Use these settings from now on; for a client whose protocol objects are made by UTCP's factories."""
        self._connector.network = Network(network)

    # Where the tasks live

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[WebSocketCommunicationProtocol, None]:
        if self._closed or self._token is not None:
            raise RuntimeError("a WebSocketCommunicationProtocol is entered once; create another one")
        self._settle_here(anyio.lowlevel.current_token())
        async with self._running():
            yield self

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The one task group of this object, with the pool in it."""
        failure: BaseException | None = None
        async with anyio.create_task_group() as task_group:
            self._pool = pool = Pool(task_group, self._connector.connect, self._counters)
            task_group.start_soon(pool.deadlines.run)
            try:
                yield
                self._closed = True
                await pool.aclose()
            except BaseException as error:  # noqa: ASYNC103, BLE001 - raised again below
                # Raised inside the task group it would come out as an exception group.
                failure = error
                self._closed = True
                await pool.abort()  # noqa: ASYNC102 - shields and bounds itself
            task_group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _settle_here(self, token: object) -> None:
        self._token = token
        self._thread = threading.get_ident()
        if sniffio.current_async_library() == "asyncio":
            self._loop = asyncio.get_running_loop()

    def _is_here(self) -> bool:
        """Whether this is the event loop that the object belongs to."""
        # Comparing tokens takes ten times as long, at every call.
        if self._loop is None:
            # It was entered, and trio runs one event loop in a thread.
            return threading.get_ident() == self._thread
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    async def _running_pool(self) -> Pool:
        """The pool, hosted if nobody entered this object."""
        if self._closed:
            raise RuntimeError("this WebSocketCommunicationProtocol is closed; create another one")
        token = anyio.lowlevel.current_token()
        if self._token is None:
            if sniffio.current_async_library() != "asyncio":
                raise RuntimeError(
                    "on trio a WebSocketCommunicationProtocol has to be entered: use it with 'async with', or let"
                    " open_client() do so"
                )
            self._settle_here(token)
            self._hosted = anyio.Event()
            # Not in the caller's context, whose variables should not live as long as the connections do.
            self._host = contextvars.Context().run(asyncio.get_running_loop().create_task, self._be_hosted())
        if token != self._token:
            raise RuntimeError("a WebSocketCommunicationProtocol belongs to the event loop in which it was first used")
        if self._pool is None:
            assert self._hosted is not None
            await self._hosted.wait()
        assert self._pool is not None
        return self._pool

    async def _be_hosted(self) -> None:
        """The host task. `asyncio.run` cancels it when nobody called `close`."""
        assert self._hosted is not None
        async with self._running():
            self._dismissed = anyio.Event()
            self._hosted.set()
            await self._dismissed.wait()

    async def close(self) -> None:
        """Close every connection and fail every call that still runs; the object cannot be used again.

        It may be called from any task and any number of times; each call returns when every connection is closed.
        Cancelling it cancels only the wait.
        """
        self._closed = True
        if self._pool is None and self._host is None:
            return
        if not self._is_here():
            if self._host is not None and self._host.done():
                return
            raise RuntimeError("close() has to be called in the event loop in which the protocol was used")
        if self._host is None:
            assert self._pool is not None
            await self._pool.aclose()
            return
        if self._dismissed is None:
            assert self._hosted is not None
            await self._hosted.wait()
        assert self._dismissed is not None
        self._dismissed.set()
        await asyncio.wait([self._host])

    def statistics(self) -> Statistics:
        """What this object has and has done so far."""
        if self._pool is None:
            return Statistics(calls=self._counters.calls, errors=self._counters.errors)
        return self._pool.statistics()

    # UTCP's interface

    async def register_manual(
        self, caller: UtcpClient | None, manual_call_template: CallTemplate
    ) -> RegisterManualResult:
        """Find the tools of a manual: those in its template, at its `discovery_url`, or by asking the endpoint.

        A failed registration leaves no connection open.

        Raises:
            WebSocketError: The manual could not be fetched.
            ValueError: What came is no valid manual, or the template is none of a WebSocket.
        """
        template = _websocket(manual_call_template)

        async def ask(plan: Plan) -> Any:
            pool = await self._running_pool()
            request = prepare(plan, "", {}, manual=template.name)
            return await Exchange(request, pool=pool, streaming=False).collect()

        try:
            manual = await discover(template, ask, network=self._connector.network)
        except BaseException:
            if self._pool is not None:
                self._pool.give_up(template.name)
            raise
        self._inputs[template.name] = {tool.name: tool for tool in manual.tools}
        return RegisterManualResult(manual_call_template=manual_call_template, manual=manual, success=True)

    async def deregister_manual(self, caller: UtcpClient | None, manual_call_template: CallTemplate) -> None:
        """Close the connections of a manual and of its tools, and fail their calls. Unknown manuals are fine."""
        template = _websocket(manual_call_template)
        self._inputs.pop(template.name, None)
        if self._pool is not None and not self._closed:
            pool = await self._running_pool()
            await pool.deregister(template.name)

    async def call_tool(
        self,
        caller: UtcpClient | None,
        tool_name: str,
        tool_args: Mapping[str, Any],
        tool_call_template: CallTemplate,
    ) -> Any:
        """Call a tool.

        Args:
            caller: Asked for the tool's input schema where an argument is missing; may be None.
            tool_name: With its manual's name before the first dot.
            tool_args: The arguments, JSON values.
            tool_call_template: How the tool is called.

        Returns:
            The response as the template says; a list where it asks for another number than one, None where for none.

        Raises:
            MissingArgumentError: The template needs arguments that are not given and have no default.
            ValueError: An argument cannot be put into the template.
            WebSocketError: Any other failure.
        """
        try:
            exchange = await self._exchange_for(caller, tool_name, tool_args, tool_call_template, streaming=False)
            return await exchange.collect()
        except WebSocketError as error:
            self._counters.failed(error)
            raise

    def call_tool_streaming(  # type: ignore[override]
        self,
        caller: UtcpClient | None,
        tool_name: str,
        tool_args: Mapping[str, Any],
        tool_call_template: CallTemplate,
    ) -> AsyncGenerator[Any, None]:
        """Call a tool and yield its responses as they arrive; arguments and errors as for `call_tool`.

        Leaving the iteration early (``break``, ``aclose()``, garbage collection, cancellation) gives up the connection
        at once, unless it is shared.
        """

        async def start() -> Exchange:
            return await self._exchange_for(caller, tool_name, tool_args, tool_call_template, streaming=True)

        return ResponseStream(start, self._counters.failed)

    async def _exchange_for(
        self,
        caller: UtcpClient | None,
        tool_name: str,
        tool_args: Mapping[str, Any],
        tool_call_template: CallTemplate,
        *,
        streaming: bool,
    ) -> Exchange:
        template = _websocket(tool_call_template)
        plan = template.plan
        self._counters.calls += 1
        pool = self._pool
        if pool is None or self._closed or not self._is_here():
            pool = await self._running_pool()
        manual, dot, name = tool_name.partition(".")
        if not dot:
            manual, name = template.name, tool_name
        try:
            request = prepare(plan, name, tool_args, manual=manual)
        except MissingArgumentError as error:
            missing = error.names
        else:
            return Exchange(request, pool=pool, streaming=streaming)
        tool_args = await self._with_defaults(caller, tool_name, tool_args, missing)
        return Exchange(prepare(plan, name, tool_args, manual=manual), pool=pool, streaming=streaming)

    async def _with_defaults(
        self, caller: UtcpClient | None, tool_name: str, tool_args: Mapping[str, Any], missing: tuple[str, ...]
    ) -> Mapping[str, Any]:
        """The arguments with the missing ones at the default of the tool's input schema."""
        tool = await self._known_tool(caller, tool_name)
        schemas = (tool.inputs.properties or {}) if tool is not None else {}
        defaults = {name: schemas[name].default for name in missing if _has_default(schemas, name)}
        unknown = set(missing) - defaults.keys()
        if unknown:
            raise MissingArgumentError(unknown)
        return {**defaults, **tool_args}

    async def _known_tool(self, caller: UtcpClient | None, tool_name: str) -> Tool | None:
        manual, _, name = tool_name.partition(".")
        tools = self._inputs.get(manual, {})
        tool = tools.get(tool_name) or tools.get(name)
        if tool is None and caller is not None:
            tool = await caller.config.tool_repository.get_tool(tool_name)
        return tool


def _websocket(template: CallTemplate) -> WebSocketCallTemplate:
    if not isinstance(template, WebSocketCallTemplate):
        raise ValueError(
            f"a WebSocket call template is needed, not {type(template).__module__}.{type(template).__name__}"
        )
    return template


def _has_default(schemas: Mapping[str, Any], name: str) -> bool:
    return name in schemas and "default" in schemas[name].model_fields_set
