"""The manuals of servers and APIs: each is valid, and so are its tools.

`nox -s endpoints` and `nox -s apis` call them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCallTemplateSerializer

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = ["apis", "endpoints"]
MANUALS = [path for folder in FOLDERS for path in sorted((EXAMPLES / folder).glob("*.json"))]


@pytest.mark.parametrize("path", MANUALS, ids=lambda path: path.stem)
def test_a_manual_is_valid_and_so_are_its_tools(path: Path) -> None:
    manual = WebSocketCallTemplateSerializer().validate_dict(json.loads(path.read_text(encoding="utf-8")))
    assert isinstance(manual, WebSocketCallTemplate)
    assert manual.tools
    for tool in manual.tools:
        assert tool["description"]
        template = tool.get("tool_call_template")
        if template is not None:
            assert (
                WebSocketCallTemplateSerializer().validate_dict(template).plan.arguments
                <= tool["inputs"]["properties"].keys()
            )


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_readme_of_a_folder_names_each_of_its_manuals(folder: str) -> None:
    readme = (EXAMPLES / folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.json)`", readme))
    assert named == {path.name for path in (EXAMPLES / folder).glob("*.json")}


def test_each_manual_of_an_api_is_driven() -> None:
    cases = {path.name for path in (Path(__file__).parents[1] / "apis" / "ops").glob("*.json")}
    assert cases == {path.name for path in (EXAMPLES / "apis").glob("*.json")}
