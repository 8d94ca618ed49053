"""`utcp-ws serve`: what becomes a tool, and what is said where nothing can."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.terminal import failed, started

from utcp_websocket_anyio.cli.serve import server_of

pytestmark = pytest.mark.usefixtures("modules")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is imported is forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("served_module", "other", "neighbour", "own"):
        sys.modules.pop(name, None)


def module(directory: Path, text: str, name: str = "served_module") -> str:
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tools_of(path: str) -> list[str]:
    server = server_of(path, None)
    return [tool["name"] for tool in server.manual("ws://127.0.0.1/")["tools"]]


def test_public_functions_that_a_module_defines_are_tools(tmp_path: Path) -> None:
    text = "from json import dumps\ndef one(): ...\nasync def two(): ...\ndef _three(): ...\nclass Four: ...\n"
    assert tools_of(module(tmp_path, text)) == ["one", "two"]


def test_what_a_module_lists_is_what_it_serves(tmp_path: Path) -> None:
    text = "from json import dumps\n__all__ = ['dumps', 'one']\ndef one(): ...\ndef two(): ...\n"
    with pytest.raises(Exception, match="dumps cannot be a tool"):
        tools_of(module(tmp_path, text))
    text = "from textwrap import shorten\n__all__ = ['one']\ndef one(): ...\ndef two(): ...\n"
    assert tools_of(module(tmp_path, text, "other")) == ["one"]


def test_a_module_with_a_server_is_served_as_that_says(tmp_path: Path) -> None:
    text = (
        "from utcp_websocket_anyio import ToolServer\nserver = ToolServer('own')\n"
        "@server.tool(name='renamed')\ndef one(): ...\ndef two(): ...\n"
    )
    assert tools_of(module(tmp_path, text)) == ["renamed"]


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    module(tmp_path, "VALUE = 1\n", "neighbour")
    assert tools_of(module(tmp_path, "from neighbour import VALUE\ndef one(): ...\n")) == ["one"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("value = 1\n", "defines no public function"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
        ("import math\nmath.nothing\n", "cannot be imported: AttributeError"),
        ("\ndef f():\n    raise KeyError('x')\nf()\n", "KeyError: 'x' (served_module.py, line 3)"),
        (
            "def one(*values): ...\n",
            "the function one cannot be a tool: one: the parameter values cannot be given by name",
        ),
        ("def one(x: 'Unknown'): ...\n", "the function one cannot be a tool: name 'Unknown' is not defined"),
    ],
)
def test_a_module_that_cannot_be_served_is_a_mistake_of_the_user(text: str, said: str, tmp_path: Path) -> None:
    told = failed(2, "serve", module(tmp_path, text), "--port", "0")
    assert said in told
    assert "Traceback" not in told


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no file none.py" in failed(2, "serve", "none.py")
    assert "no_such_module cannot be imported: ModuleNotFoundError" in failed(2, "serve", "no_such_module")
    told = json.loads(failed(2, "serve", "none.py", "--json"))
    assert (told["exit_code"], told["message"]) == (2, "there is no file none.py")


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    file = module(tmp_path, "def one(): ...\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1, port {port}: " in failed(2, "serve", file, "--port", str(port))


def test_a_certificate_makes_it_wss(tmp_path: Path) -> None:
    file = module(tmp_path, "def one(): ...\n")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem = tmp_path / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    with started("serve", file, "--port", "0", "--certificate", str(pem)) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("wss://127.0.0.1:")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1"):
            pass


def test_a_certificate_that_cannot_be_used_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    file = module(tmp_path, "def one(): ...\n")
    own = "from utcp_websocket_anyio import ToolServer\nserver = ToolServer('own')\n"
    none = str(tmp_path / "none.pem")
    assert "the certificate cannot be used" in failed(2, "serve", file, "--certificate", none)
    assert "the certificate cannot be used" in failed(2, "serve", file, "--certificate", file)
    assert "--key needs --certificate" in failed(2, "serve", file, "--key", none)
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    with_server = module(tmp_path, own, "own")
    assert "has an ssl_context of its own" in failed(2, "serve", with_server, "--certificate", str(pem))
