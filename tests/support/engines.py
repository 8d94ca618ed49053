"""Fixtures that run a test on every engine of the wire."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.backends import BACKENDS
from utcp_websocket_anyio._wire import Target, Wire, open_wire

Opener = Callable[..., Coroutine[Any, Any, Wire]]

# Every backend with its engine.
ENGINES = [pytest.param((backend.values[0], open_wire), id=backend.id) for backend in BACKENDS]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(engine: Any) -> Any:
    return engine[0]


@pytest.fixture
def connect(engine: Any) -> Opener:
    async def connect(url: str, **settings: Any) -> Wire:
        wire: Wire = await engine[1](Target(url=url, endpoint=url.partition("?")[0], **settings))
        return wire

    return connect
