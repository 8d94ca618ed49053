"""Binance: market streams and the WebSocket API. Nothing is scaled; a timestamp may be 5 s old.

/ws: {"method": "SUBSCRIBE", "params": ["btcusdt@trade", …], "id"} gives {"result": null, "id"}, then trades every
0.1 s; UNSUBSCRIBE likewise; a wrong request gives {"error": {"code", "msg"}, "id"}. Before the server ends a
connection it says {"e": "serverShutdown"}. /ws-api/v3: {"id", "method", "params"}; {"id", "status": 200, "result"}
or {"id", "status", "error": {"code", "msg"}}. ping, and signed order.place: apiKey, timestamp in ms, and signature
= hex HMAC-SHA256 of the other params as a query string, sorted by name. Orders are answered late, market orders
sooner than limit orders. Control: {"secret": text}, {"shutdown": true}.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import quote

from .peer import Conn, Headers, Peer, Refusal, now_ms, run

KEY, SECRET = "binance-key", "binance-secret"
SYMBOLS = {"btcusdt": 60000, "ethusdt": 3000}


class Binance(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.secret, self.orders = SECRET, 0

    async def control(self, command: dict[str, Any]) -> Any:
        if "secret" in command:
            self.secret = command["secret"] or SECRET
        if command.get("shutdown"):
            for conn in list(self.conns):
                conn.spawn(self.shutdown(conn))
        return {"ok": True}

    async def shutdown(self, conn: Conn) -> None:
        await conn.send({"e": "serverShutdown", "E": now_ms()})
        await asyncio.sleep(1)
        await conn.close(1001, "going away")

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None if path in {"/ws", "/ws-api/v3"} else (404, None, "not found")

    async def handle(self, conn: Conn) -> None:
        async for raw in conn:
            message = json.loads(raw)
            if conn.path == "/ws":
                await self.stream(conn, message)
            else:
                conn.spawn(self.request(conn, message))

    async def stream(self, conn: Conn, message: dict[str, Any]) -> None:
        names = message.get("params", [])
        method = message.get("method")
        if method not in {"SUBSCRIBE", "UNSUBSCRIBE"} or any(name.split("@")[0] not in SYMBOLS for name in names):
            self.count("errors_sent")
            await conn.send({"error": {"code": 2, "msg": "Invalid request: unknown stream"}, "id": message.get("id")})
            return
        for name in names:
            if method == "SUBSCRIBE":
                conn.subscribe(name, self.trades(conn, name))
            else:
                conn.unsubscribe(name)
        await conn.send({"result": None, "id": message["id"]})

    async def trades(self, conn: Conn, name: str) -> None:
        symbol = name.split("@", maxsplit=1)[0]
        for n in range(10**9):
            self.count("events_sent")
            price = f"{SYMBOLS[symbol] + n}.00"
            await conn.send({"e": "trade", "E": now_ms(), "s": symbol.upper(), "t": n, "p": price, "q": "0.1"})
            await asyncio.sleep(0.1)

    async def request(self, conn: Conn, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "ping":
            await conn.send({"id": message["id"], "status": 200, "result": {}, "rateLimits": []})
            return
        wrong = self.refuse(message["method"], params)
        if wrong:
            self.count("errors_sent")
            code, text = wrong
            await conn.send({"id": message["id"], "status": 400, "error": {"code": code, "msg": text}})
            return
        await asyncio.sleep(0.15 if params["type"] == "LIMIT" else 0.02)
        self.orders += 1
        self.count("orders")
        result = {"symbol": params["symbol"], "orderId": self.orders, "status": "FILLED"}
        await conn.send({"id": message["id"], "status": 200, "result": result, "rateLimits": []})

    def refuse(self, method: str, params: dict[str, Any]) -> tuple[int, str] | None:
        if method != "order.place":
            return -1000, f"Unknown method '{method}'."
        if params.get("apiKey") != KEY:
            return -2015, "Invalid API-key, IP, or permissions for action."
        if abs(time.time() * 1000 - params.get("timestamp", 0)) > 5000:
            return -1021, "Timestamp for this request is outside of the recvWindow."
        named = sorted((name, value) for name, value in params.items() if name != "signature")
        text = "&".join(f"{name}={quote(str(value), safe='-._~')}" for name, value in named)
        signature = hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature, str(params.get("signature"))):
            self.count("logins_failed")
            return -1022, "Signature for this request is not valid."
        if params["symbol"].lower() not in SYMBOLS:
            return -1121, "Invalid symbol."
        return None


if __name__ == "__main__":
    run(Binance())
