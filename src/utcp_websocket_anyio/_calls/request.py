"""A call, prepared: everything that its arguments decide, before any connection is touched.

What can be wrong with the arguments is found here, so that a call that fails for them has sent nothing and opened
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._templates.messages import BoundMessage, MessageTemplate
from .._templates.plan import Endpoint, Plan
from .._templates.values import RenderContext, Template, render_number
from ..errors import MissingArgumentError, WebSocketProtocolError

__all__ = ["Request", "prepare"]


@dataclass(slots=True)
class Request:
    """One call of a tool.

    Attributes:
        message: The encoded request, or what encodes it where it depends on the connection (`{{call_id}}`,
            `{{captured…}}`); None where nothing is sent.
        timeout: Seconds from the first message sent to the last response.
    """

    plan: Plan
    values: RenderContext
    endpoint: Endpoint
    message: str | bytes | BoundMessage | MessageTemplate | None
    timeout: float

    def encoded(self) -> str | bytes:
        """What is sent, now that there is a connection.

        Raises:
            WebSocketProtocolError: What was captured cannot be encoded; the arguments can, as they were tried.
        """
        message = self.message
        assert message is not None
        if isinstance(message, (str, bytes)):
            return message
        try:
            return message.encode(self.values)
        except ValueError as error:
            fault = str(error)
        raise WebSocketProtocolError(fault, endpoint=self.endpoint.display_url)


def prepare(plan: Plan, tool: str, arguments: Mapping[str, Any], *, manual: str) -> Request:
    """Put the arguments into the templates.

    Args:
        tool: The tool's name without its manual's.
        manual: The name of the manual, whose calls share connections.

    Raises:
        MissingArgumentError: The templates need more arguments.
        ValueError: An argument cannot be put where the template has it.
    """
    if plan.arguments:
        missing = plan.missing_arguments(arguments)
        if missing:
            raise MissingArgumentError(missing)
    values = RenderContext(arguments, tool)
    plan.try_out(values)
    timeout = plan.timeout if plan.response_timeout is None else plan.response_timeout
    return Request(
        plan,
        values,
        plan.endpoint(values, manual),
        _message(plan, values),
        render_number(timeout, values) if isinstance(timeout, Template) else timeout,
    )


def _message(plan: Plan, values: RenderContext) -> str | bytes | BoundMessage | MessageTemplate | None:
    message = plan.request[0].send if plan.request else None
    if message is None:
        return None
    return message.bind(values) if message.is_late else message.encode(values)
