"""JMESPath expressions: checked when the template is validated, bounded when they run, with values that stay values.

A placeholder stands for a literal. The expression is parsed with a mark in its place, and the mark is found again in
the parsed expression, as a literal or inside of one; there the value is put in when the expression runs. No value is
ever text that is parsed, so nothing that a value holds can change the expression.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from typing import Any

import jmespath.exceptions
import jmespath.functions
import jmespath.parser
import jmespath.visitor

from .encoders import ABSENT, text_of
from .placeholders import Placeholder, RenderContext, Scope, parse
from .received import ResponseError
from .values import CompiledTemplate, is_unique, placeholders_of

__all__ = ["Selection", "compile_selection"]

_MAX_LENGTH = 10_000
_MAX_WORK = 1_000_000
"""Values that one run of an expression may look at or make: what bounds its memory."""

_MAX_SECONDS = 0.5
"""Processor time of one run. A message of a megabyte takes a tenth of that."""

_WORK_PER_LOOK = 500
"""Units of work between two looks at the clock."""

_MARK = secrets.token_hex(16)
_MARKED = re.compile(rf"{_MARK}:(\d+):")


class _TooMuchWorkError(Exception):
    pass


class Selection(CompiledTemplate):
    """A JMESPath expression."""

    __slots__ = ("_placeholders", "_tree")

    def __init__(self, source: str, where: str, placeholders: list[Placeholder], tree: Any) -> None:
        super().__init__(source, where, placeholders)
        self._placeholders = placeholders
        self._tree = tree

    def search(self, value: Any, context: RenderContext) -> Any:
        """The result of the expression for a JSON value.

        Raises:
            ResponseError: It failed on this value, such as by a type error.
        """
        values = [self._value(placeholder, context) for placeholder in self._placeholders]
        try:
            return _Interpreter(values).visit(self._tree, value)
        except _TooMuchWorkError:
            reason = "it does too much work"
        except RecursionError:
            reason = "the message is nested too deeply"
        except jmespath.exceptions.JMESPathError as error:
            # The texts of these errors hold values of the message.
            reason = _REASONS.get(type(error).__name__, "it failed on this message")
        except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError):
            reason = "it failed on this message"
        raise ResponseError(f"{self.where}: the expression cannot be applied: {reason}")

    def try_out(self, context: RenderContext) -> None:
        """Find out if the call's values can be put in.

        Raises:
            ValueError: A value cannot be put in.
        """
        for placeholder in self._placeholders:
            if not placeholder.is_late:
                text_of(placeholder.value(context))

    def names_the_call(self, unique_captures: frozenset[str]) -> bool:
        """True if the expression surely is true of nothing without a value of the call's own."""
        unique = {index for index, found in enumerate(self._placeholders) if is_unique(found, unique_captures)}
        return bool(unique) and _compares_with(self._tree, unique)

    @staticmethod
    def _value(placeholder: Placeholder, context: RenderContext) -> Any:
        value = placeholder.value(context)
        return None if value is ABSENT else value


_REASONS = {
    "JMESPathTypeError": "a function was given a value of another type",
    "ArityError": "a function was given the wrong number of arguments",
    "VariadictArityError": "a function was given the wrong number of arguments",
    "UnknownFunctionError": "it calls a function that does not exist",
}


