"""RFC 6455 with every engine, in the sections of Autobahn's test suite, and what becomes of it for who receives.

`nox -s autobahn` runs that suite itself, which judges what is sent; here is also what a caller gets to see.
"""

from __future__ import annotations

import itertools
import struct
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.engines import Opener, anyio_backend, connect, engine
from support.peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, frame, peer

from utcp_websocket_anyio.errors import WebSocketClosedError, WebSocketError, WebSocketProtocolError

__all__ = ["anyio_backend", "connect", "engine"]

pytestmark = pytest.mark.anyio

Frame = tuple[int, bytes]

LENGTHS = [0, 1, 125, 126, 127, 128, 65535, 65536, 65537]
GREETING = "Hello-µ@ßöäüàá-UTF-8!! κόσμε \U0001f600"


async def said_to(connect: Opener, data: bytes, *, pieces: int = 1, **settings: Any) -> tuple[list[Any], list[Frame]]:
    """The messages and the end that a client gets, and its bytes, when a server sends `data` and then closes."""
    received: list[Any] = []
    answered: list[Frame] = []
    done = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        size = -(-len(data) // pieces) or 1
        for start in range(0, len(data), size):
            await peer.send_raw(data[start : start + size])
            await anyio.lowlevel.checkpoint()
        try:
            await peer.send_frame(CLOSE, struct.pack("!H", 1000))
            while not answered or answered[-1][0] != CLOSE:
                answered.append(await peer.receive_frame())
        finally:
            done.set()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url, **settings)
            try:
                while True:
                    received.append(await wire.receive())
            except WebSocketError as error:
                received.append(error)
            await wire.close()
            await done.wait()
    return received, answered


def close(code: int, reason: bytes = b"") -> Frame:
    return CLOSE, struct.pack("!H", code) + reason


async def expect_messages(connect: Opener, data: bytes, *messages: str | bytes, pieces: int = 1) -> list[Frame]:
    """The messages and a good end; gives what was sent before the answer to the close."""
    received, answered = await said_to(connect, data, pieces=pieces)
    assert received[:-1] == list(messages)
    assert isinstance(received[-1], WebSocketClosedError)
    assert received[-1].code == 1000
    assert answered[-1] == close(1000)
    return answered[:-1]


async def expect_violation(connect: Opener, data: bytes, *messages: str | bytes, code: int = 1002, **how: Any) -> None:
    """The messages, then an error, and the server is told by that code."""
    received, answered = await said_to(connect, data, **how)
    assert received[:-1] == list(messages)
    assert isinstance(received[-1], WebSocketProtocolError)
    # A peer that goes on sending may be cut off by TCP before it has read this.
    assert [(opcode, payload[:2]) for opcode, payload in answered[-1:]] in ([close(code)], [])


# 1: framing


@pytest.mark.parametrize("length", LENGTHS)
async def test_messages_of_every_length_arrive_and_return(connect: Opener, length: int) -> None:
    messages: list[str | bytes] = ["*" * length, b"\xfe" * length]
    returned: list[Frame] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        for message in messages:
            await peer.send(message)
            returned.append(await peer.receive_frame())

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            for message in messages:
                assert await wire.receive() == message
                await wire.send(message)
            await wire.close()
    assert returned == [(TEXT, b"*" * length), (BINARY, b"\xfe" * length)]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_may_arrive_byte_by_byte(connect: Opener, opcode: int) -> None:
    data = frame(opcode, b"x" * 130)
    await expect_messages(connect, data, "x" * 130 if opcode == TEXT else b"x" * 130, pieces=len(data))


# 2: pings and pongs


@pytest.mark.parametrize("length", [0, 1, 124, 125])
@pytest.mark.parametrize("pieces", [1, 131])
async def test_a_ping_is_answered_with_its_payload(connect: Opener, length: int, pieces: int) -> None:
    payload = bytes(range(128, 128 + length))
    assert await expect_messages(connect, frame(PING, payload), pieces=pieces) == [(PONG, payload)]


async def test_a_ping_of_126_bytes_is_a_violation(connect: Opener) -> None:
    await expect_violation(connect, frame(PING, bytes(126)))


