"""`incoming` and `outgoing`: records of messages, and what is done with what is sent."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utcp_websocket_anyio._templates.received import ResponseError
from utcp_websocket_anyio._templates.records import Incoming, Outgoing, compile_incoming, compile_outgoing


def incoming(max_size: int = 2**20, /, **fields: Any) -> Incoming:
    compiled = compile_incoming(fields, "incoming", max_size)
    assert compiled is not None
    return compiled


def records(data: str | bytes, /, **fields: Any) -> list[str | bytes]:
    return [record.data for record in incoming(**fields).records(data)]


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("fields", "data", "result"),
    [
        ({"inflate": "gzip"}, gzip.compress(b"abc", mtime=0), [b"abc"]),
        ({"inflate": "zlib"}, zlib.compress(b"abc"), [b"abc"]),
        ({"inflate": "raw"}, raw_deflate(b"abc"), [b"abc"]),
        ({"inflate": "gzip"}, b"not compressed", [b"not compressed"]),
        ({"inflate": "gzip"}, "text", ["text"]),
        ({"split": "\x1e"}, '{"a":1}\x1e{"b":2}\x1e', ['{"a":1}', '{"b":2}']),
        ({"split": "\n"}, b"a\n\nb", ["a", "b"]),
        ({"split": "\n"}, "one", ["one"]),
        ({"split": "\n"}, "\n\n", []),
        ({"split": "\n"}, b"\xff\n", [b"\xff\n"]),
        ({"split": "json"}, ' {"a": 1}[2] "x\\" y" 3 ', ['{"a": 1}', "[2]", '"x\\" y"', "3"]),
        ({"split": "json"}, '{"a": 1} oops', ['{"a": 1} oops']),
        ({"split": "json"}, ' {"a": 1} ', [' {"a": 1} ']),
        ({"each": True}, '[{"a": 1.50}, "x", [2], 1e400]', ['{"a": 1.50}', '"x"', "[2]", "1e400"]),
        ({"each": True}, "[]", []),
        ({"each": True}, "[1, 2", ["[1, 2"]),
        ({"each": True}, "[1 2]", ["[1 2]"]),
        ({"each": True}, '{"a": 1}', ['{"a": 1}']),
        ({"json": "data"}, '{"data": "{\\"a\\": 1}", "b": "c"}', ['{"data":{"a":1},"b":"c"}']),
        ({"json": ["a.0", "b", "c.d"]}, '{"a": ["[1]"], "b": "no"}', ['{"a":[[1]],"b":"no"}']),
        ({"json": "data"}, '{"data": 5}', ['{"data": 5}']),
        ({"json": "data"}, "text", ["text"]),
        (
            {"inflate": "gzip", "split": "\n", "each": True, "json": "d"},
            gzip.compress(b'[{"d": "1"}]\n{"d": "[2]"}\n', mtime=0),
            ['{"d":1}', '{"d":[2]}'],
        ),
    ],
)
def test_a_message_becomes_its_records(fields: dict[str, Any], data: str | bytes, result: list[str | bytes]) -> None:
    assert records(data, **fields) == result


def test_a_record_knows_what_kind_of_message_it_came_in() -> None:
    (first, second) = incoming(split="\n").records(b"a\nb")
    assert (first.frame, second.frame, first.is_text) == ("binary", "binary", True)
    assert [record.frame for record in incoming(split="\n").records("a\nb")] == ["text", "text"]


def test_inflated_size_and_number_of_records_are_bounded() -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    with pytest.raises(ResponseError, match="inflates to more than max_message_size, 1048576 bytes"):
        incoming(inflate="gzip").records(bomb)
    with pytest.raises(ResponseError, match="more records than max_message_size allows"):
        incoming(1000, each=True).records("[" + "1," * 10_000 + "1]")
    with pytest.raises(ResponseError, match="more records than max_message_size allows"):
        incoming(1000, split="\n").records("a\n" * 10_000)
    assert len(incoming(split="\n").records("a\n" * 10_000)) == 10_000


@pytest.mark.parametrize("fields", [{"each": True}, {"split": "json"}, {"json": "a"}])
@pytest.mark.parametrize("data", ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500])
def test_nesting_without_end_leaves_a_message_as_it_is(fields: dict[str, Any], data: str) -> None:
    assert isinstance(records(data, **fields), list)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\x1e"), min_size=1)))
def test_what_was_joined_is_split(texts: list[str]) -> None:
    assert records("\x1e".join([*texts, ""]), split="\x1e") == (texts or [""])


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5), min_size=2))
def test_json_values_one_behind_the_other_are_told_apart(values: list[Any]) -> None:
    text = " ".join(json.dumps(value) for value in values)
    assert [json.loads(record) for record in records(text, split="json")] == values
    assert [json.loads(record) for record in records(json.dumps(values), each=True)] == values


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({}, "incoming: must be an object with some of inflate, split, each, json"),
        ({"infalte": "gzip"}, "incoming: unknown key 'infalte'; did you mean 'inflate'?"),
        ({"inflate": "br"}, "incoming.inflate: must be one of gzip, zlib, raw"),
        ({"split": ""}, "incoming.split: must be the text between records, or 'json'"),
        ({"each": 1}, "incoming.each: must be true or false"),
        ({"json": []}, "incoming.json: must be a path such as 'data.payload', or a list of paths"),
    ],
)
def test_a_wrong_form_of_incoming_is_an_error(value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^incoming") as raised:
        compile_incoming(value, "incoming", 100)
    assert str(raised.value) == fault


def test_outgoing_adds_a_suffix_and_chooses_the_frame() -> None:
    assert compile_outgoing(None, "outgoing") is None
    assert Outgoing("\n").apply("a") == "a\n"
    assert Outgoing("\n").apply(b"a") == b"a"
    assert Outgoing("\n", "binary").apply("ü") == b"\xc3\xbc\n"
    assert compile_outgoing({"fragment": 10}, "outgoing") == Outgoing(fragment=10)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({}, "outgoing: must be an object with some of suffix, frame, fragment"),
        ({"sufix": ""}, "outgoing: unknown key 'sufix'; did you mean 'suffix'?"),
        ({"suffix": 1}, "outgoing.suffix: must be a string"),
        ({"suffix": "\ud800"}, "outgoing.suffix: contains a lone surrogate, which UTF-8 cannot encode"),
        ({"frame": "ping"}, "outgoing.frame: must be 'binary' (text goes in binary frames)"),
        ({"fragment": 0}, "outgoing.fragment: must be a number of bytes, 1 at least"),
        ({"fragment": True}, "outgoing.fragment: must be a number of bytes, 1 at least"),
    ],
)
def test_a_wrong_form_of_outgoing_is_an_error(value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^outgoing") as raised:
        compile_outgoing(value, "outgoing")
    assert str(raised.value) == fault
