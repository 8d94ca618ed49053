"""A call, prepared: everything that its arguments decide, before any connection is touched.

What can be wrong with the arguments is found here, so that a call that fails for them has sent nothing and opened
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._net.security import check_header
from .._templates.messages import BoundMessage
from .._templates.placeholders import text_of
from .._templates.plan import Endpoint, Plan
from .._templates.values import RenderContext, Template, encode_arguments, render_number
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
    message: str | bytes | BoundMessage | None
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
        missing = plan.arguments - arguments.keys()
        if missing:
            raise MissingArgumentError(missing)
    values = RenderContext(arguments, tool)
    for filter_ in plan.argument_filters:
        filter_.check(values.dry_run())
    timeout = plan.response_timeout
    return Request(
        plan,
        values,
        _endpoint(plan, values, manual),
        _message(plan, values),
        render_number(timeout, values) if isinstance(timeout, Template) else timeout,
    )


def _endpoint(plan: Plan, values: RenderContext, manual: str) -> Endpoint:
    known = plan.endpoints.get(manual)
    if known is not None:
        return known
    endpoint = Endpoint(
        manual=manual,
        url=plan.url.render(values),
        headers=_headers(plan, values.args),
        credentials=plan.credentials,
        settings=plan.settings,
    )
    if plan.url.is_static and not plan.header_fields:
        plan.endpoints[manual] = endpoint
    return endpoint


def _headers(plan: Plan, arguments: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if not plan.header_fields:
        return plan.headers
    given = {name: arguments[name] for name in plan.header_fields if name in arguments}
    taken = {name.lower() for name in given}
    own = [(name, text_of(value)) for name, value in given.items()]
    for name, value in own:
        check_header(name, value)
    return (*(header for header in plan.headers if header[0].lower() not in taken), *own)


def _message(plan: Plan, values: RenderContext) -> str | bytes | BoundMessage | None:
    for step in plan.before:
        if step.send is not None:
            step.send.encode(values.dry_run())
    if plan.listen_only:
        return None
    if plan.message is None:
        return encode_arguments(values.args, without=plan.consumed)
    if plan.message.uses_call_id or plan.message.captures:
        return plan.message.bind(values)
    return plan.message.encode(values)
