"""The call template: its JSON form, what it refuses, and the plan it is compiled into."""

from __future__ import annotations

import copy
import json
import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from utcp.data.auth import Auth, AuthSerializer
from utcp.data.auth_implementations import ApiKeyAuth, BasicAuth, OAuth2Auth
from utcp.data.call_template import CallTemplate
from utcp.data.tool import JsonSchema, Tool
from utcp.exceptions import UtcpSerializerValidationError

from utcp_websocket_anyio._templates import call_template
from utcp_websocket_anyio._templates.call_template import (
    WebSocketCallTemplate,
    WebSocketCallTemplateSerializer,
    declare_tool_inputs,
)
from utcp_websocket_anyio._templates.plan import Endpoint, Plan
from utcp_websocket_anyio._templates.values import RenderContext, Template

BASE: dict[str, Any] = {"name": "manual", "call_template_type": "websocket", "url": "wss://example.com/tools"}
FILTER = {"type": "a", "id": {"$in": [1, None]}}
STEP = {"send": "hello", "expect": FILTER, "reject": "no", "capture": {"session": {"path": "data.id"}}}

# A value of each field that is not its default.
OTHER_VALUES: dict[str, list[Any]] = {
    "auth": [
        {"auth_type": "api_key", "api_key": "k", "var_name": "key", "location": "query"},
        {"auth_type": "basic", "username": "u", "password": "p"},
        {
            "auth_type": "oauth2",
            "token_url": "https://example.com/token",
            "client_id": "i",
            "client_secret": "s",
            "scope": "a b",
        },
    ],
    "allowed_communication_protocols": [["websocket", "http"]],
    "message": ["", "text {{args.a}}", {"a": ["{{args.a}}", None, 1.5]}, [], {}, {"type": "binary", "data": "AQI="}],
    "response_format": ["json", "text", "raw"],
    "protocol": ["graphql-ws", ["v2", "v1.{{args.a}}"]],
    "keep_alive": [False],
    "timeout": [0.5, 60],
    "connection_timeout": [0.5, 60],
    "response_timeout": [0.5, 60, "{{args.seconds}}", "5"],
    "idle_timeout": [0.5, 60],
    "expected_responses": [-1, 0, 1, 7],
    "close_after_response": [True, False],
    "ping_interval": [0.5, None],
    "pong_timeout": [0.5],
    "headers": [{"X-Key": "value"}, {}],
    "header_fields": [["X-User", "X-Other"], []],
    "message_filter": ["a+", FILTER, [1]],
    "end_filter": ["a+", FILTER, [1]],
    "error_filter": ["a+", FILTER, [1]],
    "end_on_close": ["any", "never"],
    "result": [{"path": "a.0"}, {"regex": "(a)"}, {"after": "42", "path": "1"}, [{"slice": [2, None]}, {"as": "hex"}]],
    "error_result": [{"select": "error.message || error"}],
    "last_filter": ["a+", FILTER],
    "request": [[STEP], [{"send_each": {"of": "{{args.a}}", "chunk": 5}}], []],
    "session": ["{{args.a?}}"],
    "prepare": [[{"http": {"url": "https://example.com/token"}, "capture": {"t": {"path": "t"}}}]],
    "heartbeat": [{"send": "ping", "every": 5, "expect": "pong"}, {"silence": 60}],
    "on_response": [{"send": "ack {{message.id}}"}],
    "on_end": [[{"send": "bye", "when": "always"}]],
    "resume": [{}, {"attempts": 2, "not_after": [4000, [4100, 4199]], "gap_item": {"gap": "{{gap}}"}}],
    "incoming": [{"inflate": "gzip", "split": "json", "each": True, "json": ["a.b"]}],
    "outgoing": [{"suffix": "\n", "frame": "binary", "fragment": 1000}],
    "collect": ["join", "last"],
    "spread": [True],
    "keep_alive_timeout": [5, None],
    "listen_only": [True],
    "on_connect": [[STEP], []],
    "before": [[STEP], []],
    "on_message": [[{"match": FILTER, "reply": "pong", "capture": {"n": {"regex": "(.)"}}}], []],
    "on_close": [[{"send": "bye"}], []],
    "compression": ["deflate"],
    "compression_threshold": [0, 1],
    "max_message_size": [1],
    "max_connections": [1],
    "reconnect_attempts": [0, 9],
    "discovery_message": ["manual", {"type": "discover"}],
    "discovery_url": ["https://example.com/utcp"],
    "tools": [[], [{"name": "a", "description": "b", "inputs": {"type": "object"}, "tags": ["c"]}]],
}
ONE_EACH = [(name, value) for name, options in OTHER_VALUES.items() for value in options]

DEFAULTS = {
    "auth": None,
    "allowed_communication_protocols": None,
    "message": None,
    "response_format": None,
    "protocol": None,
    "keep_alive": True,
    "timeout": 30,
    "connection_timeout": 10,
    "response_timeout": None,
    "idle_timeout": None,
    "expected_responses": None,
    "close_after_response": None,
    "ping_interval": 30,
    "pong_timeout": 10,
    "headers": None,
    "header_fields": None,
    "message_filter": None,
    "end_filter": None,
    "last_filter": None,
    "error_result": None,
    "request": None,
    "session": None,
    "prepare": None,
    "heartbeat": None,
    "on_response": None,
    "on_end": None,
    "resume": None,
    "incoming": None,
    "outgoing": None,
    "collect": "list",
    "spread": False,
    "keep_alive_timeout": 300,
    "error_filter": None,
    "end_on_close": "normal",
    "result": None,
    "listen_only": False,
    "multiplex": False,
    "on_connect": None,
    "before": None,
    "on_message": None,
    "on_close": None,
    "compression": None,
    "compression_threshold": 1024,
    "max_message_size": 16 * 1024 * 1024,
    "max_connections": 10,
    "reconnect_attempts": 2,
    "discovery_message": {"type": "utcp"},
    "discovery_url": None,
    "tools": None,
}

