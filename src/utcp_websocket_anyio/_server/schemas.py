"""The JSON schemas of a Python function's arguments and result, from its type hints.

pydantic writes a model once, among ``$defs``, and refers to it by ``$ref``. UTCP clients take every ``$name`` in a
manual that they read from a file for a variable, so here each definition is put in the place of the references to it.
A type that contains itself has no end that way: where it occurs in itself, its schema is left open.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, Required, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import to_json, to_jsonable_python
from typing_extensions import TypedDict

__all__ = ["inputs_of", "is_stream", "outputs_of"]

_ASYNCHRONOUS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable)
_PLAIN = (collections.abc.Iterator, collections.abc.Generator)
_REFERENCE = "#/$defs/"
# Of a pydantic model that is complete, about as much as some manuals have altogether.
_MAX_SIZE = 1_000_000


def inputs_of(function: Callable[..., Any], name: str) -> tuple[TypeAdapter[dict[str, Any]], dict[str, Any]]:
    """A validator of a function's arguments, and their schema.

    Args:
        name: Name of the schema; errors begin with it.

    Raises:
        TypeError: The function has parameters that cannot be named in JSON, or types without a schema.
    """
    hints = _hints(function)
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
    schema = _in_place(adapter.json_schema())
    for parameter_name, default in defaults.items():
        schema["properties"][parameter_name]["default"] = default
    return adapter, _json(schema)


def outputs_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function's result, or of an item where it is a stream."""
    hint = _hints(function).get("return", Any)
    if is_stream(function) and get_origin(hint) in (*_ASYNCHRONOUS, *_PLAIN, collections.abc.Iterable):
        hint = get_args(hint)[0]
    elif is_stream(function) and hint in (*_ASYNCHRONOUS, *_PLAIN):
        hint = Any
    return _json(_in_place(TypeAdapter(hint).json_schema(mode="serialization")))


def is_stream(function: Callable[..., Any]) -> bool:
    """True if a function gives its results one by one: it is a generator, or says that it returns an iterator."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return True
    hint = _hints(function).get("return")
    return (get_origin(hint) or hint) in (*_ASYNCHRONOUS, *_PLAIN)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    described = function
    while hasattr(described, "func") and not hasattr(described, "__annotations__"):  # functools.partial
        described = described.func
    if not inspect.isroutine(described) and not inspect.isclass(described):
        described = described.__call__  # type: ignore[operator]  # an object with `__call__`
    return get_type_hints(described, include_extras=True)


def _in_place(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its definitions in the places of the references to them."""
    definitions = schema.pop("$defs", {})
    budget = [_MAX_SIZE]
    placed: dict[str, Any] = _placed(schema, definitions, (), budget)
    return placed


def _placed(part: Any, definitions: Mapping[str, Any], inside: tuple[str, ...], budget: list[int]) -> Any:
    """A part of a schema, complete.

    Args:
        inside: The definitions that it is a part of.
        budget: Number of further parts allowed. Models that name each other twice grow with every level.
    """
    budget[0] -= 1
    if budget[0] < 0:
        raise TypeError("its types refer to each other so often that the schema would have no end; use simpler ones")
    if isinstance(part, list):
        return [_placed(element, definitions, inside, budget) for element in part]
    if not isinstance(part, dict):
        return part
    name, definition = _referred(part.get("$ref"), definitions)
    members = {
        key: _placed(value, definitions, inside, budget)
        for key, value in part.items()
        # A discriminator's `mapping` names the definition for each value. The alternatives say their values themselves.
        if not (key == "$ref" and definition is not None) and not (key == "mapping" and _is_mapping(value))
    }
    if definition is None:
        return members
    if name in inside:
        opened = {key: definition[key] for key in ("title", "type") if key in definition}
        return {**opened, **members}
    # What stands beside a reference, a description or a default, is said of this place.
    return {**_placed(definition, definitions, (*inside, name), budget), **members}


def _referred(reference: Any, definitions: Mapping[str, Any]) -> tuple[str, Any]:
    """The name of a definition and the definition, which is None if this is not a reference to one."""
    if not isinstance(reference, str) or not reference.startswith(_REFERENCE):
        return "", None
    name = reference.removeprefix(_REFERENCE).replace("~1", "/").replace("~0", "~")
    return name, definitions.get(name)


def _is_mapping(value: Any) -> bool:
    """True for the `mapping` of a discriminator, and not for a schema of that name."""
    return isinstance(value, dict) and all(str(one).startswith(_REFERENCE) for one in value.values())


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what JSON has no number for as pydantic reads it."""
    plain: dict[str, Any] = json.loads(to_json(schema, inf_nan_mode="strings"))
    return plain
