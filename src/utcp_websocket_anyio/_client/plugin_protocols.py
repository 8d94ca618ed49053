"""The communication protocols of other plugins, as `AnyioUtcpClient` uses them.

What this package promises of WebSocket tools also holds for those in manuals of other protocols: the inputs that they
declare are arguments, and a remote manual names no loopback address. And on trio, what needs asyncio says so.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import sniffio
from utcp.data.call_template import CallTemplate
from utcp.data.register_manual_response import RegisterManualResult
from utcp.interfaces.communication_protocol import CommunicationProtocol

from .._calls.streams import ToolStream
from .._net.security import check_manual_origin
from .._templates.call_template import declare_tool_inputs

if TYPE_CHECKING:
    from utcp.utcp_client import UtcpClient

__all__ = ["PluginProtocolAdapter"]

_log = logging.getLogger(__name__)

# What asyncio says outside of its loop, and trio when it is handed one of asyncio's futures.
_SYMPTOMS = (
    "no running event loop",
    "no current event loop",
    "should be used inside a task",
    "unrecognized yield message",
    *(f"'NoneType' object has no attribute '{method}'" for method in ("call_later", "call_soon", "create_future")),
)


class PluginProtocolAdapter(CommunicationProtocol):
    """Adapter around another plugin's protocol, which itself is not changed.

    Raises, besides what the protocol raises:
        RuntimeError: On trio: the protocol needs asyncio.
        WebSocketSecurityError: Registering a manual from a remote origin with a tool on loopback or a trusted host.
    """

    def __init__(self, protocol: CommunicationProtocol, call_template_type: str) -> None:
        self._protocol = protocol
        self._type = call_template_type

    def __repr__(self) -> str:
        return f"<PluginProtocolAdapter {self._type}: {type(self._protocol).__qualname__}>"

    async def register_manual(self, caller: UtcpClient, manual_call_template: CallTemplate) -> RegisterManualResult:
        try:
            result = await self._protocol.register_manual(caller, manual_call_template)
        except Exception as error:
            self.explain(error)
            raise
        if not result.success:
            if sniffio.current_async_library() != "asyncio" and any(map(_is_symptom, result.errors)):
                raise RuntimeError(self._needs_asyncio)
            return result
        # A plugin names the place of its manuals in one of these; one without a place read it on this machine.
        for field in ("url", "host"):
            origin = getattr(manual_call_template, field, None)
            if isinstance(origin, str):
                check_manual_origin(origin if "://" in origin else f"x://{origin}", result.manual.tools)
        result.manual.tools = [declare_tool_inputs(tool) for tool in result.manual.tools]
        return result

    async def deregister_manual(self, caller: UtcpClient, manual_call_template: CallTemplate) -> None:
        try:
            await self._protocol.deregister_manual(caller, manual_call_template)
        except Exception as error:
            self.explain(error)
            raise

    async def call_tool(
        self, caller: UtcpClient, tool_name: str, tool_args: dict[str, Any], tool_call_template: CallTemplate
    ) -> Any:
        try:
            return await self._protocol.call_tool(caller, tool_name, tool_args, tool_call_template)
        except Exception as error:
            self.explain(error)
            raise

    def call_tool_streaming(  # type: ignore[override]  # core declares it as a coroutine
        self, caller: UtcpClient, tool_name: str, tool_args: dict[str, Any], tool_call_template: CallTemplate
    ) -> AsyncGenerator[Any, None]:
        async def start() -> Any:  # noqa: ASYNC124 - called when the first item is asked for
            return self._protocol.call_tool_streaming(caller, tool_name, tool_args, tool_call_template)

        return _PluginStream(start, self)

    async def close(self) -> None:
        try:
            await self._protocol.close()
        except Exception as error:
            if not _lacks_asyncio(error):
                raise
            # It could not have opened anything here, so there is nothing to close.
            _log.debug("the %r protocol, which needs asyncio, was not closed", self._type)

    def explain(self, error: Exception) -> None:
        """Raise an error that names the protocol, if `error` is what the absence of asyncio makes of it."""
        if _lacks_asyncio(error):
            raise RuntimeError(self._needs_asyncio) from error

    @property
    def _needs_asyncio(self) -> str:
        kind = type(self._protocol)
        return (
            f"the {self._type!r} protocol ({kind.__module__}.{kind.__qualname__}) needs asyncio and cannot be used"
            f" from {sniffio.current_async_library()}"
        )


class _PluginStream(ToolStream):
    def __init__(self, start: Any, protocol: PluginProtocolAdapter) -> None:
        super().__init__(start)
        self._protocol = protocol

    async def __anext__(self) -> Any:
        try:
            return await super().__anext__()
        except Exception as error:
            self._protocol.explain(error)
            raise


def _is_symptom(text: str) -> bool:
    return any(symptom in text for symptom in _SYMPTOMS)


def _lacks_asyncio(error: BaseException) -> bool:
    """True if an error, or one that it was made of, was caused by the missing asyncio event loop."""
    if sniffio.current_async_library() == "asyncio":
        return False
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if _is_symptom(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
