"""Streams that are garbage collected: whenever and wherever that happens, their connections come back."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import pytest
from support.peers import Peer, peer
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import WebSocketCommunicationProtocol

pytestmark = pytest.mark.anyio


async def endless(peer: Peer) -> None:
    await peer.handshake()
    while True:
        request = await peer.receive_json()
        await peer.send({"id": request["id"], "n": 0})


def subscription(url: str, *, multiplex: bool = False) -> Any:
    return template(
        url,
        message={"id": "{{call_id}}"},
        message_filter={"id": "{{call_id}}"},
        multiplex=multiplex,
        response_format="json",
    )


@pytest.mark.parametrize("multiplex", [False, True])
async def test_collected_in_another_thread(multiplex: bool) -> None:
    async with entered() as protocol, peer(endless) as url:
        streams = [protocol.call_tool_streaming(None, "m.t", {}, subscription(url, multiplex=multiplex))]
        assert (await streams[0].__anext__())["n"] == 0
        await anyio.to_thread.run_sync(streams.clear)
        gc.collect()
        await until_left(protocol)


async def until_left(protocol: WebSocketCommunicationProtocol) -> None:
    while protocol.statistics().active:
        await anyio.sleep(0.001)


async def test_a_thousand_streams_in_cycles_are_collected_without_harm() -> None:
    async with entered(60) as protocol, peer(endless) as url:

        class Holder:
            pass

        for _ in range(1000):
            holder: Any = Holder()
            holder.itself = holder
            holder.stream = protocol.call_tool_streaming(None, "m.t", {}, subscription(url, multiplex=True))
            await holder.stream.__anext__()
            del holder
        gc.collect()
        await until_left(protocol)
        assert protocol.statistics().idle == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_collected_in_a_callback_of_the_event_loop() -> None:
    async with entered() as protocol, peer(endless) as url:

        async def drop_it() -> None:
            stream = protocol.call_tool_streaming(None, "m.t", {}, subscription(url))
            await stream.__anext__()
            raise ZeroDivisionError

        task = asyncio.get_running_loop().create_task(drop_it())
        looked = anyio.Event()

        def look(task: asyncio.Task[None]) -> None:
            assert isinstance(task.exception(), ZeroDivisionError)
            looked.set()

        task.add_done_callback(look)
        del task
        await looked.wait()
        gc.collect()
        await until_idle(protocol, 0)


def test_collected_while_no_event_loop_runs() -> None:
    with asyncio.Runner() as runner:
        protocol = WebSocketCommunicationProtocol()

        async def serve() -> str:
            urls: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            async def run() -> None:
                async with peer(endless) as url:
                    urls.set_result(url)
                    await asyncio.sleep(3600)

            tasks.append(asyncio.get_running_loop().create_task(run()))
            return await urls

        tasks: list[Any] = []
        url = runner.run(serve())
        stream = protocol.call_tool_streaming(None, "m.t", {}, subscription(url))
        assert runner.run(stream.__anext__())["n"] == 0
        del stream
        gc.collect()

        async def finish() -> None:
            with anyio.fail_after(20):
                while protocol.statistics().active or protocol.statistics().closing:
                    await anyio.sleep(0.001)
                await protocol.close()
            tasks[0].cancel()
            await asyncio.wait(tasks)

        runner.run(finish())
