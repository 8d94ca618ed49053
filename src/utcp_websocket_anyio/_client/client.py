"""A UTCP client for asyncio and trio.

`AnyioUtcpClient` is core's `UtcpClientImplementation` with five things replaced, each where core's own would not do:

- ``_register_each`` and ``_close_owned_protocols``, because core gathers with asyncio;
- creation (`open_client`, `AnyioUtcpClient.create`), because core's clean-up is not shielded from cancellation;
- ``call_tool`` and ``call_tool_streaming``, because core copies the tool and builds its template anew at each call, and
  leaves the stream of a protocol open;
- ``_substitute_call_template_variables`` and what lists variables, because core scans values again (`variables`);
- ``_protocol_for``, to put an adapter around the protocols of other plugins (`plugin_protocols`).

Everything else is core's code.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import sniffio
from pydantic import ValidationError
from utcp.data.call_template import CallTemplate
from utcp.data.register_manual_response import RegisterManualResult
from utcp.data.tool import Tool
from utcp.data.utcp_client_config import UtcpClientConfig
from utcp.data.utcp_manual import UtcpManual
from utcp.exceptions import UtcpProtocolCloseError, UtcpSerializerValidationError, UtcpVariableNotFound
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.implementations.utcp_client_implementation import UtcpClientImplementation
from utcp.interfaces.communication_protocol import CommunicationProtocol
from utcp.interfaces.variable_substitutor import VariableSubstitutor

from .._calls.streams import ToolStream
from .._net.settings import NetworkSettings
from ..errors import WebSocketError
from ..protocol import WebSocketCommunicationProtocol
from .config import Config, load_config
from .plugin_protocols import PluginProtocolAdapter
from .repository import AnyioToolRepository
from .template_cache import ResolvedTemplates
from .variables import Variables, resolve_configured

__all__ = ["AnyioUtcpClient", "open_client"]

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

# For what has to be undone when a client's creation or its block fails, in seconds.
_CLEAN_UP_TIME = 2.0


@asynccontextmanager
async def open_client(
    config: Config | None = None,
    root_dir: str | os.PathLike[str] | None = None,
    *,
    network: NetworkSettings | None = None,
) -> AsyncIterator[AnyioUtcpClient]:
    """Open a UTCP client, on asyncio or on trio; it is closed when the block exits::

        async with open_client({"manual_call_templates": [...]}) as client:
            result = await client.call_tool("manual.tool", {"x": 1})

    The manuals of the configuration are registered concurrently before the block is entered; failures are logged and
    skipped, as in `UtcpClient`. The client's WebSocket connections and their tasks belong to the block. Leaving it
    closes every protocol that the client created; calls that still run then fail.

    A repository of type ``in_memory`` becomes an `AnyioToolRepository` in the configuration, on the same contents.

    Cancelling it, or an error in the block, aborts the connections; other plugins' protocols get 2 s to close.

    Args:
        config: A configuration, its JSON form, a call template, a manual, a list of these, or the path of a file with
            one of these.
        root_dir: Directory from which plugins resolve relative paths; None: the working directory.
        network: Network settings of this client's WebSocket protocol; None: those of `configure`.

    Raises:
        UtcpSerializerValidationError: The configuration is not valid.
        ValueError: The configuration's file cannot be read, or it is not one of these.
        UtcpVariableNotFound: A variable in it has no value.
        UtcpProtocolCloseError: Protocols failed to close, after all were asked to.
    """
    client = AnyioUtcpClient(await load_config(config), DefaultVariableSubstitutor(), _directory(root_dir))
    async with client._open(network):
        yield client


class AnyioUtcpClient(UtcpClientImplementation):
    """A `UtcpClient` that runs on asyncio and on trio; `open_client` makes one.

    It does what the stock client does, with less work per call. In addition, ``${name}`` in a WebSocket tool's call
    template is an argument where the tool declares that input, whatever the protocol of its manual.

    It belongs to the event loop that it was opened in; other threads use it through anyio's `BlockingPortal`.

    Variables: a value is put in as it is, and never scanned again (`UtcpClient` scans it, at each call).

    Cancelling a method ends what it does. If a registration is cancelled, that manual leaves nothing behind; manuals
    registered earlier stay.
    """

    def __init__(self, config: UtcpClientConfig, variable_substitutor: VariableSubstitutor, root_dir: str) -> None:
        super().__init__(config, variable_substitutor, root_dir)
        self._variables = Variables()
        self._resolved = ResolvedTemplates(self._variables)
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else repr(self.config.tool_repository)
        return f"<AnyioUtcpClient {state}>"

    # Creation and closing

    @classmethod
    async def create(
        cls, root_dir: str | os.PathLike[str] | None = None, config: Config | None = None
    ) -> AnyioUtcpClient:
        """A client without a block, on asyncio only, as the stock one; `close` ends it.

        Arguments and errors are those of `open_client`.

        Raises:
            RuntimeError: Not on asyncio.
        """
        library = sniffio.current_async_library()
        if library != "asyncio":
            raise RuntimeError(f"on {library} a client needs a block to live in: use 'async with open_client(config)'")
        client = cls(await load_config(config), DefaultVariableSubstitutor(), _directory(root_dir))
        registered: list[str] = []
        try:
            client._adopt_factory_protocols()
            await client._set_up(registered)
        except BaseException:
            await client._undo(registered)  # noqa: ASYNC102 - shields and bounds itself
            raise
        return client

    async def close(self) -> None:
        """Close every protocol that this client created. Shared ones, which plugins register as instances, stay open.

        Leaving the block of `open_client` does it, unless it was done before.

        Raises:
            UtcpProtocolCloseError: Some failed to; all were asked.
        """
        self._closed = True
        await super().close()

    @asynccontextmanager
    async def _open(self, network: NetworkSettings | None) -> AsyncIterator[None]:
        registered: list[str] = []
        try:
            async with AsyncExitStack() as entered:
                self._adopt_factory_protocols()
                for protocol in self._owned_comm_protocols:
                    if isinstance(protocol, WebSocketCommunicationProtocol):
                        if network is not None:
                            protocol._reach_through(network)
                        await entered.enter_async_context(protocol)
                await self._set_up(registered)
                registered.clear()
                yield
                if not self._closed:
                    await self.close()
        except BaseException:
            # What was entered has aborted its connections by now, so this waits for other plugins only.
            await self._undo(registered)  # noqa: ASYNC102 - shields and bounds itself
            raise

    async def _set_up(self, registered: list[str]) -> None:
        """Resolve the configuration's own variables and register its manuals, noting those that are."""
        resolve_configured(self.config, self.variable_substitutor)
        for result in await self._register_each(self.config.manual_call_templates, registered):
            if isinstance(result, BaseException):
                raise result

    async def _undo(self, registered: list[str]) -> None:
        """Clean up after a failure, which stays the error that the caller sees."""
        # The repository may be shared, so these manuals have to go.
        with anyio.move_on_after(_CLEAN_UP_TIME, shield=True):
            results = await _gather([partial(self.deregister_manual, name) for name in registered])
            for name, result in zip(registered, results, strict=True):
                if isinstance(result, BaseException):
                    _log.error("the manual %s of a failed client could not be removed: %s", name, _describe(result))
        if not self._closed:
            with anyio.move_on_after(_CLEAN_UP_TIME, shield=True):
                try:
                    await self.close()
                except UtcpProtocolCloseError as error:
                    _log.error("the protocols of a failed client could not all be closed: %s", _describe(error))

    async def _close_owned_protocols(self) -> None:
        owned = self._own_comm_protocols_by_type
        results = await _gather([_adapted(protocol, kind).close for kind, protocol in owned.items()])
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise UtcpProtocolCloseError(failures, len(results))

    # Manuals

    async def _register_each(
        self, manual_call_templates: Sequence[CallTemplate], registered_names: list[str] | None = None
    ) -> list[RegisterManualResult | BaseException]:
        async def register(template: CallTemplate) -> RegisterManualResult:
            try:
                result = await self.register_manual(template)
            except UtcpVariableNotFound:
                raise
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it becomes the result
                _log.error("the manual %s could not be registered: %s", template.name, _describe(error))
                return RegisterManualResult(
                    manual_call_template=template,
                    manual=UtcpManual(manual_version="0.0.0", tools=[]),
                    success=False,
                    errors=[traceback.format_exc()],
                )
            if not result.success:
                _log.error("the manual %s could not be registered; its result says why", template.name)
            else:
                if registered_names is not None:
                    registered_names.append(template.name)
                _log.info("registered the manual %s with %d tools", template.name, len(result.manual.tools))
            return result

        return await _gather([partial(register, template) for template in manual_call_templates])

    async def deregister_manual(self, manual_name: str) -> bool:
        """Remove a manual, its tools and, for WebSockets, its connections; False if there is no such manual."""
        self._resolved.forget(manual_name)
        return await super().deregister_manual(manual_name)

    async def get_required_variables_for_manual_and_tools(self, manual_call_template: CallTemplate) -> list[str]:
        """The variables that a manual's call template needs; if it needs none, those of its tools, which it fetches."""
        if type(self.variable_substitutor) is not DefaultVariableSubstitutor:
            return await super().get_required_variables_for_manual_and_tools(manual_call_template)
        manual_call_template.name = name = re.sub(r"[^\w]", "_", manual_call_template.name)
        needed = self._needed(manual_call_template, name)
        if needed:
            return needed
        protocol = self._protocol_for(manual_call_template.call_template_type)
        result = await protocol.register_manual(self, manual_call_template)
        return [variable for tool in result.manual.tools for variable in self._needed(tool.tool_call_template, name)]

    def _needed(self, template: CallTemplate, namespace: str) -> list[str]:
        """The variables of a call template, by the names under which they are looked up."""
        names = [f"${{{name}}}" for name in self._variables.names(template)]
        return self.variable_substitutor.find_required_variables(names, namespace)

    def _substitute_call_template_variables(
        self, call_template: CallTemplate, namespace: str | None = None
    ) -> CallTemplate:
        substitutor = self.variable_substitutor
        if type(substitutor) is not DefaultVariableSubstitutor:
            return super()._substitute_call_template_variables(call_template, namespace)
        names = self._variables.names(call_template)
        values = self._variables.values(names, substitutor, self.config, namespace)
        return self._variables.put_in(call_template, values)

    def _protocol_for(self, call_template_type: str) -> CommunicationProtocol:
        return _adapted(super()._protocol_for(call_template_type), call_template_type)

    # Calls

    async def call_tool(self, tool_name: str, tool_args: dict[str, Any]) -> Any:
        """Call a tool.

        Args:
            tool_name: Name of the tool, with its manual's name before the first dot.
            tool_args: Arguments of the tool, JSON values.

        Returns:
            The result of the tool's protocol, after the configured post-processors.

        Raises:
            ValueError: There is no such tool, or its manual does not allow its protocol.
            UtcpVariableNotFound: A variable in its call template has no value.
            WebSocketError: A WebSocket tool failed. Other protocols raise their own errors.
        """
        tool, template = await self._look_up(tool_name)
        protocol = self._protocol_for(template.call_template_type)
        result = await protocol.call_tool(self, tool_name, tool_args, template)
        if self.config.post_processing:
            result = self._post_processed(tool.model_copy(deep=True), template, result)
        return result

    def call_tool_streaming(  # type: ignore[override]  # as core's, which is declared as a coroutine
        self, tool_name: str, tool_args: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Call a tool and yield its responses as they arrive; arguments and errors as for `call_tool`.

        Leaving the iteration early (``break``, ``aclose()``, garbage collection, cancellation) ends the call.
        """
        return _Responses(self, tool_name, tool_args)

    async def _look_up(self, tool_name: str) -> tuple[Tool, CallTemplate]:
        """The tool, to be read only, and its resolved call template, if its manual allows it."""
        manual_name = tool_name.split(".", 1)[0]
        repository = self.config.tool_repository
        if type(repository) is AnyioToolRepository:
            tool = repository.stored_tool(tool_name)
            manual_template = repository.stored_call_template(manual_name)
            if tool is None:
                raise ValueError(f"Tool not found: {tool_name}")
            template = self._resolved.resolve(tool_name, tool, self.variable_substitutor, self.config)
        else:
            tool = await repository.get_tool(tool_name)
            if tool is None:
                raise ValueError(f"Tool not found: {tool_name}")
            template = self._substitute_call_template_variables(tool.tool_call_template, manual_name)
            manual_template = await repository.get_manual_call_template(manual_name)
        if manual_template is not None:
            kind = template.call_template_type
            allowed = manual_template.allowed_communication_protocols or [manual_template.call_template_type]
            if kind not in allowed:
                raise ValueError(
                    f"Tool '{tool_name}' uses communication protocol '{kind}' which is not allowed by manual"
                    f" '{manual_name}'. Allowed protocols: {allowed}"
                )
        return tool, template

    def _post_processed(self, tool: Tool, template: CallTemplate, result: Any) -> Any:
        for post_processor in self.config.post_processing:
            result = post_processor.post_process(self, tool, template, result)
        return result


class _Responses(ToolStream):
    """A tool's stream through the client's post-processors."""

    def __init__(self, client: AnyioUtcpClient, tool_name: str, tool_args: dict[str, Any]) -> None:
        super().__init__(self._call)
        self._client = client
        self._tool_name = tool_name
        self._tool_args = tool_args
        self._tool: Tool | None = None
        self._template: CallTemplate | None = None

    async def _call(self) -> AsyncGenerator[Any, None]:
        tool, self._template = await self._client._look_up(self._tool_name)
        if self._client.config.post_processing:
            self._tool = tool.model_copy(deep=True)
        protocol: Any = self._client._protocol_for(self._template.call_template_type)
        stream: AsyncGenerator[Any, None] = protocol.call_tool_streaming(
            self._client, self._tool_name, self._tool_args, self._template
        )
        return stream

    def _processed(self, item: Any) -> Any:
        if self._tool is None or self._template is None:
            return item
        return self._client._post_processed(self._tool, self._template, item)


async def _gather(calls: Sequence[Callable[[], Awaitable[Result]]]) -> list[Result | BaseException]:
    """Run calls in parallel until every one has ended, for better or worse: what `asyncio.gather` gives core.

    Returns:
        Per call its result or its exception. What is no `Exception`, such as a KeyboardInterrupt, is raised.
    """
    results: list[Any] = [None] * len(calls)
    fatal: list[BaseException] = []

    async def run(index: int, call: Callable[[], Awaitable[Result]]) -> None:
        try:
            results[index] = await call()
        except Exception as error:  # noqa: BLE001 - it is the result
            results[index] = error
        except anyio.get_cancelled_exc_class() as error:
            # Not ours if it comes from inside the call, as on asyncio it can.
            results[index] = error
            raise
        except BaseException as error:  # noqa: BLE001 - in a task of asyncio it would end the event loop itself
            fatal.append(error)
            task_group.cancel_scope.cancel()

    async with anyio.create_task_group() as task_group:
        for index, call in enumerate(calls):
            task_group.start_soon(run, index, call)
    if fatal:
        raise fatal[0]
    return results


def _adapted(protocol: CommunicationProtocol, call_template_type: str) -> CommunicationProtocol:
    if isinstance(protocol, WebSocketCommunicationProtocol):
        return protocol
    return PluginProtocolAdapter(protocol, call_template_type)


def _directory(root_dir: str | os.PathLike[str] | None) -> str:
    return str(Path.cwd()) if root_dir is None else os.fspath(root_dir)


def _describe(error: BaseException) -> str:
    """An error for the log. What is shown of others may hold what they were given, secrets included."""
    if isinstance(error, UtcpProtocolCloseError):
        return "; ".join(map(_describe, error.failures))
    kind = type(error).__name__
    shown = isinstance(error, (WebSocketError, OSError, RuntimeError, ValueError))
    if not shown or isinstance(error, (ValidationError, UtcpSerializerValidationError)):
        return kind
    return f"{kind}: {error}"
