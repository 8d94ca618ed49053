"""Counters of one protocol object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import WebSocketError

__all__ = ["Counters", "Statistics", "total"]


@dataclass(frozen=True)
class Statistics:
    """A protocol object at one moment.

    Attributes:
        opening: Connections being established.
        idle: Open connections that no call uses.
        active: Open connections that calls use.
        closing: Connections in their farewell or closing handshake.
        waiting: Calls that wait for a connection.
        calls: Calls and streams begun so far.
        errors: Number of failed calls by the name of the error's class.
        reconnects: Attempts to connect after a failed one.
        resumes: Streams that went on after the loss of their connection.
        skipped: Messages that were not for the call they were offered to.
        bytes_sent: Payload bytes of sent messages, without framing, compression and TLS.
        bytes_received: Payload bytes of received messages, counted the same way.
    """

    opening: int = 0
    idle: int = 0
    active: int = 0
    closing: int = 0
    waiting: int = 0
    calls: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    reconnects: int = 0
    resumes: int = 0
    skipped: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


def total(parts: Iterable[Statistics]) -> Statistics:
    """The sum of statistics, figure by figure."""
    sums: dict[str, Any] = {}
    for part in parts:
        for figure in fields(Statistics):
            value = getattr(part, figure.name)
            if isinstance(value, Mapping):
                sums[figure.name] = MappingProxyType(Counter(sums.get(figure.name, {})) + Counter(value))
            else:
                sums[figure.name] = sums.get(figure.name, 0) + value
    return Statistics(**sums)


class Counters:
    """Running totals; each event is counted by the code that causes it."""

    def __init__(self) -> None:
        self.calls = 0
        self.reconnects = 0
        self.resumes = 0
        self.skipped = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self._errors: Counter[str] = Counter()

    def failed(self, error: WebSocketError) -> None:
        """Count a failed call."""
        self._errors[type(error).__name__] += 1

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of failed calls by the name of the error's class; a copy."""
        return MappingProxyType(dict(self._errors))
