"""`utcp-ws check`: what is wrong with a file, what it says in words, and what it would send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.terminal import done, failed, manual, written

from utcp_websocket_anyio import WebSocketCallTemplate
from utcp_websocket_anyio.cli.explain import explain, filter_in_words

URL = "ws://127.0.0.1:1/"
EXAMPLES = Path(__file__).parents[2] / "examples"
MANUALS = EXAMPLES.rglob("*.json")


@pytest.mark.parametrize("path", sorted(MANUALS), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_manual_of_the_examples_is_valid_and_explained(path: Path) -> None:
    shown = done("check", str(path))
    for tool in json.loads(path.read_text(encoding="utf-8"))["tools"]:
        assert f"\n{tool['name']}" in shown


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"timeout": -1}, "timeout: "),
        ({"multiplex": True}, "multiplex: "),
        ({"message": "{{args.x|rot13}}"}, "unknown encoder 'rot13'"),
        ({"message_filter": {"$and": 1}}, "message_filter"),
        ({"url": "ws://example.com/"}, "url: ws:// goes to localhost"),
        ({"on_connect": [{"wait": 1}]}, "on_connect[0]: unknown key 'wait'"),
        ({"tools": [{"description": "no name"}]}, "tools[0].name: a tool needs a name"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(template: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", {"url": URL, **template})
    assert said in failed(1, "check", file)
    assert json.loads(failed(1, "check", file, "--json"))["error"] == "InvalidTemplate"


def test_a_template_of_a_tool_is_checked_too(tmp_path: Path) -> None:
    content = manual(URL)
    content["tools"][0]["tool_call_template"] = {"call_template_type": "websocket", "url": URL, "timeout": 0}
    assert "tools[0].tool_call_template.timeout" in failed(1, "check", written(tmp_path / "m.json", content))


def test_what_is_likely_a_mistake_is_noted(tmp_path: Path) -> None:
    content = manual(URL, mesage_filter={}, message={"q": "{{args.q}}", "key": "${KEY}"})
    shown = done("check", written(tmp_path / "m.json", content))
    assert "warning  unknown field, ignored: mesage_filter; did you mean message_filter?\n" in shown
    assert "note     variables without a value: manual_KEY\n" in shown
    assert "warning  the template needs arguments that inputs does not declare: q\n" in shown
    assert "without a value" not in done("check", str(tmp_path / "m.json"), "--var", "KEY=1")
    assert "without a value" not in done("check", str(tmp_path / "m.json"), env={"manual_KEY": "1"})


def test_a_call_is_shown_as_it_would_be_sent(tmp_path: Path) -> None:
    content = manual(
        URL + "{{args.room}}?limit={{args.limit}}",
        inputs={"room": {"type": "string"}, "limit": {"type": "integer", "default": 5}},
        on_connect=[
            {"send": {"login": "${KEY}"}, "expect": {"id": {"$any": True}}, "capture": {"id": {"path": "id"}}},
            {"expect": {"ready": True}},
        ],
        before=[{"send": "JOIN {{args.room}}"}],
        message={"id": "{{call_id}}", "session": "{{captured.id}}", "limit": "{{args.limit}}", "key": "${KEY}"},
    )
    file = written(tmp_path / "m.json", content)
    shown = done("check", file, "tool", "room=a b", env={"manual_KEY": "of the environment"})
    assert "connects to >    ws://127.0.0.1:1/a%20b?limit=5\n" in shown
    assert 'on_connect[0] >  {"login": "${KEY}"}\n' in shown
    assert "before[0] >      JOIN a b\n" in shown
    assert 'message >        {"id": 3, "session": "<id>", "limit": 5, "key": "${KEY}"}\n' in shown
    assert "of the environment" not in shown
    assert '"key": "k"}' in done("check", file, "manual.tool", "room=a", "--var", "KEY=k")


@pytest.mark.parametrize(
    ("template", "arguments", "sends"),
    [
        ({}, ("q=x",), [["connects to", URL], ["message", '{"q": "x"}']]),
        ({"listen_only": True}, ("q=x",), [["connects to", URL]]),
        (
            {"message": {"type": "binary", "data": "{{args.q}}", "encoding": "utf-8"}},
            ("q=x",),
            [["connects to", URL], ["message", {"type": "binary", "data": "eA=="}]],
        ),
        (
            {"url": "ws://127.0.0.1:${PORT}/"},
            ("q=x",),
            [["connects to", "ws://127.0.0.1:${PORT}/"], ["message", '{"q": "x"}']],
        ),
    ],
)
def test_json_has_what_would_be_sent(template: dict[str, Any], arguments: Any, sends: Any, tmp_path: Path) -> None:
    content = {**manual(URL, inputs={"q": {"type": "string"}}), **template}
    (finding,) = json.loads(done("check", written(tmp_path / "m.json", content), "tool", *arguments, "--json"))
    assert finding["sends"] == sends


def test_binary_messages_are_shown_in_hexadecimal(tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", manual(URL, message={"type": "binary", "data": "AP8="}))
    assert "message >      binary: 00 ff\n" in done("check", file, "tool")


def test_a_call_that_cannot_be_made_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", manual(URL, inputs={"n": {"type": "integer"}}, message="{{args.m}}"))
    assert "missing argument: n" in failed(2, "check", file, "tool")
    assert "missing argument: m" in failed(2, "check", file, "tool", "n=1")
    assert "unknown tool 'took'" in failed(2, "check", file, "took")
    assert "check takes a file" in failed(2, "check", URL)


def test_a_tool_of_another_protocol_is_left_to_its_plugin(tmp_path: Path) -> None:
    content = manual(URL)
    content["tools"][0]["tool_call_template"] = {"call_template_type": "http", "url": "https://example.com/"}
    assert "is called by http, which is not checked here" in done("check", written(tmp_path / "m.json", content))


def test_a_configuration_is_checked_manual_by_manual(tmp_path: Path) -> None:
    other = {"name": "web", "call_template_type": "http", "url": "https://example.com/"}
    content = {"manual_call_templates": [manual(URL), other, {**manual(URL), "name": "two"}]}
    findings = json.loads(done("check", written(tmp_path / "config.json", content), "--json"))
    assert [finding["name"] for finding in findings] == ["manual", "tool", "web", "two", "tool"]


def test_every_field_has_its_words() -> None:
    values: dict[str, Any] = {
        "url": "wss://example.com/x?key=secret",
        "auth": {"auth_type": "basic", "username": "u", "password": "secret"},
        "headers": {"X-Key": "secret"},
        "header_fields": ["a"],
        "protocol": "p",
        "compression": "deflate",
        "compression_threshold": 1,
        "connection_timeout": 1,
        "reconnect_attempts": 1,
        "on_connect": [{"send": "hello", "expect": "ok", "reject": "no", "capture": {"id": {"path": "id"}}}],
        "on_message": [{"match": "ping", "reply": "pong", "deliver": True, "capture": {"n": {"path": "n"}}}],
        "prepare": [{"http": {"url": "https://example.com/?t=secret"}, "capture": {"t": {"select": "a.b"}}}],
        "heartbeat": {"send": "beat", "every": 5, "expect": "ack", "silence": "{{captured.n}}"},
        "incoming": {"inflate": "gzip", "split": "json", "each": True, "json": "a.b"},
        "outgoing": {"suffix": "\n", "frame": "binary", "fragment": 10},
        "session": "{{args.session?}}",
        "request": [{"send_each": {"of": "{{args.audio}}", "chunk": 10}}],
        "on_response": {"send": "ack", "capture": {"n": {"path": "n"}}},
        "on_end": [{"send": "bye", "when": "always"}],
        "resume": {"attempts": 3, "before": [], "not_after": [4000], "gap_item": "gap"},
        "last_filter": {"final": True},
        "error_result": [{"regex": "(a)", "default": "b"}, {"slice": [0, 2], "as": "hex"}],
        "collect": "join",
        "spread": True,
        "keep_alive_timeout": 60,
        "before": [{"send": {"a": 1}}],
        "listen_only": False,
        "message": {"type": "binary", "data": "AA=="},
        "message_filter": {"id": 1},
        "error_filter": {"error": {"$any": True}},
        "end_filter": "END",
        "end_on_close": "any",
        "idle_timeout": 1.5,
        "expected_responses": -1,
        "response_timeout": "{{args.seconds}}",
        "timeout": 1,
        "result": {"path": "a.b"},
        "response_format": "json",
        "multiplex": True,
        "keep_alive": True,
        "close_after_response": False,
        "max_connections": 2,
        "max_message_size": 10,
        "ping_interval": 5,
        "pong_timeout": 5,
        "on_close": [{"send": "bye"}],
        "tools": [],
        "discovery_url": "https://example.com/manual",
        "discovery_message": "manual",
    }
    unexplained = {"name", "call_template_type", "allowed_communication_protocols"}
    assert values.keys() == WebSocketCallTemplate.model_fields.keys() - unexplained
    explained = dict(explain(values))
    assert explained.keys() == values.keys()
    assert "secret" not in repr(explained)
    assert explained["response_timeout"] == "wait the argument seconds from the request to the last response"
    assert explained["idle_timeout"] == "the end is also a silence of 1.5 s"
    assert explained["on_connect"] == (
        'after each handshake: send the text "hello", wait for a message in whose text ok is found,'
        " fail at one in whose text no is found, keep id of it"
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("expected_responses", 0, "send the request and wait for nothing"),
        ("expected_responses", 1, "take 1 response"),
        ("expected_responses", 3, "take 3 responses; a call returns them as a list"),
        ("result", {"regex": "a(b)"}, "return, of each response, what the first group of a(b) finds"),
        (
            "result",
            {"after": "42", "path": "1"},
            'return, of each response, the part 1 of its JSON behind the prefix "42"',
        ),
        (
            "auth",
            {"auth_type": "api_key", "location": "query", "var_name": "k"},
            "log in with an API key, in the query as k",
        ),
        ("auth", {"auth_type": "oauth2"}, "a token of OAuth2"),
        ("message", "{{args}}", "send the text all arguments"),
        ("message", [1], "send the JSON [1]"),
        ("keep_alive", False, "connect anew for each call"),
        ("listen_only", True, "send no request"),
        ("on_close", [], "before closing: nothing"),
    ],
)
def test_values_are_told_apart(field: str, value: Any, words: str) -> None:
    assert words in dict(explain({field: value}))[field]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("^OK", "in whose text ^OK is found"),
        ({"id": "{{uuid}}"}, "that is a JSON object with id = this call's UUID"),
        ({"id": "{{captured.id}}", "n": 1}, "that is a JSON object with id = the captured id and n = 1"),
        ({"a": {"$any": True}, "b": {"$absent": True}}, "that is a JSON object with a and no b"),
        ({"a": {"b": "${x}"}}, "that is a JSON object with a being a JSON object with b = the variable x"),
        ({"a": {"$in": [1, "x"]}}, 'that is a JSON object with a being one of 1, "x"'),
        ({"a": {"$regex": "^x"}}, "that is a JSON object with a being text matching ^x"),
        ({"a": {"$or": [1, {"$absent": True}]}}, "that is a JSON object with a being either 1 or nothing"),
        (
            {"id": 1, "$or": [{"error": {"$any": True}}, {"code": {"$in": [1, 2]}}]},
            "id = 1, and either that is a JSON object with error or that is a JSON object with code being one of 1, 2",
        ),
        ({"$or": ["a"]}, "in whose text a is found"),
        ({"a": {"b": 1, "$and": [{"$any": True}]}}, "with a being a JSON object with b = 1 and anything"),
        ({}, "that is a JSON object"),
        ([], "that is a JSON list"),
        (["UTCP_ARG_x_UTCP_ARG"], "that is a JSON list beginning with the argument x"),
        ({"$or": ["a", {"$frame": "binary"}]}, "either in whose text a is found or that is binary"),
        ({"$and": ["a", "b"]}, "in whose text a is found, and in whose text b is found"),
        ({"$text": "2"}, 'that is the text "2"'),
        ({"$hex": "2002"}, "that is binary and begins with the bytes 2002"),
        ({"$after": "42", "$json": {"$any": True}}, 'that begins with "42" and goes on with anything'),
        ({"$after": "42"}, 'that begins with "42"'),
    ],
)
def test_filters_are_put_in_words(value: Any, words: str) -> None:
    assert filter_in_words(value).endswith(words)


def test_every_moment_of_a_call_is_shown_as_it_would_be_sent(tmp_path: Path) -> None:
    content = manual(
        "wss://example.com/{{args.room}}?t={{captured.token}}",
        inputs={"room": {"type": "string"}, "chunks": {"type": "array"}},
        prepare=[
            {
                "http": {"method": "POST", "url": "https://example.com/token", "json": {"key": "${KEY}"}},
                "capture": {"token": {"path": "token"}},
            }
        ],
        on_connect=[
            {"compute": {"sig": {"hmac": "sha256", "key": "${KEY}", "text": "x"}}, "send": {"sig": "{{captured.sig}}"}}
        ],
        before=[{"send": {"sub": "{{args.room}}", "id": "{{step_id}}"}, "expect": {"id": "{{step_id}}"}}],
        request=[
            {"send_each": {"of": "{{args.chunks}}", "message": {"c": "{{item}}"}}},
            {"send": {"end": "{{captured.token}}"}},
        ],
        on_end=[{"send": {"unsub": True, "id": "{{step_id}}"}}],
        on_close=[{"send": "bye"}],
    )
    file = written(tmp_path / "m.json", content)
    (finding,) = json.loads(done("check", file, "tool", "room=a/b", "chunks=[1,2,3,4,5]", "--json"))
    sends = [(when, what) for when, what in finding["sends"]]
    ids = [json.loads(what)["id"] for when, what in sends if when in {"before[0]", "on_end[0]"}]
    assert len(set(ids)) == 2
    assert [(when, what) for when, what in sends if when not in {"before[0]", "on_end[0]"}] == [
        ("prepare[0]", "POST https://example.com/token with 17 bytes"),
        ("connects to", "wss://example.com/a%2Fb?t=%3Ctoken%3E"),
        ("on_connect[0]", '{"sig": "<sig>"}'),
        ("request[0]", '{"c": 1}'),
        ("request[0]", '{"c": 2}'),
        ("request[0]", '{"c": 3}'),
        ("request[0]", "… and 2 more"),
        ("request[1]", '{"end": "<token>"}'),
        ("on_close[0]", "bye"),
    ]


@pytest.mark.parametrize("value", ["pa$word", "p{{now}}w", 'a"b\\c', "${OTHER}"])
def test_a_variable_of_the_command_is_shown_as_it_is(value: str, tmp_path: Path) -> None:
    content = manual(URL, message='{"key": "${KEY}"}')
    shown = json.loads(done("check", written(tmp_path / "m.json", content), "tool", "--json", "--var", f"KEY={value}"))
    ((_, _), (_, sent)) = shown[0]["sends"]
    assert json.loads(sent) == {"key": value}


def test_what_a_tool_inherits_is_explained_once(tmp_path: Path) -> None:
    content = manual("wss://example.com/", headers={"X": "1"}, timeout=5)
    own = {"call_template_type": "websocket", "message": "hi", "mesage": 1}
    content["tools"][0]["tool_call_template"] = own
    file = written(tmp_path / "m.json", content)
    found = json.loads(done("check", file, "--json"))
    assert [name for name, _ in found[1]["words"]] == ["message"]
    assert found[1]["warnings"] == ["unknown field, ignored: mesage; did you mean message?"]
    (named,) = json.loads(done("check", file, "tool", "--json"))
    assert {"url", "headers", "timeout", "message"} <= {name for name, _ in named["words"]}


def test_warnings_of_a_tools_own_template_explain_why_it_is_not_valid(tmp_path: Path) -> None:
    content = manual("wss://example.com/")
    content["tools"][0]["tool_call_template"] = {"call_template_type": "websocket", "time_out": 1, "timeout": 0}
    told = failed(1, "check", written(tmp_path / "m.json", content))
    assert "unknown field, ignored: time_out" in told
