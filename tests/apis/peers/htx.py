"""HTX (Huobi) market data. Times are scaled by 10: the peer pings every 5 s (here 0.5 s).

Every message of the peer is gzip in a binary frame. {"ping": number} is answered by {"pong": the same number}; two in a
row unanswered, and the peer closes the connection (1003). {"sub": topic, "id"} gives {"id", "status": "ok", "subbed"},
then {"ch", "ts", "tick"} every 0.1 s; {"unsub": topic, "id"} gives {"id", "status", "unsubbed"}; {"req": topic, "id"}
gives {"id", "status", "rep", "data"} after 0.1 s. Errors are {"status": "error", "err-code", "err-msg", "id"}. Topics:
market.SYMBOL.ticker for btcusdt and ethusdt, market.SYMBOL.kline.1min by request.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

from .peer import Conn, Headers, Peer, Refusal, dumps, now_ms, run

SYMBOLS = {"btcusdt": 60000, "ethusdt": 3000}
EVERY = 0.5


class HTX(Peer):
    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None if path == "/ws" else (404, None, "not found")

    async def say(self, conn: Conn, value: Any) -> None:
        await conn.send(gzip.compress(dumps(value).encode()))

    async def handle(self, conn: Conn) -> None:
        conn.unanswered = []
        conn.spawn(self.ping(conn))
        async for raw in conn:
            message = json.loads(raw)
            if "pong" in message:
                if message["pong"] in conn.unanswered:
                    conn.unanswered.clear()
                    self.count("pongs_received")
                else:
                    self.count("protocol_errors")
                continue
            kind = next((kind for kind in ("sub", "unsub", "req") if kind in message), None)
            topic = message.get(kind, "")
            parts = topic.split(".")
            if kind is None or len(parts) < 3 or parts[1] not in SYMBOLS:
                self.count("errors_sent")
                text = f"invalid topic {topic}"
                wrong = {"status": "error", "ts": now_ms(), "err-code": "bad-request", "err-msg": text}
                await self.say(conn, {**wrong, "id": message.get("id")})
            elif kind == "sub":
                await self.say(conn, {"id": message["id"], "status": "ok", "subbed": topic, "ts": now_ms()})
                conn.subscribe(topic, self.ticks(conn, topic, SYMBOLS[parts[1]]))
            elif kind == "unsub":
                conn.unsubscribe(topic)
                await self.say(conn, {"id": message["id"], "status": "ok", "unsubbed": topic, "ts": now_ms()})
            else:
                conn.spawn(self.reply(conn, message["id"], topic, SYMBOLS[parts[1]]))

    async def reply(self, conn: Conn, ident: Any, topic: str, price: int) -> None:
        await asyncio.sleep(0.1)
        data = [{"id": n, "open": price + n, "close": price + n + 1, "text": "x" * 2000} for n in range(50)]
        await self.say(conn, {"id": ident, "status": "ok", "rep": topic, "data": data})

    async def ticks(self, conn: Conn, topic: str, price: int) -> None:
        for n in range(10**9):
            self.count("events_sent")
            await self.say(conn, {"ch": topic, "ts": now_ms(), "tick": {"n": n, "close": price + n}})
            await asyncio.sleep(0.1)

    async def ping(self, conn: Conn) -> None:
        while True:
            await asyncio.sleep(EVERY)
            if len(conn.unanswered) == 2:
                self.count("heartbeat_timeouts")
                await conn.close(1003, "ping check expired")
                return
            conn.unanswered.append(now_ms())
            self.count("pings_sent")
            await self.say(conn, {"ping": conn.unanswered[-1]})


if __name__ == "__main__":
    run(HTX())
