"""`utcp-ws discover`, `call` and `stream`: what is typed becomes a call, and its end an exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from support.http_peer import HttpPeer, serve_http
from support.peers import Peer
from support.terminal import BACKENDS, COMMAND, done, endpoint, failed, manual, served, written, ws

from utcp_websocket_anyio import ToolServer
from utcp_websocket_anyio.cli import calls, source
from utcp_websocket_anyio.cli.typed import Chunks

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ToolServer("test")

    @server.tool
    async def echo(
        text: str = "", number: float = 0, flag: bool = False, items: list[int] | None = None, size: int | str = 1
    ) -> dict[str, Any]:
        """Give back what came.

        The rest of the docstring.
        """
        return {"text": text, "number": number, "flag": flag, "items": items, "size": size}

    @server.tool
    async def greet(name: str) -> str:
        """Greet."""
        return f"Grüß Gott, {name}"

    @server.tool
    async def count(to: int) -> AsyncIterator[int]:
        """Count."""
        for number in range(to):
            yield number

    with served(server) as url:
        yield url


def test_tools_are_listed_with_their_arguments(backend: str, url: str) -> None:
    assert [line.split("  ")[0] for line in done("discover", url, "--backend", backend).splitlines()] == [
        "tool",
        "echo",
        "greet",
        "count",
    ]
    shown = done("discover", url, "--backend", backend)
    assert "[text=string] [number=number] [flag=boolean] [items=array|null] [size=integer|string]  Give back" in shown
    assert "The rest" not in shown


def test_what_discover_writes_is_a_manual_that_call_reads(backend: str, url: str, tmp_path: Path) -> None:
    file = tmp_path / "manual.json"
    file.write_text(done("discover", url, "--json", "--backend", backend), encoding="utf-8")
    assert done("call", str(file), "greet", "name=Ada", "--backend", backend) == "Grüß Gott, Ada\n"
    assert "missing argument: name" in failed(2, "call", str(file), "greet", "--backend", backend)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("text=3", {"text": "3"}),
        ("text=", {"text": ""}),
        ('text="a"', {"text": '"a"'}),
        ("text=a=b", {"text": "a=b"}),
        ("number=3", {"number": 3.0}),
        ("flag=true", {"flag": True}),
        ("items=[1,2]", {"items": [1, 2]}),
        ("items=null", {"items": None}),
        ("size=4", {"size": 4}),
        ("size=big", {"size": "big"}),
        ('size:="4"', {"size": "4"}),
    ],
)
def test_arguments_are_what_the_schema_says(backend: str, url: str, typed: str, expected: dict[str, Any]) -> None:
    result = json.loads(done("call", url, "echo", typed, "--backend", backend))
    assert {name: result[name] for name in expected} == expected


def test_all_arguments_come_as_one_object_too(backend: str, url: str, tmp_path: Path) -> None:
    file = written(tmp_path / "args.json", {"text": "file", "number": 1})
    call = ("call", url, "echo", "--backend", backend, "--args")
    assert json.loads(done(*call, f"@{file}", "number=2"))["text"] == "file"
    assert json.loads(done(*call, f"@{file}", "number=2"))["number"] == 2
    assert json.loads(done(*call, "-", stdin='{"text": "stdin"}'))["text"] == "stdin"
    assert json.loads(done(*call, '{"text": "here"}'))["text"] == "here"
    for wrong in ("[1]", "{", f"@{tmp_path}/none.json"):
        assert "--args: " in failed(2, *call, wrong)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("number=x", "the argument number must be number, in JSON; 'x' is not"),
        ("flag=1", "the argument flag must be boolean"),
        ("items={}", "the argument items must be array or null"),
        ("number:=x", "the argument number:= must be JSON"),
        ("nomber=1", "takes no argument 'nomber' (did you mean 'number'?); it takes: text, number, flag, items, size"),
        ("number", "write an argument as key=value"),
        ("=3", "write an argument as key=value"),
    ],
)
def test_a_wrong_argument_is_named(backend: str, url: str, typed: str, said: str) -> None:
    assert said in failed(2, "call", url, "echo", typed, "--backend", backend)


def test_a_missing_argument_and_an_unknown_tool_are_named(backend: str, url: str) -> None:
    assert "missing argument: name; the tool takes: name=string" in failed(
        2, "call", url, "greet", "--backend", backend
    )
    told = failed(2, "call", url, "great", "--backend", backend)
    assert "unknown tool 'great' (did you mean 'greet'?); the tools are: echo, greet, count" in told


def test_a_result_is_text_or_json_and_with_json_always_json(backend: str, url: str) -> None:
    assert done("call", url, "greet", "name=Ada", "--backend", backend, "--json") == '"Grüß Gott, Ada"\n'
    assert done("call", url, "echo", "--backend", backend).startswith('{\n  "text": ""')
    assert done("call", url, "echo", "--backend", backend, "--json").count("\n") == 1


def test_a_terminal_gets_colours_and_sees_that_something_goes_on(backend: str, url: str) -> None:
    result = ws("call", url, "echo", "--backend", backend, env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert "\x1b[" in result.stdout
    assert json.loads(re.sub(r"\x1b\[[0-9;]*m", "", result.stdout))["text"] == ""
    assert "calling echo" in result.stderr
    listed = done("discover", url, "--backend", backend, env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert "\x1b[1mtool" in listed
    assert "[text=string]" in listed


def test_bytes_are_written_as_they_are_and_in_json_as_base64(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send(b"\x00\xff\n")

    with endpoint(script) as url:
        file = written(tmp_path / "m.json", manual(url))
        assert ws("call", file, "tool", "--backend", backend).stdout_bytes == b"\x00\xff\n"
        shown = json.loads(done("call", file, "tool", "--backend", backend, "--json"))
        assert shown == {"type": "binary", "data": "AP8K"}


def test_a_stream_is_a_line_per_response(backend: str, url: str) -> None:
    assert done("stream", url, "count", "to=3", "--backend", backend) == "0\n1\n2\n"
    assert done("stream", url, "count", "to=1000000", "--count", "2", "--backend", backend) == "0\n1\n"


def test_a_stream_ends_well_after_the_time_it_is_given(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 1})

    with endpoint(script) as url:
        file = written(tmp_path / "m.json", manual(url, response_format="json"))
        assert done("stream", file, "tool", "--for", "0.5", "--backend", backend, "--json") == '{"n": 1}\n'


async def refuses_login(peer: Peer) -> None:
    await peer.answer("401 Unauthorized")


async def is_silent(peer: Peer) -> None:
    await peer.handshake()
    await peer.until_gone()


async def closes(peer: Peer) -> None:
    await peer.handshake()
    await peer.receive()
    await peer.close(1011, "broken")


async def answers_garbage(peer: Peer) -> None:
    await peer.handshake()
    await peer.receive()
    await peer.send("no JSON")


async def answers_with_an_error(peer: Peer) -> None:
    await peer.handshake()
    await peer.receive()
    await peer.send({"error": "not today"})


@pytest.mark.parametrize("command", ["call", "stream"])
@pytest.mark.parametrize(
    ("script", "ends"),
    [
        (answers_with_an_error, (1, "WebSocketToolError", "the tool answered with an error: not today")),
        (refuses_login, (4, "WebSocketAuthError", "give credentials with --auth or --header")),
        (is_silent, (5, "WebSocketTimeoutError", "timed out after 0.3 s while waiting for a response")),
        (closes, (6, "WebSocketClosedError", "1011")),
        (answers_garbage, (6, "WebSocketProtocolError", "not JSON")),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(
    backend: str, command: str, script: Any, ends: tuple[int, str, str], tmp_path: Path
) -> None:
    code, error, said = ends
    with endpoint(script) as url:
        content = manual(
            url,
            response_format="json",
            response_timeout=0.3,
            error_filter={"error": {"$any": True}},
            reconnect_attempts=0,
        )
        arguments = (command, written(tmp_path / "m.json", content), "tool", "--backend", backend)
        told = failed(code, *arguments)
        assert told.startswith("utcp-ws: ")
        assert said in told
        as_json = json.loads(failed(code, *arguments, "--json"))
        assert (as_json["error"], as_json["exit_code"]) == (error, code)
        assert as_json["endpoint"] == url


def test_no_connection_is_an_exit_code_of_its_own(backend: str, tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", manual("ws://127.0.0.1:1/", reconnect_attempts=0))
    assert "cannot connect" in failed(3, "call", file, "tool", "--backend", backend)
    assert "cannot connect" in failed(3, "discover", "ws://127.0.0.1:1/", "--backend", backend)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("ws://example.com/", "ws:// goes to localhost"),
        ("https://example.com/", "must start with wss://"),
        ("none.json", "No such file or directory"),
        ("localhost:9101", "No such file or directory; a URL needs its scheme: ws://localhost:9101"),
        ("127.0.0.1/chat", "a URL needs its scheme: ws://127.0.0.1/chat"),
        ("api.example.com/ws?x=1", "a URL needs its scheme: wss://api.example.com/ws?x=1"),
        ("[::1]:80", "a URL needs its scheme: ws://[::1]:80"),
        (".", "Is a directory"),
    ],
)
def test_a_target_that_cannot_be_is_a_mistake_of_the_user(backend: str, target: str, said: str) -> None:
    assert said in failed(2, "call", target, "tool", "--backend", backend)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON: "),
        ("[]", "must hold a JSON object"),
        ('{"tools": [{"name": "a"}]}', "none of the manual's tools has a tool_call_template of type websocket"),
        (
            '{"call_template_type": "http", "url": "https://127.0.0.1:1/"}',
            "are for WebSocket endpoints; this manual's is not one",
        ),
        ('{"manual_call_templates": [1]}', "a call template must be a JSON object"),
        ('{"url": "ws://127.0.0.1/", "timeout": 0}', "timeout: "),
        ('{"url": "ws://127.0.0.1/", "call_template_type": "smoke"}', "smoke"),
    ],
)
def test_a_file_that_cannot_be_is_a_mistake_of_the_user(backend: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    assert said in failed(2, "call", str(path), "tool", "-H", "X: 1", "--backend", backend)


class Recorder:
    """Keeps the handshakes it was sent, and is a UTCP endpoint with one tool, at itself or elsewhere."""

    def __init__(self, at: str | None = None) -> None:
        self.at = at
        self.peers: list[Peer] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.peers.append(peer)
        while True:
            message = await peer.receive_json()
            if message == {"type": "utcp"}:
                url = self.at or f"ws://{peer.header('Host')}/"
                template = {"call_template_type": "websocket", "url": url}
                await peer.send({"tools": [{"name": "tool", "description": "", "tool_call_template": template}]})
            else:
                await peer.send("done")

    def seen(self, header: str) -> list[str | None]:
        return [peer.header(header) for peer in self.peers]


def test_headers_and_credentials_go_with_discovery_and_call(backend: str) -> None:
    recorder = Recorder()
    arguments = ("--header", "X-One: 1", "-H", "x-two:${TWO}", "--auth", "bearer:${TOKEN}", "--backend", backend)
    with endpoint(recorder) as url:
        assert done("call", url, "tool", *arguments, env={"TWO": "2", "TOKEN": "t"}) == "done\n"
    assert set(recorder.seen("X-One")) == {"1"}
    assert set(recorder.seen("X-Two")) == {"2"}
    assert set(recorder.seen("Authorization")) == {"Bearer t"}


def test_headers_of_the_command_replace_those_of_the_file(backend: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with endpoint(recorder) as url:
        file = written(tmp_path / "m.json", manual(url, headers={"X-One": "file", "X-Two": "file"}))
        done("call", file, "tool", "-H", "x-one: command", "--backend", backend)
    head = recorder.peers[0].request.lower()
    assert head.count("x-one: ") == 1
    assert "x-one: command" in head
    assert "x-two: file" in head


def test_headers_and_credentials_go_to_no_other_origin(backend: str) -> None:
    elsewhere = Recorder()
    with endpoint(elsewhere) as other:
        recorder = Recorder(at=other)
        with endpoint(recorder) as url:
            assert done("call", url, "tool", "--auth", "bearer:t", "-H", "X: 1", "--backend", backend) == "done\n"
    assert recorder.seen("Authorization") == ["Bearer t"]
    assert elsewhere.seen("Authorization") == [None]
    assert elsewhere.seen("X") == [None]


@pytest.mark.parametrize(
    ("auth", "header", "sent"),
    [
        ("bearer:abc", "Authorization", "Bearer abc"),
        ("basic:u:p:q", "Authorization", "Basic dTpwOnE="),
        ("key:X-Key=a=b", "X-Key", "a=b"),
        ('{"auth_type": "api_key", "api_key": "k", "var_name": "X-Own"}', "X-Own", "k"),
    ],
)
def test_credentials_are_written_in_a_line(backend: str, auth: str, header: str, sent: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with endpoint(recorder) as url:
        done("call", url, "tool", "--auth", auth, "--backend", backend)
        assert set(recorder.seen(header)) == {sent}
        if auth.startswith("{"):
            file = tmp_path / "auth.json"
            file.write_text(auth)
            done("discover", url, "--auth", f"@{file}", "--backend", backend)
            assert set(recorder.seen(header)) == {sent}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--auth", "secret"),
        ("--auth", "bearer:"),
        ("--auth", "basic:secret"),
        ("--auth", "key:secret"),
        ("--auth", '{"secret": '),
        ("--auth", '{"auth_type": "basic", "username": "secret"}'),
        ("--auth", "@/none/auth.json"),
        ("--auth", "bearer:${NOT_THERE}"),
        ("--header", "secret"),
        ("--header", ": secret"),
        ("--header", "Host: secret"),
        ("--var", "secret"),
        ("--var", "a-b=secret"),
    ],
)
def test_wrong_credentials_are_refused_without_being_shown(backend: str, arguments: tuple[str, str]) -> None:
    told = failed(2, "call", "ws://127.0.0.1:1/", "tool", *arguments, "--backend", backend)
    assert "secret" not in told


def test_a_variable_comes_from_the_command_the_file_or_the_environment(backend: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with endpoint(recorder) as url:
        template = manual(url, message={"token": "${TOKEN}"}, headers={"X-Token": "${TOKEN}"})
        file = written(tmp_path / "m.json", template)
        config = {"variables": {"manual_TOKEN": "file"}, "manual_call_templates": [template]}
        in_config = written(tmp_path / "config.json", config)
        call = ("call", file, "tool", "--backend", backend)
        done(*call, "--var", "TOKEN=command")
        done("call", in_config, "tool", "--backend", backend)
        done(*call, env={"manual_TOKEN": "environment"})
        assert recorder.seen("X-Token") == ["command", "file", "environment"]
        assert "the variable TOKEN has no value; set manual_TOKEN in the environment, or give --var TOKEN=" in failed(
            2, *call
        )


def test_a_tool_of_several_manuals_is_named_with_its_manual(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            await peer.receive()
            await peer.send(peer.header("X-Manual"))

    with endpoint(script) as url:
        templates = [{**manual(url, headers={"X-Manual": name}), "name": name} for name in ("one", "two")]
        file = written(tmp_path / "config.json", {"manual_call_templates": templates})
        assert done("call", file, "two.tool", "--backend", backend) == "two\n"
        assert "write the tool as MANUAL.TOOL, with one of one, two" in failed(
            2, "call", file, "tool", "--backend", backend
        )
        assert "unknown tool" in failed(2, "call", file, "two.tol", "--backend", backend)
        assert "(did you mean 'two'?)" in failed(2, "call", file, "tow.tool", "--backend", backend)
        listed = done("discover", file, "--backend", backend).splitlines()
        assert [line.split()[0] for line in listed] == ["tool", "one.tool", "two.tool"]


@pytest.mark.parametrize(
    "secret",
    ["plain", "a:b", "{literal}", "pa ss", "pa$word", "$5", "100%", "p{{now}}w", "{{args.x}}", 'qu"ote\\back'],
)
def test_secrets_arrive_as_they_are_typed(backend: str, secret: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with endpoint(recorder) as url:
        file = written(tmp_path / "m.json", manual(url, headers={"X-Var": "${KEY}"}))
        options = ("-H", f"X-Own: {secret}", "--auth", f"key:X-Key={secret}", "--var", f"KEY={secret}")
        assert done("call", file, "tool", *options, "--backend", backend) == "done\n"
    for header in ("X-Own", "X-Key", "X-Var"):
        assert recorder.seen(header) == [secret]


def test_discovery_at_an_endpoint_without_utcp_fails_soon_and_names_the_next_step(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "DISCOVERY_TIME", 0.3)
    with endpoint(is_silent) as url:
        for command in (("discover", url), ("call", url, "tool")):
            told = failed(5, *command, "--backend", backend)
            assert f"{url} did not say within 0.3 s which tools it has" in told
            assert f"'utcp-ws listen {url}'" in told
        assert "within 0.2 s" in failed(5, "discover", url, "--timeout", "0.2", "--backend", backend)
    with endpoint(closes) as url:
        assert f"'utcp-ws listen {url}'" in failed(6, "discover", url, "--backend", backend)


def test_a_file_with_its_tools_is_listed_without_variables_or_network(backend: str, tmp_path: Path) -> None:
    content = manual("wss://${HOST}/", headers={"X": "${KEY}"}, message="$stray")
    assert "tool" in done("discover", written(tmp_path / "m.json", content), "--backend", backend)


def test_a_list_of_manuals_is_several_manuals(backend: str, tmp_path: Path) -> None:
    file = written(tmp_path / "all.json", [{**manual("ws://127.0.0.1:1/"), "name": name} for name in ("one", "two")])
    listed = done("discover", file, "--backend", backend)
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["one.tool", "two.tool"]


def test_timeout_is_how_long_an_answer_may_take(backend: str, tmp_path: Path) -> None:
    async def takes_its_time(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await anyio.sleep(0.5)
        await peer.send("late")
        await peer.until_gone()

    with endpoint(takes_its_time) as url:
        short = written(tmp_path / "short.json", manual(url, timeout=0.1))
        assert done("call", short, "tool", "--timeout", "30", "--backend", backend) == "late\n"
        patient = written(tmp_path / "patient.json", manual(url))
        for command in ("call", "stream"):
            told = failed(5, command, patient, "tool", "--timeout", "0.1", "--backend", backend)
            assert "no response within 0.1 s" in told
        # Once there is a response, a stream goes on for as long as it likes.
        assert done("stream", patient, "tool", "--timeout", "20", "--for", "1.5", "--backend", backend) == "late\n"


def test_a_stream_of_a_tool_that_answers_once_says_so(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def once(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("answer")
        await peer.until_gone()

    monkeypatch.setattr(calls, "_SILENCE", 0.1)
    with endpoint(once) as url:
        file = written(tmp_path / "m.json", manual(url))
        told = ws("stream", file, "tool", "--for", "1", "--backend", backend)
        assert (told.exit_code, told.stdout) == (0, "answer\n")
        assert "give its template expected_responses: 1" in told.stderr
        says = written(tmp_path / "one.json", manual(url, expected_responses=1))
        told = ws("stream", says, "tool", "--backend", backend)
        assert (told.stdout, told.stderr) == (
            "answer\n",
            "this tool answers once (expected_responses is 1); call does the same\n",
        )


def test_an_argument_is_the_content_of_a_file(backend: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Grüße\n", encoding="utf-8")
    (tmp_path / "list").write_text("[1, 2]")

    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            await peer.send(await peer.receive())

    inputs = {"text": {"type": "string"}, "items": {"type": "array"}}
    with endpoint(script) as url:
        file = written(tmp_path / "m.json", manual(url, inputs=inputs, response_format="json"))
        call = ("call", file, "tool", "--json", "--backend", backend)
        told = json.loads(done(*call, f"text=@{tmp_path}/text", f"items=@{tmp_path}/list"))
        assert told == {"text": "Grüße\n", "items": [1, 2]}
        assert json.loads(done(*call, "text=@-", "items=[]", stdin="typed"))["text"] == "typed"
        assert json.loads(done(*call, 'text:="@handle"', "items=[]"))["text"] == "@handle"
        assert "a value that begins with @ is written text:='" in failed(2, *call, "text=@none", "items=[]")


def test_what_another_protocols_plugin_raises_is_one_line(backend: str, tmp_path: Path) -> None:
    http = {"call_template_type": "http", "url": "http://127.0.0.1:1/", "http_method": "GET", "name": "web"}
    told = failed(1, "discover", written(tmp_path / "http.json", http), "--backend", backend)
    content = manual("ws://127.0.0.1:1/", allowed_communication_protocols=["websocket", "http"])
    content["tools"][0]["tool_call_template"] = http
    said = failed(1, "call", written(tmp_path / "mixed.json", content), "tool", "--backend", backend)
    assert [len(text.splitlines()) for text in (told, said)] == [1, 1]
    if backend == "trio":
        assert "give --backend asyncio" in told
        assert "give --backend asyncio" in said
    else:
        assert "Cannot connect to host 127.0.0.1:1" in told
        assert "http: Cannot connect to host 127.0.0.1:1" in said


def test_stdin_is_sent_while_it_comes(backend: str) -> None:
    reader, writer = os.pipe()

    async def read() -> list[bytes]:
        pieces = Chunks(4).__aiter__()
        os.write(writer, b"abcdef")
        first = await anext(pieces)
        os.write(writer, b"ghi")
        os.close(writer)
        return [first, *[piece async for piece in pieces]]

    with os.fdopen(reader) as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        assert anyio.run(read, backend=backend) == [b"abcd", b"efgh", b"i"]


async def logs_in_and_talks(peer: Peer) -> None:
    await peer.handshake()
    await peer.send({"hello": 1})
    while True:
        message = await peer.receive_json()
        if "login" in message:
            await peer.send({"event": "news"})
            await peer.send({"welcome": True})
        elif "sub" in message:
            await peer.send({"sub": "ok"})
        else:
            await peer.send({"event": "other"})
            await peer.send({"id": message["id"], "value": 42})
            await peer.send({"ping": 1})


TALK: dict[str, Any] = {
    "on_connect": [{"expect": {"hello": {"$any": True}}}, {"send": {"login": "me"}, "expect": {"welcome": True}}],
    "before": [{"send": {"sub": 1}, "expect": {"sub": "ok"}}],
    "message": {"id": "{{call_id}}"},
    "message_filter": {"id": "{{call_id}}"},
    "response_format": "json",
}


def traced(told: str) -> list[tuple[str, str]]:
    """The messages of a trace, each with what it was taken for."""
    lines = [line for line in told.splitlines() if not line.startswith("utcp-ws")]
    shown = [line[13:] for line in lines]
    return [
        (line, meaning.strip())
        for line, meaning in zip(shown, [*shown[1:], ""], strict=True)
        if line.startswith(("> ", "< "))
    ]


@pytest.mark.parametrize("command", ["call", "stream"])
def test_trace_shows_every_message_and_what_it_was_taken_for(backend: str, command: str, tmp_path: Path) -> None:
    with endpoint(logs_in_and_talks) as url:
        file = written(tmp_path / "m.json", manual(url, **TALK, expected_responses=1))
        plain = ws(command, file, "tool", "--json", "--backend", backend)
        told = ws(command, file, "tool", "--backend", backend, "--trace")
        assert (told.exit_code, json.loads(told.stdout)) == (0, json.loads(plain.stdout))
        assert f"* connected to {url}" in told.stderr
        seen = traced(told.stderr)
        assert [line for line, _ in seen] == [
            '< {"hello": 1}',
            '> {"login": "me"}',
            '< {"event": "news"}',
            '< {"welcome": true}',
            '> {"sub": 1}',
            '< {"sub": "ok"}',
            seen[6][0],
            '< {"event": "other"}',
            seen[8][0],
        ]
        meanings = [meaning for _, meaning in seen]
        assert meanings[0] == "step 1 of on_connect"
        assert meanings[1] == meanings[3] == "step 2 of on_connect"
        assert meanings[2].startswith("skipped by step 2 of on_connect: ")
        assert meanings[4] == meanings[5] == "step 1 of before"
        assert meanings[6] == "request"
        assert meanings[7].startswith("skipped by message_filter")
        assert meanings[8] == "response"
        as_json = ws(command, file, "tool", "--backend", backend, "--trace", "--json")
        entries = [json.loads(line) for line in as_json.stderr.splitlines() if line.startswith('{"time"')]
        assert [entry.get("taken_for") for entry in entries if entry["event"] != "note"] == meanings


def test_trace_shows_what_led_to_an_error(backend: str, tmp_path: Path) -> None:
    with endpoint(logs_in_and_talks) as url:
        template = {**TALK, "message_filter": {"id": "never"}, "response_timeout": 0.4}
        told = ws(
            "call", written(tmp_path / "m.json", manual(url, **template)), "tool", "--trace", "--backend", backend
        )
    assert told.exit_code == 5
    assert [meaning for _, meaning in traced(told.stderr)][-1].startswith("skipped by message_filter")


def test_trace_shows_http_steps_and_what_is_for_no_call(backend: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        message = await peer.receive_json()
        await peer.send({"id": -1, "late": True})
        await peer.send({"id": message["id"], "value": 42})
        await peer.until_gone()

    async def token(request: HttpPeer) -> None:
        await request.answer({"token": "t"})

    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(serve_http(token)) as http,
        endpoint(script) as url,
    ):
        template: dict[str, Any] = {
            "prepare": [{"http": {"url": f"{http.url}/token?secret=1"}, "capture": {"t": {"path": "token"}}}],
            "message": {"id": "{{call_id}}", "token": "{{captured.t}}"},
            "message_filter": {"id": "{{call_id}}"},
            "multiplex": True,
        }
        file = written(tmp_path / "m.json", manual(url, **template))
        told = ws("call", file, "tool", "--trace", "--backend", backend)
    assert told.exit_code == 0
    seen = traced(told.stderr)
    assert seen[:2] == [
        (f"> GET {http.url}/token", "step 1 of prepare"),
        ('< HTTP 200 {"token": "t"}', "step 1 of prepare"),
    ]
    assert ('< {"id": -1, "late": true}', "skipped: it is for no call that is running") in seen


SPEECH: dict[str, Any] = {
    "request": [{"send_each": {"of": "{{args.audio}}", "message": "{{item}}", "chunk": 4}}, {"send": "END"}],
    "expected_responses": 1,
}


async def counts_bytes(peer: Peer) -> None:
    await peer.handshake()
    pieces = []
    while (message := await peer.receive()) != "END":
        pieces.append(message)
    await peer.send({"pieces": [piece.hex() if isinstance(piece, bytes) else piece for piece in pieces]})


@pytest.mark.parametrize("given", ["audio=@{file}", "audio=@-", "audio=-"])
def test_bytes_of_a_file_or_of_stdin_are_sent_in_pieces(backend: str, given: str, tmp_path: Path) -> None:
    audio = tmp_path / "talk.raw"
    audio.write_bytes(b"\x00\xff234567\x89")
    with endpoint(counts_bytes) as url, audio.open("rb") as stdin:
        file = written(tmp_path / "m.json", manual(url, inputs={"audio": {"type": "string"}}, **SPEECH))
        arguments = ("stream", file, "tool", given.format(file=audio), "--json", "--backend", backend)
        command = [*COMMAND, *arguments]
        told = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=50, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(json.loads(told.stdout)) == {"pieces": ["00ff3233", "34353637", "89"]}
