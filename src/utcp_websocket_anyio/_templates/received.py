"""One incoming message, and what can be wrong with it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["Message", "ResponseError"]

_SHOWN = 100


class ResponseError(Exception):
    """A message is not what the call template says it is.

    It knows nothing of the endpoint; whoever runs the exchange turns it into the caller's error. It shows at most the
    first 100 characters of the message.
    """


class Message:
    """A text or binary message. Its JSON is parsed at most once, and only when something asks for it."""

    __slots__ = ("_is_claimed", "_json", "data")

    def __init__(self, data: str | bytes) -> None:
        self.data = data
        self._is_claimed = False
        self._json: tuple[Any] | ResponseError | None = None

    def __repr__(self) -> str:
        return f"<Message, {'text' if self.is_text else 'binary'}, {len(self.data)}>"

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
            return Message(self.data)
        self._is_claimed = True
        if not keep_parsed:
            self._json = None
        return self

    def json(self) -> Any:
        """The message as JSON; a binary one is taken as UTF-8.

        Raises:
            ResponseError: It is no JSON as `json.loads` reads it.
        """
        parsed = self._json
        if parsed is None:
            try:
                # Not json.loads of bytes: that would take UTF-16 and UTF-32 as well.
                parsed = (json.loads(self.data if isinstance(self.data, str) else self.data.decode()),)
            except (ValueError, RecursionError):
                parsed = ResponseError(f"the message is not JSON: {self._excerpt()}")
            self._json = parsed
        if isinstance(parsed, ResponseError):
            raise ResponseError(*parsed.args)
        return parsed[0]

    def text(self) -> str:
        """The message as text.

        Raises:
            ResponseError: It is binary and no UTF-8.
        """
        if isinstance(self.data, str):
            return self.data
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            fault = f"the message is not text: {self._excerpt()}"
        raise ResponseError(fault)

    def content(self) -> Any:
        """The JSON value of the message where it is JSON, otherwise the message as it came."""
        try:
            return self.json()
        except ResponseError:
            return self.data

    def _excerpt(self) -> str:
        return repr(self.data[:_SHOWN])