serializer = WebSocketCallTemplateSerializer()


def template(**fields: Any) -> WebSocketCallTemplate:
    return serializer.validate_dict({**BASE, **fields})


def fault(**fields: Any) -> str:
    """The error of a template that is not valid, through the serializer; directly it is the same one."""
    with pytest.raises(UtcpSerializerValidationError) as raised:
        template(**fields)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    with pytest.raises(ValidationError):
        WebSocketCallTemplate.model_validate({**BASE, **fields})
    return str(raised.value).removeprefix("Invalid WebSocket call template: ")


def tool(fields: dict[str, Any], *names: str) -> Tool:
    return Tool(name="t", inputs=inputs(*names), tool_call_template=template(**fields))


def inputs(*names: str) -> JsonSchema:
    return JsonSchema.model_validate({"type": "object", "properties": {name: {"type": "string"} for name in names}})


def api_key(key: str) -> ApiKeyAuth:
    return ApiKeyAuth(api_key=key, var_name="X-Api-Key", location="header")


def sent(plan: Plan) -> Any:
    message = plan.request[0].send
    assert message is not None
    return message.encode(RenderContext({}, "tool"))


# The JSON form


def test_the_fields_and_their_defaults_are_the_documented_ones() -> None:
    fields = WebSocketCallTemplate(name="n", url="wss://example.com").__dict__
    assert fields == {"name": "n", "call_template_type": "websocket", "url": "wss://example.com", **DEFAULTS}
    assert OTHER_VALUES.keys() | {"multiplex"} == DEFAULTS.keys()
    for name, field in WebSocketCallTemplate.model_fields.items():
        assert field.description or name in CallTemplate.model_fields, f"{name} has no description"


@pytest.mark.parametrize(("name", "value"), ONE_EACH, ids=lambda value: str(value)[:30])
def test_every_field_survives_the_round_trip_and_nothing_else_is_written(name: str, value: Any) -> None:
    given = {**BASE, name: value}
    before = copy.deepcopy(given)
    built = serializer.validate_dict(given)
    assert given == before
    written = serializer.to_dict(built)
    assert written == before
    assert json.loads(json.dumps(written)) == written
    again = serializer.validate_dict(written)
    assert again == built
    assert serializer.to_dict(again) == written


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in OTHER_VALUES.items()}))
def test_any_combination_survives_the_round_trip(fields: dict[str, Any]) -> None:
    if fields.get("listen_only") or fields.get("request") is not None:
        fields = {name: value for name, value in fields.items() if name not in ("message", "expected_responses")}
    if fields.get("request") is not None:
        fields.pop("listen_only", None)
    given = {**BASE, **fields}
    assert serializer.to_dict(serializer.validate_dict(given)) == given


def test_multiplex_survives_the_round_trip() -> None:
    fields = {"multiplex": True, "message_filter": {"id": "{{call_id}}"}}
    assert serializer.to_dict(template(**fields)) == {**BASE, **fields}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items(), ids=lambda value: str(value)[:30])
def test_a_field_at_its_default_is_left_out(name: str, value: Any) -> None:
    assert serializer.to_dict(template(**{name: value})) == BASE


def test_a_template_without_a_name_gets_one() -> None:
    written = serializer.to_dict(WebSocketCallTemplate(url="wss://example.com"))
    assert written.keys() == {"name", "call_template_type", "url"}
    assert written["name"]


def test_the_json_form_shares_nothing_with_the_template_nor_the_template_with_its_input() -> None:
    given = {**BASE, "message": {"a": [1]}, "tools": [{"name": "a", "tags": ["b"]}], "headers": {"A": "b"}}
    built = serializer.validate_dict(given)
    written = serializer.to_dict(built)
    reference = copy.deepcopy(written)
    given["message"]["a"].append(2)
    given["tools"][0]["tags"].append("c")
    given["headers"]["C"] = "d"
    assert serializer.to_dict(built) == reference
    written["message"]["a"].append(3)
    written["tools"][0]["tags"].append("c")
    written["headers"]["C"] = "d"
    assert serializer.to_dict(built) == reference


def test_the_default_discovery_message_is_not_shared() -> None:
    first = template()
    assert isinstance(first.discovery_message, dict)
    first.discovery_message["type"] = "changed"
    assert template().discovery_message == {"type": "utcp"}
    assert serializer.to_dict(first)["discovery_message"] == {"type": "changed"}


@pytest.mark.parametrize(
    "auth",
    [
        api_key("k"),
        BasicAuth(username="u", password="p"),
        OAuth2Auth(token_url="https://example.com/t", client_id="i", client_secret="s", scope=None),
    ],
    ids=lambda auth: type(auth).__name__,
)
def test_auth_may_be_given_as_an_object(auth: Auth) -> None:
    built = WebSocketCallTemplate(name="n", url="wss://example.com", auth=auth)
    assert built.auth == auth
    assert serializer.validate_dict(serializer.to_dict(built)).auth == auth