async def test_unsolicited_pongs_are_ignored(connect: Opener) -> None:
    data = frame(PONG) + frame(PONG, b"unsolicited") + frame(PING, b"a ping")
    assert await expect_messages(connect, data) == [(PONG, b"a ping")]


async def test_every_one_of_many_pings_is_answered_in_order(connect: Opener) -> None:
    payloads = [f"{n}".encode() for n in range(10)]
    data = b"".join(frame(PING, payload) for payload in payloads)
    assert await expect_messages(connect, data) == [(PONG, payload) for payload in payloads]


# 3: reserved bits


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
async def test_reserved_bits_are_a_violation_in_every_frame(connect: Opener, rsv: int, opcode: int) -> None:
    payload = struct.pack("!H", 1000) if opcode == CLOSE else b"x"
    await expect_violation(connect, frame(TEXT, b"before") + frame(opcode, payload, rsv=rsv), "before")


# 4: opcodes


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("payload", [b"", b"reserved"])
async def test_a_reserved_opcode_is_a_violation(connect: Opener, opcode: int, payload: bytes) -> None:
    await expect_violation(connect, frame(TEXT, b"before") + frame(opcode, payload) + frame(PING), "before")


# 5: fragments


def fragmented(opcode: int, *parts: bytes, between: bytes = b"") -> bytes:
    """A message in so many frames, with something between each two of them."""
    last = len(parts) - 1
    return between.join(frame(opcode if n == 0 else CONTINUATION, part, fin=n == last) for n, part in enumerate(parts))


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_a_control_frame_in_fragments_is_a_violation(connect: Opener, opcode: int) -> None:
    await expect_violation(connect, fragmented(opcode, b"frag", b"ment"))


@pytest.mark.parametrize("pieces", [1, 8, 1000])
async def test_control_frames_may_stand_between_fragments(connect: Opener, pieces: int) -> None:
    data = fragmented(TEXT, b"frag", b"", b"ment", between=frame(PING, b"in it") + frame(PONG, b"too"))
    assert await expect_messages(connect, data + data, "fragment", "fragment", pieces=pieces) == [(PONG, b"in it")] * 4


async def test_a_message_in_fragments_may_be_empty(connect: Opener) -> None:
    data = fragmented(TEXT, b"", b"", b"") + fragmented(BINARY, b"", b"") + frame(TEXT, b"after")
    await expect_messages(connect, data, "", b"", "after")


FRAGMENT_FAULTS = {
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "an open continuation of nothing": frame(CONTINUATION, b"x", fin=False) + frame(TEXT, b"x"),
    "text in a fragmented text": frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"),
    "binary in a fragmented text": frame(TEXT, b"x", fin=False) + frame(BINARY, b"x"),
    "a fragmented text in another": frame(TEXT, b"x", fin=False) + frame(TEXT, b"x", fin=False),
    "text after a continuation": frame(TEXT, b"x", fin=False) + frame(CONTINUATION, fin=False) + frame(TEXT, b"x"),
}


@pytest.mark.parametrize("fault", FRAGMENT_FAULTS)
async def test_fragments_out_of_order_are_a_violation(connect: Opener, fault: str) -> None:
    await expect_violation(connect, fragmented(TEXT, b"be", b"fore") + FRAGMENT_FAULTS[fault], "before")


# 6: UTF-8


@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_characters_may_be_split_over_fragments(connect: Opener, size: int) -> None:
    encoded = GREETING.encode()
    parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    await expect_messages(connect, fragmented(TEXT, *parts), GREETING)


async def test_characters_may_be_split_over_reads(connect: Opener) -> None:
    data = frame(TEXT, GREETING.encode())
    await expect_messages(connect, data, GREETING, pieces=len(data))


VALID = [0x0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0x10000, 0x1FFFE, 0x10FFFF]


async def test_every_unicode_character_arrives_noncharacters_included(connect: Opener) -> None:
    messages = list(map(chr, VALID))
    await expect_messages(connect, b"".join(frame(TEXT, message.encode()) for message in messages), *messages)


