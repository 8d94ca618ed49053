"""What an observer is told of a connection: every message, and what it was taken for."""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["Trace"]


class Trace(Protocol):
    """Observes connections. It must not raise."""

    def __call__(self, direction: Literal["sent", "received", "note"], data: str | bytes, meaning: str) -> None:
        """A message was sent or received, or something else happened that a reader of the messages wants to know.

        Args:
            direction: Which of them.
            data: The message; for a note, what happened.
            meaning: What the message was taken for: ``step 2 of on_connect``, ``response``, ``skipped by
                message_filter: …``; empty if there is nothing to say.
        """
