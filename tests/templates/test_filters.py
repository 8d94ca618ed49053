"""Filters: which messages are meant. Extractions: which part of one."""

from __future__ import annotations

import json
import math
import time
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from utcp_websocket_anyio._templates.extraction import compile_extraction
from utcp_websocket_anyio._templates.filters import MISSING, compile_filter, lookup
from utcp_websocket_anyio._templates.json_values import equal_json
from utcp_websocket_anyio._templates.placeholders import DISCOVERY
from utcp_websocket_anyio._templates.received import Message, ResponseError
from utcp_websocket_anyio._templates.values import RenderContext

CATASTROPHIC = r"^(a|aa)+$"
OBJECT = "result: must be an object with one of path, select, regex, after, slice, as, json, or a list of such objects"
LONG = "a" * 60 + "b"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
pattern_text = st.text() | st.lists(
    st.sampled_from(
        [".", "*", "^", "$", "|", "(", ")", "[", "]", "a-z", "\\", "\\d", "{2}", "#", " ", "\n", "&&", "--"]
    ),
    max_size=5,
).map("".join)


def values(*, call_id: int = 0, captured: Mapping[str, Any] | None = None, **args: Any) -> RenderContext:
    return RenderContext(args, "tool").for_step(call_id, captured=captured or {})


def matches(filter_: Any, data: Any, /, **args: Any) -> bool:
    """True if a filter matches; a message that is neither str nor bytes is sent as JSON."""
    message = Message(data if isinstance(data, (str, bytes)) else json.dumps(data))
    return compile_filter(filter_, "message_filter").matches(message, values(**args))


# The table of filters, row by row: what each matches and what not


