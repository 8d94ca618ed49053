"""Beginning anew in a process that was forked.

The child has one thread, the one that forked. A lock that another one held stays locked there, and what another one was
about to do is never done. So whatever threads share begins anew in the child: with new locks, and without what others
had begun.
"""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["in_each_child"]


def in_each_child(begin_anew: Callable[[], object]) -> None:
    """Have a function called in every process that is forked from now on, where there are such."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=begin_anew)
