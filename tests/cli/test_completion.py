"""Shell completion: files, tools and arguments of the file at hand, and nothing that could command the shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from support.terminal import COMMAND, manual, written

from utcp_websocket_anyio.cli.program import program


def offered(*words: str) -> list[str]:
    """The completions of the last word."""
    complete = ShellComplete(program, {}, "utcp-ws", "_UTCP_WS_COMPLETE")
    return [
        f"<{item.type}>" if item.type != "plain" else item.value for item in complete.get_completions(*split(words))
    ]


def split(words: tuple[str, ...]) -> tuple[list[str], str]:
    return list(words[:-1]), words[-1]


@pytest.fixture
def file(tmp_path: Path) -> str:
    inputs: dict[str, Any] = {
        "room": {"type": "string", "enum": ["red", "rose", "blue; rm"]},
        "loud": {"type": "boolean"},
        "$(x)": {"type": "string"},
    }
    content = manual("ws://127.0.0.1:1/", inputs=inputs)
    content["tools"] += [{**content["tools"][0], "name": name} for name in ("tally", "$(touch x)", "a b")]
    return written(tmp_path / "m.json", content)


def test_commands_files_tools_and_arguments_are_offered(file: str) -> None:
    assert {"call", "check"} <= set(offered("c"))
    assert offered("call", "") == ["<file>"]
    for command in ("call", "stream", "check", "listen"):
        assert offered(command, file, "t") == ["tool", "tally"]
        assert offered(command, file, "tool", "") == ["room=", "loud="]
    assert offered("call", file, "tool", "room=red", "") == ["loud="]
    assert offered("call", file, "tool", "room=r") == ["room=red", "room=rose"]
    assert offered("call", file, "tool", "loud=") == ["loud=true", "loud=false"]


def test_a_shell_that_splits_words_at_equals_is_understood(file: str) -> None:
    assert offered("call", file, "tool", "room", "=", "r") == ["red", "rose"]


def test_no_name_that_could_command_a_shell_is_offered(file: str) -> None:
    assert not any(set("$(; ") & set(name) for name in (*offered("call", file, ""), *offered("call", file, "tool", "")))


def test_tools_of_several_manuals_have_their_manuals_names(tmp_path: Path) -> None:
    templates = [{**manual("ws://127.0.0.1:1/"), "name": name} for name in ("one", "two")]
    file = written(tmp_path / "config.json", {"manual_call_templates": templates})
    assert offered("call", file, "") == ["one.tool", "two.tool"]


@pytest.mark.parametrize("target", ["none.json", "ws://127.0.0.1:1/", "."])
def test_what_cannot_be_read_offers_nothing(target: str) -> None:
    assert offered("call", target, "") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(file: str) -> None:
    shell = f"""
        utcp-ws() {{ {" ".join(repr(word) for word in COMMAND)} "$@"; }}
        eval "$(_UTCP_WS_COMPLETE=bash_source utcp-ws)"
        env() {{ command env "${{@:1:3}}" {" ".join(repr(word) for word in COMMAND)}; }}
        compopt() {{ echo "$2"; }}
        COMP_WORDS=(utcp-ws call {file} tool ro); COMP_CWORD=4
        _utcp_ws_completion utcp-ws
        echo "${{COMPREPLY[@]}}"
    """
    told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=50, check=False)
    assert told.stdout.splitlines()[-2:] == ["nospace", "room="], told
