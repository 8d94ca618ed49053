"""The UTCP communication protocol: the methods by which a client registers manuals and calls tools.

A call goes through this module like this: the template is compiled (once, see `_templates`), the event loop's own pool
is found (`_connections.hosts` says how that comes about), arguments that are missing get the defaults of the tool's
input schema, everything that the arguments decide is prepared (`_calls.request`), and an exchange runs it
(`_calls.exchange`).

This is also the boundary to the caller. What may come out of a method is this package's errors, `ValueError` for a
template, manual or argument that is wrong, `RuntimeError` for use in the wrong place, and cancellation. Anything else
is a bug of ours, of a library or of another plugin, and its text may quote what it was given, credentials included:
it comes out as a `WebSocketError` that names its type, with nothing behind it.

Several event loops in several threads may use one object. They share:

- the hosts of the event loops, guarded by a lock (`_connections.hosts`);
- the access tokens (`_net.auth`, whose cache guards itself);
- the compiled templates, which never change, and whose caches guard themselves;
- the inputs of registered tools, `_inputs`: a dictionary whose entries are only ever replaced as a whole, by single
  operations that CPython does at once, so a reader finds the tools of the one registration or the other;
- the counters, of which each event loop has its own; `statistics` adds them up.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup
from pydantic import ValidationError
from utcp.data.call_template import CallTemplate
from utcp.data.register_manual_response import RegisterManualResult
from utcp.data.tool import Tool
from utcp.interfaces.communication_protocol import CommunicationProtocol

from ._calls.discovery import discover
from ._calls.exchange import Exchange
from ._calls.request import Request, prepare
from ._calls.single import SingleCall
from ._calls.streams import ResponseStream
from ._connections.bulkhead import internal_error, log_internal_error
from ._connections.connector import Connector
from ._connections.hosts import Entered, Hosts, Runtime
from ._connections.pool import Pool
from ._connections.statistics import Counters, Statistics
from ._net.auth import TokenCache
from ._net.security import display_url
from ._net.settings import NetworkSettings
from ._net.transport import Network
from ._templates.call_template import WebSocketCallTemplate
from ._templates.placeholders import RenderContext
from .errors import MissingArgumentError, WebSocketError

if TYPE_CHECKING:
    from utcp.utcp_client import UtcpClient

    from ._connections.trace import Trace
    from ._templates.plan import Endpoint, Plan

__all__ = ["WebSocketCommunicationProtocol"]

_log = logging.getLogger(__name__)


class WebSocketCommunicationProtocol(anyio.AsyncContextManagerMixin, CommunicationProtocol):
    """Calls tools at WebSocket endpoints, on asyncio and on trio.

    Enter it, on either backend::

        async with WebSocketCommunicationProtocol() as protocol:
            result = await protocol.call_tool(None, "manual.tool", {"x": 1}, call_template)

    Every background task belongs to that block; leaving it closes every connection, and the object belongs to the
    block's event loop.

    On asyncio it also works without being entered, as the stock `UtcpClient` uses it, from any number of event loops
    and threads. Each event loop has connections of its own, which are closed when it ends; `close` closes them all.

    All methods raise this package's errors, `ValueError` for arguments that cannot be put into the template,
    `RuntimeError` for use in the wrong event loop or after `close`, and cancellation; never an exception group.
    Cancelling a method ends the call immediately. Its connection is closed unless shared; other calls are unaffected.

    Args:
        ssl_context: Context of every TLS connection, used as it is; None: made from the network settings.
        network: Network settings of this object; None: those of `configure`.

    Raises:
        ValueError: Both an `ssl_context` and certificates in `network` are given.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None, network: NetworkSettings | None = None) -> None:
        self._inputs: dict[str, dict[str, Tool]] = {}
        self._opening = _Opening(Network(network, ssl_context))
        self._home: Entered | Hosts = Hosts(self._opening)

    def __repr__(self) -> str:
        return f"<WebSocketCommunicationProtocol {self._home!r}>"

    def __del__(self) -> None:
        home = getattr(self, "_home", None)
        if isinstance(home, Hosts):
            home.dismiss()

    def _reach_through(self, network: NetworkSettings) -> None:
        """Use these settings from now on; for a client whose protocol objects are made by UTCP's factories."""
        self._opening.network = Network(network)

    def _observe(self, trace: Trace) -> None:
        """Tell an observer of every message on the connections that are opened from now on; for the command."""
        self._opening.observe(trace)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[WebSocketCommunicationProtocol, None]:
        if isinstance(self._home, Entered) or self._home.is_closed or self._home.was_used:
            raise RuntimeError("WebSocketCommunicationProtocol cannot be entered twice, or after use; create a new one")
        self._home = entered = Entered(self._opening)
        async with entered.block():
            yield self

    async def close(self) -> None:
        """Close every connection and fail every call that still runs, in all event loops. The object stays closed.

        It may be called from any task of any event loop, any number of times; each call returns when every connection
        is closed. Those of an event loop that is stopped are closed when it goes on, or is closed itself. Cancelling it
        cancels only the wait.

        Raises:
            RuntimeError: The object was entered in another event loop, or another thread that runs an event loop is
                blocked.
        """
        await self._home.close()

    def statistics(self) -> Statistics:
        """The figures of this object, added up over all event loops. It may be called from any thread."""
        return self._home.statistics()

    # UTCP's interface

    async def register_manual(
        self, caller: UtcpClient | None, manual_call_template: CallTemplate
    ) -> RegisterManualResult:
        """Find the tools of a manual: those in its template, at its `discovery_url`, or by asking the endpoint.

        A failed registration leaves no connection open.

        Raises:
            WebSocketError: The manual could not be fetched.
            ValueError: The response is not a valid manual, or the template is not a WebSocket call template.
        """
        try:
            return await self._register(_websocket(manual_call_template))
        except Exception as error:
            strange = _in_place_of(error)
            if strange is None:
                raise
        raise strange

    async def _register(self, template: WebSocketCallTemplate) -> RegisterManualResult:
        async def ask(plan: Plan) -> Any:
            runtime = await self._home.runtime()
            request = prepare(plan, "", {}, manual=template.name)
            return await Exchange(request, runtime.pool).collect()

        try:
            manual = await discover(template, ask, network=self._opening.network)
        except BaseException:
            runtime = self._home.runtime_here()
            if runtime is not None:
                runtime.pool.give_up(template.name)
            raise
        self._inputs[template.name] = {tool.name: tool for tool in manual.tools}
        return RegisterManualResult(manual_call_template=template, manual=manual, success=True)

    async def deregister_manual(self, caller: UtcpClient | None, manual_call_template: CallTemplate) -> None:
        """Close a manual's connections, in all event loops, and fail its calls in progress.

        Does nothing if the manual is unknown. It waits until the connections of the event loop that it runs in are
        closed.
        """
        try:
            name = _websocket(manual_call_template).name
            self._inputs.pop(name, None)
            return await self._home.deregister(name)
        except Exception as error:
            strange = _in_place_of(error)
            if strange is None:
                raise
        raise strange

    async def call_tool(
        self,
        caller: UtcpClient | None,
        tool_name: str,
        tool_args: Mapping[str, Any],
        tool_call_template: CallTemplate,
    ) -> Any:
        """Call a tool.

        Args:
            caller: Client that is asked for the tool's input schema if an argument is missing; may be None.
            tool_name: Name of the tool, with its manual's name before the first dot.
            tool_args: The arguments, JSON values.
            tool_call_template: Call template of the tool.

        Returns:
            The response as the template says; a list if more than one response is expected, None if none is.

        Raises:
            MissingArgumentError: The template needs arguments that are not given and have no default.
            ValueError: An argument cannot be put into the template.
            WebSocketError: Any other failure.
        """
        runtime = self._home.runtime_here()
        try:
            if runtime is None:
                runtime = await self._home.runtime()
            request = self._request(runtime, tool_name, tool_args, tool_call_template)
            if request is None:
                request = await self._request_with_defaults(runtime, caller, tool_name, tool_args, tool_call_template)
            exchange = SingleCall if request.plan.is_single else Exchange
            return await exchange(request, runtime.pool).collect()
        except Exception as error:
            strange = _in_place_of(error, runtime)
            if strange is None:
                raise
        raise strange

    def call_tool_streaming(  # type: ignore[override]  # core declares it as a coroutine
        self,
        caller: UtcpClient | None,
        tool_name: str,
        tool_args: Mapping[str, Any],
        tool_call_template: CallTemplate,
    ) -> AsyncGenerator[Any, None]:
        """Call a tool and yield its responses as they arrive; arguments and errors as for `call_tool`.

        Leaving the iteration early (``break``, ``aclose()``, garbage collection, cancellation) closes the connection
        at once, unless it is shared or ``on_end`` keeps it.
        """
        runtime: Runtime | None = None

        async def start() -> Exchange:
            nonlocal runtime
            runtime = self._home.runtime_here() or await self._home.runtime()
            request = self._request(runtime, tool_name, tool_args, tool_call_template)
            if request is None:
                request = await self._request_with_defaults(runtime, caller, tool_name, tool_args, tool_call_template)
            return Exchange(request, runtime.pool, streaming=True)

        def in_place_of(error: Exception) -> WebSocketError | None:
            return _in_place_of(error, runtime)

        def is_here() -> bool:
            # The stream keeps `self` alive by this, too: a protocol object that is collected closes its connections.
            return self._home.was_used and (runtime is None or runtime.is_here())

        return ResponseStream(start, in_place_of, is_here)

    def _request(
        self, runtime: Runtime, tool_name: str, tool_args: Mapping[str, Any], tool_call_template: CallTemplate
    ) -> Request | None:
        """Prepare a call; None if the template needs arguments that are not given."""
        template = _websocket(tool_call_template)
        plan = _plan(template)
        runtime.counters.calls += 1
        manual, name = self._split(tool_name, template)
        session = None if plan.session is None else self._open_session(runtime, plan, name, tool_args, manual)
        try:
            return prepare(plan, name, tool_args, manual=manual, session=session)
        except MissingArgumentError:
            return None

    async def _request_with_defaults(
        self,
        runtime: Runtime,
        caller: UtcpClient | None,
        tool_name: str,
        tool_args: Mapping[str, Any],
        tool_call_template: CallTemplate,
    ) -> Request:
        """Prepare a call with what the tool's input schema says of arguments that are not given."""
        template = _websocket(tool_call_template)
        plan = _plan(template)
        manual, name = self._split(tool_name, template)
        session = self._open_session(runtime, plan, name, tool_args, manual)
        missing = plan.missing_arguments(tool_args, on_open_session=session is not None)
        tool = await self._known_tool(caller, tool_name)
        tool_args = _with_defaults(tool, tool_args, missing, template)
        # The session's name may have come with the defaults.
        session = self._open_session(runtime, plan, name, tool_args, manual)
        return prepare(plan, name, tool_args, manual=manual, session=session)

    @staticmethod
    def _open_session(
        runtime: Runtime, plan: Plan, tool: str, tool_args: Mapping[str, Any], manual: str
    ) -> Endpoint | None:
        """The endpoint of the call's session if that has a connection: the URL's arguments are not needed then."""
        session = plan.session_of(RenderContext(tool_args, tool))
        return None if session is None else runtime.pool.session_endpoint(manual, session)

    def _split(self, tool_name: str, template: WebSocketCallTemplate) -> tuple[str, str]:
        """The names of the manual and of the tool in it."""
        manual, dot, name = tool_name.partition(".")
        if not dot:
            return template.name, tool_name
        tools = self._inputs.get(manual)
        if tools is not None and tool_name in tools and name not in tools:
            # A client leaves a name as it is that begins with the manual's by itself.
            return manual, tool_name
        return manual, name

    async def _known_tool(self, caller: UtcpClient | None, tool_name: str) -> Tool | None:
        manual, _, name = tool_name.partition(".")
        tools = self._inputs.get(manual, {})
        tool = tools.get(tool_name) or tools.get(name)
        if tool is None and caller is not None:
            tool = await caller.config.tool_repository.get_tool(tool_name)
        return tool


