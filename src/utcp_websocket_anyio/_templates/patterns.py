"""Regular expressions with limits: on what is compiled, and on the time that matching may take.

They come from manuals, and so from strangers. They run in the `regex` package, because its matcher can be given a time
limit; `re` would let one pattern block the event loop for as long as it likes.

A pattern with a placeholder is another one for each call. It is compiled once per call and kept with the call
(`RenderContext.memo`): neither our own nor `regex`'s cache sees it, as both are for the process. And it is compiled
only for a text that can match: where the pattern cannot do without a value, a text without the value needs no
pattern.

`regex` is imported with the first pattern: it is slow to load, and most templates have none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from .placeholders import Parts, Placeholder, RenderContext
from .received import ResponseError
from .values import is_unique, placeholders_of

if TYPE_CHECKING:
    import regex

__all__ = ["Pattern", "PatternTemplate", "compile_pattern", "search"]

Pattern: TypeAlias = "regex.Pattern[str]"

_MATCHING_TIME = 0.1
"""Seconds that matching one pattern may take."""

_MAX_LENGTH = 10_000
"""Characters of a pattern. Compiling takes about 5 µs for each."""


def compile_pattern(pattern: str, where: str) -> Pattern:
    """Compile a regular expression.

    Args:
        where: Its place in the call template, for errors.

    Raises:
        ValueError: The text is not a regular expression, or too long.
    """
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"{where}: a regular expression may have {_MAX_LENGTH} characters at most")
    import regex

    try:
        return regex.compile(pattern, regex.DOTALL, cache_pattern=False)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        reason = str(error) if isinstance(error, regex.error) else "it is too large"
    raise ValueError(f"{where}: is not a valid regular expression: {reason}")


def search(pattern: Pattern, text: str) -> regex.Match[str] | None:
    """Find a pattern in a text.

    Raises:
        ResponseError: It took too long.
    """
    try:
        return pattern.search(text, timeout=_MATCHING_TIME)
    except TimeoutError:
        pass
    raise ResponseError(f"matching a pattern took longer than {1000 * _MATCHING_TIME:.0f} ms")


class PatternTemplate:
    """A regular expression with placeholders, whose values are matched literally.

    Attributes:
        groups: The number of its groups.
    """

    __slots__ = ("_needs_values", "_pieces", "_placeholders", "_static", "_where", "groups")

    def __init__(self, parts: Parts, where: str) -> None:
        self._pieces = _literally(parts)
        self._where = where
        self._placeholders = placeholders_of(parts)
        self._static: Pattern | None = None
        tried = compile_pattern("".join([part if isinstance(part, str) else "x" for part in parts]), where)
        self.groups = tried.groups
        if not self._placeholders:
            self._static = tried
        self._needs_values = _needs_values(parts)

    def names_the_call(self, unique_captures: frozenset[str]) -> bool:
        """True if only a text that contains a value of the call's own can match."""
        return self._needs_values and any(is_unique(found, unique_captures) for found in self._placeholders)

    def pattern(self, context: RenderContext) -> Pattern:
        """The pattern for a call.

        Raises:
            ValueError: A value cannot be put into it.
        """
        if self._static is not None:
            return self._static
        text = "".join([piece if isinstance(piece, str) else _escaped(*piece, context) for piece in self._pieces])
        known = context.memo.get(self)
        if known is not None and known[0] == text:
            return known[1]  # type: ignore[no-any-return]  # from the memo, which holds anything
        pattern = compile_pattern(text, self._where)
        context.memo[self] = text, pattern
        return pattern

    def search(self, text: str, context: RenderContext) -> regex.Match[str] | None:
        """Find the pattern in a text.

        Raises:
            ResponseError: It took too long.
            ValueError: A value cannot be put into it.
        """
        if self._static is not None:
            return search(self._static, text)
        if self._needs_values and any(
            found.text(context) not in text for found in self._placeholders if found.encoders[-1:] != ("regex",)
        ):
            return None
        return search(self.pattern(context), text)


def _literally(parts: Parts) -> list[str | tuple[Placeholder, str]]:
    """Text, and placeholders with a format for their escaped values."""
    pieces: list[str | tuple[Placeholder, str]] = []
    before = ""
    for part, behind in zip(parts, (*parts[1:], ""), strict=False):
        if isinstance(part, str):
            pieces.append(part)
            before += part
            continue
        # A repetition that is written behind the placeholder is about all of its value. (In a set, nothing is.)
        is_repeated = isinstance(behind, str) and behind[:1] in ("?", "*", "+", "{") and "[" not in _bare(before)
        pieces.append((part, "(?:{})" if is_repeated else "{}"))
    return pieces


def _escaped(placeholder: Placeholder, form: str, context: RenderContext) -> str:
    import regex

    text = placeholder.text(context)
    return form.format(text if placeholder.encoders[-1:] == ("regex",) else regex.escape(text))


def _bare(text: str) -> str:
    """A pattern without what is escaped in it, and without its closed sets."""
    return re.sub(r"\[\^?\]?[^\[\]]*\]", "", re.sub(r"\\.", "", text))


def _needs_values(parts: Parts) -> bool:
    """True if the pattern surely cannot match without the values of its placeholders, as they are written.

    It is judged by what could make a part of a pattern optional or change its meaning: alternatives, repetitions of
    groups, lookarounds, and flags.
    """
    for text in [part for part in parts if isinstance(part, str)]:
        rest = _bare(text)
        if any(sign in rest for sign in _MAKE_OPTIONAL):
            return False
    return _not_repeated(parts)


_MAKE_OPTIONAL = ("|", ")?", ")*", "){", "[", "#", *(f"(?{sign}" for sign in "!(ixfebrwaLus-<"))


def _not_repeated(parts: Parts) -> bool:
    pairs = zip(parts, (*parts[1:], ""), strict=False)
    return not any(
        isinstance(part, Placeholder) and isinstance(behind, str) and behind[:1] in ("?", "*", "{")
        for part, behind in pairs
    )
