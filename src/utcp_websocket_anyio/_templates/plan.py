"""The compiled form of a call template: all that can be known of a call before its arguments are.

A plan is immutable, knows nothing of pydantic and holds compiled templates and filters only. It is built when the call
template is validated, so that a mistake in any part of it is a validation error, and cached by the value of the
template, because the stock `UtcpClient` validates an equal template anew for every call.

It has two halves. What belongs to the *connection* (`ConnectionSettings`) decides, together with URL, headers and
credentials, which calls may share one; what belongs to the *exchange* is the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .._net.auth import credential_key
from .._net.security import display_url
from .extraction import Extraction, compile_extraction
from .filters import Filter, compile_filter
from .messages import MessageTemplate, compile_message
from .urls import UrlTemplate, compile_url
from .values import RenderContext, Template, compile_template, render_number

__all__ = ["AutoReply", "ConnectionSettings", "Endpoint", "Plan", "Step", "compile_connection", "compile_plan"]

ResponseFormat = Literal["json", "text", "raw"]
Placeholders = MessageTemplate | Template | UrlTemplate | Filter
Path = tuple[str | int, ...]

_STEP_KEYS = ("send", "expect", "reject", "capture")
_AUTO_REPLY_KEYS = ("match", "reply", "capture")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a conversation: send something, wait for something, or both."""

    send: MessageTemplate | None
    expect: Filter | None
    reject: Filter | None
    capture: Mapping[str, Extraction]

    @property
    def parts(self) -> tuple[MessageTemplate | Filter, ...]:
        return tuple(part for part in (self.send, self.expect, self.reject) if part is not None)


@dataclass(frozen=True, slots=True)
class AutoReply:
    """A message that is answered whenever it comes and shown to nobody."""

    match: Filter
    reply: MessageTemplate
    capture: Mapping[str, Extraction]


@dataclass(frozen=True, slots=True, eq=False)
class ConnectionSettings:
    """How a connection is opened, kept and closed. Equal plans may share connections."""

    key: str
    subprotocol: str | None
    compression: bool
    compression_threshold: int
    max_message_size: int
    ping_interval: float | None
    pong_timeout: float
    on_connect: tuple[Step, ...]
    auto_reply: tuple[AutoReply, ...]
    on_close: tuple[Step, ...]
    multiplex: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConnectionSettings) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What calls must have in common to share connections."""

    manual: str
    url: str
    headers: tuple[tuple[str, str], ...]
    credentials: Hashable
    settings: ConnectionSettings
    display_url: str = field(init=False, compare=False)
    _hash: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "display_url", display_url(self.url))
        # Looked up at every call.
        shared = (self.manual, self.url, self.headers, self.credentials, self.settings)
        object.__setattr__(self, "_hash", hash(shared))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<Endpoint {self.display_url} of {self.manual}>"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One call template, compiled.

    Attributes:
        arguments: The names of the arguments without which the call cannot be made.
        consumed: The arguments that go into URL and headers, and so not into a request without template.
        argument_filters: The filters that arguments go into.
        correlation: Where each message of the exchange has which value of the call; None: unknown.
        endpoints: The endpoint per manual, where no argument is part of it.
    """

    settings: ConnectionSettings
    url: UrlTemplate
    headers: tuple[tuple[str, str], ...]
    header_fields: tuple[str, ...]
    auth: Any
    credentials: Hashable
    connection_timeout: float
    reconnect_attempts: int
    max_connections: int
    timeout: float
    message: MessageTemplate | None
    listen_only: bool
    before: tuple[Step, ...]
    message_filter: Filter | None
    end_filter: Filter | None
    error_filter: Filter | None
    result: Extraction | None
    response_format: ResponseFormat | None
    expected_responses: int | None
    response_timeout: float | Template
    idle_timeout: float | None
    ends_on_any_close: bool
    close_after_response: bool
    discovery_message: MessageTemplate
    arguments: frozenset[str]
    consumed: frozenset[str]
    argument_filters: tuple[Filter, ...]
    uses_call_id: bool
    correlation: tuple[Path, Template] | None
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    def expected(self, *, streaming: bool) -> int | None:
        """How many responses the exchange has; None: as many as come before its end."""
        if self.expected_responses is None:
            return None if streaming else 1
        return None if self.expected_responses < 0 else self.expected_responses

    @property
    def takes_messages_as_they_are(self) -> bool:
        """Whether a message that is no UTCP envelope is a response just as it was received."""
        filters = self.error_filter or self.end_filter or self.message_filter
        return not (filters or self.result or self.response_format not in (None, "raw"))

    @property
    def is_subscription(self) -> bool:
        """Whether the template declares an open end, so that `response_timeout` is a duration."""
        return self.expected_responses == -1


