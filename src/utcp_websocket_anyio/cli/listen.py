"""``utcp-ws listen``: what goes over a connection, for finding out what an endpoint speaks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import click
from anyio.abc import TaskGroup

from .._calls.request import prepare
from .._connections.connection import Connection
from .._connections.connector import Connector
from .._connections.exclusive import ExclusiveConnection
from .._connections.statistics import Counters
from .._connections.steps import WaitNote
from .._net.transport import Network
from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from .._templates.fields import fields_of
from .._wire import Wire
from ..errors import WebSocketClosedError, WebSocketError
from .arguments import read_arguments, read_bytes
from .command import Command
from .completion import complete_argument, complete_target, complete_tool
from .failures import Failure
from .options import Access, Pairs, access_options
from .output import note, waiting
from .running import beside, run
from .source import Source, open_manual, read_source, select_tool
from .traffic import Traffic
from .typed import Lines, open_lines

__all__ = ["listen"]

# What of a call template belongs to the connection. Nothing of a call is sent, and nobody shares it.
_CALLS_ONLY = ("multiplex", "session", "ping_interval", "pong_timeout")
_CONNECTION = frozenset({"name", "auth", *fields_of("handshake", "connection")}.difference(_CALLS_ONLY))
_NORMAL = (1000, 1001, 1005)

Found = tuple[WebSocketCallTemplate, dict[str, Any]]
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

    Of a FILE it uses what belongs to the connection: address, credentials, login (on_connect) and automatic replies; of
    the manual's own template, or of a TOOL's.
    """
    found: Callable[[], Awaitable[Found]]
    if tool_name is not None:
        found = partial(_of_tool, *select_tool(target, tool_name), access, pairs)
    else:
        found = partial(_of_manual, _only(target), access)
    messages = _messages(texts, hexes, click.get_current_context().meta["utcp-ws.sent"])
    lines = open_lines(prompt=True)
    traffic = Traffic(as_json=as_json, above=lines.above)
    session = _Session(protocol, messages, math.inf if seconds is None else seconds, count, traffic, lines)
    try:
        ended = run(partial(_listen, found, session), backend=access.backend)
    finally:
        lines.close()
    if ended is not None and ended.code not in _NORMAL:
        raise ended


def _messages(texts: Pairs, hexes: Pairs, order: list[str]) -> list[str | bytes]:
    """What is sent first, in the order in which it was given."""
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
class _Session:
    protocol: str | None
    messages: list[str | bytes]
    seconds: float
    count: int | None
    traffic: Traffic
    lines: Lines


async def _listen(found: Callable[[], Awaitable[Found]], session: _Session) -> WebSocketClosedError | None:
    """Connect and show what comes and goes; why the peer closed the connection, if it did."""
    failure: BaseException | None = None
    ended: WebSocketClosedError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            ended = await _listen_in(tasks, await found(), session)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised again below
            # Raised inside the task group it would come out as an exception group.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return ended


async def _listen_in(tasks: TaskGroup, found: Found, session: _Session) -> WebSocketClosedError | None:
    connection = await _connect(tasks, found, session)
    try:
        with anyio.move_on_after(session.seconds) as scope:
            await connection.log_in(connection.settings.on_connect, WaitNote())
            for data in session.messages:
                await connection.send(data)
            async with beside(partial(_send_lines, connection, session, scope)):
                received = 0
                while received != session.count:
                    await connection.receive()
                    received += 1
        return None
    except WebSocketClosedError as error:
        session.traffic.closed(error.code, error.reason)
        return error
    finally:
        connection.retire("enough was heard")
        await connection.aclose()  # noqa: ASYNC102 - shields and bounds itself


async def _send_lines(connection: Connection, session: _Session, scope: anyio.CancelScope) -> None:
    while (line := await session.lines.next()) is not None:
        try:
            await connection.send(line)
        except WebSocketError:
            # The task that receives finds out why.
            return
    if session.lines.ends_session:
        scope.cancel()


async def _connect(tasks: TaskGroup, found: Found, session: _Session) -> Connection:
    """A connection as the template opens it, before its login, every message of which is shown."""
    template, arguments = found
    serializer = WebSocketCallTemplateSerializer()
    values = {name: value for name, value in serializer.to_dict(template).items() if name in _CONNECTION}
    if session.protocol is not None:
        values["protocol"] = session.protocol
    plan = serializer.validate_dict(values).plan
    settings = plan.settings
    silent = dataclasses.replace(settings, on_connect=(), on_message=(), on_close=())
    plan = dataclasses.replace(plan, settings=silent, _last_endpoint=[])
    request = prepare(plan, "", arguments, manual=template.name)
    with waiting(f"connecting to {request.endpoint.display_url}"):
        opened = await Connector(Network(), Counters()).connect(request.endpoint, plan, request.context, tasks)
    note(f"connected to {request.endpoint.display_url}")
    wire = _ShownWire(opened.wire, session.traffic)
    return ExclusiveConnection(
        wire,
        settings,
        display_url=opened.display_url,
        tasks=tasks,
        network=opened.network,
        context=request.context,
    )


class _ShownWire(Wire):
    """A wire that shows every message that goes over it."""

    def __init__(self, wire: Wire, traffic: Traffic) -> None:
        self._wire = wire
        self._traffic = traffic

    @property
    def progress(self) -> int:
        return self._wire.progress

    def has_unsent_data(self) -> bool:
        return self._wire.has_unsent_data()

    def has_unread_data(self) -> bool:
        return self._wire.has_unread_data()

    async def send(self, data: str | bytes, fragment: int | None = None) -> None:
        await self._wire.send(data, fragment)
        self._traffic.message("sent", data)

    async def receive(self) -> str | bytes:
        data = await self._wire.receive()
        self._traffic.message("received", data)
        return data

    def interrupt(self) -> None:
        self._wire.interrupt()

    def take_nowait(self) -> deque[str | bytes]:
        taken = self._wire.take_nowait()
        for data in taken:
            self._traffic.message("received", data)
        return taken

    async def ping(self) -> None:
        await self._wire.ping()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._wire.close(code, reason)

    def abort(self) -> None:
        self._wire.abort()


def _only(target: str) -> Source:
    sources = read_source(target)
    if len(sources) != 1:
        raise Failure(f"{target} has several manuals: name a tool as MANUAL.TOOL")
    return sources[0]


async def _of_manual(source: Source, access: Access) -> Found:
    """The manual's own template, its variables resolved. The endpoint is not asked for its tools."""
    own = dataclasses.replace(source, template={**source.template, "tools": []})
    async with open_manual(own, access) as manual:
        template = await manual.client.config.tool_repository.get_manual_call_template(manual.name)
    return _websocket(template), {}


async def _of_tool(source: Source, name: str, access: Access, pairs: Pairs) -> Found:
    async with open_manual(source, access) as manual:
        tool = manual.tool(name)
        return _websocket(manual.resolved(tool)), read_arguments(tool, pairs)


def _websocket(template: Any) -> WebSocketCallTemplate:
    if not isinstance(template, WebSocketCallTemplate):
        raise Failure("only WebSocket endpoints can be listened to")
    return template
