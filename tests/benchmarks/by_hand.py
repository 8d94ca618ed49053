"""The libraries themselves, each used as somebody would by hand: no UTCP, no deadline, the least of a pool."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from measure import Outcome, allow_files, arguments, hold_still
from workloads import CALLS_OF_A_TASK, CONNECTIONS, HEARTBEAT, IDLE_SECONDS, WORKLOADS, Workload, pushed

contender, name, url = arguments()
workload: Workload = WORKLOADS[name]
outcome = Outcome()
payload = "x" * workload.size
heartbeat = HEARTBEAT if name == "idle" else None
END = json.dumps({"type": "stream_end"})


class Socket(Protocol):
    async def send(self, message: str) -> Any: ...

    async def recv(self) -> Any: ...


Connect = Callable[[str], AbstractAsyncContextManager[Socket]]


# How each is opened, behind two methods.


@asynccontextmanager
async def connect_picows(url: str) -> Any:
    import picows

    text = picows.WSMsgType.TEXT

    class Listener(picows.WSListener):
        def __init__(self) -> None:
            self.messages: deque[str] = deque()
            self.waiter: asyncio.Future[None] | None = None

        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == text:
                self.messages.append(frame.get_payload_as_utf8_text())
                if self.waiter is not None:
                    self.waiter.set_result(None)
                    self.waiter = None
            elif frame.msg_type == picows.WSMsgType.CLOSE:
                transport.disconnect()

        async def recv(self) -> str:
            if not self.messages:
                self.waiter = asyncio.get_running_loop().create_future()
                await self.waiter
            return self.messages.popleft()

        async def send(self, message: str) -> None:
            transport.send(text, message.encode())

    pings: dict[str, Any] = {"enable_auto_ping": True, "auto_ping_idle_timeout": heartbeat} if heartbeat else {}
    transport, listener = await picows.ws_connect(Listener, url, max_frame_size=2**26, **pings)
    try:
        yield listener
    finally:
        transport.send_close(picows.WSCloseCode.OK)
        await transport.wait_disconnected()


@asynccontextmanager
async def connect_aiohttp(url: str) -> Any:
    import aiohttp

    class Adapter:
        def __init__(self, connection: aiohttp.ClientWebSocketResponse[Any]) -> None:
            self.send = connection.send_str
            self.recv = connection.receive_str

    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0, heartbeat=heartbeat) as connection,
    ):
        yield Adapter(connection)


def connect_like_websockets(module: str) -> Connect:
    """For the modules with the interface of `websockets`."""

    @asynccontextmanager
    async def connect(url: str) -> Any:
        client = importlib.import_module(module)
        async with client.connect(url, max_size=None, compression=None, ping_interval=heartbeat) as connection:
            yield connection

    return connect


@asynccontextmanager
async def connect_trio_websocket(url: str) -> Any:
    import trio
    import trio_websocket

    class Adapter:
        def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
            self.send = connection.send_message
            self.recv = connection.get_message

    async def ping(connection: trio_websocket.WebSocketConnection, every: float) -> None:
        while True:
            await trio.sleep(every)
            await connection.ping()

    async with trio.open_nursery() as nursery:
        async with trio_websocket.open_websocket_url(url, max_message_size=2**26) as connection:
            if heartbeat:
                nursery.start_soon(ping, connection, heartbeat)  # noqa: ASYNC111 - cancelled below
            yield Adapter(connection)
        nursery.cancel_scope.cancel()


CONNECT: dict[str, Connect] = {
    "picows": connect_picows,
    "picows.websockets": connect_like_websockets("picows.websockets.asyncio.client"),
    "aiohttp": connect_aiohttp,
    "websockets": connect_like_websockets("websockets.asyncio.client"),
    "websockets.trio": connect_like_websockets("websockets.trio.client"),
    "trio-websocket": connect_trio_websocket,
}
on_trio = "trio" in contender


async def all_at_once(work: Callable[[int], Any], tasks: int) -> None:
    if on_trio:
        import trio

        async with trio.open_nursery() as nursery:
            for task in range(tasks):
                nursery.start_soon(work, task)
    else:
        await asyncio.gather(*map(work, range(tasks)))


async def sleep(seconds: float) -> None:
    if on_trio:
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


# The workloads.


async def calls(connect: Connect) -> None:
    async with connect(url + "/echo") as connection:
        for number in range(-workload.warmup, workload.count):
            if number == 0:
                outcome.start()
            await connection.send(payload)
            outcome.check(await connection.recv(), payload)
        outcome.stop()


async def stream(connect: Connect) -> None:
    expected = pushed(workload.size)
    async with connect(f"{url}/stream?count={workload.count}&size={workload.size}") as connection:
        await connection.send("go")
        outcome.check(await connection.recv(), expected)
        outcome.start()
        while (message := await connection.recv()) != END:
            outcome.check(message, expected)
        outcome.stop()


async def connect_and_close(connect: Connect) -> None:
    for number in range(-workload.warmup, workload.count):
        if number == 0:
            outcome.start()
        async with connect(url + "/echo") as connection:
            await connection.send(payload)
            outcome.check(await connection.recv(), payload)
    outcome.stop()


async def batches(call: Callable[[str], Awaitable[Any]]) -> None:
    """All calls, in tasks that run at once and do a few each, one batch of tasks after the other."""

    async def work(task: int) -> None:
        for number in range(CALLS_OF_A_TASK):
            text = f"{task} {number} {payload}"
            outcome.check(await call(text), text)

    for number in range(-workload.warmup, workload.count, workload.tasks * CALLS_OF_A_TASK):
        if number == 0:
            outcome.start()
        await all_at_once(work, workload.tasks)
    outcome.stop()


async def pool(connect: Connect) -> None:
    limit: Any = importlib.import_module("trio" if on_trio else "asyncio").Semaphore(CONNECTIONS)
    async with AsyncExitStack() as stack:
        free = [await stack.enter_async_context(connect(url + "/echo")) for _ in range(CONNECTIONS)]

        async def call(text: str) -> Any:
            async with limit:
                connection = free.pop()
                await connection.send(text)
                answer = await connection.recv()
                free.append(connection)
                return answer

        await batches(call)


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

        reader = asyncio.create_task(demultiplex())
        await batches(call)
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

        nursery.start_soon(demultiplex)
        await batches(call)
        nursery.cancel_scope.cancel()


async def idle(connect: Connect) -> None:
    allow_files(workload.count)
    async with AsyncExitStack() as stack:

        async def ask(path: str) -> Any:
            connection = await stack.enter_async_context(connect(f"{url}{path}?of={contender}"))
            await connection.send(payload)
            answer = await connection.recv()
            return connection, answer

        await ask("/echo")
        before = hold_still()
        for _ in range(workload.count):
            outcome.check((await ask("/echo"))[1], payload)
        outcome.memory = hold_still() - before
        connections, before_that = await ask("/connections")
        with outcome.timed():
            await sleep(IDLE_SECONDS)
        await connections.send(payload)
        outcome.check(await connections.recv(), before_that)
        outcome.report()
        os._exit(0)  # closing so many, one by one, is no part of it


RUNS: dict[str, Callable[[Connect], Awaitable[None]]] = {
    "pool": pool,
    "multiplexed": multiplexed_on_trio if on_trio else multiplexed_on_asyncio,
    "connect": connect_and_close,
    "idle": idle,
    "stream-64": stream,
    "stream-64k": stream,
}
run: Any = RUNS.get(name, calls)
if on_trio:
    import trio

    trio.run(run, CONNECT[contender])
else:
    asyncio.run(run(CONNECT[contender]))
outcome.report()
