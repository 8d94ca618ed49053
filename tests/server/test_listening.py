"""The sockets of a tool server: every address of a host, at one port."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable
from typing import Any

import anyio
import pytest

from utcp_websocket_anyio._server.listening import open_sockets

pytestmark = pytest.mark.anyio

needs_more_loopback = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address only on Linux")
NOT_OURS = "192.0.2.1"  # RFC 5737: of no machine


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a name the addresses that a test wants."""

    def name(*addresses: str) -> str:
        async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

        monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
        return "tools.example"

    return name


def closed(sockets: Iterable[socket.socket]) -> list[tuple[str, int]]:
    """The addresses of sockets that are not needed any more."""
    addresses = [one.getsockname()[:2] for one in sockets]
    for one in sockets:
        one.close()
    return addresses


@needs_more_loopback
async def test_every_address_gets_the_same_free_port(host: Any) -> None:
    first, second = closed(await open_sockets(host("127.0.0.1", "127.0.0.2", "127.0.0.1"), 0))
    assert (first[0], second[0]) == ("127.0.0.1", "127.0.0.2")
    assert first[1] == second[1] > 0


@needs_more_loopback
async def test_a_port_that_is_taken_at_another_address_is_not_taken_at_the_first(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = socket.create_server
    opened: list[socket.socket] = []

    def create_server(address: tuple[str, int], **options: Any) -> socket.socket:
        if address[0] == "127.0.0.2" and len(opened) < 3:
            raise OSError(errno.EADDRINUSE, "taken")
        opened.append(create(address, **options))
        return opened[-1]

    monkeypatch.setattr(socket, "create_server", create_server)
    first, second = closed(await open_sockets(host("127.0.0.1", "127.0.0.2"), 0))
    assert first[1] == second[1]
    assert [one.fileno() for one in opened[:2]] == [-1, -1]  # the attempts before are closed


async def test_an_address_that_this_machine_does_not_have_is_left_out(host: Any) -> None:
    assert [address for address, _ in closed(await open_sockets(host(NOT_OURS, "127.0.0.1"), 0))] == ["127.0.0.1"]
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number follows
        await open_sockets(host(NOT_OURS), 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_a_port_that_was_asked_for_is_not_changed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at
        await open_sockets("127.0.0.1", taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE
