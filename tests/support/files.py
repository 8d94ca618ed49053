"""The limit of open files, and so of connections, of a process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 4096


@contextmanager
def allow_many_files() -> Iterator[None]:
    """Some thousand open files for the time of a block, as far as the system lets a user go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY if hard == resource.RLIM_INFINITY else min(_MANY, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
