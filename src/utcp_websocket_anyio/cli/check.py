"""``utcp-ws check``: validates a file, says in words what it means, and shows what a call would send."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from rich.table import Table
from utcp.data.tool import Tool
from utcp.exceptions import UtcpSerializerValidationError
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from .._templates.plan import Plan
from .._templates.values import RenderContext
from .arguments import read_arguments, signature
from .command import Command
from .completion import complete_argument, complete_target, complete_tool
from .discovery import tools_in_file
from .explain import explain
from .failures import Failure
from .lint import lint_arguments, lint_manual, lint_template, suggestions
from .options import Access, Pairs, access_options
from .output import cell, console, echo, json_text, print_table
from .source import Source, is_url, no_tool, read_source

__all__ = ["check"]

_VARIABLE = re.compile(r"\$\{([A-Za-z0-9_]+)\}")


@dataclass
class _Finding:
    """One template of the file.

    Attributes:
        words: Its fields and what they mean.
        warnings: What is valid but likely a mistake.
        notes: What would be better, or has still to be given.
        sends: What a call sends and when; empty unless a tool is named.
    """

    name: str
    arguments: str
    words: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sends: list[tuple[str, str | bytes]] = field(default_factory=list)


@click.command(
    cls=Command,
    examples=(
        "utcp-ws check manual.json",
        "utcp-ws check manual.json --strict",
        "utcp-ws check shop.json price item=tea",
    ),
)
@click.argument("target", metavar="FILE", shell_complete=complete_target)
@click.argument("tool_name", metavar="[TOOL]", required=False, shell_complete=complete_tool)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_argument)
@click.option("--strict", is_flag=True, help="Warnings are errors: exit code 1.")
@access_options(network=False)
def check(target: str, tool_name: str | None, pairs: Pairs, *, strict: bool, access: Access, as_json: bool) -> None:
    """Validate a manual or call template and explain each of its fields in words.

    Whatever is valid but likely a mistake is a warning. With a TOOL and its arguments it shows the messages that a call
    would send. It does not connect to anything.
    """
    if is_url(target):
        raise Failure("check takes a file; utcp-ws discover asks an endpoint")
    ensure_plugins_initialized()
    sources = read_source(target)
    findings: list[_Finding] = []
    for source in sources:
        findings += _findings(source, access, tool_name, pairs)
    if tool_name is not None and not findings:
        raise no_tool(tool_name, [tool.name for source in sources for tool in tools_in_file(source) or ()])
    warnings = sum(len(finding.warnings) for finding in findings)
    if as_json:
        echo(json_text([asdict(finding) for finding in findings]))
    else:
        _show(findings)
        counted = f", {warnings} warning{'' if warnings == 1 else 's'}" if warnings else ""
        echo(f"valid{counted}", style={"fg": "yellow" if warnings else "green"}, err=True)
    if strict and warnings:
        raise Failure(f"{warnings} warning{'' if warnings == 1 else 's'}, with --strict", code=1, kind="Warnings")


def _findings(source: Source, access: Access, tool_name: str | None, pairs: Pairs) -> Iterator[_Finding]:
    """What there is to say of a manual: of itself, and of its tools."""
    warnings = list(lint_manual(source.template))
    if not source.is_websocket:
        if tool_name is None:
            kind = source.template["call_template_type"]
            yield _Finding(
                source.name, "", warnings=warnings, notes=[f"is called by {kind}, which is not checked here"]
            )
        return
    try:
        template = WebSocketCallTemplateSerializer().validate_dict(source.template)
        tools = tools_in_file(source) or []
    except (ValueError, UtcpSerializerValidationError) as error:
        reason = str(error)
    else:
        if tool_name is None:
            notes = [*_without_value(source.template, source, access)]
            if not tools or any("tool_call_template" not in tool for tool in template.tools or ()):
                notes += suggestions(source.template)
            yield _Finding(source.name, "", explain(source.template), warnings, notes)
        written = {tool["name"]: tool for tool in template.tools or ()}
        for tool in tools:
            if tool_name in (None, tool.name, f"{source.name}.{tool.name}"):
                yield _of_tool(tool, written[tool.name], source, access, pairs if tool_name is not None else None)
        return
    # A field that nobody knows is often why another one is missing.
    likely = "".join(f"\n{warning}" for warning in warnings)
    raise Failure(f"not valid: {reason}{likely}", code=1, kind="InvalidTemplate", warnings=warnings)


def _of_tool(tool: Tool, written: Any, source: Source, access: Access, pairs: Pairs | None) -> _Finding:
    """A tool without a template of its own is called by its manual's."""
    template = tool.tool_call_template
    own = written.get("tool_call_template")
    finding = _Finding(tool.name, signature(tool))
    if not isinstance(template, WebSocketCallTemplate):
        finding.notes.append(f"is called by {template.call_template_type}, which is not checked here")
        finding.warnings += lint_template(own)
        return finding
    values = WebSocketCallTemplateSerializer().to_dict(template)
    if own is not None or pairs is not None:
        finding.words = explain(values)
        finding.warnings += lint_template(own if own is not None else values)
        finding.notes += [*_without_value(own or values, source, access), *suggestions(values)]
    finding.warnings += lint_arguments(values, written.get("inputs"))
    if pairs is not None:
        resolved = WebSocketCallTemplateSerializer().validate_dict(_given(values, access.variables))
        schemas = tool.inputs.properties or {}
        defaults = {name: schema.default for name, schema in schemas.items() if "default" in schema.model_fields_set}
        arguments = {**defaults, **read_arguments(tool, pairs)}
        finding.sends = list(_sends(resolved.plan, RenderContext(arguments, tool.name)))
    return finding