# What is refused


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"url": None}, "url: Input should be a valid string"),
        ({"url": ""}, "url: must start with wss://, or with ws:// for loopback"),
        ({"url": "https://example.com"}, "url: must start with wss://, or with ws:// for loopback"),
        (
            {"url": "ws://example.com/"},
            "url: ws:// goes to localhost, 127.0.0.0/8, [::1] and trusted hosts only; use wss://",
        ),
        ({"url": "wss://example.com/#f"}, "url: a WebSocket URL has no fragment"),
        ({"url": "wss://u:p@example.com/"}, "url: contains user information; put credentials in auth"),
        ({"url": "wss://{{args.host}}/"}, "url: "),
        ({"url": "wss://${H}{{args.host}}/"}, "url: {{args.host}} may only stand in path and query"),
        ({"url": "wss://example.com/{{args.a|x}}"}, "url: {{args.a|x}}: unknown encoder 'x'; use one of json, "),
        ({"call_template_type": "http"}, "call_template_type: Input should be 'websocket'"),
        ({"message": 5}, "message: Input should be a valid string; message: Input should be a valid dictionary"),
        ({"message": {"type": "binary", "data": "?"}}, "message.data: is not valid base64"),
        ({"message": {"type": "binary", "data": "", "encoding": "x"}}, "message.encoding: must be one of base64, "),
        ({"message": {"a": [{1: 2}]}}, "message.a[0]: the key 1 must be a string"),
        ({"message": {"a": (1,)}}, "message.a: must be a JSON value, not tuple"),
        ({"message": [math.nan]}, "message[0]: must be a finite number, as JSON has no others"),
        ({"message_filter": {"a": {1: 2}}}, "message_filter.a: the key 1 must be a string"),
        ({"before": [{"expect": {"a": {1: 2}}}]}, "before[0].expect.a: the key 1 must be a string"),
        ({"response_format": "xml"}, "response_format: Input should be 'json', 'text' or 'raw'"),
        ({"protocol": ""}, "protocol: String should have at least 1 character"),
        ({"keep_alive": "perhaps"}, "keep_alive: Input should be a valid boolean"),
        ({"response_timeout": "soon"}, "response_timeout: must come out as a positive number"),
        ({"response_timeout": "0"}, "response_timeout: must come out as a positive number"),
        ({"expected_responses": -2}, "expected_responses: Input should be greater than or equal to -1"),
        ({"expected_responses": 1.5}, "expected_responses: Input should be a valid integer"),
        ({"headers": {"A": 5}}, "headers: Input should be a valid string"),
        ({"headers": {"a b": "c"}}, "headers: invalid header name 'a b'"),
        ({"headers": {"A": "b\r\nC: d"}}, "headers: the value of the header A contains a control character"),
        ({"headers": {"Host": "a"}}, "headers: the header Host belongs to the handshake and cannot be set"),
        ({"header_fields": ["A", "sec-websocket-key"]}, "header_fields: the header sec-websocket-key belongs to"),
        ({"header_fields": ["a\n"]}, "header_fields: invalid header name 'a\\n'"),
        ({"header_fields": "A"}, "header_fields: Input should be a valid list"),
        ({"message_filter": 5}, "message_filter: "),
        ({"message_filter": "("}, "message_filter: is not a valid regular expression"),
        ({"end_filter": {"$x": 1}}, "end_filter: $x cannot stand here; use one of $absent, "),
        ({"error_filter": {"$or": []}}, "error_filter.$or: must be a list with at least one entry"),
        ({"end_on_close": "all"}, "end_on_close: Input should be 'normal', 'any' or 'never'"),
        ({"result": {"regex": "a"}}, "result.regex: needs a group, in parentheses"),
        ({"result": "a"}, "result: Input should be a valid dictionary"),
        ({"on_connect": {"send": "a"}}, "on_connect: Input should be a valid list"),
        ({"on_connect": [{}]}, "on_connect[0]: a step needs send (a message), expect (a filter), http"),
        ({"before": [{"send": ""}, {"sent": "a"}]}, "before[1]: unknown key 'sent'; did you mean 'send'?"),
        ({"before": [{"send": "a", "reject": "b"}]}, "before[0].reject: works on the message that is waited for; give"),
        ({"before": [{"send": "a", "capture": {}}]}, "before[0].capture: works on the message that is waited for"),
        ({"before": [{"expect": "a", "capture": []}]}, "before[0].capture: must be an object of names and extractions"),
        (
            {"before": [{"expect": "a", "capture": {"b": {}}}]},
            "before[0].capture.b: must be an object with one of path, ",
        ),
        ({"before": [{"send": 5}]}, "before[0].send: must be a string, an object or a list"),
        ({"before": [{"expect": 5}]}, "before[0].expect: must be a pattern (string), an object or a list"),
        ({"before": [{"expect": "a", "reject": 5}]}, "before[0].reject: must be a pattern (string), an object or"),
        ({"before": ["hello"]}, "before: Input should be a valid dictionary"),
        ({"auto_reply": [{"match": "a"}]}, "on_message[0]: nothing is done with the message; give reply"),
        ({"auto_reply": [{"reply": "a"}]}, "on_message[0]: needs match (a filter); match is missing"),
        ({"on_message": [{"match": "a", "reply": "b", "send": "c"}]}, "on_message[0]: unknown key 'send'; use one of"),
        (
            {"message": "{{captured.a}}"},
            "message: {{captured.a}} is not captured by any step; nothing is captured here",
        ),
        (
            {"message_filter": {"a": "{{captured.b}}"}, "before": [STEP]},
            "message_filter: {{captured.b}} is not captured by any step; captured are session",
        ),
        ({"before": [{"send": "{{captured.a}}"}]}, "before[0].send: {{captured.a}} is not captured by any step"),
        ({"on_close": [{"send": "{{captured.a}}"}]}, "on_close[0].send: {{captured.a}} is not captured by any step"),
        ({"on_message": [{"match": "{{captured.a}}", "reply": ""}]}, "on_message[0].match: {{captured.a}} is not"),
        ({"on_message": [{"match": "", "reply": "{{captured.a}}"}]}, "on_message[0].reply: {{captured.a}} is not"),
        (
            {"on_connect": [{"send": "{{captured.session}}"}], "before": [STEP]},
            "on_connect[0].send: {{captured.session}} is not captured by any step",
        ),
        (
            {"url": "wss://example.com/{{captured.session}}", "on_connect": [STEP]},
            "url: {{captured.session}} is not captured by any step",
        ),
        (
            {"response_timeout": "{{captured.a}}", "on_connect": [STEP]},
            "response_timeout: {{captured.a}} is not captured by any step; captured are session",
        ),
        ({"compression": "gzip"}, "compression: Input should be 'deflate'"),
        ({"compression_threshold": -1}, "compression_threshold: Input should be greater than or equal to 0"),
        ({"max_message_size": 0}, "max_message_size: Input should be greater than 0"),
        ({"max_connections": 0}, "max_connections: Input should be greater than or equal to 1"),
        ({"reconnect_attempts": -1}, "reconnect_attempts: Input should be greater than or equal to 0"),
        ({"discovery_message": [1]}, "discovery_message: "),
        ({"discovery_message": "{{args.a}}"}, "discovery_message: {{args.a}} cannot be used here: discovery is"),
        ({"discovery_url": "http://example.com/"}, "discovery_url: http:// goes to localhost, 127.0.0.0/8, [::1] and"),
        ({"discovery_url": "wss://example.com/"}, "discovery_url: must start with https://, or with http:// for"),
        ({"multiplex": True}, "multiplex: concurrent calls on one connection are told apart by message_filter; give"),
        (
            {"multiplex": True, "message_filter": "a", "keep_alive": False},
            "multiplex: a shared connection is kept alive; leave keep_alive at true",
        ),
        (
            {"multiplex": True, "message_filter": "a", "close_after_response": True},
            "multiplex: one call cannot close a shared connection; leave close_after_response out",
        ),
        ({"listen_only": True, "message": ""}, "listen_only: no request is sent, so leave message out"),
        ({"listen_only": True, "expected_responses": 0}, "listen_only: with expected_responses 0 nothing would be"),
        ({"auth": "key"}, "auth: needs an auth_type, one of api_key, basic, oauth2"),
        ({"auth": {"auth_type": "magic"}}, "auth: needs an auth_type, one of api_key, basic, oauth2"),
        ({"auth": {"auth_type": "api_key"}}, "auth: api_key: Field required"),
        ({"auth": {"auth_type": "basic", "username": "u"}}, "auth: password: Field required"),
        (
            {"auth": {"auth_type": "api_key", "api_key": "k", "location": "body"}},
            "auth: location: Input should be 'header', 'query' or 'cookie'",
        ),
        (
            {"auth": {"auth_type": "oauth2", "token_url": "http://a.com/", "client_id": "i", "client_secret": "s"}},
            "auth.token_url: http:// goes to localhost, 127.0.0.0/8, [::1] and trusted hosts only; use https://",
        ),
        ({"tools": {}}, "tools: Input should be a valid list"),
        ({"tools": ["a"]}, "tools: Input should be a valid dictionary"),
        ({"tools": [{}]}, "tools[0].name: a tool needs a name"),
        ({"tools": [{"name": "a"}, {"name": ""}]}, "tools[1].name: a tool needs a name"),
        ({"tools": [{"name": 5}]}, "tools[0].name: a tool needs a name"),
        ({"tools": [{"name": "a", "inputs": "x"}]}, "tools[0].inputs: must be a JSON schema with an object of"),
        ({"tools": [{"name": "a", "inputs": {"properties": "x"}}]}, "tools[0].inputs: must be a JSON schema with"),
        ({"tools": [{"name": "a", "tool_call_template": "x"}]}, "tools[0].tool_call_template: must be an object with"),
        ({"tools": [{"name": "a", "tool_call_template": {}}]}, "tools[0].tool_call_template: must be an object with"),
        (
            {"tools": [{"name": "a", "tool_call_template": {**BASE, "timeout": 0}}]},
            "tools[0].tool_call_template.timeout: Input should be greater than 0",
        ),
        (
            {"tools": [{"name": "a", "tool_call_template": {**BASE, "message_filter": "("}}]},
            "tools[0].tool_call_template.message_filter: is not a valid regular expression",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_wrong_is_an_error_that_names_the_field_and_what_is_allowed(
    fields: dict[str, Any], expected: str
) -> None:
    assert fault(**fields).startswith(expected)


@pytest.mark.parametrize(
    "name", ["timeout", "connection_timeout", "response_timeout", "idle_timeout", "ping_interval", "pong_timeout"]
)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "greater than 0"),
        (-1.5, "greater than 0"),
        (math.nan, "greater than 0|finite number"),
        (math.inf, "finite number"),
        (True, "must be a number, not true or false"),
        ([], "valid number"),
        ({}, "valid number"),
    ],
)
def test_a_time_is_a_positive_number_of_seconds(name: str, value: Any, expected: str) -> None:
    text = fault(**{name: value})
    assert text.startswith(f"{name}: ")
    assert any(allowed in text for allowed in expected.split("|"))


