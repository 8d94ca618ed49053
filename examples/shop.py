"""An endpoint that knows nothing of UTCP: the one that the README's guide makes a manual for.

Run it: ``python examples/shop.py [PORT]``. It tells prices to everybody, takes orders from clients that
have logged in with the token ``secret``, and announces things in between.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

PRICES = {"tea": 320, "milk": 110}


class Visit:
    """One connection."""

    def __init__(self, connection: WebSocketConnection, nursery: trio.Nursery) -> None:
        self.connection = connection
        self.nursery = nursery
        self.is_known = False

    async def answer(self, request: dict[str, Any]) -> None:
        """Do what one message asks for."""
        operation, item = request.get("op"), str(request.get("item"))
        if operation == "login":
            self.is_known = request.get("token") == "secret"
            await self.say(event="welcome" if self.is_known else "denied")
        elif operation not in ("price", "watch", "order") or item not in PRICES:
            await self.say(event="error", ref=request.get("ref"), text=f"cannot {operation} {item}")
        elif operation == "price":
            await self.say(event="price", ref=request.get("ref"), item=item, cents=PRICES[item])
        elif operation == "watch":
            self.nursery.start_soon(self.follow, request.get("ref"), item)
        elif self.is_known:
            await self.say(event="ordered", ref=request.get("ref"), item=item)
        else:
            await self.say(event="error", ref=request.get("ref"), text="log in first")

    async def follow(self, ref: Any, item: str) -> None:
        """Tell a price each time it changes."""
        cents = PRICES[item]
        while True:
            await self.say(event="price", ref=ref, item=item, cents=cents)
            cents += 5
            await trio.sleep(0.2)

    async def announce(self) -> None:
        """Send an announcement that no client has asked for."""
        while True:
            await trio.sleep(0.5)
            await self.say(event="offer", item="milk")

    async def say(self, **message: Any) -> None:
        """Send a message, unless the client has gone."""
        try:
            await self.connection.send_message(json.dumps(message))
        except ConnectionClosed:
            self.nursery.cancel_scope.cancel()


async def visit(request: WebSocketRequest) -> None:
    """One connection from its handshake to its end."""
    connection = await request.accept()
    async with connection, trio.open_nursery() as nursery:
        visitor = Visit(connection, nursery)
        await visitor.say(event="hello", version=2)
        nursery.start_soon(visitor.announce)
        try:
            while True:
                await visitor.answer(json.loads(await connection.get_message()))
        except ConnectionClosed:
            nursery.cancel_scope.cancel()


async def main(port: int) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, visit, "127.0.0.1", port, None)
            print(f"The shop is open at ws://127.0.0.1:{server.port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()
    print("The shop is closed.")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 8766)
