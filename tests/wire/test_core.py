"""The protocol without I/O: what comes of the same bytes, however they are split on the way."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from typing import Any

import pytest
from support.peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame
from websockets.utils import accept_key

from utcp_websocket_anyio._wire import Target, _core
from utcp_websocket_anyio._wire._core import ProtocolCore
from utcp_websocket_anyio.errors import WebSocketProtocolError

LIMIT = 1000
WHOLE: list[tuple[bytes, str | bytes]] = [
    (frame(TEXT, b"a"), "a"),
    (frame(BINARY), b""),
    (frame(TEXT, "é".encode() * 100), "é" * 100),
    (frame(BINARY, bytes(LIMIT)), bytes(LIMIT)),
    (bytes((0x81, 127)) + (3).to_bytes(8, "big") + b"abc", "abc"),
    (bytes((0x81, 126, 0, 124)) + b"d" * 124, "d" * 124),
    (frame(TEXT, b"b", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"c"), "bc"),
    (bytes((0x89, 126, 0, 1)) + b"q" + frame(PONG, b"r") + frame(BINARY, b"d"), b"d"),
]


def opened(**settings: Any) -> ProtocolCore:
    core = ProtocolCore(Target("ws://127.0.0.1/", "ws://127.0.0.1/", **{"max_message_size": LIMIT, **settings}))
    key = core.to_send().partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
    feed(
        core,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + (b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if settings.get("compression") else b"")
        + f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode(),
    )
    assert core.is_open
    return core


def feed(core: ProtocolCore, *pieces: bytes) -> None:
    """Give each piece to the core as a read of its own, or as several if it leaves no room for more."""
    for piece in pieces:
        position = 0
        while position < len(piece):
            buffer = core.get_buffer()
            size = min(len(buffer), len(piece) - position)
            buffer[:size] = piece[position : position + size]
            core.received(size)
            while core.has_leftover:
                core.resume()
            position += size


def test_wherever_the_bytes_are_split_the_messages_are_the_same_and_a_part_of_one_is_known() -> None:
    data = b"".join(sent for sent, _ in WHOLE)
    messages = [message for _, message in WHOLE]
    ends = {0}
    for sent, _ in WHOLE:
        ends.add(max(ends) + len(sent))
    ping, pong = len(bytes((0x89, 126, 0, 1)) + b"q"), len(frame(PONG, b"r"))
    last = max(ends) - len(WHOLE[-1][0])
    ends |= {last + ping, last + ping + pong}  # nothing of a message there
    for split in range(len(data) + 1):
        core = opened()
        feed(core, data[:split])
        received = list(core.messages)
        core.messages.clear()
        assert core.is_amid_message is (split not in ends), split
        feed(core, data[split:])
        assert received + list(core.messages) == messages
        assert core.closed is None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_make_the_messages_that_were_sent(size: int) -> None:
    data = b"".join(sent for sent, _ in WHOLE)
    core = opened()
    feed(core, *(data[start : start + size] for start in range(0, len(data), size)))
    assert list(core.messages) == [message for _, message in WHOLE]
    assert core._assembly.size == 0


SHORT = [str(number) for number in range(1000)]
MANY = b"".join(frame(TEXT, text.encode()) for text in SHORT)


@pytest.mark.parametrize("size", [2, 3, 1100, 1101, 1102, 1103, 10_000])
def test_what_follows_many_short_messages_in_the_same_read_is_taken_as_elsewhere(size: int) -> None:
    data = MANY + b"".join(sent for sent, _ in WHOLE) + MANY
    core = opened()
    feed(core, *(data[start : start + size] for start in range(0, len(data), size)))
    assert list(core.messages) == [*SHORT, *(message for _, message in WHOLE), *SHORT]
    assert core.delivered == sum(len(m.encode() if isinstance(m, str) else m) for m in core.messages)
    assert not core.has_partial_message


VIOLATIONS = {
    "masked": (b"\x81\x81abcde", 1002),
    "masked and long": (b"\x81\xff" + bytes(20), 1002),
    "reserved bits": (frame(TEXT, b"a", rsv=4), 1002),
    "an opcode that is none": (frame(3, b"a"), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"a"), 1002),
    "a message inside another": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "a ping in fragments": (frame(PING, fin=False), 1002),
    "a long ping": (frame(PING, bytes(126)), 1002),
    "announced too long": (b"\x82\x7e" + (LIMIT + 1).to_bytes(2, "big"), 1009),
    "announced longer than anything": (b"\x82\x7f\x7f" + b"\xff" * 7, 1009),
    "a length of 64 bits": (b"\x82\x7f" + b"\xff" * 8, 1002),
    "too long in fragments": (frame(TEXT, bytes(LIMIT), fin=False) + frame(CONTINUATION, b"a"), 1009),
    "no text": (frame(TEXT, b"a\xff"), 1007),
    "no text in fragments": (frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xff"), 1007),
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_wherever_the_bytes_are_split_a_violation_is_found_and_nothing_is_taken_after_it(what: str) -> None:
    broken, code = VIOLATIONS[what]
    many = opened()
    feed(many, MANY + broken + frame(TEXT, b"after"))
    assert list(many.messages) == SHORT
    assert isinstance(many.closed, WebSocketProtocolError)
    data = frame(TEXT, b"before") + broken
    for split in range(len(data) + 1):
        core = opened()
        feed(core, data[:split], data[split:] + frame(TEXT, b"after"))
        feed(core, frame(TEXT, b"long after"))
        assert list(core.messages) == ["before"]
        assert isinstance(core.closed, WebSocketProtocolError)
        answer = core.to_send()
        assert answer[0] == 0x80 | CLOSE
        key, payload = answer[2:6], answer[6:8]
        assert bytes(a ^ b for a, b in zip(payload, key, strict=False)) == code.to_bytes(2, "big")


def test_what_is_only_announced_takes_no_memory() -> None:
    core = opened()
    feed(core, b"\x82\x7e" + LIMIT.to_bytes(2, "big") + bytes(10))
    assert core._assembly.size == 10
    assert core.is_amid_message


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 3 * 256 * 1024 + 1])
def test_a_message_is_one_masked_frame_however_many_pieces_it_is_sent_in(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    sent = b"".join(opened().message(payload[:size]))
    header = 2 if size < 126 else 4 if size < 2**16 else 10
    unmasked = bytes((sent[0], sent[1] & 0x7F)) + sent[2:header]
    key, masked = sent[header : header + 4], sent[header + 4 :]
    assert sent[1] & 0x80
    keys = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    assert unmasked + (int.from_bytes(masked, "big") ^ keys).to_bytes(size, "big") == frame(BINARY, payload[:size])


# Budgets


def read(core: ProtocolCore, data: bytes) -> None:
    """One read, and nothing more in this turn."""
    buffer = core.get_buffer()
    buffer[: len(data)] = data
    core.received(len(data))


@pytest.mark.parametrize("empty", [frame(TEXT), frame(TEXT, fin=False) + frame(CONTINUATION)], ids=["whole", "parts"])
def test_a_turn_takes_a_bounded_number_of_frames_and_the_rest_comes_in_order(empty: bytes) -> None:
    core = opened()
    count = 3 * _core._BUDGET
    read(core, b"".join(frame(TEXT, b"%d" % n) + empty for n in range(count)) + frame(TEXT, b"cut")[:3])
    turns = 1
    received: list[str | bytes] = []
    while core.has_leftover:
        assert len(core.messages) <= _core._BUDGET
        assert core.is_amid_message
        received += core.messages
        core.messages.clear()
        core.resume()
        turns += 1
    received += core.messages
    assert [message for message in received if message] == [str(n) for n in range(count)]
    assert turns >= 6
    core.messages.clear()
    read(core, frame(TEXT, b"cut")[3:])
    assert list(core.messages) == ["cut"]


def test_small_frames_that_inflate_to_much_are_taken_in_several_turns() -> None:
    core = opened(compression=True, max_message_size=2**20)
    compressor = zlib.compressobj(wbits=-15)
    data = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    read(core, frame(BINARY, data[:-4], rsv=4) * 10)
    assert len(core.messages) <= _core._BUDGET // 1024
    while core.has_leftover:
        core.resume()
    assert list(core.messages) == [bytes(2**20)] * 10


def deflated(*parts: bytes, level: int = 6, memory: int = 8) -> list[bytes]:
    """The frames of a compressed message, one for each part."""
    compressor = zlib.compressobj(level, wbits=-15, memLevel=memory)
    payloads = [compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) for part in parts]
    payloads[-1] = payloads[-1][:-4]
    last = len(parts) - 1
    return [
        frame(CONTINUATION if n else BINARY, payload, fin=n == last, rsv=0 if n else 4)
        for n, payload in enumerate(payloads)
    ]


@pytest.mark.parametrize("parts", [[2**26], [99_999, 2**26], [60_000, 60_000], [100_000, 1]])
def test_a_message_that_inflates_beyond_the_limit_is_refused_without_being_inflated(parts: list[int]) -> None:
    core = opened(compression=True, max_message_size=100_000)
    frames = deflated(*map(bytes, parts))
    tracemalloc.start()
    try:
        feed(core, *frames)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert isinstance(core.closed, WebSocketProtocolError)
    assert "max_message_size" in str(core.closed)
    assert not core.messages


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 200_000])
@pytest.mark.parametrize("memory", [1, 8])
def test_a_compressed_message_of_the_limit_arrives_although_it_cannot_be_compressed(size: int, memory: int) -> None:
    core = opened(compression=True, max_message_size=size)
    message = random.Random(1).randbytes(size)
    feed(core, *deflated(message, memory=memory))
    feed(core, *deflated(message[: size // 2], b"", message[size // 2 :], memory=memory))
    assert core.closed is None
    assert list(core.messages) == [message, message]


def test_what_is_not_deflate_or_not_text_when_inflated_breaks_the_protocol() -> None:
    for broken in (frame(BINARY, b"\xff" * 50, rsv=4), bytes([0xC1]) + deflated(b"a\xff")[0][1:]):
        core = opened(compression=True)
        feed(core, frame(TEXT, b"before") + broken)
        assert list(core.messages) == ["before"]
        assert isinstance(core.closed, WebSocketProtocolError)


# What is sent


def test_a_compressed_message_may_be_sent_in_fragments() -> None:
    core, other = opened(compression=True, compression_threshold=0), opened(compression=True, max_message_size=2**20)
    message = random.Random(2).randbytes(10_000)
    frames = b"".join(core.message(message, 1000))
    # Unmasked they are those of a server.
    unmasked = bytearray()
    while frames:
        size = frames[1] & 0x7F
        start = 2
        if size == 126:
            size, start = int.from_bytes(frames[2:4], "big"), 4
        key, payload = frames[start : start + 4], frames[start + 4 : start + 4 + size]
        assert size <= 1000
        unmasked += bytes([frames[0], frames[1] & 0x7F]) + frames[2:start]
        unmasked += bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        frames = frames[start + 4 + size :]
    feed(other, bytes(unmasked))
    assert list(other.messages) == [message]


def test_a_lone_surrogate_in_a_message_is_an_error_that_does_not_hold_it() -> None:
    core = opened()
    with pytest.raises(ValueError, match="lone surrogate") as caught:
        core.message("geheim \ud800")
    assert not isinstance(caught.value, UnicodeError)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "geheim" not in str(caught.value)


def test_a_reason_that_is_too_long_for_a_close_frame_is_shortened() -> None:
    core = opened()
    core.close(4000, "\u20ac" * 100)
    sent = core.to_send()
    key, payload = sent[2:6], sent[6:]
    reason = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))[2:]
    assert reason.decode() == "\u20ac" * 41


@pytest.mark.parametrize("limit", [2**63 - 1, 2**63, 2**64, 2**100])
@pytest.mark.parametrize("compression", [False, True])
def test_a_limit_may_be_of_any_size(limit: int, compression: bool) -> None:
    core = opened(compression=compression, max_message_size=limit)
    feed(core, frame(TEXT, b"a") + (frame(TEXT, b"\x4a\x04\x00", rsv=4) if compression else frame(TEXT, b"a")))
    assert list(core.messages) == ["a", "a"]
    feed(core, b"\x82\x7f\x7f" + b"\xff" * 7 + bytes(2**20))
    assert core.closed is None
    assert core._assembly.size == 2**20


# Long messages


def test_long_messages_of_several_connections_are_put_together_side_by_side() -> None:
    cores = [opened(max_message_size=2**24) for _ in range(3)]
    payloads = [bytes([n]) * size for n, size in enumerate((3_000_000, 700_000, 2**22 + 1))]
    frames = [frame(BINARY, payload) + frame(TEXT, b"next") for payload in payloads]
    for start in range(0, max(map(len, frames)), 100_000):
        for core, data in zip(cores, frames, strict=True):
            feed(core, data[start : start + 100_000])
    for core, payload in zip(cores, payloads, strict=True):
        assert list(core.messages) == [payload, "next"]


def test_most_of_a_long_message_is_read_into_its_own_memory() -> None:
    core = opened(max_message_size=2**24)
    shared = core.get_buffer()
    data = frame(BINARY, bytes(range(256)) * 2**13)
    read(core, data[: 2**17])
    assert core.get_buffer().obj is not shared.obj
    feed(core, data[2**17 :])
    assert core.messages.popleft() == bytes(range(256)) * 2**13
    assert core.get_buffer().obj is shared.obj
