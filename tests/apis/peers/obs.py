"""OBS WebSocket 5 (rpcVersion 1). There are no heartbeats; nothing is scaled.

Subprotocol obswebsocket.json (chosen when offered, JSON otherwise too). Hello (0) with authentication {challenge,
salt}, fresh for every connection; Identify (1) with rpcVersion, authentication = base64(sha256(base64(sha256(password
+ salt)) + challenge)), eventSubscriptions; Identified (2). Request (6) → RequestResponse (7) with requestId and
requestStatus; RequestBatch (8) → (9); Event (5) by the intents subscribed; Reidentify (3). Close codes: 4002 not
JSON, 4003 no d or no op, 4005 wrong type, 4006 unknown op, 4007 not identified, 4008 identified already, 4009
authentication, 4010 rpcVersion. Events: CurrentProgramSceneChanged (intent 4, Scenes) when the scene is set, and
InputVolumeMeters (intent 65536, high volume) every 50 ms. Control: {"password": text}.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from typing import Any

from .peer import Conn, Peer, run

PASSWORD = "supersecretpassword"


def b64sha(text: str) -> Any:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class OBS(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.password, self.scene, self.scenes = PASSWORD, "Intro", ["Intro", "Game", "Outro"]

    def choose(self, connection: Any, offered: Any) -> Any:
        return "obswebsocket.json" if "obswebsocket.json" in offered else None

    async def control(self, command: dict[str, Any]) -> Any:
        if "password" in command:
            self.password = command["password"] or PASSWORD
        return {"ok": True}

    async def handle(self, conn: Conn) -> None:
        conn.identified, conn.intents = False, 0
        if conn.subprotocol:
            self.count("subprotocol_json")
        challenge, salt = (
            base64.b64encode(secrets.token_bytes(32)).decode(),
            base64.b64encode(secrets.token_bytes(32)).decode(),
        )
        await conn.send(
            {
                "op": 0,
                "d": {
                    "obsStudioVersion": "31.0.0",
                    "obsWebSocketVersion": "5.5.4",
                    "rpcVersion": 1,
                    "authentication": {"challenge": challenge, "salt": salt},
                },
            }
        )
        async for raw in conn:
            try:
                message = json.loads(raw)
            except ValueError:
                await conn.close(4002, "The message is not valid JSON.")
                return
            op, d = message.get("op"), message.get("d")
            if op is None or not isinstance(d, dict):
                await conn.close(4003, "Your payload is missing an `op` or a `d`.")
                return
            if op == 1:
                if conn.identified:
                    await conn.close(4008, "You are already Identified with the obs-websocket server.")
                    return
                if "rpcVersion" not in d:
                    await conn.close(4003, "Your payload's data is missing an `rpcVersion`.")
                    return
                if d["rpcVersion"] != 1:
                    await conn.close(4010, "Your requested RPC version is not supported by this server.")
                    return
                if d.get("authentication") != b64sha(b64sha(self.password + salt) + challenge):
                    self.count("logins_failed")
                    await conn.close(4009, "Authentication failed.")
                    return
                conn.identified, conn.intents = True, d.get("eventSubscriptions", 2047)
                self.count("logins_ok")
                conn.spawn(self.meters(conn))
                await conn.send({"op": 2, "d": {"negotiatedRpcVersion": 1}})
            elif not conn.identified:
                self.count("protocol_errors")
                await conn.close(4007, "You attempted to send a message before identifying.")
                return
            elif op == 3:
                conn.intents = d.get("eventSubscriptions", conn.intents)
                self.count("reidentified")
                await conn.send({"op": 2, "d": {"negotiatedRpcVersion": 1}})
            elif op == 6:
                conn.spawn(self.request(conn, d))
            elif op == 8:
                results = []
                for one in d.get("requests", []):
                    results.append(await self.answer(one))
                    if d.get("haltOnFailure") and not results[-1]["requestStatus"]["result"]:
                        break
                await conn.send({"op": 9, "d": {"requestId": d["requestId"], "results": results}})
            else:
                await conn.close(4006, f"Unknown OpCode: {op}")
                return

    async def request(self, conn: Conn, d: dict[str, Any]) -> None:
        await conn.send({"op": 7, "d": await self.answer(d)})

    async def answer(self, d: dict[str, Any]) -> Any:
        kind, data = d.get("requestType"), d.get("requestData") or {}
        status: dict[str, Any] = {"result": True, "code": 100}
        response: dict[str, Any] | None = None
        self.count("requests")
        if kind == "GetVersion":
            response = {"obsVersion": "31.0.0", "obsWebSocketVersion": "5.5.4", "rpcVersion": 1, "platform": "ubuntu"}
        elif kind == "GetSceneList":
            response = {
                "currentProgramSceneName": self.scene,
                "scenes": [{"sceneIndex": i, "sceneName": name} for i, name in enumerate(self.scenes)],
            }
        elif kind == "SetCurrentProgramScene":
            if "sceneName" not in data:
                status = {"result": False, "code": 300, "comment": "Your request is missing the `sceneName` field."}
            elif data["sceneName"] not in self.scenes:
                status = {
                    "result": False,
                    "code": 600,
                    "comment": f"No source was found by the name of `{data['sceneName']}`.",
                }
            else:
                self.scene = data["sceneName"]
                await self.event(
                    4, "CurrentProgramSceneChanged", {"sceneName": self.scene, "sceneUuid": "u-" + self.scene}
                )
        elif kind == "Sleep":
            await asyncio.sleep(data.get("sleepMillis", 0) / 1000)
            response = {"slept": data.get("sleepMillis")}
        else:
            status = {"result": False, "code": 204, "comment": "Your request type is not valid."}
        if not status["result"]:
            self.count("errors_sent")
        return {
            "requestType": kind,
            "requestId": d.get("requestId"),
            "requestStatus": status,
            **({"responseData": response} if response else {}),
        }

    async def event(self, intent: int, kind: str, data: Any) -> None:
        for conn in list(self.conns):
            if conn.identified and conn.intents & intent:
                self.count("events_sent")
                await conn.send({"op": 5, "d": {"eventType": kind, "eventIntent": intent, "eventData": data}})

    async def meters(self, conn: Conn) -> None:
        for n in range(10**9):
            await asyncio.sleep(0.05)
            if conn.intents & 65536:
                self.count("meters_sent")
                await conn.send(
                    {
                        "op": 5,
                        "d": {
                            "eventType": "InputVolumeMeters",
                            "eventIntent": 65536,
                            "eventData": {"inputs": [{"inputName": "Mic", "n": n}]},
                        },
                    }
                )


if __name__ == "__main__":
    run(OBS())
