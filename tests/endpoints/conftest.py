"""Each server is installed and started once for the tests of its module, which run on asyncio and on trio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from .servers.installing import CannotInstallError

Start = Callable[[FunctionType], Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the time of the tests, not of the installation before the first of them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(60, func_only=True))


@pytest.fixture(
    params=[pytest.param(("asyncio", {"debug": True}), id="asyncio"), pytest.param(("trio", {}), id="trio")]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server for a module: a function of the folder for what is installed and of the server's own folder."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    installed = tmp_path_factory.mktemp("installed") if cache is None else cache.mkdir("endpoints")

    with ExitStack() as stack:

        def start(run: FunctionType) -> Any:
            try:
                return stack.enter_context(run(installed, tmp_path_factory.mktemp("server")))
            except CannotInstallError as error:
                pytest.skip(f"{run.__name__} cannot be installed on this machine: {error}")

        yield start
