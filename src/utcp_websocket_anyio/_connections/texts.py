"""Excerpts of received text for error messages: an agent passes on `str(error)` and nothing else."""

from __future__ import annotations

from typing import Any

from .._templates.encoders import text_of

__all__ = ["error_text", "shortened"]

_MAX_LENGTH = 500


def error_text(content: Any) -> str:
    """The description of an error in a message: an object's `error` or `message` with its `code`, else all of it.

    Section 8 of the specification has the rule.
    """
    if isinstance(content, dict):
        error, holder = content.get("error"), content
        if isinstance(error, dict):
            holder, error = error, error.get("message")
        if error is None:
            error = content.get("message")
        if error is not None:
            code = holder.get("code", content.get("code"))
            text = text_of(error)
            return shortened(text if code is None or isinstance(code, (dict, list)) else f"{text_of(code)}: {text}")
    return shortened(repr(content) if isinstance(content, bytes) else text_of(content))


def shortened(text: str) -> str:
    """At most 500 characters, with control characters escaped."""
    if len(text) > _MAX_LENGTH:
        text = text[:_MAX_LENGTH] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