def compile_selection(value: Any, where: str, scope: Scope) -> Selection:
    """Compile a JMESPath expression.

    Raises:
        ValueError: The text is not a JMESPath expression.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: must be a JMESPath expression (string)")
    if len(value) > _MAX_LENGTH:
        raise ValueError(f"{where}: an expression may have {_MAX_LENGTH} characters at most")
    parts = parse(value, where, scope)
    text = ""
    quote = ""
    placeholders = placeholders_of(parts)
    index = 0
    for part in parts:
        if isinstance(part, str):
            text += part
            quote = _quote_behind(part, quote)
        else:
            mark = f"{_MARK}:{index}:"
            text += mark if quote else f'`"{mark}"`'
            index += 1
    try:
        tree = jmespath.parser.Parser().parse(text).parsed
        _check_functions(tree, where)
        tree = _with_placeholders(tree)
    except jmespath.exceptions.ParseError:
        reason = "an error in its syntax"
    except jmespath.exceptions.JMESPathError as error:
        reason = type(error).__name__
    except RecursionError:
        reason = "it is nested too deeply"
    else:
        return Selection(value, where, placeholders, tree)
    hint = "; a placeholder stands for a literal there" if placeholders else ""
    raise ValueError(f"{where}: is not a valid JMESPath expression: {reason}{hint}")


def _quote_behind(text: str, quote: str) -> str:
    """The quote (``'``, ``"`` or `````) in which one is behind a text, if any."""
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif quote and character == "\\":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
    return quote


def _with_placeholders(node: Any) -> Any:
    """The parsed expression, with nodes of our own where there are marks."""
    if not isinstance(node, dict):
        return node  # a number of a slice
    if node["type"] == "literal":
        value = _marked(node["value"])
        return (
            node
            if value is None
            else {
                "type": "placeholder",
                "value": value,
                "indices": {int(index) for index in _MARKED.findall(json.dumps(node["value"]))},
                "children": [],
            }
        )
    if node["type"] in ("field", "key_val_pair"):
        name = _marked(node["value"])
        if name is not None:
            if node["type"] == "key_val_pair":
                return {
                    "type": "named_pair",
                    "value": name,
                    "children": [_with_placeholders(child) for child in node["children"]],
                }
            return {"type": "named_field", "value": name, "children": []}
    return {**node, "children": [_with_placeholders(child) for child in node["children"]]}


def _marked(value: Any) -> Any:
    """A function that fills a literal with the values of placeholders; None if there is no mark in it."""
    if isinstance(value, str):
        whole = _MARKED.fullmatch(value)
        if whole is not None:
            index = int(whole[1])
            return lambda values: values[index]
        pieces = _MARKED.split(value)
        if len(pieces) == 1:
            return None
        return lambda values: "".join(
            [text_of(values[int(piece)]) if place % 2 else piece for place, piece in enumerate(pieces)]
        )
    if isinstance(value, list):
        items = [(_marked(item), item) for item in value]
        if all(make is None for make, _ in items):
            return None
        return lambda values: [item if make is None else make(values) for make, item in items]
    if isinstance(value, dict):
        members = {key: (_marked(item), item) for key, item in value.items()}
        if all(make is None for make, _ in members.values()):
            return None
        return lambda values: {key: item if make is None else make(values) for key, (make, item) in members.items()}
    return None


class _Interpreter(jmespath.visitor.TreeInterpreter):  # type: ignore[misc]  # jmespath declares no types
    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self._values = values
        self._work = 0
        self._next_look = _WORK_PER_LOOK
        self._ends = time.thread_time() + _MAX_SECONDS

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().visit(node, *args, **kwargs)
        # A list may double with each step of an expression.
        self._work += 1 + len(found) if isinstance(found, (list, str)) else 1
        if self._work > self._next_look:
            self._next_look = self._work + _WORK_PER_LOOK
            if self._work > _MAX_WORK or time.thread_time() > self._ends:
                raise _TooMuchWorkError
        return found

    def visit_placeholder(self, node: Any, _: Any) -> Any:
        return node["value"](self._values)

    def visit_named_field(self, node: Any, value: Any) -> Any:
        name = text_of(node["value"](self._values))
        return value.get(name) if isinstance(value, dict) else None

    def visit_named_pair(self, node: Any, value: Any) -> Any:
        return self.visit(node["children"][0], value)

    def visit_multi_select_dict(self, node: Any, value: Any) -> Any:
        if value is None:
            return None
        return {
            text_of(child["value"](self._values)) if callable(child["value"]) else child["value"]: self.visit(
                child, value
            )
            for child in node["children"]
        }


_FUNCTIONS = frozenset(jmespath.functions.Functions.FUNCTION_TABLE)


def _check_functions(node: Any, where: str) -> None:
    """Raise an error now for a function that would fail on every message."""
    if not isinstance(node, dict):
        return
    if node["type"] == "function_expression" and node["value"] not in _FUNCTIONS:
        raise ValueError(
            f"{where}: JMESPath has no function {node['value']!r}; use one of {', '.join(sorted(_FUNCTIONS))}"
        )
    for child in node["children"]:
        _check_functions(child, where)


def _compares_with(node: Any, unique: set[int]) -> bool:
    kind = node["type"]
    if kind == "comparator" and node["value"] == "eq":
        return any(
            child["type"] == "placeholder" and not unique.isdisjoint(child["indices"]) for child in node["children"]
        )
    if kind == "and_expression":
        return any(_compares_with(child, unique) for child in node["children"])
    if kind == "or_expression":
        return all(_compares_with(child, unique) for child in node["children"])
    return False
