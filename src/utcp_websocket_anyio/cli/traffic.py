"""Display of the messages of a connection: time, direction, content, and how each was classified."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, Literal

from .output import echo, is_terminal, json_text, note, paint

__all__ = ["Direction", "Traffic", "bytes_in_words"]

Direction = Literal["sent", "received", "note", "closed"]

_MARKS: dict[Direction, tuple[str, str]] = {
    "sent": (">", "cyan"),
    "received": ("<", "green"),
    "note": ("*", "blue"),
    "closed": ("x", "red"),
}
_MARGIN = " " * len("00:00:00.000 < ")
_SHOWN_BYTES = 64
# Meanings of messages for the connection itself: its steps, heartbeat and replies.
_OF_CONNECTION = re.compile(r"(skipped by )?(step \d+ of (prepare|on_connect)|on_message|(answer to )?heartbeat)")
_PLAIN = ("request", "response", "typed")


class Traffic:
    """Writes a line for each message.

    Args:
        as_json: Each as a JSON object instead.
        err: True to write to stderr, because the command's result is on stdout.
        meanings: Show what requests and responses were taken for; without, only what other messages were.
        above: A context manager that is entered for every writing.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        err: bool = False,
        meanings: bool = True,
        above: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._as_json = as_json
        self._err = err
        self._meanings = meanings
        self._above = above
        self._left: int | None = None
        self._enough: Callable[[], object] = bool
        self.failure: OSError | None = None
        """Why nothing can be written any more."""
        self.renamed: dict[str, str] = {}
        """Other names for meanings."""
        self.on_first: Callable[[], object] | None = None
        """Called once, before anything is written."""

    def limit(self, count: int | None, enough: Callable[[], object]) -> None:
        """Show at most `count` received messages, then call `enough`. Those of the login, for example, do not count."""
        self._left = count
        self._enough = enough

    def __call__(self, direction: Literal["sent", "received", "note"], data: str | bytes, meaning: str) -> None:
        """Show a message, as an observer of connections. It must not raise: an error is kept in `failure`."""
        try:
            self._tell(direction, data, meaning)
        except OSError as error:
            self.failure = error
            self._left = 0
            self._enough()

    def _tell(self, direction: Literal["sent", "received", "note"], data: str | bytes, meaning: str) -> None:
        if self.is_full:
            return
        if direction == "note":
            self.remark(data if isinstance(data, str) else bytes_in_words(data), meaning or None)
            return
        meaning = self.renamed.get(meaning, meaning)
        is_plain = not self._meanings and meaning in _PLAIN
        self.message(direction, data, None if is_plain or not meaning else meaning)
        if direction == "received" and self._left is not None and not _OF_CONNECTION.match(meaning):
            self._left -= 1
            if self._left == 0:
                self._enough()

    @property
    def is_full(self) -> bool:
        """True if as many messages were shown as `limit` says."""
        return self._left == 0

    def message(self, direction: Direction, data: str | bytes, taken_for: str | None = None) -> None:
        """Show a message.

        Args:
            taken_for: Classification of the message.
        """
        if self._as_json:
            content: dict[str, Any] = {"text": data} if isinstance(data, str) else _bytes_as_json(data)
            self._write_json(direction, content | ({} if taken_for is None else {"taken_for": taken_for}))
        else:
            self._write(direction, data if isinstance(data, str) else bytes_in_words(data), taken_for)

    def remark(self, text: str, meaning: str | None = None) -> None:
        """Show an event of the connection. It is not a message, so it goes to stderr."""
        if not self._err:
            self._begin()
            with self._above():
                note(text)
        elif self._as_json:
            self._write_json("note", {"text": text})
        else:
            self._write("note", text, meaning)

    def closed(self, code: int, reason: str) -> None:
        """Show the end of a connection."""
        if self._as_json:
            self._write_json("closed", {"code": code, "reason": reason})
        else:
            self._write("closed", f"closed: {code} {reason}".rstrip(), None)

    def _begin(self) -> None:
        if self.on_first is not None:
            on_first, self.on_first = self.on_first, None
            on_first()

    def _write(self, direction: Direction, text: str, taken_for: str | None) -> None:
        self._begin()
        now = datetime.now(UTC).astimezone()
        mark, colour = _MARKS[direction]
        time = paint(f"{now:%H:%M:%S}.{now.microsecond // 1000:03} ", err=self._err, dim=True)
        with self._above():
            if is_terminal(err=self._err):
                # A line of ours begins at the margin, and no line of others does.
                text = text.rstrip("\n").replace("\n", "\n" + _MARGIN)
            echo(text, prefix=time + paint(f"{mark} ", err=self._err, fg=colour), err=self._err)
            if taken_for is not None:
                echo(taken_for.replace("\n", " "), prefix=_MARGIN, style={"dim": True}, err=self._err)

    def _write_json(self, event: Direction, content: dict[str, Any]) -> None:
        self._begin()
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._above():
            echo(json_text({"time": time, "event": event, **content}), err=self._err)


def bytes_in_words(data: bytes) -> str:
    """A binary message for a reader: its text, if it is text, otherwise its first bytes in hexadecimal."""
    length = f"binary, {len(data)} byte{'' if len(data) == 1 else 's'}"
    text = _as_text(data)
    if text is not None:
        return f"{length}, text: {text}"
    more = " …" if len(data) > _SHOWN_BYTES else ""
    return f"{length}: {data[:_SHOWN_BYTES].hex(' ')}{more}"


def _bytes_as_json(data: bytes) -> dict[str, Any]:
    text = _as_text(data)
    return {"binary": base64.b64encode(data).decode(), **({} if text is None else {"text": text})}


def _as_text(data: bytes) -> str | None:
    """The text that bytes are, if they look like text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    readable = all(character.isprintable() or character in "\r\n\t" for character in text)
    return text if text and readable else None
