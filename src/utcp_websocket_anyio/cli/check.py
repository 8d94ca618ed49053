"""``utcp-ws check``: validates a file, says in words what it means, and shows what a call would send."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import click
from rich.table import Table
from utcp.data.tool import Tool
from utcp.exceptions import UtcpSerializerValidationError
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from .._templates.http_step import HttpTemplate
from .._templates.plan import Plan, SendEach, Step
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
_SHOWN_ITEMS = 3


@dataclass
class _Finding:
    """One template of the file.

    Attributes:
        words: Fields of the template and their meaning.
        warnings: Valid, but likely a mistake.
        notes: Suggestions, and values that are still missing.
        sends: The messages of a call, each with its moment; empty unless a tool is named.
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
    """The findings about a manual: about itself, and about its tools."""
    warnings = list(lint_manual(source.template))
    if not source.is_websocket:
        if tool_name is None:
            kind = source.template["call_template_type"]
            yield _Finding(
                source.name, "", warnings=warnings, notes=[f"is called by {kind}, which is not checked here"]
            )
        return
    try:
        WebSocketCallTemplateSerializer().validate_dict(source.template)
        tools = tools_in_file(source) or []
    except (ValueError, UtcpSerializerValidationError) as error:
        reason = str(error)
    else:
        if tool_name is None:
            notes = [*_without_value(source.template, source, access)]
            if not tools or any("tool_call_template" not in tool for tool in source.template["tools"]):
                notes += suggestions(source.template)
            yield _Finding(source.name, "", explain(source.template), warnings, notes)
        # As it was written: what a tool inherits is explained with the manual, and unknown fields are still there.
        written = {tool["name"]: tool for tool in source.template.get("tools") or ()}
        for tool in tools:
            if tool_name in (None, tool.name, f"{source.name}.{tool.name}"):
                yield _of_tool(tool, written[tool.name], source, access, pairs if tool_name is not None else None)
        return
    warnings += [warning for own in _own_templates(source) for warning in lint_template(own)]
    # An unknown field is often the reason why another one is missing.
    likely = "".join(f"\n{warning}" for warning in warnings)
    raise Failure(f"not valid: {reason}{likely}", code=1, kind="InvalidTemplate", warnings=warnings)


def _own_templates(source: Source) -> Iterator[dict[str, Any]]:
    tools = source.template.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        own = tool.get("tool_call_template") if isinstance(tool, dict) else None
        if isinstance(own, dict):
            yield own


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
        finding.words = explain(values if pairs is not None else own)
        finding.warnings += lint_template(own if own is not None else values)
        finding.notes += [*_without_value(own or values, source, access), *suggestions(values)]
    finding.warnings += lint_arguments(values, written.get("inputs"))
    if pairs is not None:
        # Only those of the command line: the environment's may be secret.
        resolved = template.with_variables(access.variables)
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
    numbers = count(1)
    settings = plan.settings

    def of(steps: Iterable[Step]) -> Iterator[tuple[str, str | bytes]]:
        for step in steps:
            number = next(numbers) if step.sends else 0
            context = values.for_step(number, next_step_id=lambda: next(numbers), captured=_Names())
            yield from ((step.where, shown) for shown in _step_sends(step, context))

    yield from of(settings.prepare)
    try:
        yield "connects to", plan.url.render(values.replace(captured=_Names()))
    except ValueError:
        yield "connects to", str(plan.url.source)
    yield from of((*settings.on_connect, *plan.before, *plan.request, *plan.on_end, *settings.on_close))


def _step_sends(step: Step, context: RenderContext) -> Iterator[str | bytes]:
    if step.http is not None:
        yield _http_request(step.http, context)
    if step.send is not None:
        yield step.send.encode(context)
    if step.send_each is not None:
        items = _items(step.send_each, context)
        for item in items[:_SHOWN_ITEMS]:
            yield step.send_each.message.encode(context.replace(item=item))
        if len(items) > _SHOWN_ITEMS:
            yield f"… and {len(items) - _SHOWN_ITEMS} more"


def _items(each: SendEach, context: RenderContext) -> list[Any]:
    """The items that are sent one by one, as far as they are known beforehand."""
    value = each.of.render(context)
    size = each.chunk_size(context)
    if isinstance(value, str) and (size is not None or each.encoding is not None):
        value = each.decode(value)
    if isinstance(value, bytes):
        size = size or len(value) or 1
        return [value[start : start + size] for start in range(0, len(value), size)]
    return value if isinstance(value, list) else [value]


def _http_request(http: HttpTemplate, context: RenderContext) -> str:
    try:
        request = http.render(context)
    except ValueError:
        # Its address is known when something was captured.
        return f"{http.source.get('method', 'GET')} {http.url.source}"
    body = "" if request.content is None else f" with {len(request.content)} bytes"
    return f"{request.method} {request.url}{body}"


class _Names(dict[str, Any]):
    """Stands for what will have been captured: each value by its name."""

    def __missing__(self, name: str) -> str:
        return f"<{name}>"

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


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
