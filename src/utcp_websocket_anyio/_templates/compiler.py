"""Compiles the fields of a call template into a plan.

It visits the fields moment by moment: `prepare`, the handshake, `on_connect`, what happens at any time (`heartbeat`,
`on_message`), `before`, the request, the responses, the ends. On the way it keeps two accounts. *What has been
captured*: each moment may use what those before it capture, so that a capture that can never have a value is an error
now. *Whose arguments*: those of the connection's moments belong to the endpoint, as those of URL and headers do; all
others are the call's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._net.auth import credential_key
from .compute import Computation, compile_computation
from .extraction import compile_extraction
from .fields import fields_of
from .filters import Filter, compile_filter
from .messages import ArgumentsMessage, compile_message
from .moments import (
    Heartbeat,
    MessageHandler,
    ResponseHandler,
    Resume,
    ResumeChange,
    Step,
    compile_capture,
    compile_flag,
    compile_optional,
    compile_resume,
    compile_steps,
    not_in,
    steps_of_resume,
)
from .placeholders import DISCOVERY, LATE, RenderContext, Scope
from .plan import AS_WRITTEN, ConnectionSettings, Path, Plan, header_value, subprotocol
from .records import compile_incoming, compile_outgoing
from .shapes import check_members
from .urls import compile_url
from .values import CompiledTemplate, Template, compile_number, compile_template

__all__ = ["CombinationError", "compile_plan"]

_NOBODY = RenderContext({}, "")


class CombinationError(ValueError):
    """Fields that are each fine do not fit together."""


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
    """Compiles one template: the moments in the order in which they come, and with them which of them captures what."""

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
        resume = compile_resume(fields["resume"], "resume", self._scope)
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
            answers.append(response_timeout)  # type: ignore[arg-type]  # only its arguments are asked for
        called = [part for step in (*before, *request, *on_end) for part in step.parts]
        called += answers
        if on_response is not None:
            called += on_response.parts
        moved = [handler.resume.members for handler in settings.on_message if handler.resume is not None]
        for step in [step for one in (resume, *moved) for step in steps_of_resume(one)]:
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
                if not AS_WRITTEN.isdisjoint(template.kinds)
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
            depends_on_connection=any(not part.kinds.isdisjoint(LATE) for part in called),
            compares_times=any("now" in part.kinds for part in answers),
            correlation=_correlation(filters),
            knows_its_answers=_knows_its_answers(filters, before, request, call_captures),
            connection_arguments=frozenset(_roots(endpoint_names)),
            _connection_uses_all_arguments=any("args" in part.kinds for part in connected),
            _connection_uses_tool_name=any("tool_name" in part.kinds for part in connected),
            _try_outs=_try_outs((*before, *request, *on_end), on_response, filters, response_timeout),
            _fixed_headers=_fixed_headers(headers),
            _fixed_subprotocols=(
                tuple(subprotocol(template.text(_NOBODY)) for template in settings.subprotocols)
                if all(template.is_static for template in settings.subprotocols)
                else None
            ),
            _is_fixed=AS_WRITTEN.issuperset((url.kinds | header_kinds) - {"constant"})
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
                subprotocol(template.text(_NOBODY), template.where)
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
            header_value(name, template.text(_NOBODY) if template.is_static else "", "headers")
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
            compute=compile_optional(compile_computation, value, "compute", where, self._scope),
            send=compile_optional(compile_message, value, "send", where, self._scope),
            every=numbers["every"],
            expect=compile_optional(compile_filter, value, "expect", where, self._scope),
            timeout=numbers["timeout"],
            jitter=compile_flag(value, "jitter", where),
            capture=compile_capture(value.get("capture"), f"{where}.capture", self._scope),
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
        reply = compile_optional(compile_message, value, "reply", where, scope)
        retire, lost = compile_flag(value, "retire", where), compile_flag(value, "lost", where)
        resume = None
        if value.get("resume") not in (None, False):
            given = value["resume"]
            if given is True:
                # Of the streams there, those move whose own template has `resume`.
                resume = ResumeChange(None, Resume())
            else:
                members = compile_resume(given, f"{where}.resume", scope)
                assert members is not None
                resume = ResumeChange(frozenset(given), members)
        acts = reply is not None or retire or lost or resume is not None
        if "deliver" in value:
            compile_flag(value, "deliver", where)
        return MessageHandler(
            where=where,
            match=compile_filter(value["match"], f"{where}.match", self._scope),
            capture=compile_capture(value.get("capture"), f"{where}.capture", scope),
            compute=compile_optional(compile_computation, value, "compute", where, scope),
            reply=reply,
            deliver=value.get("deliver", not acts),
            retire=retire,
            resume=resume,
            lost=lost,
        )

    # The exchange

    def _steps(self, name: str) -> tuple[Step, ...]:
        return compile_steps(self._fields[name], name, name, self._scope)

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
            capture=compile_capture(value.get("capture"), "on_response.capture", scope),
            send=compile_optional(compile_message, value, "send", "on_response", scope),
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
        replaced = steps_of_resume(resume, "prepare", "on_connect")
        handlers = settings.on_message
        anytime = frozenset[str]().union(
            *(frozenset(handler.capture) | _computed(handler.compute) for handler in handlers)
        )
        if settings.heartbeat is not None:
            anytime |= frozenset(settings.heartbeat.capture) | _computed(settings.heartbeat.compute)
        prepared = _made(settings.prepare) | _made(steps_of_resume(resume, "prepare"))
        connection = prepared | _made(settings.on_connect) | _made(replaced) | anytime | _made(settings.on_close)
        remembered = frozenset(() if on_response is None else on_response.capture)
        again = _made(steps_of_resume(resume, "before", "request"))
        call = connection | _made(before) | _made(request) | remembered | _made(on_end) | again

        _check_in_order(settings.prepare, frozenset(), connection)
        _check_known(handshake, prepared)
        _check_known(settings.subprotocols, prepared)
        _check_in_order(settings.on_connect, prepared | anytime, connection)
        for handler in handlers:
            own = _computed(handler.compute) | frozenset(handler.capture)
            _check_known(handler.parts, connection | own)
            if handler.resume is not None:
                moved = steps_of_resume(handler.resume.members)
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
        _check_known([part for step in steps_of_resume(resume) for part in step.parts], call)
        if resume is not None and resume.gap_item is not None:
            _check_known([resume.gap_item], call)


# Captures: names that are used, and names that something makes


def _made(steps: Iterable[Step]) -> frozenset[str]:
    return frozenset[str]().union(*(step.makes for step in steps))


def _computed(computation: Computation | None) -> frozenset[str]:
    return frozenset(() if computation is None else computation.names)


def _roots(names: Iterable[str]) -> Iterable[str]:
    """Names, and those that they may reach into."""
    for name in names:
        yield name
        yield name.partition(".")[0]


def _check_known(parts: Iterable[CompiledTemplate], known: frozenset[str]) -> None:
    for part in parts:
        for name in sorted(not_in(part.capture_names, known)):
            there = f"captured are {', '.join(sorted(known))}" if known else "nothing is captured here"
            raise CombinationError(f"{part.where}: {{{{captured.{name}}}}} is not captured by any step; {there}")


def _check_in_order(steps: Iterable[Step], known: frozenset[str], at_all: frozenset[str]) -> None:
    """Each step may use what those before it make; an optional one may be made later, or in the round before."""
    for step in steps:
        for part in step.parts:
            _check_known([part], at_all)
        missing = sorted(not_in(step.captures, known))
        if missing:
            raise CombinationError(
                f"{step.where}: {{{{captured.{missing[0]}}}}} is not captured before this step; captured before are"
                f" {', '.join(sorted(known)) or 'none'}"
            )
        known |= step.makes


# What the call can be sure of


def _correlation(filters: Iterable[Filter | None]) -> tuple[Path, Template] | None:
    """The place and value that all filters of an exchange require; None if they differ."""
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
