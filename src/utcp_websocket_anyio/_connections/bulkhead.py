"""The bulkhead: an unexpected error ends what it belongs to, and nothing else.

Background tasks serve many callers from one task group, where an exception that escapes cancels them all. So wherever
code of one connection or one call runs in such a task, whatever goes wrong in it is logged here, once, and becomes
that connection's or that call's own error.
"""

from __future__ import annotations

import logging
import traceback

from ..errors import WebSocketError

__all__ = ["internal_error", "log_internal_error"]


def log_internal_error(log: logging.Logger, error: BaseException, doing: str) -> None:
    """Log an unexpected error with its traceback, but without its text, which may quote a message."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("internal error while %s: %s\n%s", doing, type(error).__qualname__, frames)


def internal_error(error: BaseException, *, endpoint: str | None) -> WebSocketError:
    """The caller's error for an unexpected one. It names only the type, as the text may hold secrets."""
    return WebSocketError(f"internal error: {type(error).__qualname__}", endpoint=endpoint)
