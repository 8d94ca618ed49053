"""The wire: one open WebSocket, whichever event loop carries it.

`Wire` is all that the layers above know of it. There are two engines, `_asyncio` and `_trio`, which do nothing but
move bytes between a socket and the protocol, each as its event loop does that best. The protocol itself has no I/O and
is the same for both: `_core` (frames and messages), `_handshake` before it, and `_tls` below it.

This package is the only place that imports an event loop's library, and it maps what goes wrong to the package's
errors, once.
"""

from __future__ import annotations

import sniffio

from ._interface import CLOSING_TIME, Interrupted, Target, Wire

__all__ = ["CLOSING_TIME", "Interrupted", "Target", "Wire", "open_wire"]


async def open_wire(target: Target) -> Wire:
    """Connect: TCP, TLS and the opening handshake.

    It has no time limit of its own. Cancelling it leaves nothing open.

    Raises:
        WebSocketConnectionError: There is no connection, or no WebSocket at its other end.
        WebSocketAuthError: The handshake was answered with 401 or 403.
        WebSocketProtocolError: The server chose another subprotocol than the one asked for, or none.
    """
    if sniffio.current_async_library() == "trio":
        from . import _trio

        return await _trio.open_wire(target)
    from . import _asyncio

    return await _asyncio.open_wire(target)
