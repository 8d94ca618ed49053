"""The floor plan, enforced: each layer imports only from those below it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

import utcp_websocket_anyio

LAYERS = [
    ["cli"],
    ["cli.program"],
    ["cli.check", "cli.demo", "cli.discovery", "cli.listen", "cli.serve"],
    ["cli.calls", "cli.explain"],
    ["cli.source"],
    ["cli.arguments", "cli.options", "cli.output", "cli.running"],
    ["cli.failures"],
    ["__init__"],
    ["client", "server"],
    ["foreign", "protocol", "configuration", "resolution"],
    ["tool_stream", "schemas"],
    ["discovery", "stream"],
    ["exchange"],
    ["pool", "connector"],
    ["connection"],
    ["heartbeat", "stand_in"],
    ["conversation", "outbox", "router", "lull", "mailbox", "statistics", "watch"],
    ["wire", "wire._picows", "wire._trio"],
    ["wire._asyncio"],
    ["wire._session", "wire._addresses"],
    ["repository", "request", "verdict"],
    ["call_template"],
    ["plan"],
    ["filters", "message_template", "url_template"],
    ["auth", "extraction", "template"],
    ["http", "patterns"],
    ["placeholders"],
    ["json_values", "message", "security", "tls", "faults", "iteration"],
    ["errors"],
]
"""From the top down. A module imports from lower layers only; `wire` is also the interface of its engines."""

EVENT_LOOPS = {"asyncio", "picows", "trio", "trio_websocket", "uvloop", "websockets"}
MAY_IMPORT_THEM = {
    "wire._addresses": {"asyncio"},
    "wire._asyncio": {"asyncio"},
    "wire._picows": {"picows"},
    "wire._session": {"websockets"},
    "wire._trio": {"trio"},
    "server": {"trio", "trio_websocket"},
    # The host task, in which the stock client's protocol object lives.
    "protocol": {"asyncio"},
}

PACKAGE = Path(utcp_websocket_anyio.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
PACKAGES = {"cli", "wire"}
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}


def imports(name: str) -> tuple[set[str], set[str]]:
    """What a module imports when it is used: modules of the package, and packages of others. Types do not count."""
    own: set[str] = set()
    others: set[str] = set()
    package = name.split(".")[:1] if name.partition(".")[0] in PACKAGES else []
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
            module = ".".join(base)
            submodules = {".".join([*base, alias.name]) for alias in node.names} & MODULES.keys()
            own |= submodules or {module or "__init__"}
    return own, others


def walk(node: ast.AST) -> list[ast.AST]:
    """Every node but those that only a type checker sees."""
    found = [node]
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            found += walk(child)
    return found


def test_every_module_has_its_place() -> None:
    assert MODULES.keys() == LEVEL.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_from_the_layers_below(name: str) -> None:
    own, _ = imports(name)
    # The version is a constant of the package, and each engine implements the interface in `wire`.
    allowed = {"__init__"} | ({"wire"} if name.startswith("wire.") else set())
    if name in ("__init__", "cli", "wire"):
        return
    assert {module for module in own - allowed if LEVEL[module] >= LEVEL[name]} == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_wire_knows_event_loops(name: str) -> None:
    _, others = imports(name)
    assert others & EVENT_LOOPS <= MAY_IMPORT_THEM.get(name, set())


def test_no_module_is_longer_than_a_reader_likes() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_a_module_says_it_offers_is_there(name: str) -> None:
    module: ModuleType = importlib.import_module("utcp_websocket_anyio" + (f".{name}" if name != "__init__" else ""))
    for public in module.__all__:
        assert getattr(module, public) is not None
