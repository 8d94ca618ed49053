"""The TLS settings of every connection that is given none."""

from __future__ import annotations

import functools
import ssl

__all__ = ["default_context"]


@functools.cache
def default_context() -> ssl.SSLContext:
    """Verification against the system's trust store, made once: loading it takes milliseconds."""
    return ssl.create_default_context()