@pytest.mark.parametrize(
    ("filter_", "data", "expected"),
    [
        # dict: a JSON object with all these keys
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1, "d": 1}}}, True),
        ({"a": {"b": 1}}, {"a": 1}, False),
        ({"a": {"b": 1}}, {"a": [1]}, False),
        ({"a": {"b": 1}}, {}, False),
        ({}, {}, True),
        ({}, {"a": 1}, True),
        ({}, [], False),
        ({}, "text", False),
        ({"a": {}}, {"a": {"b": 1}}, True),
        ({"a": {}}, {"a": 1}, False),
        ({"a": {}}, {}, False),
        ({"a": 1}, [{"a": 1}], False),
        ({"a": 1}, "null", False),
        ({"a": 1}, "no JSON", False),
        ({"a": 1}, b'{"a": 1}', True),
        ({"a": 1}, b"\xff", False),
        # list: a JSON array whose leading elements match
        ([1, "a"], [1, "a"], True),
        ([1, "a"], [1, "a", None], True),
        ([1, "a"], [1], False),
        ([1, "a"], ["a", 1], False),
        ([], [], True),
        ([], [1], True),
        ([], {}, False),
        ([{"a": 1}], [{"a": 1, "b": 2}, 3], True),
        ({"a": [[1]]}, {"a": [[1, 2], 3]}, True),
        ({"a": [1]}, {"a": 1}, False),
        ({"a": [1]}, {}, False),
        ({"a": [None]}, {"a": []}, False),
        ({"a": [{"$absent": True}]}, {"a": []}, True),
        ({"a": [{"$absent": True}]}, {"a": [1]}, False),
        # scalar: equality by JSON value
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 10**20}, '{"a": 1e20}', True),
        ({"a": -0.0}, {"a": 0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": False}, {"a": 0}, False),
        ({"a": 0}, {"a": False}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": False}, {"a": True}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {"a": 0}, False),
        ({"a": None}, {"a": False}, False),
        ({"a": None}, {}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": "x"}, {"a": "xx"}, False),
        ({"a": "x.*"}, {"a": "xyz"}, False),
        # str: a regular expression, searched in a text message
        ("ready", "> ready now", True),
        ("^ready", "> ready now", False),
        ("a.b", "a\nb", True),
        ("^b", "a\nb", False),
        ("", "", True),
        ("a", b"a", True),
        (r'"type": *"x"', '{"type": "x"}', True),
        # $any, $absent
        ({"a": {"$any": True}}, {"a": 1}, True),
        ({"a": {"$any": True}}, {"a": None}, True),
        ({"a": {"$any": True}}, {"b": 1}, False),
        ({"a": {"$absent": True}}, {"b": 1}, True),
        ({"a": {"$absent": True}}, {}, True),
        ({"a": {"$absent": True}}, {"a": None}, False),
        ({"a": {"$absent": True}}, [], False),
        ({"a": {"$absent": True}, "b": 1}, {"b": 1}, True),
        ({"a": {"b": {"$absent": True}}}, {}, False),
        ({"$any": True}, "1", True),
        ({"$any": True}, "x", False),
        # $in, $regex
        ({"a": {"$in": [1, "x", None]}}, {"a": "x"}, True),
        ({"a": {"$in": [1, "x", None]}}, {"a": 1.0}, True),
        ({"a": {"$in": [1, "x", None]}}, {"a": None}, True),
        ({"a": {"$in": [1, "x", None]}}, {"a": True}, False),
        ({"a": {"$in": [1, "x", None]}}, {}, False),
        ({"a": {"$in": [{"b": 1}, [2]]}}, {"a": {"b": 1}}, True),
        ({"a": {"$in": [{"b": 1}, [2]]}}, {"a": [2]}, True),
        ({"a": {"$in": [{"b": 1}, [2]]}}, {"a": [1]}, False),
        ({"a": {"$regex": "b.d"}}, {"a": "ab\nde"}, True),
        ({"a": {"$regex": "^b"}}, {"a": "ab"}, False),
        ({"a": {"$regex": "1"}}, {"a": 1}, False),
        ({"a": {"$regex": ""}}, {}, False),
        ({"$regex": "b"}, '"abc"', True),
        ({"$regex": "b"}, "abc", True),
        # $or, $and
        ({"$or": [{"a": 1}, "ready", {"$hex": "00"}]}, {"a": 1}, True),
        ({"$or": [{"a": 1}, "ready", {"$hex": "00"}]}, "ready", True),
        ({"$or": [{"a": 1}, "ready", {"$hex": "00"}]}, b"\0", True),
        ({"$or": [{"a": 1}, "ready", {"$hex": "00"}]}, "other", False),
        ({"$and": ["^{", {"a": 1}, {"b": {"$any": True}}]}, '{"a": 1, "b": 2}', True),
        ({"$and": ["^{", {"a": 1}, {"b": {"$any": True}}]}, '{"a": 1}', False),
        ({"$and": ["^{", {"a": 1}]}, b'{"a": 1}', True),
        ({"$and": [{"$or": [{"a": 1}, {"a": 2}]}, {"b": 1}]}, {"a": 2, "b": 1}, True),
        ({"a": {"$or": [1, {"$regex": "x"}, {"$absent": True}]}}, {"a": 1}, True),
        ({"a": {"$or": [1, {"$regex": "x"}, {"$absent": True}]}}, {"a": "axb"}, True),
        ({"a": {"$or": [1, {"$regex": "x"}, {"$absent": True}]}}, {}, True),
        ({"a": {"$or": [1, {"$regex": "x"}, {"$absent": True}]}}, {"a": 2}, False),
        ({"a": {"$and": [{"$regex": "^a"}, {"$regex": "z$"}]}}, {"a": "abz"}, True),
        ({"a": {"$and": [{"$regex": "^a"}, {"$regex": "z$"}]}}, {"a": "abc"}, False),
        ({"$or": [{"a": 1}, {"a": 2}], "b": 1}, {"a": 2, "b": 1}, True),
        ({"$or": [{"a": 1}, {"a": 2}], "b": 1}, {"a": 2}, False),
        ({"$or": [{"a": 1}, {"a": 2}], "b": 1}, {"b": 1}, False),
        ({"a": {"$any": True, "b": 1}}, {"a": {"b": 1}}, True),
        ({"a": {"$any": True, "b": 1}}, {"a": {"b": 2}}, False),
        ({"a": {"$regex": "^a", "$in": ["ab", "b"]}}, {"a": "ab"}, True),
        ({"a": {"$regex": "^a", "$in": ["ab", "b"]}}, {"a": "b"}, False),
        ({"a": {"$regex": "^a", "$in": ["ab", "b"]}}, {"a": "ac"}, False),
        # $text, $hex
        ({"$text": "2"}, "2", True),
        ({"$text": "2"}, "22", False),
        ({"$text": ""}, "", True),
        ({"$text": "2"}, b"2", True),
        ({"$text": "a.c"}, "abc", False),
        ({"$hex": "2002"}, b"\x20\x02", True),
        ({"$hex": "2002"}, b"\x20\x02\xff", True),
        ({"$hex": "20 02"}, b"\x20\x02", True),
        ({"$hex": "fF"}, b"\xff", True),
        ({"$hex": "2002"}, b"\x20", False),
        ({"$hex": "2002"}, b"\0\x20\x02", False),
        ({"$hex": "2002"}, " \x02", False),
        ({"$hex": ""}, b"", True),
        # $after
        ({"$after": "42", "$json": ["event"]}, '42["event", 1]', True),
        ({"$after": "42", "$json": ["event"]}, '42["other", 1]', False),
        ({"$after": "42", "$json": ["event"]}, '43["event", 1]', False),
        ({"$after": "42", "$json": ["event"]}, '["event", 1]', False),
        ({"$after": "42", "$json": ["event"]}, "42[", False),
        ({"$after": "42", "$json": ["event"]}, b'42["event"]', True),
        ({"$after": "", "$json": 1}, "1.0", True),
        ({"$after": "p", "$json": "x"}, 'p"x"', True),
        ({"$after": "p", "$json": {"$or": [1, {"a": {"$any": True}}]}}, 'p{"a": null}', True),
        ({"$json": {"a": 1}, "$after": "p"}, 'p{"a": 1}', True),
        ({"$after": "42"}, "42", True),
        ({"$after": "42"}, "42 no JSON", True),
        ({"$after": "42"}, "4", False),
        ({"$after": "42"}, b"42", True),
        # $frame
        ({"$frame": "text"}, "", True),
        ({"$frame": "text"}, b"", False),
        ({"$frame": "binary"}, b"", True),
        ({"$frame": "binary"}, "", False),
        ({"$frame": "binary", "a": 1}, b'{"a": 1}', True),
        ({"$frame": "binary", "a": 1}, '{"a": 1}', False),
        # A key of the message that looks like an operator
        ({"$$any": 1}, {"$any": 1}, True),
        ({"$$any": 1}, {"$$any": 1}, False),
        ({"$$": 1}, {"$": 1}, True),
        ({"a": {"$$frame": 1}}, {"a": {"$frame": 1}}, True),
    ],
)
def test_a_filter_matches_what_it_says(filter_: Any, data: Any, expected: bool) -> None:
    assert matches(filter_, data) is expected


@pytest.mark.parametrize(
    ("filter_", "data", "expected"),
    [
        # Not
        ({"a": {"$not": 1}}, {"a": 2}, True),
        ({"a": {"$not": 1}}, {"a": 1}, False),
        ({"a": {"$not": 1}}, {}, True),
        ({"$not": {"type": "x"}}, {"type": "y"}, True),
        ({"$not": {"type": "x"}}, {"type": "x"}, False),
        ({"$not": {"type": "x"}}, "text", True),
        ({"$not": "^a"}, "ba", True),
        ({"type": "x", "$not": {"$frame": "binary"}}, {"type": "x"}, True),
        ({"type": "x", "$not": {"$frame": "binary"}}, b'{"type": "x"}', False),
        # Exactly
        ({"$equals": {}}, {}, True),
        ({"$equals": {}}, {"a": 1}, False),
        ({"a": {"$equals": []}}, {"a": []}, True),
        ({"a": {"$equals": []}}, {"a": [1]}, False),
        ({"a": {"$equals": {"b": [1.0]}}}, {"a": {"b": [1]}}, True),
        ({"a": {"$equals": {"b": True}}}, {"a": {"b": 1}}, False),
        ({"a": {"$equals": None}}, {}, False),
        # Alone, about the whole message
        ({"$in": [1, "x"]}, "1", True),
        ({"$in": [1, "x"]}, '"x"', True),
        ({"$in": [1, "x"]}, "x", False),
        ({"$regex": "^b"}, "abc", False),
        ({"$regex": "b"}, b"abc", True),
        ({"$regex": "b"}, b"ab\xff", False),
        ({"$regex": "b", "a": 1}, '{"a": 1, "b": 2}', True),
        ({"$regex": "c", "a": 1}, '{"a": 1, "b": 2}', False),
        ({"$frame": "text", "$in": [[1]]}, "[1, 2]", True),
        ({"a": {"$regex": "^x", "$not": "xy"}}, {"a": "xz"}, True),
        ({"a": {"$regex": "^x", "$not": "xy"}}, {"a": "xy"}, False),
        # Text of binary messages
        ("é", "é".encode(), True),
        ("", b"\xff", False),
        ({"$text": "é"}, "é".encode(), True),
        ({"$after": "4", "$json": {"a": 1}}, b'4{"a": 1}', True),
    ],
    ids=str,
)
def test_operators_stand_alone_and_beside_each_other(filter_: Any, data: Any, expected: bool) -> None:
    assert matches(filter_, data) is expected


def test_an_optional_value_asks_for_nothing_where_it_is_not_given() -> None:
    filter_ = {"type": "x", "id": "{{args.id?}}"}
    assert matches(filter_, {"type": "x", "id": 5})
    assert matches(filter_, {"type": "x"})
    assert matches(filter_, {"type": "x", "id": 5}, id=5)
    assert not matches(filter_, {"type": "x", "id": 5}, id=6)


@pytest.mark.parametrize("depth", [500, 50_000])
def test_values_nested_without_end_are_compared_without_recursion(depth: int) -> None:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    other: list[Any] = [1]
    for _ in range(depth):
        other = [other]
    assert not equal_json(nested, other)
    deep = "[" * 400 + "]" * 400
    assert matches({"a": "{{args.x}}"}, f'{{"a": {deep}}}', x=json.loads(deep))
    assert not matches({"a": "{{args.x}}"}, f'{{"a": {deep}}}', x=json.loads(deep[1:-1]))


@pytest.mark.parametrize(
    ("filter_", "data", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": "secret"}}, "a.b is not 1"),
        ({"a": {"b": 1}}, {"a": {}}, "a.b is missing; the template has 1"),
        ({"a": {"b": 1}}, {"a": "secret"}, "a is not an object"),
        ({"a": [1, {"b": "{{args.x}}"}]}, {"a": [1, {"b": "secret"}]}, 'a[1].b is not "{{args.x}}"'),
        ({"a": [1, 2]}, {"a": [1]}, "a[1] is missing; the template has 2"),
        ({"a": {"$any": True}}, {}, "a is not there"),
        ({"type": "x", "$frame": "binary"}, {"type": "x"}, "the message is not a binary message"),
        ({"a": 1}, "secret", "the message is not JSON"),
        ("^a", "secret", 'the message is not text matching "^a"'),
        ({"$or": [{"a": 1}, {"a": 2}]}, {"a": 3}, 'the message is not one of [{"a": 1}, {"a": 2}]'),
        ({"$after": "42", "$json": {"a": 1}}, '42{"a": "secret"}', "a is not 1"),
        ({"$after": "42"}, "secret", 'the message is not text that begins with "42"'),
        ({"a": {"$not": 1}}, {"a": 1}, "a is not anything except 1"),
    ],
    ids=str,
)
def test_a_difference_says_where_and_what_the_template_has_there(filter_: Any, data: Any, expected: str) -> None:
    message = Message(data if isinstance(data, str) else json.dumps(data))
    text = compile_filter(filter_, "message_filter").difference(message, values(x="hunter2"))
    assert text == expected
    assert "secret" not in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"id": "{{uuid}}"}, True),
        ({"id": "{{call_id}}", "type": "x"}, True),
        ({"id": "a-{{step_id|text}}"}, True),
        ({"id": "{{captured.sub}}"}, True),
        ({"id": "{{captured.session}}"}, False),
        ({"id": "{{args.id}}"}, False),
        ({"type": "x"}, False),
        ({"id": {"$in": ["{{uuid}}", "x"]}}, False),
        ({"id": {"$in": ["{{uuid}}", "x{{uuid}}"]}}, True),
        ({"$or": [{"id": "{{uuid}}"}, {"type": "error"}]}, False),
        ({"$or": [{"id": "{{uuid}}"}, {"ref": "{{uuid}}"}]}, True),
        ({"$and": [{"type": "x"}, {"id": "{{uuid}}"}]}, True),
        ({"$not": {"id": "{{uuid}}"}}, False),
        ({"id": {"$equals": {"a": "{{uuid}}"}}}, True),
        ([1, "{{call_id}}"], True),
        ("id={{uuid}}", True),
        ("id={{uuid}}|error", False),
        ("(id={{uuid}})?", False),
        ("{{uuid}}*", False),
        ('["id"|x]: {{uuid}}', True),
        ({"$text": "{{uuid}}"}, True),
        ({"$after": "42{{call_id}}"}, True),
        ({"$after": "42", "$json": ["{{call_id}}"]}, True),
        ({"$after": "42"}, False),
        ({"$select": "id == {{uuid}}"}, True),
        ({"$select": "type == 'x' && id == {{uuid}}"}, True),
        ({"$select": "id != {{uuid}}"}, False),
        ({"$select": "id == {{uuid}} || type == 'error'"}, False),
        ({"id": "{{uuid|bytes}}"}, False),
    ],
    ids=str,
)
def test_a_filter_knows_if_only_a_calls_own_messages_match(filter_: Any, expected: bool) -> None:
    assert compile_filter(filter_, "message_filter").names_the_call(frozenset({"sub"})) is expected


