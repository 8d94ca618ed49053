"""Placeholders, and the templates they stand in: messages, URLs, values."""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from utcp_websocket_anyio._calls.request import Request, prepare
from utcp_websocket_anyio._templates.call_template import WebSocketCallTemplate
from utcp_websocket_anyio._templates.filters import compile_filter
from utcp_websocket_anyio._templates.messages import BoundMessage, compile_message
from utcp_websocket_anyio._templates.placeholders import DISCOVERY
from utcp_websocket_anyio._templates.received import Message
from utcp_websocket_anyio._templates.urls import compile_url
from utcp_websocket_anyio._templates.values import (
    RenderContext,
    compile_template,
    declare_inputs,
    encode_arguments,
    render_number,
)
from utcp_websocket_anyio.errors import MissingArgumentError

DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# What an argument would look like that wants to be taken for a part of its template.
hostile_text = st.text() | st.lists(
    st.sampled_from(
        [
            "{{args.b}}",
            "{{args}}",
            "{{uuid}}",
            "UTCP_ARG_b_UTCP_ARG",
            "${b}",
            "{{",
            "}}",
            '"',
            "\\",
            '", "admin": true, "z": "',
            ', "admin": true',
            '"admin": true, ',
            "}",
            "]",
            ",",
            ":",
            "1",
            "\n",
            "\0",
            "/",
            "..",
            ".",
            "?",
            "&x=1",
            "=",
            "#",
            "%2f",
            "%",
            ";",
            " ",
            "+",
            "ü",
        ]
    ),
    max_size=6,
).map("".join)
hostile = hostile_text | json_values


def values(
    tool_name: str = "tool", /, *, call_id: int = 0, captured: dict[str, Any] | None = None, **args: Any
) -> RenderContext:
    return RenderContext(args, tool_name).for_step(call_id, captured=captured or {})


def rendered(template: Any, /, **args: Any) -> Any:
    return compile_template(template, "message").render(values(**args))


def encoded(template: Any, /, **args: Any) -> str | bytes:
    return compile_message(template, "message").encode(values(**args))


def url(template: str, /, **args: Any) -> str:
    return compile_url(template, "url").render(values(**args))


def prepared(arguments: dict[str, Any], /, **fields: Any) -> Request:
    template = WebSocketCallTemplate.model_validate({"name": "manual", "url": "wss://example.com/", **fields})
    return prepare(template.plan, "tool", arguments, manual="manual")


# The table of placeholders


@pytest.mark.parametrize(
    ("template", "args", "result"),
    [
        ("UTCP_ARG_a_UTCP_ARG", {"a": "text"}, "text"),
        ("UTCP_ARG_a_UTCP_ARG", {"a": 3}, "3"),
        ("UTCP_ARG_a_UTCP_ARG", {"a": True}, "true"),
        ("UTCP_ARG_a_UTCP_ARG", {"a": None}, "null"),
        ("UTCP_ARG_a_UTCP_ARG", {"a": {"b": [1, "ü"]}}, '{"b": [1, "\\u00fc"]}'),
        ({"n": "UTCP_ARG_a_UTCP_ARG"}, {"a": 3}, {"n": "3"}),
        ("<UTCP_ARG_a_UTCP_ARG>", {"a": "text"}, "<text>"),
        ("UTCP_ARG_a_UTCP_ARGUTCP_ARG_b_UTCP_ARG", {"a": 1, "b": 2}, "12"),
        ("UTCP_ARG_a_b-c.d_UTCP_ARG", {"a_b-c.d": "x"}, "x"),
        ("{{args.a}}", {"a": "text"}, "text"),
        ("{{args.a}}", {"a": 3}, 3),
        ("{{args.a}}", {"a": False}, False),
        ("{{args.a}}", {"a": None}, None),
        ("{{args.a}}", {"a": {"b": [1, "ü"]}}, {"b": [1, "ü"]}),
        ("<{{args.a}}>", {"a": "text"}, "<text>"),
        ("<{{args.a}}>", {"a": 3.5}, "<3.5>"),
        ("<{{args.a}}>", {"a": [None, True]}, "<[null, true]>"),
        ("{{args.a}}{{args.b}}", {"a": 1, "b": 2}, "12"),
        ("{{ args.a }}", {"a": 3}, 3),
        ("{{args.a.b}}", {"a.b": 3}, 3),
        ("{{args.a-b}}", {"a-b": 3}, 3),
        ("{{args}}", {"a": 1, "b": [2]}, {"a": 1, "b": [2]}),
        ("{{args}}", {}, {}),
        ("all: {{args}}", {"a": 1}, 'all: {"a": 1}'),
        ("${a}", {"a": 3}, 3),
        ("<${a}>", {"a": 3}, "<3>"),
        ("${a}", {}, "${a}"),
        ("<${a}>", {"b": 3}, "<${a}>"),
        ("{{tool_name}}", {}, "tool"),
        ("<{{tool_name}}>", {}, "<tool>"),
    ],
)
def test_a_placeholder_stands_for_its_value(template: Any, args: dict[str, Any], result: Any) -> None:
    found = rendered(template, **args)
    assert (type(found), found) == (type(result), result)


