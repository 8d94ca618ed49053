"""Deepgram live transcription. Times are scaled by 10: without audio or KeepAlive for 10 s (here 1 s) the connection is
closed with 1011 and a NET-0001 reason.

/v1/listen?encoding=linear16&sample_rate=16000&channels=1[&interim_results=true][&model=…]; `Authorization: Token
KEY`, or the subprotocols "token", KEY; otherwise 401 with err_code INVALID_AUTH. Binary frames are audio (an even
number of bytes; else close 1008 DATA-0000). Text frames: KeepAlive, Finalize, CloseStream; anything else gives an
Error message and 1008. For every half second of audio an interim result (if asked), for every second a final one:
"word0", "word1", … (what the audio holds does not matter). Finalize flushes (from_finalize true). After CloseStream
the rest is transcribed, then one Metadata message and close 1000. An empty binary frame does the same as CloseStream.
The counters audio_bytes, audio_frames, largest_frame tell what came. Control: {"key": text}.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from .peer import Conn, Headers, Peer, Refusal, run

KEY, IDLE = "dg-key", 1.0


class Deepgram(Peer):
    max_size = 2**22

    key = KEY

    async def control(self, command: dict[str, Any]) -> Any:
        if "key" in command:
            self.key = command["key"] or KEY
        return {"ok": True}

    def choose(self, connection: Any, offered: Any) -> Any:
        return "token" if "token" in offered else None

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if path != "/v1/listen":
            return 404, None, {"err_code": "NOT_FOUND", "err_msg": "not found"}
        offered = [part.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for part in value.split(",")]
        if headers.get("Authorization") != f"Token {self.key}" and offered != ["token", self.key]:
            self.count("logins_failed")
            return 401, None, {"err_code": "INVALID_AUTH", "err_msg": "Invalid credentials.", "request_id": "r"}
        if query.get("encoding") != "linear16" or query.get("sample_rate") != "16000":
            return (
                400,
                None,
                {
                    "err_code": "Bad Request",
                    "err_msg": "Bad Request: encoding and sample_rate are needed for raw audio",
                    "request_id": "r",
                },
            )
        return None

    async def handle(self, conn: Conn) -> None:
        self.count("logins_ok")
        conn.request_id, conn.bytes, conn.done, conn.words = secrets.token_hex(8), 0, 0, 0
        conn.halves = 0
        alive = conn.deadline(
            IDLE, 1011, "NET-0001: Deepgram did not receive audio data or a text message within the timeout window."
        )
        interim = conn.query.get("interim_results") == "true"
        async for raw in conn:
            alive.touch()
            if isinstance(raw, bytes) and raw:
                if len(raw) % 2:
                    self.count("protocol_errors")
                    await conn.close(1008, "DATA-0000: The payload cannot be decoded as audio.")
                    return
                self.count("audio_frames")
                self.count("audio_bytes", len(raw))
                self.state["largest_frame"] = max(self.state.get("largest_frame", 0), len(raw))
                conn.bytes += len(raw)
                while conn.bytes - conn.done >= 32000:
                    await self.result(conn, 1.0, True)
                    conn.halves = 0
                if interim and conn.bytes - conn.done >= 16000 and not conn.halves:
                    conn.halves = 1
                    await self.result(conn, 0.5, False)
                continue
            kind = "CloseStream" if raw == b"" else self.kind(raw)
            if kind == "KeepAlive":
                self.count("pings_received")
            elif kind == "Finalize":
                self.count("finalizes")
                await self.result(conn, (conn.bytes - conn.done) / 32000, True, finalize=True)
            elif kind == "CloseStream":
                self.count("closes_asked")
                if conn.bytes > conn.done:
                    await self.result(conn, (conn.bytes - conn.done) / 32000, True)
                await conn.send(
                    {
                        "type": "Metadata",
                        "transaction_key": "deprecated",
                        "request_id": conn.request_id,
                        "sha256": "0" * 64,
                        "created": "2026-01-01T00:00:00.000Z",
                        "duration": conn.bytes / 32000,
                        "channels": 1,
                    }
                )
                await conn.close(1000)
                return
            else:
                self.count("protocol_errors")
                await conn.send(
                    {
                        "type": "Error",
                        "variant": "SchemaError",
                        "description": "Could not deserialize last text message",
                        "message": f"unknown variant {kind}",
                    }
                )
                await conn.close(1008, "DATA-0000: The payload cannot be decoded.")
                return

    def kind(self, raw: Any) -> Any:
        try:
            return json.loads(raw)["type"]
        except (ValueError, KeyError, TypeError):
            return "?"

    async def result(self, conn: Conn, duration: float, final: bool, finalize: bool = False) -> None:
        self.count("events_sent")
        text = f"word{conn.words}" if duration else ""
        start = conn.done / 32000
        if final:
            conn.words += bool(duration)
            conn.done += int(duration * 32000)
        await conn.send(
            {
                "type": "Results",
                "channel_index": [0, 1],
                "duration": duration,
                "start": start,
                "is_final": final,
                "speech_final": final,
                "from_finalize": finalize,
                "channel": {
                    "alternatives": [
                        {
                            "transcript": text,
                            "confidence": 0.9,
                            "words": [{"word": text, "start": start, "end": start + duration, "confidence": 0.9}],
                        }
                    ]
                },
                "metadata": {"request_id": conn.request_id, "model_info": {"name": "peer"}},
            }
        )


if __name__ == "__main__":
    run(Deepgram())