# Form


@pytest.mark.parametrize(
    ("filter_", "fault"),
    [
        (1, r"message_filter: must be a pattern \(string\), an object or a list"),
        (None, r"message_filter: must be a pattern \(string\), an object or a list"),
        (True, r"message_filter: must be a pattern \(string\), an object or a list"),
        ("(", r"message_filter: is not a valid regular expression: missing \)"),
        ({"a": {"$regex": "[z-a]"}}, r"message_filter\.a\.\$regex: is not a valid regular expression"),
        ({"a": {"$regex": 1}}, r"message_filter\.a\.\$regex: must be a pattern \(string\)"),
        ({"a": [{"$any": 1}]}, r"message_filter\.a\[0\]\.\$any: must be true"),
        ({"a": {"$any": False}}, r"message_filter\.a\.\$any: must be true"),
        ({"a": {"$absent": None}}, r"message_filter\.a\.\$absent: must be true"),
        ({"a": {"$in": "x"}}, r"message_filter\.a\.\$in: must be a list with at least one entry"),
        ({"a": {"$in": []}}, r"message_filter\.a\.\$in: must be a list with at least one entry"),
        ({"$or": []}, r"message_filter\.\$or: must be a list with at least one entry"),
        ({"$and": {"a": 1}}, r"message_filter\.\$and: must be a list with at least one entry"),
        ({"$or": [{"a": 1}, 2]}, r"message_filter\.\$or\[1\]: must be a pattern \(string\), an object or a list"),
        ({"$and": ["("]}, r"message_filter\.\$and\[0\]: is not a valid regular expression"),
        ({"a": {"$or": []}}, r"message_filter\.a\.\$or: must be a list with at least one entry"),
        ({"$text": 2}, r"message_filter\.\$text: must be a string"),
        ({"$hex": 20}, r"message_filter\.\$hex: must be a string"),
        ({"$hex": "2"}, r"message_filter\.\$hex: must be bytes in hexadecimal, such as '2002'"),
        ({"$hex": "xx"}, r"message_filter\.\$hex: must be bytes in hexadecimal, such as '2002'"),
        ({"$after": 42}, r"message_filter\.\$after: must be a string"),
        ({"$after": "42", "$json": {"a": {"$x": 1}}}, r"message_filter\.\$json\.a: \$x cannot stand here"),
        ({"$json": {}}, r"message_filter: \$json needs \$after, the prefix that precedes the JSON"),
        ({"$frame": "ping"}, r"message_filter\.\$frame: must be 'text' or 'binary'"),
        ({"$frame": ["text"]}, r"message_filter\.\$frame: must be 'text' or 'binary'"),
        ({"a": {"$text": "x"}}, r"message_filter\.a: \$text cannot stand here"),
        ({"a": {"$frame": "text"}}, r"message_filter\.a: \$frame cannot stand here"),
        (
            {"$gt": 5},
            (
                r"message_filter: \$gt cannot stand here; use one of \$absent, \$after, \$and, \$any, \$equals, "
                r"\$frame, \$hex, \$in, \$json, \$not, \$or, \$regex, \$select, \$text; '\$\$gt' means the key '\$gt'"
            ),
        ),
        ({"a": "{{args.x|rot13}}"}, r"message_filter\.a: .* unknown encoder 'rot13'"),
        ("{{args.x|rot13}}", r"message_filter: .* unknown encoder 'rot13'"),
    ],
)
def test_a_filter_of_wrong_form_is_an_error_that_says_where_and_what_is_right(filter_: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^{fault}") as raised:
        compile_filter(filter_, "message_filter")
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    "filter_",
    [
        "{{args.x}}",
        {"a": "{{args.x}}"},
        ["UTCP_ARG_x_UTCP_ARG"],
        {"a": {"$regex": "{{args.x}}"}},
        {"$text": "{{args}}"},
        {"$hex": "{{args.x|hex}}"},
        {"$after": "{{args.x}}"},
    ],
)
def test_a_filter_of_a_discovery_cannot_name_arguments(filter_: Any) -> None:
    with pytest.raises(ValueError, match="discovery is not a call"):
        compile_filter(filter_, "auto_reply[0].match", DISCOVERY)