def test_placeholders_work_at_any_depth_and_keep_their_type_there() -> None:
    template = {"a": [{"b": "{{args.x}}"}, "x={{args.x}}"], "c": {"d": ["UTCP_ARG_x_UTCP_ARG"]}, "e": 1, "f": None}
    assert rendered(template, x=[1]) == {
        "a": [{"b": [1]}, "x=[1]"],
        "c": {"d": ["[1]"]},
        "e": 1,
        "f": None,
    }


def test_the_uuid_is_one_uuid4_per_call_in_every_place_of_it() -> None:
    call = RenderContext({}, "tool")
    message = compile_message({"id": "{{uuid}}", "again": ["<{{uuid}}>"]}, "message")
    first = json.loads(message.encode(call))
    assert uuid.UUID(first["id"]).version == 4
    assert str(uuid.UUID(first["id"])) == first["id"]
    assert first["again"] == [f"<{first['id']}>"]
    assert json.loads(message.encode(call.for_step(7)))["id"] == first["id"]
    response = Message(json.dumps({"id": first["id"]}))
    assert compile_filter({"id": "{{uuid}}"}, "message_filter").matches(response, call)
    assert json.loads(message.encode(RenderContext({}, "tool")))["id"] != first["id"]


def test_the_call_id_is_an_integer_when_alone_and_the_same_in_a_message_and_its_filters() -> None:
    step = values(call_id=41)
    assert compile_template("{{call_id}}", "message").render(step) == 41
    assert compile_message({"id": "{{call_id}}", "text": "#{{call_id}}"}, "message").encode(step) == (
        '{"id": 41, "text": "#41"}'
    )
    message_filter = compile_filter({"id": "{{call_id}}"}, "message_filter")
    assert message_filter.matches(Message('{"id": 41}'), step)
    assert not message_filter.matches(Message('{"id": "41"}'), step)
    assert compile_template("{{call_id}}", "message").render(step.for_step(42)) == 42


def test_now_is_the_time_of_the_call_in_utc_with_a_z() -> None:
    call = RenderContext({}, "tool")
    now = compile_template("{{now}}", "message").render(call)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", now)
    said = datetime.fromisoformat(now)
    assert abs(datetime.now(UTC) - said) < timedelta(minutes=1)
    assert compile_template("at {{now}}", "message").render(call.replace(call_id=1)) == f"at {now}"
    assert call.for_step(1).time > call.time


def test_a_captured_value_keeps_its_type_when_alone() -> None:
    step = values(captured={"session": {"id": 7}, "n": 5})
    assert compile_template({"s": "{{captured.session}}", "n": "<{{captured.n}}>"}, "message").render(step) == {
        "s": {"id": 7},
        "n": "<5>",
    }
    with pytest.raises(ValueError, match="nothing was captured as 'session' on this connection") as raised:
        compile_template("{{captured.session}}", "message").render(values())
    assert raised.value.__context__ is None


def test_a_template_knows_what_it_names() -> None:
    template = compile_message(
        {"a": "{{args.x}} UTCP_ARG_y_UTCP_ARG ${z}", "b": ["{{captured.s}}", "{{args}}"]}, "message"
    )
    assert template.arguments == {"x", "y"}
    assert template.dollar_names == {"z"}
    assert template.captures == {"s"}
    assert not template.uses_call_id
    assert not template.is_static
    assert compile_template("{{call_id}}", "message").uses_call_id
    assert compile_message({"a": "{{other}}"}, "message").is_static
    assert repr(template) == "<MessageTemplate message>"


def test_dict_keys_are_not_templates() -> None:
    assert encoded({"{{args.a}}": 1, "UTCP_ARG_a_UTCP_ARG": {"${a}": 2}}, a="x") == (
        '{"{{args.a}}": 1, "UTCP_ARG_a_UTCP_ARG": {"${a}": 2}}'
    )


@pytest.mark.parametrize(
    "text",
    [
        "{{other}}",
        "{{argument.x}}",
        "{{args.a b}}",
        "{{captured}}",
        "{{uuid.x}}",
        "{{ARGS.a}}",
        "{args.a}",
        "{{args.a}",
        "{{other|json|hex}}",
        "{{}}",
        "UTCP_ARG_a",
        "UTCP_ARG__UTCP_ARG",
        "${a-b}",
        "${}",
        "$a",
    ],
)
def test_any_other_braces_are_ordinary_text(text: str) -> None:
    assert rendered(text, a="no", **{"": "no"}) == text


