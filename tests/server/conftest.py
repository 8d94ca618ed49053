"""Fixtures of the tool server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.tool_server import Thread


@pytest.fixture
def thread(anyio_backend: tuple[str, dict[str, Any]]) -> Iterator[Thread]:
    """A thread for servers, with the event loop that the test has."""
    thread = Thread(anyio_backend)
    yield thread
    thread.join()
