"""``utcp-ws discover``: which tools there are."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from rich.table import Table
from utcp.data.tool import Tool, ToolSerializer
from utcp.plugins.plugin_loader import ensure_plugins_initialized
from utcp.python_specific_tooling.version import __version__ as utcp_version

from .._calls import discovery
from .._templates.call_template import WebSocketCallTemplateSerializer
from .arguments import signature
from .command import Command
from .completion import complete_target
from .options import Access, access_options
from .output import cell, echo, json_text, note, print_table, waiting
from .running import run
from .source import Source, open_manual, read_source

__all__ = ["discover", "tools_in_file"]


@click.command(
    cls=Command,
    examples=(
        "utcp-ws discover wss://tools.example.com/ --auth 'bearer:${TOKEN}'",
        "utcp-ws discover manual.json",
        "utcp-ws discover ws://localhost:8765 --json > manual.json",
    ),
)
@click.argument("target", metavar="TARGET", shell_complete=complete_target)
@access_options()
def discover(target: str, *, access: Access, as_json: bool) -> None:
    """List the tools of an endpoint or a file.

    With --json it writes a UTCP manual, which is a file that the other commands take. A file that has its tools in it
    is read, and nothing is connected to.
    """
    sources = read_source(target)
    tools: list[tuple[str, Tool]] = []
    for source in sources:
        found = tools_in_file(source)
        if found is None:
            with waiting(f"asking {source.name} for its tools"):
                found = run(partial(_ask, source, access), backend=access.backend)
        # Of several manuals the names are those that the other commands take.
        prefix = f"{source.name}." if len(sources) > 1 else ""
        tools += [(prefix + tool.name, tool) for tool in found]
    if as_json:
        shown = [_as_json(name, tool) for name, tool in tools]
        echo(json_text({"utcp_version": utcp_version, "manual_version": "1.0.0", "tools": shown}))
    else:
        _show(tools)


def tools_in_file(source: Source) -> list[Tool] | None:
    """The tools that are written in the file itself, for which no variable needs a value; None if there are none."""
    if not source.is_websocket or source.template.get("tools") is None:
        return None
    ensure_plugins_initialized()
    template = WebSocketCallTemplateSerializer().validate_dict(source.template)
    return run(partial(discovery.discover, template, _never_asked), backend="asyncio").tools


async def _never_asked(_: Any) -> Any:  # noqa: ASYNC124 - never called, but awaited if it were
    raise AssertionError


async def _ask(source: Source, access: Access) -> list[Tool]:
    async with open_manual(source, access) as manual:
        return [tool.model_copy(update={"name": manual.short(tool)}) for tool in manual.tools]


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
        table.add_row(cell(name), cell(signature(tool)), cell(first_line))
    print_table(table)
    note(f"{len(tools)} tool{'' if len(tools) == 1 else 's'}")
