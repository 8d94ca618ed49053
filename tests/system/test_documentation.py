"""Every example of the documentation, done as the page says.

A page is read from top to bottom. A block of `json` with a `name` is a manual; one without is added to the manual
before it. A block of `wire` is what is said at its endpoint (`support.conversation`), a block of `pycon` what is done
with a `client` that knows the manual, on both event loops, or on the one that is named behind `pycon`. A block of
`python` is a program, and a block of `text` behind it is what it prints.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import itertools
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.backends import BACKENDS, virtual_time
from support.conversation import Conversation
from support.peers import peer, peer_in_memory

import utcp_websocket_anyio
from utcp_websocket_anyio import WebSocketCallTemplateSerializer, open_client

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1 *$", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r"(wss?|https?)://[\w.-]*example\.com(?::\d+)?")


@dataclass
class Example:
    """A manual, what is said at its endpoint, and what is done with it."""

    manual: dict[str, Any] = field(default_factory=dict)
    conversation: str = ""
    statements: str = ""
    is_timed: bool = False
    only: str = ""


def fences(path: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code in a file."""
    return [(found[2].strip(), found[3]) for found in FENCE.finditer(path.read_text(encoding="utf-8"))]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of code on a page."""
    return fences(DOCS / page)


def examples(page: str) -> list[Example]:
    """The examples of the page: a manual, a conversation and statements, each time all three are there."""
    found: list[Example] = []
    manual: dict[str, Any] = {}
    conversation = ""
    for language, text in blocks(page):
        if language == "json":
            fields = json.loads(text)
            if "name" in fields:
                manual = {}
            tools = [*manual.get("tools", []), *fields.pop("tools", [])]
            manual = {**manual, **fields, "tools": tools}
        elif language == "wire":
            conversation += text
        elif language.startswith("pycon"):
            timed = " s later" in conversation
            found.append(Example(manual, conversation, text, timed, language.removeprefix("pycon").strip()))
            conversation = ""
    assert not conversation, f"{page}: a conversation that nothing is done in"
    return found


EXAMPLES = [
    pytest.param(backend, page, number, id=f"{page}-{number}-{name}")
    for page in PAGES
    for number, example in enumerate(examples(page))
    for name, backend in (
        [("virtual time", virtual_time())]
        if example.is_timed
        else [(one.id, one.values[0]) for one in BACKENDS if str(one.id).startswith(example.only)]
    )
]


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The backend of an example: virtual time where it says that time passes."""
    return request.getfixturevalue("backend")


