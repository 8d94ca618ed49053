"""``utcp-ws discover``: which tools there are."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from rich.table import Table
from utcp.data.tool import Tool, ToolSerializer
from utcp.python_specific_tooling.version import __version__ as utcp_version

from .arguments import signature
from .failures import as_failures
from .options import Pairs, common, parse_auth, parse_headers, parse_variables
from .output import console, one_line, print_table, waiting
from .running import run
from .source import Access, Source, open_manual, read_source

__all__ = ["discover"]


@click.command()
@click.argument("target", metavar="TARGET")
@common()
def discover(target: str, *, backend: str, headers: Pairs, auth: str | None, variables: Pairs, as_json: bool) -> None:
    """List the tools of an endpoint or a file.

    With --json it writes a UTCP manual, which is a file that the other commands take.
    """
    with as_failures(as_json=as_json):
        access = Access(parse_headers(headers), parse_auth(auth), parse_variables(variables))
        tools: list[tuple[str, Tool]] = []
        for source in read_source(target):
            with waiting(f"asking {source.name} for its tools"):
                tools += run(partial(_tools, source, access), backend=backend)
        if as_json:
            shown = [_as_json(name, tool) for name, tool in tools]
            click.echo(one_line({"utcp_version": utcp_version, "manual_version": "1.0.0", "tools": shown}))
        else:
            _show(tools)


async def _tools(source: Source, access: Access) -> list[tuple[str, Tool]]:
    async with open_manual(source, access) as manual:
        return [(manual.short(tool), tool) for tool in manual.tools]


def _as_json(name: str, tool: Tool) -> dict[str, Any]:
    """A tool for a manual's file; core's own form gives every schema a default, which is null."""
    values = {**ToolSerializer().to_dict(tool), "name": name}
    for key, schema in (("inputs", tool.inputs), ("outputs", tool.outputs)):
        values[key] = schema.model_dump(by_alias=True, exclude_unset=True)
    return {key: value for key, value in values.items() if value is not None}


def _show(tools: list[tuple[str, Tool]]) -> None:
    table = Table("tool", "arguments", "what it does", box=None, pad_edge=False, header_style="bold")
    for name, tool in tools:
        first_line, _, _ = tool.description.partition("\n")
        table.add_row(name, signature(tool), first_line)
    print_table(table)
    console(err=True).print(f"{len(tools)} tool{'' if len(tools) == 1 else 's'}", style="dim")
