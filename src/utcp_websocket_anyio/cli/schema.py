"""``utcp-ws schema``: the JSON Schema of a manual and of a call template, with which an editor completes and explains.

It is made of the models that validate, so it says what they say. Two things are stricter: an unknown field is an error,
because an editor is where a slip is found best; and ``tools`` and ``auth``, which UTCP leaves open for plugins, have
the shapes that this plugin knows beside those of others.
"""

from __future__ import annotations

import copy
from typing import Any

import click
from utcp.data.auth_implementations import ApiKeyAuth, BasicAuth, OAuth2Auth

from .._templates.call_template import WebSocketCallTemplate
from .._templates.fields import OLD_NAMES
from .command import Command
from .output import echo, json_text

__all__ = ["call_template_schema", "manual_schema", "schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# pydantic writes these as they are where a constraint follows a validator.
_KEYWORDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_VERSION = {"type": "string", "description": "The version of the manual, or of UTCP"}
_EDITORS_FIELD = {"type": "string", "description": "Where this schema is, for editors"}
_JSON_SCHEMA = {
    "description": "A JSON Schema; of inputs: an object with the tool's arguments",
    "type": "object",
    "properties": {
        "type": {
            "description": "One of the types of JSON, or a list of them",
            "anyOf": [{"$ref": "#/$defs/JsonType"}, {"type": "array", "items": {"$ref": "#/$defs/JsonType"}}],
        },
        "description": {"type": "string", "description": "What an agent's model reads"},
        "properties": {"type": "object", "additionalProperties": {"$ref": "#/$defs/JsonSchema"}},
        "required": {"type": "array", "items": {"type": "string"}},
        "items": {"$ref": "#/$defs/JsonSchema"},
        "enum": {"type": "array"},
        "default": {},
    },
}
_TOOL = {
    "description": "A tool as a caller sees it",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "description": "Unique in its manual"},
        "description": {"type": "string", "description": "What it does, for an agent's model"},
        "inputs": {"$ref": "#/$defs/JsonSchema"},
        "outputs": {"$ref": "#/$defs/JsonSchema"},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "For searching"},
        "average_response_size": {"type": ["integer", "null"], "description": "In tokens"},
        "tool_call_template": {
            "description": "How it is called; without one, as the manual says",
            "anyOf": [{"$ref": "#/$defs/ToolCallTemplate"}, {"$ref": "#/$defs/OtherCallTemplate"}, {"type": "null"}],
        },
    },
    "required": ["name"],
    "additionalProperties": False,
}
_OTHER_CALL_TEMPLATE = {
    "description": "A call template of another protocol, which is its plugin's",
    "type": "object",
    "properties": {"call_template_type": {"type": "string", "not": {"const": "websocket"}}},
    "required": ["call_template_type"],
}


@click.command(
    cls=Command,
    examples=(
        "utcp-ws schema > manual.schema.json",
        "utcp-ws schema call-template > call-template.schema.json",
    ),
)
@click.argument(
    "of", metavar="[manual|call-template]", type=click.Choice(["manual", "call-template"]), default="manual"
)
def schema(of: str) -> None:
    """Write the JSON Schema (2020-12) of a manual or of a call template, for editors.

    Name it in a manual as "$schema", or in the editor's settings.
    """
    echo(json_text(manual_schema() if of == "manual" else call_template_schema(), indent=2))


def call_template_schema() -> dict[str, Any]:
    """The schema of a call template of type ``websocket``."""
    definitions, template = _definitions()
    return {"$schema": _DIALECT, **template, "$defs": definitions}


def manual_schema() -> dict[str, Any]:
    """The schema of every file that describes tools: a call template with its tools, or a UTCP manual."""
    definitions, template = _definitions()
    return {
        "$schema": _DIALECT,
        "title": "UTCP manual",
        "description": "The tools of an endpoint, and how they are called over WebSocket",
        # The first two members tell the forms apart, so that an editor explains the one that is meant.
        "if": {"type": "object", "anyOf": [{"required": ["url"]}, {"required": ["call_template_type"]}]},
        "then": {"$ref": "#/$defs/WebSocketCallTemplate"},
        "else": {"$ref": "#/$defs/Manual"},
        "$defs": {
            **definitions,
            "WebSocketCallTemplate": template,
            "Manual": {
                "description": "A UTCP manual; each tool names its own endpoint",
                "type": "object",
                "properties": {
                    "$schema": _EDITORS_FIELD,
                    "utcp_version": _VERSION,
                    "manual_version": _VERSION,
                    "tools": {"type": "array", "items": {"$ref": "#/$defs/Tool"}},
                },
                "required": ["tools"],
            },
        },
    }


def _definitions() -> tuple[dict[str, Any], dict[str, Any]]:
    """The definitions that all schemas refer to, and the schema of a call template."""
    template = _plain(WebSocketCallTemplate.model_json_schema())
    definitions = template.pop("$defs", {})
    definitions.update(
        JsonSchema=_JSON_SCHEMA, JsonType=_json_type(), Tool=_TOOL, OtherCallTemplate=_OTHER_CALL_TEMPLATE
    )
    definitions["Auth"] = _auth(definitions)
    properties = template["properties"]
    for old, new in OLD_NAMES.items():
        properties[old] = {**properties[new], "deprecated": True}
    properties["$schema"] = _EDITORS_FIELD
    properties["auth"] = {"anyOf": [{"$ref": "#/$defs/Auth"}, {"type": "null"}], "description": "Credentials"}
    described = properties["tools"].get("description", "")
    tools = {"type": "array", "items": {"$ref": "#/$defs/Tool"}}
    properties["tools"] = {"anyOf": [tools, {"type": "null"}], "description": described, "default": None}
    template["additionalProperties"] = False
    # A tool takes from its manual what its own template leaves out, the address among it.
    own = copy.deepcopy(template)
    own["required"] = ["call_template_type"]
    own["properties"]["call_template_type"] = {"const": "websocket"}
    for name in ("tools", "discovery_url", "discovery_message"):
        own["properties"].pop(name)
    definitions["ToolCallTemplate"] = {**own, "title": "Call template of a tool"}
    return definitions, template


def _json_type() -> dict[str, Any]:
    return {"enum": ["string", "number", "integer", "boolean", "array", "object", "null"]}


def _auth(definitions: dict[str, Any]) -> dict[str, Any]:
    kinds = []
    for model in (ApiKeyAuth, BasicAuth, OAuth2Auth):
        described = _plain(model.model_json_schema())
        definitions.update(described.pop("$defs", {}))
        # The type has a default in the model, but is what tells the kinds apart in a file.
        described["required"] = sorted({"auth_type", *described.get("required", ())})
        kinds.append(described)
    return {"anyOf": kinds, "title": "Credentials"}


def _plain(value: Any) -> Any:
    """A schema in the words of JSON Schema, without what core's docstrings have for core's own tools."""
    if isinstance(value, dict):
        plain = {_KEYWORDS.get(key, key): _plain(item) for key, item in value.items()}
        if isinstance(plain.get("description"), str):
            plain["description"] = plain["description"].removeprefix("REQUIRED\n")
        return plain
    return [_plain(item) for item in value] if isinstance(value, list) else value
