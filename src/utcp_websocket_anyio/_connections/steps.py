"""Steps: messages that are exchanged before, around and after requests.

One function, `run_steps`, runs the steps of every moment of a call template. What differs between the moments comes in
as a `Moment`: what placeholders stand for, where messages come from and go, what a failure means. The parts of a step
are done in the order in which the specification lists them: compute, http, send, then wait for what is expected.

A wait that may time out notes what it waits for in a `WaitNote`, so that the error can tell.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._net.http import Answer, request
from .._net.security import check_captured_url, display_url, origin_of
from .._templates.placeholders import MissingCaptureError
from .._templates.received import Message, ResponseError
from ..errors import WebSocketAuthError, WebSocketClosedError, WebSocketConnectionError, WebSocketError
from .texts import error_text

if TYPE_CHECKING:
    from .._net.transport import Network
    from .._templates.extraction import Extraction
    from .._templates.filters import Filter
    from .._templates.plan import Step
    from .._templates.values import RenderContext
    from .trace import Trace

__all__ = [
    "Moment",
    "StepFailed",
    "WaitNote",
    "capture",
    "is_login_refusal",
    "login_error",
    "run_steps",
    "step_name",
    "wait_for",
]


class StepFailed(Exception):  # noqa: N818 - each moment has an error of its own for it
    """A step did not succeed. Its moment says which error that is.

    Attributes:
        told: Text that says which step failed and why, with the server's reason.
        response: The message or HTTP body that says so, if there was one.
        status: The HTTP status, or None.
        is_rejection: True if the server's message matches `reject`.
    """

    def __init__(
        self, step: Step, reason: str, *, response: Any = None, status: int | None = None, is_rejection: bool = False
    ) -> None:
        told = f"{step_name(step)} failed: {reason}"
        if is_rejection:
            told = f"the endpoint rejected {step_name(step)}: {error_text(response)}"
        super().__init__(told)
        self.told = told
        self.response = response
        self.status = status
        self.is_rejection = is_rejection


class WaitNote:
    """The message that a step waits for, and those that came instead, for the text of a time-out.

    Attributes:
        what: A noun phrase: ``a response``.
        skipped: The number of messages that were not meant.
    """

    what = "a response"
    skipped = 0
    _last: tuple[Filter, Message, RenderContext] | None = None

    def begin(self, what: str) -> None:
        """Wait for something else from now on."""
        self.what = what
        self.skipped = 0
        self._last = None

    def skip(self, filter_: Filter | None, message: Message, context: RenderContext) -> None:
        """A message was not meant."""
        self.skipped += 1
        if filter_ is not None:
            self._last = filter_, message, context

    def told(self) -> str:
        """The awaited message, the number of skipped ones, and where the last of them differed, as text."""
        if not self.skipped:
            return self.what
        messages = "1 message was" if self.skipped == 1 else f"{self.skipped} messages were"
        if self._last is None:
            return f"{self.what}; {messages} skipped"
        filter_, message, context = self._last
        return f"{self.what}; {messages} skipped, the last differed: {filter_.difference(message, context)}"


class Send(Protocol):
    """Sends a message of a step."""

    def __call__(self, data: str | bytes) -> Awaitable[object]:
        """Send it, or queue it."""


_MAX_SOURCES = 8
_NOTHING: Final[Mapping[str, Any]] = {}


class Captures(dict[str, Any]):
    """Captured values of a connection, and the servers that they may come from.

    Attributes:
        sources: Their URLs, without path and query; the last ones.
        lent: Values of a stream, for the steps by which it opens a connection of its own.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.sources: list[str] = list(values.sources) if isinstance(values, Captures) else []
        self.lent: Mapping[str, Any] = values.lent if isinstance(values, Captures) else _NOTHING
        self._hidden: Mapping[str, Any] = _NOTHING
        if self.lent:
            self._hidden = {name: self[name] for name in self.lent if name in self}
            self.update(self.lent)

    def take_back(self) -> None:
        """Forget what was lent, unless it was captured anew: the next user of the connection has none of it."""
        for name, value in self.lent.items():
            if self.get(name) is value:
                del self[name]
                if name in self._hidden:
                    self[name] = self._hidden[name]
        self.lent = self._hidden = _NOTHING

    def may_come_from(self, url: str) -> None:
        """Note a server that was talked to."""
        source = origin_of(url)
        if source not in self.sources:
            self.sources.append(source)
            del self.sources[:-_MAX_SOURCES]


@dataclass
class Moment:
    """The differences between the moments in which steps run.

    Attributes:
        context: Values of the placeholders of the next step; called once per step.
        captured: Destination of captured and computed values.
        send: Sends a message.
        receive: The next message that may be meant for a step.
        network: The way to HTTP servers.
        display_url: The endpoint, for errors.
        skipped: Called with each message that a waiting step does not take.
        note: Record of the wait.
        omits_steps_without_captures: True if a step that lacks a captured value is left out instead of failing.
        trace: Observer of every message; None: no observer.
        requested: The URLs of the HTTP requests so far: where captured URLs may come from.
    """

    context: Callable[[], RenderContext]
    captured: MutableMapping[str, Any]
    send: Send
    receive: Callable[[], Awaitable[Message]]
    network: Network
    display_url: str
    skipped: Callable[[Message], None] = lambda message: None
    note: WaitNote = field(default_factory=WaitNote)
    omits_steps_without_captures: bool = False
    trace: Trace | None = None
    requested: list[str] = field(default_factory=list)


