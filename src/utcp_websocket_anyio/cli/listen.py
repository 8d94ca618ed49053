"""``utcp-ws listen``: what goes over a connection, for finding out what an endpoint speaks."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import click

from .._calls.request import prepare
from .._connections.connection import Connection
from .._connections.connector import Connector
from .._connections.statistics import Counters
from .._net.transport import Network
from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from .._wire import Wire
from ..errors import WebSocketClosedError
from .arguments import read_arguments
from .command import Command
from .failures import Failure
from .options import Access, Pairs, access_options
from .output import console, waiting
from .running import run
from .source import Source, open_manual, read_source, select_tool

__all__ = ["listen"]

# What of a call template belongs to the connection. Nothing of a call is sent.
_CONNECTION = (
    "name",
    "url",
    "auth",
    "headers",
    "header_fields",
    "protocol",
    "compression",
    "compression_threshold",
    "max_message_size",
    "connection_timeout",
    "reconnect_attempts",
    "on_connect",
    "auto_reply",
    "on_close",
)
_NORMAL = (1000, 1001, 1005)
_SHOWN_BYTES = 64

Show = Callable[[str, "str | bytes | WebSocketClosedError"], None]
Found = tuple[WebSocketCallTemplate, dict[str, Any]]


@click.command(cls=Command)
@click.argument("target", metavar="URL|FILE")
@click.argument("tool_name", metavar="[TOOL]", required=False)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--send", "messages", multiple=True, metavar="TEXT", help="Send this text first. May be repeated.")
@click.option("--protocol", help="The subprotocol to offer.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many received messages.")
@click.option("--for", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so many seconds.")
@access_options()
def listen(
    target: str,
    tool_name: str | None,
    pairs: Pairs,
    *,
    messages: Pairs,
    protocol: str | None,
    count: int | None,
    seconds: float | None,
    access: Access,
    as_json: bool,
) -> None:
    """Show the raw messages of a connection, with time and direction, until it is closed or Ctrl-C.

    Of a FILE it uses what belongs to the connection: address, credentials, login (on_connect) and automatic replies; of
    the manual's own template, or of a TOOL's.
    """
    found: Callable[[], Awaitable[Found]]
    if tool_name is not None:
        found = partial(_of_tool, *select_tool(target, tool_name), access, pairs)
    else:
        found = partial(_of_manual, _only(target), access)
    session = _Session(
        protocol=protocol,
        messages=messages,
        seconds=float("inf") if seconds is None else seconds,
        count=count,
        show=_show_json if as_json else _show,
    )
    ended = run(partial(_listen, found, session), backend=access.backend)
    if ended is not None and ended.code not in _NORMAL:
        raise ended


@dataclass(frozen=True)
class _Session:
    protocol: str | None
    messages: Pairs
    seconds: float
    count: int | None
    show: Show


async def _listen(found: Callable[[], Awaitable[Found]], session: _Session) -> WebSocketClosedError | None:
    """Connect and show what comes and goes; why the peer closed the connection, if it did."""
    connection = await _connect(await found(), session)
    try:
        with anyio.move_on_after(session.seconds):
            await connection.log_in()
            for text in session.messages:
                await connection.send(text)
            received = 0
            while received != session.count:
                await connection.receive()
                received += 1
        return None
    except WebSocketClosedError as error:
        session.show("closed", error)
        return error
    finally:
        connection.retire("enough was heard")
        await connection.aclose()  # noqa: ASYNC102 - shields and bounds itself


async def _connect(found: Found, session: _Session) -> Connection:
    """A connection as the template opens it, before its login, every message of which is shown."""
    template, arguments = found
    serializer = WebSocketCallTemplateSerializer()
    values = {name: value for name, value in serializer.to_dict(template).items() if name in _CONNECTION}
    if session.protocol is not None:
        values["protocol"] = session.protocol
    plan = serializer.validate_dict(values).plan
    settings = plan.settings
    silent = dataclasses.replace(settings, on_connect=(), auto_reply=(), on_close=())
    plan = dataclasses.replace(plan, settings=silent, endpoints={})
    request = prepare(plan, "", arguments, manual=template.name)
    with waiting(f"connecting to {request.endpoint.display_url}"):
        opened = await Connector(Network(), Counters()).connect(request.endpoint, plan)
    console(err=True).print(f"connected to {request.endpoint.display_url}", style="dim")
    return Connection(_ShownWire(opened.wire, session.show), settings, display_url=opened.display_url)


class _ShownWire(Wire):
    """A wire that shows every message that goes over it."""

    def __init__(self, wire: Wire, show: Show) -> None:
        self._wire = wire
        self._show = show

    def current_time(self) -> float:
        return self._wire.current_time()

    @property
    def progress(self) -> int:
        return self._wire.progress

    def has_unread_data(self) -> bool:
        return self._wire.has_unread_data()

    def pending(self) -> bool:
        return self._wire.pending()

    async def send(self, data: str | bytes, fragment: int | None = None) -> None:
        await self._wire.send(data, fragment)
        self._show("sent", data)

    async def receive(self) -> str | bytes:
        data = await self._wire.receive()
        self._show("received", data)
        return data

    def interrupt(self) -> None:
        self._wire.interrupt()

    def take_nowait(self) -> deque[str | bytes]:
        taken = self._wire.take_nowait()
        for data in taken:
            self._show("received", data)
        return taken

    def ping_nowait(self, answered: Callable[[], None]) -> bool:
        return self._wire.ping_nowait(answered)

    async def ping(self, answered: Callable[[], None] | None = None) -> None:
        await self._wire.ping(answered)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._wire.close(code, reason)

    def abort(self) -> None:
        self._wire.abort()


def _show(what: str, content: str | bytes | WebSocketClosedError) -> None:
    """A line: the time, the direction as curl has it, and the message."""
    mark = {"sent": ">", "received": "<", "closed": "x"}[what]
    if isinstance(content, WebSocketClosedError):
        text = f"closed: {content.code} {content.reason}".rstrip()
    elif isinstance(content, str):
        text = content
    else:
        more = " …" if len(content) > _SHOWN_BYTES else ""
        text = f"binary, {len(content)} bytes: {content[:_SHOWN_BYTES].hex(' ')}{more}"
    time = datetime.now(UTC).astimezone()
    click.secho(f"{time:%H:%M:%S}.{time.microsecond // 1000:03} ", dim=True, nl=False)
    click.secho(f"{mark} ", fg={"sent": "cyan", "received": "green", "closed": "red"}[what], nl=False)
    click.echo(text)


def _show_json(what: str, content: str | bytes | WebSocketClosedError) -> None:
    """The same as a JSON object; binary messages in base64."""
    shown: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": what}
    if isinstance(content, WebSocketClosedError):
        shown |= {"code": content.code, "reason": content.reason}
    elif isinstance(content, str):
        shown["text"] = content
    else:
        shown["binary"] = base64.b64encode(content).decode()
    click.echo(json.dumps(shown, ensure_ascii=False))


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
