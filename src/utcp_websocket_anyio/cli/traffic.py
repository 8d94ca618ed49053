"""How the messages of a connection are shown: time, direction, content, and what each was taken for."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, Literal

from .output import echo, is_terminal, json_text, paint

__all__ = ["Direction", "Traffic", "bytes_in_words"]

Direction = Literal["sent", "received", "connected", "closed"]

_MARKS: dict[Direction, tuple[str, str]] = {
    "sent": (">", "cyan"),
    "received": ("<", "green"),
    "connected": ("*", "blue"),
    "closed": ("x", "red"),
}
_MARGIN = " " * len("00:00:00.000 < ")
_SHOWN_BYTES = 64


class Traffic:
    """Writes a line for each message.

    Args:
        as_json: Each as a JSON object instead.
        err: To stderr, because the command's result is on stdout.
        above: What every writing happens in.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        err: bool = False,
        above: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._as_json = as_json
        self._err = err
        self._above = above

    def message(self, direction: Direction, data: str | bytes, taken_for: str | None = None) -> None:
        """Show a message.

        Args:
            taken_for: What it was taken for.
        """
        if self._as_json:
            content: dict[str, Any] = {"text": data} if isinstance(data, str) else _bytes_as_json(data)
            self._write_json(direction, content | ({} if taken_for is None else {"taken_for": taken_for}))
        else:
            self._write(direction, data if isinstance(data, str) else bytes_in_words(data), taken_for)

    def remark(self, text: str) -> None:
        """Show something that happened to the connection."""
        if self._as_json:
            self._write_json("connected", {"text": text})
        else:
            self._write("connected", text, None)

    def closed(self, code: int, reason: str) -> None:
        """Show the end of a connection."""
        if self._as_json:
            self._write_json("closed", {"code": code, "reason": reason})
        else:
            self._write("closed", f"closed: {code} {reason}".rstrip(), None)

    def _write(self, direction: Direction, text: str, taken_for: str | None) -> None:
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