def compile_plan(fields: Mapping[str, Any]) -> Plan:
    """Compile the fields of a call template.

    Args:
        fields: Every field of the template by name, defaults included, already of the declared types.

    Raises:
        ValueError: A field, or a combination of fields, makes no sense. The text starts with the field's name.
    """
    _check_combinations(fields)
    settings = compile_connection(fields)
    before = _steps(fields["before"], "before", arguments=True)
    _check_captures(
        [part for step in before for part in step.parts],
        known=_captured(settings.on_connect, settings.auto_reply, before),
    )
    message = None if fields["message"] is None else compile_message(fields["message"], "message")
    filters = [
        _optional(compile_filter, fields[name], name) for name in ("message_filter", "end_filter", "error_filter")
    ]
    url = compile_url(fields["url"], "url")
    response_timeout = fields["response_timeout"]
    if response_timeout is None:
        response_timeout = fields["timeout"]
    elif isinstance(response_timeout, str):
        response_timeout = compile_template(response_timeout, "response_timeout")
        if response_timeout.is_static:
            response_timeout = render_number(response_timeout, RenderContext({}, ""))

    exchange: list[Placeholders] = [part for part in (message, *filters) if part is not None]
    if isinstance(response_timeout, Template):
        exchange.append(response_timeout)
    _check_captures(exchange, known=_captured(settings.on_connect, settings.auto_reply, before))
    _check_captures([url], known=frozenset())
    steps = [part for step in before for part in step.parts]
    header_fields = tuple(fields["header_fields"] or ())
    close_after_response = fields["close_after_response"]
    return Plan(
        settings=settings,
        url=url,
        headers=tuple((fields["headers"] or {}).items()),
        header_fields=header_fields,
        auth=fields["auth"],
        credentials=credential_key(fields["auth"]),
        connection_timeout=fields["connection_timeout"],
        reconnect_attempts=fields["reconnect_attempts"],
        max_connections=1 if settings.multiplex else fields["max_connections"],
        timeout=fields["timeout"],
        message=message,
        listen_only=fields["listen_only"],
        before=before,
        message_filter=filters[0],
        end_filter=filters[1],
        error_filter=filters[2],
        result=None if fields["result"] is None else compile_extraction(fields["result"], "result"),
        response_format=fields["response_format"],
        expected_responses=fields["expected_responses"],
        response_timeout=response_timeout,
        idle_timeout=fields["idle_timeout"],
        ends_on_any_close=fields["end_on_close"] == "any",
        close_after_response=not fields["keep_alive"] if close_after_response is None else close_after_response,
        arguments=frozenset().union(*(part.arguments for part in (*exchange, *steps, url))),
        consumed=frozenset(header_fields) | url.arguments | url.dollar_names,
        argument_filters=tuple(
            part for part in (*filters, *steps) if isinstance(part, Filter) and part.takes_arguments
        ),
        discovery_message=compile_message(fields["discovery_message"], "discovery_message", arguments=False),
        uses_call_id=any(part.uses_call_id for part in exchange),
        correlation=_correlation(filters),
    )


def compile_connection(fields: Mapping[str, Any]) -> ConnectionSettings:
    """Compile what belongs to the connection: its settings and the conversations at its two ends.

    Raises:
        ValueError: As for `compile_plan`.
    """
    on_connect = _steps(fields["on_connect"], "on_connect", arguments=False)
    on_close = _steps(fields["on_close"], "on_close", arguments=False)
    auto_reply = tuple(
        _auto_reply(value, f"auto_reply[{index}]") for index, value in enumerate(fields["auto_reply"] or ())
    )
    parts: list[Placeholders] = [part for step in (*on_connect, *on_close) for part in step.parts]
    for reply in auto_reply:
        parts += [reply.match, reply.reply]
    _check_captures(parts, known=_captured(on_connect, auto_reply, on_close))
    settings = {
        name: fields[name]
        for name in (
            "protocol",
            "compression",
            "compression_threshold",
            "max_message_size",
            "ping_interval",
            "pong_timeout",
            "on_connect",
            "auto_reply",
            "on_close",
            "multiplex",
        )
    }
    return ConnectionSettings(
        key=json.dumps(settings),
        subprotocol=fields["protocol"],
        compression=fields["compression"] is not None,
        compression_threshold=fields["compression_threshold"],
        max_message_size=fields["max_message_size"],
        ping_interval=fields["ping_interval"],
        pong_timeout=fields["pong_timeout"],
        on_connect=on_connect,
        auto_reply=auto_reply,
        on_close=on_close,
        multiplex=fields["multiplex"],
    )


