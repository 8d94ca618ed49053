"""A call, prepared: what its arguments decide, before any connection is touched.

What can be wrong with the arguments is found here, so that a call that fails for them has sent nothing and opened
nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from .._net.security import display_url
from .._templates.messages import BoundMessage, MessageTemplate
from .._templates.plan import Endpoint, Plan
from .._templates.values import RenderContext, Template, render_number
from ..errors import MissingArgumentError

__all__ = ["Request", "prepare"]


@dataclass(slots=True)  # frozen would cost each call a microsecond
class Request:
    """One call of a tool.

    Attributes:
        plan: The compiled call template.
        context: Values of the placeholders; each step gets a context of its own, made from this.
        endpoint: The connections that it may use.
        message: The request's one message, as far as it is known: encoded, or bound to the arguments if it depends on
            the connection; None if the request is not a single message.
        timeout: Seconds from the request to the last response; None: the template does not say.
        farewell: What the call will say on a shared connection when it leaves, as far as that is known now; None:
            nothing, or it holds a value of the call's own.
    """

    plan: Plan
    context: RenderContext
    endpoint: Endpoint
    message: str | bytes | BoundMessage | MessageTemplate | None
    timeout: float | None
    farewell: Hashable = None


def prepare(
    plan: Plan, tool: str, arguments: Mapping[str, object], *, manual: str, session: Endpoint | None = None
) -> Request:
    """Put the arguments into the templates.

    Args:
        plan: The compiled call template.
        tool: The tool's name without its manual's.
        arguments: The call's arguments.
        manual: The name of the manual, whose calls share connections.
        session: The endpoint of its session if that has a connection already: then only what the call itself needs
            counts.

    Raises:
        MissingArgumentError: The templates need more arguments.
        ValueError: An argument cannot be put where the template has it.
    """
    is_complete = arguments.keys() >= plan.arguments
    if not is_complete and (missing := plan.missing_arguments(arguments, on_open_session=session is not None)):
        raise MissingArgumentError(missing, endpoint=display_url(str(plan.url.source)))
    context = RenderContext(arguments, tool)
    plan.try_out(context)
    endpoint = plan.endpoint(context, manual) if session is None else session
    sole = plan.sole_message
    message: str | bytes | BoundMessage | MessageTemplate | None = None
    if sole is not None:
        message = sole.bind(context) if sole.is_late else sole.encode(context)
    timeout = plan.response_timeout
    if isinstance(timeout, Template):
        timeout = render_number(timeout, context)
    farewell = tuple([send.encode(context) for send in plan.farewell]) if plan.farewell else None
    return Request(plan, context, endpoint, message, timeout, farewell)