@pytest.mark.parametrize(
    ("template", "argument", "result"),
    [
        ("{{args.a|json}}", 'say "ü"', '"say \\"\\u00fc\\""'),
        ("{{args.a|json}}", {"b": None}, '{"b": null}'),
        ("{{args.a|base64}}", "ü", "w7w="),
        ("{{args.a|base64}}", [1], "WzFd"),
        ("{{args.a|hex}}", "ü\n", "c3bc0a"),
        ("{{args.a|urlencode}}", "a b/ü?&~", "a%20b%2F%C3%BC%3F%26~"),
        ("{{args.a|xml}}", "<a b=\"c\" d='e'>&", "&lt;a b=&quot;c&quot; d=&apos;e&apos;&gt;&amp;"),
        ("{{args.a|regex}}", "a.b*", r"a\.b\*"),
        ("{{args.a|bytes}}", "aü", 3),
        ("{{args.a|bytes}}", True, 4),
        ("{{ args.a | bytes }}:{{args.a}}", "aü", "3:aü"),
        ("{{args|json}}", "x", '{"a": "x"}'),
        ("{{tool_name|hex}}", "x", "746f6f6c"),
        ("{{call_id|json}}", "x", "0"),
    ],
)
def test_a_value_may_be_piped_through_one_encoder(template: str, argument: Any, result: Any) -> None:
    found = rendered(template, a=argument)
    assert (type(found), found) == (type(result), result)


def test_an_unknown_encoder_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"^message\.a\[1\]: .*'rot13'.* json, text, lower, upper, base64, base64url, hex, urlencode, ",
    ):
        compile_message({"a": ["", "{{args.a|rot13}}"]}, "message")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"message": "{{args.a}}"},
        {"message": {"a": "{{args.a}}"}},
        {"message": {"a": "{{args}}"}},
        {"message": {"a": "x UTCP_ARG_a_UTCP_ARG"}},
        {"message": ["${a}"]},
        {"message": '{"a": {{args.a}}}'},
        {"message": '{"a": "{{args.a|base64}}"}'},
        {"message": {"type": "binary", "encoding": "utf-8", "data": "{{args.a|json}}"}},
        {"message": "-", "url": "wss://example.com/{{args.a}}"},
        {"message": "-", "url": "wss://example.com/?a=UTCP_ARG_a_UTCP_ARG"},
        {"message": "-", "header_fields": ["a"]},
        {"message": "-", "response_timeout": "{{args.a}}"},
        {"message": "-", "message_filter": "{{args.a}}"},
        {"message": "-", "message_filter": {"a": "{{args.a}}"}},
        {"message": "-", "end_filter": {"$after": "{{args.a}}"}},
        {"message": "-", "error_filter": {"$text": "${a}"}},
        {"message": "-", "before": [{"send": "{{args.a}}"}]},
        {"message": "-", "before": [{"expect": {"a": "{{args.a}}"}}]},
        {"message": "-", "before": [{"expect": "a", "reject": {"a": {"$regex": "{{args.a}}"}}}]},
    ],
)
def test_nan_and_infinity_are_refused_wherever_an_argument_is_used(
    fields: dict[str, Any], wrapped: bool, number: float
) -> None:
    prepared({"a": [1.5] if wrapped and "response_timeout" not in fields else 1.5}, **fields)
    with pytest.raises(ValueError, match=r"Out of range float|must come out as a positive number"):
        prepared({"a": [number] if wrapped else number}, **fields)


@pytest.mark.parametrize("argument", [object(), {1, 2}, DEEP], ids=["object", "set", "deep"])
def test_an_argument_that_is_not_a_json_value_is_a_value_error(argument: Any) -> None:
    for template in ("{{args.a}}", {"a": "{{args.a}}"}):
        with pytest.raises(ValueError, match="an argument cannot be encoded as JSON"):
            encoded(template, a=argument)


def test_text_that_utf_8_has_not_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"message: .*surrogate"):
        compile_message("\ud800", "message")
    with pytest.raises(ValueError, match=r"message: .*surrogate"):
        encoded("ü{{args.a}}", a="\ud800")
    assert encoded({"a": "{{args.a}}"}, a="\ud800") == '{"a": "\\ud800"}'
    assert encoded("ü{{args.a}}", a="😀") == "ü😀"
    with pytest.raises(ValueError, match="surrogate"):
        url("wss://h/{{args.a}}", a="\ud800")


# Substitution is a single pass


@given(hostile_text)
def test_what_comes_out_of_an_argument_is_never_scanned_again(text: str) -> None:
    call = values(a=text, b="EXPANDED")
    assert compile_message("{{args.a}}", "message").encode(call) == text
    assert compile_message("<UTCP_ARG_a_UTCP_ARG>", "message").encode(call) == f"<{text}>"
    assert compile_template("${a}{{args.a}}", "message").render(call) == text + text
    for form in ("{{args.a}}", "UTCP_ARG_a_UTCP_ARG", "${a}", "{{args.a|json}}"):
        message = json.loads(compile_message({"k": form}, "message").encode(call))
        assert message == {"k": json.dumps(text) if "json" in form else text}
    data = compile_message({"type": "binary", "encoding": "utf-8", "data": "{{args.a}}"}, "message").encode(call)
    assert data == text.encode()
    if text not in (".", ".."):
        assert unquote(compile_url("wss://h/{{args.a}}", "url").render(call)) == f"wss://h/{text}"
    assert compile_filter({"$text": "{{args.a}}"}, "end_filter").matches(Message(text), call)


