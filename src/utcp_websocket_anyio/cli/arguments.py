"""A tool's arguments as they are typed: ``key=value``, made what the tool's schema says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utcp.data.call_template import CallTemplateSerializer
from utcp.data.tool import Tool

from .failures import Failure
from .source import did_you_mean
from .typed import Chunks

__all__ = ["read_arguments", "read_bytes", "signature", "types_of"]

_MATCHES: dict[str, Any] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
_ARGUMENT = re.compile(r"\{\{\s*args\.([^\s{}|?]+)\??\s*\}\}|\$\{(\w+)\}|UTCP_ARG_(\S+?)_UTCP_ARG")


def read_arguments(tool: Tool, pairs: Sequence[str], args_json: str | None = None) -> dict[str, Any]:
    """The arguments of a call.

    Args:
        pairs: ``key=value``, typed by the tool's schema; ``key:=JSON``; or ``key=@FILE`` (``@-``: stdin), the content
            of a file: bytes where the call template sends bytes, and then ``-`` is enough for stdin.
        args_json: All of them as a JSON object, in a file (``@FILE``) or on stdin (``-``); pairs come on top.

    Raises:
        Failure: One is not what the schema says, is unknown, or is missing.
    """
    schemas = _properties(tool)
    as_bytes = _sent_as_bytes(tool) if pairs else {}
    arguments = _object(args_json) if args_json is not None else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.rstrip(":"):
            raise Failure(f"{pair!r}: write an argument as key=value, or as key:=JSON")
        name = key.removesuffix(":")
        types = types_of(schemas.get(name, {}))
        if key.endswith(":"):
            arguments[name] = _json(name, text)
        elif text.startswith("@") or (text == "-" and name in as_bytes):
            size = as_bytes.get(name)
            if text in {"@-", "-"} and size is not None:
                # It is sent while it comes: a microphone has no end to wait for.
                arguments[name] = Chunks(size)
            else:
                arguments[name] = _content(name, text.removeprefix("@"), types, as_bytes=name in as_bytes)
        else:
            arguments[name] = _typed(name, text, types)
    unknown = sorted(arguments.keys() - schemas.keys())
    if unknown and schemas and not tool.inputs.additionalProperties:
        near = did_you_mean(unknown[0], schemas)
        raise Failure(f"the tool takes no argument {unknown[0]!r}{near}; it takes: {', '.join(schemas)}")
    missing = [name for name in tool.inputs.required or () if name not in arguments]
    missing = [name for name in missing if "default" not in schemas.get(name, {})]
    if missing:
        raise Failure(f"missing argument: {', '.join(missing)}; the tool takes: {signature(tool)}")
    return arguments


def signature(tool: Tool) -> str:
    """The tool's arguments in a line, ``key=type``; optional ones in brackets."""
    required = set(tool.inputs.required or ())
    shown = []
    for name, schema in _properties(tool).items():
        text = f"{name}={'|'.join(types_of(schema)) or 'any'}"
        shown.append(text if name in required else f"[{text}]")
    return " ".join(shown)


def types_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that a schema allows; empty where it does not say."""
    declared = schema.get("type")
    if declared is not None:
        return (declared,) if isinstance(declared, str) else tuple(declared)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            options = [types_of(option) if isinstance(option, dict) else () for option in schema[key]]
            return tuple(dict.fromkeys(kind for kinds in options for kind in kinds)) if all(options) else ()
    return ()


def read_bytes(where: str) -> bytes:
    """The content of a file, or of stdin for ``-``."""
    return sys.stdin.buffer.read() if where == "-" else Path(where).read_bytes()


def _properties(tool: Tool) -> dict[str, dict[str, Any]]:
    schemas = tool.inputs.properties or {}
    return {name: schema.model_dump(by_alias=True, exclude_unset=True) for name, schema in schemas.items()}


def _typed(name: str, text: str, types: tuple[str, ...]) -> Any:
    if types == ("string",):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if not types or any(_MATCHES[kind](value) for kind in types if kind in _MATCHES):
        return value
    if "string" in types:
        return text
    raise Failure(f"the argument {name} must be {' or '.join(types)}, in JSON; {text!r} is not")


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    raise Failure(f"the argument {name}:= must be JSON; {text!r} is not")


def _content(name: str, where: str, types: tuple[str, ...], *, as_bytes: bool) -> Any:
    """The content of a file: bytes if these are sent or it is not text, text for a string, otherwise JSON."""
    try:
        data = read_bytes(where)
    except OSError as error:
        literal = json.dumps(f"@{where}", ensure_ascii=False)
        raise Failure(
            f"{name}=@{where}: {error.strerror}; a value that begins with @ is written {name}:='{literal}'"
        ) from None
    if as_bytes:
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    return text if not types or "string" in types else _typed(name, text, types)


def _sent_as_bytes(tool: Tool) -> dict[str, int | None]:
    """The arguments that the call template sends as bytes, and for ``send_each`` in pieces of which size."""
    return dict(_in_bytes(CallTemplateSerializer().to_dict(tool.tool_call_template)))


def _in_bytes(value: Any) -> Iterator[tuple[str, int | None]]:
    if isinstance(value, list):
        for item in value:
            yield from _in_bytes(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "data" and value.get("type") == "binary":
                yield from ((name, None) for name in _arguments_in(item))
            elif key == "of" and "message" in value:
                size = value.get("chunk")
                known = isinstance(size, int) and size > 0
                yield from ((name, size if known else None) for name in _arguments_in(item))
            else:
                yield from _in_bytes(item)


def _arguments_in(value: Any) -> Iterator[str]:
    for match in _ARGUMENT.finditer(value if isinstance(value, str) else json.dumps(value)):
        yield next(filter(None, match.groups()))


def _object(text: str) -> dict[str, Any]:
    try:
        if text == "-" or text.startswith("@"):
            text = read_bytes("-" if text == "-" else text[1:]).decode("utf-8-sig")
        value = json.loads(text)
    except OSError as error:
        raise Failure(f"--args: {error.filename}: {error.strerror}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Failure("--args: must be a JSON object")
    return value