INVALID = {
    "a continuation byte alone": b"\x80",
    "a truncated sequence": b"\xce\xba\xe1\xbd",
    "an interrupted sequence": b"\xe1\xbd\xf0\x90",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "an overlong slash of two bytes": b"\xc0\xaf",
    "an overlong slash of three bytes": b"\xe0\x80\xaf",
    "an overlong slash of four bytes": b"\xf0\x80\x80\xaf",
    "an overlong NUL": b"\xc0\x80",
    "an impossible byte": b"\xff",
}


@pytest.mark.parametrize("what", INVALID)
@pytest.mark.parametrize("how", ["whole", "fragments", "fragments with a ping between"])
async def test_text_that_is_not_utf8_is_a_violation(connect: Opener, what: str, how: str) -> None:
    encoded = GREETING.encode() + INVALID[what] + b"edited"
    if how == "whole":
        data = frame(TEXT, encoded)
    else:
        parts = [encoded[n : n + 1] for n in range(len(encoded))]
        data = fragmented(TEXT, *parts, between=frame(PONG) if "ping" in how else b"")
    await expect_violation(connect, frame(TEXT, b"before") + data, "before", code=1007)


async def test_binary_messages_need_not_be_utf8(connect: Opener) -> None:
    await expect_messages(connect, b"".join(frame(BINARY, data) for data in INVALID.values()), *INVALID.values())


# 7: closing


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
@pytest.mark.parametrize("reason", ["", "Grüße", "x" * 123])
async def test_a_close_is_answered_with_its_code_and_told_with_its_reason(
    connect: Opener, code: int, reason: str
) -> None:
    opcode, payload = close(code, reason.encode())
    received, answered = await said_to(connect, frame(TEXT, b"before") + frame(opcode, payload))
    assert received[0] == "before"
    assert isinstance(received[1], WebSocketClosedError)
    assert (received[1].code, received[1].reason) == (code, reason)
    assert answered[-1][1][:2] == payload[:2]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
async def test_a_close_code_that_may_not_be_sent_is_a_violation(connect: Opener, code: int) -> None:
    await expect_violation(connect, frame(*close(code)))


@pytest.mark.parametrize(
    ("payload", "code"), [(b"\x03", 1002), (bytes(126), 1002), (struct.pack("!H", 1000) + b"\xce\xba\xe1\xbd", None)]
)
async def test_a_close_whose_payload_is_none_is_a_violation(connect: Opener, payload: bytes, code: int | None) -> None:
    received, answered = await said_to(connect, frame(CLOSE, payload))
    assert isinstance(received[0], WebSocketProtocolError)
    # For a reason that is not UTF-8 the RFC's sections suggest either.
    assert answered[-1][1][:2] in [struct.pack("!H", told) for told in ((code,) if code else (1002, 1007))]


@pytest.mark.parametrize("behind", [frame(PING), frame(TEXT, b"late"), frame(CONTINUATION, b"late")])
async def test_what_comes_behind_a_close_is_neither_answered_nor_delivered(connect: Opener, behind: bytes) -> None:
    data = frame(TEXT, b"before") + frame(*close(1000)) + behind
    assert await expect_messages(connect, data, "before") == []


# 9: limits


@pytest.mark.parametrize("limit", [125, 126, 65535, 65536, 10**6])
@pytest.mark.parametrize("how", ["whole", "fragments"])
async def test_a_message_of_the_limit_arrives_and_one_byte_more_is_refused(
    connect: Opener, limit: int, how: str
) -> None:
    def message(size: int) -> bytes:
        parts = [bytes(size)] if how == "whole" else [bytes(part) for part in (size // 2, 1, size - size // 2 - 1)]
        return fragmented(BINARY, *parts)

    data = message(limit) + message(limit + 1)
    await expect_violation(connect, data, bytes(limit), code=1009, max_message_size=limit)


async def test_control_frames_do_not_add_up_to_the_limit(connect: Opener) -> None:
    data = fragmented(TEXT, *itertools.repeat(b"x", 5), between=frame(PING, bytes(125)))
    received, _ = await said_to(connect, data, max_message_size=130)
    assert received[0] == "xxxxx"
