"""The memory that connections read into: shared where it can be, so that an idle connection holds none.

A read, and all that is made of it, is one synchronous step. So all connections of a thread, and therefore of an event
loop, share one read buffer. A message that does not arrive whole is put together in an `Assembly`; long ones take turns
with one spare buffer of the thread, because fresh memory costs more (the kernel clears each page of it) than all the
copies together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from .._net.forks import in_each_child

__all__ = ["READ_SIZE", "Assembly", "MaskingKeys", "SharedBuffers", "masking_keys", "shared_buffers"]

READ_SIZE: Final = 256 * 1024
"""Bytes that are read at once."""

_RECORD_SIZE = 16 * 1024
"""Bytes that TLS decrypts at once."""

_KEYS_AT_ONCE = 256

_LONG = 64 * 1024
_MAX_SPARE_SIZE = 4 * 2**20


class SharedBuffers(threading.local):
    """Buffers that the connections of one thread share.

    Attributes:
        spare: Buffer for a long message, while none is put together in it.
    """

    def __init__(self) -> None:
        self._layers = [memoryview(bytearray(READ_SIZE))]
        self.spare: memoryview | None = None

    def of_layer(self, number: int) -> memoryview:
        """The buffer for what comes from the socket (0), what TLS makes of that (1), and TLS within it (2)."""
        while number >= len(self._layers):
            self._layers.append(memoryview(bytearray(_RECORD_SIZE)))
        return self._layers[number]

    def take_spare(self, size: int) -> memoryview | None:
        """The spare buffer, if there is one of at least this size."""
        spare = self.spare
        if spare is None or len(spare) < size:
            return None
        self.spare = None
        return spare

    def give_back(self, buffer: memoryview) -> None:
        """Keep a buffer as the spare one, if it is a better one."""
        if _LONG < len(buffer) <= _MAX_SPARE_SIZE and (self.spare is None or len(self.spare) < len(buffer)):
            self.spare = buffer


shared_buffers = SharedBuffers()


class MaskingKeys(threading.local):
    """Masking keys for outgoing frames: unpredictable ones, as RFC 6455 (section 10.3) asks for.

    The system is asked for hundreds at once: to ask it at each frame takes longer than all else that is done to a short
    one. (They are in a list and not in a generator, which a KeyboardInterrupt would end for good.)

    Attributes:
        take: Gives a key that was never given before. Raises `IndexError` where `draw` has to be called.
    """

    def __init__(self) -> None:
        self._unused: list[bytes] = []
        self.take: Callable[[], bytes] = self._unused.pop

    def draw(self) -> bytes:
        """Ask the system for keys, and give the first of them."""
        random = os.urandom(4 * _KEYS_AT_ONCE)
        self._unused += [random[start : start + 4] for start in range(0, len(random), 4)]
        return self.take()

    def next(self) -> bytes:
        """Give a key that was never given before."""
        try:
            return self.take()
        except IndexError:
            return self.draw()

    def forget(self) -> None:
        """Give none of those that were drawn: after a fork, the other process will."""
        self._unused.clear()


masking_keys = MaskingKeys()
in_each_child(masking_keys.forget)


class Assembly:
    """A message, as far as it has come.

    Its memory grows with what has come, not with what was announced: at most twice as much, and `READ_SIZE`.
    """

    __slots__ = ("_buffer", "size")

    def __init__(self) -> None:
        self._buffer: memoryview | None = None
        self.size = 0

    def append(self, data: memoryview | bytes, missing: int) -> None:
        """Add bytes, of which `missing` more are announced."""
        end = self.size + len(data)
        buffer = self._buffer
        if buffer is None or len(buffer) < end:
            buffer = self._grow(end, end + missing)
        buffer[self.size : end] = data
        self.size = end

    def room(self, missing: int) -> memoryview:
        """The buffer for the next of `missing` announced bytes; `extend` then adds them."""
        start = self.size
        buffer = self._buffer
        wanted = start + min(missing, READ_SIZE)
        if buffer is None or len(buffer) < wanted:
            buffer = self._grow(wanted, start + missing)
        return buffer[start : start + missing]

    def extend(self, size: int) -> None:
        """Add bytes that were read into `room`."""
        self.size += size

    def text(self) -> str:
        """The message as text.

        Raises:
            UnicodeDecodeError: The text is not UTF-8.
        """
        return "" if self._buffer is None else str(self._buffer[: self.size], "utf-8")

    def binary(self) -> bytes:
        """The message as bytes."""
        return b"" if self._buffer is None else self._buffer[: self.size].tobytes()

    def clear(self) -> None:
        """Begin the next message."""
        if self._buffer is not None:
            shared_buffers.give_back(self._buffer)
            self._buffer = None
        self.size = 0

    def _grow(self, needed: int, announced: int) -> memoryview:
        """Make room for `needed` bytes, and more where more will come, so that growing is rare."""
        outgrown = self._buffer
        size = min(announced, max(2 * needed, READ_SIZE))
        if outgrown is not None:
            size = max(size, 2 * len(outgrown))
        grown = shared_buffers.take_spare(size) if size > _LONG else None
        if grown is None:
            grown = memoryview(bytearray(size))
        self._buffer = grown
        if outgrown is not None:
            grown[: self.size] = outgrown[: self.size]
            shared_buffers.give_back(outgrown)
        return grown
