"""ASP.NET SignalR, JSON hub protocol. Times are scaled by 20: keep-alive 15 s → 0.75 s, client timeout 30 s → 1.5 s,
handshake 15 s → 0.75 s.

Every record ends with U+001E; a frame may hold several (the peer packs two items, or a ping and an item). Path /chat
without negotiation; /managed needs it: POST /managed/negotiate?negotiateVersion=1 (Authorization: Bearer …) gives
{"url", "accessToken"} as Azure does; the socket is url with access_token, otherwise 401. First record {"protocol":
"json", "version": 1}, answered by {} or {"error"} and the end. Invocation (1) and Completion (3), StreamInvocation
(4), StreamItem (2), CancelInvocation (5), Ping (6) both ways, Close (7). Client streams: streamIds of an invocation,
then items and a completion by the client. A client that says nothing for 1.5 s is closed (the peer sends type 7 with
an error, then 1000). Methods: Add(a, b), Divide(a, b), Slow(text, ms), SumStream(stream), Join(group), Leave(group),
Notify(group, text) (no answer needed); streams: Counter(count, ms) and Ticks(ms) without end. Members of a group get
ReceiveMessage(group, n, text) every 0.1 s.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from .peer import Answer, Conn, Headers, Peer, Refusal, Req, dumps, run

RS = "\x1e"
TOKEN, KEEPALIVE, TIMEOUT = "signalr-app-token", 0.75, 1.5


class SignalR(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.grants: set[str] = set()
        self.routes = {("POST", "/managed/negotiate"): self.negotiate}

    def negotiate(self, req: Req) -> Answer:
        if req.headers.get("authorization") != f"Bearer {TOKEN}":
            self.count("logins_failed")
            return 401, None, "Unauthorized"
        grant = secrets.token_urlsafe(12)
        self.grants.add(grant)
        return (
            200,
            None,
            {"negotiateVersion": 1, "url": f"{self.ws}/managed?hub=chat", "accessToken": grant},
        )

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if path not in ("/chat", "/managed"):
            return 404, None, "not found"
        if path == "/managed":
            if query.get("access_token") not in self.grants:
                return 401, None, "Unauthorized"
            self.grants.discard(query["access_token"])
            self.count("logins_ok")
        return None

    async def say(self, conn: Conn, *records: Any) -> None:
        await conn.send("".join(dumps(record) + RS for record in records))

    async def handle(self, conn: Conn) -> None:
        conn.uploads = {}
        early = conn.deadline(KEEPALIVE, 1000, "handshake timed out", counter="handshake_timeouts")
        ready = False
        async for frame in conn:
            raw = frame.decode() if isinstance(frame, bytes) else frame
            if not raw.endswith(RS):
                self.count("protocol_errors")
                await conn.close(1000, "record without separator")
                return
            for record in raw.split(RS)[:-1]:
                message = json.loads(record)
                if not ready:
                    early.cancel()
                    if message.get("protocol") != "json" or message.get("version") != 1:
                        self.count("protocol_errors")
                        await self.say(conn, {"error": f"The protocol '{message.get('protocol')}' is not supported."})
                        await conn.close(1000)
                        return
                    ready = True
                    await self.say(conn, {})
                    self.count("handshakes_ok")

                    async def farewell() -> None:
                        await self.say(
                            conn, {"type": 7, "error": "Connection closed with an error.", "allowReconnect": True}
                        )

                    alive = conn.deadline(TIMEOUT, 1000, "", before=farewell)
                    conn.spawn(self.keep(conn))
                    continue
                alive.touch()
                await self.message(conn, message)

    async def keep(self, conn: Conn) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE)
            await self.say(conn, {"type": 6})

    async def message(self, conn: Conn, message: dict[str, Any]) -> None:
        kind, ident = message.get("type"), message.get("invocationId")
        if kind == 6:
            self.count("pings_received")
        elif kind == 1:
            for stream in message.get("streamIds", []):
                conn.uploads[stream] = asyncio.Queue()
            conn.spawn(
                self.invoke(conn, ident, message["target"], message.get("arguments", []), message.get("streamIds", []))
            )
        elif kind == 4:
            args = message.get("arguments", [])
            if message["target"] == "Counter":
                conn.subscribe(ident, self.counter(conn, ident, *args))
            elif message["target"] == "Ticks":
                conn.subscribe(ident, self.counter(conn, ident, 10**9, *args))
            else:
                await self.say(
                    conn, {"type": 3, "invocationId": ident, "error": f"Unknown hub method '{message['target']}'"}
                )
        elif kind == 5:
            self.count("cancels_received")
            if conn.unsubscribe(ident):
                await self.say(conn, {"type": 3, "invocationId": ident})
        elif kind == 2 and ident in conn.uploads:
            await conn.uploads[ident].put(message["item"])
        elif kind == 3 and ident in conn.uploads:
            await conn.uploads[ident].put(None)
        elif kind == 7:
            await conn.close(1000)
        else:
            self.count("protocol_errors")

    async def invoke(self, conn: Conn, ident: Any, target: str, args: Any, streams: list[str]) -> None:
        result, error = None, None
        if target == "Add":
            result = args[0] + args[1]
        elif target == "Divide":
            if args[1]:
                result = args[0] / args[1]
            else:
                error = "An unexpected error occurred invoking 'Divide' on the server. Attempted to divide by zero."
        elif target == "Slow":
            await asyncio.sleep(args[1] / 1000)
            result = args[0]
        elif target == "SumStream":
            queue = conn.uploads[streams[0]]
            result = 0
            while (item := await queue.get()) is not None:
                self.count("uploaded_items")
                result += item
            del conn.uploads[streams[0]]
        elif target == "Join":
            if args[0] not in conn.subs:
                conn.subscribe(args[0], self.group(conn, args[0]))
        elif target == "Leave":
            conn.unsubscribe(args[0])
        elif target == "Notify":
            self.count("notified")
            self.state["last_notice"] = args
        else:
            error = f"Unknown hub method '{target}'"
        if ident is None:
            return
        if error:
            self.count("errors_sent")
            await self.say(conn, {"type": 3, "invocationId": ident, "error": error})
        elif target in ("Join", "Leave", "Notify"):
            await self.say(conn, {"type": 3, "invocationId": ident, "result": None})
        else:
            await self.say(conn, {"type": 3, "invocationId": ident, "result": result})

    async def counter(self, conn: Conn, ident: Any, count: int, ms: int) -> None:
        n = 0
        while n < count:
            pair = [{"type": 2, "invocationId": ident, "item": i} for i in range(n, min(n + 2, count))]
            n += len(pair)
            self.count("events_sent", len(pair))
            end = [{"type": 3, "invocationId": ident}] if n >= count else []
            await self.say(conn, {"type": 6}, *pair, *end)  # several records in a frame
            await asyncio.sleep(ms / 1000)
        conn.finish(ident)

    async def group(self, conn: Conn, name: str) -> None:
        for n in range(10**9):
            self.count("events_sent")
            await self.say(
                conn,
                {"type": 1, "target": "ReceiveMessage", "arguments": ["other", n, "noise"]},
                {"type": 1, "target": "ReceiveMessage", "arguments": [name, n, f"{name} {n}"]},
            )
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    run(SignalR())
