"""UTCP over WebSocket, on asyncio and on trio, with structured concurrency.

Installed beside `utcp`, this package makes the stock `UtcpClient` speak to WebSocket endpoints. On its own it gives
`WebSocketCommunicationProtocol` and `open_client`, which run on asyncio and on trio, and `ToolServer`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .errors import (
    MissingArgumentError,
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketSecurityError,
    WebSocketTimeoutError,
    WebSocketToolError,
)

if TYPE_CHECKING:
    from ._client.client import AnyioUtcpClient, open_client
    from ._client.repository import AnyioToolRepository
    from ._connections.statistics import Statistics
    from ._net.settings import NetworkSettings, configure
    from ._server.server import ToolServer
    from ._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
    from .protocol import WebSocketCommunicationProtocol

__all__ = [
    "AnyioToolRepository",
    "AnyioUtcpClient",
    "MissingArgumentError",
    "NetworkSettings",
    "Statistics",
    "ToolServer",
    "WebSocketAuthError",
    "WebSocketCallTemplate",
    "WebSocketCallTemplateSerializer",
    "WebSocketClosedError",
    "WebSocketCommunicationProtocol",
    "WebSocketConnectionError",
    "WebSocketError",
    "WebSocketProtocolError",
    "WebSocketSecurityError",
    "WebSocketTimeoutError",
    "WebSocketToolError",
    "configure",
    "open_client",
    "register",
]

# What not every user needs is imported when it is first asked for (PEP 562).
_MODULES = {
    "AnyioToolRepository": "_client.repository",
    "AnyioUtcpClient": "_client.client",
    "NetworkSettings": "_net.settings",
    "configure": "_net.settings",
    "Statistics": "_connections.statistics",
    "ToolServer": "_server.server",
    "WebSocketCallTemplate": "_templates.call_template",
    "WebSocketCallTemplateSerializer": "_templates.call_template",
    "WebSocketCommunicationProtocol": "protocol",
    "open_client": "_client.client",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make this package the one that serves call templates of type ``websocket``, and offer its tool repository.

    UTCP calls it for every installed plugin. It also wins over another plugin of that type, whichever is loaded first:
    installing this package is the choice for it.
    """
    from utcp.plugins.discovery import register_call_template, register_communication_protocol_factory

    from ._client.repository import register_repository
    from ._templates.call_template import WebSocketCallTemplateSerializer
    from .protocol import WebSocketCommunicationProtocol

    serializer: Any = WebSocketCallTemplateSerializer()
    register_call_template("websocket", serializer, override=True)
    register_communication_protocol_factory("websocket", WebSocketCommunicationProtocol, override=True)
    register_repository()
