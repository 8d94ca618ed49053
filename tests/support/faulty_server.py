"""A server in tests that gives right answers and misbehaves now and then, by a seed: floods, closes, silence.

A request is ``{"id", "n", "start", "parts", "pad", "pause", "ends"}``. Its answer is a message for each part from
``start`` to ``parts``, the last one marked if the request says that it ends; otherwise nothing comes behind it.
Anything else, such as a login or a farewell, is answered by itself.
"""

from __future__ import annotations

import enum
import json
import random
import zlib
from collections import Counter
from typing import Any

import anyio
from anyio.streams.tls import TLSStream

from support.peers import CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, frame
from utcp_websocket_anyio._wire import _core

__all__ = ["CLOSES", "FaultyServer", "Mischief"]

CLOSES = {1000: "done", 1001: "going away", 1008: "not you", 1011: "broken", 1012: "", 1013: "later", 4000: "own code"}
"""Codes with which the server closes, and its reasons."""

MAX_CONTROL_FRAMES = _core._MAX_CONTROL_FRAMES


class Mischief(enum.Enum):
    """What a server does to one of its connections."""

    PINGS = enum.auto()
    PONGS = enum.auto()
    TOO_MANY_PINGS = enum.auto()
    CONTINUATIONS = enum.auto()
    MESSAGES = enum.auto()
    CLOSE = enum.auto()
    HALF_CLOSE = enum.auto()
    SILENCE = enum.auto()
    STALL = enum.auto()


UNASKED = (Mischief.CONTINUATIONS, Mischief.MESSAGES)


class FaultyServer:
    """A script for `peer`.

    Args:
        seed: Decides which connection suffers what, and when.
        harm: The share of connections that suffer something, again and again.
        compressed: True to accept permessage-deflate.
        pushes: True if messages that nobody asked for may be sent, because every client can tell its own answers.

    Attributes:
        done: What was done so far, and how often.
        closes: The codes of the closes so far.
        connections: How many there were.
        conversations: Those that go on.
        exceeded: True once so many control frames were sent in a row that a client gives up the connection.
    """

    def __init__(self, seed: int = 0, *, harm: float = 0, compressed: bool = False, pushes: bool = False) -> None:
        self.done: Counter[Mischief] = Counter()
        self.closes: Counter[int] = Counter()
        self.exceeded = False
        self.connections = 0
        self.harm = harm
        self.conversations: list[Conversation] = []
        self._random = random.Random(seed)
        self._compressed = compressed
        self._mischief = [one for one in Mischief if pushes or one not in UNASKED]

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake(*(["Sec-WebSocket-Extensions: permessage-deflate"] if self._compressed else []))
        conversation = Conversation(peer, self._random, compressed=self._compressed)
        self.conversations.append(conversation)
        self.connections += 1
        try:
            async with anyio.create_task_group() as task_group:
                if self._random.random() < self.harm:
                    task_group.start_soon(self._misbehave, conversation)
                while True:
                    task_group.start_soon(conversation.answer, await conversation.receive())
        except* AssertionError:
            raise
        except* Exception:  # noqa: BLE001 - whatever the connection ended with, and not the cancellation beside it
            pass
        finally:
            self.conversations.remove(conversation)
        raise anyio.EndOfStream

    async def _misbehave(self, conversation: Conversation) -> None:
        while True:
            await anyio.sleep(self._random.random() / 4)
            await self.do(self._random.choice(self._mischief), conversation)

    async def do(self, mischief: Mischief, conversation: Conversation) -> None:
        """Do one of them to a connection."""
        self.done[mischief] += 1
        if mischief is Mischief.CLOSE:
            code = self._random.choice(list(CLOSES))
            self.closes[code] += 1
            await conversation.peer.close(code, CLOSES[code])
            if self._random.random() < 0.5:
                raise anyio.EndOfStream  # without waiting for the client's
        elif mischief is Mischief.HALF_CLOSE:
            await conversation.half_close()
        elif mischief is Mischief.SILENCE:
            await conversation.say_nothing(0.2 + self._random.random())
        elif mischief is Mischief.STALL:
            await conversation.stall()
        else:
            count = (
                2 * MAX_CONTROL_FRAMES if mischief is Mischief.TOO_MANY_PINGS else self._random.randrange(1000, 3000)
            )
            if mischief in UNASKED:
                await conversation.push(mischief, count)
            else:
                # The client may answer before all of it has been sent.
                self.exceeded |= conversation.control_frames + count > MAX_CONTROL_FRAMES
                await conversation.send_control_frames(PONG if mischief is Mischief.PONGS else PING, count)


