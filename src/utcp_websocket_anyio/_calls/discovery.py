"""From a manual's call template to its manual: the tools written in it, fetched by HTTP, or asked of the endpoint."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from pydantic import ValidationError
from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.interfaces.serializer import Serializer

from .._net.http import may_come_right, request
from .._net.security import check_http_url, check_manual_origin, display_url
from .._net.transport import Network
from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer, declare_tool_inputs
from .._templates.filters import compile_filter
from .._templates.plan import Plan
from ..errors import WebSocketConnectionError, WebSocketTimeoutError

__all__ = ["discover", "discovery_plan"]

_IS_MANUAL = compile_filter({"tools": []}, "discovery")


async def discover(
    template: WebSocketCallTemplate, ask: Callable[[Plan], Awaitable[Any]], *, network: Network | None = None
) -> UtcpManual:
    """Find the tools of a manual. Cancelling it ends the request it has under way.

    Args:
        template: The manual's call template.
        ask: Runs one exchange by the given plan and returns its response.
        network: The way to a `discovery_url`; None: as `configure` says.

    Raises:
        WebSocketError: The manual could not be fetched.
        WebSocketSecurityError: A manual of a remote origin names loopback.
        ValueError: The manual is not valid; the text says where.
    """
    if template.tools is not None:
        return _manual({"tools": template.tools}, template)
    if template.discovery_url is not None:
        origin = template.discovery_url
        content = await _fetch(origin, template.timeout, network or Network())
    else:
        origin = template.url
        content = await ask(discovery_plan(template.plan))
    manual = _manual(content, template)
    check_manual_origin(origin, manual.tools)
    return manual


def discovery_plan(plan: Plan) -> Plan:
    """The plan of the exchange that asks an endpoint for its manual: the first JSON object with a list of tools."""
    return plan.for_discovery(_IS_MANUAL)


async def _fetch(url: str, seconds: float, network: Network) -> Any:
    check_http_url(url, "discovery_url")
    endpoint = display_url(url)
    with anyio.move_on_after(seconds):
        answer = await request("GET", url, network=network, what="discovery request")
        if (status := answer.status) != 200:
            reason = answer.reason()
            raise WebSocketConnectionError(
                f"the discovery request was answered with status {status}{'' if reason is None else f': {reason}'}",
                endpoint=endpoint,
                status=status,
                transient=may_come_right(status),
            )
        return answer.json()
    raise WebSocketTimeoutError(f"no manual within {seconds:g} s", phase="response", endpoint=endpoint)


def _manual(content: Any, template: WebSocketCallTemplate) -> UtcpManual:
    if not isinstance(content, dict) or not isinstance(content.get("tools"), list):
        raise ValueError("the manual must be a JSON object with a list of tools")
    # Only valid if a tool is called by it: the others have taken what they need.
    needed = any(isinstance(value, dict) and value.get("tool_call_template") is None for value in content["tools"])
    own = _own_template(template) if needed else template
    tools = [_tool(value, f"tools[{index}]", own) for index, value in enumerate(content["tools"])]
    versions = {key: content[key] for key in ("utcp_version", "manual_version") if isinstance(content.get(key), str)}
    return UtcpManual(tools=tools, **versions)


def _own_template(template: WebSocketCallTemplate) -> WebSocketCallTemplate:
    """The manual's template as that of its tools: without what is about discovery."""
    serializer = WebSocketCallTemplateSerializer()
    values = serializer.to_dict(template)
    for key in ("tools", "discovery_url", "discovery_message"):
        values.pop(key, None)
    return serializer.validate_dict(values)


def _tool(value: Any, where: str, own: WebSocketCallTemplate) -> Tool:
    if not isinstance(value, dict):
        raise ValueError(f"the manual's {where} must be an object")
    template = value.get("tool_call_template")
    call_template = own if template is None else _call_template(template, where)
    try:
        tool = Tool.model_validate({**value, "tool_call_template": call_template})
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        reason = f"{where}.{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    else:
        return declare_tool_inputs(tool)
    raise ValueError(f"the manual's {reason}")


def _call_template(value: Any, where: str) -> CallTemplate:
    where = f"the manual's {where}.tool_call_template"
    kind = value.get("call_template_type") if isinstance(value, dict) else None
    if kind is None:
        raise ValueError(f"{where} must be an object with a call_template_type")
    if kind == "websocket":
        return _valid(WebSocketCallTemplateSerializer(), value, where)
    serializer = CallTemplateSerializer.call_template_serializers.get(kind)
    if serializer is None:
        known = ", ".join(sorted(CallTemplateSerializer.call_template_serializers))
        raise ValueError(
            f"{where} is of type {json.dumps(kind)}, for which no plugin is installed; installed are {known}"
        )
    return _valid(serializer, value, where)


def _valid(serializer: Serializer[Any], value: dict[str, Any], where: str) -> CallTemplate:
    try:
        template: CallTemplate = serializer.validate_dict(dict(value))
        return template
    except Exception as error:  # noqa: BLE001 - whatever another plugin's serializer raises
        # Other plugins' texts may hold the template's secrets.
        own = isinstance(serializer, WebSocketCallTemplateSerializer)
        reason = str(error) if own else f"is not valid ({type(error).__name__})"
    raise ValueError(f"{where}: {reason}")