def _correlation(filters: Iterable[Filter | None]) -> tuple[Path, Template] | None:
    """What the filters of an exchange agree on, if they do."""
    keys = [filter_.key for filter_ in filters if filter_ is not None]
    if not keys or keys[0] is None:
        return None
    path, value = keys[0]
    return (
        keys[0] if all(key is not None and key[0] == path and key[1].source == value.source for key in keys) else None
    )


def _check_combinations(fields: Mapping[str, Any]) -> None:
    if fields["multiplex"]:
        if fields["message_filter"] is None:
            raise ValueError(
                "multiplex: concurrent calls on one connection are told apart by message_filter; give one that"
                " matches only this call's responses, such as {'id': '{{call_id}}'}"
            )
        if not fields["keep_alive"]:
            raise ValueError("multiplex: a shared connection is kept alive; leave keep_alive at true")
        if fields["close_after_response"]:
            raise ValueError("multiplex: one call cannot close a shared connection; leave close_after_response out")
    if fields["listen_only"]:
        if fields["message"] is not None:
            raise ValueError("listen_only: no request is sent, so leave message out; send it as a step in before")
        if fields["expected_responses"] == 0:
            raise ValueError("listen_only: with expected_responses 0 nothing would be sent nor received")


def _steps(values: Sequence[Any] | None, where: str, *, arguments: bool) -> tuple[Step, ...]:
    return tuple(_step(value, f"{where}[{index}]", arguments=arguments) for index, value in enumerate(values or ()))


def _step(value: Any, where: str, *, arguments: bool) -> Step:
    _check_keys(value, where, _STEP_KEYS)
    if "send" not in value and "expect" not in value:
        raise ValueError(f"{where}: a step needs send (a message), expect (a filter), or both")
    for key in ("reject", "capture"):
        if key in value and "expect" not in value:
            raise ValueError(f"{where}.{key}: works on the message that is waited for; give expect (a filter) as well")
    return Step(
        send=compile_message(value["send"], f"{where}.send", arguments=arguments) if "send" in value else None,
        expect=compile_filter(value["expect"], f"{where}.expect", arguments=arguments) if "expect" in value else None,
        reject=compile_filter(value["reject"], f"{where}.reject", arguments=arguments) if "reject" in value else None,
        capture=_capture(value.get("capture"), f"{where}.capture"),
    )


def _auto_reply(value: Any, where: str) -> AutoReply:
    _check_keys(value, where, _AUTO_REPLY_KEYS)
    for key in ("match", "reply"):
        if key not in value:
            raise ValueError(f"{where}: needs match (a filter) and reply (a message); {key} is missing")
    return AutoReply(
        match=compile_filter(value["match"], f"{where}.match", arguments=False),
        reply=compile_message(value["reply"], f"{where}.reply", arguments=False),
        capture=_capture(value.get("capture"), f"{where}.capture"),
    )


def _capture(value: Any, where: str) -> dict[str, Extraction]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: must be an object of names and extractions, such as {{'session': {{'path': 'id'}}}}"
        )
    return {name: compile_extraction(extraction, f"{where}.{name}") for name, extraction in value.items()}


def _check_keys(value: Mapping[str, Any], where: str, keys: Iterable[str]) -> None:
    unknown = sorted(value.keys() - set(keys))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(keys)}")


def _captured(*groups: Iterable[Step | AutoReply]) -> frozenset[str]:
    return frozenset(name for group in groups for member in group for name in member.capture)


def _check_captures(parts: Iterable[Placeholders], *, known: frozenset[str]) -> None:
    for part in parts:
        for name in sorted(part.captures - known):
            there = f"captured are {', '.join(sorted(known))}" if known else "nothing is captured here"
            raise ValueError(f"{part.where}: {{{{captured.{name}}}}} is captured by no step; {there}")


def _optional(compile_: Callable[[Any, str], Filter], value: Any, where: str) -> Filter | None:
    return None if value is None else compile_(value, where)
