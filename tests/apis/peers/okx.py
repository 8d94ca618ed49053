"""OKX v5. Times are scaled by 20: the 30 s without traffic after which the connection is cut are 1.5 s here; a login's
timestamp may be 30 s old (not scaled).

Paths /ws/v5/public, /ws/v5/private. Text "ping" is answered by text "pong"; protocol-level pings do not count. The
connection is closed with 4004 when for 1.5 s the client sent nothing and nothing was pushed. login:
base64(HMAC-SHA256(secret, timestamp + "GET" + "/users/self/verify")), timestamp in Unix seconds; errors 60004…60007,
60009, 60024, then close 4001. Private channels and orders before a login: 60011. subscribe/unsubscribe with
acknowledgements per argument, echoing `id`. `channel-conn-count` notices come unasked. Order requests by `id`.
Control: {"secret": text} changes the secret that the peer knows.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

from .peer import Conn, Headers, Peer, Refusal, now_ms, run

KEY, SECRET, PASSPHRASE = "okx-key", "okx-secret-22582BD0", "okx-pass"
LIMIT = 1.5
PRICES = {"BTC-USDT": 60000.0, "ETH-USDT": 3000.0, "LTC-USDT": 70.0}


class OKX(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.secret = SECRET
        self.orders = 0

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if path not in ("/ws/v5/public", "/ws/v5/private"):
            return 404, None, "not found"
        return None

    async def control(self, command: dict[str, Any]) -> Any:
        self.secret = command.get("secret") or SECRET
        return {"ok": True}

    async def handle(self, conn: Conn) -> None:
        conn.id = f"c{self.state['connections']:07x}"
        conn.logged_in = False
        conn.alive = conn.deadline(LIMIT, 4004, "No data received in 30s")
        async for raw in conn:
            conn.alive.touch()
            if raw == "ping":
                self.count("pings_received")
                await conn.send("pong")
                continue
            try:
                message = json.loads(raw)
                op, args = message["op"], message["args"]
                assert isinstance(args, list)
                assert args
            except (ValueError, KeyError, TypeError, AssertionError):
                await self.error(conn, None, "60012", f"Invalid request: {raw if isinstance(raw, str) else '?'}")
                continue
            ident = message.get("id")
            if op == "login":
                await self.login(conn, args[0])
            elif op in ("subscribe", "unsubscribe"):
                for arg in args:
                    await self.subscription(conn, ident, op, arg)
            elif op == "order":
                conn.spawn(self.order(conn, ident, args[0]))
            else:
                await self.error(conn, ident, "60019", f"Invalid op: {op}")

    async def error(self, conn: Conn, ident: Any, code: Any, text: str) -> None:
        self.count("errors_sent")
        await conn.send(
            {**({"id": ident} if ident else {}), "event": "error", "code": code, "msg": text, "connId": conn.id}
        )

    def refuse_login(self, arg: dict[str, Any]) -> tuple[str, str] | None:
        try:
            stamp = str(arg["timestamp"])
            if not stamp.isdigit() or len(stamp) != 10:
                return "60004", "Invalid timestamp"
            if abs(time.time() - int(stamp)) > 30:
                return "60006", "Timestamp request expired"
            if arg["apiKey"] != KEY:
                return "60005", "Invalid apiKey"
            if arg["passphrase"] != PASSPHRASE:
                return "60024", "Wrong passphrase"
            text = f"{stamp}GET/users/self/verify"
            digest = hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).digest()
            if not hmac.compare_digest(base64.b64encode(digest).decode(), arg["sign"]):
                return "60007", "Invalid sign"
        except (KeyError, TypeError):
            return "60009", "Login failed."
        return None

    async def login(self, conn: Conn, arg: dict[str, Any]) -> None:
        if trouble := self.refuse_login(arg):
            self.count("logins_failed")
            await self.error(conn, None, *trouble)
            await conn.close(4001, "Login Failed")
            return
        conn.logged_in = True
        self.count("logins_ok")
        await conn.send({"event": "login", "code": "0", "msg": "", "connId": conn.id})

    async def subscription(self, conn: Conn, ident: Any, op: str, arg: dict[str, Any]) -> None:
        channel = arg.get("channel")
        private = channel in ("orders", "account")
        known = (private and conn.path.endswith("private")) or (
            channel == "tickers" and arg.get("instId") in PRICES and conn.path.endswith("public")
        )
        if private and not conn.logged_in:
            await self.error(conn, ident, "60011", "Please log in")
            return
        if not known:
            text = ",".join(f"{key}:{value}" for key, value in arg.items())
            await self.error(
                conn,
                ident,
                "60018",
                f"Wrong URL or {text} doesn't exist. Please use the correct URL, channel and "
                "parameters referring to API document.",
            )
            return
        key = json.dumps(arg, sort_keys=True)
        answer = {"event": op, "arg": arg, "connId": conn.id}
        if ident is not None:
            answer = {"id": ident, **answer}
        if op == "unsubscribe":
            conn.unsubscribe(key)
            await conn.send(answer)
            return
        await conn.send(answer)
        if private:
            await conn.send({"event": "channel-conn-count", "channel": channel, "connCount": "1", "connId": conn.id})
        if key not in conn.subs:
            conn.subscribe(key, self.tickers(conn, arg) if channel == "tickers" else self.order_events(conn, arg))

    async def push(self, conn: Conn, arg: dict[str, Any], item: Any) -> None:
        conn.alive.touch()
        self.count("events_sent")
        await conn.send({"arg": arg, "data": [item]})

    async def tickers(self, conn: Conn, arg: dict[str, Any]) -> None:
        base = PRICES[arg["instId"]]
        for n in range(10**9):
            await self.push(
                conn,
                arg,
                {
                    "instType": "SPOT",
                    "instId": arg["instId"],
                    "last": f"{base + n:.1f}",
                    "lastSz": "0.1",
                    "askPx": f"{base + n + 0.1:.1f}",
                    "askSz": "11",
                    "bidPx": f"{base + n - 0.1:.1f}",
                    "bidSz": "5",
                    "ts": str(now_ms()),
                },
            )
            await asyncio.sleep(0.1)

    async def order_events(self, conn: Conn, arg: dict[str, Any]) -> None:
        # a quiet channel: the gaps are longer than the limit, so only pings keep the connection
        for n in range(10**9):
            await self.push(
                conn,
                arg,
                {
                    "instType": "SPOT",
                    "instId": "BTC-USDT",
                    "ordId": str(5000 + n),
                    "state": "filled",
                    "fillSz": "1",
                    "uTime": str(now_ms()),
                },
            )
            await asyncio.sleep(2.0)

    async def order(self, conn: Conn, ident: Any, arg: dict[str, Any]) -> None:
        if not conn.logged_in:
            await self.error(conn, ident, "60011", "Please log in")
            return
        short = float(arg.get("sz", 0)) > 1000
        self.orders += not short
        self.count("orders", not short)
        row = {
            "clOrdId": arg.get("clOrdId", ""),
            "ordId": "" if short else str(9000 + self.orders),
            "tag": "",
            "ts": str(now_ms()),
            "sCode": "51008" if short else "0",
            "sMsg": "Order failed. Insufficient USDT balance in account." if short else "",
        }
        await asyncio.sleep(
            0.15 if arg.get("ordType") == "limit" else 0.02
        )  # limit orders are answered later than market orders
        await conn.send(
            {
                "id": ident,
                "op": "order",
                "data": [row],
                "code": "1" if short else "0",
                "msg": "",
                "inTime": "1",
                "outTime": "2",
            }
        )


if __name__ == "__main__":
    run(OKX())
