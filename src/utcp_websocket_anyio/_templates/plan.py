"""The compiled form of a call template: all that can be known of a call before its arguments are.

A plan is immutable, knows nothing of pydantic and holds compiled templates, filters and steps only. It is built when
the call template is validated, so that a mistake in any part of it is a validation error, and cached by the value of
the template (`call_template`), because the stock `UtcpClient` validates an equal template anew for every call.

Compiling visits the fields moment by moment: `prepare`, the handshake, `on_connect`, what happens at any time
(`heartbeat`, `on_message`), `before`, the request, the responses, the ends. On the way it keeps two accounts. *What has
been captured*: each moment may use what those before it capture, so that a capture that can never have a value is an
error now. *Whose arguments*: those of the connection's moments belong to the endpoint, as those of URL and headers do;
all others are the call's.

A plan has two halves. What belongs to the *connection* (`ConnectionSettings`) decides, together with URL, headers,
credentials and session, which calls may share one (`Endpoint`); what belongs to the *exchange* is the rest.

What is identical is decided before a connection is opened, what is sent in the handshake is not: captures and the time
may differ by then. So an `Endpoint` has captures and `{{now}}` as they are written, and `Plan.handshake` puts them in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .._net.auth import credential_key
from .._net.security import check_header, check_subprotocol, check_websocket_url, display_url
from .compute import Computation, compile_computation
from .encoders import ABSENT, json_text, text_of
from .extraction import Extraction, compile_extraction
from .fields import fields_of
from .filters import Filter, compile_filter
from .http_step import HttpTemplate, compile_http
from .messages import DECODERS, ArgumentsMessage, MessageTemplate, compile_message
from .placeholders import DISCOVERY, RenderContext, Scope
from .received import Message
from .records import Incoming, Outgoing, compile_incoming, compile_outgoing
from .shapes import check_members
from .urls import UrlTemplate, compile_url
from .values import CompiledTemplate, Template, compile_number, compile_template

__all__ = [
    "CombinationError",
    "ConnectionSettings",
    "Endpoint",
    "Handshake",
    "Heartbeat",
    "MessageHandler",
    "Plan",
    "ResponseHandler",
    "Resume",
    "ResumeChange",
    "SendEach",
    "Step",
    "compile_plan",
]

ResponseFormat = Literal["json", "text", "raw"]
Path = tuple[str | int, ...]
Captures = Mapping[str, Extraction]

_AS_WRITTEN = frozenset({"captured.", "now"})
_CLOSE_CODES = range(1000, 5000)


class CombinationError(ValueError):
    """Fields that are each fine do not fit together."""


@dataclass(frozen=True, slots=True)
class SendEach:
    """Many messages of a request: one for each item.

    Attributes:
        of: Gives a list, bytes, text (read by `encoding`), or anything that can be iterated.
        message: For each `{{item}}`.
        every: Seconds from one to the next; None: as fast as they go.
        chunk: Bytes of a piece, where `of` gives bytes; None: all in one.
        encoding: How text is read as bytes (`messages.DECODERS`); None: text is not cut.
    """

    of: Template
    message: MessageTemplate
    every: float | Template | None
    chunk: int | Template | None
    encoding: str | None

    def decode(self, text: str) -> bytes:
        """The bytes of a text.

        Raises:
            ValueError: It is not what the encoding says.
        """
        encoding = self.encoding or "utf-8"
        try:
            return DECODERS[encoding](text)
        except ValueError:
            pass
        raise ValueError(f"{self.of.where}: is not valid {encoding}")

    def chunk_size(self, context: RenderContext) -> int | None:
        """Bytes of a piece.

        Raises:
            ValueError: The template gives something else than a positive integer.
        """
        size = self.chunk.render(context) if isinstance(self.chunk, Template) else self.chunk
        if isinstance(size, str) and size.isascii() and size.isdigit() and len(size) < 19:
            size = int(size)
        if size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
            return size
        raise ValueError(f"{self.of.where.removesuffix('of')}chunk: must come out as a positive integer")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of a moment. Its parts are done in the order in which they are listed.

    Attributes:
        where: Its place in the call template, for errors: `on_connect[1]`.
        always: Of a step in `on_end`: also done after the expected number of responses.
        parts: All templates in it.
        arguments: The arguments that it needs, as in `CompiledTemplate`.
        captures: The captured values that it needs and does not make itself.
        makes: The names of what it computes and captures.
    """

    where: str
    compute: Computation | None = None
    http: HttpTemplate | None = None
    send: MessageTemplate | None = None
    send_each: SendEach | None = None
    reject: Filter | None = None
    expect: Filter | None = None
    capture: Captures = field(default_factory=dict)
    always: bool = False
    parts: tuple[CompiledTemplate, ...] = field(init=False)
    arguments: frozenset[str] = field(init=False)
    captures: frozenset[str] = field(init=False)
    makes: frozenset[str] = field(init=False)
    uses_call_id: bool = field(init=False)

    def __post_init__(self) -> None:
        each = self.send_each
        given = (
            self.compute, self.http, self.send,
            *(() if each is None else (each.of, each.message, each.every, each.chunk)),
            self.reject, self.expect, *self.capture.values(),
        )  # fmt: skip
        parts = tuple(part for part in given if isinstance(part, CompiledTemplate))
        computed = frozenset(() if self.compute is None else self.compute.names)
        own = frozenset(() if self.compute is None else self.compute.captures)
        later = frozenset[str]().union(*(part.captures for part in parts if part is not self.compute))
        for name, value in (
            ("parts", parts),
            ("arguments", frozenset[str]().union(*(part.arguments for part in parts))),
            ("captures", own | _not_in(later, computed)),
            ("makes", computed | frozenset(self.capture)),
            ("uses_call_id", any(part.uses_call_id for part in parts)),
        ):
            object.__setattr__(self, name, value)

    @property
    def when(self) -> Literal["left", "always"]:
        """When a step of `on_end` is done."""
        return "always" if self.always else "left"

    @property
    def sends(self) -> bool:
        """True if it sends messages on the connection."""
        return self.send is not None or self.send_each is not None


