"""The manuals of real servers: each is valid, and its tools can be prepared; `nox -s endpoints` calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCallTemplateSerializer

MANUALS = sorted((Path(__file__).parents[2] / "examples" / "endpoints").glob("*.json"))


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


def test_there_is_one_for_each_server_that_the_readme_names() -> None:
    readme = (MANUALS[0].parent / "README.md").read_text(encoding="utf-8")
    assert len(MANUALS) == 7
    for path in MANUALS:
        assert path.name in readme
