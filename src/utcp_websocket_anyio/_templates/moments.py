"""The moments of a call template: steps, and what is done with messages, by the clock, and after a loss; compiled.

A step is a set of parts that are done in a fixed order. A list of steps is a moment; which moments there are, and what
they may use of each other, is the compiler's to know (`compiler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .compute import Computation, compile_computation
from .extraction import Extraction, compile_extraction
from .filters import Filter, compile_filter
from .http_step import HttpTemplate, compile_http
from .messages import DECODERS, MessageTemplate, compile_message
from .placeholders import RenderContext, Scope
from .received import Message
from .shapes import check_members
from .values import CompiledTemplate, Template, compile_number, compile_template

__all__ = [
    "Captures",
    "Heartbeat",
    "MessageHandler",
    "ResponseHandler",
    "Resume",
    "ResumeChange",
    "SendEach",
    "Step",
    "compile_capture",
    "compile_flag",
    "compile_optional",
    "compile_resume",
    "compile_steps",
    "is_in",
    "not_in",
    "steps_of_resume",
]

Captures = Mapping[str, Extraction]

_CLOSE_CODES = range(1000, 5000)


@dataclass(frozen=True, slots=True)
class SendEach:
    """Many messages of a request: one for each item.

    Attributes:
        of: Gives a list, bytes, text (read by `encoding`), or anything that can be iterated.
        message: Message for each `{{item}}`.
        every: Seconds from one to the next; None: as fast as they go.
        chunk: Bytes of a piece, where `of` gives bytes; None: all in one.
        encoding: Encoding by which text is read as bytes (`messages.DECODERS`); None: text is not cut.
    """

    of: Template
    message: MessageTemplate
    every: float | Template | None
    chunk: int | Template | None
    encoding: str | None

    def decode(self, text: str) -> bytes:
        """The bytes of a text.

        Raises:
            ValueError: The text is not valid in the encoding.
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
        always: True to run a step of `on_end` also after the expected number of responses.
        parts: All templates in it.
        arguments: The arguments that it needs, as in `CompiledTemplate`.
        captures: The captured values that it needs and does not make itself.
        makes: The names of what it computes and captures.
        only_sends: True if all that it does is to send one message.
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
    only_sends: bool = field(init=False)

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
            ("captures", own | not_in(later, computed)),
            ("makes", computed | frozenset(self.capture)),
            ("uses_call_id", any(part.uses_call_id for part in parts)),
            ("only_sends", self.send is not None and all(part in (None, self.send) for part in given)),
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
    """The way a stream continues after its connection was lost.

    Attributes:
        attempts: Failures in a row after which the last error is raised.
        prepare: Steps in place of the template's own; None: those. The same for `on_connect`, `before` and `request`.
        not_after: Ranges of close codes, first and last, after which nothing is resumed.
        gap_item: Item that is yielded in place of what was missed; rendered with `{{gap}}`.
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
    """A message handler's `resume`: changes to the `resume` of the streams that it moves.

    Attributes:
        given: The members that it has; None where it is `true`.
        members: Their compiled values.
    """

    given: frozenset[str] | None
    members: Resume

    def applied_to(self, resume: Resume | None) -> Resume | None:
        """The `resume` of a stream that moves, given its template's own; None if it cannot move."""
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
    """The actions for a message that matches, at any time.

    Attributes:
        deliver: True if calls see the message, too.
        resume: Way its streams move to a new connection; None: they do not.
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
        if captures and not all(is_in(name, context.captured) for name in captures):
            return False
        return self.match.matches(message, context)

    @property
    def parts(self) -> tuple[CompiledTemplate, ...]:
        """All templates in it."""
        given = (self.match, *self.capture.values(), self.compute, self.reply)
        return tuple(part for part in given if part is not None)


@dataclass(frozen=True, slots=True)
class ResponseHandler:
    """The actions for each response: capture parts of it, and acknowledge it."""

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


def is_in(name: str, known: Iterable[str] | Mapping[str, Any]) -> bool:
    """True if a name, or the one that it reaches into, is known."""
    return name in known or name.partition(".")[0] in known


def not_in(names: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if not is_in(name, known))


# Steps


def compile_steps(values: Any, where: str, moment: str, scope: Scope) -> tuple[Step, ...]:
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
        compute=compile_optional(compile_computation, value, "compute", where, scope),
        http=compile_optional(compile_http, value, "http", where, scope),
        send=compile_optional(compile_message, value, "send", where, scope),
        send_each=_send_each(value["send_each"], f"{where}.send_each", scope) if "send_each" in value else None,
        reject=compile_optional(compile_filter, value, "reject", where, scope),
        expect=compile_optional(compile_filter, value, "expect", where, scope),
        capture=compile_capture(value.get("capture"), f"{where}.capture", scope),
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


def compile_resume(value: Any, where: str, scope: Scope) -> Resume | None:
    if value is None:
        return None
    check_members(value, "resume", where)
    attempts = value.get("attempts", 5)
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise ValueError(f"{where}.attempts: must be an integer, 1 at least")
    steps = {
        name: compile_steps(value[name], f"{where}.{name}", name, scope) if value.get(name) is not None else None
        for name in ("prepare", "on_connect", "before", "request")
    }
    gap_item = None
    if "gap_item" in value:
        gap_item = compile_template(value["gap_item"], f"{where}.gap_item", scope.with_gap())
    not_after = _codes(value.get("not_after"), where)
    resume = Resume(attempts=attempts, not_after=not_after, gap_item=gap_item)
    return replace(resume, **steps)  # type: ignore[arg-type]  # its four lists of steps, by name


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


def steps_of_resume(
    resume: Resume | None, *moments: Literal["prepare", "on_connect", "before", "request"]
) -> tuple[Step, ...]:
    if resume is None:
        return ()
    return tuple(
        step
        for moment in moments or ("prepare", "on_connect", "before", "request")
        for step in getattr(resume, moment) or ()
    )


def compile_optional(
    compile_: Callable[[Any, str, Scope], Any], value: Mapping[str, Any], member: str, where: str, scope: Scope
) -> Any:
    return compile_(value[member], f"{where}.{member}", scope) if value.get(member) is not None else None


def compile_flag(value: Mapping[str, Any], member: str, where: str) -> bool:
    flag = value.get(member, False)
    if not isinstance(flag, bool):
        raise ValueError(f"{where}.{member}: must be true or false")
    return flag


def compile_capture(value: Any, where: str, scope: Scope) -> dict[str, Extraction]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: must be an object of names and extractions, such as {{'session': {{'path': 'id'}}}}"
        )
    return {name: compile_extraction(extraction, f"{where}.{name}", scope) for name, extraction in value.items()}
