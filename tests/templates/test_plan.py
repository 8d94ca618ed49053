"""The moments of a call template: their form, what may be used when, whose arguments they take, what is inherited."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from utcp.exceptions import UtcpSerializerValidationError

from utcp_websocket_anyio._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from utcp_websocket_anyio._templates.fields import FIELDS
from utcp_websocket_anyio._templates.plan import Plan, Resume, ResumeChange
from utcp_websocket_anyio._templates.received import Message
from utcp_websocket_anyio._templates.values import RenderContext
from utcp_websocket_anyio.errors import WebSocketSecurityError

BASE: dict[str, Any] = {"name": "manual", "call_template_type": "websocket", "url": "wss://example.com/tools"}
serializer = WebSocketCallTemplateSerializer()


def template(**fields: Any) -> WebSocketCallTemplate:
    return serializer.validate_dict({**BASE, **fields})


def plan(**fields: Any) -> Plan:
    return template(**fields).plan


def fault(**fields: Any) -> str:
    with pytest.raises(UtcpSerializerValidationError) as raised:
        template(**fields)
    return str(raised.value).removeprefix("Invalid WebSocket call template: ")


def context(captured: dict[str, Any] | None = None, /, **args: Any) -> RenderContext:
    return RenderContext(args, "tool", captured=captured)


STEP = {"send": "hello", "expect": {"a": 1}, "capture": {"sid": {"path": "data.id"}}}
HTTP = {"http": {"url": "https://example.com/token"}, "capture": {"token": {"path": "t"}}}


# The form of steps and moments


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"before": [{"send": "a", "http": {"url": "https://h/"}}]}, "before[0]: http and send exclude each other"),
        ({"before": [{"send_each": {"of": []}}]}, "before[0].send_each: only works in request"),
        ({"prepare": [{"send": "a"}]}, "prepare[0]: there is no connection yet, so prepare takes compute and http"),
        ({"prepare": [{"expect": "a"}]}, "prepare[0]: there is no connection yet"),
        ({"before": [{"send": "a", "when": "always"}]}, "before[0].when: works in on_end only"),
        ({"on_end": [{"send": "a", "when": "never"}]}, "on_end[0].when: works in on_end only, and is 'left' or"),
        ({"on_end": [{"when": "always"}]}, "on_end[0]: a step needs send"),
        ({"before": [{"compute": {"a": {"hsh": "md5"}}}]}, "before[0].compute.a: unknown kind 'hsh'; did you mean"),
        ({"request": [{"send_each": {}}]}, "request[0].send_each: needs of"),
        ({"request": [{"send_each": {"of": [], "chunk": 0}}]}, "request[0].send_each.chunk: must be a number of"),
        ({"request": [{"send_each": {"of": [], "every": 0}}]}, "request[0].send_each.every: must be a positive"),
        ({"request": [{"send_each": {"of": [], "encoding": "x"}}]}, "request[0].send_each.encoding: must be one of"),
        ({"before": [{"http": {}}]}, "before[0].http.url: must be the address of the request"),
        ({"before": [{"http": {"url": "ftp://h/"}}]}, "before[0].http.url: must start with https://"),
        ({"before": [{"http": {"url": "http://example.com/"}}]}, "before[0].http.url: http:// goes to localhost"),
        ({"before": [{"http": {"url": "https://h/", "json": 1, "form": {}}}]}, "before[0].http: json and form exclude"),
        ({"before": [{"http": {"url": "https://h/", "method": "G T"}}]}, "before[0].http.method: must be a method"),
        ({"before": [{"http": {"url": "https://h/", "headers": {"A": "b\r"}}}]}, "before[0].http.headers: the value"),
        (
            {"before": [{"http": {"url": "https://h/", "hedaers": {}}}]},
            "before[0].http: unknown key 'hedaers'; did you",
        ),
        ({"heartbeat": {}}, "heartbeat: needs send (a message) with every (seconds), or silence (seconds), or both"),
        ({"heartbeat": {"send": "a"}}, "heartbeat: send (a message) and every (seconds) need each other"),
        ({"heartbeat": {"silence": 5, "expect": "a"}}, "heartbeat.expect: needs send as well"),
        ({"heartbeat": {"send": "a", "every": 1, "timeout": 1}}, "heartbeat.timeout: needs expect as well"),
        ({"heartbeat": {"send": "a", "every": "soon"}}, "heartbeat.every: must come out as a positive number"),
        ({"heartbeat": {"send": "a", "evry": 1}}, "heartbeat: unknown key 'evry'; did you mean 'every'?"),
        ({"on_message": [{"match": "a", "retire": "yes"}]}, "on_message[0].retire: must be true or false"),
        ({"on_message": [{"match": "{{message.a}}", "retire": True}]}, "on_message[0].match: {{message.a}} cannot"),
        ({"on_message": [{"match": "a", "resume": {"attempt": 1}}]}, "on_message[0].resume: unknown key 'attempt'"),
        ({"on_response": {}}, "on_response: needs capture, send (a message), or both"),
        ({"on_response": {"reply": "a"}}, "on_response: unknown key 'reply'"),
        ({"resume": {"attempts": 0}}, "resume.attempts: must be an integer, 1 at least"),
        ({"resume": {"not_after": [999]}}, "resume.not_after[0]: must be a close code (1000 to 4999)"),
        ({"resume": {"not_after": [[4100, 4000]]}}, "resume.not_after[0]: must be a close code"),
        ({"resume": {"request": {"send": "a"}}}, "resume.request: must be a list of steps"),
        ({"resume": {"gap_item": "{{item}}"}}, "resume.gap_item: {{item}} cannot be used here"),
        ({"protocol": "a, b"}, "protocol: a subprotocol must be a token"),
        ({"protocol": ["ok", "a\r\nB: c"]}, "protocol[1]: a subprotocol must be a token"),
        ({"protocol": []}, "protocol: "),
        ({"message": "a", "request": []}, "request: give only one of message and request"),
        ({"listen_only": True, "request": []}, "listen_only: give only one of request and listen_only"),
        ({"request": [], "expected_responses": 0}, "request: with expected_responses 0 nothing would be sent"),
        ({"message": {"a": "{{item}}"}}, "message.a: {{item}} cannot be used here"),
        ({"end_on_close": "sometimes"}, "end_on_close: Input should be 'normal', 'any' or 'never'"),
        ({"collect": "all"}, "collect: Input should be 'list', 'join' or 'last'"),
        ({"headers": {"A": "{{arg.x}}"}}, "headers.A: {{arg.x}} does not exist; did you mean {{args.…}}?"),
        ({"auto_reply": [], "on_message": []}, "auto_reply: is an old name of on_message; give only one of them"),
        ({"max_message_size": 2**63}, "max_message_size: Input should be less than or equal to"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_fields_that_cannot_work_together_are_refused_when_the_template_is_validated(
    fields: dict[str, Any], expected: str
) -> None:
    assert fault(**fields).startswith(expected)


def test_the_request_is_steps_however_it_is_written() -> None:
    (step,) = plan(message={"a": "{{args.a}}"}).request
    assert step.send is not None
    assert step.send.encode(context(a=1)) == '{"a": 1}'
    (step,) = plan(url="wss://h/{{args.a}}/{{args.b?}}", headers={"X": "{{args.c}}"}).request
    assert step.send is not None
    assert step.send.encode(context(a=1, b=2, c=3, d=4)) == '{"d": 4}'
    assert plan(listen_only=True).request == plan(request=[]).request == ()
    first, each = plan(
        request=[{"send": "start"}, {"send_each": {"of": "{{args.audio}}", "chunk": "{{args.size}}", "every": 0.1}}]
    ).request
    assert [first.where, each.where] == ["request[0]", "request[1]"]
    assert each.send_each is not None
    assert each.send_each.message.encode(context().replace(item=b"\x01")) == b"\x01"
    assert each.send_each.chunk_size(context(size="320")) == 320
    assert each.send_each.every == 0.1
    assert each.arguments == {"audio", "size"}
    with pytest.raises(ValueError, match=r"request\[1\]\.send_each\.chunk: must come out as a positive integer"):
        each.send_each.chunk_size(context(size=0))


def test_an_http_step_is_rendered_as_a_request() -> None:
    (step,) = plan(
        prepare=[
            {
                "compute": {"sig": {"hash": "md5", "text": "{{args.key}}"}},
                "http": {
                    "method": "put",
                    "url": "https://example.com/{{args.path}}?a=1",
                    "headers": {"X-Sig": "{{captured.sig}}", "X-Optional": "{{args.none?}}"},
                    "query": {"b": ["x y", 2], "c": "{{args.none?}}"},
                    "json": {"k": "{{args.n}}"},
                },
                "expect": {"ok": True},
                "capture": {"token": {"path": "t"}},
            }
        ]
    ).settings.prepare
    assert step.captures == frozenset()
    assert step.makes == {"sig", "token"}
    assert step.arguments == {"key", "path", "n"}
    assert step.http is not None
    request = step.http.render(context({"sig": "s"}, path="a/b", n=5))
    assert request.method == "PUT"
    assert request.url == "https://example.com/a%2Fb?a=1&b=x%20y&b=2"
    assert request.headers == (("X-Sig", "s"), ("Content-Type", "application/json"))
    assert request.content == b'{"k": 5}'
    assert repr(request) == "<HttpRequest PUT>"
    (form,) = plan(prepare=[{"http": {"url": "https://h/", "form": {"a": "b c", "d": ["1", "2"]}}}]).settings.prepare
    assert form.http is not None
    rendered = form.http.render(context())
    assert (rendered.method, rendered.content) == ("POST", b"a=b%20c&d=1&d=2")
    (body,) = plan(prepare=[{"http": {"url": "https://h/", "body": "{{args.x}}"}}]).settings.prepare
    assert body.http is not None
    assert body.http.render(context(x=b"\x01")).content == b"\x01"
    (captured,) = plan(
        on_connect=[{"http": {"url": "{{captured.u}}"}}],
        prepare=[{"http": {"url": "https://h/"}, "capture": {"u": {"path": "u"}}}],
    ).settings.on_connect
    assert captured.http is not None
    with pytest.raises(WebSocketSecurityError, match="http:// goes to localhost"):
        captured.http.render(context({"u": "http://example.com/x?secret"}))


def test_handlers_hide_what_they_answer_unless_told_otherwise() -> None:
    def handler(**fields: Any) -> Any:
        return plan(
            on_message=[{"match": {"a": "{{captured.x}}"}, "capture": {"x": {"path": "x"}}, **fields}]
        ).settings.on_message[0]

    assert handler().deliver
    actions: list[dict[str, Any]] = [{"reply": "{{message.a}}"}, {"retire": True}, {"lost": True}, {"resume": {}}]
    for action in actions:
        assert not handler(**action).deliver
        assert handler(**action, deliver=True).deliver
    assert not handler(deliver=False).deliver
    assert not handler().matches(Message('{"a": 1}'), context()), "not before something is captured"
    assert handler().matches(Message('{"a": 1}'), context({"x": 1}))


def test_what_a_handler_says_of_resuming_is_applied_to_each_streams_own() -> None:
    own = plan(resume={"attempts": 7, "before": [{"send": "own"}], "not_after": [4000, [4100, 4199]]}).resume
    assert own is not None
    assert own.is_final(4000)
    assert own.is_final(4150)
    assert not own.is_final(4001)
    assert Resume().attempts == 5
    handlers = plan(
        on_message=[
            {"match": "a", "resume": True},
            {"match": "b", "resume": {"request": [{"send": "again"}]}},
            {"match": "c", "resume": {}},
            {"match": "d", "retire": True},
        ]
    ).settings.on_message
    same, changed, anew, none = [handler.resume for handler in handlers]
    assert none is None
    assert isinstance(same, ResumeChange)
    assert same.applied_to(own) is own
    assert same.applied_to(None) is None
    assert changed is not None
    assert anew is not None
    result = changed.applied_to(own)
    assert result is not None
    assert (result.attempts, result.before, result.drops_captures) == (7, own.before, False)
    assert result.request is not None
    assert [step.where for step in result.request] == ["on_message[1].resume.request[0]"]
    result = anew.applied_to(own)
    assert result is not None
    assert (result.attempts, result.before, result.drops_captures) == (7, None, True)


def test_how_a_stream_ends_on_close_depends_on_what_was_given() -> None:
    assert plan().ends_on_close(streaming=True) == "normal"
    assert plan(resume={}).ends_on_close(streaming=True) == "never"
    assert plan(resume={}).ends_on_close(streaming=False) == "normal"
    given = template(resume={}, end_on_close="normal")
    assert given.plan.ends_on_close(streaming=True) == "normal"
    assert serializer.to_dict(given)["end_on_close"] == "normal"
    assert serializer.validate_dict(serializer.to_dict(given)).plan.ends_on_close(streaming=True) == "normal"
    given.timeout = 3
    assert given.plan.ends_on_close(streaming=True) == "normal"


# What is captured when


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"prepare": [{"compute": {"a": "{{captured.b}}"}}, {"compute": {"b": 1}}]},
            "prepare[0]: {{captured.b}} is not",
        ),
        ({"url": "wss://h/{{captured.sid}}", "on_connect": [STEP]}, "url: {{captured.sid}} is not captured by any"),
        ({"headers": {"A": "{{captured.sid}}"}, "on_connect": [STEP]}, "headers.A: {{captured.sid}} is not captured"),
        (
            {"on_connect": [{"send": "{{captured.sid}}"}, STEP]},
            "on_connect[0]: {{captured.sid}} is not captured before",
        ),
        (
            {"on_connect": [{"send": "{{captured.sid}}"}], "before": [STEP]},
            "on_connect[0].send: {{captured.sid}} is not",
        ),
        ({"before": [{"send": "{{captured.s?}}"}]}, "before[0].send: {{captured.s}} is not captured by any step"),
        ({"result": {"path": "{{captured.a}}"}}, "result: {{captured.a}} is not captured by any step"),
        ({"on_connect": [STEP], "message": "{{captured.sidd}}"}, "message: {{captured.sidd}} is not captured"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_capture_that_can_never_have_a_value_is_an_error(fields: dict[str, Any], expected: str) -> None:
    assert fault(**fields).startswith(expected)


def test_each_moment_may_use_what_those_before_it_capture() -> None:
    made = plan(
        url="{{captured.url}}?t={{captured.token}}",
        prepare=[HTTP, {"compute": {"url": "wss://h/", "again": "{{captured.url}}{{captured.token}}"}}],
        headers={"Authorization": "Bearer {{captured.token}}"},
        protocol=["v1", "auth.{{captured.token}}"],
        on_connect=[STEP, {"send": "{{captured.sid}}{{captured.token}}{{captured.seq}}"}],
        on_message=[{"match": {"s": {"$any": True}}, "capture": {"seq": {"path": "s"}}}],
        heartbeat={"send": {"d": "{{captured.seq}}"}, "every": "{{captured.seq|ms_to_s}}"},
        before=[{"expect": "a", "capture": {"sub": {"path": "id"}}}, {"send": "{{captured.sub.id}}"}],
        message={"sub": "{{captured.sub}}", "sid": "{{captured.sid}}"},
        message_filter={"sub": "{{captured.sub}}"},
        on_response={"capture": {"last": {"path": "ts"}}, "send": "{{message.id}}{{captured.last}}"},
        on_end=[{"send": "{{captured.sub}}{{captured.last?}}"}],
        resume={"before": [{"send": "{{captured.last}}"}]},
        on_close=[{"send": "{{captured.sid}}"}],
    )
    assert made.url.origin is None
    # In a session another tool may have opened the connection.
    plan(session="{{args.session?}}", message="{{captured.anything}}")


# Endpoints and handshakes


def test_captures_and_the_time_make_no_new_endpoint_but_go_into_the_handshake() -> None:
    made = plan(
        url="wss://h/{{args.a}}?t={{captured.token}}&n={{now|unix}}",
        prepare=[HTTP],
        headers={"A": "{{captured.token}}{{args.b}}", "C": "c", "D": "{{args.d?}}"},
        protocol=["v1", "{{captured.token}}"],
    )
    endpoint = made.endpoint(context(a=1, b=2), "m")
    assert endpoint.url == "wss://h/1?t={{captured.token}}&n={{now|unix}}"
    assert endpoint == made.endpoint(context(a=1, b=2), "m")
    assert endpoint != made.endpoint(context(a=1, b=3), "m")
    assert endpoint != made.endpoint(context(a=2, b=2), "m")
    assert endpoint != made.endpoint(context(a=1, b=2), "other")
    handshake = made.handshake(context({"token": "T"}, a=1, b=2))
    assert handshake.url.startswith("wss://h/1?t=T&n=1")
    assert handshake.headers == (("A", "T2"), ("C", "c"))
    assert handshake.subprotocols == ("v1", "T")
    assert repr(handshake) == "<Handshake with wss://h/1>"
    with pytest.raises(WebSocketSecurityError, match="a subprotocol must be a token") as raised:
        made.handshake(context({"token": "a b"}, a=1, b=2))
    assert "a b" not in str(raised.value)
    with pytest.raises(WebSocketSecurityError, match="headers: the value of the header A contains a control"):
        made.handshake(context({"token": "a\r\n"}, a=1, b=2))


def test_a_captured_url_is_judged_like_a_written_one() -> None:
    made = plan(url="{{captured.url}}", prepare=[{"compute": {"url": "{{args.u}}"}}])
    assert made.handshake(context({"url": "wss://h/?once=1"}, u="")).url == "wss://h/?once=1"
    with pytest.raises(WebSocketSecurityError, match="ws:// goes to localhost") as raised:
        made.handshake(context({"url": "ws://example.com/?secret"}, u=""))
    assert "secret" not in str(raised.value)


def test_arguments_of_the_connections_moments_belong_to_the_endpoint() -> None:
    made = plan(
        on_connect=[{"send": {"room": "{{args.room.id}}"}}],
        on_close=[{"send": "{{tool_name}}"}],
        message="{{args.text}}",
    )
    assert made.arguments == {"room.id", "text"}
    assert made.missing_arguments({"text": 1}) == {"room.id"}
    assert made.missing_arguments({"text": 1}, on_open_session=True) == frozenset()
    assert made.missing_arguments({"text": 1, "room": {"id": 5}}) == frozenset()
    one = made.endpoint(context(room={"id": 1}, text="a"), "m")
    assert one == made.endpoint(context(room={"id": 1}, text="b"), "m")
    assert one != made.endpoint(context(room={"id": 2}, text="a"), "m")
    assert one != made.endpoint(RenderContext({"room": {"id": 1}, "text": "a"}, "other"), "m")
    everything = plan(on_connect=[{"send": "{{args}}"}])
    assert everything.endpoint(context(a=1), "m") != everything.endpoint(context(a=2), "m")


def test_an_endpoint_that_does_not_depend_on_the_call_is_made_once_and_kept_for_one_manual() -> None:
    made = plan(headers={"A": "b"})
    assert made.endpoint(context(a=1), "m") is made.endpoint(context(a=2), "m")
    for number in range(1000):
        made.endpoint(context(), str(number))
    assert len(made._last_endpoint) == 1
    unique = plan(url="wss://h/{{uuid}}")
    assert unique.endpoint(context(), "m").single_use
    assert unique.endpoint(context(), "m") != unique.endpoint(context(), "m")
    assert not made.endpoint(context(), "m").single_use


def test_a_session_is_found_by_manual_and_value_alone() -> None:
    made = plan(session="{{args.chat?}}", url="wss://h/{{args.model?}}")
    other = plan(session="{{args.chat}}", multiplex=True, message_filter={"id": "{{call_id}}"})
    one = made.endpoint(context(chat="a", model="x"), "m")
    assert one.session == "a"
    assert one == made.endpoint(context(chat="a", model="y"), "m") == other.endpoint(context(chat="a"), "m")
    assert one != made.endpoint(context(chat="b", model="x"), "m")
    assert one != made.endpoint(context(chat="a", model="x"), "other")
    for missing in ({}, {"chat": None}, {"chat": ""}):
        assert made.endpoint(context(**missing), "m").session is None
    assert other.endpoint(context(), "m").session is None
    assert other.arguments == frozenset()
    # How a session is ended: a call that sends nothing, waits for nothing, and closes.
    plan(session="s", request=[], expected_responses=0, close_after_response=True)


def test_a_variable_counts_with_its_value_only_where_it_is_used() -> None:
    one = template(on_connect=[{"send": "${KEY}"}], message="${OTHER}")
    first = one.with_variables({"KEY": "a", "OTHER": "x"}).plan.settings
    assert first == one.with_variables({"KEY": "a", "OTHER": "y"}).plan.settings
    assert first != one.with_variables({"KEY": "b", "OTHER": "x"}).plan.settings


# Knowing one's own answers


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"message_filter": {"id": "{{call_id}}"}}, True),
        ({"message_filter": {"id": "{{call_id}}"}, "error_filter": {"type": "error"}}, False),
        ({"message_filter": {"id": "{{call_id}}"}, "error_filter": {"id": "{{call_id}}", "error": {}}}, True),
        ({"message_filter": {"id": "{{call_id}}"}, "before": [{"send": "a", "expect": "ok"}]}, False),
        ({"message_filter": {"id": "{{call_id}}"}, "before": [{"send": "a"}]}, True),
        ({"message_filter": {"id": "{{captured.sid}}"}, "before": [{**STEP, "expect": {"re": "{{call_id}}"}}]}, True),
        ({"message_filter": {"sid": "{{captured.sid}}"}, "on_connect": [STEP]}, False),
    ],
    ids=str,
)
def test_a_call_knows_its_answers_only_if_every_filter_names_it(fields: dict[str, Any], expected: bool) -> None:
    assert plan(**fields).knows_its_answers is expected


def test_discovery_keeps_the_connection_and_nothing_of_the_call() -> None:
    from utcp_websocket_anyio._templates.filters import compile_filter

    made = plan(
        url="wss://h/{{args.a}}",
        message="{{args.b}}",
        message_filter={"x": "{{args.c}}"},
        session="s",
        on_end=[{"send": "{{args.d}}"}],
    ).for_discovery(compile_filter({"tools": []}, "manual"))
    assert made.arguments == {"a"}
    assert made.session is None
    assert made.on_end == ()
    (step,) = made.request
    assert step.send is not None
    assert step.send.encode(context()) == '{"type": "utcp"}'


# Inheritance


def tools(*templates: dict[str, Any] | None, **manual: Any) -> list[dict[str, Any]]:
    given = [
        {
            "name": f"t{index}",
            **({} if one is None else {"tool_call_template": {"call_template_type": "websocket", **one}}),
        }
        for index, one in enumerate(templates)
    ]
    built = template(**manual, tools=given)
    assert built.tools is not None
    return [tool.get("tool_call_template", {}) for tool in built.tools]


def test_an_inline_tool_without_a_url_inherits_what_it_does_not_set() -> None:
    manual: dict[str, Any] = {
        "url": "wss://h/a/b?x=1",
        "auth": {"auth_type": "basic", "username": "u", "password": "p"},
        "auto_reply": [{"match": "ping", "reply": "pong"}],
        "on_connect": [{"send": "login"}],
        "message": "manual's",
        "headers": {"A": "b"},
        "discovery_message": "x",
        "keep_alive": False,
    }
    first, second, third, fourth = tools(
        {"name": "own"},
        {"url": "/private?y={{args.y}}", "on_connect": None, "request": []},
        {"url": "wss://elsewhere/"},
        {"url": "?z=1", "keep_alive": True, "auto_reply": [], "listen_only": False},
        **manual,
    )
    on_message = [{"match": "ping", "reply": "pong"}]
    inherited = {"auth": {**manual["auth"]}, "on_message": on_message, "headers": {"A": "b"}}
    assert first["url"] == "wss://h/a/b?x=1"
    assert first["name"] == "own"
    assert first["message"] == "manual's"
    for name, value in inherited.items():
        assert first[name] == value
    assert not first.keys() & {"tools", "discovery_message", "discovery_url"}
    assert second["url"] == "wss://h/private?y={{args.y}}"
    assert second["on_connect"] is None
    assert "message" not in second
    assert third == {"call_template_type": "websocket", "url": "wss://elsewhere/"}
    assert fourth["url"] == "wss://h/a/b?z=1"
    assert fourth["keep_alive"] is True
    assert fourth["on_message"] == []
    assert "message" not in fourth


@pytest.mark.parametrize(
    ("base", "url", "result"),
    [
        ("wss://h/a/b?x=1", "", "wss://h/a/b?x=1"),
        ("wss://h/a/b?x=1", "c", "wss://h/a/c"),
        ("wss://h/a/b", "../c", "wss://h/c"),
        ("wss://h/a/b", "//other/c", "wss://other/c"),
        ("wss://${HOST}:1/a/b", "/c?d={{args.d}}", "wss://${HOST}:1/c?d={{args.d}}"),
        ("${BASE}", "/c", "${BASE}/c"),
        ("{{captured.url}}", "?a=1", "{{captured.url}}?a=1"),
        ("wss://h/", "{{captured.url}}&a=1", "{{captured.url}}&a=1"),
    ],
)
def test_a_relative_url_is_resolved(base: str, url: str, result: str) -> None:
    (tool,) = tools({"url": url}, url=base, prepare=[{"compute": {"url": "wss://h/"}}])
    assert tool["url"] == result


def test_a_resolved_tool_is_complete_and_reading_it_back_inherits_nothing() -> None:
    built = template(
        headers={"A": "b"}, tools=[{"name": "t", "tool_call_template": {"call_template_type": "websocket"}}]
    )
    assert built.tools is not None
    written = built.tools[0]["tool_call_template"]
    again = template(headers={"C": "d"}, tools=[{"name": "t", "tool_call_template": written}])
    assert again.tools is not None
    assert again.tools[0]["tool_call_template"] == written
    assert serializer.to_dict(serializer.validate_dict(written))["headers"] == {"A": "b"}
    assert serializer.validate_dict(serializer.to_dict(built)) == built


def test_combinations_are_checked_where_they_are_used() -> None:
    ok = {"message_filter": {"id": "{{call_id}}"}}
    assert len(tools(ok, ok, multiplex=True)) == 2
    built = template(
        multiplex=True, tools=[{"name": "t", "tool_call_template": {"call_template_type": "websocket", **ok}}]
    )
    with pytest.raises(ValueError, match="multiplex: concurrent calls"):
        _ = built.plan
    assert fault(multiplex=True, tools=[{"name": "t"}]).startswith("multiplex: concurrent calls")
    bad = [{"name": "t", "tool_call_template": {"call_template_type": "websocket"}}]
    assert fault(multiplex=True, tools=bad).startswith("tools[0].tool_call_template.multiplex: concurrent calls")
    assert fault(message_filter="(", tools=[]).startswith("message_filter: is not a valid regular expression")


# Variables of a client


def test_variables_are_values_wherever_a_template_has_them() -> None:
    secret = 'pa$word{{now}}"\\'
    built = template(
        url="wss://${HOST}/p?k=$KEY",
        auth={"auth_type": "basic", "username": "${USER}", "password": "$PASS"},
        headers={"X": "Bearer ${TOKEN}"},
        message='{"k": "$PASS", "n": "${a}"}',
        discovery_url="https://${HOST}/manual",
    )
    values = {"HOST": "h:1", "KEY": "a&b", "USER": "u$x", "PASS": secret, "TOKEN": "$t{{uuid}}", "unused": "x"}
    resolved = built.with_variables(values)
    assert built.plan is not resolved.plan
    handshake = resolved.plan.handshake(context())
    assert handshake.url == "wss://h:1/p?k=a%26b"
    assert handshake.headers == (("X", "Bearer $t{{uuid}}"),)
    assert resolved.plan.auth.username == "u$x"
    assert resolved.plan.auth.password == secret
    assert resolved.discovery_url == "https://h:1/manual"
    (step,) = resolved.plan.request
    assert step.send is not None
    assert json.loads(step.send.encode(context(a=5))) == {"k": secret, "n": "5"}
    assert resolved.url == built.url
    assert resolved != built
    assert resolved == built.with_variables(values)
    resolved.timeout = 5
    assert resolved.plan.timeout == 5
    assert resolved.plan.handshake(context()).url == "wss://h:1/p?k=a%26b"
    for name, value, match in (
        ("HOST", "h secret", "url: "),
        ("TOKEN", "secret\r\n", "headers: "),
        ("USER", "\ud800", "auth"),
    ):
        with pytest.raises(ValueError, match=match) as raised:
            built.with_variables({**values, name: value})
        assert "secret" not in str(raised.value)


# Unknown fields, and the JSON Schema


def test_unknown_fields_are_named_with_the_nearest_and_without_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template(**{"mesage": 1, "x\x1b[2J\n": 2, "$schema": "manual.schema.json"})
    (record,) = caplog.records
    assert "mesage (did you mean message?)" in record.getMessage()
    assert "'x\\x1b[2J\\n'" in record.getMessage()
    assert "schema" not in record.getMessage()


def test_every_field_has_a_role_and_objects_have_a_shape_in_the_json_schema() -> None:
    known = WebSocketCallTemplate.model_fields.keys() - {
        "name", "auth", "call_template_type", "allowed_communication_protocols"
    }  # fmt: skip
    assert FIELDS.keys() == known
    properties = WebSocketCallTemplate.model_json_schema()["properties"]
    step = properties["before"]["anyOf"][0]["items"]["properties"]
    assert {"compute", "http", "send", "send_each", "reject", "expect", "capture", "when"} == step.keys()
    assert "every" in properties["heartbeat"]["anyOf"][0]["properties"]
    assert properties["auto_reply"]["deprecated"]


def test_a_plan_is_immutable_and_shows_no_secret() -> None:
    made = plan(auth={"auth_type": "api_key", "api_key": "hunter2"}, url="wss://h/p?k=hunter2", protocol="hunter2")
    assert repr(made) == "<Plan for wss://h/p>"
    assert "hunter2" not in repr(made.settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.timeout = 5  # type: ignore[misc]  # a plan is frozen
