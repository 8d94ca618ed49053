"""``utcp-ws``: the package from a terminal.

It needs the extra ``cli`` (click and rich). This module does not, so that it can say so where the extra is missing.
"""

from __future__ import annotations

import importlib.util
import logging
import sys

__all__ = ["main"]

_NEEDED = ("click", "rich")
_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h


def main() -> None:
    """The console script. It ends the process; ``utcp-ws --help`` lists the exit codes."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"utcp-ws needs {' and '.join(missing)}, which come with the extra 'cli':\n\n"
            "    python -m pip install 'utcp-websocket-anyio[cli]'",
            file=sys.stderr,
        )
        sys.exit(_UNAVAILABLE)
    # UTCP gives the root logger a handler, for INFO too, where it has none.
    logging.getLogger().addHandler(logging.NullHandler())
    from .program import program

    program(prog_name="utcp-ws")
