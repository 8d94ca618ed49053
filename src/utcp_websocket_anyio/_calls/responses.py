"""What a message means to an exchange: nothing, a response, an error of the tool, or the end.

Pure: a verdict depends on the plan, the call's values and the message, and on nothing that came before.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from .._templates.received import Message, ResponseError
from ..errors import WebSocketToolError

if TYPE_CHECKING:
    from .._templates.plan import Plan
    from .._templates.values import RenderContext

__all__ = ["END", "SKIP", "Mark", "ResponseClassifier"]

_ENVELOPES = ("tool_response", "tool_error", "stream_end")


class Mark(enum.Enum):
    """What a message can mean besides a response."""

    SKIP = enum.auto()
    END = enum.auto()


SKIP: Literal[Mark.SKIP] = Mark.SKIP
END: Literal[Mark.END] = Mark.END


class ResponseClassifier:
    """Reads messages by the rules of one call.

    Args:
        streaming: Whether responses are taken one by one, and an envelope needs no `request_id`.
        open_ended: Whether a message can be the end.
        display_url: The endpoint, for errors.
    """

    def __init__(
        self, plan: Plan, values: RenderContext, *, streaming: bool, open_ended: bool, display_url: str
    ) -> None:
        self._plan = plan
        self._values = values
        self._streaming = streaming
        self._end: Mark = END if open_ended else SKIP
        self._display_url = display_url

    def takes_all(self, messages: Collection[str | bytes]) -> bool:
        """Whether each of the messages is a response just as it is; False also where that takes a closer look."""
        return self._plan.takes_messages_as_they_are and not any(map(_may_be_envelope, messages))

    def classify(self, message: Message) -> Any:
        """What a message means: `SKIP`, `END`, or a response as the caller gets it.

        Raises:
            WebSocketToolError: It says that the tool failed.
            ResponseError: It cannot be read as the template says.
        """
        plan, values = self._plan, self._values
        if plan.error_filter is not None and plan.error_filter.matches(message, values):
            raise self._tool_error(message)
        if plan.end_filter is not None and plan.end_filter.matches(message, values):
            return self._end
        if plan.message_filter is not None and not plan.message_filter.matches(message, values):
            return SKIP
        if plan.result is not None:
            part = plan.result.extract(message)
            return Message(part).json() if plan.result.is_text and plan.response_format == "json" else part
        if plan.response_format == "raw":
            return message.data
        envelope = _envelope(message)
        if envelope is not None:
            meaning = self._opened(envelope, message)
            if meaning is not None:
                return meaning[0]
        if plan.response_format == "json":
            return message.json()
        return message.text() if plan.response_format == "text" else message.data

    def _opened(self, envelope: dict[str, Any], message: Message) -> tuple[Any] | None:
        """The verdict in a UTCP envelope; None when the message is an ordinary response."""
        request_id = envelope.get("request_id")
        if request_id is None and not self._streaming:
            return None
        if request_id is not None and request_id != self._values.uuid:
            return (SKIP,)
        kind = envelope["type"]
        if kind == "tool_error":
            raise self._tool_error(message)
        if kind == "stream_end":
            return (self._end,)
        return (envelope.get("result"),)

    def _tool_error(self, message: Message) -> WebSocketToolError:
        return WebSocketToolError(
            "the tool answered with an error; see .response",
            response=message.content(),
            endpoint=self._display_url,
        )


def _may_be_envelope(data: str | bytes) -> bool:
    # How an object begins, first: searching a long message takes as long as receiving it.
    if isinstance(data, str):
        return data[:1] in "{ \t\n\r" and '"type"' in data and ("tool_" in data or "stream_end" in data)
    return data[:1] in b"{ \t\n\r" and b'"type"' in data and (b"tool_" in data or b"stream_end" in data)


def _envelope(message: Message) -> dict[str, Any] | None:
    """The message as a UTCP envelope, if it is one. Most messages are told apart without reading their JSON."""
    if not _may_be_envelope(message.data):
        return None
    try:
        content = message.json()
    except ResponseError:
        return None
    return content if isinstance(content, dict) and content.get("type") in _ENVELOPES else None