async def run_steps(steps: Iterable[Step], moment: Moment) -> bool:
    """Run the steps one after the other.

    Returns:
        True if the last step waited for a message, and it came.

    Raises:
        StepFailed: A step was rejected, or a value for it is missing.
        WebSocketError: The connection ended meanwhile.
    """
    answered = False
    for step in steps:
        context = moment.context()
        try:
            message = await _run_step(step, context, moment)
        except MissingCaptureError as error:
            if moment.omits_steps_without_captures:
                answered = False
                continue
            reason = str(error)
        except (ValueError, ResponseError) as error:
            if isinstance(error, WebSocketError):
                raise
            reason = str(error)
        else:
            answered = message is not None
            continue
        raise StepFailed(step, reason)
    return answered


async def _run_step(step: Step, context: RenderContext, moment: Moment) -> Message | None:
    if step.compute is not None:
        moment.captured.update(step.compute.compute(context))
    if step.http is not None:
        moment.note.begin(f"the answer to {step_name(step)}")
        await _request(step, context, moment)
        return None
    if step.send is not None:
        data = step.send.encode(context)
        if moment.trace is not None:
            moment.trace("sent", data, step_name(step))
        await moment.send(data)
    if step.expect is None:
        return None
    return await wait_for(step, context, moment)


async def wait_for(step: Step, context: RenderContext, moment: Moment) -> Message:
    """Wait for the message that a step expects.

    Raises:
        StepFailed: The message that came is rejected.
        ResponseError: A message cannot be read as the step says.
        WebSocketError: The connection ended meanwhile.
    """
    assert step.expect is not None
    moment.note.begin(step_name(step))
    while True:
        message = await moment.receive()
        if step.reject is not None and step.reject.matches(message, context):
            _trace(moment, message, f"{step_name(step)}: rejected")
            raise StepFailed(step, "rejected", response=message.content(), is_rejection=True)
        if step.expect.matches(message, context):
            _trace(moment, message, step_name(step))
            capture(step.capture, message, moment.captured, context)
            return message
        if moment.trace is not None:
            difference = step.expect.difference(message, context)
            moment.trace("received", message.data, f"skipped by {step_name(step)}: {difference}")
        moment.note.skip(step.expect, message, context)
        moment.skipped(message)


def _trace(moment: Moment, message: Message, meaning: str) -> None:
    if moment.trace is not None:
        moment.trace("received", message.data, meaning)


async def _request(step: Step, context: RenderContext, moment: Moment) -> None:
    """The HTTP request of a step; `expect`, `reject` and `capture` are about its answer."""
    assert step.http is not None
    made = step.http.render(context)
    if step.http.url.origin is None:
        for source in moment.requested:
            check_captured_url(made.url, source, step.http.url.where)
    moment.requested.append(origin_of(made.url))
    if moment.trace is not None:
        body = (made.content or b"").decode(errors="backslashreplace")
        moment.trace("sent", f"{made.method} {display_url(made.url)} {body}".rstrip(), step_name(step))
    try:
        answer = await request(
            made.method,
            made.url,
            network=moment.network,
            what=f"request of {step_name(step)}",
            endpoint=moment.display_url,
            headers=made.headers,
            body=made.content,
        )
    except WebSocketConnectionError as error:
        reason, transient = error.args[0], error.transient
    else:
        if moment.trace is not None:
            body = answer.body.decode(errors="backslashreplace")
            moment.trace("received", f"HTTP {answer.status} {body}".rstrip(), step_name(step))
        _check_answer(step, answer, context, moment)
        return
    raise WebSocketConnectionError(reason, endpoint=moment.display_url, transient=transient)


def _check_answer(step: Step, answer: Answer, context: RenderContext, moment: Moment) -> None:
    message = Message(answer.body)
    content = message.content() if answer.body else None
    if answer.status >= 400:
        reason = answer.reason()
        text = f"status {answer.status}{'' if reason is None else f': {reason}'}"
        raise StepFailed(step, text, response=content, status=answer.status)
    if step.reject is not None and step.reject.matches(message, context):
        raise StepFailed(step, "rejected", response=content, status=answer.status, is_rejection=True)
    if step.expect is not None and not step.expect.matches(message, context):
        difference = step.expect.difference(message, context)
        raise StepFailed(step, f"the answer is not what was expected: {difference}", response=content)
    capture(step.capture, message, moment.captured, context)


def step_name(step: Step) -> str:
    """A step as errors name it: `step 2 of on_connect`."""
    moment, bracket, index = step.where.partition("[")
    return f"step {int(index[:-1]) + 1} of {moment}" if bracket else moment


def capture(
    extractions: Mapping[str, Extraction],
    message: Message,
    captured: MutableMapping[str, Any],
    context: RenderContext,
) -> None:
    """Put what `extractions` pick from `message` into `captured`.

    Raises:
        ResponseError: A value is not in the message.
    """
    for name, extraction in extractions.items():
        value = extraction.extract(message, context)
        # A caller may change what it gets of the same message; what was captured must not change with it.
        captured[name] = copy.deepcopy(value) if isinstance(value, (dict, list)) else value


def login_error(failed: StepFailed, display_url: str) -> WebSocketConnectionError:
    """The caller's error for a failed step of `prepare` or `on_connect`."""
    if failed.is_rejection or failed.status in (401, 403):
        return WebSocketAuthError(failed.told, endpoint=display_url, status=failed.status, response=failed.response)
    transient = failed.status in (429, 502, 503, 504)
    return WebSocketConnectionError(failed.told, endpoint=display_url, status=failed.status, transient=transient)


def is_login_refusal(error: WebSocketError) -> bool:
    """True if a server that closes with this code refuses a login (section 6 of the specification)."""
    return isinstance(error, WebSocketClosedError) and (error.code in (1008, 3000, 3003) or 4000 <= error.code <= 4999)
