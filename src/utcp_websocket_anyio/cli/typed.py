"""Input while a command runs: lines of a pipe, or a prompt below the messages.

Reading stdin blocks, and what blocks in a thread cannot be cancelled; so the thread is a daemon, which the process does
not wait for. It reads the descriptor itself, because a thread that is left inside of `sys.stdin` keeps its lock. At a
prompt it is inside of readline, which has the terminal in its hands: `Prompt.close` gives it back.

readline is what Unix has. Without it, on Windows, the console edits the line and remembers what was typed.
"""

from __future__ import annotations

import codecs
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import anyio

from .._net.wakeup import Wakeup
from .output import console

__all__ = ["Chunks", "Lines", "Pipe", "Prompt", "Silence", "open_lines"]

Item = TypeVar("Item")

_PROMPT = "> "
_MAX_WAITING = 100
_CHUNK = 65536


class Lines(Protocol):
    """A source of lines."""

    ends_session: bool
    """True if nothing is left to do when the lines end, because the user typed Ctrl-D."""

    async def next(self) -> str | None:
        """The next line without its end; None after the last one."""

    @contextmanager
    def above(self) -> Iterator[None]:
        """Write something in this block; the prompt, if there is one, stays below it."""

    def close(self) -> None:
        """Stop reading."""


def open_lines(sent: Sequence[str] = ()) -> Lines:
    """The lines of stdin: with a prompt if it and stdout are a terminal.

    Args:
        sent: Lines that the prompt has in its history from the start.
    """
    if not sys.stdin.isatty():
        return Pipe()
    if _is_in_background():
        return Silence()
    return Prompt(sent) if sys.stdout.isatty() else Pipe()


