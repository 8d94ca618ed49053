"""The compiled form of a call template: all that can be known of a call before its arguments are.

A plan is immutable, knows nothing of pydantic and holds compiled templates, filters and steps only. It is built when
the call template is validated, so that a mistake in any part of it is a validation error, and cached by the value of
the template (`call_template`), because the stock `UtcpClient` validates an equal template anew for every call.

A plan has two halves. What belongs to the *connection* (`ConnectionSettings`) decides, together with URL, headers,
credentials and session, which calls may share one (`Endpoint`); what belongs to the *exchange* is the rest.

What is identical is decided before a connection is opened, what is sent in the handshake is not: captures and the time
may differ by then. So an `Endpoint` has captures and `{{now}}` as they are written, and `Plan.handshake` puts them in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .._net.security import check_header, check_subprotocol, check_websocket_url, display_url
from .encoders import ABSENT, json_text, text_of
from .extraction import Extraction
from .filters import Filter
from .messages import MessageTemplate
from .moments import Heartbeat, MessageHandler, ResponseHandler, Resume, ResumeChange, SendEach, Step, is_in
from .placeholders import RenderContext
from .records import Incoming, Outgoing
from .urls import UrlTemplate
from .values import CompiledTemplate, Template

__all__ = [
    "AS_WRITTEN",
    "ConnectionSettings",
    "Endpoint",
    "Handshake",
    "Heartbeat",
    "MessageHandler",
    "Path",
    "Plan",
    "ResponseHandler",
    "Resume",
    "ResumeChange",
    "SendEach",
    "Step",
    "header_value",
    "subprotocol",
]

ResponseFormat = Literal["json", "text", "raw"]
Path = tuple[str | int, ...]

AS_WRITTEN = frozenset({"captured.", "now"})
"""The kinds of placeholders that endpoints are compared without."""


@dataclass(frozen=True, slots=True, eq=False)
class ConnectionSettings:
    """Settings for opening, keeping and closing a connection. Those with the same `key` are equal."""

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
    """The identity of a group of connections: calls with equal endpoints may share them.

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
    """The rendered values of one handshake. Its `repr` shows nothing, as all of it may be secret."""

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
        response_timeout: Seconds as given; None: the default, which differs for calls and streams.
        end_on_close: Value as given; None: the default (`ends_on_close`).
        arguments: The arguments without which the call cannot be made, as written.
        session_arguments: Arguments that are needed on an open session, too.
        consumed: The arguments that go into URL and headers, and so not into a request without template.
        uses_call_id: True if request, filters or results depend on the call's number.
        depends_on_connection: True if they depend on anything that only the connection knows, or on the time.
        compares_times: True if its filters or results depend on the time, which is that of the request.
        correlation: Place at which each message of the exchange has a value of the call, and that value; None: unknown.
        knows_its_answers: True if no message that is another call's can be taken for one of this call's.
        opens_its_own: True if a stream resumes with this plan that opens its connection by steps of `resume`.
        captures: True if steps of the call may capture something.
        farewell: The messages of `on_end` on a shared connection, unless one of them holds a value of the call's own.
        parting: The message of `on_end` on a shared connection, if that is all of it and no other call's is the same.
        sends_each: True if the request has a step with `send_each`.
        is_filtered: True if a message may mean anything else than a response.
        may_have_envelopes: True if a UTCP envelope is read as one.
        joins_text: True if responses are joined as they came, and decoded as a whole.
        numbers_calls: True if each call takes a number of its connection.
        is_single: True if a call is one message and one response, and nothing else but `parting`.
        sole_message: The message of the request, if the request is one step.
        takes_messages_as_they_are: True if a message that is not a UTCP envelope is a response just as it was received.
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
    depends_on_connection: bool
    compares_times: bool
    correlation: tuple[Path, Template] | None
    knows_its_answers: bool
    opens_its_own: bool = False
    connection_arguments: frozenset[str] = frozenset()
    _connection_uses_all_arguments: bool = False
    _connection_uses_tool_name: bool = False
    _try_outs: tuple[Callable[[RenderContext], object], ...] = ()
    _fixed_headers: tuple[tuple[str, str], ...] | None = None
    _fixed_subprotocols: tuple[str, ...] | None = None
    _is_fixed: bool = False
    captures: bool = field(init=False)
    farewell: tuple[MessageTemplate, ...] = field(init=False)
    parting: MessageTemplate | None = field(init=False)
    sends_each: bool = field(init=False)
    is_filtered: bool = field(init=False)
    may_have_envelopes: bool = field(init=False)
    joins_text: bool = field(init=False)
    numbers_calls: bool = field(init=False)
    is_single: bool = field(init=False)
    sole_message: MessageTemplate | None = field(init=False)
    takes_messages_as_they_are: bool = field(init=False)
    # The endpoint of the manual that asked last, where it does not depend on the call. One, so that it cannot grow.
    _last_endpoint: list[Endpoint] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        # Asked for at every call.
        request = self.request
        captures = self.before or self.on_end or self.on_response or self.resume or len(request) > 1
        object.__setattr__(self, "captures", bool(captures))
        farewell = tuple([step.send for step in self.on_end if step.send is not None])
        is_numbered = any("uuid" in send.kinds or send.uses_call_id for send in farewell)
        is_own = is_numbered or any(send.captures for send in farewell)
        object.__setattr__(self, "farewell", farewell if self.settings.multiplex and not is_own else ())
        is_alone = len(self.on_end) == 1 and self.on_end[0].only_sends and not self.on_end[0].always
        is_parting = is_alone and is_numbered and not farewell[0].capture_names and self.settings.multiplex
        object.__setattr__(self, "parting", farewell[0] if is_parting else None)
        object.__setattr__(self, "sole_message", request[0].send if len(request) == 1 else None)
        object.__setattr__(self, "sends_each", any(step.send_each is not None for step in request))
        filters = self.error_filter or self.last_filter or self.end_filter or self.message_filter
        has_plain_results = self.result is None and self.response_format != "raw"
        special = filters or self.result or self.on_response or self.spread or self.settings.incoming
        as_they_are = not special and self.response_format in (None, "raw")
        joins_text = self.collect == "join" and self.result is None and self.response_format == "text"
        object.__setattr__(self, "is_filtered", filters is not None)
        object.__setattr__(self, "may_have_envelopes", has_plain_results)
        object.__setattr__(self, "joins_text", joins_text)
        object.__setattr__(self, "numbers_calls", bool(self.uses_call_id or self.on_end or self.on_response))
        object.__setattr__(self, "takes_messages_as_they_are", as_they_are)
        is_one = len(request) == 1 and request[0].only_sends and self.expected_responses in (None, 1)
        has_steps = self.before or self.on_response or (self.on_end and self.parting is None)
        more = has_steps or self.session or self.spread or self.compares_times
        object.__setattr__(self, "is_single", is_one and not more and self.collect != "join")

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    def __repr__(self) -> str:
        return f"<Plan for {display_url(str(self.url.source))}>"

    # Arguments

    def missing_arguments(self, arguments: Mapping[str, Any], *, on_open_session: bool = False) -> frozenset[str]:
        """The arguments that are needed and not there.

        Args:
            on_open_session: True to ask only for what the call itself needs, as its session is connected already.
        """
        needed = self.session_arguments if on_open_session else self.arguments
        missing = needed - arguments.keys()
        if not missing:
            return missing
        # One with dots may be a part of an object.
        return frozenset(name for name in missing if not is_in(name, arguments))

    def try_out(self, context: RenderContext) -> None:
        """Find out, before anything is opened, if the call's arguments can be put where the template has them.

        All of the call is tried except URL and headers (`endpoint`) and what the request's steps send: the sender of
        that encodes or binds it anyway.

        Raises:
            ValueError: A value cannot be put in.
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
        """The endpoint of the call.

        Raises:
            ValueError: A value cannot be put into URL or headers.
        """
        if self._is_fixed and self._last_endpoint and self._last_endpoint[0].manual == manual:
            return self._last_endpoint[0]
        endpoint = Endpoint(
            manual=manual,
            url=self.url.render(context, as_written=AS_WRITTEN),
            headers=self._rendered_headers(context, as_written=AS_WRITTEN),
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
        """The values of the handshake.

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
                made.append((name, header_value(name, value, "headers")))
        made += [(name, header_value(name, value, "header_fields")) for name, value in given.items()]
        return tuple(made)

    def _rendered_subprotocols(self, context: RenderContext) -> tuple[str, ...]:
        if self._fixed_subprotocols is not None:
            return self._fixed_subprotocols
        values = [template.render(context) for template in self.settings.subprotocols]
        return tuple(subprotocol(text_of(value)) for value in values if value is not ABSENT)

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
            depends_on_connection=True,
            compares_times=False,
            correlation=None,
            knows_its_answers=False,
            _try_outs=(),
            _last_endpoint=[],
        )

    def resumed(self, resume: Resume, captured: Collection[str]) -> Plan:
        """The plan of what comes after a loss: the template's steps, or those of `resume`.

        They are all taken or none: if one of them needs a captured value that is missing, everything is done anew.
        """
        own = (resume.prepare, resume.on_connect, resume.before, resume.request)
        given = [steps for steps in own if steps is not None]
        known = set(captured)
        for step in (step for steps in given for step in steps):
            if not step.captures <= known:
                return self
            known |= step.makes
        settings = self.settings
        return replace(
            self,
            settings=replace(
                settings,
                prepare=settings.prepare if resume.prepare is None else resume.prepare,
                on_connect=settings.on_connect if resume.on_connect is None else resume.on_connect,
            ),
            before=self.before if resume.before is None else resume.before,
            request=self.request if resume.request is None else resume.request,
            opens_its_own=resume.prepare is not None or resume.on_connect is not None,
        )

    @property
    def listen_only(self) -> bool:
        """True if there is no request."""
        return not self.request

    def expected(self, *, streaming: bool) -> int | None:
        """The number of responses of the exchange; None: as many as come before its end."""
        if self.expected_responses is None:
            return None if streaming else 1
        return None if self.expected_responses < 0 else self.expected_responses

    def ends_on_close(self, *, streaming: bool) -> Literal["normal", "any", "never"]:
        """The closes by the server that end an open-ended exchange without an error."""
        if self.end_on_close is not None:
            return self.end_on_close
        return "never" if streaming and self.resume is not None else "normal"

    @property
    def is_subscription(self) -> bool:
        """True if the template declares an open end that no message tells, so that `response_timeout` is a duration."""
        return self.expected_responses == -1 and self.last_filter is None and self.end_filter is None


def header_value(name: str, value: Any, field_name: str) -> str:
    text = text_of(value)
    check_header(name, text, field_name)
    return text


def subprotocol(text: str, where: str = "protocol") -> str:
    check_subprotocol(text, where)
    return text
