"""Shell completion: files, the tools of the file at hand, and their arguments.

Only files are read; nothing is connected to, and a file that cannot be read offers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class

from .failures import Failure
from .output import visible
from .source import is_url, read_source

__all__ = ["complete_argument", "complete_target", "complete_tool"]


# A shell takes what is completed as if it had been typed: a name from a manual must not be able to command it.
_HARMLESS = re.compile(r"[\w.,:@%+/-]+")


class _BashComplete(BashComplete):
    """click's class without a blank behind ``key=``."""

    name = "bash"
    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace"
    )


class _ZshComplete(ZshComplete):
    """click's class, without a blank behind ``key=``."""

    name = "zsh"
    source_template = ZshComplete.source_template.replace(
        """if [[ "$descr" == "_" ]]; then""",
        """if [[ "$key" == *= ]]; then
                compadd -U -S '' -- "$key"
            elif [[ "$descr" == "_" ]]; then""",
        1,
    )


add_completion_class(_BashComplete)
add_completion_class(_ZshComplete)


def complete_target(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files; URLs are not known beforehand."""
    return [CompletionItem(incomplete, type="file")]


def complete_tool(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The tools of the file."""
    return [
        CompletionItem(name, help=_help(tool))
        for name, tool in _tools(ctx)
        if name.startswith(incomplete) and _HARMLESS.fullmatch(name)
    ]


def complete_argument(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The arguments of the tool as ``key=``, and behind that the values where the schema lists them."""
    tool = dict(_tools(ctx)).get(ctx.params.get("tool_name") or "", {})
    inputs = tool.get("inputs")
    properties = inputs.get("properties") if isinstance(inputs, dict) else None
    if not isinstance(properties, dict):
        return []
    given = list(ctx.params.get("pairs") or ())
    # bash takes "key=value" for three words.
    if given[-1:] == ["="] and len(given) > 1:
        return [CompletionItem(value) for value in _values(properties.get(given[-2])) if value.startswith(incomplete)]
    key, equals, start = incomplete.partition("=")
    if equals:
        found = [value for value in _values(properties.get(key)) if value.startswith(start)]
        return [CompletionItem(f"{key}={value}") for value in found]
    used = {pair.partition("=")[0].rstrip(":") for pair in given}
    return [
        CompletionItem(f"{name}=", help=_help(schema))
        for name, schema in properties.items()
        if name.startswith(incomplete) and name not in used and _HARMLESS.fullmatch(name)
    ]


def _tools(ctx: click.Context) -> Iterator[tuple[str, Mapping[str, Any]]]:
    target = ctx.params.get("target") or ""
    if is_url(target):
        return
    try:
        sources = read_source(target)
    except Failure:
        return
    for source in sources:
        tools = source.template.get("tools")
        prefix = f"{source.name}." if len(sources) > 1 else ""
        for tool in tools if isinstance(tools, list) else ():
            if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                yield prefix + tool["name"], tool


def _help(described: Any) -> str | None:
    text = described.get("description") if isinstance(described, dict) else None
    return visible(text, one_line=True) if isinstance(text, str) else None


def _values(schema: Any) -> list[str]:
    if not isinstance(schema, dict):
        return []
    if isinstance(schema.get("enum"), list):
        return [value for value in schema["enum"] if isinstance(value, str) and _HARMLESS.fullmatch(value)]
    return ["true", "false"] if schema.get("type") == "boolean" else []
