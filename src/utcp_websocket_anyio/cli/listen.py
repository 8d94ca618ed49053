"""``utcp-ws listen``: what goes over a connection, for finding out what an endpoint speaks."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import click
from utcp.data.tool import Tool

from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from .._templates.fields import OLD_NAMES, fields_of
from ..errors import WebSocketClosedError
from .arguments import read_arguments, read_bytes
from .command import Command
from .completion import complete_argument, complete_target, complete_tool
from .failures import Failure
from .options import Access, Pairs, access_options
from .output import waiting
from .running import run
from .source import Manual, Source, open_manual, read_source, select_tool
from .traffic import Traffic
from .typed import Lines, open_lines

__all__ = ["listen"]

# The argument whose items are what is typed.
_TYPED = "utcp_ws_typed"
# What makes a call of any template end with the connection only. Times are seconds.
_ENDLESS = {
    "response_format": "raw",
    "end_on_close": "never",
    "expected_responses": None,
    "response_timeout": None,
    "idle_timeout": None,
    "timeout": 1e9,
}
_OF_SHARING = {"multiplex", "session"}
_NORMAL = (1000, 1001, 1005)
_SEND_OPTION = re.compile(r"--send(-hex)?(=.*)?", re.DOTALL)


class _ListenCommand(Command):
    """Remembers in which order ``--send`` and ``--send-hex`` were given, which click keeps apart."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [match for argument in args if (match := _SEND_OPTION.fullmatch(argument)) is not None]
        ctx.meta["utcp-ws.sent"] = ["hex" if match[1] else "text" for match in given]
        return super().parse_args(ctx, args)