class Conversation:
    """One connection of the server.

    Attributes:
        control_frames: How many were sent since the last message.
    """

    def __init__(self, peer: Peer, randomly: random.Random, *, compressed: bool) -> None:
        self.peer = peer
        self.control_frames = 0
        self._random = randomly
        self._lock = anyio.Lock()
        self._was_read = anyio.Event()
        self._deflater = zlib.compressobj(wbits=-15) if compressed else None
        self._inflater = zlib.decompressobj(wbits=-15) if compressed else None

    async def receive(self) -> Any:
        """The next request; pings are answered."""
        while True:
            opcode, payload = await self.peer.receive_frame()
            if opcode == PING:
                await self.peer.send_frame(PONG, payload)
            elif opcode == PONG and payload == b"read":
                self._was_read.set()
            elif opcode == CLOSE:
                raise anyio.EndOfStream
            elif opcode == TEXT:
                if self._inflater is not None and self.peer.reserved:
                    payload = self._inflater.decompress(payload + b"\x00\x00\xff\xff")
                return json.loads(payload)

    async def answer(self, request: dict[str, Any]) -> None:
        """All parts of an answer, sometimes late, sometimes in pieces, never for another request."""
        if "parts" not in request:
            await self.send(request)
            return
        if request["n"] % 7 == 0:
            await anyio.sleep(0.01)
        for part in range(request["start"], request["parts"]):
            await anyio.sleep(request["pause"])
            is_last = request["ends"] and part == request["parts"] - 1
            known = {key: request[key] for key in ("id", "n", "pad")}
            await self.send({**known, "part": part, "next": part + 1, "last": is_last})

    async def send(self, message: Any) -> None:
        """Send a message in one frame; one of fifty in two, with a flood of empty ones between them."""
        async with self._lock:
            data, reserved = json.dumps(message).encode(), 0
            if self._deflater is not None:
                data = (self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
                reserved = 4
            # In the order in which it is sent, which is the order in which it is asked for.
            self.control_frames = 0
            if self._random.random() < 0.02:
                half = len(data) // 2
                empty = frame(CONTINUATION, fin=False) * self._random.randrange(5000)
                begin = frame(TEXT, data[:half], fin=False, rsv=reserved)
                await self.peer.send_raw(begin + empty + frame(CONTINUATION, data[half:]))
            else:
                await self.peer.send_frame(TEXT, data, rsv=reserved)

    async def push(self, mischief: Mischief, count: int) -> None:
        """Send many short messages that nobody asked for, or one in many empty frames."""
        async with self._lock:
            if mischief is Mischief.MESSAGES:
                data = frame(TEXT) * (count // 2) + frame(TEXT, b'{"id": "of nobody"}') * (count // 2)
            else:
                data = frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * count + frame(CONTINUATION)
            self.control_frames = 0
            await self.peer.send_raw(data)

    async def send_control_frames(self, opcode: int, count: int) -> None:
        """Send many empty ones."""
        self.control_frames += count
        await self.peer.send_raw(frame(opcode) * count)

    async def until_read(self) -> None:
        """Wait until the client has read what was sent so far."""
        self._was_read = anyio.Event()
        await self.peer.send_frame(PING, b"read")
        await self._was_read.wait()

    async def half_close(self) -> None:
        """Say that nothing more will be sent, without a close frame or TLS's own end, and read on."""
        stream = self.peer.stream
        await (stream.transport_stream if isinstance(stream, TLSStream) else stream).send_eof()

    async def say_nothing(self, seconds: float) -> None:
        """Give no answer for a while; pongs are sent."""
        async with self._lock:
            await anyio.sleep(seconds)

    async def stall(self) -> None:
        """Send nothing at all any more."""
        async with self.peer._sending:
            await anyio.sleep_forever()
