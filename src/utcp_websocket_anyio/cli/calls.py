"""``utcp-ws call`` and ``utcp-ws stream``: one tool, one answer or many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import click

from .._client.client import AnyioUtcpClient
from .arguments import read_arguments
from .failures import Failure, as_failures
from .options import Pairs, common, parse_auth, parse_headers, parse_variables
from .output import waiting, write_item, write_result
from .running import run
from .source import Access, Source, open_manual, read_source

__all__ = ["call", "pick", "stream"]

_WHOLE = click.option("--args", "whole", metavar="JSON", help="All arguments: a JSON object, @FILE, or - for stdin.")


@click.command()
@click.argument("target", metavar="TARGET")
@click.argument("tool_name", metavar="TOOL")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@_WHOLE
@common()
def call(
    target: str,
    tool_name: str,
    pairs: Pairs,
    *,
    whole: str | None,
    backend: str,
    headers: Pairs,
    auth: str | None,
    variables: Pairs,
    as_json: bool,
) -> None:
    """Call a tool and write its result.

    Values are typed by the tool's schema: limit=3 is a number where the schema says so. KEY:=JSON is JSON whatever it
    says.
    """
    with as_failures(as_json=as_json):
        access = Access(parse_headers(headers), parse_auth(auth), parse_variables(variables))
        request = _Request(*pick(target, tool_name), access, pairs, whole)
        with waiting(f"calling {request.name}"):
            result = run(partial(_call, request), backend=backend)
        write_result(result, as_json=as_json)


@click.command()
@click.argument("target", metavar="TARGET")
@click.argument("tool_name", metavar="TOOL")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@_WHOLE
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many responses.")
@click.option("--for", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so many seconds.")
@common()
def stream(
    target: str,
    tool_name: str,
    pairs: Pairs,
    *,
    whole: str | None,
    count: int | None,
    seconds: float | None,
    backend: str,
    headers: Pairs,
    auth: str | None,
    variables: Pairs,
    as_json: bool,
) -> None:
    """Call a tool and write each response as it comes, until the end or Ctrl-C."""
    with as_failures(as_json=as_json):
        access = Access(parse_headers(headers), parse_auth(auth), parse_variables(variables))
        request = _Request(*pick(target, tool_name), access, pairs, whole)
        seconds = float("inf") if seconds is None else seconds
        run(partial(_stream, request, seconds, count, as_json=as_json), backend=backend)


def pick(target: str, tool_name: str) -> tuple[Source, str]:
    """The manual that a tool's name is about, and the name without the manual's."""
    sources = read_source(target)
    named = {source.name: source for source in sources}
    manual, dot, name = tool_name.partition(".")
    if dot and manual in named:
        return named[manual], name
    if len(sources) != 1:
        raise Failure(f"{target} has several manuals: write the tool as MANUAL.TOOL, with one of {', '.join(named)}")
    return sources[0], tool_name


@dataclass(frozen=True)
class _Request:
    source: Source
    name: str
    access: Access
    pairs: Pairs
    whole: str | None

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[tuple[AnyioUtcpClient, str, dict[str, Any]]]:
        """A client that knows the tool, the tool's whole name, and its arguments."""
        async with open_manual(self.source, self.access) as manual:
            tool = manual.tool(self.name)
            yield manual.client, tool.name, read_arguments(tool, self.pairs, self.whole)


async def _call(request: _Request) -> Any:
    async with request.prepared() as (client, name, arguments):
        return await client.call_tool(name, arguments)


async def _stream(request: _Request, seconds: float, count: int | None, *, as_json: bool) -> None:
    written = 0
    async with request.prepared() as (client, name, arguments):
        with anyio.move_on_after(seconds):
            async with aclosing(client.call_tool_streaming(name, arguments)) as responses:
                async for response in responses:
                    write_item(response, as_json=as_json)
                    written += 1
                    if written == count:
                        break
