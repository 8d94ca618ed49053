"""The JSON schemas of a Python function's arguments and result, from its type hints."""

from __future__ import annotations

import collections.abc
import inspect
import json
from collections.abc import Callable
from typing import Any, NotRequired, Required, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import to_json, to_jsonable_python
from typing_extensions import TypedDict

__all__ = ["inputs_of", "outputs_of"]

_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable)


def inputs_of(function: Callable[..., Any], name: str) -> tuple[TypeAdapter[dict[str, Any]], dict[str, Any]]:
    """What validates a function's arguments, and their schema.

    Args:
        name: Of the schema, and for errors.

    Raises:
        TypeError: The function has parameters that cannot be named in JSON.
    """
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{name}: the parameter {parameter.name} cannot be given by name")
        hint = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields[parameter.name] = Required[hint]
        else:
            fields[parameter.name] = NotRequired[hint]
            defaults[parameter.name] = to_jsonable_python(parameter.default, fallback=repr)
    make: Any = TypedDict
    arguments = make(name, fields)
    arguments.__pydantic_config__ = {"extra": "forbid"}
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
    schema = adapter.json_schema()
    for parameter_name, default in defaults.items():
        schema["properties"][parameter_name]["default"] = default
    return adapter, _json(schema)


def outputs_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function's result, or of an item where it is a stream."""
    hint = get_type_hints(function, include_extras=True).get("return", Any)
    if inspect.isasyncgenfunction(function) and get_origin(hint) in _STREAMS:
        hint = get_args(hint)[0]
    return _json(TypeAdapter(hint).json_schema(mode="serialization"))


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what JSON has no number for as pydantic reads it."""
    plain: dict[str, Any] = json.loads(to_json(schema, inf_nan_mode="strings"))
    return plain
