"""``utcp-ws call`` and ``utcp-ws stream``: one tool, one response or many."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import click
from utcp.data.tool import Tool

from .._client.client import AnyioUtcpClient
from .._templates.call_template import WebSocketCallTemplate
from .arguments import read_arguments
from .command import Command
from .completion import complete_argument, complete_target, complete_tool
from .failures import Failure, as_plugin_failures
from .options import Access, Pairs, access_options
from .output import note, waiting, write_item, write_result
from .running import beside, run
from .source import Source, open_manual, select_tool
from .traffic import Traffic

__all__ = ["call", "stream"]

# How long a stream without an end of its own may be silent, in seconds, before a remark about it.
_SILENCE = 3.0

_ARGS = click.option("--args", "args_json", metavar="JSON", help="All arguments: a JSON object, @FILE, or - for stdin.")
_TRACE = click.option(
    "--trace", is_flag=True, help="Show every message on stderr, with time, direction and what it was taken for."
)
_TARGET = click.argument("target", metavar="TARGET", shell_complete=complete_target)
_TOOL = click.argument("tool_name", metavar="TOOL", shell_complete=complete_tool)
_PAIRS = click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_argument)


@click.command(
    cls=Command,
    examples=(
        "utcp-ws call ws://localhost:8765 add a=2 b=40",
        "utcp-ws call shop.json price item=tea --json",
        "utcp-ws call shop.json price item=tea --trace",
        "utcp-ws call shop.json order --args @order.json --var TOKEN=secret",
    ),
)
@_TARGET
@_TOOL
@_PAIRS
@_ARGS
@_TRACE
@access_options()
def call(
    target: str, tool_name: str, pairs: Pairs, *, args_json: str | None, trace: bool, access: Access, as_json: bool
) -> None:
    """Call a tool and write its result.

    Values are typed by the tool's schema: limit=3 is a number where the schema says so. KEY:=JSON is JSON whatever it
    says, KEY=@FILE the content of a file (@- of stdin).
    """
    request = _Request(*select_tool(target, tool_name), access, pairs, args_json, _traffic(trace, as_json))
    with waiting(f"calling {request.name}", quietly=trace):
        result = run(partial(_call, request), backend=access.backend)
    write_result(result, as_json=as_json)


@click.command(
    cls=Command,
    examples=(
        "utcp-ws stream shop.json watch item=tea --count 2",
        "utcp-ws stream news.json headlines topic=trains --for 60 --json",
        "utcp-ws stream speech.json transcribe audio=@talk.raw",
    ),
)
@_TARGET
@_TOOL
@_PAIRS
@_ARGS
@_TRACE
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many responses.")
@click.option("--for", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this many seconds.")
@access_options()
def stream(
    target: str,
    tool_name: str,
    pairs: Pairs,
    *,
    args_json: str | None,
    trace: bool,
    count: int | None,
    seconds: float | None,
    access: Access,
    as_json: bool,
) -> None:
    """Call a tool and write each response as it arrives, until the end or Ctrl-C.

    Arguments are written as for call. With --timeout, the first response has to come in that time.
    """
    request = _Request(*select_tool(target, tool_name), access, pairs, args_json, _traffic(trace, as_json))
    run(partial(_stream, request, seconds or math.inf, count, as_json=as_json), backend=access.backend)


def _traffic(trace: bool, as_json: bool) -> Traffic | None:
    return Traffic(as_json=as_json, err=True) if trace else None


@dataclass(frozen=True)
class _Request:
    source: Source
    name: str
    access: Access
    pairs: Pairs
    args_json: str | None
    trace: Traffic | None

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[tuple[AnyioUtcpClient, Tool, dict[str, Any]]]:
        """A client that knows the tool, the tool, and the arguments."""
        async with open_manual(self.source, self.access, trace=self.trace) as manual:
            tool = manual.tool(self.name)
            with as_plugin_failures(tool.tool_call_template.call_template_type):
                yield manual.client, tool, read_arguments(tool, self.pairs, self.args_json)

    def too_late(self) -> Failure:
        limit = f"{self.access.timeout:g} s"
        return Failure(f"no response within {limit}", code=5, kind="WebSocketTimeoutError", phase="response")


async def _call(request: _Request) -> Any:
    async with request.prepared() as (client, tool, arguments):
        with anyio.move_on_after(request.access.timeout):
            return await client.call_tool(tool.name, arguments)
        raise request.too_late()


class _Silence:
    """Remarks on a stream that goes on although its tool seems to answer once."""

    def __init__(self, tool: Tool) -> None:
        template = tool.tool_call_template
        self._may_answer_once = (
            isinstance(template, WebSocketCallTemplate)
            and template.expected_responses is None
            and not template.listen_only
        )
        self.responses = 0
        self.heard = anyio.Event()

    async def watch(self) -> None:
        await self.heard.wait()
        await anyio.sleep(_SILENCE)
        if self._may_answer_once and self.responses == 1:
            note(
                "one response, and nothing says that it was the last; if the tool answers once, use call, or give its"
                " template expected_responses: 1. Ctrl-C ends the stream"
            )


async def _stream(request: _Request, seconds: float, count: int | None, *, as_json: bool) -> None:
    async with request.prepared() as (client, tool, arguments):
        silence = _Silence(tool)
        limit = anyio.CancelScope(deadline=anyio.current_time() + (request.access.timeout or math.inf))
        with anyio.move_on_after(seconds), limit:
            async with (
                beside(silence.watch),
                aclosing(client.call_tool_streaming(tool.name, arguments)) as responses,
            ):
                async for response in responses:
                    limit.deadline = math.inf
                    write_item(response, as_json=as_json)
                    silence.heard.set()
                    silence.responses += 1
                    if silence.responses == count:
                        break
        if limit.cancelled_caught:
            raise request.too_late()
    if silence.responses == 1 and count is None and _answers_once(tool):
        note("this tool answers once (expected_responses is 1); call does the same")


def _answers_once(tool: Tool) -> bool:
    template = tool.tool_call_template
    return isinstance(template, WebSocketCallTemplate) and template.expected_responses == 1
