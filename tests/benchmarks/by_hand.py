"""The libraries themselves, each used as somebody would by hand: no UTCP, no pool, no deadline."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from measure import Outcome, arguments
from workloads import WORKLOADS, Workload

contender, name, url = arguments()
workload: Workload = WORKLOADS[name]
outcome = Outcome()
payload = "x" * workload.size
END = json.dumps({"type": "stream_end"})


class Socket(Protocol):
    async def send(self, message: str) -> Any: ...

    async def recv(self) -> Any: ...


Connect = Callable[[str], AbstractAsyncContextManager[Socket]]


# A blocking socket: the fastest that Python's own means allow.


class Blocking:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65536)
        self.buffer = self.buffer.partition(b"\r\n\r\n")[2]

    def send(self, message: str) -> None:
        data = message.encode()
        size = len(data)
        head = b"\x81" + (
            bytes([0x80 | size])
            if size < 126
            else struct.pack("!BH", 0xFE, size)
            if size < 65536
            else struct.pack("!BQ", 0xFF, size)
        )
        # A mask of zeros is a mask, and costs nothing.
        self.socket.sendall(head + bytes(4) + data)

    def recv(self) -> str:
        head = self.take(2)
        size = head[1]
        if size == 126:
            (size,) = struct.unpack("!H", self.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.take(8))
        return self.take(size).decode()

    def take(self, size: int) -> bytes:
        if len(self.buffer) < size:
            parts, have = [self.buffer], len(self.buffer)
            while have < size:
                part = self.socket.recv(max(65536, size - have))
                parts.append(part)
                have += len(part)
            self.buffer = b"".join(parts)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def close(self) -> None:
        self.socket.sendall(b"\x88\x82" + bytes(4) + struct.pack("!H", 1000))
        self.take(2)
        self.socket.close()


def run_blocking() -> None:
    if name == "connect":
        with outcome.timed():
            for _ in range(workload.count):
                connection = Blocking(url + "/echo")
                connection.send(payload)
                outcome.check(connection.recv(), payload)
                connection.close()
        return
    if name.startswith("stream"):
        connection = Blocking(f"{url}/stream?count={workload.count}&size={workload.size}")
        with outcome.timed():
            connection.send("go")
            while (message := connection.recv()) != END:
                outcome.check(message, payload)
        return
    connection = Blocking(url + "/echo")
    for number in range(-workload.warmup, workload.count):
        if number == 0:
            outcome.start()
        connection.send(payload)
        outcome.check(connection.recv(), payload)
    outcome.stop()


# The asynchronous ones, behind two methods.


@asynccontextmanager
async def connect_picows(url: str) -> Any:
    from picows.websockets.asyncio import client

    async with client.connect(url, max_size=None, compression=None) as connection:
        yield connection


@asynccontextmanager
async def connect_aiohttp(url: str) -> Any:
    import aiohttp

    class Adapter:
        def __init__(self, connection: aiohttp.ClientWebSocketResponse[Any]) -> None:
            self.send = connection.send_str
            self.recv = connection.receive_str

    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as connection:
        yield Adapter(connection)


@asynccontextmanager
async def connect_websockets(url: str) -> Any:
    from websockets.asyncio import client

    async with client.connect(url, max_size=None, compression=None) as connection:
        yield connection


@asynccontextmanager
async def connect_websockets_trio(url: str) -> Any:
    # Only the newer releases have it.
    client = importlib.import_module("websockets.trio.client")
    async with client.connect(url, max_size=None, compression=None) as connection:
        yield connection


@asynccontextmanager
async def connect_trio_websocket(url: str) -> Any:
    import trio_websocket

    class Adapter:
        def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
            self.send = connection.send_message
            self.recv = connection.get_message

    async with trio_websocket.open_websocket_url(url, max_message_size=2**26) as connection:
        yield Adapter(connection)


CONNECT: dict[str, Connect] = {
    "picows": connect_picows,
    "aiohttp": connect_aiohttp,
    "websockets": connect_websockets,
    "websockets.trio": connect_websockets_trio,
    "trio-websocket": connect_trio_websocket,
}


async def calls(connect: Connect) -> None:
    async with connect(url + "/echo") as connection:
        for _ in range(workload.warmup):
            await connection.send(payload)
            await connection.recv()
        with outcome.timed():
            for _ in range(workload.count):
                await connection.send(payload)
                outcome.check(await connection.recv(), payload)


async def stream(connect: Connect) -> None:
    async with connect(f"{url}/stream?count={workload.count}&size={workload.size}") as connection:
        with outcome.timed():
            await connection.send("go")
            while (message := await connection.recv()) != END:
                outcome.check(message, payload)


async def connect_and_close(connect: Connect) -> None:
    with outcome.timed():
        for _ in range(workload.count):
            async with connect(url + "/echo") as connection:
                await connection.send(payload)
                outcome.check(await connection.recv(), payload)


async def multiplexed_on_asyncio(connect: Connect) -> None:
    waiting: dict[int, asyncio.Future[Any]] = {}
    last = 0

    async with connect(url + "/echo") as connection:

        async def demultiplex() -> None:
            while True:
                answer = json.loads(await connection.recv())
                waiting.pop(answer["id"]).set_result(answer["text"])

        async def call(text: str) -> Any:
            nonlocal last
            last += 1
            future = waiting[last] = asyncio.get_running_loop().create_future()
            await connection.send(json.dumps({"id": last, "text": text}))
            return await future

        async def work(task: int) -> None:
            for number in range(workload.count // workload.tasks):
                text = f"{task} {number} {payload}"
                outcome.check(await call(text), text)

        reader = asyncio.create_task(demultiplex())
        with outcome.timed():
            await asyncio.gather(*(work(task) for task in range(workload.tasks)))
        reader.cancel()


async def multiplexed_on_trio(connect: Connect) -> None:
    import trio

    waiting: dict[int, trio.Event] = {}
    answers: dict[int, Any] = {}
    last = 0

    async with connect(url + "/echo") as connection, trio.open_nursery() as nursery:

        async def demultiplex() -> None:
            while True:
                answer = json.loads(await connection.recv())
                answers[answer["id"]] = answer["text"]
                waiting.pop(answer["id"]).set()

        async def call(text: str) -> Any:
            nonlocal last
            last += 1
            number = last
            event = waiting[number] = trio.Event()
            await connection.send(json.dumps({"id": number, "text": text}))
            await event.wait()
            return answers.pop(number)

        async def work(task: int) -> None:
            for number in range(workload.count // workload.tasks):
                text = f"{task} {number} {payload}"
                outcome.check(await call(text), text)

        nursery.start_soon(demultiplex)
        with outcome.timed():
            async with trio.open_nursery() as workers:
                for task in range(workload.tasks):
                    workers.start_soon(work, task)
        nursery.cancel_scope.cancel()


def main() -> None:
    if contender == "blocking socket":
        run_blocking()
        return
    on_trio = "trio" in contender
    multiplexed = multiplexed_on_trio if on_trio else multiplexed_on_asyncio
    runs: dict[str, Callable[[Connect], Awaitable[None]]] = {"multiplexed": multiplexed, "connect": connect_and_close}
    run: Any = runs.get(name) or (stream if name.startswith("stream") else calls)
    if on_trio:
        import trio

        trio.run(run, CONNECT[contender])
    else:
        asyncio.run(run(CONNECT[contender]))


main()
outcome.report()
