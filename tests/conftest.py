"""Every test that does I/O runs on asyncio (in debug mode), on asyncio with uvloop, and on trio."""

from __future__ import annotations

import functools
import gc
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import sniffio
import trustme
from support.backends import BACKENDS
from utcp.data.call_template import CallTemplateSerializer
from utcp.interfaces.communication_protocol import CommunicationProtocol
from utcp.plugins.plugin_loader import ensure_plugins_initialized

import utcp_websocket_anyio.protocol
from utcp_websocket_anyio._calls.exchange import Exchange

ensure_plugins_initialized()

# How long an example takes says nothing on a machine that does other things, too.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """On asyncio in debug mode, unless the module says ``ASYNCIO_DEBUG = False``."""
    name, options = request.param
    return name, {**options, "debug": getattr(request.module, "ASYNCIO_DEBUG", True)} if "debug" in options else options


@pytest.fixture
def anyio_backend_name(anyio_backend: tuple[str, dict[str, Any]]) -> str:
    return anyio_backend[0]


@pytest.fixture(params=["single", "general"])
def both_exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of one message and one response, by `SingleCall` and by `Exchange`: nobody must notice which it is."""
    if request.param == "general":
        monkeypatch.setattr(utcp_websocket_anyio.protocol, "SingleCall", Exchange)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run a test as under `asyncio.run`.

    `anyio.run` and anyio's plugin say in the context which library this is, also to the callbacks of a transport. Users
    of the stock client call `asyncio.run`, and there only a task can find out.
    """
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return

    @functools.wraps(test)
    async def as_under_asyncio_run(**arguments: Any) -> None:
        if sniffio.current_async_library() == "asyncio":
            sniffio.current_async_library_cvar.set(None)
        await test(**arguments)

    pyfuncitem.obj = as_under_asyncio_run


def pytest_collection_finish() -> None:
    # What was imported stays; without it the collection after each test takes a fraction of the time.
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have measured. What they have counted, a dict, is added up for each backend."""
    figures = [
        (report.nodeid.rpartition("[")[2].rstrip("]"), name, value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
    counts: dict[str, dict[str, Counter[str]]] = {}
    for parameters, name, value in figures:
        if isinstance(value, dict):
            of_this_kind = counts.setdefault(name, {})
            for label in (parameters.partition("-")[0], "all together"):
                of_this_kind.setdefault(label, Counter()).update(value)
        else:
            terminalreporter.line(f"{value!s:>12}  {name}  {parameters}")
    for name, of_this_kind in counts.items():
        for label in sorted(of_this_kind, key=lambda label: (label == "all together", label)):
            counted = of_this_kind[label]
            told = ", ".join(f"{count} {what}" for what, count in sorted(counted.items(), key=lambda item: -item[1]))
            terminalreporter.line(f"{counted.total():>12}  {name}  {label}: {told}")


@pytest.fixture(autouse=True)
def _nothing_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect young objects after a test: one that was not closed warns then, and a warning is an error."""
    yield
    if "anyio_backend" in request.fixturenames:
        gc.collect(1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whose certificates are trusted by who is told to."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The authority's certificate in a file."""
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def registries() -> Iterator[None]:
    """UTCP's registries, as they were, after the test."""
    tables: list[dict[str, Any]] = [
        CommunicationProtocol.communication_protocols,
        CommunicationProtocol.communication_protocol_factories,
        CallTemplateSerializer.call_template_serializers,
    ]
    before = [dict(table) for table in tables]
    yield
    for table, contents in zip(tables, before, strict=True):
        table.clear()
        table.update(contents)