class _Opening:
    """Opens an object's runtime in each event loop. Not the object itself, which hosts must not keep alive."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._tokens = TokenCache()
        self._trace: Trace | None = None
        self._connector: Connector | None = None

    def observe(self, trace: Trace) -> None:
        """Set the observer of the connections' messages, including connections of the block that was entered last."""
        self._trace = trace
        if self._connector is not None:
            self._connector.trace = trace

    def __call__(self, task_group: TaskGroup) -> Runtime:
        counters = Counters()
        self._connector = connector = Connector(self.network, counters, self._tokens, trace=self._trace)
        return Runtime(
            Pool(
                task_group,
                connector.connect,
                counters,
                max_idle_connections=self.network.settings.max_idle_connections,
            ),
            counters,
        )


def _websocket(template: CallTemplate) -> WebSocketCallTemplate:
    if not isinstance(template, WebSocketCallTemplate):
        raise ValueError(
            f"a WebSocket call template is needed, not {type(template).__module__}.{type(template).__name__}"
        )
    return template


def _plan(template: WebSocketCallTemplate) -> Plan:
    """The plan that the template is compiled to.

    Raises:
        ValueError: The template was changed into an invalid one.
    """
    try:
        return template.plan
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        reason = f"{'.'.join(map(str, detail['loc'][:1]))}: {detail['msg'].removeprefix('Value error, ')}"
    raise ValueError(f"the call template was changed and is not valid any more: {reason}")