@click.command(
    cls=_ListenCommand,
    examples=(
        "utcp-ws listen ws://localhost:8765",
        """utcp-ws listen wss://example.com/ws --send '{"op": "hello"}' --for 5""",
        "utcp-ws listen wss://example.com/ws --send @login.json --send-hex 00ff",
        "cat messages.txt | utcp-ws listen wss://example.com/ws --json",
    ),
)
@click.argument("target", metavar="URL|FILE", shell_complete=complete_target)
@click.argument("tool_name", metavar="[TOOL]", required=False, shell_complete=complete_tool)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_argument)
@click.option(
    "--send",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="Send a message first: text, or with @FILE a file's content. May be repeated.",
)
@click.option("--send-hex", "hexes", multiple=True, metavar="HEX", help="Send a binary message. May be repeated.")
@click.option("--protocol", help="The subprotocol to offer.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many received messages.")
@click.option("--for", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this many seconds.")
@access_options()
def listen(
    target: str,
    tool_name: str | None,
    pairs: Pairs,
    *,
    texts: Pairs,
    hexes: Pairs,
    protocol: str | None,
    count: int | None,
    seconds: float | None,
    access: Access,
    as_json: bool,
) -> None:
    """Show the raw messages of a connection, with time and direction, until it is closed or Ctrl-C.

    At a terminal there is a prompt: each line is a message, arrow keys and Tab bring back what was sent, Ctrl-D ends.
    From a pipe, too, each line is a message.

    Of a FILE it uses what belongs to the connection: address, credentials, login (on_connect), heartbeat and automatic
    replies. With a TOOL its call is made, too, and shown with what each message is taken for.
    """
    messages = _messages(texts, hexes, click.get_current_context().meta["utcp-ws.sent"])
    lines = open_lines([message for message in messages if isinstance(message, str)])
    traffic = Traffic(as_json=as_json, meanings=tool_name is not None, above=lines.above)
    listening = _Listening(protocol, messages, math.inf if seconds is None else seconds, count, traffic, lines)
    if tool_name is None:
        source = _only(target)
        listen_ = partial(_listen_to_connection, source, access, listening)
    else:
        source, name = select_tool(target, tool_name)
        listen_ = partial(_listen_to_tool, source, name, pairs, access, listening)
    if not source.is_websocket:
        raise Failure("only WebSocket endpoints can be listened to")
    try:
        ended = run(listen_, backend=access.backend)
    finally:
        lines.close()
    if ended is not None and ended.code not in _NORMAL:
        raise ended


def _messages(texts: Pairs, hexes: Pairs, order: list[str]) -> list[str | bytes]:
    """The messages that are sent first, in the order given."""
    kinds: dict[str, Iterator[str | bytes]] = {"text": map(_text, texts), "hex": map(_from_hex, hexes)}
    if sorted(order) != ["hex"] * len(hexes) + ["text"] * len(texts):
        # A value that looks like one of the options.
        return [*kinds["text"], *kinds["hex"]]
    return [next(kinds[kind]) for kind in order]


def _text(text: str) -> str | bytes:
    if not text.startswith("@"):
        return text
    try:
        data = read_bytes(text[1:])
    except OSError as error:
        raise Failure(f"--send {text}: {error.strerror}") from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    raise Failure(f"--send-hex {text}: write bytes in hexadecimal, such as 00ff10")


@dataclass(frozen=True)
class _Listening:
    protocol: str | None
    messages: list[str | bytes]
    seconds: float
    count: int | None
    traffic: Traffic
    lines: Lines

    def changed(self, values: dict[str, Any], access: Access) -> dict[str, Any]:
        """A call template in whose request everything is sent that is typed, and which goes on until a close."""
        own: dict[str, Any] = {} if self.protocol is None else {"protocol": self.protocol}
        if access.timeout is not None:
            own["connection_timeout"] = access.timeout
        before, request = values.get("before") or (), values.get("request") or ()
        first = [{"send": f"{{{{args.{name}}}}}"} for name in self.arguments]
        typed = {"send_each": {"of": f"{{{{args.{_TYPED}}}}}", "message": "{{item}}"}}
        numbers = range(len(before) + 1, len(before) + len(first) + 1)
        self.traffic.renamed = {f"step {number} of before": "typed" for number in numbers}
        self.traffic.renamed[f"step {len(request) + 1} of request"] = "typed"
        if len(request) == 1:
            self.traffic.renamed["step 1 of request"] = "request"
        return {**values, **_ENDLESS, **own, "before": [*before, *first], "request": [*request, typed]}

    @property
    def arguments(self) -> dict[str, str | bytes]:
        """The messages that are sent first, as arguments: their values are never searched for placeholders."""
        return {f"{_TYPED}_{number}": message for number, message in enumerate(self.messages)}


async def _listen_to_connection(source: Source, access: Access, listening: _Listening) -> WebSocketClosedError | None:
    """Show what comes and goes on a connection as the manual's own template describes it. No tool is asked for."""
    of_connection = {*fields_of("handshake", "connection"), *OLD_NAMES, "name", "auth", "call_template_type"}
    own = {key: value for key, value in source.template.items() if key in of_connection - _OF_SHARING}
    template = listening.changed(own, access)
    template["tools"] = [{"name": "listen", "description": "", "inputs": {"type": "object"}}]
    async with open_manual(replace(source, template=template), access, trace=listening.traffic) as manual:
        (tool,) = manual.tools
        return await _listen(manual, tool, {}, listening)


async def _listen_to_tool(
    source: Source, name: str, pairs: Pairs, access: Access, listening: _Listening
) -> WebSocketClosedError | None:
    """Make a tool's call, and show every message that belongs to it."""
    async with open_manual(source, access, trace=listening.traffic) as manual:
        tool = manual.tool(name)
        arguments = read_arguments(tool, pairs)
        template = tool.tool_call_template
        if not isinstance(template, WebSocketCallTemplate):
            raise Failure("only WebSocket endpoints can be listened to")
        serializer = WebSocketCallTemplateSerializer()
        values = serializer.to_dict(template)
        values["request"] = _request(values, [name for name in arguments if name not in template.plan.consumed])
        # Shared, it would be offered only what may be for this call.
        for field in ("message", "listen_only", "resume", "multiplex"):
            values.pop(field, None)
        await manual.replace_template(tool, serializer.validate_dict(listening.changed(values, access)))
        return await _listen(manual, tool, arguments, listening)


def _request(values: dict[str, Any], names: list[str]) -> list[Any]:
    """The steps of a template's request, whichever way they are written."""
    if values.get("request") is not None:
        return list(values["request"])
    if values.get("listen_only"):
        return []
    message = values.get("message")
    return [{"send": {name: f"{{{{args.{name}}}}}" for name in names} if message is None else message}]


async def _listen(
    manual: Manual, tool: Tool, arguments: dict[str, Any], listening: _Listening
) -> WebSocketClosedError | None:
    """Connect and show what comes and goes; why the peer closed the connection, if it did."""
    with ExitStack() as shown, anyio.move_on_after(listening.seconds) as scope:
        shown.enter_context(waiting(f"connecting to {manual.display_url(tool)}"))
        listening.traffic.on_first = shown.close
        listening.traffic.limit(listening.count, scope.cancel)
        typed = _Typed(listening, scope)
        try:
            async with aclosing(
                manual.client.call_tool_streaming(tool.name, {**arguments, **listening.arguments, _TYPED: typed})
            ) as responses:
                async for _ in responses:
                    # They were shown when they arrived.
                    pass
        except WebSocketClosedError as error:
            if not listening.traffic.is_full:
                listening.traffic.closed(error.code, error.reason)
                return error
    if listening.traffic.failure is not None:
        raise listening.traffic.failure
    return None


class _Typed:
    """The lines typed while the connection is open, as the items of a request."""

    def __init__(self, listening: _Listening, scope: anyio.CancelScope) -> None:
        self._lines = listening.lines
        self._scope = scope

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        line = await self._lines.next()
        if line is not None:
            return line
        if self._lines.ends_session:
            self._scope.cancel()
        raise StopAsyncIteration


def _only(target: str) -> Source:
    sources = read_source(target)
    if len(sources) != 1:
        raise Failure(f"{target} has several manuals: name a tool as MANUAL.TOOL")
    return sources[0]