@pytest.mark.parametrize(
    "name", ["compression_threshold", "max_message_size", "max_connections", "reconnect_attempts", "expected_responses"]
)
@pytest.mark.parametrize(
    ("value", "expected"), [(True, "must be a number, not true or false"), (1.5, "integer"), ("x", "integer")]
)
def test_a_count_is_an_integer(name: str, value: Any, expected: str) -> None:
    text = fault(**{name: value})
    assert text.startswith(f"{name}: ")
    assert expected in text


def test_the_url_is_required() -> None:
    with pytest.raises(UtcpSerializerValidationError, match="url: Field required"):
        serializer.validate_dict({"name": "n", "call_template_type": "websocket"})


@pytest.mark.parametrize("value", [None, [], "wss://example.com", 5])
def test_a_value_that_is_not_an_object_is_a_validation_error(value: Any) -> None:
    with pytest.raises(UtcpSerializerValidationError, match="valid dictionary"):
        serializer.validate_dict(value)


def test_all_errors_are_reported_at_once() -> None:
    text = fault(timeout=0, max_connections=0)
    assert "timeout: " in text
    assert "max_connections: " in text


@pytest.mark.parametrize("levels", [200, 100_000])
@pytest.mark.parametrize("name", ["message", "message_filter", "discovery_message", "result", "tools"])
def test_what_is_nested_without_end_is_a_validation_error(name: str, levels: int) -> None:
    deep: Any = {}
    for _ in range(levels):
        deep = {"name": deep}
    with pytest.raises(UtcpSerializerValidationError, match="nested"):
        template(**{name: [deep] if name == "tools" else deep})


