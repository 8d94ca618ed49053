"""A WebSocket server in a process of its own, so that a test under load measures the client alone.

A call `{"id": …, "n": …, "of": N}` is answered when N of them are open, on whichever connections, the last one first.
`{"report": true}` is answered with what the server sees. It ends when its standard input does, or with its first
error: its connections end with it, so that no test waits for answers that nobody is left to give.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from support.files import allow_many_files
from support.peers import CLOSE, PING, PONG, Peer, peer

Answer = Callable[[], Awaitable[None]]


class Server:
    """Holds calls back until enough of them are there.

    Attributes:
        pings: How many every open connection has sent.
    """

    def __init__(self) -> None:
        self.pings: dict[Peer, int] = {}
        self._held: list[Answer] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.pings[peer] = 0
        try:
            while True:
                opcode, payload = await peer.receive_frame()
                if opcode == PING:
                    self.pings[peer] += 1
                    await peer.send_frame(PONG, payload)
                elif opcode == CLOSE:
                    await peer.send_frame(CLOSE, payload)
                    return
                else:
                    await self._take(peer, json.loads(payload))
        finally:
            del self.pings[peer]

    async def _take(self, peer: Peer, request: dict[str, Any]) -> None:
        if "report" in request:
            others = [count for other, count in self.pings.items() if other is not peer]
            await peer.send({"connections": len(others), "fewest_pings": min(others, default=0)})
            return

        async def answer() -> None:
            await peer.send({"id": request["id"], "square": request["n"] ** 2})

        self._held.append(answer)
        if len(self._held) == request["of"]:
            held, self._held = self._held, []
            for answer_one in reversed(held):
                await answer_one()


async def main() -> None:
    async with peer(Server()) as url:
        print(url, flush=True)
        # Not read in a thread, which could not be cancelled and would keep a server that has failed alive.
        await anyio.wait_readable(sys.stdin)


if __name__ == "__main__":
    with allow_many_files():
        asyncio.run(main())
