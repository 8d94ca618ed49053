"""Classifies the messages of an exchange: each is nothing to it, a response, an error of the tool, or the end.

Pure: it depends on the plan, the call's values and the message, and on nothing that came before. A message is
*classified* where it is read; its *value*, what the caller gets, is made when the caller takes it. So what waits in a
queue is what came over the wire, and not its parsed form, which can take 25 times the memory.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from .._connections.texts import error_text, shortened
from .._templates.encoders import text_of
from .._templates.received import Message, ResponseError
from ..errors import WebSocketToolError

if TYPE_CHECKING:
    from .._templates.plan import Plan
    from .._templates.values import RenderContext

__all__ = ["RESPONSE", "Meaning", "ResponseClassifier", "may_be_envelope"]

_ENVELOPES = ("tool_response", "tool_error", "stream_end")


class Meaning(enum.Enum):
    """The meaning of a message to an exchange."""

    SKIP = enum.auto()
    RESPONSE = enum.auto()
    LAST = enum.auto()
    ERROR = enum.auto()
    END = enum.auto()


RESPONSE: Final = Meaning.RESPONSE
"""A name of its own for what nearly every message is: looking up a member of an enum takes as long as a call."""


class ResponseClassifier:
    """Classifies and reads messages by the rules of one call.

    Args:
        plan: The compiled call template.
        context: Values of the placeholders in its filters.
        streaming: True if an envelope needs no `request_id`.
    """

    __slots__ = ("_context", "_plan", "_streaming")

    def __init__(self, plan: Plan, context: RenderContext, streaming: bool) -> None:
        self._plan = plan
        self._context = context
        self._streaming = streaming

    def takes_all(self, messages: Collection[str | bytes]) -> bool:
        """True if each of the messages is a response just as it is; False also if that takes a closer look."""
        if not self._plan.takes_messages_as_they_are:
            return False
        if len(messages) >= _MANY and sum(map(len, messages)) <= _SHORT * len(messages):
            # Searching many short ones at once takes a tenth of the time.
            try:
                if not _names_envelope("".join(messages)):  # type: ignore[arg-type]  # binary ones are a TypeError
                    return True
            except TypeError:
                pass
        return not any(map(may_be_envelope, messages))

    def classify(self, message: Message) -> Meaning:
        """The meaning of a message, by the order of the filters.

        Raises:
            ResponseError: A filter cannot be applied to it.
        """
        plan, context = self._plan, self._context
        if plan.is_filtered:
            if plan.error_filter is not None and plan.error_filter.matches(message, context):
                return Meaning.ERROR
            if plan.last_filter is not None and plan.last_filter.matches(message, context):
                return Meaning.LAST
            if plan.end_filter is not None and plan.end_filter.matches(message, context):
                return Meaning.END
            if plan.message_filter is not None and not plan.message_filter.matches(message, context):
                return Meaning.SKIP
        envelope = self._envelope(message) if plan.may_have_envelopes else None
        if envelope is None:
            return RESPONSE
        request_id = envelope.get("request_id")
        if request_id is not None and request_id != context.uuid:
            return Meaning.SKIP
        return _ENVELOPE_MEANINGS[envelope["type"]]

    def value(self, message: Message) -> Any:
        """A response as the caller gets it.

        Raises:
            ResponseError: It cannot be read as the template says.
        """
        plan = self._plan
        if plan.result is not None:
            part = plan.result.extract(message, self._context)
            return Message(part).json() if plan.result.is_text and plan.response_format == "json" else part
        form = plan.response_format
        if form == "raw":
            return message.data
        envelope = self._envelope(message)
        if envelope is not None:
            return envelope.get("result")
        if form is None:
            return message.data
        return message.json() if form == "json" else message.text()

    def tool_error(self, message: Message, display_url: str) -> WebSocketToolError:
        """The error of a message that means one. Its text is what an agent's model gets to read."""
        return WebSocketToolError(
            self._error_result(message) or error_text(message.content()),
            response=message.content(),
            endpoint=display_url,
        )

    def _error_result(self, message: Message) -> str | None:
        if self._plan.error_result is None:
            return None
        try:
            value = self._plan.error_result.extract(message, self._context)
        except (ResponseError, ValueError):
            return None
        return None if value is None else shortened(text_of(value) if not isinstance(value, bytes) else repr(value))

    def why_skipped(self, message: Message) -> str:
        """Why a message means nothing, without any value of it."""
        filter_ = self._plan.message_filter
        if filter_ is None or filter_.matches(message, self._context):
            return "skipped: an envelope of another call"
        return f"skipped by message_filter: {filter_.difference(message, self._context)}"

    def _envelope(self, message: Message) -> dict[str, Any] | None:
        """The message as a UTCP envelope that is read as one here; None if it is an ordinary message."""
        # How an object begins, first: searching a long message takes as long as receiving it.
        if not (self._plan.may_have_envelopes and may_be_envelope(message.data)):
            return None
        try:
            content = message.json()
        except ResponseError:
            return None
        if not isinstance(content, dict) or content.get("type") not in _ENVELOPES:
            return None
        return content if self._streaming or content.get("request_id") is not None else None


_ENVELOPE_MEANINGS = {
    "tool_response": RESPONSE,
    "tool_error": Meaning.ERROR,
    "stream_end": Meaning.END,
}


_MANY: Final = 100
"""Messages that are worth searching at once, if they are short."""

_SHORT: Final = 1024
"""Their average length at most; a single long one among them would be copied as well."""

_LONG: Final = 8 * 1024
_END: Final = 1024
"""The length of a message from which on only so much of its beginning and of its end is searched."""

_FIRST_KEY: Final = re.compile(r'\s*\{\s*"(?:(type)"\s*:\s*"([^"]*)"|request_id"|result"|error")')


def may_be_envelope(data: str | bytes) -> bool:
    """False if a message is certainly no envelope. Nearly all are told apart without reading their JSON.

    To search all of a long one takes longer than to receive it. So one of more than 8 KiB is an envelope only if its
    first key is one of an envelope's, or its `type` lies in its first or last KiB.
    """
    if isinstance(data, bytes):
        if data[:1] not in b"{ \t\n\r":
            return False
        data = data.decode("latin-1")  # what is looked for is ASCII
    elif data[:1] not in "{ \t\n\r":
        return False
    if len(data) > _LONG:
        first = _FIRST_KEY.match(data)
        if first is None:
            data = data[:_END] + data[-_END:]
        elif first[1]:
            return first[2] in _ENVELOPES
    return _names_envelope(data)


def _names_envelope(text: str) -> bool:
    return '"type"' in text and ("tool_" in text or "stream_end" in text)