def _with_defaults(
    tool: Tool | None, tool_args: Mapping[str, Any], missing: Iterable[str], template: WebSocketCallTemplate
) -> Mapping[str, Any]:
    """The arguments with the missing ones at the default of the tool's input schema."""
    schemas = (tool.inputs.properties or {}) if tool is not None else {}
    defaults = {
        name: schemas[name].default
        for name in missing
        if name in schemas and "default" in schemas[name].model_fields_set
    }
    unknown = set(missing) - defaults.keys()
    if unknown:
        raise MissingArgumentError(unknown, endpoint=display_url(template.url))
    return {**defaults, **tool_args}


def _in_place_of(error: Exception, runtime: Runtime | None = None) -> WebSocketError | None:
    """The error to raise in place of one that a caller must not see; None if it may be seen.

    It must be raised where `error` is no longer being handled, as it would be its context otherwise.

    Args:
        error: The error that was caught.
        runtime: Runtime that counts the error.
    """
    strange: WebSocketError | None = None
    # Of the built-in classes only what is raised as such: the text of a UnicodeEncodeError or a JSONDecodeError quotes
    # what could not be read, and a RecursionError is not a misuse.
    if not isinstance(error, WebSocketError) and type(error) not in (ValueError, RuntimeError):
        log_internal_error(_log, error, "serving a call")
        strange = internal_error(error, endpoint=None)
    failure = strange or error
    if runtime is not None and isinstance(failure, WebSocketError):
        runtime.failed(failure)
    return strange