@pytest.mark.anyio
@pytest.mark.parametrize(("backend", "page", "number"), EXAMPLES)
async def test_an_example_does_what_its_page_says(
    backend: Any, page: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = examples(page)[number]
    if not example.manual:
        await do(example.statements, {}, page)
        return
    address = ""

    def local(text: str) -> str:
        host = address.partition("://")[2].strip("/")
        return ADDRESS.sub(lambda found: f"{'ws' if found[1][0] == 'w' else 'http'}://{host}", text)

    conversation = Conversation(example.conversation, local)
    server = peer_in_memory(conversation, monkeypatch) if example.is_timed else peer(conversation)
    with anyio.fail_after(10_000 if example.is_timed else 120):
        async with server as address:
            manual = json.loads(local(json.dumps(example.manual)))
            variables = {f"{manual['name']}_{name}": value for name, value in conversation.variables.items()}
            config = {"variables": variables, "manual_call_templates": [manual]}
            async with open_client(config) as client:
                names = {"client": client, "config": config, "open_client": open_client, "anyio": anyio}
                await do(example.statements, names | vars(contextlib), page)
            await anyio.wait_all_tasks_blocked()
    assert not conversation.rest, "this was not said"


async def do(statements: str, names: dict[str, Any], page: str) -> None:
    """Do what an interactive session shows, where `await` stands at the top; it must show what the page has."""
    for example in doctest.DocTestParser().get_examples(statements):
        shown = io.StringIO()
        code = compile(example.source, page, "single", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        failure = ""
        names["_shown"] = shown
        with contextlib.redirect_stdout(shown), display_hook(shown):
            try:
                result = eval(code, names)
                if hasattr(result, "__await__"):
                    await result
            except Exception as error:
                if example.exc_msg is None:
                    raise
                failure = "".join(traceback.format_exception_only(error)).rpartition("utcp_websocket_anyio.errors.")[2]
        if example.exc_msg is not None:
            seen, wanted = failure, example.exc_msg
        else:
            seen, wanted = shown.getvalue(), example.want
        assert agrees(seen, wanted), f"{example.source}shows {seen}instead of {wanted}"


def agrees(seen: str, wanted: str) -> bool:
    """True if what is shown is what the page has. The address is another one in a test; `…` stands for anything."""
    seen, wanted = (re.sub(r"wss?://[^\s)/]+", "wss://", text).replace("…", "...") for text in (seen, wanted))
    return doctest.OutputChecker().check_output(wanted, seen, doctest.ELLIPSIS)


@contextlib.contextmanager
def display_hook(shown: io.StringIO) -> Iterator[None]:
    """Show the value of an expression as an interactive session does."""
    before = sys.displayhook

    def show(value: Any) -> None:
        if value is not None:
            print(repr(value), file=shown)

    sys.displayhook = show
    try:
        yield
    finally:
        sys.displayhook = before


def programs(page: str) -> list[tuple[str, str | None]]:
    """Each program of a page, with what it prints, if the page says so."""
    found: list[tuple[str, str | None]] = []
    for (language, text), (after, printed) in itertools.pairwise([*blocks(page), ("", "")]):
        if language == "python":
            found.append((text, printed if after == "text" else None))
    return found


PROGRAMS = [
    pytest.param(page, number, id=f"{page}-{number}") for page in PAGES for number, _ in enumerate(programs(page))
]


@pytest.mark.parametrize(("page", "number"), PROGRAMS)
def test_a_program_prints_what_its_page_says(page: str, number: int, tmp_path: Path) -> None:
    source, printed = programs(page)[number]
    for module in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE):
        pytest.importorskip(module)
    program = tmp_path / "program.py"
    program.write_text(source, encoding="utf-8")
    command = [sys.executable, "-X", "dev", "-W", "error", str(program)]
    if re.search(r"^(async )?def test_", source, re.MULTILINE):
        command[-1:] = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if printed is not None:
        assert done.stdout == printed


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    known = {"json", "wire", "pycon", "python", "text", "console", "sh", "toml", "yaml", "ini"}
    for page in PAGES:
        for language, _ in blocks(page):
            assert language.startswith("{") or language.split(" ")[0] in known, f"{page}: {language}"


def test_what_is_public_is_what_the_documentation_imports() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for names in re.findall(r"^\s*(?:>>> )?from utcp_websocket_anyio import ([\w, ]+)$", text, re.MULTILINE):
            for name in names.split(","):
                assert hasattr(utcp_websocket_anyio, name.strip()), f"{page}: {name}"


def test_the_readme_is_short_and_its_links_lead_somewhere_from_anywhere() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= 5000
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", text))
    assert [language for language, _ in fences(path)].count("sh") == 2, "how to run it, and how to test it"
    (manual,) = [json.loads(source) for language, source in fences(path) if language == "json"]
    assert WebSocketCallTemplateSerializer().validate_dict(manual).name == "shop"


def test_what_is_linked_in_the_repository_is_there() -> None:
    linked = re.compile(r"https://github\.com/utcp-websocket-anyio/utcp-websocket-anyio/(?:blob|tree)/main/([\w./-]+)")
    for path in [ROOT / "README.md", *(DOCS / page for page in PAGES)]:
        for name in linked.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / name.rstrip(".")).exists(), f"{path.name}: {name}"
    pages = re.compile(r"https://utcp-websocket-anyio\.readthedocs\.io/en/stable/([\w./-]+)\.html")
    for name in pages.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        assert (DOCS / f"{name}.md").exists()