@dataclass(frozen=True, slots=True)
class Resume:
    """How a stream goes on after its connection was lost.

    Attributes:
        attempts: Failures in a row after which the last error is raised.
        prepare: In place of the template's own; None: those. Likewise `on_connect`, `before` and `request`.
        not_after: Ranges of close codes, first and last, after which nothing is resumed.
        gap_item: What is yielded in place of what was missed; rendered with `{{gap}}`.
        drops_captures: True if all is done anew, with nothing kept of what was captured.
    """

    attempts: int = 5
    prepare: tuple[Step, ...] | None = None
    on_connect: tuple[Step, ...] | None = None
    before: tuple[Step, ...] | None = None
    request: tuple[Step, ...] | None = None
    not_after: tuple[tuple[int, int], ...] = ()
    gap_item: Template | None = None
    drops_captures: bool = False

    def is_final(self, code: int) -> bool:
        """True if nothing is resumed after a close with this code."""
        return any(first <= code <= last for first, last in self.not_after)


@dataclass(frozen=True, slots=True)
class ResumeChange:
    """What `resume` of a message handler says of the streams that it moves.

    Attributes:
        given: The members that it has; None where it is `true`.
        members: Their compiled values.
    """

    given: frozenset[str] | None
    members: Resume

    def applied_to(self, resume: Resume | None) -> Resume | None:
        """How a stream moves, given its template's own `resume`; None: it cannot."""
        if self.given is None:
            return resume
        base = resume or Resume()
        if not self.given:
            return Resume(base.attempts, not_after=base.not_after, gap_item=base.gap_item, drops_captures=True)
        return Resume(
            **{
                name: getattr(self.members if name in self.given else base, name)
                for name in ("attempts", "prepare", "on_connect", "before", "request", "not_after", "gap_item")
            }
        )


@dataclass(frozen=True, slots=True, eq=False)
class MessageHandler:
    """What is done with a message that matches, at any time.

    Attributes:
        deliver: True if calls see the message, too.
        resume: How its streams move to a new connection; None: they do not.
    """

    where: str
    match: Filter
    capture: Captures
    compute: Computation | None
    reply: MessageTemplate | None
    deliver: bool
    retire: bool
    resume: ResumeChange | None
    lost: bool

    def matches(self, message: Message, context: RenderContext) -> bool:
        """True if the message is meant; never as long as something that `match` names was not captured.

        Raises:
            ResponseError: As `Filter.matches`.
        """
        captures = self.match.captures
        if captures and not all(_is_in(name, context.captured) for name in captures):
            return False
        return self.match.matches(message, context)

    @property
    def parts(self) -> tuple[CompiledTemplate, ...]:
        """All templates in it."""
        given = (self.match, *self.capture.values(), self.compute, self.reply)
        return tuple(part for part in given if part is not None)


@dataclass(frozen=True, slots=True)
class ResponseHandler:
    """What is done with each response: something is remembered of it, and it is acknowledged."""

    capture: Captures
    send: MessageTemplate | None

    @property
    def parts(self) -> tuple[CompiledTemplate, ...]:
        """All templates in it."""
        return (*self.capture.values(), *(() if self.send is None else (self.send,)))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A message by the clock, or a watchdog. Times are seconds, or templates that give them."""

    where: str
    compute: Computation | None
    send: MessageTemplate | None
    every: float | Template | None
    expect: Filter | None
    timeout: float | Template | None
    jitter: bool
    capture: Captures
    silence: float | Template | None

    @property
    def parts(self) -> tuple[CompiledTemplate, ...]:
        """All templates in it."""
        given = (
            self.compute, self.send, self.every, self.expect, self.timeout, *self.capture.values(), self.silence
        )  # fmt: skip
        return tuple(part for part in given if isinstance(part, CompiledTemplate))


@dataclass(frozen=True, slots=True, eq=False)
class ConnectionSettings:
    """How a connection is opened, kept and closed. Those with the same `key` are equal."""

    key: str
    subprotocols: tuple[Template, ...]
    compression: bool
    compression_threshold: int
    max_message_size: int
    ping_interval: float | None
    pong_timeout: float
    prepare: tuple[Step, ...]
    on_connect: tuple[Step, ...]
    heartbeat: Heartbeat | None
    on_message: tuple[MessageHandler, ...]
    on_close: tuple[Step, ...]
    incoming: Incoming | None
    outgoing: Outgoing | None
    multiplex: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConnectionSettings) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<ConnectionSettings {self.key[:8]}>"

    @property
    def parts(self) -> tuple[CompiledTemplate, ...]:
        """All templates in it."""
        found: list[CompiledTemplate] = list(self.subprotocols)
        for step in (*self.prepare, *self.on_connect, *self.on_close):
            found += step.parts
        for handler in self.on_message:
            found += handler.parts
        if self.heartbeat is not None:
            found += self.heartbeat.parts
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What calls must have in common to share connections.

    URL and headers have captures and `{{now}}` as they are written: to compare, not to use (`Plan.handshake`). In a
    session only manual and session count.

    Attributes:
        arguments: The values of the arguments in the connection's moments.
        session: The session's name, if there is one.
        single_use: True if URL or headers hold the call's own `{{uuid}}`: no other call can ever use the connection.
    """

    manual: str
    url: str
    headers: tuple[tuple[str, str], ...]
    credentials: Hashable
    settings: ConnectionSettings
    arguments: Hashable = ()
    session: str | None = None
    single_use: bool = field(default=False, compare=False)
    display_url: str = field(init=False, compare=False)
    _hash: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "display_url", display_url(self.url))
        # Looked up at every call.
        object.__setattr__(self, "_hash", hash(self._identity()))

    def _identity(self) -> Hashable:
        if self.session is not None:
            return self.manual, self.session
        return self.manual, self.url, self.headers, self.credentials, self.settings, self.arguments

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Endpoint) and self._hash == other._hash and self._identity() == other._identity()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<Endpoint {self.display_url} of {self.manual}>"


