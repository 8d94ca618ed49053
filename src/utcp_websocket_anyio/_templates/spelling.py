"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["is_one_edit_away", "known_names", "near_or_shown_name", "shown_name", "unknown_name"]

_MAX_SHOWN = 60


def is_one_edit_away(one: str, other: str) -> bool:
    """True if one inserted, left out or changed character, or two neighbours exchanged, make one name the other."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    first = 0
    while first < min(len(one), len(other)) and one[first] == other[first]:
        first += 1
    rest, other_rest = one[first:], other[first:]
    return (
        rest[1:] == other_rest[1:]
        or rest[1:] == other_rest
        or rest == other_rest[1:]
        or (rest[:2] == other_rest[1::-1] and len(rest) > 1 and rest[2:] == other_rest[2:])
    )


def shown_name(name: object) -> str:
    """A name that a stranger chose, as it may be put into a log or an error: short, and without control characters."""
    text = str(name)
    text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return text if text.isascii() and text.isidentifier() else ascii(text)


def near_or_shown_name(name: object, known: Iterable[str]) -> str:
    """A name that does not exist, and the nearest that does, if one is near."""
    nearest = difflib.get_close_matches(str(name)[:_MAX_SHOWN], list(known), n=1, cutoff=0.7)
    return f"{shown_name(name)} (did you mean {nearest[0]}?)" if nearest else shown_name(name)


def unknown_name(name: object, known: Iterable[str], what: str) -> str:
    """An error about a name that does not exist."""
    return f"unknown {what} {str(name)[:_MAX_SHOWN]!a}; {known_names(name, known)}"


def known_names(name: object, known: Iterable[str]) -> str:
    """A hint for a name that does not exist: the nearest known name, or all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(str(name)[:_MAX_SHOWN], names, n=1, cutoff=0.7)
    return f"did you mean {nearest[0]!r}?" if nearest else f"use one of {', '.join(names)}"
