"""Regular expressions with a time limit.

They come from manuals, and so from strangers. They run in the `regex` package, because its matcher can be given a time
limit; `re` would let one pattern block the event loop for as long as it likes.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import regex

from .placeholders import Placeholder, RenderContext
from .received import ResponseError

__all__ = ["Pattern", "compile_pattern", "escaped", "search"]

Pattern: TypeAlias = "regex.Pattern[str]"

_MATCHING_TIME = 0.1
"""Seconds that matching one pattern may take."""


def escaped(hole: Placeholder, values: RenderContext) -> str:
    """What a placeholder stands for, as a pattern that matches it and nothing else."""
    text = hole.text(values)
    return text if hole.encoder == "regex" else regex.escape(text)


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> Pattern:
    return regex.compile(pattern, regex.DOTALL)


def compile_pattern(pattern: str, where: str) -> Pattern:
    """Compile a regular expression.

    Args:
        where: Its place in the call template, for errors.

    Raises:
        ValueError: It is none.
    """
    try:
        return _compiled(pattern)
    except (regex.error, RecursionError) as error:
        fault = str(error)
    raise ValueError(f"{where}: is no valid regular expression: {fault}")


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
