"""Coinbase Advanced Trade. Nothing is scaled; a token is good for 120 s.

{"type": "subscribe", "channel", "product_ids", "jwt"}: a JWT, ES256, with the key's name in ``kid`` and a nonce in its
header's claims: iss "cdp", sub the key's name, nbf, exp. What comes are {"channel": "subscriptions", "events"}, then
{"channel": "ticker", "events": [{"type", "tickers": […]}]} every 0.1 s, and heartbeats of the channel of that name.
Errors are {"type": "error", "message"}. The private key of the peer's one user is in its operations.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jwt

from .peer import Conn, Headers, Peer, Refusal, run

CONFIG = json.loads((Path(__file__).parents[1] / "ops" / "coinbase.json").read_text(encoding="utf-8"))["config"]


class Coinbase(Peer):
    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None if path == "/" else (404, None, "not found")

    def refuse(self, message: dict[str, Any]) -> str | None:
        token = message.get("jwt")
        if token is None:
            return None if message["channel"] == "ticker" else "authentication failure"
        try:
            claims = jwt.decode(token, CONFIG["PUBLIC"], algorithms=["ES256"], options={"require": ["exp", "nbf"]})
        except jwt.PyJWTError:
            return "authentication failure"
        right = claims["sub"] == jwt.get_unverified_header(token).get("kid") == CONFIG["KEY"] and claims["iss"] == "cdp"
        return None if right and claims["exp"] - claims["nbf"] <= 120 else "authentication failure"

    async def handle(self, conn: Conn) -> None:
        async for raw in conn:
            message = json.loads(raw)
            if wrong := self.refuse(message):
                self.count("logins_failed")
                await conn.send({"type": "error", "message": wrong})
                continue
            self.count("logins_ok", "jwt" in message)
            channel = message["channel"]
            for product in message.get("product_ids", ["-"]):
                if message["type"] == "subscribe":
                    conn.subscribe((channel, product), self.events(conn, channel, product))
                else:
                    conn.unsubscribe((channel, product))
            names: dict[str, list[str]] = {}
            for name, product in conn.subs:
                names.setdefault(name, []).append(product)
            await conn.send({"channel": "subscriptions", "sequence_num": 0, "events": [{"subscriptions": names}]})

    async def events(self, conn: Conn, channel: str, product: str) -> None:
        for n in range(10**9):
            await asyncio.sleep(0.1)
            self.count("events_sent")
            item = {"product_id": product, "n": n, "order_id": f"o{n}"}
            kind = "tickers" if channel == "ticker" else "orders"
            await conn.send({"channel": channel, "events": [{"type": "update", kind: [item]}]})


if __name__ == "__main__":
    run(Coinbase())