def _without_value(values: Mapping[str, Any], source: Source, access: Access) -> Iterator[str]:
    """A note on the variables that have no value, by the names under which an environment gives them."""
    known = source.variables(access)
    known |= source.config.get("variables") or {}
    own = {key: value for key, value in values.items() if key != "tools"}
    names = dict.fromkeys(map(source.qualified, _VARIABLE.findall(json_text(own))))
    needed = [name for name in names if name not in known and name not in os.environ]
    if needed:
        yield f"variables without a value: {', '.join(needed)}"


def _sends(plan: Plan, values: RenderContext) -> Iterator[tuple[str, str | bytes]]:
    """When a call sends what, on a connection of its own. Captured values are shown by their names."""
    try:
        yield "connects to", plan.url.render(values)
    except ValueError:
        yield "connects to", str(plan.url.source)
    steps = (*plan.settings.on_connect, *plan.before, *plan.request)
    for number, step in enumerate([step for step in steps if step.send is not None], 1):
        assert step.send is not None
        yield step.where, step.send.encode(values.for_step(number, captured=_Names()))


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return f"<{name}>"


def _given(value: Any, variables: Mapping[str, str]) -> Any:
    """A JSON value with the variables of the command line in it. Those of the environment may be secret."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: _given(item, variables) for key, item in value.items()}
    return [_given(item, variables) for item in value] if isinstance(value, list) else value


def _show(findings: list[_Finding]) -> None:
    out = console()
    for finding in findings:
        out.print(cell(f"{finding.name} {finding.arguments}".rstrip(), "bold"))
        table = Table.grid(padding=(0, 2), pad_edge=False)
        for name, text in finding.words:
            table.add_row("", cell(name), cell(text))
        for warning in finding.warnings:
            table.add_row("", cell("warning", "yellow"), cell(warning, "yellow"))
        for remark in finding.notes:
            table.add_row("", cell("note", "cyan"), cell(remark, "cyan"))
        for when, what in finding.sends:
            shown = what if isinstance(what, str) else f"binary: {what.hex(' ')}"
            table.add_row("", cell(f"{when} >", "green"), cell(shown, "green"))
        if table.row_count:
            print_table(table)
