"""Encoders, times and the placeholders of the second edition: what each stands for, and where it may stand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utcp_websocket_anyio._templates.encoders import ABSENT
from utcp_websocket_anyio._templates.messages import compile_message
from utcp_websocket_anyio._templates.placeholders import CALL, MissingCaptureError, RenderContext, Scope
from utcp_websocket_anyio._templates.received import Message
from utcp_websocket_anyio._templates.urls import compile_url
from utcp_websocket_anyio._templates.values import compile_template
from utcp_websocket_anyio.errors import MissingArgumentError

INSTANT = datetime(2026, 3, 4, 5, 6, 7, 891234, tzinfo=UTC)
EVERYWHERE = Scope(message=True, item=True, gap=True)


def context(captured: dict[str, Any] | None = None, /, **args: Any) -> RenderContext:
    made = RenderContext(args, "tool", captured=captured)
    made._step[0] = INSTANT
    return made


def rendered(template: Any, captured: dict[str, Any] | None = None, /, **args: Any) -> Any:
    return compile_template(template, "message", EVERYWHERE).render(context(captured, **args))


def sent(template: Any, captured: dict[str, Any] | None = None, /, **args: Any) -> str | bytes:
    return compile_message(template, "message").encode(context(captured, **args))


# Encoders


@pytest.mark.parametrize(
    ("template", "argument", "result"),
    [
        ("{{args.a|text}}", 5, "5"),
        ("{{args.a|text}}", None, "null"),
        ("{{args.a|lower}}", "ABC", "abc"),
        ("{{args.a|upper}}", "abc", "ABC"),
        ("{{args.a|base64}}", "\ufffe~", "77++fg=="),
        ("{{args.a|base64url}}", "\ufffe~", "77--fg"),
        ("{{args.a|json|base64}}", "x", "Ingi"),
        ("{{args.a | upper | hex}}", "a", "41"),
        ("{{args.a|line}}", "one line", "one line"),
        ("{{args.a|bytes}}", "é", 2),
        ("{{args.a|bytes}}", b"\xff\xff\xff", 3),
        ("{{args.a|ms_to_s}}", 41250, 41.25),
        ("{{args.a|ms_to_s}}", "30000", 30),
        ("<{{args.a|sha1}}>", "abc", "<a9993e364706816aba3e25717850c26c9cd0d89d>"),
        ("{{args.a|sha256|base64}}", "abc", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="),
        ("{{args.a|md5|hex|upper}}", "abc", "900150983CD24FB0D6963F7D28E17F72"),
        ("{{args.a|sha512|bytes}}", "abc", 64),
        ("{{args.a|u8|hex}}", 255, "ff"),
        ("{{args.a|u16|hex}}", 258, "0102"),
        ("{{args.a|u16|le|hex}}", 258, "0201"),
        ("{{args.a|u32|base64}}", 1, "AAAAAQ=="),
        ("{{args.a|bytes|u16|hex}}", "abc", "0003"),
        ("x{{args.a|u16}}", 258.0, "x0102"),
        ("{{args.a|base64}}", b"\x01\xff", "Af8="),
        ("{{args.a|hex}}", b"\x01\xff", "01ff"),
        ("x{{args.a}}", b"\x01\xff", "xAf8="),
    ],
)
def test_a_value_goes_through_its_encoders_one_after_the_other(template: str, argument: Any, result: Any) -> None:
    found = rendered(template, a=argument)
    assert (type(found), found) == (type(result), result)


@pytest.mark.parametrize(
    ("template", "argument"),
    [
        ("{{args.a|line}}", "a\nb"),
        ("{{args.a|line}}", "a\rb"),
        ("{{args.a|line}}", "a\0b"),
        ("{{args.a|u8}}", 256),
        ("{{args.a|u8}}", -1),
        ("{{args.a|u16}}", "5"),
        ("{{args.a|u16}}", True),
        ("{{args.a|u32}}", 1.5),
        ("{{args.a|u32}}", 10**5000),
        ("{{args.a|le}}", "ab"),
        ("{{args.a|ms_to_s}}", "soon"),
        ("{{args.a|ms_to_s}}", True),
        ("{{args.a|ms_to_s}}", float("nan")),
        ("{{args.a|json}}", float("nan")),
        ("{{args.a|json}}", 10**5000),
        ("{{args.a|sha256}}", "\ud800"),
        ("{{args.a|base64}}", "\ud800 secret"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_a_value_that_an_encoder_cannot_take_is_a_value_error_without_the_value(template: str, argument: Any) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        rendered(template, a=argument)
    assert "secret" not in str(raised.value)
    assert not hasattr(raised.value, "object")
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{args.a|bas64}}", "unknown encoder 'bas64'; did you mean 'base64'?"),
        ("{{args.a|unix}}", "the encoder unix works on now only"),
        ("{{args.a|date:%Y}}", "the encoder date works on now only"),
        ("{{now|json|unix}}", "the encoder unix works on now only"),
        ("{{now|date}}", "the encoder date needs a format"),
        ("{{now|date:}}", "the encoder date needs a format"),
        ("{{now|date:%Q}}", "the format of date has no directive '%Q'"),
        ("{{args.a|}}", "unknown encoder ''"),
        ("{{arg.x}}", "{{arg.x}} does not exist; did you mean {{args.…}}?"),
        ("{{callid}}", "{{callid}} does not exist; did you mean {{call_id}}?"),
        ("{{ uid }}", "did you mean {{uuid}}?"),
        ("{{nwo}}", "did you mean {{now}}?"),
        ("{{captred.x}}", "did you mean {{captured.…}}?"),
        ("{{steo_id|json}}", "did you mean {{step_id}}?"),
    ],
)
def test_what_is_one_edit_away_from_a_known_name_is_an_error_that_names_it(template: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^message\.a: ") as raised:
        compile_template({"a": template}, "message")
    assert expected in str(raised.value)


# Time


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("{{now}}", "2026-03-04T05:06:07.891Z"),
        ("{{now+10}}", "2026-03-04T05:06:17.891Z"),
        ("{{now - 0.5 }}", "2026-03-04T05:06:07.391Z"),
        ("{{now|unix}}", 1772600767),
        ("{{now|unix_ms}}", 1772600767891),
        ("{{now|unix_ns}}", 1772600767891234000),
        ("{{now+3600|unix}}", 1772604367),
        ("{{now|unix|text}}", "1772600767"),
        ("{{now|date:%Y-%m-%dT%H:%M:%SZ}}", "2026-03-04T05:06:07Z"),
        ("{{now|date:%a, %d %b %Y %H:%M:%S GMT}}", "Wed, 04 Mar 2026 05:06:07 GMT"),
        ("{{now|date:%A %B %p %F %T %e %s %%}}", "Wednesday March AM 2026-03-04 05:06:07  4 1772600767 %"),
        ("{{now|date:%Y%m%d|sha256|bytes}}", 32),
        ("{{now|date:{%H}}}", "{05}"),
        ("{{now|base64}}", "MjAyNi0wMy0wNFQwNTowNjowNy44OTFa"),
    ],
)
def test_the_time_is_written_as_asked(template: str, result: Any) -> None:
    assert rendered(template) == result


def test_names_of_days_and_months_are_english_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_template("{{now|date:%a %b %c %x %X}}", "message")
    assert compiled.render(context()) == "Wed Mar Wed Mar  4 05:06:07 2026 03/04/26 05:06:07"


def test_a_context_has_one_instant_and_a_step_its_own() -> None:
    now = compile_template("{{now|unix_ns}}", "message")
    call = RenderContext({}, "tool")
    assert now.render(call) == now.render(call.replace(call_id=5)) == now.render(call)
    assert now.render(call.for_step(1)) > now.render(call)
    assert call.for_step(1).uuid == call.uuid


def test_a_step_id_is_taken_once_per_step_and_only_if_it_is_used() -> None:
    taken: list[int] = []

    def next_id() -> int:
        taken.append(len(taken) + 7)
        return taken[-1]

    template = compile_template({"a": "{{step_id}}", "b": "<{{step_id}}>"}, "message")
    call = RenderContext({}, "tool")
    step = call.for_step(1, next_step_id=next_id)
    call.for_step(2, next_step_id=next_id)
    assert taken == []
    assert template.render(step) == {"a": 7, "b": "<7>"}
    assert template.render(step.replace(message=Message("x"))) == {"a": 7, "b": "<7>"}
    assert taken == [7]


# Optional and nested ones


def test_what_is_missing_or_null_is_left_out_where_its_placeholder_is_optional() -> None:
    template = {"a": "{{args.a?}}", "b": ["{{args.b?}}", 1, "{{captured.c?|base64}}"], "d": "<{{args.d?}}>", "e": 1}
    assert json.loads(sent(template)) == {"b": [1], "d": "<>", "e": 1}
    assert json.loads(sent(template, {"c": "x"}, a=0, b=[], d=None)) == {
        "a": 0,
        "b": [[], 1, "eA=="],
        "d": "<>",
        "e": 1,
    }
    assert sent({"a": {"b": "{{args.b?}}"}}) == '{"a": {}}'
    assert rendered("{{args.a?}}") is ABSENT
    assert sent("{{args.a?}}") == ""
    assert sent('{"a": "{{args.a?}}", "b": {{args.b?}}}') == '{"a": "", "b": null}'
    assert compile_message(template, "message").arguments == frozenset()
    assert compile_message(template, "message").argument_names == {"a", "b", "d"}


def test_a_name_with_dots_reaches_into_an_object_unless_an_argument_has_it() -> None:
    user = {"name": "ada", "tags": ["x", {"y": 1}]}
    assert rendered("{{args.user.name}}", user=user) == "ada"
    assert rendered("{{args.user.tags.1.y}}", user=user) == 1
    assert rendered("{{captured.user.tags}}", {"user": user}) == ["x", {"y": 1}]
    assert compile_template("{{args.user.name}}", "m").render(RenderContext({"user.name": 1, "user": user}, "t")) == 1
    assert rendered("{{args.user.age?}}", user=user) is ABSENT
    for name in ("user.age", "user.tags.7", "user.tags." + "9" * 5000, "other.name"):
        with pytest.raises(MissingArgumentError) as raised:
            rendered(f"{{{{args.{name}}}}}", user=user)
        assert raised.value.names == (name,)
    with pytest.raises(MissingCaptureError, match=r"nothing was captured as 'a\.b'"):
        rendered("{{captured.a.b}}", {"a": 1})


# Where they may stand


def test_parts_of_the_message_at_hand_keep_their_type() -> None:
    template = compile_template({"of": "{{message.a.0.b}}", "all": "<{{message}}>"}, "on_message[0].reply", EVERYWHERE)
    call = context().replace(message=Message('{"a": [{"b": 5}]}'))
    assert template.render(call) == {"of": 5, "all": '<{"a": [{"b": 5}]}>'}
    assert compile_template("{{message.b?}}", "r", EVERYWHERE).render(call) is ABSENT
    for message in (Message('{"a": 1}'), Message("text"), None):
        with pytest.raises(ValueError, match="message"):
            template.render(context().replace(message=message))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{message.a}}", "only in on_message (not in match) and on_response"),
        ("{{item}}", "only in the message of send_each and the as of $each"),
        ("{{item.a}}", "only in the message of send_each and the as of $each"),
        ("{{gap}}", "only in gap_item of resume"),
    ],
)
def test_a_placeholder_out_of_its_place_is_an_error_that_says_where_it_belongs(template: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^message: ") as raised:
        compile_message(template, "message", CALL)
    assert expected in str(raised.value)


def test_a_dollar_is_written_so_that_no_client_takes_it_for_a_variable() -> None:
    assert rendered("{{dollar}}name and {{dollar}}{name}") == "$name and ${name}"
    assert sent({"q": "{{dollar}}filter"}) == '{"q": "$filter"}'
    assert compile_message("{{dollar}}x", "message").is_static


def test_a_list_is_made_of_a_list() -> None:
    template = {"args": {"$each": "{{args.pairs}}", "as": {"channel": "ticker", "id": "{{item}}"}}}
    assert json.loads(sent(template, pairs=["a", 2])) == {
        "args": [{"channel": "ticker", "id": "a"}, {"channel": "ticker", "id": 2}]
    }
    nested = {"$each": "{{args.rows}}", "as": {"$each": "{{item.cells}}", "as": "{{item|u8|hex}}-{{args.x}}"}}
    assert json.loads(sent(nested, rows=[{"cells": [1, 2]}, {"cells": []}], x="x")) == [["01-x", "02-x"], []]
    assert json.loads(sent({"a": {"$each": "{{args.none?}}", "as": "{{item}}"}})) == {"a": []}
    assert json.loads(sent({"$each": "{{args.a}}", "as": "{{item.b?}}"}, a=[{"b": 1}, {}])) == [1]
    assert compile_message(template, "message").arguments == {"pairs"}
    assert not compile_message(template, "message").is_late
    with pytest.raises(ValueError, match=r"message\.args\.\$each: must come out as a list"):
        sent(template, pairs="ab")
    with pytest.raises(ValueError, match=r"message\.a: a list made of a list is written"):
        compile_message({"a": {"$each": [1]}}, "message")


# Bytes


def test_bytes_are_a_binary_frame_where_they_are_the_whole_message_and_base64_in_json() -> None:
    assert sent("{{args.a}}", a=b"\x01\xff") == b"\x01\xff"
    assert sent("{{args.a}}", a=memoryview(b"\x01")) == b"\x01"
    assert sent({"a": "{{args.a}}"}, a=bytearray(b"\x01\xff")) == '{"a": "Af8="}'
    assert sent({"a": ["{{args.a|sha256}}"]}, a="") == json.dumps(
        {"a": ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}
    )
    assert sent("{{args.a|u16}}", a=1) == "0001"


def test_a_binary_message_is_joined_of_parts() -> None:
    message = {
        "type": "binary",
        "encoding": "hex",
        "data": [
            "30",
            "{{args.topic|bytes|u16}}",
            {"data": "{{args.topic}}", "encoding": "utf-8"},
            "{{args.payload}}",
            {"data": "AQI="},
            "0{{args.digit}}",
        ],
    }
    assert sent(message, topic="a/é", payload=b"\xfe", digit=7) == b"\x30\x00\x04a/\xc3\xa9\xfe\x01\x02\x07"
    assert sent({"type": "binary", "data": "{{args.a}}"}, a=b"\x01") == b"\x01"
    for data in (None, True, 12345678, [1]):
        with pytest.raises(ValueError, match=r"message\.data: must come out as text or bytes"):
            sent({"type": "binary", "data": "{{args.a}}"}, a=data)
    with pytest.raises(ValueError, match=r"message\.data\[1\]\.data: is not valid base64"):
        compile_message({"type": "binary", "data": ["", {"data": "?"}]}, "message")
    with pytest.raises(ValueError, match=r"message\.data\[0\]: unknown key 'dat'; did you mean 'data'"):
        compile_message({"type": "binary", "data": [{"dat": "?"}]}, "message")
    with pytest.raises(ValueError, match=r"message\.data\[0\]\.encoding: must be one of base64, hex, utf-8"):
        compile_message({"type": "binary", "data": [{"data": "", "encoding": "x"}]}, "message")


# JSON in strings of a dict


@given(st.text())
def test_an_argument_adds_no_field_to_json_inside_of_a_string(text: str) -> None:
    outer = json.loads(sent({"payload": '{"id": "{{args.x}}", "n": {{args.n}}}'}, x=text, n={"k": text}))
    assert json.loads(outer["payload"]) == {"id": text, "n": {"k": text}}


# URLs


def test_a_query_parameter_is_repeated_for_a_list_and_left_out_if_it_is_absent() -> None:
    url = compile_url("wss://h/p?s={{args.s}}&o={{args.o?}}&x=a{{args.s}}&k=1", "url")
    assert url.render(context(s=["a b", 1])) == "wss://h/p?s=a%20b&s=1&x=a%5B%22a%20b%22%2C%201%5D&k=1"
    assert url.render(context(s="a", o=5)) == "wss://h/p?s=a&o=5&x=aa&k=1"
    assert compile_url("wss://h/p?o={{args.o?}}", "url").render(context()) == "wss://h/p"
    assert compile_url("wss://h/p?s={{args.s}}", "url").render(context(s=[])) == "wss://h/p"
    assert compile_url("wss://h/?", "url").render(context()) == "wss://h/?"
    with pytest.raises(ValueError, match="lone surrogate") as raised:
        url.render(context(s="\ud800secret"))
    assert not hasattr(raised.value, "object")
    assert "secret" not in str(raised.value)


# Variables


def test_a_variables_value_is_put_in_as_it_is_and_never_scanned() -> None:
    hostile = 'pa$word ${x} {{now}} "\\ UTCP_ARG_a_UTCP_ARG'
    scope = Scope(variables={"VALUE": hostile, "x": "no"})
    for template in ("${VALUE}", "$VALUE"):
        assert compile_template(template, "m", scope).render(context(a="no")) == hostile
        assert compile_template({"a": f"<{template}>"}, "m", scope).render(context()) == {"a": f"<{hostile}>"}
        assert json.loads(compile_message(f'{{"a": "{template}"}}', "m", scope).encode(context())) == {"a": hostile}
    assert compile_message("$VALUE", "m", scope).is_static
    assert compile_template("$OTHER ${a}", "m", scope).render(context(a=1)) == "$OTHER 1"
    url = compile_url("$BASE/p?k=$KEY", "url", Scope(variables={"BASE": "wss://host:1/x#f", "KEY": "a&b"}))
    assert url.origin == "wss://host:1/x"
    assert url.render(context()) == "wss://host:1/x/p?k=a%26b"
    hosted = compile_url("wss://${HOST}:${PORT}/p", "url", Scope(variables={"HOST": "h", "PORT": "8080"}))
    assert hosted.render(context()) == "wss://h:8080/p"
