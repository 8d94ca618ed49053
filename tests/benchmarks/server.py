"""The server of every benchmark: picows' core, in a process of its own.

``/echo`` answers each message with itself, ``/stream?count=N&size=S`` answers one with N JSON objects of S bytes and
the end of a UTCP stream, ``/connections`` answers each with how many are open and how many there were with the same
``of`` in the query. It prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import picows
from measure import allow_files
from workloads import pushed

BLOCK = 256 * 1024

END = json.dumps({"type": "stream_end"}).encode()


@dataclass
class Count:
    """How many connections there are and were."""

    open: int = 0
    ever: int = 0


counts: defaultdict[str, Count] = defaultdict(Count)
"""By who opened them."""


class Echo(picows.WSListener):
    def __init__(self, of: str) -> None:
        self.count = counts[of]

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.count.open += 1
        self.count.ever += 1

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.count.open -= 1

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type in (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY):
            transport.send(frame.msg_type, frame.get_payload_as_bytes())
        elif frame.msg_type == picows.WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


class Connections(Echo):
    """Tells whether connections were lost and replaced."""

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            transport.send(picows.WSMsgType.TEXT, f"{self.count.open} of {self.count.ever}".encode())
        else:
            super().on_ws_frame(transport, frame)


class Stream(Echo):
    """Sends as fast as the client reads: many messages with each write, or its own cost would be what is measured."""

    def __init__(self, messages: int, size: int) -> None:
        super().__init__("")
        if size < 126:
            length = bytes([size])
        else:
            length = struct.pack("!BH", 126, size) if size < 65_536 else struct.pack("!BQ", 127, size)
        self.frame = b"\x81" + length + pushed(size).encode()
        self.messages = messages
        self.at_once = max(1, BLOCK // len(self.frame))
        self.block = self.frame * self.at_once
        self.writable = asyncio.Event()
        self.writable.set()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            self.task = asyncio.ensure_future(self.send(transport))
        else:
            super().on_ws_frame(transport, frame)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def send(self, transport: picows.WSTransport) -> None:
        for _ in range(self.messages // self.at_once):
            transport.underlying_transport.write(self.block)
            await self.writable.wait()
            await asyncio.sleep(0)
        transport.underlying_transport.write(self.frame * (self.messages % self.at_once))
        transport.send(picows.WSMsgType.TEXT, END)


def listener(request: picows.WSUpgradeRequest) -> picows.WSListener:
    url = urlsplit(request.path.decode())
    query = parse_qs(url.query)
    if url.path == "/stream":
        return Stream(int(query["count"][0]), int(query["size"][0]))
    return (Connections if url.path == "/connections" else Echo)(query.get("of", [""])[0])


async def main() -> None:
    allow_files(20_000)
    server = await picows.ws_create_server(
        listener, "127.0.0.1", 0, enable_auto_ping=False, max_frame_size=2**26, backlog=2000
    )
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
