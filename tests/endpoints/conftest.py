"""Each server is installed and started once for the tests of its module, which run on asyncio and on trio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .servers.installing import CannotInstallError

Server = TypeVar("Server")
Start = Callable[[Callable[[Path, Path], AbstractContextManager[Server]]], Server]


@pytest.fixture(
    params=[pytest.param(("asyncio", {"debug": True}), id="asyncio"), pytest.param(("trio", {}), id="trio")]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start[Any]]:
    """Start a server for a module: a function of the folder for what is installed and of the server's own folder."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    installed = tmp_path_factory.mktemp("installed") if cache is None else cache.mkdir("endpoints")

    with ExitStack() as stack:

        def start(run: Callable[[Path, Path], AbstractContextManager[Any]]) -> Any:
            try:
                return stack.enter_context(run(installed, tmp_path_factory.mktemp("server")))
            except CannotInstallError as error:
                name = run.__module__.rpartition(".")[2]
                pytest.skip(f"{name} cannot be installed on this machine: {error}")

        yield start
