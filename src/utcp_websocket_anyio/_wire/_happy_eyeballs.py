"""From a host to a connected socket, on asyncio; trio's own streams do this for themselves."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import anyio

__all__ = ["open_socket"]

_HEAD_START = 0.25
"""Seconds that an address has to itself before the next one is tried, too."""

_Address = tuple[socket.AddressFamily, Any]


async def open_socket(host: str, port: int) -> socket.socket:
    """A connected TCP socket: of the first address that answers, each tried a moment after the one before (RFC 8305).

    Raises:
        OSError: None does.
    """
    addresses = await _resolve(host, port)
    if len(addresses) == 1:
        return await _connect(addresses[0])
    failures: list[OSError] = []
    winner: socket.socket | None = None

    async def attempt(address: _Address, failed: anyio.Event) -> None:
        nonlocal winner
        try:
            connected = await _connect(address)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if winner is None:
            winner = connected
            task_group.cancel_scope.cancel()
        else:
            connected.close()

    try:
        async with anyio.create_task_group() as task_group:
            for address in addresses:
                failed = anyio.Event()
                task_group.start_soon(attempt, address, failed)
                with anyio.move_on_after(_HEAD_START):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise failures[0]
    return winner


async def _resolve(host: str, port: int) -> list[_Address]:
    try:
        # An address in figures needs no thread that may block.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def _connect(address: _Address) -> socket.socket:
    connecting = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connecting, address[1])
    except BaseException:
        connecting.close()
        raise
    return connecting
