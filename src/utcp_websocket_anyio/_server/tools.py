"""A Python function as a tool: what a manual says about it, and how it is run.

There are two questions about a function, and all four answers occur. Is it a *stream*: does it give its results one by
one? And is it *asynchronous*: does it run in the event loop, or in a thread? Both are answered when it is published,
because its call template depends on the first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .schemas import inputs_of, is_stream, outputs_of
from .threads import Workers

__all__ = ["Tool", "WrongArguments", "as_tool"]

_NAME = re.compile(r"[\w.-]+")
_MAX_SHOWN_ERRORS = 10
_MAX_LISTED_ERRORS = 1000
_MAX_ERROR_LENGTH = 200


class WrongArguments(Exception):  # noqa: N818 - the text is all that it is for
    """A call's arguments do not fit; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A published function.

    Attributes:
        timeout: Seconds that a client should wait for the whole response.
        is_stream: True if its results come one by one.
    """

    name: str
    description: str
    tags: tuple[str, ...]
    function: Callable[..., Any] = field(repr=False)
    arguments: TypeAdapter[dict[str, Any]] = field(repr=False)
    inputs: dict[str, Any] = field(repr=False)
    outputs: dict[str, Any] = field(repr=False)
    timeout: float | None
    is_stream: bool

    def described(self, url: str, auth: dict[str, Any] | None) -> dict[str, Any]:
        """The tool as it stands in a manual.

        Args:
            url: URL at which it is called.
            auth: The credentials that the server asks for.
        """
        template: dict[str, Any] = {
            "call_template_type": "websocket",
            "name": self.name,
            "url": url,
            "message": {
                "type": "call_tool",
                "request_id": "{{uuid}}",
                "tool_name": self.name,
                "arguments": "{{args}}",
            },
            "message_filter": {"request_id": "{{uuid}}"},
            "multiplex": True,
            "on_end": [{"send": {"type": "cancel", "request_id": "{{uuid}}"}}],
        }
        if self.is_stream:
            # Without an end of its own, an open-ended exchange would take a time-out for it, and be cut short silently.
            template["end_filter"] = {"type": "stream_end", "request_id": "{{uuid}}"}
            template["expected_responses"] = -1
        else:
            template["expected_responses"] = 1
        if auth is not None:
            template["auth"] = auth
        if self.timeout is not None:
            template["response_timeout"] = self.timeout
        return {
            "name": self.name,
            "description": self.description,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "tags": list(self.tags),
            "tool_call_template": template,
        }

    def read_arguments(self, given: Any) -> dict[str, Any]:
        """A call's arguments as the function takes them.

        Raises:
            WrongArguments: The arguments do not match the function's types.
        """
        try:
            return self.arguments.validate_python({} if given is None else given)
        except ValidationError as error:
            reason = _reason(error)
        raise WrongArguments(f"wrong arguments: {reason}")

    async def run(self, arguments: dict[str, Any], workers: Workers) -> Any:
        """Call the function. What a stream gives is an asynchronous iterator."""
        function = self.function
        if inspect.iscoroutinefunction(function):
            result = await function(**arguments)
        elif inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            result = function(**arguments)  # runs nothing of it yet
        else:
            result = await workers.run(partial(function, **arguments))
            if isinstance(result, Awaitable):  # of a decorator that hides what it decorates
                result = await result
        if not self.is_stream:
            return result
        return result if isinstance(result, AsyncIterator) else workers.iterate(iter(result))


def as_tool(
    function: Callable[..., Any],
    *,
    name: str,
    description: str | None,
    tags: Iterable[str],
    timeout: float | None,
) -> Tool:
    """Describe a function.

    Raises:
        ValueError: The name or the time is not valid.
        TypeError: It has parameters that JSON cannot name, or types that JSON cannot express.
    """
    if _NAME.fullmatch(name) is None:
        # A client puts it into a template, where a brace or a dollar sign would mean something else.
        raise ValueError(f"tool name {name!r}: use letters, digits, '_', '-' and '.'")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"{name}: timeout must be greater than 0")
    arguments, inputs = inputs_of(function, name)
    return Tool(
        name=name,
        description=description if description is not None else inspect.getdoc(function) or "",
        tags=tuple(tags),
        function=function,
        arguments=arguments,
        inputs=inputs,
        outputs=outputs_of(function),
        timeout=timeout,
        is_stream=is_stream(function),
    )


def _reason(error: ValidationError) -> str:
    """Describe what is wrong with arguments, in a bounded text: a hostile client can be wrong in a million places."""
    count = error.error_count()
    if count > _MAX_LISTED_ERRORS:
        return f"{count} errors"
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    shown = []
    for one in errors[:_MAX_SHOWN_ERRORS]:
        place = ".".join(map(str, one["loc"]))
        text = f"{place}: {one['msg']}" if place else one["msg"]
        shown.append(text if len(text) <= _MAX_ERROR_LENGTH else f"{text[:_MAX_ERROR_LENGTH]}...")
    if count > len(shown):
        shown.append(f"and {count - len(shown)} more")
    return "; ".join(shown)
