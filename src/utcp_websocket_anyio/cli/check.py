"""``utcp-ws check``: whether a file is valid, what it says in words, and what it would send."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import click
from rich.table import Table
from utcp.data.tool import Tool
from utcp.exceptions import UtcpSerializerValidationError
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .._calls.discovery import discover
from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from .._templates.messages import MessageTemplate
from .._templates.plan import Plan, Step
from .._templates.values import RenderContext, encode_arguments
from .arguments import read_arguments, signature
from .explain import explain
from .failures import Failure, as_failures
from .options import Pairs, common, parse_variables
from .output import console, one_line, print_table
from .running import run
from .source import Access, Source, is_url, read_source

__all__ = ["check"]

_VARIABLE = re.compile(r"\$\{([A-Za-z0-9_]+)\}")


@dataclass
class _Finding:
    """One template of the file.

    Attributes:
        words: Its fields and what they mean.
        notes: What is valid but likely a mistake, or still to be given.
        sends: When a call sends what; empty where the arguments of none are given.
    """

    name: str
    arguments: str
    words: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    sends: list[tuple[str, str | bytes]] = field(default_factory=list)


@click.command()
@click.argument("file", metavar="FILE")
@click.argument("tool_name", metavar="[TOOL]", required=False)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@common(network=False)
def check(file: str, tool_name: str | None, pairs: Pairs, *, variables: Pairs, as_json: bool) -> None:
    """Validate a manual or call template and explain each of its fields in words.

    With a TOOL and its arguments it shows the messages that a call would send. Nothing is connected to.
    """
    with as_failures(as_json=as_json):
        if is_url(file):
            raise Failure("check takes a file; utcp-ws discover asks an endpoint")
        ensure_plugins_initialized()
        access = Access(variables=parse_variables(variables))
        findings: list[_Finding] = []
        for source in read_source(file):
            findings += _findings(source, access, tool_name, pairs)
        if tool_name is not None and not findings:
            raise Failure(f"there is no tool {tool_name!r} in {file}")
        if as_json:
            click.echo(one_line([asdict(finding) for finding in findings]))
        else:
            _show(findings)


def _findings(source: Source, access: Access, tool_name: str | None, pairs: Pairs) -> Iterator[_Finding]:
    """What there is to say of a manual: of itself, and of those of its tools that have templates of their own."""
    if source.template["call_template_type"] != "websocket":
        return
    try:
        template = WebSocketCallTemplateSerializer().validate_dict(source.template)
        # Tools that are in the file are found without asking anybody.
        tools = run(partial(discover, template, _ask), backend="asyncio").tools if template.tools is not None else []
    except (ValueError, UtcpSerializerValidationError) as error:
        fault = str(error)
    else:
        if tool_name is None:
            yield _Finding(source.name, "", explain(source.template), _notes(source.template, source, access))
        written = {tool["name"]: tool for tool in template.tools or ()}
        for tool in tools:
            if tool_name in (None, tool.name, f"{source.name}.{tool.name}"):
                own = written[tool.name].get("tool_call_template")
                yield _of_tool(tool, own, source, access, pairs if tool_name is not None else None)
        return
    raise Failure(f"not valid: {fault}", code=1, kind="InvalidTemplate")


async def _ask(_: Plan) -> Any:  # noqa: ASYNC124 - never called, but awaited if it were
    raise AssertionError


def _of_tool(tool: Tool, own: Any, source: Source, access: Access, pairs: Pairs | None) -> _Finding:
    """A tool without a template of its own is called by its manual's."""
    template = tool.tool_call_template
    finding = _Finding(tool.name, signature(tool), [])
    if not isinstance(template, WebSocketCallTemplate):
        finding.notes.append(f"is called by {template.call_template_type}, which is not checked here")
        return finding
    values = WebSocketCallTemplateSerializer().to_dict(template)
    if own is not None or pairs is not None:
        finding.words = explain(values)
        finding.notes = _notes(own or values, source, access)
    undeclared = sorted(template.plan.arguments - (tool.inputs.properties or {}).keys())
    if undeclared:
        finding.notes.append(f"the template needs arguments that inputs does not declare: {', '.join(undeclared)}")
    if pairs is not None:
        resolved = WebSocketCallTemplateSerializer().validate_dict(_given(values, access.variables))
        schemas = tool.inputs.properties or {}
        defaults = {name: schema.default for name, schema in schemas.items() if "default" in schema.model_fields_set}
        arguments = {**defaults, **read_arguments(tool, pairs)}
        finding.sends = list(_sends(resolved.plan, RenderContext(arguments, tool.name)))
    return finding


def _notes(values: Mapping[str, Any], source: Source, access: Access) -> list[str]:
    unknown = sorted(values.keys() - WebSocketCallTemplate.model_fields.keys())
    notes = [f"unknown field, ignored: {name}" for name in unknown]
    known = source.variables(access)
    own = {key: value for key, value in values.items() if key != "tools"}
    prefix = source.name.replace("_", "__")
    names = dict.fromkeys(f"{prefix}_{name}" for name in _VARIABLE.findall(one_line(own)))
    needed = [name for name in names if name not in known and name not in os.environ]
    if needed:
        notes.append(f"variables without a value: {', '.join(needed)}")
    return notes


def _sends(plan: Plan, values: RenderContext) -> Iterator[tuple[str, str | bytes]]:
    """When a call sends what, on a connection of its own. Captured values are shown by their names."""
    try:
        yield "connects to", plan.url.render(values)
    except ValueError:
        yield "connects to", str(plan.url.source)
    values.captured = _Names()
    parts = [*_messages("on_connect", plan.settings.on_connect), *_messages("before", plan.before)]
    if plan.message is not None:
        parts.append(("message", plan.message))
    for number, (where, message) in enumerate(parts, 1):
        yield where, message.encode(values.for_step(number))
    if plan.message is None and not plan.listen_only:
        yield "message", encode_arguments(values.args, without=plan.consumed)


def _messages(where: str, steps: tuple[Step, ...]) -> Iterator[tuple[str, MessageTemplate]]:
    for index, step in enumerate(steps):
        if step.send is not None:
            yield f"{where}[{index}]", step.send


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
        out.print(f"{finding.name} {finding.arguments}".rstrip(), style="bold", markup=False)
        table = Table.grid(padding=(0, 2), pad_edge=False)
        for name, text in finding.words:
            table.add_row("", name, text)
        for note in finding.notes:
            table.add_row("", "note", note, style="yellow")
        for when, what in finding.sends:
            table.add_row("", f"{when} >", what if isinstance(what, str) else f"binary: {what.hex(' ')}", style="green")
        if table.row_count:
            print_table(table)
    click.secho("valid", fg="green", err=True)
