"""Kraken WebSocket API 2. Times are scaled by 10: a heartbeat of the peer every 0.1 s, a token is good for 90 s.

HTTP: POST /0/private/GetWebSocketsToken with a form that has a nonce that grows, API-Key, and API-Sign = base64 of
HMAC-SHA512, by the secret (base64), of the path and the SHA-256 of nonce and body. {"error": [], "result": {"token"}};
what is wrong is in ``error``, with status 200. The socket says status, then heartbeats once anything is subscribed.
{"method": "subscribe", "params": {"channel", "symbol" or "token"}, "req_id"} gives one answer for each symbol, then
snapshot and updates; unsubscribe likewise. Channels: ticker of BTC/USD and ETH/USD, executions with a token. Errors:
{"method", "success": false, "error", "req_id"}. {"method": "ping"} gives pong. Control: {"secret": base64}.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from typing import Any

from .peer import Answer, Conn, Headers, Peer, Refusal, Req, run

KEY, SECRET = "kraken-key", base64.b64encode(b"kraken-secret-" * 4).decode()
PATH = "/0/private/GetWebSocketsToken"
PRICES = {"BTC/USD": 60000.0, "ETH/USD": 3000.0}


class Kraken(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.secret, self.nonce = SECRET, 0
        self.tokens: set[str] = set()
        self.routes = {("POST", PATH): self.token}

    async def control(self, command: dict[str, Any]) -> Any:
        if "secret" in command:
            self.secret = command["secret"] or SECRET
        return {"ok": True}

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None if path in {"/v2", "/private/v2"} else (404, None, "not found")

    def token(self, req: Req) -> Answer:
        nonce = req.form().get("nonce", "")
        digest = hashlib.sha256(nonce.encode() + req.body).digest()
        signed = hmac.new(base64.b64decode(self.secret), PATH.encode() + digest, hashlib.sha512).digest()
        wrong = None
        if req.headers.get("api-key") != KEY:
            wrong = "EAPI:Invalid key"
        elif req.headers.get("api-sign") != base64.b64encode(signed).decode():
            wrong = "EAPI:Invalid signature"
        elif not nonce.isdigit() or int(nonce) <= self.nonce:
            wrong = "EAPI:Invalid nonce"
        if wrong:
            self.count("logins_failed")
            return 200, None, {"error": [wrong]}
        self.nonce = int(nonce)
        token = secrets.token_urlsafe(12)
        self.tokens.add(token)
        self.count("tokens_given")
        return 200, None, {"error": [], "result": {"token": token, "expires": 900}}

    async def handle(self, conn: Conn) -> None:
        conn.beating = False
        await conn.send({"channel": "status", "type": "update", "data": [{"system": "online", "api_version": "v2"}]})
        async for raw in conn:
            message = json.loads(raw)
            method, params = message.get("method"), message.get("params", {})
            if method == "ping":
                self.count("pings_received")
                await conn.send({"method": "pong", "req_id": message.get("req_id")})
            elif method in {"subscribe", "unsubscribe"}:
                for symbol in params.get("symbol", [None]):
                    await self.subscription(conn, message, symbol)
            else:
                await self.fail(conn, message, "Method not found")

    async def fail(self, conn: Conn, message: dict[str, Any], text: str, **more: Any) -> None:
        self.count("errors_sent")
        head = {"method": message.get("method"), "success": False, "error": text, "req_id": message.get("req_id")}
        await conn.send({**head, **more})

    async def subscription(self, conn: Conn, message: dict[str, Any], symbol: str | None) -> None:
        params = message["params"]
        channel = params.get("channel")
        if channel == "executions":
            if params.get("token") not in self.tokens:
                await self.fail(conn, message, "EAccount:Invalid permissions")
                return
        elif channel != "ticker" or symbol not in PRICES:
            await self.fail(conn, message, f"Currency pair not supported {symbol}", symbol=symbol)
            return
        result = {"channel": channel, **({"symbol": symbol} if symbol else {})}
        if message["method"] == "unsubscribe":
            conn.unsubscribe((channel, symbol))
        await conn.send({"method": message["method"], "success": True, "result": result, "req_id": message["req_id"]})
        if message["method"] == "subscribe":
            conn.subscribe((channel, symbol), self.updates(conn, channel, symbol))
            if not conn.beating:
                conn.beating = True
                conn.spawn(self.beat(conn))

    async def updates(self, conn: Conn, channel: str, symbol: str | None) -> None:
        for n in range(10**9):
            self.count("events_sent")
            kind = "update" if n else "snapshot"
            item = {"symbol": symbol, "n": n, "last": PRICES[symbol] + n} if symbol else {"order_id": f"O{n}", "n": n}
            await conn.send({"channel": channel, "type": kind, "data": [item]})
            await asyncio.sleep(0.1)

    async def beat(self, conn: Conn) -> None:
        while True:
            await asyncio.sleep(0.1)
            await conn.send({"channel": "heartbeat"})


if __name__ == "__main__":
    run(Kraken())
