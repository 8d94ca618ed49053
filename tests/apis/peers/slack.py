"""Slack Socket Mode. Times are scaled by 10: an envelope not acknowledged within 3 s (here 0.3 s) is sent again with
retry_attempt and retry_reason "timeout", three times; a ticket is good for 3 s and once.

HTTP: POST /api/apps.connections.open with `Authorization: Bearer xapp-…` gives {"ok": true, "url": …}; errors are
{"ok": false, "error": …} with status 200 (not_authed, invalid_auth), GET is refused. The socket says hello with
num_connections, then envelopes of type events_api (even numbers: in channel C1, odd: C2) and slash_commands
(accepts_response_payload). Each is acknowledged by {"envelope_id": id}, with "payload" where one is accepted. What
was not acknowledged when a connection ended comes again on the next one (at least once). Before a connection is
refreshed it gets {"type": "disconnect", "reason": "warning"} and then "refresh_requested", after which it is closed.
Control: {"refresh": true}, {"token": text} changes the token that is accepted, {"link_disabled": true}.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any

from .peer import Answer, Conn, Headers, Peer, Refusal, Req, run

TOKEN = "xapp-1-A1-test"
ACK = 0.3


class Slack(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.token = TOKEN
        self.tickets: dict[str, float] = {}
        self.number = 0  # of events made
        self.commands = 0
        self.waiting: dict[str, list[Any]] = {}  # envelope_id -> [envelope, attempt] that nobody acknowledged
        self.acked: set[str] = set()
        self.routes = {("POST", "/api/apps.connections.open"): self.open}

    async def control(self, command: dict[str, Any]) -> Any:
        if "token" in command:
            self.token = command["token"] or TOKEN
        if command.get("refresh"):
            for conn in list(self.conns):
                conn.spawn(self.refresh(conn, "refresh_requested"))
        if command.get("link_disabled"):
            for conn in list(self.conns):
                conn.spawn(self.refresh(conn, "link_disabled"))
        return {"ok": True}

    async def refresh(self, conn: Conn, reason: str) -> None:
        debug = {"host": "applink-1"}
        if reason == "refresh_requested":
            await conn.send({"type": "disconnect", "reason": "warning", "debug_info": debug})
            await asyncio.sleep(0.5)
        conn.ending = True
        self.count("refreshes")
        await conn.send({"type": "disconnect", "reason": reason, "debug_info": debug})
        await asyncio.sleep(0.2)
        await conn.close(1000, "")

    def open(self, req: Req) -> Answer:
        auth = req.headers.get("authorization", "")
        if not auth:
            return 200, None, {"ok": False, "error": "not_authed"}
        if auth != f"Bearer {self.token}":
            self.count("logins_failed")
            return 200, None, {"ok": False, "error": "invalid_auth"}
        ticket = secrets.token_hex(8)
        self.tickets[ticket] = time.monotonic() + 3
        self.count("urls_given")
        return 200, None, {"ok": True, "url": f"{self.ws}/link/?ticket={ticket}&app_id=A1"}

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if path != "/link/":
            return 404, None, "not found"
        if self.tickets.pop(query.get("ticket", ""), 0) < time.monotonic():
            return 401, None, "invalid ticket"
        return None

    async def handle(self, conn: Conn) -> None:
        conn.ending = False
        self.count("logins_ok")
        await conn.send(
            {
                "type": "hello",
                "num_connections": len(self.conns),
                "connection_info": {"app_id": "A1"},
                "debug_info": {"host": "applink-1", "build_number": 1, "approximate_connection_time": 1806},
            }
        )
        conn.spawn(self.events(conn))
        async for raw in conn:
            try:
                message = json.loads(raw)
                ident = message["envelope_id"]
            except (ValueError, KeyError, TypeError):
                self.count("protocol_errors")
                continue
            if ident in self.waiting:
                envelope = self.waiting.pop(ident)[0]
                self.acked.add(ident)
                self.count("acks_received")
                if "payload" in message:
                    self.count("payloads_received" if envelope["accepts_response_payload"] else "payloads_not_accepted")
                    self.state["last_payload"] = message["payload"]
            else:
                self.count("acks_repeated" if ident in self.acked else "acks_unknown")

    async def events(self, conn: Conn) -> None:
        await asyncio.sleep(0.05)
        for ident, entry in list(self.waiting.items()):  # left over from connections that are gone
            if entry[2] not in self.conns:
                conn.spawn(self.deliver(conn, ident))
        while not conn.ending:
            n, self.number = self.number, self.number + 1
            envelope = {
                "envelope_id": f"env-{n:05d}-{secrets.token_hex(2)}",
                "type": "events_api",
                "accepts_response_payload": False,
                "retry_attempt": 0,
                "retry_reason": "",
                "payload": {
                    "token": "t",
                    "team_id": "T1",
                    "api_app_id": "A1",
                    "type": "event_callback",
                    "event_id": f"Ev{n:05d}",
                    "event": {
                        "type": "message",
                        "channel": "C1",
                        "user": "U1",
                        "text": f"message {n}",
                        "n": n,
                        "ts": f"{1700000000 + n}.000100",
                    },
                },
            }
            self.offer(conn, envelope)
            if n % 3 == 2:
                self.commands += 1
                self.offer(
                    conn,
                    {
                        "envelope_id": f"cmd-{self.commands:05d}-{secrets.token_hex(2)}",
                        "type": "slash_commands",
                        "accepts_response_payload": True,
                        "payload": {
                            "command": "/weather",
                            "text": f"place {self.commands}",
                            "user_id": "U1",
                            "channel_id": "C1",
                            "n": self.commands,
                        },
                    },
                )
            await asyncio.sleep(0.15)

    def offer(self, conn: Conn, envelope: dict[str, Any]) -> None:
        self.waiting[envelope["envelope_id"]] = [envelope, 0, conn]
        conn.spawn(self.deliver(conn, envelope["envelope_id"]))

    async def deliver(self, conn: Conn, ident: Any) -> None:
        while ident in self.waiting:
            entry = self.waiting[ident]
            entry[2] = conn
            envelope = dict(entry[0])
            if entry[1]:
                self.count("redelivered")
                if envelope["type"] == "events_api":
                    envelope.update(retry_attempt=entry[1], retry_reason="timeout")
            if entry[1] > 3:
                del self.waiting[ident]
                self.count("given_up")
                return
            entry[1] += 1
            self.count("events_sent")
            await conn.send(envelope)
            await asyncio.sleep(ACK)


if __name__ == "__main__":
    run(Slack())
