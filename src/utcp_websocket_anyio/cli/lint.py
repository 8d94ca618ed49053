"""Likely mistakes in a manual that is valid.

Everything here is pure and looks at the JSON form, as the author wrote it: what validation would drop (an unknown
field) or never sees (a schema that no call has used yet) is just what an author wants to know.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from utcp.data.call_template import CallTemplateSerializer
from utcp.data.tool import Tool

from .._templates.call_template import WebSocketCallTemplate
from .._templates.fields import OLD_NAMES

__all__ = ["lint_arguments", "lint_manual", "lint_schema", "lint_template", "suggestions"]

_MANUAL_FIELDS = ("$schema", "utcp_version", "manual_version")
_TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")
# `$name` and `${name}` as a UTCP client sees them.
_BARE_VARIABLE = re.compile(r"\$([a-zA-Z0-9_]+)")
_BRACED_VARIABLE = re.compile(r"\$\{([a-zA-Z0-9_]+)\}")
_ARGUMENT = re.compile(r"\{\{\s*args\.([^\s{}|?]+)\s*\??\s*(\|[^{}]*)?\}\}")
_ALL_ARGUMENTS = re.compile(r"\{\{\s*args\s*(\|[^{}]*)?\}\}")
_OLD_ARGUMENT = re.compile(r"UTCP_ARG_(.+?)_UTCP_ARG")
# The members of a template that are messages; a string there is sent as it stands.
_MESSAGES = ("message", "send", "reply", "discovery_message")
_MAX_NAME = 60
_ENDS = ("end_filter", "last_filter", "idle_timeout")


def lint_manual(template: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about a manual as a whole: its own template, and the tools in it as far as they are not templates."""
    yield from lint_template(template)
    tools = template.get("tools")
    if not isinstance(tools, list):
        return
    named = [tool.get("name") for tool in tools if isinstance(tool, dict)]
    for name, times in Counter(name for name in named if isinstance(name, str)).items():
        if times > 1:
            yield f"{times} tools are called {name!r}; only one of them can be called"
    for index, tool in enumerate(tools):
        if isinstance(tool, dict):
            where = f"tools[{index}]" if not isinstance(tool.get("name"), str) else f"the tool {tool['name']}"
            yield from (f"{where}: {warning}" for warning in _lint_tool(tool))


def _lint_tool(tool: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown_fields(tool, Tool.model_fields)
    for key in ("inputs", "outputs"):
        if key in tool:
            yield from lint_schema(tool[key], key)
    inputs = tool.get("inputs")
    if isinstance(inputs, dict) and inputs and "object" not in _declared_types(inputs.get("type", "object")):
        yield "inputs: the arguments of a tool are an object, so its type must be 'object'"


def lint_template(template: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about a call template."""
    kind = template.get("call_template_type")
    known = CallTemplateSerializer.call_template_serializers
    if kind not in known:
        near = _nearest(str(kind), known)
        yield f"call_template_type {json.dumps(kind)} is unknown here, so nothing can call it{near}"
    if kind != "websocket":
        return
    yield from _unknown_fields(template, (*WebSocketCallTemplate.model_fields, *OLD_NAMES, *_MANUAL_FIELDS))
    own = {key: value for key, value in template.items() if key not in ("tools", "$schema", "name")}
    for where, text in _strings(own):
        for name in dict.fromkeys(_BARE_VARIABLE.findall(text)):
            yield (
                f"{where}: ${name} is a variable to UTCP clients, as ${{{name}}} is; for the text write"
                f" {{{{dollar}}}}{name}"
            )
    outgoing = template.get("outgoing")
    suffix = outgoing.get("suffix") if isinstance(outgoing, dict) else None
    ends_lines = isinstance(suffix, str) and _has_line_break(suffix)
    for where, text in _text_messages(own):
        names = _unencoded_arguments(text)
        if names and (ends_lines or _has_line_break(text)):
            shown = ", ".join(f"{{{{args.{name}|line}}}}" for name in names)
            yield f"{where}: an argument with a line break would add a line of its own; write {shown}"


def lint_arguments(template: Mapping[str, Any], inputs: Any) -> Iterator[str]:
    """Warnings about the arguments that a tool declares and those that its call template uses.

    Args:
        template: The one that the tool is called by, with what it inherits.
        inputs: The tool's JSON schema.
    """
    schema = inputs if isinstance(inputs, dict) else {}
    properties = schema.get("properties")
    declared = set(properties) if isinstance(properties, dict) else set()
    used = _used_arguments(template, declared)
    undeclared = sorted(name for name in used if name not in declared and name.partition(".")[0] not in declared)
    if undeclared and schema.get("additionalProperties") is not True:
        yield f"the template needs arguments that inputs does not declare: {', '.join(undeclared)}"
    if _takes_all_arguments(template):
        return
    reached = used | {name.partition(".")[0] for name in used}
    unused = sorted(declared - reached)
    if unused:
        yield f"inputs declares arguments that the template never uses: {', '.join(unused)}"


def suggestions(template: Mapping[str, Any]) -> Iterator[str]:
    """Improvements to a call template that is not wrong."""
    asks = not template.get("listen_only") and template.get("request") != []
    open_ended = template.get("expected_responses") is None and not any(template.get(name) for name in _ENDS)
    if asks and open_ended and _names_the_call(template.get("message_filter")):
        yield "if it answers once, say expected_responses: 1; otherwise a stream of it has no end"


def lint_schema(schema: Any, where: str) -> Iterator[str]:
    """Warnings about a JSON schema: what no validator would accept, or would silently ignore."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield f"{where}: a JSON schema is an object"
        return
    for kind in _declared_types(schema.get("type", "object")):
        if kind not in _TYPES:
            near = _nearest(str(kind), _TYPES)
            yield f"{where}.type: {json.dumps(kind)} is not a type of JSON Schema{near}"
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, dict):
        yield f"{where}.properties: must be an object of schemas"
        properties = {}
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        yield f"{where}.required: must be a list of names"
    elif properties:
        for name in required:
            if name not in properties:
                yield f"{where}.required: {name!r} is not among the properties{_nearest(name, properties)}"
    for key, expected in _KEYWORDS.items():
        if key in schema and not _is_kind(schema[key], expected):
            yield f"{where}.{key}: must be {expected}"
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{where}.pattern: not a regular expression: {error}"
    for name, item in _subschemas(schema, properties):
        yield from lint_schema(item, f"{where}.{name}")


# The keywords whose values are easily wrong, and what they must be.
_KEYWORDS = {
    "enum": "a list",
    "anyOf": "a list of schemas",
    "oneOf": "a list of schemas",
    "allOf": "a list of schemas",
    "pattern": "text",
    "format": "text",
    "description": "text",
    "minimum": "a number",
    "maximum": "a number",
    "exclusiveMinimum": "a number",
    "exclusiveMaximum": "a number",
    "multipleOf": "a number",
    "minLength": "a number",
    "maxLength": "a number",
    "minItems": "a number",
    "maxItems": "a number",
}
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a list": lambda value: isinstance(value, list),
    "a list of schemas": lambda value: isinstance(value, list) and bool(value),
    "text": lambda value: isinstance(value, str),
    "a number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
}


