"""What the simulated peers share: sockets, HTTP, counters, deadlines; no protocol.

Every peer is ``python -m apis.peers.<name>``, in the folder of the tests. It serves WebSocket and plain HTTP at two
free ports of loopback and prints one line when both listen: ``{"ws": "ws://127.0.0.1:…", "http": "http://…"}``. It ends
when its standard input does.

HTTP, in every peer:
    GET /state: counters as JSON (`COUNTERS`, and those that the peer adds).
    POST /control: a JSON object. ``{"drop": true}`` cuts every connection without a close frame (TCP reset),
        ``{"close": code, "reason": text}`` closes every connection; the other commands are the peer's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import socket
import struct
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

__all__ = ["Answer", "Conn", "Headers", "Peer", "Refusal", "Req", "dumps", "now_ms", "run"]

COUNTERS = [
    "connections",
    "open_connections",
    "handshakes_refused",
    "logins_ok",
    "logins_failed",
    "subscriptions_total",
    "open_subscriptions",
    "unsubscribes",
    "abandoned_subscriptions",
    "events_sent",
    "pings_received",
    "pongs_received",
    "acks_received",
    "heartbeat_timeouts",
    "protocol_errors",
    "errors_sent",
    "http_requests",
]
PHRASES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests"}

Answer = tuple[int, "dict[str, str] | None", Any]
"""Status, further headers and body of an HTTP response; what is no text is sent as JSON."""
Refusal = Answer


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def now_ms() -> int:
    return int(time.time() * 1000)


class Req:
    """One plain HTTP request."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.headers, self.body = method, headers, body
        parts = urlsplit(target)
        self.path = parts.path
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"null")
        except ValueError:
            return None

    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


