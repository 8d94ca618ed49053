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
from support.terminal import BACKENDS, done, failed, started

from utcp_websocket_anyio.cli.serve import publish

pytestmark = pytest.mark.usefixtures("modules")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget imported modules after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("served_module", "other", "neighbour", "own"):
        sys.modules.pop(name, None)


def module(directory: Path, text: str, name: str = "served_module") -> str:
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tools_of(path: str) -> list[str]:
    server = publish(path, {}).server
    return [tool["name"] for tool in server.manual("ws://127.0.0.1/")["tools"]]


def test_public_functions_that_a_module_defines_are_tools(tmp_path: Path) -> None:
    text = "from json import dumps\ndef one(): ...\nasync def two(): ...\ndef _three(): ...\nclass Four: ...\n"
    assert tools_of(module(tmp_path, text)) == ["one", "two"]


def test_what_a_module_lists_is_what_it_serves(tmp_path: Path) -> None:
    text = "from textwrap import shorten\n__all__ = ['one']\ndef one(): ...\ndef two(): ...\n"
    assert tools_of(module(tmp_path, text, "other")) == ["one"]


def test_a_module_with_a_server_is_served_as_that_says(tmp_path: Path) -> None:
    text = (
        "from utcp_websocket_anyio import ToolServer\nserver = ToolServer('own')\n"
        "@server.tool(name='renamed')\ndef one(): ...\ndef two(): ...\n"
    )
    assert tools_of(module(tmp_path, text)) == ["renamed"]


def test_of_several_servers_the_one_that_is_listed_is_served(tmp_path: Path) -> None:
    text = (
        "from utcp_websocket_anyio import ToolServer\none, two = ToolServer('1'), ToolServer('2')\n"
        "__all__ = ['two']\n@two.tool\ndef second(): ...\n"
    )
    assert tools_of(module(tmp_path, text)) == ["second"]


def test_what_is_listed_can_be_anything_that_can_be_called(tmp_path: Path) -> None:
    text = (
        "from functools import partial\nimport math\n__all__ = ['one', 'Two', 'three', 'hypot', 'gone']\n"
        "def f(a: int, b: int): ...\none = partial(f, 1)\nclass Two: ...\nthree = 3\nhypot = math.hypot\n"
    )
    published = publish(module(tmp_path, text), {})
    assert [tool["name"] for tool in published.server.manual("ws://127.0.0.1/")["tools"]] == ["one"]
    assert list(published.left_out) == ["hypot"]


def test_a_function_that_cannot_be_published_does_not_stop_the_others(tmp_path: Path) -> None:
    text = "def one(): ...\ndef two(*values): ...\ndef three(x: 'Unknown'): ...\n"
    published = publish(module(tmp_path, text), {})
    assert [tool["name"] for tool in published.server.manual("ws://127.0.0.1/")["tools"]] == ["one"]
    assert published.left_out == {
        "two": "the parameter values cannot be given by name",
        "three": "name 'Unknown' is not defined",
    }


def said_by(*arguments: str) -> tuple[str, str]:
    """The output of a server that has started, on stdout and on stderr."""
    with started("serve", *arguments, "--port", "0") as server:
        assert server.stdout is not None
        assert server.stderr is not None
        out, err = server.stdout.readline(), ""
        while "Ctrl-C" not in err:
            line = server.stderr.readline()
            assert line
            err += line
        return out, err


def test_it_says_what_it_publishes_and_to_whom(tmp_path: Path) -> None:
    text = 'def add(a: int, b: int):\n    """Add.\n\n    Carefully."""\ndef bad(*values): ...\n'
    out, err = said_by(module(tmp_path, text))
    assert out.startswith("ws://127.0.0.1:")
    assert err == (
        "  add(a, b): Add.\n"
        "  bad is left out: the parameter values cannot be given by name\n"
        "for programs on this machine; no page in a browser; Ctrl-C ends it\n"
    )


def test_it_warns_of_an_open_door(tmp_path: Path) -> None:
    _, err = said_by(module(tmp_path, "def one(): ...\n"), "--host", "0.0.0.0")
    assert "There is no token: --token would keep others out.\n" in err
    assert "for everybody who can reach 0.0.0.0; no page in a browser" in err
    options = ("--host", "0.0.0.0", "--token", "t0ken", "--origin", "http://localhost:3000")
    _, err = said_by(module(tmp_path, "def one(): ...\n"), *options)
    assert "There is no token" not in err
    assert "who can reach 0.0.0.0 and knows the token; pages of http://localhost:3000;" in err
    assert "t0ken" not in err


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_json_it_says_the_same_in_one_line(backend: str, tmp_path: Path) -> None:
    text = "import sniffio\nasync def library() -> str: return sniffio.current_async_library()\ndef bad(*values): ...\n"
    options = ("--json", "--backend", backend, "--token", "t0ken", "--allow-host", "tools.example")
    with started("serve", module(tmp_path, text), "--port", "0", *options) as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        assert said["tools"] == ["library"]
        assert said["audience"] == "programs on this machine that know the token; no page in a browser"
        assert said["left_out"] == {"bad": "the parameter values cannot be given by name"}
        assert json.loads(done("call", said["url"], "library", "--auth", "bearer:t0ken", "--json")) == backend
        assert "token" in failed(4, "call", said["url"], "library")


def test_an_empty_token_is_none_that_anybody_should_trust(tmp_path: Path) -> None:
    assert "token must consist of" in failed(2, "serve", module(tmp_path, "def one(): ...\n"), "--token", "")
    assert "must be scheme://host" in failed(2, "serve", module(tmp_path, "def one(): ...\n"), "--origin", "a")


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
            "the function one cannot be a tool: the parameter values cannot be given by name",
        ),
        (
            "from utcp_websocket_anyio import ToolServer\none, two = ToolServer('1'), ToolServer('2')\n",
            "has several ToolServers (one, two); list the one to serve in __all__",
        ),
        ("def one(x: 'Unknown'): ...\n", "the function one cannot be a tool: name 'Unknown' is not defined"),
    ],
)
def test_a_module_that_cannot_be_served_is_a_mistake_of_the_user(text: str, said: str, tmp_path: Path) -> None:
    told = failed(2, "serve", module(tmp_path, text), "--port", "0")
    assert said in told
    assert "Traceback" not in told


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "file not found: none.py" in failed(2, "serve", "none.py")
    assert "no_such_module cannot be imported: ModuleNotFoundError" in failed(2, "serve", "no_such_module")
    told = json.loads(failed(2, "serve", "none.py", "--json"))
    assert (told["exit_code"], told["message"]) == (2, "file not found: none.py")


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
    assert "give ssl_context there" in failed(2, "serve", with_server, "--certificate", str(pem))
    assert "give origins, token there" in failed(2, "serve", with_server, "--token", "t", "--origin", "null")