def test_inline_tools_nested_without_end_are_a_validation_error() -> None:
    nested: dict[str, Any] = {"name": "a"}
    for _ in range(2000):
        nested = {"name": "a", "tool_call_template": {**BASE, "tools": [nested]}}
    with pytest.raises(UtcpSerializerValidationError, match="nested"):
        template(tools=[nested])


def test_a_value_that_is_not_json_is_a_validation_error() -> None:
    for name in ("message", "message_filter", "discovery_message"):
        assert fault(**{name: {"a": object()}}).startswith(f"{name}.a: must be a JSON value, not object")


# Secrets

SECRETS: dict[str, Any] = {
    "url": "wss://example.com/tools?token=SECRET",
    "headers": {"X-Key": "SECRET"},
    "auth": {"auth_type": "api_key", "api_key": "SECRET"},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout": 0},
        {"message_filter": "("},
        {"multiplex": True},
        {"response_timeout": "x"},
        {"unknown": "SECRET", "max_connections": 0},
        {"url": "ws://example.com/?token=SECRET"},
        {"url": "wss://user:SECRET@example.com/"},
        {"url": "wss://user:SECRET@${HOST}/{{args.a|x}}"},
        {"url": "wss://example.com/?token=SECRET#f"},
        {"url": "wss://example.com/?token=SECRET{{args.a|x}}"},
        {"url": "wss://exa mple.com/?token=SECRET"},
        {"url": "wss://{{args.host}}/?token=SECRET"},
        {"url": ["SECRET"]},
        {"headers": {"X-Key": "SECRET\r\n"}},
        {"headers": {"X-Key": "SECRETü"}},
        {"headers": {"X-Key": ["SECRET"]}},
        {"headers": "SECRET"},
        {"headers": {"Host": "SECRET"}},
        {"auth": "SECRET"},
        {"auth": ["SECRET"]},
        {"auth": {"auth_type": "SECRET"}},
        {"auth": {"auth_type": "api_key", "api_key": ["SECRET"]}},
        {"auth": {"auth_type": "api_key", "api_key": "SECRET", "location": "SECRET"}},
        {"auth": {"auth_type": "api_key", "api_key": "SECRET\n"}},
        {"auth": {"auth_type": "api_key", "api_key": "SECRET", "var_name": "a b"}},
        {"auth": {"auth_type": "basic", "username": "u", "password": {"p": "SECRET"}}},
        {
            "auth": {
                "auth_type": "oauth2",
                "token_url": "http://a.com/?SECRET",
                "client_id": "i",
                "client_secret": "SECRET",
            }
        },
        {
            "auth": {
                "auth_type": "oauth2",
                "token_url": "https://u:SECRET@a.com",
                "client_id": "i",
                "client_secret": "s",
            }
        },
        {"auth": {"auth_type": "oauth2", "client_secret": "SECRET"}},
        {"discovery_url": "http://example.com/?token=SECRET"},
        {"discovery_url": "https://u:SECRET@example.com/"},
        {"tools": [{"name": "a", "tool_call_template": {**BASE, **SECRETS, "timeout": 0}}]},
        {"tools": [{"name": "a", "tool_call_template": {**BASE, "url": "ws://example.com/?SECRET"}}]},
        {"tools": [{"name": "a", "tool_call_template": {**BASE, "auth": {"auth_type": "SECRET"}}}]},
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_validation_error_shows_no_secret(fields: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert "SECRET" not in fault(**{**SECRETS, **fields})
    with pytest.raises(ValidationError) as raised:
        WebSocketCallTemplate(**{**BASE, **SECRETS, **fields})
    assert "SECRET" not in str(raised.value)
    assert "SECRET" not in repr(raised.value)
    assert "SECRET" not in caplog.text


def test_auth_of_a_plugin_that_fails_in_its_own_way_is_a_validation_error_without_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Any, obj: Any) -> Any:
        raise RuntimeError("SECRET")

    monkeypatch.setattr(AuthSerializer, "validate_dict", fail)
    assert fault(auth={"auth_type": "basic"}) == "auth: is not valid for auth_type basic"


# Unknown fields


def test_unknown_fields_are_ignored_with_one_warning_that_names_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        built = template(timeuot="VALUE", another=1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "utcp_websocket_anyio._templates.call_template"
    assert "another, timeuot" in record.getMessage()
    assert "VALUE" not in record.getMessage()
    assert serializer.to_dict(built) == BASE


def test_known_fields_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    built = template(message="a", auth={"auth_type": "basic", "username": "u", "password": "p"})
    built.timeout = 5
    assert built.plan.timeout == 5
    assert not caplog.records


# Inline tools


def test_the_inputs_of_an_inline_tool_are_declared_when_the_template_is_validated() -> None:
    inline = {
        "name": "a",
        "inputs": {"type": "object", "properties": {"city": {"type": "string"}}},
        "tool_call_template": {**BASE, "message": {"c": "${city}", "k": "${KEY}"}},
    }
    given = copy.deepcopy(inline)
    built = template(tools=[inline, {"name": "b"}])
    assert inline == given
    assert built.tools is not None
    assert built.tools[0]["tool_call_template"]["message"] == {"c": "{{args.city}}", "k": "${KEY}"}
    assert built.tools[1] == {"name": "b"}
    assert serializer.validate_dict(serializer.to_dict(built)) == built


def test_an_inline_tool_of_another_protocol_stays_as_it_is() -> None:
    inline = {
        "name": "a",
        "inputs": {"properties": {"city": {}}},
        "tool_call_template": {"call_template_type": "http", "url": "https://example.com/${city}", "x": 1},
    }
    assert template(tools=[inline]).tools == [inline]


def test_tool_objects_may_be_given_inline() -> None:
    given = tool({"message": "${city}"}, "city")
    built = WebSocketCallTemplate(name="n", url="wss://example.com", tools=[given])  # type: ignore[list-item]  # a Tool object is converted
    assert built.tools is not None
    assert built.tools[0]["name"] == "t"
    assert built.tools[0]["tool_call_template"]["message"] == "{{args.city}}"
    assert isinstance(given.tool_call_template, WebSocketCallTemplate)
    assert given.tool_call_template.message == "${city}"
    assert json.dumps(serializer.to_dict(built))


def test_a_url_may_begin_with_a_variable_that_a_client_resolves_later() -> None:
    for url in ("${BASE}/a/{{args.b}}", "wss://${HOST}:${PORT}/?{{args.b}}", "${URL}"):
        assert template(url=url).url == url
    oauth2 = {"auth_type": "oauth2", "token_url": "${TOKEN}/a", "client_id": "i", "client_secret": "s"}
    template(discovery_url="${MANUAL}", auth=oauth2)
    with pytest.raises(UtcpSerializerValidationError, match="ws:// goes to localhost"):
        template(url="ws://example.com/?q=${q}")


# Declared inputs of a tool


def test_dollar_names_of_declared_inputs_become_arguments_wherever_a_calls_placeholders_work() -> None:
    given = tool(
        {
            "url": "wss://example.com/${a}?k=${KEY}",
            "message": {"${a}": ["${a}", "${KEY}"]},
            "before": [{"send": "${a}", "expect": {"x": "${a}"}}],
            "message_filter": {"x": "${a}"},
            "end_filter": "${a}",
            "error_filter": ["${a}"],
            "response_timeout": "${a}",
            "headers": {"X": "${a}"},
            "on_connect": [{"send": "${a}"}],
            "discovery_message": "${a}",
        },
        "a",
        "b",
    )
    before = given.model_dump()
    declared = declare_tool_inputs(given)
    assert given.model_dump() == before
    assert isinstance(declared.tool_call_template, WebSocketCallTemplate)
    assert serializer.to_dict(declared.tool_call_template) == {
        **BASE,
        "url": "wss://example.com/{{args.a}}?k=${KEY}",
        "message": {"${a}": ["{{args.a}}", "${KEY}"]},
        "before": [{"send": "{{args.a}}", "expect": {"x": "{{args.a}}"}}],
        "message_filter": {"x": "{{args.a}}"},
        "end_filter": "{{args.a}}",
        "error_filter": ["{{args.a}}"],
        "response_timeout": "{{args.a}}",
        "headers": {"X": "{{args.a}}"},
        "on_connect": [{"send": "{{args.a}}"}],
        "discovery_message": "${a}",
    }
    assert declared.name == given.name
    assert declared.inputs == given.inputs
    assert declared.tool_call_template.plan.arguments == {"a"}


def test_a_tool_with_nothing_to_declare_is_returned_as_it_is() -> None:
    for plain in (tool({"message": "${a}"}), tool({"message": "${KEY}"}, "a"), tool({}, "a")):
        assert declare_tool_inputs(plain) is plain
    other = Tool(
        name="t",
        inputs=inputs("a"),
        tool_call_template=CallTemplate(name="n", call_template_type="other"),
    )
    assert declare_tool_inputs(other) is other


def test_declaring_an_input_in_the_host_is_an_error() -> None:
    with pytest.raises(UtcpSerializerValidationError, match=r"url: .* may only stand in path and query"):
        declare_tool_inputs(tool({"url": "wss://${a}.example.com/"}, "a"))


# The plan


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ({}, "close_after_response", False),
        ({"keep_alive": False}, "close_after_response", True),
        ({"keep_alive": False, "close_after_response": False}, "close_after_response", False),
        ({"close_after_response": True}, "close_after_response", True),
        ({"timeout": 7}, "response_timeout", None),
        ({"timeout": 7, "response_timeout": 3}, "response_timeout", 3),
        ({"response_timeout": "2.5"}, "response_timeout", 2.5),
        ({"end_on_close": "any"}, "end_on_close", "any"),
        ({}, "end_on_close", None),
        ({"max_connections": 3}, "max_connections", 3),
        ({"headers": {"A": "b", "C": "d"}}, "_fixed_headers", (("A", "b"), ("C", "d"))),
        ({"url": "wss://h/{{args.a}}?${b}", "header_fields": ["C"]}, "consumed", {"a", "b", "C"}),
        ({"message": "{{call_id}}"}, "uses_call_id", True),
        ({"message": "{{uuid}}"}, "uses_call_id", False),
        ({"expected_responses": -1}, "is_subscription", True),
        ({"expected_responses": -1, "end_filter": "x"}, "is_subscription", False),
        ({}, "is_subscription", False),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_plan_says_what_the_fields_come_to(fields: dict[str, Any], attribute: str, value: Any) -> None:
    assert getattr(template(**fields).plan, attribute) == value


@pytest.mark.parametrize(
    ("expected_responses", "call", "stream"), [(None, 1, None), (0, 0, 0), (1, 1, 1), (5, 5, 5), (-1, None, None)]
)
def test_how_many_responses_are_expected(expected_responses: int | None, call: int | None, stream: int | None) -> None:
    plan = template(expected_responses=expected_responses).plan
    assert plan.expected(streaming=False) == call
    assert plan.expected(streaming=True) == stream


def test_the_steps_of_a_plan_have_their_parts_in_order() -> None:
    plan = template(
        on_connect=[STEP],
        before=[{"expect": {"a": "{{captured.session}}"}}, {"send": "{{args.a}}"}],
        on_close=[{"send": "{{captured.session}}"}],
        auto_reply=[{"match": {"type": "ping"}, "reply": {"type": "pong", "of": "{{captured.session}}"}}],
    ).plan
    (step,) = plan.settings.on_connect
    assert [part.where for part in step.parts] == [
        "on_connect[0].send",
        "on_connect[0].reject",
        "on_connect[0].expect",
        "on_connect[0].capture.session",
    ]
    assert list(step.capture) == ["session"]
    assert [[part.where for part in each.parts] for each in plan.before] == [["before[0].expect"], ["before[1].send"]]
    assert plan.settings.on_close[0].parts[0].captures == {"session"}
    reply = plan.settings.on_message[0].reply
    assert reply is not None
    assert reply.captures == {"session"}
    assert plan.arguments == {"a"}


def test_a_response_timeout_with_placeholders_stays_a_template() -> None:
    found = template(response_timeout="{{args.a}}").plan.response_timeout
    assert isinstance(found, Template)
    assert found.render(RenderContext({"a": 3}, "tool")) == 3


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"message_filter": {"id": "{{uuid}}"}}, ("id",)),
        ({"message_filter": {"id": "{{uuid}}"}, "error_filter": {"id": "{{uuid}}", "error": {"$any": True}}}, ("id",)),
        ({"message_filter": {"id": "{{uuid}}"}, "error_filter": {"error": {"$any": True}}}, None),
        ({"message_filter": {"id": "{{uuid}}"}, "error_filter": {"of": "{{uuid}}"}}, None),
        ({"message_filter": {"id": "{{uuid}}"}, "error_filter": {"id": "{{call_id}}"}}, None),
        ({"message_filter": {"a": 1}, "error_filter": {"id": "{{call_id}}"}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_correlation_is_what_all_filters_of_the_exchange_agree_on(fields: dict[str, Any], path: Any) -> None:
    correlation = template(**fields).plan.correlation
    assert (None if correlation is None else correlation[0]) == path


@pytest.mark.parametrize(("name", "value"), [*ONE_EACH, ("url", "wss://example.com/other")], ids=lambda v: str(v)[:30])
def test_templates_that_differ_have_plans_of_their_own(name: str, value: Any) -> None:
    assert template(**{name: value}).plan is not template().plan


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0, False), ("1", 1), (None, "null"), ([], {})])
def test_json_values_that_are_not_the_same_make_different_plans(one: Any, other: Any) -> None:
    assert template(message={"a": one}).plan is not template(message={"a": other}).plan