@given(hostile_text, hostile_text)
def test_neighbouring_arguments_do_not_make_a_placeholder_together(first: str, second: str) -> None:
    call = values(a=first, b=second, c="EXPANDED")
    assert compile_message("{{args.a}}{{args.b}}", "message").encode(call) == first + second
    assert compile_message("{{{{args.a}}}}", "message").encode(values(a="args.c", c="EXPANDED")) == "{{args.c}}"


def test_a_captured_value_is_not_scanned_again_either() -> None:
    call = values(captured={"a": "{{args.b}}"}, b="EXPANDED")
    assert compile_message("{{captured.a}}", "message").encode(call) == "{{args.b}}"


# Missing arguments


def test_every_missing_argument_is_named_wherever_it_is_used() -> None:
    with pytest.raises(MissingArgumentError) as raised:
        prepared(
            {"given": 1},
            url="wss://example.com/{{args.path}}?q=UTCP_ARG_query_UTCP_ARG",
            message={"a": "{{args.message}}", "b": "{{args.given}}"},
            message_filter={"a": "{{args.message_filter}}"},
            end_filter={"$text": "{{args.end_filter}}"},
            error_filter="{{args.error_filter}}",
            response_timeout="{{args.response_timeout}}",
            before=[
                {"send": "{{args.send}}", "expect": {"a": "{{args.expect}}"}, "reject": {"$hex": "{{args.reject}}"}}
            ],
        )
    names = (
        "end_filter",
        "error_filter",
        "expect",
        "message",
        "message_filter",
        "path",
        "query",
        "reject",
        "response_timeout",
        "send",
    )
    assert raised.value.names == names
    assert isinstance(raised.value, ValueError)
    assert all(name in str(raised.value) for name in names)


def test_a_dollar_name_and_the_whole_arguments_are_never_missing() -> None:
    assert prepared({}, message="${a} {{args}}").message == "${a} {}"


def test_a_hole_that_is_filled_without_its_argument_says_which_one_is_missing() -> None:
    with pytest.raises(MissingArgumentError) as raised:
        rendered("{{args.a}}")
    assert raised.value.names == ("a",)
    assert raised.value.__context__ is None


def test_arguments_cannot_stand_in_what_asks_for_a_manual() -> None:
    for placeholder in ("{{args.a}}", "{{args}}", "UTCP_ARG_a_UTCP_ARG", "{{args.a|json}}"):
        for template in (placeholder, [placeholder], {"type": "binary", "data": placeholder}):
            with pytest.raises(ValueError, match=r"discovery_message.*discovery is not a call"):
                compile_message(template, "discovery_message", DISCOVERY)
    assert compile_message("{{uuid}}${a}", "discovery_message", DISCOVERY).captures == frozenset()


# JSON in a string


@pytest.mark.parametrize(
    ("template", "args", "result"),
    [
        ('{"a": "{{args.x}}"}', {"x": 'say "hi"\n\\'}, {"a": 'say "hi"\n\\'}),
        ('{"a": "UTCP_ARG_x_UTCP_ARG"}', {"x": '", "admin": true, "z": "'}, {"a": '", "admin": true, "z": "'}),
        ('{"a": "<${x}>"}', {"x": '"'}, {"a": '<">'}),
        ('{"a": "{{args.x}}"}', {"x": 3}, {"a": "3"}),
        ('{"a": "{{args.x}}"}', {"x": {"b": "c"}}, {"a": '{"b": "c"}'}),
        ('{"a": {{args.x}}}', {"x": 3}, {"a": 3}),
        ('{"a": {{args.x}}}', {"x": "text"}, {"a": "text"}),
        ('{"a": {{args.x}}}', {"x": {"b": None}}, {"a": {"b": None}}),
        ('{"a": UTCP_ARG_x_UTCP_ARG}', {"x": 3}, {"a": 3}),
        ('{"a": UTCP_ARG_x_UTCP_ARG}', {"x": '1, "admin": true'}, {"a": '1, "admin": true'}),
        ('{"a": ${x}}', {"x": '1, "admin": true'}, {"a": '1, "admin": true'}),
        ('{"a": {{args.x|json}}}', {"x": "text"}, {"a": "text"}),
        ('{"a": {{args.x|bytes}}}', {"x": "text"}, {"a": 4}),
        ('{"a": "{{args.x|json}}"}', {"x": "text"}, {"a": '"text"'}),
        ('{"a": {{args}}}', {"x": 1}, {"a": {"x": 1}}),
        ('{"{{args.x}}": 1}', {"x": 'a": 2, "b'}, {'a": 2, "b': 1}),
        ('{"a": "\\"{{args.x}}\\\\", "b": "{{args.x}}"}', {"x": '"'}, {"a": '""\\', "b": '"'}),
        (' \n{"a": "{{args.x}}"}', {"x": '"'}, {"a": '"'}),
        ('["{{args.x}}", {{args.x}}]', {"x": '"], "'}, ['"], "', '"], "']),
        ('[[{"a": {{args.x}}}]]', {"x": '1}, {"b": 2'}, [[{"a": '1}, {"b": 2'}]]),
    ],
)
def test_in_a_string_that_is_json_an_argument_is_escaped(template: str, args: dict[str, Any], result: Any) -> None:
    message = encoded(template, **args)
    assert json.loads(message) == result


