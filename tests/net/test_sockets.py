"""Hosts with several addresses."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from utcp_websocket_anyio._net import sockets

pytestmark = pytest.mark.anyio


class Network:
    """Stands for name resolution and connecting: what each address does, and what became of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: str) -> None:
        self.addresses = addresses
        self.tried: list[str] = []
        self.given_up: list[str] = []
        self.opened: dict[str, socket.socket] = {}
        monkeypatch.setattr(sockets, "resolve", self.resolve)
        monkeypatch.setattr(sockets, "_connect", self.connect)
        monkeypatch.setattr(sockets, "_HEAD_START", 0.02)

    async def resolve(self, host: str, port: int) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        return list(self.addresses)

    async def connect(self, address: Any) -> socket.socket:
        self.tried.append(address)
        try:
            await anyio.sleep({"silent": 100, "slow": 0.1}.get(self.addresses[address], 0))
        except BaseException:
            self.given_up.append(address)
            raise
        if self.addresses[address] == "refused":
            raise ConnectionRefusedError(111, address)
        self.opened[address] = socket.socket()
        return self.opened[address]


async def test_a_silent_address_does_not_delay_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a="silent", b="good")
    with anyio.fail_after(5):
        with await sockets.open_tcp("host", 1) as opened:
            assert opened is network.opened["b"]
    assert network.given_up == ["a"]


async def test_after_a_refusal_the_next_one_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a="refused", b="good", c="good")
    monkeypatch.setattr(sockets, "_HEAD_START", 1000)
    with anyio.fail_after(5):
        (await sockets.open_tcp("host", 1)).close()
    assert network.tried == ["a", "b"]


async def test_when_all_refuse_the_first_refusal_is_raised_and_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    Network(monkeypatch, a="refused", b="refused")
    with anyio.fail_after(5), pytest.raises(ConnectionRefusedError, match="a"):
        await sockets.open_tcp("host", 1)


async def test_cancelled_it_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a="silent", b="silent")
    with anyio.move_on_after(0.1) as scope:
        await sockets.open_tcp("host", 1)
    assert scope.cancelled_caught
    assert sorted(network.given_up) == ["a", "b"]


async def test_a_name_is_resolved_and_an_address_in_figures_is_taken_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, anyio.fail_after(10):
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with await sockets.open_tcp(host, port) as opened:
                assert opened.getpeername()[1] == port
        with pytest.raises(socket.gaierror):
            await sockets.open_tcp("name.invalid", port)