def test_what_was_built_is_kept_within_bounds_of_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = call_template._Cache()
    monkeypatch.setattr(call_template, "_cache", cache)
    monkeypatch.setattr(cache, "MAX_ENTRIES", 2)
    used = template(message="used").plan
    template(message="a")
    assert template(message="used").plan is used
    forgotten = template(message="b").plan
    assert template(message="b").plan is forgotten
    assert template(message="used").plan is used
    assert len(cache) == 2
    template(message="c")
    template(message="d")
    assert template(message="b").plan is not forgotten
    assert len(cache) == 2
    monkeypatch.setattr(cache, "MAX_ENTRIES", 1000)
    monkeypatch.setattr(cache, "MAX_BYTES", 5000)
    for number in range(20):
        template(message=f"{number}" * 1000)
    assert len(cache) <= 5
    monkeypatch.setattr(cache, "MAX_ENTRY_BYTES", 500)
    large = template(message="large" * 200).plan
    assert template(message="large" * 200).plan is not large


def test_the_cache_shows_no_secret() -> None:
    secret = "hunter2-hunter2"
    template(auth={"auth_type": "api_key", "api_key": secret})
    kept = call_template._cache
    assert not any(secret.encode() in key for key in kept._entries)
    assert secret not in template(protocol=secret).plan.settings.key