# Placeholders in filters


@pytest.mark.parametrize(
    ("filter_", "args", "data", "expected"),
    [
        ({"a": "{{args.x}}"}, {"x": 1}, {"a": 1}, True),
        ({"a": "{{args.x}}"}, {"x": 1}, {"a": 1.0}, True),
        ({"a": "{{args.x}}"}, {"x": 1}, {"a": True}, False),
        ({"a": "{{args.x}}"}, {"x": 1}, {"a": "1"}, False),
        ({"a": "{{args.x}}"}, {"x": None}, {"a": None}, True),
        ({"a": "{{args.x}}"}, {"x": None}, {}, False),
        ({"a": "UTCP_ARG_x_UTCP_ARG"}, {"x": 1}, {"a": "1"}, True),
        ({"a": "${x}"}, {"x": 1}, {"a": 1}, True),
        ({"a": "${x}"}, {}, {"a": "${x}"}, True),
        ({"a": "n{{args.x}}"}, {"x": 1}, {"a": "n1"}, True),
        ({"a": "{{args.x}}"}, {"x": {"b": [1, {"c": 2}]}}, {"a": {"b": [1.0, {"c": 2}]}}, True),
        ({"a": "{{args.x}}"}, {"x": {"b": 1}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a": "{{args.x}}"}, {"x": {"b": 1}}, {"a": {"b": True}}, False),
        ({"a": "{{args.x}}"}, {"x": [1]}, {"a": [1, 2]}, False),
        ({"a": "{{args.x}}"}, {"x": [1]}, {"a": [True]}, False),
        ({"a": "{{args.x}}"}, {"x": {"$any": True}}, {"a": 1}, False),
        ({"a": "{{args.x}}"}, {"x": {"$any": True}}, {"a": {"$any": True}}, True),
        ({"a": {"$in": ["{{args.x}}", "{{args.y}}"]}}, {"x": 1, "y": 2}, {"a": 2}, True),
        (["{{args.x}}"], {"x": "s"}, ["s"], True),
        ({"{{args.x}}": 1}, {"x": "a"}, {"a": 1}, False),
        ("^{{args.x}}$", {"x": "a.c"}, "a.c", True),
        ("^{{args.x}}$", {"x": "a.c"}, "abc", False),
        ("^{{args.x|regex}}$", {"x": "a.c"}, "a.c", True),
        ("^{{args.x|regex}}$", {"x": "a.c"}, "abc", False),
        ("^{{args.x}}$", {"x": [1]}, "[1]", True),
        ("^UTCP_ARG_x_UTCP_ARG,${x}$", {"x": "*"}, "*,*", True),
        ({"a": {"$regex": "^{{args.x}}"}}, {"x": "("}, {"a": "(b"}, True),
        ({"$text": "<{{args.x}}>"}, {"x": "a"}, "<a>", True),
        ({"$text": "<{{args.x}}>"}, {"x": "a"}, "<b>", False),
        ({"$hex": "00{{args.x|hex}}"}, {"x": "ab"}, b"\0abc", True),
        ({"$hex": "00{{args.x|hex}}"}, {"x": "ab"}, b"\0ac", False),
        ({"$hex": "{{args.x}}"}, {"x": "00"}, "0", False),
        ({"$after": "{{args.x}}:", "$json": {"a": "{{args.y}}"}}, {"x": "p", "y": 1}, 'p:{"a": 1}', True),
        ({"$after": "{{args.x}}:", "$json": {"a": "{{args.y}}"}}, {"x": "q", "y": 1}, 'p:{"a": 1}', False),
        ({"$after": "{{args.x}}"}, {"x": "p"}, "pq", True),
        ({"a": "{{tool_name}}"}, {}, {"a": "tool"}, True),
    ],
)
def test_placeholders_in_a_filter_stand_for_the_calls_values(
    filter_: Any, args: dict[str, Any], data: Any, expected: bool
) -> None:
    assert matches(filter_, data, **args) is expected


def test_a_filter_knows_what_it_names() -> None:
    filter_ = compile_filter(
        {
            "$and": [
                "{{args.a}}",
                {"b": ["{{args.b}}", {"$in": ["{{captured.c}}"]}], "d": {"$regex": "${d}"}},
                {"$text": "{{args.e}}"},
                {"$hex": "{{args.f}}"},
                {"$after": "{{args.g}}", "$json": "{{call_id}}"},
            ]
        },
        "message_filter",
    )
    assert filter_.arguments == {"a", "b", "e", "f", "g"}
    assert filter_.dollar_names == {"d"}
    assert filter_.captures == {"c"}
    assert filter_.uses_call_id
    assert not filter_.is_static
    assert compile_filter({"a": {"$in": [1, "x", None]}}, "message_filter").is_static
    assert repr(filter_) == "<Filter message_filter>"


@given(pattern_text, st.text())
def test_an_argument_cannot_change_a_regular_expression(argument: str, other: str) -> None:
    assert matches("^<{{args.x}}>\\Z", f"<{argument}>", x=argument)
    assert matches({"a": {"$regex": "(?x) ^ < {{args.x}} > \\Z"}}, {"a": f"<{argument}>"}, x=argument)
    if other != argument:
        assert not matches("^<{{args.x}}>\\Z", f"<{other}>", x=argument)
        assert not matches({"a": {"$regex": "(?x) ^ < {{args.x}} > \\Z"}}, {"a": f"<{other}>"}, x=argument)


@given(pattern_text.filter(bool), st.characters())
def test_an_argument_in_a_character_class_stands_for_its_characters(argument: str, character: str) -> None:
    assert matches("^[{{args.x}}]\\Z", character, x=argument) is (character in argument)


def kinds(value: Any) -> Any:
    """A JSON value in which `==` tells booleans from numbers."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    return (isinstance(value, bool), value)


small_values = st.recursive(
    st.sampled_from([0, 0.0, 1, 1.0, True, False, None, "", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@given(small_values | json_values, small_values | json_values)
def test_an_argument_alone_equals_the_same_json_value_and_no_other(x: Any, other: Any) -> None:
    assert matches({"a": "{{args.x}}"}, {"a": x}, x=x)
    assert matches({"a": "{{args.x}}"}, {"a": other}, x=x) is (kinds(x) == kinds(other))


# A captured value


def test_a_filter_on_a_value_that_is_not_captured_is_a_response_error() -> None:
    filter_ = compile_filter({"$or": [{"s": "{{captured.session}}"}, {"a": 1}]}, "message_filter")
    with pytest.raises(ResponseError, match=r"message_filter: .*nothing was captured as 'session'"):
        filter_.matches(Message('{"s": 7}'), values())
    assert filter_.matches(Message('{"s": 7}'), values(captured={"session": 7}))
    assert filter_.matches(Message('{"s": 7}'), values(captured=ChainMap({}, {"session": 7})))


@pytest.mark.parametrize("filter_", [{"a": "<{{captured.c}}>"}, "{{captured.c}}", {"$text": "{{captured.c}}"}])
def test_a_captured_value_that_cannot_be_put_into_a_filter_is_a_response_error(filter_: Any) -> None:
    with pytest.raises(ResponseError, match="Out of range float") as raised:
        compile_filter(filter_, "auto_reply[0].match").matches(Message('{"a": 1}'), values(captured={"c": math.nan}))
    assert raised.value.__context__ is None


def test_arguments_are_tried_before_there_is_a_message() -> None:
    filter_ = compile_filter({"$or": [{"$hex": "{{args.x}}"}, {"$text": "{{args.y}}"}]}, "message_filter")
    assert filter_.takes_arguments
    filter_.check(values(x="00", y=1))
    with pytest.raises(ValueError, match=r"message_filter\.\$or\[0\]\.\$hex: must be bytes in hexadecimal"):
        filter_.check(values(x="0", y=1))
    with pytest.raises(ValueError, match="Out of range float"):
        filter_.check(values(x="00", y=math.inf))
    assert not compile_filter({"a": "{{uuid}}", "b": "{{call_id}}"}, "message_filter").takes_arguments


# Odd messages

filters = st.recursive(
    st.sampled_from(
        [
            "a+b",
            "",
            {"$text": "x"},
            {"$hex": "00"},
            {"$after": "4", "$json": {"a": 1}},
            {"$after": "4"},
            {"$frame": "binary"},
            {"a": {"$any": True}},
            {"a": {"$absent": True}},
            {"a": {"$in": [1, [2], {"b": 3}]}},
            {"a": {"$regex": "x"}},
            {"a": {"b": {"c": [1, {"d": "{{args.x}}"}]}}},
            ["{{uuid}}", {"a": "{{call_id}}"}],
            {"a": None, "b": 1.5, "c": True},
        ]
    ),
    lambda inner: st.builds(
        lambda operator, items: {operator: items},
        st.sampled_from(["$or", "$and"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)
odd_messages = (
    st.text()
    | st.binary()
    | json_values.map(json.dumps)
    | json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: f"4{json.dumps(value)}")
    | st.sampled_from(
        ["[" * 100_000, '{"a":' * 100_000, "4[" * 10, "NaN", '{"a": NaN}', '{"a": 1e999}', "\ud800", "1" * 5000]
    )
)


@given(filters, odd_messages)
def test_no_message_makes_a_filter_raise(filter_: Any, data: str | bytes) -> None:
    assert compile_filter(filter_, "message_filter").matches(Message(data), values(x={"y": [1]})) in (True, False)


@given(odd_messages)
def test_no_message_makes_an_extraction_raise_anything_except_a_response_error(data: str | bytes) -> None:
    for form in ({"path": "a.0.b"}, {"path": ""}, {"regex": "(a)|b"}, {"after": "4", "path": "a"}, {"after": "4"}):
        try:
            compile_extraction(form, "result").extract(Message(data), values())
        except ResponseError as error:
            assert len(str(error)) < 1000


# Time


@pytest.mark.parametrize("filter_", [CATASTROPHIC, {"$or": [CATASTROPHIC, "a"]}, {"$and": [CATASTROPHIC]}])
def test_a_pattern_that_takes_too_long_is_a_response_error_after_100_ms(filter_: Any) -> None:
    slow = compile_filter(filter_, "message_filter")
    started = time.monotonic()
    with pytest.raises(ResponseError, match=r"^matching a pattern took longer than 100 ms$") as raised:
        slow.matches(Message(LONG), values())
    assert 0.09 < time.monotonic() - started < 5
    assert raised.value.__context__ is None


def test_the_time_limit_holds_inside_json_and_in_an_extraction_as_well() -> None:
    with pytest.raises(ResponseError, match="took longer"):
        matches({"a": {"$regex": CATASTROPHIC}}, {"a": LONG})
    with pytest.raises(ResponseError, match="took longer"):
        compile_extraction({"regex": CATASTROPHIC}, "result").extract(Message(LONG), values())


def test_a_pattern_is_compiled_once_for_a_call_and_kept_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    original = regex.compile

    def counting(pattern: str, flags: int, **options: Any) -> Any:
        compiled.append(pattern)
        assert options == {"cache_pattern": False}
        return original(pattern, flags, **options)

    monkeypatch.setattr(regex, "compile", counting)
    filter_ = compile_filter("once-{{args.x}}", "message_filter")
    call = values(x=1)
    for _ in range(3):
        assert filter_.matches(Message("once-1"), call.replace(captured={}))
    assert compiled == ["once-x", "once-1"]
    assert not filter_.matches(Message("once-2"), values(x=3))
    assert compiled == ["once-x", "once-1"], "no text without the value can match"


# Where a call's own value stands in each of its messages


@pytest.mark.parametrize(
    ("filter_", "path"),
    [
        ({"id": "{{call_id}}"}, ("id",)),
        ({"id": "{{uuid}}"}, ("id",)),
        ({"a": 1, "b": {"c": ["x", {"id": "{{uuid}}"}]}}, ("b", "c", 1, "id")),
        (["{{call_id}}"], (0,)),
        ({"$and": ["text", {"a": 1}, {"id": "{{uuid}}"}]}, ("id",)),
        ({"a": {"$and": [{"$any": True}, {"id": "{{uuid}}"}]}}, ("a", "id")),
        ({"id": "{{uuid}}", "$frame": "text"}, ("id",)),
        ({"id": "x{{uuid}}"}, None),
        ({"id": "{{uuid|hex}}"}, None),
        ({"id": "{{args.id}}"}, None),
        ({"$or": [{"id": "{{uuid}}"}, {"id": "{{uuid}}"}]}, None),
        ({"id": {"$in": ["{{uuid}}"]}}, None),
        ({"$after": "4", "$json": {"id": "{{uuid}}"}}, None),
        ({"$text": "{{uuid}}"}, None),
        ("{{uuid}}", None),
        ({"id": 1}, None),
        ({}, None),
    ],
)
def test_a_filter_tells_where_every_message_it_matches_has_the_calls_own_value(
    filter_: Any, path: tuple[str | int, ...] | None
) -> None:
    key = compile_filter(filter_, "message_filter").key
    if path is None:
        assert key is None
    else:
        assert key is not None
        assert key[0] == path
        call = values(call_id=3)
        assert key[1].render(call) in (3, call.uuid)


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ({"a": [{"b": 1}]}, ("a", 0, "b"), 1),
        ({"a": None}, ("a",), None),
        ({"a": 1}, (), {"a": 1}),
        ({"a": 1}, ("b",), MISSING),
        ({"a": 1}, ("b", "c"), MISSING),
        ({"a": [1]}, ("a", 1), MISSING),
        ({"a": "x"}, ("a", 0), MISSING),
        ([1], ("0",), MISSING),
        (None, ("a",), MISSING),
    ],
)
def test_a_lookup_gives_the_value_at_a_path_or_missing(value: Any, path: tuple[str | int, ...], found: Any) -> None:
    assert lookup(value, path) is found or lookup(value, path) == found
    assert repr(MISSING) == "MISSING"


# Extractions


@pytest.mark.parametrize(
    ("form", "data", "found"),
    [
        ({"path": "result.items.0.name"}, '{"result": {"items": [{"name": "n"}]}}', "n"),
        ({"path": "a"}, '{"a": 3}', 3),
        ({"path": "a"}, '{"a": null}', None),
        ({"path": "a"}, '{"a": {"b": [1.5, true]}}', {"b": [1.5, True]}),
        ({"path": "a"}, b'{"a": "3"}', "3"),
        ({"path": "0"}, '{"0": "key"}', "key"),
        ({"path": "1.0"}, "[0, [5]]", 5),
        ({"path": ""}, "[1]", [1]),
        ({"regex": r"temp=(\d+)"}, "now temp=21C", "21"),
        ({"regex": "a(.*)b(c)?"}, "a1\n2b", "1\n2"),
        ({"regex": "(b)"}, b"abc", "b"),
        ({"regex": "a()"}, "a", ""),
        ({"after": "42", "path": "1.a"}, '42["event", {"a": 7}]', 7),
        ({"after": "42"}, '42["event"]', ["event"]),
        ({"after": "42", "path": "0"}, b'42["event"]', "event"),
        ({"after": ""}, "[1]", [1]),
    ],
)
def test_an_extraction_picks_a_part_of_the_message(form: dict[str, str], data: str | bytes, found: Any) -> None:
    result = compile_extraction(form, "result").extract(Message(data), values())
    assert (type(result), result) == (type(found), found)


@pytest.mark.parametrize(
    ("form", "data", "fault"),
    [
        ({"path": "a.b"}, '{"a": 1}', "result: the message has nothing at a.b; at a there is a number"),
        ({"path": "a"}, "[1]", "result: the message has nothing at a; there is a list of 1"),
        ({"path": "1"}, "[1]", "result: the message has nothing at 1; there is a list of 1"),
        ({"path": "-1"}, "[1]", "result: the message has nothing at -1; there is a list of 1"),
        ({"path": "0"}, '"text"', "result: the message has nothing at 0; there is text"),
        ({"path": "a"}, "text", "the message is not JSON: 'text'"),
        ({"regex": "(x)"}, "abc", "result: the pattern is not found in the message"),
        ({"regex": "a(x)?"}, "abc", "result: the pattern is not found in the message"),
        ({"regex": "(x)"}, b"\xff", r"the message is not text: b'\xff'"),
        ({"after": "42", "path": "a"}, '{"a": 1}', "result: the message does not start with '42'"),
        ({"after": "42", "path": "a"}, "42[", "the message is not JSON: '['"),
        ({"after": "42"}, b"\xff", r"the message is not text: b'\xff'"),
    ],
)
def test_a_part_that_is_not_there_is_a_response_error(form: dict[str, str], data: str | bytes, fault: str) -> None:
    extraction = compile_extraction(form, "result")
    with pytest.raises(ResponseError) as raised:
        extraction.extract(Message(data), values())
    assert str(raised.value) == fault


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ({}, OBJECT),
        ("path", OBJECT),
        (None, OBJECT),
        ({"path": "a", "regex": "(b)"}, "result: path and regex exclude each other; write a list, one after the other"),
        ({"path": "a", "defalt": 1}, "result: unknown key 'defalt'; did you mean 'default'?"),
        ({"path": 1}, "result.path: must be a path such as 'items.0.name', or a list of keys and indices"),
        ({"regex": None}, "result.regex: must be a string"),
        ({"after": 42, "path": "a"}, "result.after: must be a string"),
        ({"regex": "a"}, "result.regex: needs a group, in parentheses, for the part that is meant"),
        ({"regex": "(?:a)"}, "result.regex: needs a group, in parentheses, for the part that is meant"),
        ({"regex": "("}, "result.regex: is not a valid regular expression: missing ) at position 1"),
    ],
)
def test_an_extraction_of_wrong_form_is_an_error_that_says_where_and_what_is_right(form: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^result") as raised:
        compile_extraction(form, "result")
    assert str(raised.value) == fault
