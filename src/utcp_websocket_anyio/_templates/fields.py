"""The fields of a call template: for each, in one place, its type, default and description, and its `Role`.

What else needs to know about fields asks here: which belong to the connection (`fields_of`), in which placeholders
work, which are free JSON, and how a value is put in words. A new field is an entry here, and its behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema
from utcp.data.call_template import CallTemplate

from .shapes import SCHEMAS

__all__ = ["FIELDS", "OLD_NAMES", "CallTemplateFields", "Role", "fields_of"]

Part: TypeAlias = Literal["handshake", "connection", "pool", "call", "discovery"]


@dataclass(frozen=True, slots=True)
class Role:
    """The role of a field of the call template.

    Attributes:
        part: Part it belongs to: the handshake; the connection as long as it lasts (both together with the values of
            URL and headers decide which calls share one); the pool that opens and keeps it; the call; or discovery.
        words: Effect of the field, as a sentence with ``{}`` for its value. Two sentences, for true and false, where
            it is a boolean.
        kind: Way its value is put in words; also its shape, where it is an object (`shapes.SCHEMAS`).
        templated: True if the placeholders of a call work in it.
    """

    part: Part
    words: str | tuple[str, str]
    kind: str = "value"
    templated: bool = False

    @property
    def is_free_form(self) -> bool:
        """True if it is a JSON value of any form, which pydantic does not check."""
        return self.kind in SCHEMAS

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = dict(handler(schema))
        if self.kind not in SCHEMAS:
            return made
        shape = dict(SCHEMAS[self.kind])
        null = {"type": "null"}
        return {"anyOf": [shape, null]} if null in made.get("anyOf", ()) else shape


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(le=2**63 - 1)]
Object = dict[str, Any]
FilterForm = str | dict[str, Any] | list[Any]
OLD_NAMES: Mapping[str, str] = {"auto_reply": "on_message"}
"""Names of fields that have another one now. They are accepted."""

Subprotocol = Annotated[str, Field(min_length=1)]


def _add_old_names(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    for old, new in OLD_NAMES.items():
        properties[old] = {**properties[new], "description": f"An old name of {new}", "deprecated": True}


class CallTemplateFields(CallTemplate):
    """The fields, without behaviour. Times are seconds, sizes bytes."""

    # Nobody validates with this class, so what pydantic needs for that is built for `WebSocketCallTemplate` only.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra=_add_old_names, hide_input_in_errors=True, defer_build=True
    )

    call_template_type: Literal["websocket"] = "websocket"
    url: Annotated[str, Role("handshake", "connect to {}", "url", templated=True)] = Field(
        description="wss:// anywhere, ws:// to loopback or a trusted host; placeholders in path and query"
    )
    message: Annotated[str | Object | list[Any] | None, Role("call", "send {}", "message", templated=True)] = Field(
        default=None, description="Request template; null sends the arguments as a JSON object"
    )
    request: Annotated[list[Object] | None, Role("call", "as the request: {}", "steps", templated=True)] = Field(
        default=None, description="The steps of the request, if it is more than one message"
    )
    listen_only: Annotated[
        bool, Role("call", ("send no request: responses are what the server pushes", "send a request"))
    ] = Field(default=False, description="Send no request: the exchange is what the server pushes")
    response_format: Annotated[Literal["json", "text", "raw"] | None, Role("call", "return responses as {}")] = Field(
        default=None, description="The form of a returned response: JSON, text, or as received"
    )
    protocol: Annotated[
        Subprotocol | Annotated[list[Subprotocol], Field(min_length=1)] | None,
        Role("connection", "insist on a subprotocol: {}", "names", templated=True),
    ] = Field(default=None, description="Subprotocols to offer, in order; the server must pick one")
    keep_alive: Annotated[
        bool, Role("call", ("keep the connection for the next call", "connect anew for each call"))
    ] = Field(default=True, description="Keep the connection open between calls")
    timeout: Annotated[
        Seconds, Role("call", "wait {} for a free connection, and for responses unless response_timeout says otherwise",
                      "seconds")
    ] = Field(default=30.0, description="Default of response_timeout; seconds to wait for a connection")  # fmt: skip
    connection_timeout: Annotated[Seconds, Role("handshake", "the connection and its login may take {}", "seconds")] = (
        Field(default=10.0, description="Seconds for prepare, TCP, TLS, handshake and on_connect together")
    )
    response_timeout: Annotated[
        Seconds | str | None, Role("call", "wait {} from the request to the last response", "seconds", templated=True)
    ] = Field(default=None, description="Seconds from the request to the last response; or a template giving a number")
    idle_timeout: Annotated[Seconds | None, Role("call", "the end is also a silence of {}", "seconds")] = Field(
        default=None, description="Seconds of silence after which an open-ended exchange ends successfully"
    )
    keep_alive_timeout: Annotated[
        Seconds | None, Role("pool", "close a connection that was idle for {}", "seconds")
    ] = Field(default=300.0, description="Seconds after which an idle connection is closed; null: never")
    expected_responses: Annotated[Annotated[Count, Field(ge=-1)] | None, Role("call", "{}", "count")] = Field(
        default=None, description="0: none, -1: open-ended, null: 1 for a call and open-ended for a stream"
    )
    collect: Annotated[Literal["list", "join", "last"], Role("call", "a call returns its responses as {}")] = Field(
        default="list", description="The result of a call with several responses: a list, joined, or only the last"
    )
    spread: Annotated[bool, Role("call", ("each element of a list is a response", "a list is one response"))] = Field(
        default=False, description="A result that is a list counts as that many responses"
    )
    close_after_response: Annotated[
        bool | None, Role("call", ("close the connection after the call", "keep the connection"))
    ] = Field(default=None, description="Close the connection after the exchange; null: unless keep_alive")
    ping_interval: Annotated[Seconds | None, Role("connection", "send a WebSocket ping every {}", "seconds")] = Field(
        default=30.0, description="Seconds between WebSocket pings; null: no pings"
    )
    pong_timeout: Annotated[
        Seconds, Role("connection", "close the connection when its pong takes longer than {}", "seconds")
    ] = Field(default=10.0, description="Seconds to wait for the pong before the connection is closed")
    headers: Annotated[
        dict[str, str] | None, Role("handshake", "send the handshake headers {}", "names", templated=True)
    ] = Field(default=None, description="Handshake headers")
    header_fields: Annotated[
        list[str] | None, Role("handshake", "send the arguments {} as handshake headers", "names")
    ] = Field(default=None, description="Arguments sent as handshake headers")
    message_filter: Annotated[
        FilterForm | None, Role("call", "a response is a message {}; others are skipped", "filter", templated=True)
    ] = Field(default=None, description="The incoming messages that are responses")
    last_filter: Annotated[
        FilterForm | None, Role("call", "the last response is a message {}", "filter", templated=True)
    ] = Field(default=None, description="A response that is also the end")
    end_filter: Annotated[FilterForm | None, Role("call", "the end is a message {}", "filter", templated=True)] = Field(
        default=None, description="A message that ends the exchange and is not a response itself"
    )
    error_filter: Annotated[
        FilterForm | None, Role("call", "the call fails at a message {}", "filter", templated=True)
    ] = Field(default=None, description="A message that fails the call")
    error_result: Annotated[
        Object | list[Object] | None, Role("call", "the text of such an error is {}", "extraction", templated=True)
    ] = Field(default=None, description="The part of an error message that is the error's text")
    end_on_close: Annotated[Literal["normal", "any", "never"], Role("call", "{}", "closes")] = Field(
        default="normal",
        description="The closes by the server that end an open-ended exchange without an error;"
        " with resume, streams take never unless it is given",
    )
    result: Annotated[
        Object | list[Object] | None, Role("call", "return, of each response, {}", "extraction", templated=True)
    ] = Field(default=None, description="The part of each response that is returned")
    multiplex: Annotated[
        bool, Role("connection", ("concurrent calls share one connection", "each call has a connection"))
    ] = Field(default=False, description="Share one connection between concurrent calls")
    session: Annotated[
        str | None, Role("handshake", "calls with the same value of {} share one connection and its state", "text",
                         templated=True)
    ] = Field(default=None, description="Calls with the same value share one connection and its state")  # fmt: skip
    prepare: Annotated[
        list[Object] | None, Role("connection", "before each handshake: {}", "steps", templated=True)
    ] = Field(default=None, description="Steps before each handshake: compute and http")
    on_connect: Annotated[
        list[Object] | None, Role("connection", "after each handshake: {}", "steps", templated=True)
    ] = Field(default=None, description="Steps after each handshake")
    heartbeat: Annotated[Object | None, Role("connection", "{}", "heartbeat", templated=True)] = Field(
        default=None, description="A message by the clock, or a watchdog"
    )
    on_message: Annotated[list[Object] | None, Role("connection", "{}", "handlers", templated=True)] = Field(
        default=None, description="Messages that are handled at any time; auto_reply is an old name of this field"
    )
    before: Annotated[
        list[Object] | None, Role("call", "before each request, on its connection: {}", "steps", templated=True)
    ] = Field(default=None, description="Steps on the exchange's connection before its request")
    on_response: Annotated[Object | None, Role("call", "{}", "response_handler", templated=True)] = Field(
        default=None, description="Values to capture from each response, and its acknowledgement"
    )
    on_end: Annotated[
        list[Object] | None, Role("call", "when the call ends before the server has ended it: {}", "steps",
                                  templated=True)
    ] = Field(default=None, description="Steps when the call ends before the server has ended it")  # fmt: skip
    resume: Annotated[Object | None, Role("call", "{}", "resume", templated=True)] = Field(
        default=None, description="The way a stream continues after its connection was lost"
    )
    on_close: Annotated[list[Object] | None, Role("connection", "before closing: {}", "steps", templated=True)] = Field(
        default=None, description="Steps before the client closes"
    )
    incoming: Annotated[Object | None, Role("connection", "{}", "incoming")] = Field(
        default=None, description="The way a WebSocket message is split into records"
    )
    outgoing: Annotated[Object | None, Role("connection", "{}", "outgoing")] = Field(
        default=None, description="The way each message is framed when it is sent"
    )
    compression: Annotated[Literal["deflate"] | None, Role("connection", "offer compression (permessage-deflate)")] = (
        Field(default=None, description="Offer permessage-deflate (RFC 7692)")
    )
    compression_threshold: Annotated[
        Annotated[Count, Field(ge=0)], Role("connection", "send messages shorter than {} bytes uncompressed")
    ] = Field(default=1024, description="Bytes; shorter outgoing messages are sent uncompressed")
    max_message_size: Annotated[
        Annotated[Count, Field(gt=0)], Role("connection", "refuse messages longer than {} bytes")
    ] = Field(default=16 * 2**20, description="Bytes of the longest incoming message, after decompression")
    max_connections: Annotated[Annotated[Count, Field(ge=1)], Role("pool", "open at most {} connections")] = Field(
        default=10, description="Open connections per endpoint"
    )
    reconnect_attempts: Annotated[
        Annotated[Count, Field(ge=0)], Role("handshake", "try to connect again at most {} times")
    ] = Field(default=2, description="Extra attempts to establish a connection")
    discovery_message: Annotated[
        str | Object, Role("discovery", "ask the endpoint for its tools with {}", "message")
    ] = Field(default_factory=lambda: {"type": "utcp"}, description="The message that asks the endpoint for its manual")
    discovery_url: Annotated[str | None, Role("discovery", "fetch the tools from discovery_url")] = Field(
        default=None, description="The URL to fetch the manual from by GET instead"
    )
    tools: Annotated[list[Object] | None, Role("discovery", "the tools are in the file: {}", "length")] = Field(
        default=None,
        description="The tools of an endpoint that knows nothing of UTCP, in JSON form; Tool objects are converted."
        " A tool without tool_call_template takes this template",
    )


FIELDS: Mapping[str, Role] = {
    name: next(role for role in field.metadata if isinstance(role, Role))
    for name, field in CallTemplateFields.model_fields.items()
    if any(isinstance(role, Role) for role in field.metadata)
}
"""The role of each field of a WebSocket call template."""


def fields_of(*parts: Part) -> tuple[str, ...]:
    """The names of the fields that belong to these parts."""
    return tuple(name for name, role in FIELDS.items() if role.part in parts)