@pytest.mark.parametrize(
    ("template", "x", "result"),
    [
        ('say "{{args.x}}"', 'a"b', 'say "a"b"'),
        ("{{args.x}}", '{"a": "b"}', '{"a": "b"}'),
        (' {{args.x}}: "{{args.x}}"', '"', ' ": """'),
        ("[{{args.x}}] {{args.x}}", "INFO", "[INFO] INFO"),
        ("[{{args.x}}]{{args.x}}", "INFO", "[INFO]INFO"),
        ("{ user(id: {{args.x}}) }", "a", "{ user(id: a) }"),
        ("[CMD] {{args.x}}", "go", "[CMD] go"),
        ('42["event",{{args.x|json}}]', 'a"b', '42["event","a\\"b"]'),
    ],
)
def test_in_any_other_string_an_argument_is_as_it_is(template: str, x: str, result: str) -> None:
    assert encoded(template, x=x) == result


JSON_TEMPLATES = [
    '{"a": "{{args.x}}", "b": 1}',
    '{"a": "<UTCP_ARG_x_UTCP_ARG>", "b": 1}',
    '{"b": 1, "a": "${x}{{args.y}}"}',
    '{"a": {{args.x}}, "b": 1}',
    '{"a": UTCP_ARG_x_UTCP_ARG, "b": 1}',
    '{"a": {{args.x|json}}, "b": 1}',
    '{"a": "{{args.x|json}}", "b": 1}',
    '{"a": "\\\\{{args.x}}\\"", "b": 1}',
    '{\n  "b": 1, "a": {"c": ["{{args.x}}", {{args.y}}]}}',
    '{"a": {{args.x}}{{args.y}}, "b": 1}',
    '{"a": 1{{args.x}}, "b": 1}',
    '{"a": 0{{args.x}}, "b": 1}',
    '{"a": -{{args.x}}, "b": 1}',
    '{"a": 1, {{args.x}} "b": 1}',
    '{ {{args.x}} "b": 1, "a": 1}',
    '{"a": true{{args.x}}, "b": 1}',
    '{"a": {{args.x}} {{args.y}}, "b": 1}',
]


def keys_of(message: str | bytes) -> list[str] | None:
    """The keys of a JSON object, or None for what is none: a template that has two values in the place of one."""
    try:
        return sorted(key for key, _ in json.loads(message, object_pairs_hook=list))
    except ValueError:
        return None


@given(st.sampled_from(JSON_TEMPLATES), hostile, hostile)
def test_an_argument_can_never_add_or_change_a_field(template: str, x: Any, y: Any) -> None:
    message = encoded(template, x=x, y=y)
    assert keys_of(message) in (None, ["a", "b"])
    assert keys_of(message) is None or json.loads(message)["b"] == 1


@pytest.mark.parametrize("template", JSON_TEMPLATES)
@pytest.mark.parametrize("x", [', "admin": true', ', "admin": true,', '"admin": true,', '1, "b": 2, "admin": true'])
def test_a_field_cannot_be_smuggled_in_through_an_argument(template: str, x: str) -> None:
    message = encoded(template, x=x, y=",")
    assert keys_of(message) in (None, ["a", "b"])
    assert keys_of(message) is None or json.loads(message)["b"] == 1


@given(hostile_text)
def test_an_argument_inside_a_json_literal_arrives_as_it_was(text: str) -> None:
    assert json.loads(encoded('{"a": "{{args.x}}", "b": {{args.x}}, "c": ["UTCP_ARG_x_UTCP_ARG"]}', x=text)) == {
        "a": text,
        "b": text,
        "c": [text],
    }


# The forms of a message


@pytest.mark.parametrize("text", ["", "\r\n\0", "plain", "ü", '{"not": ', "[]", "{{other}}"])
def test_a_string_is_one_text_frame_as_it_is(text: str) -> None:
    assert encoded(text) == text


@given(st.dictionaries(st.text(), json_values) | st.lists(json_values))
def test_a_dict_or_list_is_sent_as_json_dumps_writes_it(value: Any) -> None:
    assume("UTCP_ARG_" not in repr(value))
    assume("{{" not in repr(value))
    assume("${" not in repr(value))
    assert encoded(value) == json.dumps(value)


