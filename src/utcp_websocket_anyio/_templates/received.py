"""One incoming message, and what can be wrong with it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["Message", "ResponseError"]

_EXCERPT_LENGTH = 100
_UNSET: Any = object()


class ResponseError(Exception):
    """A message is not what the call template says it is.

    It knows nothing of the endpoint; the exchange turns it into the caller's error. It shows at most the
    first 100 characters of the message.
    """


class Message:
    """A text or binary message, or one record of it. Its JSON is parsed at most once, and only when asked for.

    Args:
        data: Message as received.
        frame: ``"text"`` or ``"binary"``: how it came. A record of a binary message may be text.
    """

    __slots__ = ("_frame", "_is_claimed", "_json", "_text", "data")

    def __init__(self, data: str | bytes, frame: str | None = None) -> None:
        self.data: str | bytes = data
        self._frame = frame
        self._is_claimed = False
        self._json: Any = _UNSET
        self._text: str | None = data if isinstance(data, str) else _UNSET

    def __repr__(self) -> str:
        return f"<Message, {'text' if self.is_text else 'binary'}, {len(self.data)}>"

    @property
    def frame(self) -> str:
        """``"text"`` or ``"binary"``: how it came. A record of a binary message may be text."""
        if self._frame is None:
            return "text" if isinstance(self.data, str) else "binary"
        return self._frame

    @property
    def is_text(self) -> bool:
        return isinstance(self.data, str)

    @property
    def size(self) -> int:
        """The length of the message in bytes."""
        data = self.data
        return len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode(errors="surrogatepass"))

    def claimed(self, *, keep_parsed: bool) -> Message:
        """The message for one owner, who may change its parsed form; the same for a second one is a copy.

        Args:
            keep_parsed: False: parse it again when it is needed, and save the memory meanwhile.
        """
        if self._is_claimed:
            return Message(self.data, self._frame)
        self._is_claimed = True
        if not keep_parsed:
            self._json = _UNSET
        return self

    def json(self) -> Any:
        """The message as JSON; a binary one is taken as UTF-8.

        Raises:
            ResponseError: The message is not JSON as `json.loads` reads it.
        """
        parsed = self._json
        if parsed is _UNSET:
            parsed = self._json = self._parsed()
        if isinstance(parsed, ResponseError):
            raise ResponseError(*parsed.args)
        return parsed

    def text(self) -> str:
        """The message as text.

        Raises:
            ResponseError: The message is binary and not UTF-8.
        """
        text = self.text_or_none()
        if text is None:
            raise ResponseError(f"the message is not text: {self._excerpt()}")
        return text

    def text_or_none(self) -> str | None:
        """The message as text; None if it is binary and not UTF-8."""
        text = self._text
        if text is _UNSET:
            assert isinstance(self.data, bytes)
            try:
                text = self.data.decode()
            except UnicodeDecodeError:
                text = None
            self._text = text
        return text

    def content(self) -> Any:
        """The JSON value of the message if it is JSON, otherwise the message as it came."""
        try:
            return self.json()
        except ResponseError:
            return self.data

    def _parsed(self) -> Any:
        text = self.text_or_none()
        if text is not None:
            try:
                # Not json.loads of bytes: that would take UTF-16 and UTF-32 as well. How deep JSON may be nested is
                # bounded by the parser, which is written in C; nothing that reads the value here is recursive.
                return json.loads(text)
            except (ValueError, RecursionError):
                pass
        return ResponseError(f"the message is not JSON: {self._excerpt()}")

    def _excerpt(self) -> str:
        return repr(self.data[:_EXCERPT_LENGTH])
