"""JMESPath in filters and extractions, and the extractions of the second edition."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utcp_websocket_anyio._templates.extraction import compile_extraction
from utcp_websocket_anyio._templates.filters import compile_filter
from utcp_websocket_anyio._templates.placeholders import CALL
from utcp_websocket_anyio._templates.received import Message, ResponseError
from utcp_websocket_anyio._templates.selection import compile_selection
from utcp_websocket_anyio._templates.values import RenderContext


def selected(expression: str, value: Any, captured: dict[str, Any] | None = None, /, **args: Any) -> Any:
    context = RenderContext(args, "tool", captured=captured)
    return compile_selection(expression, "result.select", CALL).search(value, context)


def extracted(form: Any, data: Any, captured: dict[str, Any] | None = None, /, **args: Any) -> Any:
    message = Message(data if isinstance(data, (str, bytes)) else json.dumps(data))
    return compile_extraction(form, "result").extract(message, RenderContext(args, "tool", captured=captured))


def failed(form: Any, data: Any, /, **args: Any) -> str:
    with pytest.raises(ResponseError) as raised:
        extracted(form, data, **args)
    assert raised.value.__context__ is None
    return str(raised.value)


# Expressions


def test_an_expression_selects_and_shapes() -> None:
    trades = {"data": [{"ts": 1, "p": "2", "x": 0}, {"ts": 3, "p": "4"}]}
    assert selected("data[*].{t: ts, price: p}", trades) == [{"t": 1, "price": "2"}, {"t": 3, "price": "4"}]
    assert selected("error.message || error", {"error": "no"}) == "no"
    assert selected("data[?ts > `1`].p | [0]", trades) == "4"
    assert selected("data[::-1].ts", trades) == [3, 1]


def test_a_placeholder_stands_for_a_literal_of_any_type() -> None:
    rows = [{"id": 1, "k": "a"}, {"id": "1", "k": "b"}, {"id": None, "k": "c"}]
    assert selected("[?id == {{args.id}}].k", rows, id=1) == ["a"]
    assert selected("[?id == {{args.id}}].k", rows, id="1") == ["b"]
    assert selected("[?id == {{args.id?}}].k", rows) == ["c"]
    assert selected("[?contains({{captured.ids}}, id)].k", rows, {"ids": [1, "1"]}) == ["a", "b"]
    assert selected("[?id == `1` && k == '{{args.k}}'].k", rows, k="a") == ["a"]
    assert selected('[?k == `"{{args.k}}"`].k', rows, k="a") == ["a"]
    assert selected('{key: @."{{args.name}}"}', {"a b": 1}, name="a b") == {"key": 1}
    assert selected('`{"a": ["x{{args.k}}", 1]}`', None, k="y") == {"a": ["xy", 1]}


hostile = st.text() | st.lists(
    st.sampled_from(["'", '"', "`", "\\", "]", "|", " || ", "@", "*", "&&", "true", "0:", "{{now}}", "a"]), max_size=6
).map("".join)


@given(hostile, hostile)
def test_no_value_changes_an_expression(one: str, other: str) -> None:
    rows = [{"id": one}, {"id": other}, {"id": "x" + one + "y"}]
    for expression in ("[?id == {{args.v}}].id", "[?id == '{{args.v}}'].id", '[?id == `"{{args.v}}"`].id'):
        assert selected(expression, rows, v=one) == [row["id"] for row in rows if row["id"] == one]
    assert selected("[?id == 'x{{args.v}}y'].id", rows, v=one) == [row["id"] for row in rows if row["id"] == f"x{one}y"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a[", "is not a valid JMESPath expression: an error in its syntax"),
        ("", "must be a JMESPath expression (string)"),
        (5, "must be a JMESPath expression (string)"),
        ("foo.{{args.x}}", "an error in its syntax; a placeholder stands for a literal there"),
        ("lenght(a)", "JMESPath has no function 'lenght'; use one of abs, "),
        ("(" * 4000 + "a" + ")" * 4000, "it is nested too deeply"),
        ("a" * 10_001, "an expression may have 10000 characters at most"),
        ("[?a == {{arg.x}}]", "{{arg.x}} does not exist"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_expression_is_checked_when_it_is_compiled(expression: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^result\.select: ") as raised:
        compile_selection(expression, "result.select", CALL)
    assert expected in str(raised.value)
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("expression", "value"),
    [("length(a)", {"a": 5}), ("sum(a)", {"a": ["x"]}), ("sort(@)", [1, "a"]), ("to_number(@) && abs('secret')", "1")],
)
def test_an_expression_that_fails_on_a_message_is_a_response_error_without_its_values(
    expression: str, value: Any
) -> None:
    with pytest.raises(ResponseError, match=r"^result.select: the expression cannot be applied: ") as raised:
        selected(expression, value)
    assert "secret" not in str(raised.value)
    assert raised.value.__context__ is None


def test_an_expression_that_doubles_what_it_has_is_stopped() -> None:
    started = time.monotonic()
    for step in ("[@, @][]", "[@[], @[]][]"):
        with pytest.raises(ResponseError, match="it does too much work"):
            selected(" | ".join([step] * 60), ["x"] * 10)
    assert time.monotonic() - started < 30


def test_a_filter_is_true_where_its_expression_is() -> None:
    def matches(filter_: Any, data: Any, /, **args: Any) -> bool:
        return compile_filter(filter_, "f").matches(Message(json.dumps(data)), RenderContext(args, "tool"))

    assert matches({"$select": "a[?b == `1`]"}, {"a": [{"b": 1}]})
    assert not matches({"$select": "a[?b == `2`]"}, {"a": [{"b": 1}]})
    assert matches({"a": {"$select": "length(@) > `1`"}}, {"a": [1, 2]})
    assert matches({"$select": "a"}, {"a": 0}), "0 is true in JMESPath"
    assert not matches({"$select": "a"}, {"a": ""})
    assert matches({"type": "x", "$select": "n > {{args.n}}"}, {"type": "x", "n": 5}, n=4)
    assert not matches({"type": "x", "$select": "n > {{args.n}}"}, {"type": "x", "n": 5}, n=5)
    assert not matches({"b": {"$select": "@"}}, {})


# Extractions


@pytest.mark.parametrize(
    ("form", "data", "result"),
    [
        ({"path": ["a.b", 0]}, {"a.b": [7]}, 7),
        ({"path": ["a", -1]}, {"a": [7, 8]}, 8),
        ({"select": "data[*].{t: ts}"}, {"data": [{"ts": 1}]}, [{"t": 1}]),
        ({"slice": [2, None]}, b"\x01\x02\x03\x04", b"\x03\x04"),
        ({"slice": [None, -1]}, "abc", "ab"),
        ({"as": "hex"}, b"\x01\xff", "01ff"),
        ({"as": "base64"}, b"\x01\xff", "Af8="),
        ({"as": "utf-8"}, b"\xc3\xa9", "é"),
        ({"slice": [1, 3], "as": "hex"}, b"\x00\x01\x02\x03", "0102"),
        ({"path": "a", "json": True}, {"a": '{"b": 1}'}, {"b": 1}),
        ([{"path": "a"}, {"json": True}, {"path": "b.0"}], {"a": '{"b": [5]}'}, 5),
        ([{"slice": [2, None]}, {"path": "x"}], b'..{"x": 1}', 1),
        ([{"regex": "data=(.*)"}, {"path": "x"}], 'data={"x": 1}', 1),
        ([{"after": "42"}, {"select": "[1].n"}], '42["e", {"n": 3}]', 3),
        ({"after": "42", "select": "[1].n"}, '42["e", {"n": 3}]', 3),
        ({"path": "a", "default": "none"}, {}, "none"),
        ({"path": "a", "default": 0}, {"a": None}, 0),
        ({"path": "a", "default": None}, {}, None),
        ({"path": "a", "default": []}, {"a": False}, False),
        ({"path": "a", "default": 1}, "not JSON", 1),
        ({"regex": "(x)", "default": ""}, "abc", ""),
        ([{"path": "a"}, {"path": "b", "default": 1}, {"as": "hex", "default": 2}], {}, 2),
        ([{"path": "a"}, {"path": "b", "default": "ü"}, {"as": "hex"}], {}, "c3bc"),
    ],
    ids=str,
)
def test_an_extraction_applies_its_parts_in_order(form: Any, data: Any, result: Any) -> None:
    found = extracted(form, data)
    assert (type(found), found) == (type(result), result)


def test_placeholders_in_an_extraction_are_keys_literals_and_escaped_text() -> None:
    assert extracted({"path": "prices.{{args.symbol}}.0"}, {"prices": {"a.b": [1]}}, symbol="a.b") == 1
    assert extracted({"path": ["{{captured.key}}"]}, {"k": 2}, {"key": "k"}) == 2
    assert extracted({"regex": "{{args.x}}=(\\d)"}, "a.b=1 a+b=2", x="a+b") == "2"
    assert extracted({"after": "{{args.x}}:", "path": "a"}, 'p:{"a": 1}', x="p") == 1
    assert extracted({"path": "a", "default": ["{{args.x}}"]}, {}, x=5) == [5]
    assert failed({"path": "a.{{captured.missing}}"}, {"a": 1}).startswith("result: {{captured.missing}} has no value")


@pytest.mark.parametrize(
    ("form", "data", "expected"),
    [
        ({"path": "a.c"}, {"a": {"b": 1, "d\x1b": 2}}, r"result: the message has nothing at a.c; at a there are the"),
        ({"path": "a.c"}, {"a": {}}, "at a there is an empty object"),
        ({"path": "c"}, {str(n): n for n in range(20)}, "there are the keys '0', '1', "),
        ({"select": "a"}, {}, "result.select: the expression gives nothing for the message"),
        ({"slice": [0, 1]}, {"a": 1}, None),
        ([{"path": "a"}, {"slice": [0, 1]}], {"a": 5}, "there is neither text nor bytes"),
        ({"path": "a"}, "[" * 100_000, "the message is not JSON"),
    ],
)
def test_a_missing_part_is_reported_without_values(form: Any, data: Any, expected: str | None) -> None:
    if expected is None:
        assert extracted(form, data) == "{"
        return
    text = failed(form, data)
    assert expected in text
    assert "\x1b" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ([], "result: must not be an empty list"),
        ({"default": 1}, "result: must be an object with one of path, "),
        ([{"path": "a"}, "b"], "result[1]: must be an object with one of path, "),
        ({"path": "a", "select": "b"}, "result: path and select exclude each other"),
        ({"path": []}, "result.path: must be a path"),
        ({"path": ["a", True]}, "result.path[1]: must be a key (string) or an index (integer)"),
        ({"slice": [1]}, "result.slice: must be a list of two positions"),
        ({"slice": [1, "2"]}, "result.slice: must be a list of two positions"),
        ({"as": "rot13"}, "result.as: must be one of hex, base64, utf-8"),
        ({"json": False}, "result.json: must be true"),
        ({"select": "a["}, "result.select: is not a valid JMESPath expression"),
        ({"path": "{{args.x|bas64}}"}, "result.path: {{args.x|bas64}}: unknown encoder 'bas64'"),
    ],
    ids=str,
)
def test_a_wrong_form_is_an_error_that_says_where(form: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^result") as raised:
        compile_extraction(form, "result")
    assert str(raised.value).startswith(expected)


def test_a_pattern_that_takes_too_long_is_not_taken_for_something_that_is_not_there() -> None:
    assert "took longer than 100 ms" in failed({"regex": r"((?:a|aa)+)\1$", "default": 1}, "a" * 60 + "b")
