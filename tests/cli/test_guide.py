"""The guide of the documentation, done as it says: its files written, its commands given, its output seen."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.terminal import BACKENDS, ws

from utcp_websocket_anyio.cli.program import program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "start" / "manual.md").read_text(encoding="utf-8")
GUIDE = PAGE.partition("## Listen")[2]
BLOCKS = re.findall(r"```(json|console)\n(.*?)```", GUIDE, re.DOTALL)
URL = "ws://127.0.0.1:8766"


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    """The endpoint of the guide, at a port that is free."""
    command = [sys.executable, "-X", "dev", "-W", "error", str(ROOT / "examples" / "shop.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()
        printed, errors = process.communicate(timeout=20)
    if sys.platform != "win32":
        assert (printed, errors) == ("The shop is closed.\n", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guide_works_as_written(shop: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manual: dict[str, Any] = {}
    commands = 0
    for kind, text in BLOCKS:
        if kind == "json":
            fields = json.loads(text)
            tools = [*manual.get("tools", []), *fields.pop("tools", [])]
            manual = {**manual, **fields, "tools": tools}
            Path("shop.json").write_text(json.dumps(manual).replace(URL, shop), encoding="utf-8")
        else:
            command, *expected = text.replace(URL, shop).splitlines()
            arguments = shlex.split(command.removeprefix("$ utcp-ws "))
            options = [] if arguments[0] == "check" else ["--backend", backend]
            result = ws(*arguments, *options)
            assert result.exit_code == 0, result.stderr
            shown = [re.sub(r"^\d\d:\d\d:\d\d\.\d{3} ", "… ", line) for line in result.stdout.splitlines()]
            assert shown[: len(expected)] == expected
            commands += 1
    assert commands == 6
    assert manual == json.loads((ROOT / "examples" / "shop.json").read_text(encoding="utf-8"))


def test_the_reference_has_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    for name in program.commands:
        assert f"```{{command}} {name}\n" in page