@dataclass(frozen=True, slots=True)
class Handshake:
    """What one handshake is made with. Its `repr` shows nothing, as all of it may be secret."""

    url: str
    headers: tuple[tuple[str, str], ...]
    subprotocols: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Handshake with {display_url(self.url)}>"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One call template, compiled.

    Attributes:
        header_fields: Arguments that are sent as headers.
        request: The steps of the request; one with all arguments where the template has none, none for `listen_only`.
        response_timeout: As given; None where it is not, which differs for calls and streams.
        end_on_close: As given; None where it is not (`ends_on_close`).
        arguments: The arguments without which the call cannot be made, as written.
        session_arguments: Those of them that are needed on an open session, too.
        consumed: The arguments that go into URL and headers, and so not into a request without template.
        uses_call_id: True if request, filters or results depend on the call's number.
        correlation: Where each message of the exchange has which value of the call; None: unknown.
        knows_its_answers: True if no message that is another call's can be taken for one of this call's.
    """

    settings: ConnectionSettings
    url: UrlTemplate
    headers: tuple[tuple[str, Template], ...]
    header_fields: tuple[str, ...]
    auth: Any
    credentials: Hashable
    connection_timeout: float
    reconnect_attempts: int
    max_connections: int
    keep_alive_timeout: float | None
    timeout: float
    session: Template | None
    before: tuple[Step, ...]
    request: tuple[Step, ...]
    on_response: ResponseHandler | None
    on_end: tuple[Step, ...]
    resume: Resume | None
    message_filter: Filter | None
    last_filter: Filter | None
    end_filter: Filter | None
    error_filter: Filter | None
    error_result: Extraction | None
    result: Extraction | None
    response_format: ResponseFormat | None
    expected_responses: int | None
    collect: Literal["list", "join", "last"]
    spread: bool
    response_timeout: float | Template | None
    idle_timeout: float | None
    end_on_close: Literal["normal", "any", "never"] | None
    close_after_response: bool
    discovery_message: MessageTemplate
    arguments: frozenset[str]
    session_arguments: frozenset[str]
    consumed: frozenset[str]
    uses_call_id: bool
    correlation: tuple[Path, Template] | None
    knows_its_answers: bool
    connection_arguments: frozenset[str] = frozenset()
    _connection_uses_all_arguments: bool = False
    _connection_uses_tool_name: bool = False
    _try_outs: tuple[Callable[[RenderContext], object], ...] = ()
    _fixed_headers: tuple[tuple[str, str], ...] | None = None
    _fixed_subprotocols: tuple[str, ...] | None = None
    _is_fixed: bool = False
    # The endpoint of the manual that asked last, where it does not depend on the call. One, so that it cannot grow.
    _last_endpoint: list[Endpoint] = field(default_factory=list, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    def __repr__(self) -> str:
        return f"<Plan for {display_url(str(self.url.source))}>"

    # Arguments

    def missing_arguments(self, arguments: Mapping[str, Any], *, on_open_session: bool = False) -> frozenset[str]:
        """The arguments that are needed and not there.

        Args:
            on_open_session: Only what the call itself needs counts, as its session has a connection already.
        """
        needed = self.session_arguments if on_open_session else self.arguments
        missing = needed - arguments.keys()
        if not missing:
            return missing
        # One with dots may be a part of an object.
        return frozenset(name for name in missing if not _is_in(name, arguments))

    def try_out(self, context: RenderContext) -> None:
        """Find out, before anything is opened, if the call's arguments can be put where the template has them.

        All of the call is tried except URL and headers (`endpoint`) and what the request's steps send: whoever sends
        that encodes or binds it anyway.

        Raises:
            ValueError: One cannot.
        """
        for try_out in self._try_outs:
            try_out(context)

    # The connection

    def session_of(self, context: RenderContext) -> str | None:
        """The name of the call's session; None if it has none."""
        if self.session is None:
            return None
        try:
            value = self.session.render(context)
        except ValueError as error:
            # MissingArgumentError: a missing one means none.
            if not hasattr(error, "names"):
                raise
            return None
        return None if value is ABSENT or value is None else text_of(value) or None

    def endpoint(self, context: RenderContext, manual: str) -> Endpoint:
        """Where the call goes.

        Raises:
            ValueError: A value cannot be put into URL or headers.
        """
        if self._is_fixed and self._last_endpoint and self._last_endpoint[0].manual == manual:
            return self._last_endpoint[0]
        endpoint = Endpoint(
            manual=manual,
            url=self.url.render(context, as_written=_AS_WRITTEN),
            headers=self._rendered_headers(context, as_written=_AS_WRITTEN),
            credentials=self.credentials,
            settings=self.settings,
            arguments=self._endpoint_arguments(context),
            session=self.session_of(context),
            single_use="uuid" in self.url.kinds or any("uuid" in template.kinds for _, template in self.headers),
        )
        if self._is_fixed:
            self._last_endpoint[:] = [endpoint]
        return endpoint

    def handshake(self, context: RenderContext) -> Handshake:
        """What the handshake is made with.

        Args:
            context: The call's arguments, and what `prepare` has captured.

        Raises:
            WebSocketSecurityError: URL, a header or a subprotocol may not be used.
            ValueError: A value cannot be put in.
        """
        url = self.url.render(context)
        if not self.url.is_static:
            check_websocket_url(url)
        return Handshake(url, self._rendered_headers(context), self._rendered_subprotocols(context))

    def _rendered_headers(
        self, context: RenderContext, *, as_written: frozenset[str] = frozenset()
    ) -> tuple[tuple[str, str], ...]:
        fixed = self._fixed_headers
        if fixed is not None and not self.header_fields:
            return fixed
        given = {name: context.args[name] for name in self.header_fields if context.args.get(name) is not None}
        taken = {name.lower() for name in given}
        made = []
        for name, template in self.headers:
            if name.lower() in taken:
                continue
            if not as_written.isdisjoint(template.kinds):
                made.append((name, str(template.source)))
                continue
            value = template.render(context)
            if value is not ABSENT:
                made.append((name, _header_value(name, value, "headers")))
        made += [(name, _header_value(name, value, "header_fields")) for name, value in given.items()]
        return tuple(made)

    def _rendered_subprotocols(self, context: RenderContext) -> tuple[str, ...]:
        if self._fixed_subprotocols is not None:
            return self._fixed_subprotocols
        values = [template.render(context) for template in self.settings.subprotocols]
        return tuple(_subprotocol(text_of(value)) for value in values if value is not ABSENT)

    def _endpoint_arguments(self, context: RenderContext) -> Hashable:
        names = context.args.keys() if self._connection_uses_all_arguments else self.connection_arguments
        values = tuple((name, json_text(context.args[name])) for name in sorted(names) if name in context.args)
        return (values, context.tool_name) if self._connection_uses_tool_name else values

    # The exchange

    def for_discovery(self, message_filter: Filter) -> Plan:
        """The plan of the exchange that asks the endpoint for its manual, on a connection as calls have.

        Args:
            message_filter: Tells the manual.
        """
        handshake = (self.url, *(template for _, template in self.headers), *self.settings.parts)
        return replace(
            self,
            session=None,
            before=(),
            request=(Step("discovery_message", send=self.discovery_message),),
            on_response=None,
            on_end=(),
            resume=None,
            message_filter=message_filter,
            last_filter=None,
            end_filter=None,
            error_filter=None,
            error_result=None,
            result=None,
            response_format="json",
            expected_responses=1,
            collect="list",
            spread=False,
            response_timeout=None,
            idle_timeout=None,
            arguments=frozenset[str]().union(*(part.arguments for part in handshake)),
            session_arguments=frozenset(),
            uses_call_id=self.discovery_message.uses_call_id,
            correlation=None,
            knows_its_answers=False,
            _try_outs=(),
            _last_endpoint=[],
        )

    @property
    def listen_only(self) -> bool:
        """True if there is no request."""
        return not self.request

    def expected(self, *, streaming: bool) -> int | None:
        """How many responses the exchange has; None: as many as come before its end."""
        if self.expected_responses is None:
            return None if streaming else 1
        return None if self.expected_responses < 0 else self.expected_responses

    def ends_on_close(self, *, streaming: bool) -> Literal["normal", "any", "never"]:
        """Which closes by the server end an open-ended exchange without an error."""
        if self.end_on_close is not None:
            return self.end_on_close
        return "never" if streaming and self.resume is not None else "normal"

    @property
    def takes_messages_as_they_are(self) -> bool:
        """True if a message that is not a UTCP envelope is a response just as it was received."""
        filters = self.error_filter or self.last_filter or self.end_filter or self.message_filter
        special = filters or self.result or self.on_response or self.spread or self.settings.incoming
        return not special and self.response_format in (None, "raw")

    @property
    def is_subscription(self) -> bool:
        """True if the template declares an open end that no message tells, so that `response_timeout` is a duration."""
        return self.expected_responses == -1 and self.last_filter is None and self.end_filter is None