@given(json_values, hostile)
def test_a_filled_dict_is_sent_as_json_dumps_writes_it(value: Any, x: Any) -> None:
    template = {"é": "{{args.x}}", "list": ["{{args.x}}", {"in": "<{{args.x}}>"}, 1.5, None, True], "value": "${v}"}
    text = x if isinstance(x, str) else json.dumps(x)
    assert encoded(template, x=x, v=value) == json.dumps(
        {"é": x, "list": [x, {"in": f"<{text}>"}, 1.5, None, True], "value": value}
    )
    assert encoded([template["é"]], x=x) == json.dumps([x])


@pytest.mark.parametrize(
    "value", [{}, [], {"a": {}}, [[], {}], {"type": "binary"}, {"type": "binary", "data": "", "x": 1}]
)
def test_a_dict_that_is_not_the_binary_form_is_json(value: Any) -> None:
    assert encoded(value) == json.dumps(value)


@pytest.mark.parametrize("value", [3, True, None, 1.5])
def test_a_message_is_a_string_an_object_or_a_list(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^message: must be a string, an object or a list$"):
        compile_message(value, "message")


@pytest.mark.parametrize(
    ("value", "frame"),
    [
        ({"type": "binary", "data": "AQL/"}, b"\x01\x02\xff"),
        ({"type": "binary", "data": ""}, b""),
        ({"type": "binary", "data": "AQL/", "encoding": "base64"}, b"\x01\x02\xff"),
        ({"type": "binary", "data": "01 02 fF", "encoding": "hex"}, b"\x01\x02\xff"),
        ({"type": "binary", "data": "ü\0", "encoding": "utf-8"}, b"\xc3\xbc\0"),
    ],
)
def test_the_binary_form_is_one_binary_frame(value: dict[str, Any], frame: bytes) -> None:
    assert encoded(value) == frame


def test_binary_data_is_a_template_too() -> None:
    assert encoded({"type": "binary", "data": "{{args.a}}"}, a="AQI=") == b"\x01\x02"
    assert encoded({"type": "binary", "data": "00{{args.a|hex}}", "encoding": "hex"}, a="é") == b"\0\xc3\xa9"
    assert encoded({"type": "binary", "data": "{{args.a|json}}", "encoding": "utf-8"}, a=[1]) == b"[1]"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("base64", "a"), ("base64", "AQ$="), ("base64", "AQI="[:3]), ("hex", "0"), ("hex", "zz"), ("utf-8", "\ud800")],
)
def test_bad_binary_data_is_a_value_error_before_anything_is_sent(encoding: str, data: str) -> None:
    form = {"type": "binary", "encoding": encoding}
    with pytest.raises(ValueError, match=f"^message.data: is not valid {encoding}$") as raised:
        compile_message({**form, "data": data}, "message")
    assert raised.value.__context__ is None
    with pytest.raises(ValueError, match=f"^message.data: is not valid {encoding}$"):
        encoded({**form, "data": "{{args.a}}"}, a=data)


@pytest.mark.parametrize("encoding", ["utf8", "ascii", None, ["hex"]])
def test_an_unknown_binary_encoding_is_an_error_that_names_those_there_are(encoding: Any) -> None:
    with pytest.raises(ValueError, match=r"^message.encoding: must be one of base64, hex, utf-8$"):
        compile_message({"type": "binary", "data": "", "encoding": encoding}, "message")


def test_binary_data_that_is_not_a_string_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^message.data: must be a string$"):
        compile_message({"type": "binary", "data": 1}, "message")


@given(st.binary())
def test_any_bytes_can_be_sent(data: bytes) -> None:
    assert encoded({"type": "binary", "data": base64.b64encode(data).decode()}) == data
    assert encoded({"type": "binary", "data": "{{args.a}}", "encoding": "hex"}, a=data.hex()) == data


def test_without_a_message_the_arguments_are_sent_except_those_in_url_and_headers() -> None:
    arguments = {"path": "p", "query": "q", "dollar": "d", "header": "h", "b": [1, "ü"], "a": None}
    request = prepared(
        arguments,
        url="wss://example.com/{{args.path}}/${dollar}?q=UTCP_ARG_query_UTCP_ARG",
        header_fields=["header", "missing"],
    )
    assert request.message == '{"b": [1, "\\u00fc"], "a": null}'
    assert request.endpoint.headers == (("header", "h"),)
    assert prepared({}).message == "{}"
    assert prepared(arguments).message == json.dumps(arguments)


@given(st.dictionaries(st.text(), json_values), st.sets(st.text()))
def test_arguments_are_encoded_as_json_dumps_writes_them(arguments: dict[str, Any], without: set[str]) -> None:
    kept = {name: value for name, value in arguments.items() if name not in without}
    assert encode_arguments(arguments, without=without) == json.dumps(kept)


