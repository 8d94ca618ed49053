"""The server of every benchmark: picows' core, in a process of its own.

``/echo`` answers each message with itself, ``/stream?count=N&size=S`` answers one with N messages of S bytes and the
end of a UTCP stream, ``/connections`` answers each with how many are open and how many there were. It prints its port
and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from urllib.parse import parse_qs, urlsplit

import picows
from measure import allow_files

BLOCK = 256 * 1024

END = json.dumps({"type": "stream_end"}).encode()


class Echo(picows.WSListener):
    open = 0
    ever = 0

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        Echo.open += 1
        Echo.ever += 1

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        Echo.open -= 1

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
            transport.send(picows.WSMsgType.TEXT, f"{Echo.open} of {Echo.ever}".encode())
        else:
            super().on_ws_frame(transport, frame)


class Stream(Echo):
    """Sends as fast as the client reads: many messages with each write, or its own cost would be what is measured."""

    def __init__(self, count: int, size: int) -> None:
        if size < 126:
            length = bytes([size])
        else:
            length = struct.pack("!BH", 126, size) if size < 65_536 else struct.pack("!BQ", 127, size)
        self.frame = b"\x81" + length + b"x" * size
        self.count = count
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
        for _ in range(self.count // self.at_once):
            transport.underlying_transport.write(self.block)
            await self.writable.wait()
            await asyncio.sleep(0)
        transport.underlying_transport.write(self.frame * (self.count % self.at_once))
        transport.send(picows.WSMsgType.TEXT, END)


def listener(request: picows.WSUpgradeRequest) -> picows.WSListener:
    url = urlsplit(request.path.decode())
    if url.path != "/stream":
        return Connections() if url.path == "/connections" else Echo()
    query = parse_qs(url.query)
    return Stream(int(query["count"][0]), int(query["size"][0]))


async def main() -> None:
    allow_files(2000)
    server = await picows.ws_create_server(
        listener, "127.0.0.1", 0, enable_auto_ping=False, max_frame_size=2**26, backlog=2000
    )
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