def compile_plan(fields: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> Plan:
    """Compile the fields of a call template.

    Args:
        fields: Every field of the template by name, defaults included, already of the declared types;
            `end_on_close` is None where it was not given.
        variables: The values of ``$name`` and ``${name}``, as `placeholders.Scope` has them.

    Raises:
        ValueError: A field, or a combination of fields, makes no sense. The text starts with the field's name.
    """
    return _Compiler(fields, variables or {}).plan()


class _Compiler:
    """Compiles one template: the moments in the order in which they come, and with them who captures what."""

    def __init__(self, fields: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        self._fields = fields
        self._variables = variables
        self._scope = Scope(variables=variables)

    def plan(self) -> Plan:
        fields = self._fields
        _check_combinations(fields)
        settings = self._settings()
        url = compile_url(fields["url"], "url", self._scope)
        headers = self._headers()
        header_fields = tuple(fields["header_fields"] or ())
        consumed = frozenset(header_fields) | _consumed((url, *(template for _, template in headers)))
        before = self._steps("before")
        request = self._request(consumed)
        on_response = self._on_response()
        on_end = self._steps("on_end")
        resume = _resume(fields["resume"], "resume", self._scope)
        message_filter, last_filter, end_filter, error_filter = filters = [
            None if fields[name] is None else compile_filter(fields[name], name, self._scope)
            for name in ("message_filter", "last_filter", "end_filter", "error_filter")
        ]
        result, error_result = results = [
            None if fields[name] is None else compile_extraction(fields[name], name, self._scope)
            for name in ("result", "error_result")
        ]
        session = None if fields["session"] is None else compile_template(fields["session"], "session", self._scope)
        response_timeout = fields["response_timeout"]
        if response_timeout is not None:
            response_timeout = compile_number(response_timeout, "response_timeout", self._scope)

        answers = [part for part in (*filters, *results) if part is not None]
        if isinstance(response_timeout, Template):
            answers.append(response_timeout)  # type: ignore[arg-type]
        called = [part for step in (*before, *request, *on_end) for part in step.parts]
        called += answers
        if on_response is not None:
            called += on_response.parts
        moved = [handler.resume.members for handler in settings.on_message if handler.resume is not None]
        for step in [step for one in (resume, *moved) for step in _steps_of_resume(one)]:
            called += step.parts
        if resume is not None and resume.gap_item is not None:
            called.append(resume.gap_item)
        handshake: list[CompiledTemplate] = [url, *(template for _, template in headers)]
        connected = settings.parts
        self._check_captures(
            settings=settings,
            handshake=handshake,
            before=before,
            request=request,
            on_response=on_response,
            on_end=on_end,
            resume=resume,
            answers=answers,
        )
        call_captures = _made(before) | _made(request) | frozenset(() if on_response is None else on_response.capture)
        header_kinds = frozenset[str]().union(*(template.kinds for _, template in headers))
        endpoint_names = frozenset[str]().union(*(part.argument_names | part.dollar_names for part in connected))
        # A header that stays as written, for comparing, has its arguments compared here.
        endpoint_names = endpoint_names.union(
            *(
                template.argument_names | template.dollar_names
                for _, template in headers
                if not _AS_WRITTEN.isdisjoint(template.kinds)
            )
        )
        close_after_response = fields["close_after_response"]
        return Plan(
            settings=settings,
            url=url,
            headers=headers,
            header_fields=header_fields,
            auth=fields["auth"],
            credentials=credential_key(fields["auth"]),
            connection_timeout=fields["connection_timeout"],
            reconnect_attempts=fields["reconnect_attempts"],
            max_connections=fields["max_connections"],
            keep_alive_timeout=fields["keep_alive_timeout"],
            timeout=fields["timeout"],
            session=session,
            before=before,
            request=request,
            on_response=on_response,
            on_end=on_end,
            resume=resume,
            message_filter=message_filter,
            last_filter=last_filter,
            end_filter=end_filter,
            error_filter=error_filter,
            error_result=error_result,
            result=result,
            response_format=fields["response_format"],
            expected_responses=fields["expected_responses"],
            collect=fields["collect"],
            spread=fields["spread"],
            response_timeout=response_timeout,
            idle_timeout=fields["idle_timeout"],
            end_on_close=fields["end_on_close"],
            close_after_response=not fields["keep_alive"] if close_after_response is None else close_after_response,
            discovery_message=compile_message(
                fields["discovery_message"], "discovery_message", Scope(DISCOVERY.arguments, variables=self._variables)
            ),
            arguments=frozenset[str]().union(*(part.arguments for part in (*called, *handshake, *connected))),
            session_arguments=frozenset[str]().union(*(part.arguments for part in called)),
            consumed=consumed,
            uses_call_id=any(part.uses_call_id for part in called),
            correlation=_correlation(filters),
            knows_its_answers=_knows_its_answers(filters, before, request, call_captures),
            connection_arguments=frozenset(_roots(endpoint_names)),
            _connection_uses_all_arguments=any("args" in part.kinds for part in connected),
            _connection_uses_tool_name=any("tool_name" in part.kinds for part in connected),
            _try_outs=_try_outs((*before, *request, *on_end), on_response, filters, response_timeout),
            _fixed_headers=_fixed_headers(headers),
            _fixed_subprotocols=(
                tuple(_subprotocol(template.text(_NOBODY)) for template in settings.subprotocols)
                if all(template.is_static for template in settings.subprotocols)
                else None
            ),
            _is_fixed=_AS_WRITTEN.issuperset((url.kinds | header_kinds) - {"constant"})
            and not (header_fields or session or endpoint_names)
            and not any({"args", "tool_name"} & part.kinds for part in connected),
        )

    # The connection

    def _settings(self) -> ConnectionSettings:
        fields = self._fields
        written = {name: fields[name] for name in fields_of("connection")}
        protocol = fields["protocol"]
        offered = [protocol] if isinstance(protocol, str) else protocol or []
        places = ["protocol"] if isinstance(protocol, str) else [f"protocol[{index}]" for index in range(len(offered))]
        subprotocols = tuple(
            compile_template(one, where, self._scope) for one, where in zip(offered, places, strict=True)
        )
        for template in subprotocols:
            if template.is_static:
                _subprotocol(template.text(_NOBODY), template.where)
        return ConnectionSettings(
            key=_digest([written, _variables_in(written, self._variables)]),
            subprotocols=subprotocols,
            compression=fields["compression"] is not None,
            compression_threshold=fields["compression_threshold"],
            max_message_size=fields["max_message_size"],
            ping_interval=fields["ping_interval"],
            pong_timeout=fields["pong_timeout"],
            prepare=self._steps("prepare"),
            on_connect=self._steps("on_connect"),
            heartbeat=self._heartbeat(),
            on_message=tuple(
                self._handler(value, f"on_message[{index}]") for index, value in enumerate(fields["on_message"] or ())
            ),
            on_close=self._steps("on_close"),
            incoming=compile_incoming(fields["incoming"], "incoming", fields["max_message_size"]),
            outgoing=compile_outgoing(fields["outgoing"], "outgoing"),
            multiplex=fields["multiplex"],
        )

    def _headers(self) -> tuple[tuple[str, Template], ...]:
        made = []
        for name, value in (self._fields["headers"] or {}).items():
            template = compile_template(value, f"headers.{name}", self._scope)
            _header_value(name, template.text(_NOBODY) if template.is_static else "", "headers")
            made.append((name, template))
        return tuple(made)

    def _heartbeat(self) -> Heartbeat | None:
        value = self._fields["heartbeat"]
        if value is None:
            return None
        where = "heartbeat"
        check_members(value, "heartbeat", where)
        if "send" not in value and "silence" not in value:
            raise ValueError(f"{where}: needs send (a message) with every (seconds), or silence (seconds), or both")
        if ("send" in value) != ("every" in value):
            raise ValueError(f"{where}: send (a message) and every (seconds) need each other")
        for member, needed in (
            ("expect", "send"), ("timeout", "expect"), ("capture", "expect"), ("jitter", "send"), ("compute", "send")
        ):  # fmt: skip
            if member in value and needed not in value:
                raise ValueError(f"{where}.{member}: needs {needed} as well")
        numbers = {
            name: compile_number(value[name], f"{where}.{name}", self._scope) if name in value else None
            for name in ("every", "timeout", "silence")
        }
        return Heartbeat(
            where=where,
            compute=_optional(compile_computation, value, "compute", where, self._scope),
            send=_optional(compile_message, value, "send", where, self._scope),
            every=numbers["every"],
            expect=_optional(compile_filter, value, "expect", where, self._scope),
            timeout=numbers["timeout"],
            jitter=_flag(value, "jitter", where),
            capture=_capture(value.get("capture"), f"{where}.capture", self._scope),
            silence=numbers["silence"],
        )

    def _handler(self, value: Any, where: str) -> MessageHandler:
        check_members(value, "handler", where)
        if "match" not in value:
            raise ValueError(f"{where}: needs match (a filter); match is missing")
        if len(value) == 1:
            raise ValueError(
                f"{where}: nothing is done with the message; give reply (a message), capture, deliver, retire, resume"
                " or lost as well"
            )
        scope = self._scope.with_message()
        reply = _optional(compile_message, value, "reply", where, scope)
        retire, lost = _flag(value, "retire", where), _flag(value, "lost", where)
        resume = None
        if value.get("resume") not in (None, False):
            given = value["resume"]
            if given is True:
                # Of the streams there, those move whose own template has `resume`.
                resume = ResumeChange(None, Resume())
            else:
                members = _resume(given, f"{where}.resume", scope)
                assert members is not None
                resume = ResumeChange(frozenset(given), members)
        acts = reply is not None or retire or lost or resume is not None
        if "deliver" in value:
            _flag(value, "deliver", where)
        return MessageHandler(
            where=where,
            match=compile_filter(value["match"], f"{where}.match", self._scope),
            capture=_capture(value.get("capture"), f"{where}.capture", scope),
            compute=_optional(compile_computation, value, "compute", where, scope),
            reply=reply,
            deliver=value.get("deliver", not acts),
            retire=retire,
            resume=resume,
            lost=lost,
        )

    # The exchange

    def _steps(self, name: str) -> tuple[Step, ...]:
        return _compile_steps(self._fields[name], name, name, self._scope)

    def _request(self, consumed: frozenset[str]) -> tuple[Step, ...]:
        if self._fields["listen_only"]:
            return ()
        if self._fields["request"] is not None:
            return self._steps("request")
        message = self._fields["message"]
        if message is None:
            return (Step("message", send=ArgumentsMessage("message", consumed)),)
        return (Step("message", send=compile_message(message, "message", self._scope)),)

    def _on_response(self) -> ResponseHandler | None:
        value = self._fields["on_response"]
        if value is None:
            return None
        check_members(value, "response_handler", "on_response")
        if not value:
            raise ValueError("on_response: needs capture, send (a message), or both")
        scope = self._scope.with_message()
        return ResponseHandler(
            capture=_capture(value.get("capture"), "on_response.capture", scope),
            send=_optional(compile_message, value, "send", "on_response", scope),
        )

    def _check_captures(
        self,
        *,
        settings: ConnectionSettings,
        handshake: Sequence[CompiledTemplate],
        before: Sequence[Step],
        request: Sequence[Step],
        on_response: ResponseHandler | None,
        on_end: Sequence[Step],
        resume: Resume | None,
        answers: Sequence[CompiledTemplate],
    ) -> None:
        """Refuse a captured value that nothing captures in time."""
        if self._fields["session"] is not None:
            # Its connection may have been opened, and its values captured, by another tool's template.
            return
        replaced = _steps_of_resume(resume, "prepare", "on_connect")
        handlers = settings.on_message
        anytime = frozenset[str]().union(
            *(frozenset(handler.capture) | _computed(handler.compute) for handler in handlers)
        )
        if settings.heartbeat is not None:
            anytime |= frozenset(settings.heartbeat.capture) | _computed(settings.heartbeat.compute)
        prepared = _made(settings.prepare) | _made(_steps_of_resume(resume, "prepare"))
        connection = prepared | _made(settings.on_connect) | _made(replaced) | anytime | _made(settings.on_close)
        remembered = frozenset(() if on_response is None else on_response.capture)
        again = _made(_steps_of_resume(resume, "before", "request"))
        call = connection | _made(before) | _made(request) | remembered | _made(on_end) | again

        _check_in_order(settings.prepare, frozenset(), connection)
        _check_known(handshake, prepared)
        _check_known(settings.subprotocols, prepared)
        _check_in_order(settings.on_connect, prepared | anytime, connection)
        for handler in handlers:
            own = _computed(handler.compute) | frozenset(handler.capture)
            _check_known(handler.parts, connection | own)
            if handler.resume is not None:
                moved = _steps_of_resume(handler.resume.members)
                _check_known([part for step in moved for part in step.parts], call | _made(moved))
        if settings.heartbeat is not None:
            _check_known(settings.heartbeat.parts, connection)
        _check_known([part for step in settings.on_close for part in step.parts], connection)
        _check_in_order(before, connection, call)
        _check_in_order(request, connection | _made(before) | remembered, call)
        _check_known(answers, call)
        if on_response is not None:
            _check_known(on_response.parts, call)
        _check_known([part for step in on_end for part in step.parts], call)
        _check_known([part for step in _steps_of_resume(resume) for part in step.parts], call)
        if resume is not None and resume.gap_item is not None:
            _check_known([resume.gap_item], call)


_NOBODY = RenderContext({}, "")


# Steps


def _compile_steps(values: Any, where: str, moment: str, scope: Scope) -> tuple[Step, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise ValueError(f"{where}: must be a list of steps")
    return tuple(_step(value, f"{where}[{index}]", moment, scope) for index, value in enumerate(values))


def _step(value: Any, where: str, moment: str, scope: Scope) -> Step:
    check_members(value, "step", where)
    if not value.keys() - {"when"}:
        raise ValueError(f"{where}: a step needs send (a message), expect (a filter), http (a request) or compute")
    ways = [name for name in ("http", "send", "send_each") if name in value]
    if len(ways) > 1:
        raise ValueError(f"{where}: {' and '.join(ways)} exclude each other; write a step for each")
    if "send_each" in value and moment != "request":
        raise ValueError(f"{where}.send_each: only works in request; send what is fixed in steps with send")
    if moment == "prepare" and ("send" in value or ("expect" in value and "http" not in value)):
        raise ValueError(
            f"{where}: there is no connection yet, so prepare takes compute and http only; send and expect belong in"
            " on_connect"
        )
    if "when" in value and (moment != "on_end" or value["when"] not in ("left", "always")):
        raise ValueError(f"{where}.when: works in on_end only, and is 'left' or 'always'")
    for key in ("reject", "capture"):
        if key in value and "expect" not in value and "http" not in value:
            raise ValueError(f"{where}.{key}: works on the message that is waited for; give expect (a filter) as well")
    return Step(
        where=where,
        compute=_optional(compile_computation, value, "compute", where, scope),
        http=_optional(compile_http, value, "http", where, scope),
        send=_optional(compile_message, value, "send", where, scope),
        send_each=_send_each(value["send_each"], f"{where}.send_each", scope) if "send_each" in value else None,
        reject=_optional(compile_filter, value, "reject", where, scope),
        expect=_optional(compile_filter, value, "expect", where, scope),
        capture=_capture(value.get("capture"), f"{where}.capture", scope),
        always=value.get("when") == "always",
    )


def _send_each(value: Any, where: str, scope: Scope) -> SendEach:
    check_members(value, "send_each", where)
    if "of" not in value:
        raise ValueError(f"{where}: needs of (what is sent, such as '{{{{args.chunks}}}}')")
    encoding = value.get("encoding")
    if encoding is not None and (not isinstance(encoding, str) or encoding not in DECODERS):
        raise ValueError(f"{where}.encoding: must be one of {', '.join(DECODERS)}")
    chunk = value.get("chunk")
    if isinstance(chunk, str):
        chunk = compile_template(chunk, f"{where}.chunk", scope)
    elif chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"{where}.chunk: must be a number of bytes, 1 at least")
    return SendEach(
        of=compile_template(value["of"], f"{where}.of", scope),
        message=compile_message(value.get("message", "{{item}}"), f"{where}.message", scope.with_item()),
        every=compile_number(value["every"], f"{where}.every", scope) if "every" in value else None,
        chunk=chunk,
        encoding=encoding,
    )


def _resume(value: Any, where: str, scope: Scope) -> Resume | None:
    if value is None:
        return None
    check_members(value, "resume", where)
    attempts = value.get("attempts", 5)
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise ValueError(f"{where}.attempts: must be an integer, 1 at least")
    steps = {
        name: _compile_steps(value[name], f"{where}.{name}", name, scope) if value.get(name) is not None else None
        for name in ("prepare", "on_connect", "before", "request")
    }
    gap_item = None
    if "gap_item" in value:
        gap_item = compile_template(value["gap_item"], f"{where}.gap_item", scope.with_gap())
    not_after = _codes(value.get("not_after"), where)
    return replace(Resume(attempts=attempts, not_after=not_after, gap_item=gap_item), **steps)  # type: ignore[arg-type]


def _codes(value: Any, where: str) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ()
    ranges = []
    for index, one in enumerate(value if isinstance(value, list) else [None]):
        ends = one if isinstance(one, list) else [one, one]
        if len(ends) != 2 or not all(_is_close_code(code) for code in ends) or ends[0] > ends[1]:
            raise ValueError(
                f"{where}.not_after[{index}]: must be a close code (1000 to 4999), or [first, last], in a list"
            )
        ranges.append((ends[0], ends[1]))
    return tuple(ranges)


def _is_close_code(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _CLOSE_CODES


def _steps_of_resume(
    resume: Resume | None, *moments: Literal["prepare", "on_connect", "before", "request"]
) -> tuple[Step, ...]:
    if resume is None:
        return ()
    return tuple(
        step
        for moment in moments or ("prepare", "on_connect", "before", "request")
        for step in getattr(resume, moment) or ()
    )


def _optional(
    compile_: Callable[[Any, str, Scope], Any], value: Mapping[str, Any], member: str, where: str, scope: Scope
) -> Any:
    return compile_(value[member], f"{where}.{member}", scope) if value.get(member) is not None else None


def _flag(value: Mapping[str, Any], member: str, where: str) -> bool:
    flag = value.get(member, False)
    if not isinstance(flag, bool):
        raise ValueError(f"{where}.{member}: must be true or false")
    return flag


def _capture(value: Any, where: str, scope: Scope) -> dict[str, Extraction]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: must be an object of names and extractions, such as {{'session': {{'path': 'id'}}}}"
        )
    return {name: compile_extraction(extraction, f"{where}.{name}", scope) for name, extraction in value.items()}


# Captures: names that are used, and names that something makes


def _made(steps: Iterable[Step]) -> frozenset[str]:
    return frozenset[str]().union(*(step.makes for step in steps))


def _computed(computation: Computation | None) -> frozenset[str]:
    return frozenset(() if computation is None else computation.names)


def _is_in(name: str, known: Iterable[str] | Mapping[str, Any]) -> bool:
    """True if a name, or the one that it reaches into, is known."""
    return name in known or name.partition(".")[0] in known


def _not_in(names: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if not _is_in(name, known))


def _roots(names: Iterable[str]) -> Iterable[str]:
    """Names, and those that they may reach into."""
    for name in names:
        yield name
        yield name.partition(".")[0]


def _check_known(parts: Iterable[CompiledTemplate], known: frozenset[str]) -> None:
    for part in parts:
        for name in sorted(_not_in(part.capture_names, known)):
            there = f"captured are {', '.join(sorted(known))}" if known else "nothing is captured here"
            raise CombinationError(f"{part.where}: {{{{captured.{name}}}}} is not captured by any step; {there}")


def _check_in_order(steps: Iterable[Step], known: frozenset[str], at_all: frozenset[str]) -> None:
    """Each step may use what those before it make; an optional one may be made later, or in the round before."""
    for step in steps:
        for part in step.parts:
            _check_known([part], at_all)
        missing = sorted(_not_in(step.captures, known))
        if missing:
            raise CombinationError(
                f"{step.where}: {{{{captured.{missing[0]}}}}} is not captured before this step; captured before are"
                f" {', '.join(sorted(known)) or 'none'}"
            )
        known |= step.makes


# What the call can be sure of


def _correlation(filters: Iterable[Filter | None]) -> tuple[Path, Template] | None:
    """What the filters of an exchange agree on, if they do."""
    keys = [filter_.key for filter_ in filters if filter_ is not None]
    if not keys or keys[0] is None:
        return None
    path, value = keys[0]
    return (
        keys[0] if all(key is not None and key[0] == path and key[1].source == value.source for key in keys) else None
    )


def _knows_its_answers(
    filters: Sequence[Filter | None], before: Sequence[Step], request: Sequence[Step], captures: frozenset[str]
) -> bool:
    message_filter = filters[0]
    if message_filter is None:
        return False
    tellers = [*filters]
    for step in (*before, *request):
        if step.http is None:
            tellers += [step.expect, step.reject]
    return all(teller is None or teller.names_the_call(captures) for teller in tellers)


def _try_outs(
    steps: Iterable[Step],
    on_response: ResponseHandler | None,
    filters: Iterable[Filter | None],
    response_timeout: float | Template | None,
) -> tuple[Callable[[RenderContext], object], ...]:
    found: list[Callable[[RenderContext], object]] = []
    del response_timeout  # rendered before anything is opened
    for step in steps:
        if step.send is not None and step.send.uses_arguments and not step.where.startswith(("message", "request")):
            found.append(step.send.try_out)
        found += [part.check for part in (step.expect, step.reject) if part is not None and part.takes_arguments]
    if on_response is not None and on_response.send is not None and on_response.send.uses_arguments:
        found.append(on_response.send.try_out)
    found += [part.check for part in filters if part is not None and part.takes_arguments]
    return tuple(found)


# Handshakes


def _consumed(parts: Iterable[CompiledTemplate]) -> frozenset[str]:
    """The arguments that go into URL and headers; of one that reaches into an object, the object stays."""
    return frozenset[str]().union(*(part.argument_names | part.dollar_names for part in parts))


def _fixed_headers(headers: Sequence[tuple[str, Template]]) -> tuple[tuple[str, str], ...] | None:
    if not all(template.is_static for _, template in headers):
        return None
    return tuple((name, template.text(_NOBODY)) for name, template in headers)


def _header_value(name: str, value: Any, field_name: str) -> str:
    text = text_of(value)
    check_header(name, text, field_name)
    return text


def _subprotocol(text: str, where: str = "protocol") -> str:
    check_subprotocol(text, where)
    return text


def _digest(value: Any) -> str:
    """A key that shows nothing of the value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=20).hexdigest()


def _variables_in(value: Any, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables that occur in a value, with theirs."""
    if not variables:
        return []
    text = json.dumps(value)
    names = set(re.findall(r"\$\{?([a-zA-Z0-9_]+)", text))
    return sorted((name, variables[name]) for name in names & variables.keys())


def _check_combinations(fields: Mapping[str, Any]) -> None:
    sends = [
        name
        for name, is_given in (
            ("message", fields["message"] is not None),
            ("request", fields["request"] is not None),
            ("listen_only", fields["listen_only"]),
        )
        if is_given
    ]
    if "listen_only" in sends and "message" in sends:
        raise CombinationError("listen_only: no request is sent, so leave message out; send it as a step in before")
    if len(sends) > 1:
        raise CombinationError(f"{sends[-1]}: give only one of {' and '.join(sends)}, as each says what the request is")
    sends_nothing = fields["listen_only"] or fields["request"] == []
    in_session = fields["session"] is not None
    if fields["multiplex"]:
        if fields["message_filter"] is None and fields["expected_responses"] != 0:
            raise CombinationError(
                "multiplex: concurrent calls on one connection are told apart by message_filter; give one that"
                " matches only this call's responses, such as {'id': '{{call_id}}'}"
            )
        if not fields["keep_alive"]:
            raise CombinationError("multiplex: a shared connection is kept alive; leave keep_alive at true")
        if fields["close_after_response"] and not in_session:
            raise CombinationError(
                "multiplex: one call cannot close a shared connection; leave close_after_response out"
            )
    if sends_nothing and fields["expected_responses"] == 0 and not in_session and not fields["before"]:
        name = "listen_only" if fields["listen_only"] else "request"
        raise CombinationError(f"{name}: with expected_responses 0 nothing would be sent or received")
