"""A tool's arguments as they are typed: ``key=value``, made what the tool's schema says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utcp.data.tool import Tool

from .failures import Failure

__all__ = ["read_arguments", "signature", "types_of"]

_MATCHES: dict[str, Any] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def read_arguments(tool: Tool, pairs: Iterable[str], whole: str | None = None) -> dict[str, Any]:
    """The arguments of a call.

    Args:
        pairs: ``key=value``, typed by the tool's schema, or ``key:=JSON``.
        whole: All of them as a JSON object, in a file (``@FILE``) or on stdin (``-``); pairs come on top.

    Raises:
        Failure: One is not what the schema says, is unknown, or is missing.
    """
    schemas = _properties(tool)
    arguments = _object(whole) if whole is not None else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.rstrip(":"):
            raise Failure(f"{pair!r}: write an argument as key=value, or as key:=JSON")
        as_json = key.endswith(":")
        name = key.removesuffix(":")
        arguments[name] = _json(name, text) if as_json else _typed(name, text, types_of(schemas.get(name, {})))
    unknown = sorted(arguments.keys() - schemas.keys())
    if unknown and schemas and not tool.inputs.additionalProperties:
        raise Failure(f"the tool takes no argument {unknown[0]!r}; it takes: {', '.join(schemas)}")
    missing = [name for name in tool.inputs.required or () if name not in arguments]
    missing = [name for name in missing if "default" not in schemas.get(name, {})]
    if missing:
        raise Failure(f"missing argument: {', '.join(missing)}; the tool takes: {signature(tool)}")
    return arguments


def signature(tool: Tool) -> str:
    """The tool's arguments in a line, ``key=type``; in brackets what may be left out."""
    required = set(tool.inputs.required or ())
    shown = []
    for name, schema in _properties(tool).items():
        text = f"{name}={'|'.join(types_of(schema)) or 'any'}"
        shown.append(text if name in required else f"[{text}]")
    return " ".join(shown)


def types_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that a schema allows, as far as it says; none: it does not say."""
    declared = schema.get("type")
    if declared is not None:
        return (declared,) if isinstance(declared, str) else tuple(declared)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            options = [types_of(option) if isinstance(option, dict) else () for option in schema[key]]
            return tuple(dict.fromkeys(kind for kinds in options for kind in kinds)) if all(options) else ()
    return ()


def _properties(tool: Tool) -> dict[str, dict[str, Any]]:
    schemas = tool.inputs.properties or {}
    return {name: schema.model_dump(by_alias=True, exclude_unset=True) for name, schema in schemas.items()}


def _typed(name: str, text: str, types: tuple[str, ...]) -> Any:
    if types == ("string",):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not types or any(_MATCHES[kind](value) for kind in types if kind in _MATCHES):
        return value
    if "string" in types:
        return text
    raise Failure(f"the argument {name} must be {' or '.join(types)}, in JSON; {text!r} is not")


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    raise Failure(f"the argument {name}:= must be JSON; {text!r} is not")


def _object(text: str) -> dict[str, Any]:
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        value = json.loads(text)
    except OSError as error:
        raise Failure(f"--args: {error.filename}: {error.strerror}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Failure("--args: must be a JSON object")
    return value
