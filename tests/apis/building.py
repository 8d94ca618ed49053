"""The arguments of a case, made from its JSON.

``{"$bytes": {"base64": …}}`` and ``{"$bytes": {"pattern": "ramp" or "zero", "n": N}}`` are bytes; ``{"$feed": […]}``
is an asynchronous iterable of values, with ``{"wait_s": seconds}`` and ``{"repeat": n, "value": …, "every_s":
seconds}`` in it; ``{"$saved": name}`` is what an earlier step has saved, and ``{"$argument": name}`` an argument of
the operation.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio

__all__ = ["build"]


def build(value: Any, known: Mapping[str, Any] | None = None) -> Any:
    """The value that some JSON stands for."""
    known = known or {}
    if isinstance(value, list):
        return [build(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$feed": entries}:
            return _feed(entries)
        case {"$saved": name} | {"$argument": name}:
            return known[name]
        case {"$bytes": {"base64": text}}:
            return base64.b64decode(text)
        case {"$bytes": {"pattern": pattern, "n": size}}:
            return bytes(size) if pattern == "zero" else bytes(i % 251 for i in range(size))
    return {key: build(item, known) for key, item in value.items()}


async def _feed(entries: list[Any]) -> AsyncIterator[Any]:
    for entry in entries:
        match entry:
            case {"wait_s": seconds}:
                await anyio.sleep(seconds)
            case {"repeat": times, "value": value, "every_s": seconds}:
                for _ in range(times):
                    yield build(value)
                    await anyio.sleep(seconds)
            case _:
                yield build(entry)
