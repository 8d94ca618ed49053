"""The shapes of the objects in a call template: which members they have, and what each is for.

One table for each kind of object. The checks of unknown members (`check_members`) and the JSON Schema of a call
template both come from it, so a member that is not here does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .spelling import unknown_name

__all__ = ["SCHEMAS", "SHAPES", "check_members"]

_STRING: dict[str, Any] = {"type": "string"}
_BOOLEAN: dict[str, Any] = {"type": "boolean"}
_TEXT_TEMPLATE = {"type": "string", "description": "A text template"}
_SECONDS = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _TEXT_TEMPLATE]}
_ANY: dict[str, Any] = {}
_MESSAGE = {
    "description": "A message: text, an object or list sent as JSON, or {'type': 'binary', 'data': …}",
    "anyOf": [_STRING, {"type": "object"}, {"type": "array"}],
}
_OPERATORS: dict[str, tuple[Mapping[str, Any], str]] = {
    "$any": ({"const": True}, "It is there, even null"),
    "$absent": ({"const": True}, "It is not there"),
    "$in": ({"type": "array", "minItems": 1}, "One of these"),
    "$regex": (_STRING, "A regular expression"),
    "$equals": (_ANY, "Exactly this value"),
    "$or": ({"type": "array", "minItems": 1}, "At least one of these"),
    "$and": ({"type": "array", "minItems": 1}, "All of these"),
    "$not": (_ANY, "Not this"),
    "$select": (_STRING, "A JMESPath expression that is true"),
    "$text": (_STRING, "The whole text"),
    "$hex": (_STRING, "Bytes that the message begins with"),
    "$after": (_STRING, "Text that the message begins with"),
    "$json": (_ANY, "A filter of the JSON behind $after"),
    "$frame": ({"enum": ["text", "binary"]}, "The kind of message"),
}
_FILTER = {
    "description": "A filter: a regular expression, or the members or leading elements that a message has",
    "anyOf": [
        _STRING,
        {
            "type": "object",
            "properties": {name: {**schema, "description": text} for name, (schema, text) in _OPERATORS.items()},
            "additionalProperties": True,
        },
        {"type": "array"},
    ],
}

# Kind of object → member → its schema and meaning. What refers to other kinds is put in below.
SHAPES: dict[str, dict[str, tuple[Mapping[str, Any] | str, str]]] = {
    "extraction": {
        "path": (
            {"anyOf": [_STRING, {"type": "array", "items": {"type": ["string", "integer"]}}]},
            "A path of keys and indices, such as items.0.name",
        ),
        "select": (_STRING, "A JMESPath expression"),
        "regex": (_STRING, "A regular expression; its first group is meant"),
        "after": (_STRING, "A prefix; what is behind it is meant"),
        "slice": ({"type": "array", "minItems": 2, "maxItems": 2}, "The first position, and the one behind the last"),
        "as": ({"enum": ["hex", "base64", "utf-8"]}, "Bytes as text"),
        "json": ({"const": True}, "Text as JSON"),
        "default": (_ANY, "Value in place of a missing part"),
    },
    "http": {
        "method": (_STRING, "The method; GET, or POST where there is a body"),
        "url": (_TEXT_TEMPLATE, "The address"),
        "headers": ({"type": "object", "additionalProperties": _STRING}, "Headers"),
        "query": ({"type": "object"}, "Parameters of the query"),
        "json": (_ANY, "The body as JSON"),
        "form": ({"type": "object"}, "The body as a form"),
        "body": (_MESSAGE, "The body as text or bytes"),
    },
    "send_each": {
        "of": (_ANY, "A list, bytes, text, or in process anything that can be iterated"),
        "message": (_MESSAGE, "The message for each {{item}}"),
        "every": (_SECONDS, "Seconds from one to the next"),
        "chunk": ({"anyOf": [{"type": "integer", "minimum": 1}, _TEXT_TEMPLATE]}, "Bytes of a piece"),
        "encoding": ({"enum": ["base64", "hex", "utf-8"]}, "The encoding by which text is read as bytes"),
    },
    "step": {
        "compute": ("compute", "Values that are computed first"),
        "http": ("http", "An HTTP request"),
        "send": (_MESSAGE, "A message that is sent"),
        "send_each": ("send_each", "A message for each item of a list or stream; only in request"),
        "reject": (_FILTER, "A message that fails the step"),
        "expect": (_FILTER, "The message that is waited for"),
        "capture": ("capture", "Values to keep from it"),
        "when": ({"enum": ["left", "always"]}, "Only in on_end: always, or if the exchange was left (default)"),
    },
    "resume": {
        "attempts": ({"type": "integer", "minimum": 1}, "Failures in a row after which the last error is raised"),
        "prepare": ("steps", "Steps in place of the template's own"),
        "on_connect": ("steps", "Steps in place of the template's own"),
        "before": ("steps", "Steps in place of the template's own"),
        "request": ("steps", "Steps in place of the template's own"),
        "not_after": ({"type": "array"}, "Close codes, or [first, last], after which nothing is resumed"),
        "gap_item": (_ANY, "The item that is yielded in place of what was missed"),
    },
    "handler": {
        "match": (_FILTER, "The message that is handled"),
        "capture": ("capture", "Values to keep from it"),
        "compute": ("compute", "Values that are computed"),
        "reply": (_MESSAGE, "The answer to it"),
        "deliver": (_BOOLEAN, "Show it to calls, or hide it"),
        "retire": (_BOOLEAN, "Use the connection for nothing new, and close it when it is free"),
        "resume": ({"anyOf": [{"const": True}, {"type": "object"}]}, "Move its streams to a new connection"),
        "lost": (_BOOLEAN, "Close the connection at once, as if it had been lost"),
    },
    "response_handler": {
        "capture": ("capture", "Values to keep from each response"),
        "send": (_MESSAGE, "The message that acknowledges a response that the caller was given"),
    },
    "heartbeat": {
        "send": (_MESSAGE, "The message that is sent by the clock"),
        "every": (_SECONDS, "Seconds from one to the next"),
        "expect": (_FILTER, "Its answer"),
        "timeout": (_SECONDS, "Seconds to wait for the answer; pong_timeout without it"),
        "jitter": (_BOOLEAN, "The first one after a random part of the interval"),
        "compute": ("compute", "Values that are computed before each one"),
        "capture": ("capture", "Values to keep from the answer"),
        "silence": (_SECONDS, "Seconds without any message after which the connection is lost"),
    },
    "incoming": {
        "inflate": ({"enum": ["gzip", "zlib", "raw"]}, "Binary messages are compressed"),
        "split": (_STRING, "The text between records, or 'json': JSON values one behind the other"),
        "each": (_BOOLEAN, "Each element of a JSON list is a record"),
        "json": ({"anyOf": [_STRING, {"type": "array", "items": _STRING}]}, "Paths of text that holds JSON"),
    },
    "outgoing": {
        "suffix": (_STRING, "Text that is appended to each text message"),
        "frame": ({"enum": ["text", "binary"]}, "binary: text goes in binary frames"),
        "fragment": ({"type": "integer", "minimum": 1}, "Bytes of a frame; longer messages go in several"),
    },
}


def check_members(value: Any, kind: str, where: str) -> None:
    """Refuse what is not an object of a kind.

    Raises:
        ValueError: The value is not an object, or has an unknown member; the text names the nearest known one.
    """
    members = SHAPES[kind]
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be an object with some of {', '.join(members)}")
    unknown = sorted(value.keys() - members.keys())
    if unknown:
        raise ValueError(f"{where}: {unknown_name(unknown[0], members, 'key')}")


def _resolved(schema: Mapping[str, Any] | str) -> Mapping[str, Any]:
    return _schema(schema) if isinstance(schema, str) else schema


def _schema(kind: str) -> dict[str, Any]:
    if kind == "steps":
        return {"type": "array", "items": _schema("step")}
    if kind == "handlers":
        return {"type": "array", "items": _schema("handler")}
    if kind == "capture":
        return {"type": "object", "additionalProperties": _schema("extractions")}
    if kind == "extractions":
        return {"anyOf": [_schema("extraction"), {"type": "array", "items": _schema("extraction")}]}
    if kind == "compute":
        return {"type": "object", "description": "Names and values: templates, constants, hash, hmac, query, jwt, sign"}
    return {
        "type": "object",
        "properties": {
            name: {**_resolved(schema), "description": text} for name, (schema, text) in SHAPES[kind].items()
        },
        "additionalProperties": False,
    }


SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "message": _MESSAGE,
    "filter": _FILTER,
    "extraction": _schema("extractions"),
    **{
        kind: _schema(kind)
        for kind in (
            "steps", "handlers", "response_handler", "heartbeat", "incoming", "outgoing", "resume",
        )
    },
}  # fmt: skip
"""The JSON Schema of each kind of field that is more than a scalar."""
