"""The wire: one open WebSocket, whichever event loop and library carry it.

`Wire` is all that the layers above know of it. The engines behind it:

=========  ==========================================  ======================================================
backend    engine                                      used for
=========  ==========================================  ======================================================
asyncio    `_picows`: picows' core                     everything but compression, where picows is installed
asyncio    `_asyncio`: `_session` over a Protocol      compression; platforms without picows
trio       `_trio`: `_session` over a trio stream      everything
=========  ==========================================  ======================================================

`_session` is the WebSocket protocol without I/O (the sans-I/O core of `websockets`), so that two of the three engines
share every rule but how bytes move. This package is the only place that imports an event loop's library, and it maps
what goes wrong to the package's errors, once.
"""

from __future__ import annotations

import sys

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
    if not target.compression and sys.implementation.name == "cpython":
        try:
            from . import _picows
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "picows":
                raise
        else:
            return await _picows.open_wire(target)
    from . import _asyncio

    return await _asyncio.open_wire(target)
