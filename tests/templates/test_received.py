"""One incoming message: what it is as text, as JSON and as either."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utcp_websocket_anyio._templates.received import Message, ResponseError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(("data", "is_text"), [("", True), ("a", True), (b"", False), (b"a", False)])
def test_a_str_is_a_text_message_and_bytes_are_a_binary_one(data: str | bytes, is_text: bool) -> None:
    assert Message(data).is_text is is_text


def test_a_repr_shows_kind_and_length_but_nothing_of_the_message() -> None:
    assert repr(Message("secret")) == "<Message, text, 6>"
    assert repr(Message(b"secret")) == "<Message, binary, 6>"


@pytest.mark.parametrize("data", ['{"a": [1, null]}', b'{"a": [1, null]}'])
def test_json_is_read_from_text_and_from_utf_8(data: str | bytes) -> None:
    assert Message(data).json() == {"a": [1, None]}


@given(json_values)
def test_whatever_json_can_say_is_read_back(value: Any) -> None:
    assert Message(json.dumps(value)).json() == value
    assert Message(json.dumps(value, ensure_ascii=False).encode()).json() == value


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{",
        "nil",
        "\ufeff{}",
        b"\xff\xfe",
        '"x"'.encode("utf-16"),
        '"x"'.encode("utf-16-be"),
        '"x"'.encode("utf-32-le"),
        b'"\xed\xa0\x80"',
        "[" * 200_000,
        "1" * 5000,
    ],
    ids=["empty", "cut", "word", "bom", "no-utf8", "utf16", "utf16be", "utf32", "surrogate", "deep", "long-number"],
)
def test_invalid_json_is_a_response_error_each_time_it_is_asked_for(data: str | bytes) -> None:
    message = Message(data)
    for _ in range(2):
        with pytest.raises(ResponseError, match="the message is not JSON"):
            message.json()
    assert message.content() is data


def test_the_error_of_an_undecodable_message_shows_its_first_100_characters_and_no_more() -> None:
    with pytest.raises(ResponseError) as raised:
        Message("a" * 100 + "b").json()
    assert "a" * 100 in str(raised.value)
    assert "b" not in str(raised.value).partition(":")[2]
    with pytest.raises(ResponseError) as raised:
        Message(b"\xff" * 100 + b"b").text()
    assert r"\xff" * 100 + "'" in str(raised.value)


def test_errors_do_not_carry_the_message_along_as_their_cause_or_context() -> None:
    for ask in (Message("{secret").json, Message(b"\xffsecret").text):
        with pytest.raises(ResponseError) as raised:
            ask()
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None


def test_json_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    loads = json.loads

    def counting(data: Any) -> Any:
        parsed.append(data)
        return loads(data)

    monkeypatch.setattr(json, "loads", counting)
    good, bad, null = Message("[1]"), Message("["), Message("null")
    for _ in range(3):
        assert good.json() == [1]
        assert null.json() is None
        assert bad.content() == "["
    assert parsed == ["[1]", "null", "["]


def test_text_is_the_text_or_the_utf_8_of_a_binary_message() -> None:
    assert Message("ü\0").text() == "ü\0"
    assert Message("ü\0".encode()).text() == "ü\0"
    with pytest.raises(ResponseError, match="the message is not text"):
        Message(b"\xfc").text()


def test_the_content_is_the_json_value_where_there_is_one() -> None:
    assert Message('"a"').content() == "a"
    assert Message(b"[]").content() == []
    assert Message("a").content() == "a"
    assert Message(b"\xff").content() == b"\xff"
