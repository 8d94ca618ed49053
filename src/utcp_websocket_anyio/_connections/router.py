"""Which of the exchanges on a shared connection a message is offered to.

Most exchanges are told apart by one value at one place of each message, such as ``{"id": "{{call_id}}"}``. The router
keeps these in a table by place and value, so that a message costs one look-up per distinct place and not one filter per
exchange; an exchange without such a value is offered everything. The table only narrows down: the exchange's own
filters decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .._templates.filters import MISSING, lookup
from .._templates.received import Message, ResponseError

if TYPE_CHECKING:
    from ..errors import WebSocketError

__all__ = ["Recipient", "Router"]

Path = tuple[str | int, ...]


class Recipient(Protocol):
    """One exchange, as a shared connection sees it."""

    correlation: tuple[Path, Any] | None
    """The place and value that every message for this recipient has; None: unknown. Fixed while it is joined."""

    def offer(self, message: Message) -> None:
        """Take the message if it is meant for this recipient. Must neither raise nor wait."""

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone."""


class Router:
    """The recipients of one connection."""

    def __init__(self) -> None:
        self._everything: dict[int, Recipient] = {}
        self._by_value: dict[Path, dict[Any, list[Recipient]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, recipient: Recipient) -> None:
        self._count += 1
        if recipient.correlation is None:
            self._everything[id(recipient)] = recipient
            return
        path, value = recipient.correlation
        self._by_value.setdefault(path, {}).setdefault(value, []).append(recipient)

    def remove(self, recipient: Recipient) -> None:
        """Forget a recipient; one that is not there is fine."""
        if recipient.correlation is None:
            found = self._everything.pop(id(recipient), None) is not None
        else:
            path, value = recipient.correlation
            same_value = self._by_value.get(path, {}).get(value, [])
            found = recipient in same_value
            if found:
                same_value.remove(recipient)
                if not same_value:
                    del self._by_value[path][value]
                    if not self._by_value[path]:
                        del self._by_value[path]
        self._count -= found

    def route(self, message: Message) -> None:
        """Offer a message to everyone it may be for."""
        for recipient in self._candidates(message):
            recipient.offer(message)

    def everyone(self) -> list[Recipient]:
        indexed = [r for values in self._by_value.values() for same in values.values() for r in same]
        return [*self._everything.values(), *indexed]

    def _candidates(self, message: Message) -> list[Recipient]:
        candidates = list(self._everything.values())
        if self._by_value:
            try:
                content = message.json()
            except ResponseError:
                return candidates
            for path, values in self._by_value.items():
                found = lookup(content, path)
                if found is not MISSING and not isinstance(found, (dict, list)):
                    candidates += values.get(found, ())
        return candidates