@pytest.mark.parametrize("part", ["{{call_id}}", "{{captured.session}}"])
@pytest.mark.parametrize("together", [False, True])
def test_a_message_that_depends_on_the_connection_is_tried_before_there_is_one(part: str, together: bool) -> None:
    steps = [{"expect": {"a": 1}, "capture": {"session": {"path": "a"}}}]
    message: dict[str, Any] = {"100%": part + " {{args.a}}"} if together else {"100%": part, "a": "{{args.a}}"}
    request = prepared({"a": "50%s"}, message=message, before=steps)
    assert isinstance(request.message, BoundMessage)
    sent = json.loads(request.message.encode(request.context.replace(call_id=7, captured={"session": 7})))
    assert sent == ({"100%": "7 50%s"} if together else {"100%": 7, "a": "50%s"})
    with pytest.raises(ValueError, match="Out of range float"):
        prepared({"a": math.nan}, message=message, before=steps)
    with pytest.raises(ValueError, match="Out of range float"):
        prepared({"a": math.nan}, listen_only=True, before=[*steps, {"send": message}])


def test_a_call_that_only_listens_has_no_request() -> None:
    assert prepared({"a": 1}, listen_only=True).message is None


# URLs


@pytest.mark.parametrize(
    ("template", "args", "result"),
    [
        ("wss://h", {}, "wss://h"),
        ("wss://h?a=b", {}, "wss://h?a=b"),
        ("wss://h/?", {}, "wss://h/?"),
        ("wss://h/a/{{args.x}}/b", {"x": "a b/c?d#e&f=g%2f+ü"}, "wss://h/a/a%20b%2Fc%3Fd%23e%26f%3Dg%252f%2B%C3%BC/b"),
        ("wss://h/p?x=UTCP_ARG_x_UTCP_ARG&y=${y}", {"x": "&a=1", "y": 3}, "wss://h/p?x=%26a%3D1&y=3"),
        ("wss://h/?{{args.x}}", {"x": "a=b"}, "wss://h/?a%3Db"),
        ("wss://h/{{args.x}}", {"x": [1, 2]}, "wss://h/%5B1%2C%202%5D"),
        ("wss://h/{{args.x}}", {"x": ""}, "wss://h/"),
        ("wss://h/{{args.x}}", {"x": "..."}, "wss://h/..."),
        ("wss://h/v{{args.x}}", {"x": "."}, "wss://h/v."),
        ("wss://h/{{args.x}}", {"x": "%2e%2e"}, "wss://h/%252e%252e"),
        ("wss://h/?x={{args.x}}", {"x": ".."}, "wss://h/?x=.."),
        ("wss://h/?x={{args.x|urlencode}}", {"x": "a b"}, "wss://h/?x=a%20b"),
        ("wss://h/?x={{args.x|base64}}", {"x": "ü?"}, "wss://h/?x=w7w%2F"),
        ("wss://h/${x}?y=${y}", {}, "wss://h/${x}?y=${y}"),
        ("wss://h/a/./b/../c", {}, "wss://h/a/./b/../c"),
        ("wss://h/{{tool_name}}?{{other}}", {}, "wss://h/tool?{{other}}"),
        ("wss://h/?u=http://x/{{args.x}}", {"x": "/"}, "wss://h/?u=http://x/%2F"),
    ],
)
def test_values_in_a_url_are_percent_encoded(template: str, args: dict[str, Any], result: str) -> None:
    assert url(template, **args) == result


@pytest.mark.parametrize(
    ("template", "x"),
    [
        ("wss://h/{{args.x}}", "."),
        ("wss://h/{{args.x}}", ".."),
        ("wss://h/a/{{args.x}}/b?c", ".."),
        ("wss://h/UTCP_ARG_x_UTCP_ARG", ".."),
        ("wss://h/${x}/", "."),
        ("wss://h/.{{args.x}}", "."),
        ("wss://h/{{args.x}}{{args.x}}", "."),
        ("wss://h/{{args.x|urlencode}}", ".."),
    ],
)
def test_an_argument_that_makes_a_dot_segment_is_a_value_error(template: str, x: str) -> None:
    with pytest.raises(ValueError, match=r"^url: an argument makes the path segment"):
        url(template, x=x)


@pytest.mark.parametrize("placeholder", ["{{args.x}}", "UTCP_ARG_x_UTCP_ARG", "{{uuid}}", "{{args}}"])
@pytest.mark.parametrize(
    "template",
    ["{}://h/", "wss://{}/", "wss://{}", "wss://a.{}?q", "wss://h:{}/", "wss://u:{}@h/", "{}", "wss://${{H}}{}/"],
)
def test_a_placeholder_before_the_path_is_an_error(template: str, placeholder: str) -> None:
    with pytest.raises(ValueError, match=r"^url: .* may only stand in path and query$"):
        compile_url(template.format(placeholder), "url")


def test_a_url_may_begin_with_a_captured_one_which_goes_in_as_it_is() -> None:
    url = compile_url("{{captured.url}}/a?b={{args.b}}", "url")
    assert url.origin is None
    call = values(captured={"url": "wss://host/p#f"}, b="x&y")
    assert url.render(call) == "wss://host/p/a?b=x%26y"
    assert url.render(call, as_written={"captured."}) == "{{captured.url}}/a?b=x%26y"
    joined = compile_url("{{captured.url}}&t={{args.t}}", "url")
    assert joined.render(values(captured={"url": "wss://host/?a=1"}, t=["1", "2"])) == "wss://host/?a=1&t=1&t=2"
    with pytest.raises(ValueError, match=r"^url: {{captured.url}} must be the text of a URL$"):
        url.render(values(captured={"url": 5}, b=""))
    for template in ("{{captured.x}}://h/", "{{captured.x}}.example.com/"):
        with pytest.raises(ValueError, match="contains a whole URL; only a path or query may follow"):
            compile_url(template, "url")


