"""Discord's gateway, version 10. Times are scaled: the heartbeat interval that Hello tells is 600 ms.

Hello (10), Identify (2) with token and intents, READY with session_id and resume_gateway_url; MESSAGE_CREATE every
0.1 s, numbered by ``s``. A heartbeat (1) carries the last number seen, or null, and is answered by 11; one that lags by
more than 15 counts as ``stale_beats``. Who does not beat for 1.5 intervals is closed with 4009. Resume (6) with token,
session_id and seq is answered by what was missed and RESUMED; with a session that is not known by op 9. A wrong token
is closed with 4004. Numbers go on while nobody listens. Control: {"reconnect": true} sends op 7 and closes the
connection 1.5 s later, {"forget": true} forgets the sessions and asks to reconnect, {"deaf": n} leaves so many beats
unanswered, {"token": text}.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from .peer import Conn, Peer, Refusal, run

TOKEN, INTERVAL = "discord-token", 0.6


class Session:
    def __init__(self) -> None:
        self.seq = 0
        self.sent: list[dict[str, Any]] = []

    def event(self, kind: str, data: Any) -> dict[str, Any]:
        self.seq += 1
        self.sent.append({"op": 0, "s": self.seq, "t": kind, "d": data})
        return self.sent[-1]


class Discord(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.token = TOKEN
        self.sessions: dict[str, Session] = {}
        self.deaf = 0

    def admit(self, path: str, query: dict[str, str], headers: Any) -> Refusal | None:
        if path not in {"/", "/resume/"} or query.get("v") != "10" or query.get("encoding") != "json":
            return 404, None, "not found"
        return None

    async def control(self, command: dict[str, Any]) -> Any:
        if "token" in command:
            self.token = command["token"] or TOKEN
        self.deaf += command.get("deaf", 0)
        if command.get("forget"):
            self.sessions.clear()
        if command.get("reconnect") or command.get("forget"):
            for conn in list(self.conns):
                conn.spawn(self.reconnect(conn))
        return {"ok": True}

    async def reconnect(self, conn: Conn) -> None:
        await conn.send({"op": 7, "d": None, "s": None, "t": None})
        await asyncio.sleep(1.5)
        await conn.close(4000, "reconnect was asked for")

    async def handle(self, conn: Conn) -> None:
        alive = conn.deadline(INTERVAL * 1.5, 4009, "Session timed out")
        conn.session = None
        await conn.send({"op": 10, "d": {"heartbeat_interval": int(INTERVAL * 1000)}, "s": None, "t": None})
        async for raw in conn:
            message = json.loads(raw)
            op, d = message["op"], message["d"]
            if op == 1:
                alive.touch()
                await self.beat(conn, d)
            elif op in {2, 6} and d["token"] != self.token:
                self.count("logins_failed")
                await conn.close(4004, "Authentication failed.")
            elif op == 2:
                await self.identify(conn, d)
            elif op == 6:
                await self.resume(conn, d)
            else:
                self.count("protocol_errors")
                await conn.close(4001, "Unknown opcode")

    async def beat(self, conn: Conn, seq: int | None) -> None:
        self.count("pings_received")
        if conn.session is not None and conn.session.seq - (seq or 0) > 15:
            self.count("stale_beats")
        if self.deaf:
            self.deaf -= 1
            self.count("beats_not_answered")
        else:
            await conn.send({"op": 11, "d": None, "s": None, "t": None})

    async def identify(self, conn: Conn, d: dict[str, Any]) -> None:
        self.count("logins_ok")
        ident = secrets.token_hex(8)
        conn.session = self.sessions[ident] = Session()
        user = {"id": "1", "username": "bot", "intents": d["intents"]}
        ready = {"v": 10, "user": user, "session_id": ident, "resume_gateway_url": f"{self.ws}/resume"}
        await conn.send(conn.session.event("READY", ready))
        conn.spawn(self.messages(conn, conn.session))

    async def resume(self, conn: Conn, d: dict[str, Any]) -> None:
        session = self.sessions.get(d["session_id"])
        if session is None:
            self.count("invalid_sessions")
            await conn.send({"op": 9, "d": False, "s": None, "t": None})
            return
        self.count("resumes")
        self.count("resumes_at_their_url", conn.path == "/resume/")
        for other in self.conns:
            if other.session is session:
                other.session = None
        conn.session = session
        for event in session.sent[d["seq"] :]:
            await conn.send(event)
        await conn.send(session.event("RESUMED", None))
        conn.spawn(self.messages(conn, session))

    async def messages(self, conn: Conn, session: Session) -> None:
        while True:
            await asyncio.sleep(0.1)
            if conn.session is not session:
                return
            n = sum(event["t"] == "MESSAGE_CREATE" for event in session.sent)
            self.count("events_sent")
            await conn.send(session.event("MESSAGE_CREATE", {"id": str(n), "n": n, "content": f"message {n}"}))


if __name__ == "__main__":
    run(Discord())
