"""`utcp-ws schema`: the schema is valid, and accepts and refuses what the package does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.terminal import done

from utcp_websocket_anyio import WebSocketCallTemplate
from utcp_websocket_anyio.cli.schema import call_template_schema, manual_schema

jsonschema = pytest.importorskip("jsonschema")

EXAMPLES = Path(__file__).parents[2] / "examples"
MANUALS = EXAMPLES.rglob("*.json")
URL = "wss://example.com/"


def errors(content: Any, schema: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(content)]


@pytest.mark.parametrize("schema", [call_template_schema(), manual_schema()], ids=["call-template", "manual"])
def test_schema_is_valid(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_command_writes_both() -> None:
    assert json.loads(done("schema")) == json.loads(done("schema", "manual")) == manual_schema()
    assert json.loads(done("schema", "call-template")) == call_template_schema()


def test_schema_has_only_words_of_json_schema() -> None:
    text = done("schema")
    for word in ('"gt":', '"ge":', '"lt":', '"le":'):
        assert word not in text


def test_every_field_is_described() -> None:
    properties = call_template_schema()["properties"]
    assert properties.keys() >= WebSocketCallTemplate.model_fields.keys() | {"$schema"}
    own = properties.keys() - {"name", "call_template_type", "allowed_communication_protocols"}
    assert [name for name in own if not properties[name].get("description")] == []


@pytest.mark.parametrize("path", sorted(MANUALS), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_manual_of_the_examples_fits(path: Path) -> None:
    assert errors(json.loads(path.read_text(encoding="utf-8")), manual_schema()) == []


@pytest.mark.parametrize(
    "content",
    [
        {"call_template_type": "websocket", "url": URL, "$schema": "manual.schema.json"},
        {"url": URL, "auth": {"auth_type": "basic", "username": "u", "password": "p"}},
        {"url": URL, "tools": [{"name": "t", "tool_call_template": {"call_template_type": "websocket"}}]},
        {"url": URL, "tools": [{"name": "t", "tool_call_template": {"call_template_type": "http", "x": 1}}]},
        {"utcp_version": "1.0.1", "manual_version": "1.0.0", "tools": []},
    ],
)
def test_what_is_right_fits(content: Any) -> None:
    assert errors(content, manual_schema()) == []


@pytest.mark.parametrize(
    "content",
    [
        {"url": URL, "mesage": {}},
        {"url": URL, "timeout": 0},
        {"url": URL, "timeout": "soon"},
        {"url": URL, "auth": {"auth_type": "basic"}},
        {"url": URL, "tools": [{"name": "t", "input": {}}]},
        {"url": URL, "tools": [{"name": "t", "inputs": {"properties": {"a": {"type": "int"}}}}]},
        {"url": URL, "tools": [{"name": "t", "tool_call_template": {"call_template_type": "websocket", "x": 1}}]},
        {"tools": [{"description": "no name"}]},
        {"call_template_type": "websocket"},
        [],
    ],
)
def test_what_is_wrong_does_not_fit(content: Any) -> None:
    assert errors(content, manual_schema()) != []
