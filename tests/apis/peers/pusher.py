"""Pusher Channels, protocol 7. Times are scaled by 60: activity_timeout 120 s is 2 s here (told as 2), the pong must
come within 30 s, here 0.5 s.

/app/KEY?protocol=7&client=…: pusher:connection_established, whose data is a JSON text with socket_id and
activity_timeout. After 2 s without a message from the client the peer sends pusher:ping; without pusher:pong in 0.5 s
it closes with 4201. pusher:ping of the client is answered. Wrong key: pusher:error 4001 and close 4001; wrong
protocol: 4007. `data` is a JSON text inside JSON for channel events, pusher_internal:* and connection_established;
pusher:error has an object. private-*: auth = "KEY:" + hex HMAC-SHA256(SECRET, socket_id + ":" + channel); presence-*
also ":" + channel_data. Wrong: pusher:error 4009, the connection goes on. client-* events go to the other members of
a private channel; more than 10 in a second: error 4301; on a public channel: error. HTTP: POST /pusher/auth (form
socket_id, channel_name; header X-User: ann) gives {"auth"}. POST /trigger {channel, event, data} makes an event.
Events: price-update on every channel but private-quiet, every 0.1 s, with data {"n": …}. Control: {"secret": text}.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import time
from typing import Any

from .peer import Answer, Conn, Peer, Req, dumps, run

KEY, SECRET, IDLE, PONG = "pusher-key", "pusher-secret-7ad3", 2.0, 0.5


class Pusher(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.secret = SECRET
        self.routes = {("POST", "/pusher/auth"): self.auth, ("POST", "/trigger"): self.trigger}

    async def control(self, command: dict[str, Any]) -> Any:
        if "secret" in command:
            self.secret = command["secret"] or SECRET
        return {"ok": True}

    def sign(self, text: str) -> Any:
        return f"{KEY}:{hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()}"

    def auth(self, req: Req) -> Answer:
        form = req.form()
        if req.headers.get("x-user") != "ann":
            self.count("logins_failed")
            return 403, None, "Forbidden"
        if form.get("socket_id") not in {getattr(conn, "socket_id", None) for conn in self.conns}:
            return 403, None, "unknown socket_id"
        self.count("auths_given")
        return 200, None, {"auth": self.sign(f"{form['socket_id']}:{form['channel_name']}")}

    async def trigger(self, req: Req) -> Answer:
        body = req.json()
        return 200, None, {"sent": await self.publish(body["channel"], body["event"], body["data"])}

    async def publish(self, channel: str, event: str, data: Any, besides: Conn | None = None) -> Any:
        n = 0
        for conn in list(self.conns):
            if channel in conn.subs and conn is not besides:
                n += 1
                self.count("events_sent")
                await conn.send(
                    {"event": event, "channel": channel, "data": data if isinstance(data, str) else dumps(data)}
                )
        return n

    async def error(self, conn: Conn, code: Any, text: str) -> None:
        self.count("errors_sent")
        await conn.send({"event": "pusher:error", "data": {"code": code, "message": text}})

    async def handle(self, conn: Conn) -> None:
        if conn.path != f"/app/{KEY}":
            await self.error(conn, 4001, "App key not in this cluster. Did you forget to specify the cluster?")
            await conn.close(4001, "App key not in this cluster.")
            return
        if conn.query.get("protocol") != "7":
            await self.error(conn, 4007, "Unsupported protocol version")
            await conn.close(4007, "Unsupported protocol version")
            return
        conn.socket_id = f"{random.randrange(10**5)}.{random.randrange(10**7)}"
        conn.heard, conn.pinged, conn.recent = time.monotonic(), None, []
        conn.spawn(self.watch(conn))
        await conn.send(
            {
                "event": "pusher:connection_established",
                "data": dumps({"socket_id": conn.socket_id, "activity_timeout": IDLE}),
            }
        )
        async for raw in conn:
            conn.heard, conn.pinged = time.monotonic(), None
            try:
                message = json.loads(raw)
                event, data = message["event"], message.get("data") or {}
            except (ValueError, KeyError, TypeError):
                self.count("protocol_errors")
                await self.error(conn, None, "Invalid JSON")
                continue
            if event == "pusher:ping":
                self.count("pings_received")
                await conn.send({"event": "pusher:pong", "data": "{}"})
            elif event == "pusher:pong":
                self.count("pongs_received")
            elif event == "pusher:subscribe":
                await self.join(conn, data)
            elif event == "pusher:unsubscribe":
                conn.unsubscribe(data.get("channel"))
            elif event.startswith("client-"):
                await self.client_event(conn, message)
            else:
                await self.error(conn, None, f"Unknown event {event}")

    async def watch(self, conn: Conn) -> None:
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if conn.pinged is not None:
                if now - conn.pinged > PONG:
                    self.count("heartbeat_timeouts")
                    await conn.close(4201, "Pong reply not received")
                    return
            elif now - conn.heard > IDLE:
                conn.pinged = now
                self.count("pings_sent")
                await conn.send({"event": "pusher:ping", "data": "{}"})

    async def join(self, conn: Conn, data: Any) -> None:
        channel = data.get("channel", "")
        private, presence = channel.startswith("private-"), channel.startswith("presence-")
        if private or presence:
            text = f"{conn.socket_id}:{channel}" + (f":{data.get('channel_data', '')}" if presence else "")
            if not hmac.compare_digest(self.sign(text), str(data.get("auth"))):
                self.count("logins_failed")
                await self.error(conn, 4009, f"Invalid signature: Expected HMAC SHA256 hex digest of {text}")
                return
            self.count("logins_ok")
        if channel in conn.subs:
            await self.error(conn, None, f"Existing subscription to channel {channel}")
            return
        hash_ = {}
        if presence:
            member = json.loads(data["channel_data"])
            hash_ = {
                "presence": {
                    "count": 1,
                    "ids": [member["user_id"]],
                    "hash": {member["user_id"]: member.get("user_info")},
                }
            }
        await conn.send({"event": "pusher_internal:subscription_succeeded", "channel": channel, "data": dumps(hash_)})
        conn.subscribe(channel, None if channel == "private-quiet" else self.events(conn, channel))

    async def events(self, conn: Conn, channel: str) -> None:
        for n in range(10**9):
            self.count("events_sent")
            await conn.send({"event": "price-update", "channel": channel, "data": dumps({"n": n, "price": 100 + n})})
            await asyncio.sleep(0.1)

    async def client_event(self, conn: Conn, message: dict[str, Any]) -> None:
        channel, now = message.get("channel", ""), time.monotonic()
        if not channel.startswith(("private-", "presence-")) or channel not in conn.subs:
            await self.error(conn, None, "Client events are not enabled for this channel")
            return
        conn.recent = [at for at in conn.recent if at > now - 1] + [now]
        if len(conn.recent) > 10:
            self.count("client_events_refused")
            await self.error(conn, 4301, "The client has exceeded its rate limit for client events")
            return
        self.count("client_events")
        await self.publish(channel, message["event"], message["data"], besides=conn)


if __name__ == "__main__":
    run(Pusher())
