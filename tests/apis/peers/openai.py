"""OpenAI's Realtime API, what it has for text and for audio that is sent. Nothing is scaled.

/v1/realtime?model=…, `Authorization: Bearer …`, otherwise 401. session.created, then events by the client:
conversation.item.create (answered by conversation.item.added), response.create (response.created, deltas of
response.output_text.delta, response.done with its status), response.cancel, input_audio_buffer.append (base64, no
answer) and commit (input_audio_buffer.committed with its size in ``bytes``). A response repeats everything that was
said in this conversation, a word a delta, 20 ms apart; what is said after "slowly" takes 100 ms a word. A second
response while one is active, and any unknown event, is answered by {"type": "error", "error": {"code", "message"}}.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

from .peer import Conn, Headers, Peer, Refusal, run

KEY = "openai-key"


class OpenAI(Peer):
    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if path != "/v1/realtime" or not query.get("model"):
            return 404, None, "not found"
        if headers.get("Authorization") != f"Bearer {KEY}":
            self.count("logins_failed")
            return 401, None, {"error": {"code": "invalid_api_key", "message": "Incorrect API key provided."}}
        return None

    async def handle(self, conn: Conn) -> None:
        self.count("logins_ok")
        conn.said, conn.active, conn.audio = [], None, b""
        await self.say(conn, "session.created", session={"model": conn.query["model"]})
        async for raw in conn:
            message = json.loads(raw)
            match message["type"]:
                case "conversation.item.create":
                    conn.said.append(message["item"]["content"][0]["text"])
                    await self.say(
                        conn, "conversation.item.added", item={"id": f"i{len(conn.said)}", **message["item"]}
                    )
                case "response.create" if conn.active is None:
                    conn.active = conn.spawn(self.respond(conn, " ".join(conn.said).split()))
                case "response.create":
                    text = "Conversation already has an active response in progress."
                    await self.fail(conn, "conversation_already_has_active_response", text)
                case "response.cancel":
                    self.count("cancels")
                    if conn.active is not None:
                        conn.active.cancel()
                        conn.active = None
                        await self.say(conn, "response.done", response={"status": "cancelled"})
                case "input_audio_buffer.append":
                    self.count("audio_frames")
                    conn.audio += base64.b64decode(message["audio"], validate=True)
                case "input_audio_buffer.commit":
                    await self.say(conn, "input_audio_buffer.committed", bytes=len(conn.audio))
                    conn.audio = b""
                case unknown:
                    self.count("protocol_errors")
                    await self.fail(conn, "invalid_value", f"Invalid value: '{unknown}'.")

    async def respond(self, conn: Conn, words: list[str]) -> None:
        ident = secrets.token_hex(4)
        await self.say(conn, "response.created", response={"id": ident, "status": "in_progress"})
        slow = False
        for i, word in enumerate(words):
            slow = slow or word == "slowly"
            await asyncio.sleep(0.1 if slow else 0.02)
            await self.say(conn, "response.output_text.delta", response_id=ident, delta=" " * bool(i) + word)
        conn.active = None
        await self.say(conn, "response.done", response={"id": ident, "status": "completed"})

    async def say(self, conn: Conn, kind: str, **members: Any) -> None:
        self.count("events_sent")
        await conn.send({"event_id": secrets.token_hex(6), "type": kind, **members})

    async def fail(self, conn: Conn, code: str, text: str) -> None:
        self.count("errors_sent")
        await self.say(conn, "error", error={"type": "invalid_request_error", "code": code, "message": text})


if __name__ == "__main__":
    run(OpenAI())
