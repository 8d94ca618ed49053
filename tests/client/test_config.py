"""The forms of a client's configuration: a whole one, or a part that one is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.plugin import install, manual
from utcp.exceptions import UtcpSerializerValidationError

from utcp_websocket_anyio import open_client

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("registries")]

TEMPLATE = manual("m")
FAKE = {"call_template_type": "fake", "name": "t"}
MANUAL = {"manual_version": "1.0", "tools": [{"name": "tool", "tool_call_template": FAKE}]}


async def tools_of(given: Any) -> list[str]:
    async with open_client(given) as client:
        return sorted(tool.name for tool in await client.config.tool_repository.get_tools())


@pytest.mark.parametrize(
    ("given", "tools"),
    [
        ({"manual_call_templates": [TEMPLATE]}, ["m.tool"]),
        (TEMPLATE, ["m.tool"]),
        ({key: value for key, value in TEMPLATE.items() if key != "name"}, ["manual.tool"]),
        (MANUAL, ["manual.tool"]),
        ([TEMPLATE, MANUAL], ["m.tool", "manual_2.tool"]),
        ([], []),
        ({}, []),
    ],
)
async def test_what_a_configuration_is_made_of_is_taken_as_one(given: Any, tools: list[str], tmp_path: Path) -> None:
    install()
    with anyio.fail_after(30):
        assert await tools_of(given) == tools
        path = tmp_path / "manual.json"
        path.write_text(json.dumps(given), encoding="utf-8")
        assert await tools_of(path) == tools


async def test_a_manual_is_named_after_its_file(tmp_path: Path) -> None:
    install()
    path = tmp_path / "weather-2.json"
    path.write_text(json.dumps(MANUAL), encoding="utf-8")
    with anyio.fail_after(30):
        assert await tools_of(path) == ["weather_2.tool"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"manual_call_template": [TEMPLATE]}, "is manual_call_templates misspelled"),
        ({"foo": 1}, "config is not a client configuration"),
        ([TEMPLATE, {"foo": 1}], r"config\[1\] is not a client configuration"),
        ({"tools": [{"name": "t"}]}, r"tools\[0\] has no tool_call_template"),
        ({"tools": "all"}, "is not a client configuration"),
    ],
)
async def test_anything_else_is_an_error(given: Any, text: str) -> None:
    with anyio.fail_after(30), pytest.raises(ValueError, match=text):
        await tools_of(given)


async def test_a_template_that_is_not_valid_is_the_error_of_its_type() -> None:
    with anyio.fail_after(30), pytest.raises(UtcpSerializerValidationError, match="url"):
        await tools_of({"call_template_type": "websocket", "url": "http://api.example/"})
