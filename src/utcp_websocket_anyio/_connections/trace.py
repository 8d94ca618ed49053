"""The interface of observers of a connection: every message, and how it was classified."""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["Trace"]


class Trace(Protocol):
    """Observes connections. It must not raise."""

    def __call__(self, direction: Literal["sent", "received", "note"], data: str | bytes, meaning: str) -> None:
        """A message was sent or received, or something else happened that a reader of the messages wants to know.

        Args:
            direction: Direction of the message.
            data: The message; for a note, what happened.
            meaning: Classification of the message: ``step 2 of on_connect``, ``response``, ``skipped by
                message_filter: …``; empty if there is nothing to say.
        """
