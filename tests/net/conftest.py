"""Tests of the network set the process's settings; afterwards they are as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from utcp_websocket_anyio import configure
from utcp_websocket_anyio._net.settings import current_settings


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    before = current_settings()
    yield
    configure(before)
