"""What arrives between the calls of a session, for both kinds of connection.

A session's connection has state that its calls share, so what the server pushes while none of them takes messages is
not thrown away: it is kept until a call with a `message_filter` takes or skips it. A call that has all its responses
takes no more, although it may not have left yet: what came with its last response is for the next call.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .._templates.received import Message

__all__ = ["BetweenCalls"]


class SessionCall(Protocol):
    """A call of a session."""

    @property
    def takes_messages(self) -> bool:
        """True if a message that comes now is for this call, to be taken or skipped."""

    def accept(self, message: Message) -> None:
        """Take or skip a message."""


class BetweenCalls:
    """The messages that one connection keeps.

    Attributes:
        size: Their bytes.
    """

    def __init__(self) -> None:
        self.size = 0
        self._messages: deque[Message] = deque()
        self._calls: list[SessionCall] = []

    def __len__(self) -> int:
        return len(self._messages)

    def call_began(self, call: SessionCall) -> None:
        """A call uses the connection."""
        self._calls.append(call)

    def call_ended(self, call: SessionCall) -> None:
        """It has left."""
        self._calls.remove(call)

    def keep(self, message: Message) -> bool:
        """Keep a message, unless it is for a call that is running."""
        if any(call.takes_messages for call in self._calls):
            return False
        self._messages.append(message)
        self.size += message.size
        return True

    def show(self, call: SessionCall) -> None:
        """Show the messages to a call, as far as it takes any; the others stay."""
        while self._messages and call.takes_messages:
            message = self._messages.popleft()
            self.size -= message.size
            call.accept(message)
