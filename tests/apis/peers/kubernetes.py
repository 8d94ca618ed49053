"""Kubernetes' exec, subprotocol v4.channel.k8s.io. Nothing is scaled.

/api/v1/namespaces/NAMESPACE/pods/POD/exec?command=…&command=…&stdout=true…, `Authorization: Bearer …`, otherwise 401.
Every frame is binary, its first byte the channel: 0 standard input, 1 standard output, 2 standard error, 3 the status
at the end: {"status": "Success"} or {"status": "Failure", "message", "details"}. Commands: echo TEXT…, fail (writes to
both, exit code 3), cut (a character in two frames), cat (what comes at its input, until "bye"). Output comes in several
frames.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from .peer import Conn, Headers, Peer, Refusal, dumps, run

TOKEN = "kube-token"


class Kubernetes(Peer):
    def choose(self, connection: Any, offered: Any) -> Any:
        return "v4.channel.k8s.io" if "v4.channel.k8s.io" in offered else None

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            self.count("logins_failed")
            return 401, None, {"kind": "Status", "status": "Failure", "message": "Unauthorized", "code": 401}
        if path != "/api/v1/namespaces/default/pods/web-0/exec":
            return 404, None, {"kind": "Status", "status": "Failure", "message": "pods not found", "code": 404}
        return None

    async def handle(self, conn: Conn) -> None:
        self.count("logins_ok")
        assert conn.ws.request is not None
        command = parse_qs(urlsplit(conn.ws.request.path).query)["command"]
        status: dict[str, Any] = {"status": "Success", "metadata": {}}
        match command:
            case ["echo", *words]:
                for i, word in enumerate(words):
                    await conn.send(b"\x01" + (" " * bool(i) + word).encode())
                await conn.send(b"\x01\n")
            case ["cut"]:
                text = "snow: ☃".encode()
                await conn.send(b"\x01" + text[:-1])
                await conn.send(b"\x01" + text[-1:])
            case ["cat"]:
                async for raw in conn:
                    if raw[:1] != b"\x00":
                        self.count("protocol_errors")
                    await conn.send(b"\x01" + raw[1:])
                    if raw[1:] == b"bye":
                        break
            case _:
                await conn.send(b"\x01out")
                await conn.send(b"\x02err")
                message = "command terminated with non-zero exit code: exit status 3"
                causes = [{"reason": "ExitCode", "message": "3"}]
                status = {
                    "status": "Failure",
                    "reason": "NonZeroExitCode",
                    "message": message,
                    "details": {"causes": causes},
                }
        await conn.send(b"\x03" + dumps(status).encode())
        await conn.close()


if __name__ == "__main__":
    run(Kubernetes())
