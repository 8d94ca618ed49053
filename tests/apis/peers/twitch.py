"""Twitch EventSub over WebSocket. Times are scaled by 10: a keepalive at least every 1 s (there: 10 s), and a
subscription within 1 s of the welcome.

session_welcome with session.id; POST /helix/eventsub/subscriptions by HTTP (headers Client-Id and Authorization:
Bearer) with transport.session_id subscribes (202, with data[0].id; 401 with a wrong token; 400 for a session that
is gone). Without any in time the socket is closed with 4003. Then `notification` every 0.1 s, of quiet
subscriptions only session_keepalive. A message by the client closes the socket with 4001. DELETE …?id= ends a
subscription. Control: {"reconnect": true} sends session_reconnect with a reconnect_url; who is not there within 1 s
is closed with 4004; subscriptions and numbers go on at the new socket after its welcome. {"silence": true} says
nothing any more on the sockets that are open.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from .peer import Answer, Conn, Headers, Peer, Refusal, Req, run

CLIENT, TOKEN, EVERY = "twitch-client", "twitch-token", 1.0


class Subscription:
    def __init__(self, kind: str) -> None:
        self.ident, self.kind, self.n = secrets.token_hex(8), kind, 0


class Twitch(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.http = ""
        self.moved: dict[str, Conn] = {}
        self.routes = {
            ("POST", "/helix/eventsub/subscriptions"): self.subscribe,
            ("DELETE", "/helix/eventsub/subscriptions"): self.unsubscribe,
        }

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None if path == "/ws" else (404, None, "not found")

    async def control(self, command: dict[str, Any]) -> Any:
        for conn in list(self.conns):
            if command.get("reconnect"):
                conn.spawn(self.reconnect(conn))
            if command.get("silence"):
                conn.silent = True
        return {"ok": True}

    def allowed(self, req: Req) -> bool:
        right = req.headers.get("authorization") == f"Bearer {TOKEN}" and req.headers.get("client-id") == CLIENT
        self.count("logins_ok" if right else "logins_failed")
        return right

    def subscribe(self, req: Req) -> Answer:
        if not self.allowed(req):
            return 401, None, {"error": "Unauthorized", "status": 401, "message": "Invalid OAuth token"}
        body = req.json()
        ident = body["transport"]["session_id"]
        conn = next((conn for conn in self.conns if conn.ident == ident), None)
        if conn is None or body["transport"]["method"] != "websocket":
            return (
                400,
                None,
                {"error": "Bad Request", "status": 400, "message": "websocket transport session does not exist"},
            )
        found = Subscription(body["type"])
        conn.found.append(found)
        conn.subscribe(found.ident, self.events(conn, found))
        return 202, None, {"data": [{"id": found.ident, "status": "enabled", "type": found.kind}], "total": 1}

    def unsubscribe(self, req: Req) -> Answer:
        if not self.allowed(req):
            return 401, None, {"error": "Unauthorized", "status": 401, "message": "Invalid OAuth token"}
        gone = sum(conn.unsubscribe(req.query.get("id")) for conn in self.conns)
        return (204, None, None) if gone else (404, None, {"error": "Not Found", "status": 404, "message": "not found"})

    async def say(self, conn: Conn, kind: str, payload: Any) -> None:
        if not conn.silent:
            conn.said = True
            metadata = {
                "message_id": secrets.token_hex(8),
                "message_type": kind,
                "message_timestamp": "2026-01-01T00:00:00Z",
            }
            await conn.send({"metadata": metadata, "payload": payload})

    async def handle(self, conn: Conn) -> None:
        conn.ident, conn.silent, conn.found, conn.said = secrets.token_hex(8), False, [], True
        old = self.moved.pop(conn.query.get("move", ""), None)
        session = {"id": conn.ident, "status": "connected", "keepalive_timeout_seconds": int(EVERY * 10)}
        await self.say(conn, "session_welcome", {"session": session})
        if old is not None:
            self.count("moved")
            for found in old.found:
                if found.ident in old.subs:
                    old.unsubscribe(found.ident)
                    conn.found.append(found)
                    conn.subscribe(found.ident, self.events(conn, found))
        conn.spawn(self.keep(conn))
        async for _ in conn:
            self.count("protocol_errors")
            await conn.close(4001, "client sent inbound traffic")

    async def keep(self, conn: Conn) -> None:
        for beat in range(10**9):
            if beat == 2 and not conn.found:
                self.count("unused")
                await conn.close(4003, "connection unused")
            if not conn.said:
                await self.say(conn, "session_keepalive", {})
            conn.said = False
            await asyncio.sleep(EVERY / 2)

    async def events(self, conn: Conn, found: Subscription) -> None:
        while found.kind != "quiet":
            await asyncio.sleep(0.1)
            self.count("events_sent")
            payload = {"subscription": {"id": found.ident, "type": found.kind}, "event": {"n": found.n}}
            await self.say(conn, "notification", payload)
            found.n += 1

    async def reconnect(self, conn: Conn) -> None:
        key = secrets.token_hex(4)
        self.moved[key] = conn
        session = {"id": conn.ident, "status": "reconnecting", "reconnect_url": f"{self.ws}/ws?move={key}"}
        await self.say(conn, "session_reconnect", {"session": session})
        await asyncio.sleep(1)
        await conn.close(4004, "reconnect grace time expired")


if __name__ == "__main__":
    run(Twitch())
