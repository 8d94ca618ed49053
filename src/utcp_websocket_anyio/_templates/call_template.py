"""The call template: how a manual says that a tool is a WebSocket endpoint.

`WebSocketCallTemplate` is what UTCP stores and passes around. Validating one compiles it (`plan.Plan`), so whatever can
be wrong with it is wrong then, and a call finds everything prepared.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import marshal
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator
from utcp.data.auth import Auth, AuthSerializer
from utcp.data.auth_implementations import OAuth2Auth
from utcp.data.call_template import CallTemplate
from utcp.data.tool import Tool, ToolSerializer
from utcp.exceptions import UtcpSerializerValidationError
from utcp.interfaces.serializer import Serializer

from .._net.auth import check_credentials
from .._net.security import check_header, check_http_url, check_websocket_url
from ..errors import WebSocketSecurityError
from .json_values import check_json, copy_json, is_mutable
from .plan import Plan, compile_plan
from .urls import compile_url
from .values import declare_inputs

__all__ = ["WebSocketCallTemplate", "WebSocketCallTemplateSerializer", "declare_tool_inputs"]

_log = logging.getLogger(__name__)

# Where placeholders of a call work, and so `${name}` of a tool's own input (UTCP docs, "WebSocket Protocol").
_TEMPLATED = ("url", "message", "before", "message_filter", "end_filter", "error_filter", "response_timeout")
_PLANS: OrderedDict[str, Plan] = OrderedDict()
_PLANS_KEPT = 1024


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Object = dict[str, Any]
FilterForm = str | dict[str, Any] | list[Any]


class WebSocketCallTemplate(CallTemplate):  # noqa: PLW1641 - mutable, so not hashable
    """How to call a tool over WebSocket.

    The field descriptions are the reference; the README shows templates for real endpoints. Times are seconds, sizes
    bytes. Unknown fields are ignored with a warning, so that manuals made for later versions still load.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    call_template_type: Literal["websocket"] = "websocket"
    url: str = Field(description="wss:// anywhere, ws:// to loopback only; placeholders in path and query")
    message: str | Object | list[Any] | None = Field(
        default=None, description="Request template; null sends the arguments as a JSON object"
    )
    response_format: Literal["json", "text", "raw"] | None = Field(
        default=None, description="How a response is returned"
    )
    protocol: str | None = Field(default=None, min_length=1, description="Subprotocol to offer and to insist on")
    keep_alive: bool = Field(default=True, description="Keep the connection open between calls")
    timeout: Seconds = Field(default=30.0, description="Default of response_timeout; longest wait for a connection")
    connection_timeout: Seconds = Field(default=10.0, description="For TCP, TLS, handshake and on_connect together")
    response_timeout: Seconds | str | None = Field(
        default=None, description="From sending the request to the last response; or a template giving a number"
    )
    idle_timeout: Seconds | None = Field(
        default=None, description="An open-ended exchange ends well after this silence"
    )
    expected_responses: Annotated[Count, Field(ge=-1)] | None = Field(
        default=None, description="0: none, -1: open-ended, null: 1 for a call and open-ended for a stream"
    )
    close_after_response: bool | None = Field(default=None, description="Close the connection after the exchange")
    ping_interval: Seconds | None = Field(default=30.0, description="Between heartbeat pings; null: no heartbeat")
    pong_timeout: Seconds = Field(default=10.0, description="To wait for the pong before the connection is given up")
    headers: dict[str, str] | None = Field(default=None, description="Static handshake headers")
    header_fields: list[str] | None = Field(default=None, description="Arguments sent as handshake headers")
    message_filter: FilterForm | None = Field(default=None, description="Which incoming messages are responses")
    end_filter: FilterForm | None = Field(default=None, description="The message that ends an open-ended exchange")
    error_filter: FilterForm | None = Field(default=None, description="A message that fails the call")
    end_on_close: Literal["normal", "any"] = Field(
        default="normal", description="Which server close ends an open-ended exchange well"
    )
    result: Object | None = Field(default=None, description="The part of each response that is returned")
    listen_only: bool = Field(default=False, description="Send no request: the exchange is what the server pushes")
    multiplex: bool = Field(default=False, description="Share one connection between concurrent calls")
    on_connect: list[Object] | None = Field(default=None, description="Steps after each handshake")
    before: list[Object] | None = Field(
        default=None, description="Steps on the exchange's connection before its request"
    )
    auto_reply: list[Object] | None = Field(default=None, description="Messages that are answered at any time")
    on_close: list[Object] | None = Field(default=None, description="Steps before the client closes")
    compression: Literal["deflate"] | None = Field(default=None, description="Offer permessage-deflate (RFC 7692)")
    compression_threshold: Annotated[Count, Field(ge=0)] = Field(
        default=1024, description="Shorter outgoing messages go uncompressed"
    )
    max_message_size: Annotated[Count, Field(gt=0)] = Field(
        default=16 * 2**20, description="Longest incoming message, after decompression"
    )
    max_connections: Annotated[Count, Field(ge=1)] = Field(default=10, description="Open connections per endpoint")
    reconnect_attempts: Annotated[Count, Field(ge=0)] = Field(
        default=2, description="Extra attempts to establish a connection"
    )
    discovery_message: str | Object = Field(
        default_factory=lambda: {"type": "utcp"}, description="What asks the endpoint for its manual"
    )
    discovery_url: str | None = Field(default=None, description="Where the manual is fetched by GET instead")
    tools: list[Object] | None = Field(
        default=None,
        description="The tools of an endpoint that knows nothing of UTCP, in JSON form; Tool objects are converted."
        " A tool without tool_call_template takes this template",
    )

    _snapshot: dict[str, Any] = PrivateAttr(default_factory=dict)
    _plan: Plan | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _warn_of_unknown_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            unknown = sorted(str(key) for key in values.keys() - cls.model_fields.keys())
            if unknown:
                _log.warning("WebSocket call template: unknown field ignored: %s", ", ".join(unknown))
        return values

    @field_validator("auth", mode="before")
    @classmethod
    def validate_auth(cls, value: Any) -> Auth | None:
        """Validate `auth` without ever showing its values, which core's own message would."""
        if value is None or isinstance(value, Auth):
            return value
        try:
            return AuthSerializer().validate_dict(value)
        except Exception as error:  # noqa: BLE001 - whatever a plugin's serializer raises
            reason = _auth_fault(value, error)
        raise ValueError(reason)

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_as_json(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [ToolSerializer().to_dict(tool) if isinstance(tool, Tool) else tool for tool in value]

    @model_validator(mode="after")
    def _compile(self) -> WebSocketCallTemplate:
        _check_addresses(self)
        _check_headers("headers", self.headers or {})
        _check_headers("header_fields", dict.fromkeys(self.header_fields or (), ""))
        check_credentials(self.auth)
        for name in _FREE_FORM:
            check_json(getattr(self, name), name)
        if self.tools is not None:
            self.tools = [_inline_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools)]
        fields = dict(self.__dict__)
        self._plan = _plan_by_value(fields)
        self._snapshot = _copy_of(fields)
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> WebSocketCallTemplate:
        # The stock client copies templates at every call. Copies share what is compiled, which never changes.
        copied = copy.copy(self)
        copied.__dict__.update(_copy_of({name: value for name, value in self.__dict__.items() if is_mutable(value)}))
        if memo is not None:
            memo[id(self)] = copied
        return copied

    def __eq__(self, other: object) -> bool:
        # The model's own would compare the plans as well.
        return type(other) is type(self) and self.__dict__ == other.__dict__

    @property
    def plan(self) -> Plan:
        """The compiled form of the template as it is now, also where a field was changed after validation.

        Raises:
            ValueError: The template was changed into one that is not valid.
        """
        # Asked for at every call; pydantic's own way to a private attribute takes ten times as long.
        private = self.__pydantic_private__
        assert private is not None
        if private["_plan"] is None or self.__dict__ != private["_snapshot"]:
            changed = type(self).model_validate(self.__dict__)
            self._plan, self._snapshot = changed._plan, changed._snapshot
        plan: Plan = private["_plan"]
        return plan