def _is_kind(value: Any, expected: str) -> bool:
    # Null is what core writes for a keyword that is not there.
    return value is None or _KINDS[expected](value)


def _subschemas(schema: Mapping[str, Any], properties: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, item in properties.items():
        yield f"properties.{name}", item
    for key in ("items", "additionalProperties", "not", "contains"):
        if schema.get(key) is not None and not (key == "items" and isinstance(schema[key], list)):
            yield key, schema[key]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(key), list):
            yield from ((f"{key}[{index}]", item) for index, item in enumerate(schema[key]))
    for key in ("$defs", "definitions", "patternProperties"):
        if isinstance(schema.get(key), dict):
            yield from ((f"{key}.{name}", item) for name, item in schema[key].items())


def _declared_types(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _unknown_fields(values: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    for name in values:
        if name not in known:
            yield f"unknown field, ignored: {name}{_nearest(name, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:_MAX_NAME], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The strings in a JSON value, each with its place."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{where}[{index}]")


def _text_messages(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The messages that are sent as text, and not as JSON, in which arguments are escaped."""
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{where}.{key}" if where else key
            if key not in _MESSAGES or not isinstance(item, str):
                yield from _text_messages(item, place)
            elif not item.lstrip().startswith(("{", "[")) or item.lstrip().startswith("{{"):
                yield place, item
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _text_messages(item, f"{where}[{index}]")


def _has_line_break(text: str) -> bool:
    return "\r" in text or "\n" in text


def _unencoded_arguments(text: str) -> list[str]:
    plain = [name for name, encoder in _ARGUMENT.findall(text) if not encoder]
    return list(dict.fromkeys([*plain, *_OLD_ARGUMENT.findall(text)]))


def _used_arguments(template: Mapping[str, Any], declared: Collection[str]) -> set[str]:
    text = json.dumps({key: value for key, value in template.items() if key != "tools"}, ensure_ascii=False)
    used = {name for name, _ in _ARGUMENT.findall(text)} | set(_OLD_ARGUMENT.findall(text))
    used |= {name for name in _BRACED_VARIABLE.findall(text) if name in declared}
    fields = template.get("header_fields")
    return used | {name for name in fields or () if isinstance(name, str)} if isinstance(fields, list) else used


def _takes_all_arguments(template: Mapping[str, Any]) -> bool:
    asks_with_all = not (template.get("listen_only") or "message" in template or "request" in template)
    return asks_with_all or _ALL_ARGUMENTS.search(json.dumps(template, ensure_ascii=False)) is not None


def _names_the_call(filter_: Any) -> bool:
    return any(re.search(r"\{\{\s*(call_id|uuid)", text) for _, text in _strings(filter_))
