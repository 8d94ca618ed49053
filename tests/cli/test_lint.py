"""The warnings of `utcp-ws check`, and valid choices that give none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.terminal import done, failed, manual, written, ws

from utcp_websocket_anyio.cli.lint import lint_arguments, lint_manual, lint_schema, lint_template, suggestions

URL = "ws://127.0.0.1:1/"
EXAMPLES = Path(__file__).parents[2] / "examples"
MANUALS = EXAMPLES.rglob("*.json")


def template(**fields: Any) -> dict[str, Any]:
    return {"call_template_type": "websocket", "url": URL, **fields}


def tool(**fields: Any) -> dict[str, Any]:
    return {"name": "t", "description": "", "inputs": {"type": "object", "properties": {}}, **fields}


@pytest.mark.parametrize("path", sorted(MANUALS), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_manual_of_the_examples_has_a_warning(path: Path) -> None:
    done("check", str(path), "--strict")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (template(call_template_type="webscoket"), '"webscoket" is unknown here, so nothing can call it; did you mean'),
        (template(call_template_type=None), "call_template_type null is unknown here"),
        (template(mesage={}), "unknown field, ignored: mesage; did you mean message?"),
        (template(xyz=1), "unknown field, ignored: xyz"),
        (template(message={"q": "$name"}), "message.q: $name is a variable to UTCP clients, as ${name} is"),
        (template(on_connect=[{"send": "a $5 b"}]), "on_connect[0].send: $5 is a variable"),
        (template(message="SET {{args.k}}\r\n"), "message: an argument with a line break would add a line of its own"),
        (template(before=[{"send": "JOIN UTCP_ARG_room_UTCP_ARG\n"}]), "before[0].send: an argument with a line"),
        (
            template(message="PUB {{ args.k }}", outgoing={"suffix": "\r\n"}),
            "message: an argument with a line break would add a line of its own; write {{args.k|line}}",
        ),
        (template(tools=[tool(), tool()]), "2 tools are called 't'; only one of them can be called"),
        (template(tools=[tool(input={})]), "the tool t: unknown field, ignored: input"),
        ({**template(), "tools": [{"name": "t", "input": {}}]}, "did you mean inputs?"),
        (template(tools=[tool(inputs={"type": "array"})]), "the arguments of a tool are an object"),
        (template(tools=[tool(outputs={"type": "strng"})]), 'outputs.type: "strng" is not a type of JSON Schema'),
    ],
)
def test_a_likely_mistake_is_a_warning(content: dict[str, Any], said: str) -> None:
    assert any(said in warning for warning in lint_manual(content)), list(lint_manual(content))


@pytest.mark.parametrize(
    "content",
    [
        template(**{"$schema": "manual.schema.json"}, utcp_version="1.0.1", manual_version="1.0.0"),
        template(message={"q": "${name}", "price": "{{dollar}}5", "cost": "5$"}),
        template(message_filter="^OK$"),
        template(message="SET {{args.k|line}}\r\n"),
        template(message="one line {{args.k}}"),
        template(message='{"a":\n "{{args.k}}"}'),
        template(message="{{args.k}}"),
        template(message_filter="a\n{{args.k}}"),
        template(tools=[tool(description="costs $5", inputs={"$ref": "#/$defs/P", "$defs": {"P": {}}})]),
    ],
)
def test_deliberate_choices_give_no_warning(content: dict[str, Any]) -> None:
    assert list(lint_manual(content)) == []


@pytest.mark.parametrize(
    ("fields", "declared", "said"),
    [
        ({"message": "{{args.a}} {{args.b?}}"}, ["a"], "needs arguments that inputs does not declare: b"),
        ({"message": "{{args.a}}"}, ["a", "b", "c"], "declares arguments that the template never uses: b, c"),
        ({"listen_only": True}, ["a"], "never uses: a"),
        ({"message": {"x": 1}, "header_fields": ["h"]}, [], "does not declare: h"),
    ],
)
def test_arguments_are_used_and_declared(fields: dict[str, Any], declared: list[str], said: str) -> None:
    (warning,) = lint_arguments(template(**fields), {"properties": {name: {} for name in declared}})
    assert said in warning


@pytest.mark.parametrize(
    ("fields", "inputs"),
    [
        ({}, {"properties": {"a": {}}}),
        ({"message": {"all": "{{args}}"}}, {"properties": {"a": {}}}),
        ({"message": "{{args.user.name}}"}, {"properties": {"user": {"type": "object"}}}),
        ({"message": "{{args.a|json}}", "url": URL + "UTCP_ARG_b_UTCP_ARG"}, {"properties": {"a": {}, "b": {}}}),
        ({"message": "${a} ${TOKEN}"}, {"properties": {"a": {}}}),
        ({"message": "{{args.a}}"}, {"additionalProperties": True}),
        ({"on_connect": [{"send": "{{args.a}}"}], "message": "x"}, {"properties": {"a": {}}}),
    ],
)
def test_arguments_that_fit_are_no_warning(fields: dict[str, Any], inputs: dict[str, Any]) -> None:
    assert list(lint_arguments(template(**fields), inputs)) == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "inputs: a JSON schema is an object"),
        ({"type": "int"}, 'inputs.type: "int" is not a type of JSON Schema; did you mean integer?'),
        ({"type": ["string", "nul"]}, '"nul" is not a type'),
        ({"properties": []}, "inputs.properties: must be an object of schemas"),
        ({"properties": {"a": {"properties": {"b": {"type": "x"}}}}}, "inputs.properties.a.properties.b.type"),
        ({"required": "a"}, "inputs.required: must be a list of names"),
        ({"properties": {"name": {}}, "required": ["nam"]}, "'nam' is not among the properties; did you mean name?"),
        ({"properties": {"a": {"enum": "x"}}}, "inputs.properties.a.enum: must be a list"),
        ({"properties": {"a": {"minimum": "1"}}}, "inputs.properties.a.minimum: must be a number"),
        ({"properties": {"a": {"pattern": "("}}}, "inputs.properties.a.pattern: not a regular expression"),
        ({"properties": {"a": {"items": {"type": "x"}}}}, "inputs.properties.a.items.type"),
        ({"properties": {"a": {"anyOf": [{"type": "x"}]}}}, "inputs.properties.a.anyOf[0].type"),
        ({"$defs": {"A": 1}}, "inputs.$defs.A: a JSON schema is an object"),
    ],
)
def test_an_invalid_schema_is_a_warning(schema: Any, said: str) -> None:
    assert any(said in warning for warning in lint_schema(schema, "inputs"))


def test_a_valid_schema_gives_no_warning() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": ["string", "null"], "pattern": "^a", "minLength": 1, "format": None},
            "b": {"anyOf": [{"type": "array", "items": {"type": "number", "minimum": 0.5}}, True]},
            "c": {"$ref": "#/$defs/C"},
        },
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"C": {"enum": [1, "x", None]}},
    }
    assert list(lint_schema(schema, "inputs")) == []


@pytest.mark.parametrize(
    ("fields", "suggested"),
    [
        ({"message_filter": {"id": "{{call_id}}"}}, True),
        ({"message_filter": {"id": "{{ uuid }}"}}, True),
        ({"message_filter": {"id": "{{call_id}}"}, "expected_responses": 1}, False),
        ({"message_filter": {"id": "{{call_id}}"}, "end_filter": {"done": True}}, False),
        ({"message_filter": {"type": "news"}}, False),
        ({"listen_only": True, "message_filter": {"id": "{{uuid}}"}}, False),
    ],
)
def test_a_tool_that_answers_once_is_suggested_to_say_so(fields: dict[str, Any], suggested: bool) -> None:
    assert any("expected_responses: 1" in text for text in suggestions(template(**fields))) == suggested


def test_templates_of_other_protocols_are_left_alone() -> None:
    assert list(lint_template({"call_template_type": "http", "url": "https://example.com/$x", "y": 1})) == []


def test_warnings_are_counted_and_strict_makes_them_errors(tmp_path: Path) -> None:
    content = manual(URL, mesage={}, message={"q": "$name"})
    file = written(tmp_path / "m.json", content)
    lenient = ws("check", file)
    assert (lenient.exit_code, lenient.stderr.splitlines()[-1]) == (0, "valid, 2 warnings")
    strict = ws("check", file, "--strict")
    assert (strict.exit_code, strict.stdout) == (1, lenient.stdout)
    assert strict.stderr.splitlines()[-1] == "utcp-ws: 2 warnings, with --strict"
    as_json = json.loads(done("check", file, "--json"))
    assert len(as_json[0]["warnings"]) == 2
    assert json.loads(ws("check", file, "--json", "--strict").stderr.splitlines()[-1])["error"] == "Warnings"


def test_an_invalid_file_has_its_warnings_too(tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", {"ulr": URL, "call_template_type": "websocket"})
    told = failed(1, "check", file)
    assert "url" in told
    assert "unknown field, ignored: ulr; did you mean url?" in told


def test_a_wrong_type_of_call_template_is_not_passed_over(tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", template(call_template_type="web_socket"))
    assert 'call_template_type "web_socket" is unknown here' in done("check", file)
    assert ws("check", file, "--strict").exit_code == 1
    content = manual(URL)
    content["tools"][0]["tool_call_template"] = {"call_template_type": "htp", "url": "https://example.com"}
    assert "htp" in ws("check", written(tmp_path / "n.json", content), "--strict").output