class Conn:
    """One WebSocket connection of a peer, which may keep what it knows of it in further attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __init__(self, peer: Peer, ws: ServerConnection) -> None:
        assert ws.request is not None
        self.peer, self.ws = peer, ws
        parts = urlsplit(ws.request.path)
        self.path, self.query = parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))
        self.headers = ws.request.headers
        self.subprotocol = ws.subprotocol
        self.tasks: set[asyncio.Task[None]] = set()
        self.subs: dict[Any, asyncio.Task[None] | None] = {}
        self.closed_by_peer: int | None = None

    async def send(self, value: Any) -> None:
        """Send a JSON text frame; str and bytes go as they are."""
        await self.ws.send(value if isinstance(value, str | bytes) else dumps(value))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed_by_peer is None:
            self.closed_by_peer = code
            self.peer.count("closed_by_peer")
            self.peer.count(f"closed_{code}")
        await self.ws.close(code, reason)

    def abort(self) -> None:
        """Cut the TCP connection, without a close frame."""
        self.peer.count("dropped")
        transport = self.ws.transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside, for as long as the connection lasts."""

        async def guarded() -> None:
            try:
                await coroutine
            except (ConnectionClosed, asyncio.CancelledError):  # noqa: ASYNC103 - its task ends here
                pass
            except Exception:  # noqa: BLE001 - counted, and a test fails for it
                self.peer.count("peer_bugs")
                traceback.print_exc()

        task = asyncio.create_task(guarded())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: coroutine.close())
        return task

    def deadline(
        self,
        seconds: float,
        code: int,
        reason: str = "",
        counter: str = "heartbeat_timeouts",
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> Deadline:
        """A watchdog: closes with `code` unless `touch` is called at least every so many seconds."""
        return Deadline(self, seconds, code, reason, counter=counter, before=before)

    def subscribe(self, key: Any, coroutine: Coroutine[Any, Any, None] | None = None) -> None:
        self.peer.count("subscriptions_total")
        self.peer.count("open_subscriptions")
        self.subs[key] = self.spawn(coroutine) if coroutine is not None else None

    def unsubscribe(self, key: Any) -> bool:
        if key not in self.subs:
            return False
        task = self.subs.pop(key)
        if task is not None:
            task.cancel()
        self.peer.count("unsubscribes")
        self.peer.count("open_subscriptions", -1)
        return True

    def finish(self, key: Any) -> None:
        """A subscription ended by itself, at the peer's end."""
        if key in self.subs:
            del self.subs[key]
            self.peer.count("open_subscriptions", -1)
            self.peer.count("finished_subscriptions")

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.ws.__aiter__()


class Deadline:
    def __init__(
        self,
        conn: Conn,
        seconds: float,
        code: int,
        reason: str,
        *,
        counter: str,
        before: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self.conn, self.seconds, self.code, self.reason, self.counter = conn, seconds, code, reason, counter
        self.before = before
        self.last = time.monotonic()
        self.task = conn.spawn(self._watch())

    def touch(self) -> None:
        self.last = time.monotonic()

    def cancel(self) -> None:
        self.task.cancel()

    async def _watch(self) -> None:
        while (left := self.last + self.seconds - time.monotonic()) > 0:
            await asyncio.sleep(left)
        self.conn.peer.count(self.counter)
        if self.before is not None:
            await self.before()
        await self.conn.close(self.code, self.reason)


class Peer:
    """`handle` is the protocol; `routes` are plain HTTP; `admit` may refuse a handshake, `choose` a subprotocol."""

    max_size = 2**20

    def __init__(self) -> None:
        self.state: dict[str, Any] = dict.fromkeys(COUNTERS, 0)
        self.conns: set[Conn] = set()
        self.routes: dict[tuple[str, str], Callable[[Req], Answer | Awaitable[Answer]]] = {}
        self.ws = ""

    def count(self, name: str, n: int = 1) -> None:
        self.state[name] = self.state.get(name, 0) + n

    async def handle(self, conn: Conn) -> None:
        raise NotImplementedError

    def admit(self, path: str, query: dict[str, str], headers: Headers) -> Refusal | None:
        return None

    def choose(self, connection: ServerConnection, offered: Any) -> Any:
        return None

    async def control(self, command: dict[str, Any]) -> Any:
        return {"error": "unknown command"}

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        refusal = self.admit(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), request.headers)
        if refusal is None:
            return None
        self.count("handshakes_refused")
        status, headers, body = refusal
        data = body.encode() if isinstance(body, str) else dumps(body).encode()
        kind = "text/plain" if isinstance(body, str) else "application/json"
        out = Headers({"Content-Length": str(len(data)), "Connection": "close", "Content-Type": kind})
        out.update(headers or {})
        return Response(status, PHRASES.get(status, "Error"), out, data)

    async def _serve_websocket(self, ws: ServerConnection) -> None:
        conn = Conn(self, ws)
        self.conns.add(conn)
        self.count("connections")
        self.count("open_connections")
        try:
            await self.handle(conn)
        except ConnectionClosed:
            pass
        except Exception:
            self.count("peer_bugs")
            traceback.print_exc()
            raise
        finally:
            self.conns.discard(conn)
            self.count("open_connections", -1)
            for task in list(conn.tasks):
                task.cancel()
            if conn.subs:
                self.count("abandoned_subscriptions", len(conn.subs))
                self.count("open_subscriptions", -len(conn.subs))
                conn.subs.clear()

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (line := await reader.readline()).strip():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers = {}
                while (line := await reader.readline()) not in (b"\r\n", b"\n", b""):
                    key, _, value = line.decode("latin-1").partition(":")
                    headers[key.strip().lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length") or 0))
                status, extra, answer = await self._answer(Req(method, target, headers, body))
                data = answer.encode() if isinstance(answer, str) else b"" if answer is None else dumps(answer).encode()
                kind = "text/plain" if isinstance(answer, str) else "application/json"
                last = headers.get("connection", "").lower() == "close"
                head = [
                    f"HTTP/1.1 {status} -",
                    *([] if status == 204 else [f"Content-Type: {kind}", f"Content-Length: {len(data)}"]),
                    f"Connection: {'close' if last else 'keep-alive'}",
                    *(f"{key}: {value}" for key, value in (extra or {}).items()),
                ]
                writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + data)
                await writer.drain()
                if last:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    async def _answer(self, req: Req) -> Answer:
        if req.path == "/state":
            return 200, None, self.state
        if req.path == "/control" and req.method == "POST":
            return 200, None, await self._control(req.json() or {})
        self.count("http_requests")
        route = self.routes.get((req.method, req.path))
        if route is None:
            known = any(path == req.path for _, path in self.routes)
            return (405, None, {"error": "method not allowed"}) if known else (404, None, {"error": "not found"})
        result = route(req)
        return await result if inspect.isawaitable(result) else result

    async def _control(self, command: dict[str, Any]) -> Any:
        conns = list(self.conns)
        if command.get("drop"):
            for conn in conns:
                conn.abort()
            return {"dropped": len(conns)}
        if "close" in command:
            for conn in conns:
                await conn.close(command["close"], command.get("reason", ""))
            return {"closed": len(conns)}
        return await self.control(command)

    async def serve(self) -> None:
        """Serve until the standard input ends."""
        http = await asyncio.start_server(self._serve_http, "127.0.0.1", 0)
        async with (
            http,
            serve_websocket(
                self._serve_websocket,
                "127.0.0.1",
                0,
                process_request=self._process_request,
                select_subprotocol=self.choose,
                compression=None,
                ping_interval=None,
                max_size=self.max_size,
                close_timeout=1,
            ) as ws,
        ):
            self.ws = f"ws://127.0.0.1:{_port(ws)}"
            print(json.dumps({"ws": self.ws, "http": f"http://127.0.0.1:{_port(http)}"}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


def _port(server: Server | asyncio.Server) -> int:
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


def run(peer: Peer) -> None:
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(peer.serve())
