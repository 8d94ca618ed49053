"""The meaning of a message to an exchange, by the rules of its call template."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from utcp_websocket_anyio._calls.responses import Meaning, ResponseClassifier
from utcp_websocket_anyio._templates.call_template import WebSocketCallTemplate
from utcp_websocket_anyio._templates.received import Message, ResponseError
from utcp_websocket_anyio._templates.values import RenderContext
from utcp_websocket_anyio.errors import WebSocketToolError

LABEL = "wss://example.com/"
MINE = "the call's own"


def meaning(data: Any, **fields: Any) -> Meaning:
    plan = WebSocketCallTemplate.model_validate({"name": "manual", "url": LABEL, **fields}).plan
    context = RenderContext({}, "tool")
    return ResponseClassifier(plan, context, streaming=True).classify(Message(json.dumps(data)))


def judged(data: Any, *, streaming: bool = False, **fields: Any) -> Any:
    """The meaning of a message: SKIP, END, or the value of a response.

    Data that is neither str nor bytes is sent as JSON, with `MINE` for the uuid of the call.
    """
    plan = WebSocketCallTemplate.model_validate({"name": "manual", "url": LABEL, **fields}).plan
    values = RenderContext({"a": 1}, "tool")
    if isinstance(data, (dict, list)):
        data = json.dumps(data).replace(MINE, values.uuid)
    classifier = ResponseClassifier(plan, values, streaming)
    message = Message(data)
    meaning = classifier.classify(message)
    if meaning is Meaning.ERROR:
        raise classifier.tool_error(message, LABEL)
    return classifier.value(message) if meaning is Meaning.RESPONSE else meaning


SKIP, END = Meaning.SKIP, Meaning.END


# The order of the filters


def test_without_filters_every_message_is_a_response() -> None:
    for data in ("", "text", b"\0", "[1]", '{"error": 1}'):
        assert judged(data) == data


def test_what_no_filter_means_is_skipped() -> None:
    assert judged({"b": 1}, message_filter={"a": 1}) is SKIP
    assert judged(b"\xff", message_filter={"a": 1}) is SKIP
    assert judged('{"a": 1}', message_filter={"a": 1}) == '{"a": 1}'


def test_the_error_filter_comes_first() -> None:
    with pytest.raises(WebSocketToolError) as raised:
        judged({"a": 1}, error_filter={"a": 1}, end_filter={"a": 1}, message_filter={"a": 1})
    assert raised.value.response == {"a": 1}
    assert raised.value.endpoint == LABEL


def test_the_end_filter_comes_before_the_message_filter_and_gives_no_response() -> None:
    assert judged({"a": 1}, end_filter={"a": 1}, message_filter={"a": 1}) is END


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('{"error": "no such city"}', "no such city"),
        ('{"error": {"code": -32601, "message": "no method"}}', "-32601: no method"),
        ('{"error": {"message": "no method"}, "code": "E1"}', "E1: no method"),
        ('{"code": 60012, "message": "illegal request"}', "60012: illegal request"),
        ('{"a": "error"}', '{"a": "error"}'),
        ("error: \x1b[2J", "error: \\x1b[2J"),
        ("error " + "x" * 1000, "error " + "x" * 494 + "…"),
    ],
)
def test_a_tool_error_says_what_the_server_said(data: str | bytes, text: str) -> None:
    with pytest.raises(WebSocketToolError) as raised:
        judged(data, error_filter={"$regex": "error|message"}, response_format="json")
    assert raised.value.args[0] == text


def test_error_result_is_the_text_of_a_tool_error_if_it_gives_something() -> None:
    fields: dict[str, Any] = {"error_filter": {"event": "error"}, "error_result": {"path": "msg"}}
    for data, text in (({"event": "error", "msg": "bad sign"}, "bad sign"), ({"event": "error"}, '{"event": "error"}')):
        with pytest.raises(WebSocketToolError) as raised:
            judged(data, **fields)
        assert raised.value.args[0] == text


def test_a_last_filter_marks_a_response_that_is_also_the_end() -> None:
    fields: dict[str, Any] = {"last_filter": {"final": True}, "end_filter": {"final": True}, "message_filter": {"a": 1}}
    assert meaning({"final": True}, **fields) is Meaning.LAST
    assert meaning({"a": 1}, **fields) is Meaning.RESPONSE


def test_the_filters_know_the_arguments_and_the_uuid_of_the_call() -> None:
    fields: dict[str, Any] = {"message_filter": {"id": "{{uuid}}", "a": "{{args.a}}"}, "response_format": "json"}
    assert judged({"id": MINE, "a": 1, "b": 2}, **fields)["b"] == 2
    assert judged({"id": MINE, "a": 2}, **fields) is SKIP
    assert judged({"id": "another", "a": 1}, **fields) is SKIP


# Formats


@pytest.mark.parametrize(
    ("response_format", "data", "result"),
    [
        (None, "a", "a"),
        (None, b"a", b"a"),
        (None, "[1]", "[1]"),
        ("raw", "a", "a"),
        ("raw", b"\xff", b"\xff"),
        ("text", "ü", "ü"),
        ("text", "ü".encode(), "ü"),
        ("json", '{"a": [1, null]}', {"a": [1, None]}),
        ("json", b"[true]", [True]),
        ("json", '"text"', "text"),
        ("json", "null", None),
    ],
)
def test_a_response_is_given_in_the_declared_format(response_format: str | None, data: Any, result: Any) -> None:
    found = judged(data, response_format=response_format)
    assert (type(found), found) == (type(result), result)


@pytest.mark.parametrize(("response_format", "data"), [("json", "no" * 80), ("json", b"\xff" * 80), ("text", b"\xff")])
def test_what_cannot_be_decoded_as_declared_is_a_response_error(response_format: str, data: str | bytes) -> None:
    with pytest.raises(ResponseError) as raised:
        judged(data, response_format=response_format)
    assert repr(data[:100]) in str(raised.value)


@pytest.mark.parametrize("response_format", [None, "json", "text", "raw"])
def test_a_result_keeps_its_json_type_whatever_the_format(response_format: str | None) -> None:
    for value in (1, "1", [1], {"b": 1}, None, True):
        found = judged({"a": value}, result={"path": "a"}, response_format=response_format)
        assert (type(found), found) == (type(value), value)


def test_a_result_that_is_not_there_is_a_response_error() -> None:
    with pytest.raises(ResponseError, match="result: the message has nothing at a"):
        judged("{}", result={"path": "a"})


# Envelopes


@pytest.mark.parametrize("response_format", [None, "json", "text"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_envelope_of_this_call_is_opened(response_format: str | None, streaming: bool) -> None:
    envelope = {"type": "tool_response", "request_id": MINE, "result": {"a": 1}}
    assert judged(envelope, response_format=response_format, streaming=streaming) == {"a": 1}
    with pytest.raises(WebSocketToolError) as raised:
        judged({"type": "tool_error", "request_id": MINE, "error": "e"}, response_format=response_format)
    assert raised.value.response["error"] == "e"
    assert judged({"type": "stream_end", "request_id": MINE}) is END


def test_a_binary_envelope_is_opened_and_one_without_a_result_has_null() -> None:
    assert judged(b'{"type": "tool_response", "result": 3}', streaming=True) == 3
    assert judged({"type": "tool_response", "request_id": MINE}) is None


@pytest.mark.parametrize("space", [" ", "\t", "\r\n", "\n  "])
def test_an_envelope_may_have_white_space_around_it(space: str) -> None:
    end = space + json.dumps({"type": "stream_end"}) + space
    assert judged(end, streaming=True) is END
    assert judged(end.encode(), streaming=True) is END


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "envelope",
    [
        {"type": "tool_response", "result": LONG},
        {"result": LONG, "type": "tool_response"},
        {"v": 1, "result": LONG, "type": "tool_response"},
        {"v": 1, "type": "tool_response", "result": LONG},
        {"result": LONG, "type": "tool_response", "log": LONG},
    ],
    ids="-".join,
)
def test_a_long_envelope_is_opened_whatever_the_order_of_its_keys(envelope: dict[str, Any]) -> None:
    for data in (json.dumps(envelope), json.dumps(envelope, indent=2), json.dumps(envelope).encode()):
        assert judged(data, streaming=True) == LONG


@pytest.mark.parametrize(
    "message",
    [
        {"type": "tool_other", "of": "tool_response", "data": LONG},
        {"data": LONG, "type": "trade"},
        {"channel": "tool_response", "data": LONG},
        {"data": LONG, "more": {"type": "tool_response"}},
        {"channel": "trades", "data": [LONG, {"type": "stream_end"}, LONG]},
        {"id": 1, "meta": "m" * 1500, "type": "tool_error", "trace": LONG},
    ],
    ids="-".join,
)
def test_a_long_message_that_is_not_an_envelope_is_an_ordinary_response(message: dict[str, Any]) -> None:
    for data in (json.dumps(message), json.dumps(message).encode()):
        assert judged(data, streaming=True) == data


@pytest.mark.parametrize("envelope_at", [None, 0, 300, 999])
@pytest.mark.parametrize("odd", ["", "é😀" * 10, b"\0"], ids=["all-alike", "not-ascii", "binary"])
def test_messages_are_taken_as_they_are_unless_there_is_an_envelope_among_them(
    envelope_at: int | None, odd: str | bytes
) -> None:
    plan = WebSocketCallTemplate(name="manual", url=LABEL).plan
    classifier = ResponseClassifier(plan, RenderContext({}, "tool"), True)
    messages: list[str | bytes] = [f'{{"type":"trade","n":{n}}}' for n in range(1000)]
    messages[500] = odd
    if envelope_at is not None:
        messages[envelope_at] = '{"type":"stream_end"}'
    assert classifier.takes_all(messages) is (envelope_at is None)


def test_a_long_message_among_many_short_ones_is_not_copied() -> None:
    plan = WebSocketCallTemplate(name="manual", url=LABEL).plan
    classifier = ResponseClassifier(plan, RenderContext({}, "tool"), True)
    messages = ["short"] * 1000 + ["x" * 2**24]
    tracemalloc.start()
    try:
        assert classifier.takes_all(messages)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("envelope", [{}, {"request_id": None}], ids=["none", "null"])
def test_an_envelope_without_request_id_is_one_in_a_stream_only(envelope: dict[str, Any]) -> None:
    response = {**envelope, "type": "tool_response", "result": 3}
    assert judged(response, streaming=True) == 3
    assert judged(response, response_format="json") == response
    error = {**envelope, "type": "tool_error"}
    with pytest.raises(WebSocketToolError):
        judged(error, streaming=True)
    assert judged(error, response_format="json") == error
    end = {**envelope, "type": "stream_end"}
    assert judged(end, streaming=True) is END
    assert judged(end, response_format="json") == end


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["tool_response", "tool_error", "stream_end"])
@pytest.mark.parametrize("request_id", ["another", 7, False, "", [], {}])
def test_the_envelope_of_another_call_is_skipped(streaming: bool, kind: str, request_id: Any) -> None:
    envelope = {"type": kind, "request_id": request_id, "result": 3}
    assert judged(envelope, streaming=streaming) is SKIP


@pytest.mark.parametrize("fields", [{"response_format": "raw"}, {"result": {"path": "type"}}], ids=str)
@pytest.mark.parametrize("kind", ["tool_response", "tool_error", "stream_end"])
def test_an_envelope_is_an_ordinary_message_where_raw_or_a_result_is_asked_for(
    fields: dict[str, Any], kind: str
) -> None:
    envelope = json.dumps({"type": kind, "request_id": "another"})
    expected = envelope if "response_format" in fields else kind
    assert judged(envelope, streaming=True, **fields) == expected


@pytest.mark.parametrize(
    "data",
    [
        '["tool_response"]',
        '"tool_response"',
        '{"type": "other", "of": "tool_response"}',
        '{"type": ["tool_response"]}',
        '{"of": "tool_error"}',
        "tool_error, not JSON",
        b"tool_error \xff",
        "[]",
        "3",
    ],
)
def test_a_message_that_is_not_an_envelope_is_an_ordinary_response(data: str | bytes) -> None:
    assert judged(data, streaming=True) == data


def test_the_filters_come_before_the_envelope() -> None:
    envelope = {"type": "tool_response", "request_id": MINE, "result": 3}
    assert judged(envelope, message_filter={"type": "other"}) is SKIP
    assert judged(envelope, end_filter={"type": "tool_response"}) is END
    with pytest.raises(WebSocketToolError):
        judged(envelope, error_filter={"type": "tool_response"})