@pytest.mark.parametrize(
    "template", ["wss://h#f", "wss://h/#f", "wss://h/p#f?q", "wss://h/p?q#f", "wss://h/{{args.x}}#"]
)
def test_a_url_with_a_fragment_is_an_error(template: str) -> None:
    with pytest.raises(ValueError, match=r"^url: a WebSocket URL has no fragment$"):
        compile_url(template, "url")


def test_variables_may_stand_anywhere_but_must_be_resolved_before_the_path() -> None:
    for template in ("wss://${HOST}/{{args.x}}", "${BASE}/{{args.x}}?y", "${SCHEME}://h:${PORT}/", "${BASE}"):
        with pytest.raises(ValueError, match=r"^url: contains a variable that was not resolved: \$\{[A-Z]+\}"):
            url(template, x=1)
    with pytest.raises(ValueError, match="not resolved") as raised:
        url("wss://user:secret@${HOST}/")
    assert "secret" not in str(raised.value)


def test_a_url_knows_what_it_names_and_where_it_leads() -> None:
    template = compile_url("wss://h:1/{{args.x}}?y=${y}&z={{captured.z}}", "url")
    assert template.arguments == {"x"}
    assert template.dollar_names == {"y"}
    assert template.captures == {"z"}
    assert template.origin == "wss://h:1"
    assert not template.is_static
    assert compile_url("wss://h/?{{other}}", "url").is_static


@given(hostile, hostile)
def test_an_argument_can_add_no_segment_parameter_or_fragment(x: Any, y: Any) -> None:
    # A list as a whole value repeats its parameter.
    assume(not isinstance(x, list) and not isinstance(y, list))
    as_text = [v if isinstance(v, str) else json.dumps(v) for v in (x, y)]
    assume(not any(text in (".", "..") for text in as_text))
    result = url("wss://h/a/{{args.x}}/UTCP_ARG_y_UTCP_ARG?p={{args.x}}&q=${y}&r=1", x=x, y=y)
    parts = urlsplit(result)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("wss", "h", "")
    assert [unquote(segment) for segment in parts.path.split("/")] == ["", "a", *as_text]
    assert parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) == [
        ("p", as_text[0]),
        ("q", as_text[1]),
        ("r", "1"),
    ]
    assert "#" not in result
    assert result.isascii()
    assert result.endswith(f"p={quote(as_text[0], safe='')}&q={quote(as_text[1], safe='')}&r=1")


# Numbers


@pytest.mark.parametrize(
    ("template", "args", "number"),
    [
        ("{{args.t}}", {"t": 5}, 5.0),
        ("{{args.t}}", {"t": 0.25}, 0.25),
        ("{{args.t}}", {"t": "2.5"}, 2.5),
        ("UTCP_ARG_t_UTCP_ARG", {"t": 5}, 5.0),
        ("{{args.t}}0", {"t": 5}, 50.0),
        ("${t}", {"t": 5}, 5.0),
    ],
)
def test_a_response_timeout_may_come_from_the_arguments(template: str, args: dict[str, Any], number: float) -> None:
    assert prepared(args, response_timeout=template).timeout == number


@pytest.mark.parametrize(
    "value", [0, -1, "0", "abc", "", None, True, [1], {}, "nan", "inf", math.nan, math.inf, 10**400]
)
def test_a_response_timeout_that_is_not_a_positive_number_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="response_timeout: must come out as a positive number") as raised:
        render_number(compile_template("{{args.t}}", "response_timeout"), values(t=value))
    assert raised.value.__context__ is None
    with pytest.raises(ValueError, match=r"positive number"):
        prepared({"t": value}, message="-", response_timeout="{{args.t}}")


# Declared inputs


def test_declaring_inputs_rewrites_their_dollar_names_and_nothing_else() -> None:
    template = {"${a}": ["${a} ${b} ${a}", {"c": "$a {{args.b}} ${a-b}"}], "n": 1, "none": None, "flag": True}
    declared = declare_inputs(template, {"a"})
    assert declared == {
        "${a}": ["{{args.a}} ${b} {{args.a}}", {"c": "$a {{args.b}} ${a-b}"}],
        "n": 1,
        "none": None,
        "flag": True,
    }
    assert template["${a}"] == ["${a} ${b} ${a}", {"c": "$a {{args.b}} ${a-b}"}]


@given(json_values, st.sets(st.text()))
def test_declaring_inputs_of_what_names_none_changes_nothing(value: Any, names: set[str]) -> None:
    assume("${" not in repr(value))
    assert declare_inputs(value, names) == value