@pytest.mark.parametrize("again", ["validated", "copied"])
def test_templates_of_the_same_values_share_the_plan_and_nothing_else(again: str) -> None:
    auth = {"auth_type": "api_key", "api_key": "k"}
    values = {**BASE, "message": {"a": [1]}, "auth": auth, "tools": [{"name": "t"}]}
    before = copy.deepcopy(values)
    first = serializer.validate_dict(values)
    second = serializer.validate_dict(values) if again == "validated" else first.model_copy(deep=True)
    assert second == first
    assert second.plan is first.plan
    assert isinstance(first.message, dict)
    assert isinstance(first.auth, ApiKeyAuth)
    assert first.tools is not None
    first.message["a"].append(2)
    first.auth.api_key = "other"
    first.tools[0]["name"] = "other"
    first.url = "wss://example.com/other"
    third = serializer.validate_dict(values)
    for untouched in (second, third):
        assert (untouched.url, untouched.message, untouched.tools) == (BASE["url"], {"a": [1]}, [{"name": "t"}])
        assert untouched.plan.auth == api_key("k")
    assert values == before


def test_a_plan_is_of_the_template_as_it_is_now() -> None:
    built = template(message={"a": [1]}, auth={"auth_type": "api_key", "api_key": "k"})
    first = built.plan
    assert built.plan is first
    assert isinstance(built.message, dict)
    built.message["a"].append(2)
    assert built.plan is not first
    assert sent(built.plan) == '{"a": [1, 2]}'
    built.message["a"].pop()
    assert sent(built.plan) == '{"a": [1]}'
    assert isinstance(built.auth, ApiKeyAuth)
    built.auth.api_key = "other"
    assert built.plan is not first
    assert built.plan.auth == api_key("other")
    assert first.auth == api_key("k")
    assert sent(first) == '{"a": [1]}'


