"""The floor plan, enforced: rooms import only downwards, and what waits in an event loop stays in the wire."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import utcp_websocket_anyio

ROOMS = [
    ["_version", "errors"],
    ["_net"],
    ["_wire", "_templates"],
    ["_connections"],
    ["_calls"],
    ["protocol", "_server"],
    ["_client"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
"""From the bottom up. A room is a package, or a module at the top."""

EVENT_LOOPS = {"asyncio", "trio", "trio_websocket", "uvloop", "websockets"}
MAY_IMPORT_THEM = {
    "_wire": {"asyncio", "trio", "websockets"},
    "_server": {"asyncio", "trio", "trio_websocket", "websockets"},
    "_connections.hosts": {"asyncio"},  # the host task of each event loop
}

PACKAGE = Path(utcp_websocket_anyio.__file__).parent
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
MODULES = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
"""Modules by their place; a package's own is its `__init__`."""


def dotted(module: tuple[str, ...]) -> str:
    return ".".join(module)


def imports(module: tuple[str, ...]) -> tuple[set[tuple[str, ...]], set[str]]:
    """The modules of the package that a module imports, those only for its types included, and other packages."""
    own: set[tuple[str, ...]] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = (*module[: len(module) - node.level], *(node.module or "").split("."))
            base = tuple(filter(None, base))
            for alias in node.names:
                candidates = [(*base, alias.name), base, (*base, "__init__")]
                own.add(next(candidate for candidate in candidates if candidate in MODULES))
    return own - {module}, others


@pytest.mark.parametrize("module", sorted(MODULES), ids=dotted)
def test_a_room_imports_only_from_itself_and_the_rooms_below(module: tuple[str, ...]) -> None:
    own, _ = imports(module)
    level = LEVEL[module[0]]
    assert [dotted(other) for other in own if other[0] != module[0] and LEVEL[other[0]] >= level] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    # A package's own `__init__` offers what is in it, and may be imported by what is in it for a type.
    below = {
        module: {other for other in imports(module)[0] if other[-1] != "__init__"}
        for module in MODULES
        if module[-1] != "__init__"
    }
    while free := {module for module, others in below.items() if not others & below.keys()}:
        below = {module: others for module, others in below.items() if module not in free}
    assert {dotted(module): sorted(map(dotted, others & below.keys())) for module, others in below.items()} == {}


@pytest.mark.parametrize("module", sorted(MODULES), ids=dotted)
def test_only_the_wire_knows_event_loops(module: tuple[str, ...]) -> None:
    _, others = imports(module)
    assert others & EVENT_LOOPS <= MAY_IMPORT_THEM.get(dotted(module), MAY_IMPORT_THEM.get(module[0], set()))


def normalized(requirement: str) -> str:
    """The name of a package in a requirement, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


def test_the_packages_that_are_imported_are_those_that_are_declared() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = {normalized(one) for one in [*project["dependencies"], *(one for extra in extras for one in extra)]}
    providers = packages_distributions()
    imported = {
        normalized(provider)
        for module in MODULES
        for name in imports(module)[1] - sys.stdlib_module_names
        for provider in providers[name]
    }
    # pydantic's other half: it needs exactly its version of it.
    assert imported - {"pydantic-core"} == declared


@pytest.mark.parametrize("module", sorted(MODULES), ids=dotted)
def test_what_a_module_says_it_offers_is_there(module: tuple[str, ...]) -> None:
    name = dotted(("utcp_websocket_anyio", *module)).removesuffix(".__init__")
    if module == ("__main__",):
        return
    loaded = importlib.import_module(name)
    for public in getattr(loaded, "__all__", ()):
        assert getattr(loaded, public) is not None


LATE = ["click", "cryptography", "h11", "httpx", "jmespath", "jwt", "python_socks", "regex", "rich", "trio"]


def test_what_only_some_calls_need_is_imported_for_them() -> None:
    source = """
        import asyncio, sys
        from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol, WebSocketConnectionError

        async def call(**fields):
            template = WebSocketCallTemplate(name="m", url="ws://127.0.0.1:1", **fields)
            async with WebSocketCommunicationProtocol() as protocol:
                try:
                    await protocol.call_tool(None, "m.t", {"a": 1}, template)
                except WebSocketConnectionError:
                    pass
            print(*[name for name in sys.argv[1:] if name in sys.modules])

        asyncio.run(call(message={"id": "{{call_id}}"}, message_filter={"id": "{{call_id}}"}, result={"path": "a"}))
        asyncio.run(call(message_filter="a", result={"select": "a"}))
    """
    command = [sys.executable, "-c", textwrap.dedent(source), *LATE]
    told = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert told.stdout.splitlines() == ["", "jmespath regex"]