def _is_in_background() -> bool:
    """True if reading from the terminal would stop the process: another one has it."""
    try:
        return os.getpgrp() != os.tcgetpgrp(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        # Windows has no such thing.
        return False


class Silence:
    """No lines, for as long as it takes."""

    ends_session = False

    async def next(self) -> str | None:
        """Wait for ever."""
        await anyio.sleep_forever()
        return None

    @contextmanager
    def above(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        """There is nothing to close."""


class _Reader(Generic[Item]):
    """A thread that reads items for a task of whichever event loop."""

    ends_session = False

    def __init__(self) -> None:
        self._items: deque[Item | None] = deque()
        # The thread must not read a large file into memory ahead of a slow endpoint.
        self._room = threading.Semaphore(_MAX_WAITING)
        self._wakeup: Wakeup | None = None
        self._started = False

    async def next(self) -> Item | None:
        """The next item; None after the last one."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="utcp-ws stdin", daemon=True).start()
        while not self._items:
            self._wakeup = Wakeup()
            # The thread may have come in between; what it puts after this line, it wakes for.
            if not self._items:
                await self._wakeup.wait()
        self._room.release()
        return self._items.popleft()

    def _run(self) -> None:
        try:
            for item in self._read():
                self._put(item)
        except (OSError, ValueError):
            # stdin was closed.
            pass
        self._put(None)

    def _put(self, item: Item | None) -> None:
        self._room.acquire()
        self._items.append(item)
        if self._wakeup is not None:
            self._wakeup.set()

    def _read(self) -> Iterator[Item]:
        raise NotImplementedError


class Chunks(_Reader[bytes]):
    """The bytes of stdin as they come, in pieces of a size; only the last one may be shorter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if (piece := await self.next()) is None:
            raise StopAsyncIteration
        return piece

    def _read(self) -> Iterator[bytes]:
        held = b""
        for data in _stdin():
            held += data
            while len(held) >= self._size:
                yield held[: self._size]
                held = held[self._size :]
        if held:
            yield held


def _stdin() -> Iterator[bytes]:
    """The bytes of stdin as they arrive."""
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):
        # stdin is not a file, as in a test.
        yield sys.stdin.buffer.read()
        return
    while data := os.read(descriptor, _CHUNK):
        yield data


class Pipe(_Reader[str]):
    """Lines from a pipe, a file, or a terminal whose output goes elsewhere."""

    @contextmanager
    def above(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        """Leave the thread behind; it holds nothing."""

    def _read(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        rest = ""
        for data in _stdin():
            *lines, rest = (rest + decoder.decode(data)).split("\n")
            yield from (line.removesuffix("\r") for line in lines)
        if rest := rest + decoder.decode(b"", final=True):
            yield rest


class Prompt(_Reader[str]):
    """A prompt in the last line of a terminal, with history and completion of what was typed before.

    Two threads write to the terminal: readline echoes what is typed, and the event loop's writes messages above it. The
    lock keeps one out while the other draws the prompt; from then on readline only writes when a key is pressed.
    """

    ends_session = True

    def __init__(self, sent: Sequence[str] = ()) -> None:
        super().__init__()
        self._readline = _optional("readline")
        self._restore = _terminal_restorer()
        self._drawing = threading.Lock()
        self._taken = threading.Event()
        self._holds = False
        self._is_open = False
        self._typed = [line for line in sent if "\n" not in line]
        if self._readline is not None:
            _prepare(self._readline, self._completed)
            for line in self._typed:
                self._readline.add_history(line)
            self._readline.set_pre_input_hook(self._opened)

    async def next(self) -> str | None:
        # What was typed before has been sent and shown by now; there may be a prompt again.
        self._taken.set()
        return await super().next()

    @contextmanager
    def above(self) -> Iterator[None]:
        with self._drawing:
            redraw = self._is_open and self._redraws
            if redraw:
                _clear_line(self._shown())
            yield
            if redraw:
                sys.stdout.write(self._shown())
                sys.stdout.flush()

    def close(self) -> None:
        """Take the prompt away and give the terminal back as it was."""
        with self._drawing:
            if self._is_open and self._redraws:
                _clear_line(self._shown())
            self._is_open = False
        self._restore()

    def _shown(self) -> str:
        return _PROMPT + ("" if self._readline is None else self._readline.get_line_buffer())

    @property
    def _redraws(self) -> bool:
        """True if it is known what is in the last line, and the terminal can remove it."""
        return self._readline is not None and not console().is_dumb_terminal

    def _read(self) -> Iterator[str]:
        while (line := self._ask()) is not None:
            if line.strip():
                self._typed.append(line)
                self._taken.clear()
                yield line
                self._taken.wait()

    def _ask(self) -> str | None:
        self._drawing.acquire()
        self._holds = True
        if self._readline is None:
            self._opened()
        try:
            line = input(_PROMPT)
        except EOFError:
            line = None
        if self._holds:
            # The hook was not called, because there was nothing to wait for.
            self._opened()
        with self._drawing:
            self._is_open = False
            if self._redraws:
                # What is sent is shown with its time; the line that was typed makes room for it.
                if line is not None:
                    sys.stdout.write("\x1b[1A")
                _clear_line(_PROMPT + (line or ""))
        return line

    def _opened(self) -> None:
        """The prompt is there, and readline waits for a key."""
        self._is_open = True
        self._holds = False
        self._drawing.release()

    def _completed(self, text: str, state: int) -> str | None:
        found = [line for line in dict.fromkeys(reversed(self._typed)) if line.startswith(text)]
        return found[state] if state < len(found) else None


def _clear_line(shown: str) -> None:
    """Remove what is shown in the last line or, where it is longer than that, the last lines."""
    above = max(0, len(shown) - 1) // max(1, console().width)
    sys.stdout.write((f"\x1b[{above}A" if above else "") + "\r\x1b[J")
    sys.stdout.flush()


def _prepare(readline: ModuleType, complete: Callable[[str, int], str | None]) -> None:
    readline.set_completer(complete)
    # The whole line is what is completed.
    readline.set_completer_delims("")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def _terminal_restorer() -> Callable[[], None]:
    termios: Any = _optional("termios")
    if termios is None:
        return lambda: None
    try:
        attributes = termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, termios.error):
        return lambda: None
    return lambda: termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)


def _optional(name: str) -> ModuleType | None:
    """A module of the standard library that not every system has."""
    try:
        return __import__(name)
    except ImportError:
        return None