def test_templates_are_equal_when_their_fields_are() -> None:
    built = template()
    assert built != template(timeout=5)
    built.timeout = 5
    assert built == template(timeout=5)
    assert built != "something else"
    assert built != CallTemplate(**BASE)


def test_a_template_that_is_changed_into_a_wrong_one_has_no_plan() -> None:
    built = template()
    built.timeout = -1
    for _ in range(2):
        with pytest.raises(ValueError, match="timeout"):
            _ = built.plan
    built.timeout = 5
    assert built.plan.timeout == 5


def test_a_changed_url_is_checked_again() -> None:
    built = template()
    built.url = "ws://example.com/"
    with pytest.raises(ValueError, match="ws:// goes to localhost"):
        _ = built.plan


def test_copies_of_a_template_are_independent_and_compile_what_they_hold() -> None:
    built = template(message={"a": "{{args.a}}"})
    updated = built.model_copy(update={"message": "b"})
    assert sent(updated.plan) == "b"
    deep = copy.deepcopy(built)
    assert deep == built
    assert isinstance(deep.message, dict)
    deep.message["a"] = "c"
    assert sent(deep.plan) == '{"a": "c"}'
    assert built.plan.arguments == {"a"}


def test_a_template_built_without_validation_is_compiled_when_it_is_used() -> None:
    built = WebSocketCallTemplate.model_construct(**{**DEFAULTS, **BASE, "message": "a"})
    assert sent(built.plan) == "a"


# What may share a connection


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({"message": "a"}, True),
        ({"timeout": 5}, True),
        ({"expected_responses": 5}, True),
        ({"message_filter": "a", "end_filter": "b", "error_filter": "c"}, True),
        ({"before": [{"send": "a"}]}, True),
        ({"max_connections": 3}, True),
        ({"ping_interval": 30, "pong_timeout": 10, "max_message_size": 2**24}, True),
        ({"protocol": "p"}, False),
        ({"compression": "deflate"}, False),
        ({"compression_threshold": 1}, False),
        ({"max_message_size": 1}, False),
        ({"ping_interval": 1}, False),
        ({"pong_timeout": 1}, False),
        ({"on_connect": [{"send": "a"}]}, False),
        ({"auto_reply": [{"match": "a", "reply": "b"}]}, False),
        ({"on_close": [{"send": "a"}]}, False),
        ({"multiplex": True, "message_filter": "a"}, False),
    ],
    ids=str,
)
def test_only_templates_with_the_same_connection_settings_share_connections(
    fields: dict[str, Any], shared: bool
) -> None:
    one, other = template().plan.settings, template(**fields).plan.settings
    assert (one == other) is shared
    assert (len({one, other}) == 1) is shared
    assert one != "something else"


def test_credentials_are_a_part_of_what_is_shared() -> None:
    keys = [template(auth={"auth_type": "api_key", "api_key": key}).plan.credentials for key in ("a", "a", "b")]
    assert keys[0] == keys[1] != keys[2]
    assert template().plan.credentials is None


def test_an_endpoint_shows_no_query() -> None:
    plan = template().plan
    endpoint = Endpoint("manual", "wss://example.com/a?token=SECRET", (("X", "SECRET"),), None, plan.settings)
    assert repr(endpoint) == "<Endpoint wss://example.com/a of manual>"


def test_white_space_in_a_placeholder_of_a_url_is_fine_and_elsewhere_is_not() -> None:
    spaced = WebSocketCallTemplate(name="m", url="wss://h/{{ args.a }}?q={{ args.b | urlencode }}")
    assert spaced.plan.url.render(RenderContext({"a": "x y", "b": "z"}, "t")) == "wss://h/x%20y?q=z"
    with pytest.raises(ValidationError, match="url"):
        WebSocketCallTemplate(name="m", url="wss://h/a b/{{ args.a }}")
