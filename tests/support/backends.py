"""The backends that tests run on, and time that passes when nothing else happens."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import trio.testing

BACKENDS = [pytest.param(("asyncio", {"debug": True}), id="asyncio"), pytest.param(("trio", {}), id="trio")]
if importlib.util.find_spec("uvloop") is not None:
    BACKENDS.insert(1, pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio+uvloop"))


def virtual_time() -> Any:
    """The value of `anyio_backend` for a test about time: trio with a clock that jumps when nothing else happens."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
