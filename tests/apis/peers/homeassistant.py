"""Home Assistant's WebSocket API. Nothing is scaled.

auth_required, {"type": "auth", "access_token"}, auth_ok or auth_invalid and the end. Every command has an ``id`` that
is larger than all before on its connection; another one is answered by the error id_reuse. Commands: ping, call_service
(light.turn_on and light.turn_off of light.hall, which changes its state), get_states, subscribe_events (state_changed:
events with the id of the subscription), unsubscribe_events. {"type": "result", "id", "success", "result" or "error"};
the answer to call_service comes 0.05 s later. Control: {"token": text}.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .peer import Conn, Headers, Peer, Refusal, run

TOKEN = "ha-token"


class HomeAssistant(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.light = TOKEN, "off"

    async def control(self, command: dict[str, Any]) -> Any:
        if "token" in command:
            self.token = command["token"] or TOKEN
        return {"ok": True}

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None if path == "/api/websocket" else (404, None, "not found")

    async def handle(self, conn: Conn) -> None:
        await conn.send({"type": "auth_required", "ha_version": "2026.1.0"})
        last, ready = 0, False
        async for raw in conn:
            message = json.loads(raw)
            if not ready:
                if message != {"type": "auth", "access_token": self.token}:
                    self.count("logins_failed")
                    await conn.send({"type": "auth_invalid", "message": "Invalid access token or password"})
                    await conn.close()
                    return
                self.count("logins_ok")
                ready = True
                await conn.send({"type": "auth_ok", "ha_version": "2026.1.0"})
                continue
            if not isinstance(message.get("id"), int) or message["id"] <= last:
                self.count("protocol_errors")
                await self.fail(conn, message.get("id"), "id_reuse", "Identifier values have to increase.")
                continue
            last = message["id"]
            await self.command(conn, last, message)

    async def command(self, conn: Conn, ident: int, message: dict[str, Any]) -> None:
        match message:
            case {"type": "ping"}:
                self.count("pings_received")
                await conn.send({"id": ident, "type": "pong"})
            case {"type": "get_states"}:
                await self.succeed(conn, ident, [{"entity_id": "light.hall", "state": self.light}])
            case {"type": "subscribe_events", "event_type": "state_changed"}:
                conn.subscribe(ident)
                await self.succeed(conn, ident, None)
            case {"type": "unsubscribe_events", "subscription": subscription}:
                if conn.unsubscribe(subscription):
                    await self.succeed(conn, ident, None)
                else:
                    await self.fail(conn, ident, "not_found", "Subscription not found.")
            case {"type": "call_service", "domain": "light", "service": "turn_on" | "turn_off" as service}:
                conn.spawn(self.switch(conn, ident, service.removeprefix("turn_")))
            case {"type": "call_service"}:
                await self.fail(conn, ident, "not_found", f"Service {message.get('service')} not found.")
            case _:
                await self.fail(conn, ident, "unknown_command", "Unknown command.")

    async def switch(self, conn: Conn, ident: int, state: str) -> None:
        self.light = state
        for other in list(self.conns):
            for subscription in list(other.subs):
                self.count("events_sent")
                data = {"entity_id": "light.hall", "new_state": {"state": state}}
                event = {"event_type": "state_changed", "data": data}
                await other.send({"id": subscription, "type": "event", "event": event})
        await asyncio.sleep(0.05)
        await self.succeed(conn, ident, {"context": {"id": "c"}})

    async def succeed(self, conn: Conn, ident: int, result: Any) -> None:
        await conn.send({"id": ident, "type": "result", "success": True, "result": result})

    async def fail(self, conn: Conn, ident: Any, code: str, text: str) -> None:
        self.count("errors_sent")
        error = {"code": code, "message": text}
        await conn.send({"id": ident, "type": "result", "success": False, "error": error})


if __name__ == "__main__":
    run(HomeAssistant())