class WebSocketCallTemplateSerializer(Serializer[WebSocketCallTemplate]):
    """Between `WebSocketCallTemplate` and its JSON form; the round trip keeps every field."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # core declares no types

    def to_dict(self, obj: WebSocketCallTemplate) -> dict[str, Any]:
        """The JSON form of a call template.

        Fields at their default are left out; `name`, `call_template_type` and `url` always stay. The result shares
        nothing with the template.
        """
        values: dict[str, Any] = {
            "name": obj.name,
            "call_template_type": obj.call_template_type,
            "url": obj.url,
        }
        if obj.auth is not None:
            values["auth"] = AuthSerializer().to_dict(obj.auth)
        for name, default in _DEFAULTS.items():
            value = getattr(obj, name)
            if value != default:
                values[name] = copy_json(value)
        return values

    def validate_dict(self, obj: dict[str, Any]) -> WebSocketCallTemplate:
        """Build a call template from its JSON form, which is left unchanged.

        Raises:
            UtcpSerializerValidationError: Something is wrong with it; the text names the field and shows no secret.
        """
        try:
            return _validated(obj)
        except ValidationError as error:
            faults = "; ".join(_fault(detail["loc"], detail["msg"]) for detail in error.errors(include_input=False))
        except RecursionError:
            faults = "it is nested too deeply"
        raise UtcpSerializerValidationError(f"Invalid WebSocket call template: {faults}")


def declare_tool_inputs(tool: Tool) -> Tool:
    """Make `${name}` of a tool's declared inputs an argument in its WebSocket call template.

    The stock client takes every ``${…}`` for a variable of its own, so this has to happen before it sees the template.

    Returns:
        The tool itself where there is nothing to rewrite, otherwise a copy.
    """
    template = tool.tool_call_template
    names = tool.inputs.properties
    if not isinstance(template, WebSocketCallTemplate) or not names:
        return tool
    serializer = WebSocketCallTemplateSerializer()
    values = serializer.to_dict(template)
    rewritten = _declared(values, names)
    if rewritten == values:
        return tool
    return tool.model_copy(update={"tool_call_template": serializer.validate_dict(rewritten)})


def _validated(values: dict[str, Any]) -> WebSocketCallTemplate:
    """Build a template, or copy the one that was built of the same values: the stock client asks at every call."""
    try:
        # A key that tells 1 from "1" and True, as JSON does not; and that keeps objects out.
        key = marshal.dumps(values, 2)
    except ValueError:
        return WebSocketCallTemplate.model_validate(copy_json(values))
    return copy.deepcopy(_validated_once(key))


@functools.lru_cache(maxsize=_PLANS_KEPT)
def _validated_once(key: bytes) -> WebSocketCallTemplate:
    return WebSocketCallTemplate.model_validate(marshal.loads(key))  # noqa: S302 - made above


def _declared(values: dict[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    return {key: declare_inputs(value, names) if key in _TEMPLATED else value for key, value in values.items()}


def _inline_tool(tool: Object, where: str) -> Object:
    """An inline tool in JSON form, its inputs declared; checked here so that a bad one is an error of the template."""
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise ValueError(f"{where}.name: a tool needs a name")
    inputs = tool.get("inputs") or {}
    if not isinstance(inputs, dict) or not isinstance(inputs.get("properties") or {}, dict):
        raise ValueError(f"{where}.inputs: must be a JSON schema with an object of properties")
    template = tool.get("tool_call_template")
    if template is None:
        return tool
    if not isinstance(template, dict) or "call_template_type" not in template:
        raise ValueError(f"{where}.tool_call_template: must be an object with a call_template_type")
    if template["call_template_type"] != "websocket":
        return tool
    template = _declared(template, inputs.get("properties") or {})
    try:
        WebSocketCallTemplate.model_validate(template)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        fault = _fault(detail["loc"], detail["msg"])
    else:
        return {**tool, "tool_call_template": template}
    raise ValueError(f"{where}.tool_call_template.{fault}")


def _check_addresses(template: WebSocketCallTemplate) -> None:
    """The rules for URLs, as far as they are known: a client resolves its `${…}` variables later."""
    if "${" not in compile_url(template.url, "url").origin:
        # White space inside the braces of a placeholder is none of the URL.
        check_websocket_url(re.sub(r"\{\{[^{}]*\}\}", lambda hole: "".join(hole[0].split()), template.url))
    if template.discovery_url is not None and "${" not in template.discovery_url:
        check_http_url(template.discovery_url, "discovery_url")
    if isinstance(template.auth, OAuth2Auth) and "${" not in template.auth.token_url:
        check_http_url(template.auth.token_url, "auth.token_url")


def _check_headers(field: str, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        try:
            check_header(name, value)
        except WebSocketSecurityError as error:
            fault = str(error)
        else:
            continue
        raise WebSocketSecurityError(f"{field}: {fault}")


def _plan_by_value(fields: dict[str, Any]) -> Plan:
    auth: Auth | None = fields["auth"]
    known_as = {name: value for name, value in fields.items() if name not in _NOT_IN_PLAN}
    known_as["auth"] = None if auth is None else [type(auth).__qualname__, auth.model_dump()]
    key = json.dumps(known_as)
    plan = _PLANS.get(key)
    if plan is None:
        plan = compile_plan(_copy_of(fields))
        _PLANS[key] = plan
        if len(_PLANS) > _PLANS_KEPT:
            _PLANS.popitem(last=False)
    else:
        _PLANS.move_to_end(key)
    return plan


def _copy_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.model_copy() if isinstance(value, Auth) else copy_json(value) for name, value in fields.items()}


def _fault(location: tuple[int | str, ...], text: str) -> str:
    text = text.removeprefix("Value error, ")
    field = ".".join(str(part) for part in location[:1])
    return f"{field}: {text}" if field else text


def _auth_fault(value: Any, error: Exception) -> str:
    known = ", ".join(sorted(AuthSerializer.auth_serializers))
    if not isinstance(value, Mapping) or value.get("auth_type") not in AuthSerializer.auth_serializers:
        return f"needs an auth_type, one of {known}"
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, ValidationError):
        chain = chain.__cause__ or chain.__context__
    if chain is None:
        return f"is not valid for auth_type {value['auth_type']}"
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in chain.errors(include_input=False)
    )


_ALWAYS = ("name", "call_template_type", "url", "auth")
_NOT_IN_PLAN = ("name", "tools", "discovery_url", "allowed_communication_protocols")
_FREE_FORM = (
    "message",
    "message_filter",
    "end_filter",
    "error_filter",
    "result",
    "on_connect",
    "before",
    "auto_reply",
    "on_close",
    "discovery_message",
    "tools",
)
_DEFAULTS = {
    name: field.get_default(call_default_factory=True)
    for name, field in WebSocketCallTemplate.model_fields.items()
    if name not in _ALWAYS
}
