"""Supabase Realtime (Phoenix channels). Times are scaled by 30: the client's heartbeat is due every 25-30 s (here 1 s),
the socket is closed after 60 s (here 2 s) without any message from the client (close 1000, as the HTTP server
underneath does; the document names no code).

/realtime/v1/websocket?apikey=…&vsn=1.0.0 (objects) or vsn=2.0.0 (arrays [join_ref, ref, topic, event, payload]);
without the key the handshake is 401. Heartbeat: topic phoenix, event heartbeat. phx_join with config and access_token
→ phx_reply by ref, then presence_state, and for postgres_changes a `system` message and changes (INSERT, UPDATE
alternating; id counts) every 0.1 s. broadcast to the others in the channel, with a reply only if
config.broadcast.ack. phx_leave → phx_reply and phx_close. Joining a topic that is not realtime:*: status error. A
message for a topic that was not joined: "unmatched topic". Joining a topic again on one socket ends the older channel
(phx_close with the older join ref). Control: {"crash": true} sends phx_error on every channel, which ends it: the
client must join again.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .peer import Conn, Headers, Peer, Refusal, dumps, run

APIKEY, TOKEN, IDLE = "anon-key", "user-jwt", 2.0


class Supabase(Peer):
    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if path != "/realtime/v1/websocket":
            return 404, None, "not found"
        if query.get("apikey") != APIKEY:
            return 401, None, {"message": "Invalid API key"}
        if query.get("vsn") not in ("1.0.0", "2.0.0"):
            return 403, None, "vsn"
        return None

    async def control(self, command: dict[str, Any]) -> Any:
        if command.get("crash"):
            for conn in list(self.conns):
                for topic in list(conn.channels):
                    join_ref = conn.channels[topic]
                    self.end(conn, topic)
                    self.count("crashes")
                    await self.say(conn, (join_ref, join_ref), topic, "phx_error", {})
        return {"ok": True}

    def end(self, conn: Conn, topic: str, left: bool = False) -> None:
        conn.channels.pop(topic, None)
        if left:
            conn.unsubscribe(topic)
        else:
            task = conn.subs.get(topic)
            conn.finish(topic)
            if task:
                task.cancel()

    async def say(self, conn: Conn, refs: tuple[Any, Any], topic: str, event: str, payload: Any) -> None:
        join_ref, ref = refs
        if conn.v2:
            await conn.send(dumps([join_ref, ref, topic, event, payload]))
        else:
            await conn.send({"event": event, "payload": payload, "ref": ref, "topic": topic})

    async def reply(self, conn: Conn, refs: tuple[Any, Any], topic: str, status: str, response: Any) -> None:
        if status == "error":
            self.count("errors_sent")
        await self.say(conn, refs, topic, "phx_reply", {"status": status, "response": response})

    async def handle(self, conn: Conn) -> None:
        conn.v2, conn.channels, conn.config = conn.query["vsn"] == "2.0.0", {}, {}
        alive = conn.deadline(IDLE, 1000, "")
        async for raw in conn:
            alive.touch()
            message = json.loads(raw)
            if conn.v2:
                join_ref, ref, topic, event, payload = message
            else:
                ref, topic, event, payload = (message.get(key) for key in ("ref", "topic", "event", "payload"))
                join_ref = message.get("join_ref")
            if topic == "phoenix" and event == "heartbeat":
                self.count("pings_received")
                await self.reply(conn, (None, ref), topic, "ok", {})
            elif event == "phx_join":
                await self.join(conn, ref, topic, payload or {})
            elif topic not in conn.channels:
                await self.reply(conn, (join_ref, ref), topic, "error", {"reason": "unmatched topic"})
            elif event == "phx_leave":
                joined = conn.channels[topic]
                self.end(conn, topic, left=True)
                self.count("leaves")
                await self.reply(conn, (joined, ref), topic, "ok", {})
                await self.say(conn, (joined, joined), topic, "phx_close", {})
            elif event == "broadcast":
                self.count("broadcasts")
                mine = conn.config[topic].get("broadcast", {})
                for other in list(self.conns):
                    if topic in getattr(other, "channels", ()) and (other is not conn or mine.get("self")):
                        self.count("events_sent")
                        await self.say(other, (other.channels[topic], None), topic, "broadcast", payload)
                if mine.get("ack"):
                    await self.reply(conn, (conn.channels[topic], ref), topic, "ok", {})
            elif event == "access_token":
                self.count("tokens_refreshed")
            else:
                await self.reply(conn, (join_ref, ref), topic, "error", {"reason": f"unknown event {event}"})

    async def join(self, conn: Conn, ref: Any, topic: str, payload: Any) -> None:
        if not (topic or "").startswith("realtime:"):
            await self.reply(conn, (ref, ref), topic, "error", {"reason": "unmatched topic"})
            return
        config = payload.get("config", {})
        if config.get("private") and payload.get("access_token") != TOKEN:
            self.count("logins_failed")
            await self.reply(
                conn,
                (ref, ref),
                topic,
                "error",
                {"reason": "Unauthorized: You do not have permissions to read from this Channel topic"},
            )
            return
        if topic in conn.channels:
            older = conn.channels[topic]
            self.end(conn, topic)
            self.count("channels_replaced")
            await self.say(conn, (older, older), topic, "phx_close", {})
        conn.channels[topic], conn.config[topic] = ref, config
        if config.get("private"):
            self.count("logins_ok")
        changes = [
            {"id": 1000 + i, "filter": "", **wanted} for i, wanted in enumerate(config.get("postgres_changes", []))
        ]
        await self.reply(conn, (ref, ref), topic, "ok", {"postgres_changes": changes})
        await self.say(conn, (ref, None), topic, "presence_state", {})
        conn.subscribe(topic, self.changes(conn, ref, topic, changes) if changes else None)

    async def changes(self, conn: Conn, ref: Any, topic: str, changes: list[dict[str, Any]]) -> None:
        await asyncio.sleep(0.03)
        await self.say(
            conn,
            (ref, None),
            topic,
            "system",
            {
                "channel": topic.partition(":")[2],
                "extension": "postgres_changes",
                "message": "Subscribed to PostgreSQL",
                "status": "ok",
            },
        )
        gap = 2.4 if "quiet" in topic else 0.1
        for n in range(10**9):
            kind = ("INSERT", "UPDATE")[n % 2]
            ids = [c["id"] for c in changes if c["event"] in ("*", kind)]
            if ids:
                self.count("events_sent")
                await self.say(
                    conn,
                    (ref, None),
                    topic,
                    "postgres_changes",
                    {
                        "ids": ids,
                        "data": {
                            "schema": "public",
                            "table": changes[0]["table"],
                            "type": kind,
                            "commit_timestamp": "2026-01-01T00:00:00Z",
                            "errors": None,
                            "columns": [{"name": "id", "type": "int8"}, {"name": "title", "type": "text"}],
                            "record": {"id": n, "title": f"{topic.partition(':')[2]} {n}"},
                        },
                    },
                )
            await asyncio.sleep(gap)


if __name__ == "__main__":
    run(Supabase())
