"""A leg: one exchange on one connection, from its `before` steps to its farewell.

An exchange has one leg, unless it is a stream that resumes: then it has one after the other, and for a moment two. A
leg is what a connection knows as its user. Messages come to it by one way, `accept`, called where a message is read:

=========  ========================================================================================
the leg    what `accept` does with a message
=========  ========================================================================================
opening    keeps it: for the step that waits, or for the exchange's own filters once the request is out
running    offers it to a step of the request that waits, then to the exchange; after `part`, too
leaving    keeps it for the steps of `on_end`
=========  ========================================================================================

So nothing is lost between two steps, or right behind the message that completes one.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import ChainMap, deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from .._connections.bulkhead import internal_error, log_internal_error
from .._connections.connection import MAX_KEPT_BYTES
from .._connections.steps import Moment, StepFailed, WaitNote, capture, run_steps, step_name, wait_for
from .._templates.placeholders import MissingCaptureError
from .._templates.received import Message, ResponseError
from .._templates.values import Template, render_number
from .._wire import CLOSING_TIME, Interrupted
from ..errors import WebSocketError, WebSocketProtocolError, WebSocketToolError
from .responses import ResponseClassifier

if TYPE_CHECKING:
    from .._connections.connection import Connection
    from .._templates.plan import ResumeChange, SendEach, Step
    from .._templates.values import RenderContext
    from .request import Request

__all__ = ["Leg", "LegOwner", "close_source", "encode_request"]

_log = logging.getLogger(__name__)


class LegOwner(Protocol):
    """The exchange, as its legs see it."""

    note: WaitNote
    streaming: bool

    @property
    def has_room(self) -> bool:
        """True if messages find room without waiting for the caller."""

    def accepted(self, message: Message, leg: Leg) -> None:
        """A message has come that no step takes."""

    def leg_failed(self, leg: Leg, error: WebSocketError) -> None:
        """The leg has ended with an error."""

    def move(self, leg: Leg, change: ResumeChange) -> None:
        """The server asks for a new connection."""

    @property
    def takes_messages(self) -> bool:
        """True if the next message is one that it takes or skips."""

    def source_begun(self, step: Step) -> None:
        """The source of a step with `send_each` is read from now on, and closed at its end."""

    def request_sent(self, leg: Leg) -> None:
        """The last message of the request is out."""


class _State(enum.IntEnum):
    OPENING = enum.auto()
    RUNNING = enum.auto()
    LEAVING = enum.auto()
    LEFT = enum.auto()


# Names of their own: each call asks many times, and looking up a member of an enum takes as long as a call.
_OPENING, _RUNNING, _LEAVING, _LEFT = _State


class Leg:
    """One exchange on one connection.

    Args:
        owner: The exchange.
        request: The prepared call.
        connection: The connection, in use from now on.
        captured: Values that the call has captured so far; shared by all its legs.
    """

    classifier: ResponseClassifier
    """The way messages are read, from the request on."""
    farewell_failed = False
    is_sending = False
    """True while the caller's own task sends the request."""
    _is_stopped = False
    _has_moved = False
    _has_begun = False
    _first: RenderContext | None = None
    _scope: anyio.CancelScope | None = None
    _awaited: tuple[Step, RenderContext] | None = None
    _answer: Message | None = None
    _state = _OPENING
    _kept_bytes = 0

    def __init__(
        self, owner: LegOwner, request: Request, connection: Connection, captured: MutableMapping[str, Any]
    ) -> None:
        self._owner = owner
        self._request = request
        self._plan = request.plan
        self.connection = connection
        self._pending: deque[Message] = deque()
        self._kept: list[Message] = []
        # Only steps of the call capture anything; most calls have none, and see what the connection has captured.
        self.captured: MutableMapping[str, Any] = (
            ChainMap(captured, connection.captured) if request.plan.captures else connection.captured
        )
        self.context = request.context
        self.channel = connection.open_channel(self)
        self._between = between = connection.between_calls
        if between is not None:
            between.call_began(self)
        if request.farewell is not None:
            connection.plan_farewell(request.farewell)

    # As the connection sees it

    @property
    def has_room(self) -> bool:
        """True if messages find room without waiting for the caller."""
        return self._owner.has_room and self._kept_bytes < MAX_KEPT_BYTES

    def accept(self, message: Message) -> None:
        """Take a message that was read for this exchange."""
        if self._state is _RUNNING:
            if self._awaited is None or not self._is_awaited(message):
                self._owner.accepted(message, self)
        elif self._state is not _LEFT:
            self._pending.append(message)
            self._count(message)

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone."""
        if self._state is _LEFT:
            return
        self._is_stopped = True
        if self._state is _LEAVING:
            self._leave()
            return
        self._owner.leg_failed(self, error)
        if self._state is _OPENING and self._scope is not None and not self._pending:
            # There is nothing left that a step before the request could take.
            self._scope.cancel()

    @property
    def takes_messages(self) -> bool:
        """True if a message that comes now is for this exchange, and not for the next call of its session."""
        return self._state is not _RUNNING or self._awaited is not None or self._owner.takes_messages

    def move(self, change: ResumeChange) -> None:
        """The server asks for a new connection."""
        if self._state is not _LEFT:
            self._owner.move(self, change)

    # Beginning

    async def run_before(self, steps: tuple[Step, ...], deadline: float = math.inf) -> None:
        """Run the steps of `before`, until a deadline.

        Raises:
            WebSocketToolError: A step failed.
            WebSocketError: The connection ended.
            Interrupted: The exchange ended meanwhile, or the deadline has passed.
        """
        moment = self._moment(self._receive_pending, self._keep, self._step_context)
        failed: StepFailed
        try:
            # A step may wait for something else than a message, such as an HTTP server.
            with anyio.CancelScope(deadline=deadline) as self._scope:
                await run_steps(steps, moment)
                self._owner.note.begin("a response")
                return
            raise Interrupted
        except StepFailed as error:
            failed = error
        raise _tool_error(failed, self._request)

    async def send_request(self, steps: tuple[Step, ...]) -> bool:
        """Send the request, or begin to; from now on messages are responses.

        Returns:
            True if sending goes on in the background; then `LegOwner.request_sent` is called at its end.

        Raises:
            WebSocketToolError: The request cannot be encoded.
            WebSocketError: The connection ended.
            Interrupted: The exchange ended meanwhile.
        """
        self._start_running()
        has_more = False
        if steps:
            self._has_begun = True
            if len(steps) == 1 and steps[0].only_sends:
                data = encode_request(self._request, steps[0], self.context)
                if self.connection.trace is not None:
                    self.connection.trace("sent", data, "request")
                self.is_sending = True
                await self.channel.send(data)
                self.is_sending = False
            else:
                has_more = True
        if self._pending or self._kept or self._between:
            self._take_kept()
        if has_more:
            self.connection.start_task(self._send_request, steps)
        return has_more

    def _start_running(self) -> None:
        plan, connection = self._plan, self.connection
        call_id = connection.next_id() if plan.numbers_calls else 0
        self.context = context = self.context.for_step(call_id, connection.next_id, self.captured)
        if plan.compares_times:
            # Taken when it is asked for, which would be with the first message that comes.
            _ = context.time
        self.classifier = ResponseClassifier(plan, context, self._owner.streaming)
        correlation = None
        if plan.correlation is not None:
            path, value = plan.correlation
            correlation = path, value.render(self.context)
        self.channel.listen(correlation)
        self._state = _RUNNING

    def _take_kept(self) -> None:
        """Show what came before the request was out to the exchange's own filters."""
        between = self._between
        if between is not None and self._plan.message_filter is not None:
            between.show(self)
        waiting = [*self._kept, *self._pending]
        self._kept.clear()
        self._pending.clear()
        for message in waiting:
            if between is None or not between.keep(message):
                self.accept(message)

    # The steps

    def _moment(
        self,
        receive: Callable[[], Awaitable[Message]],
        skipped: Callable[[Message], None],
        context: Callable[[], RenderContext],
    ) -> Moment:
        return Moment(
            context=context,
            captured=self.captured,
            send=self._send,
            receive=receive,
            network=self.connection.network,
            display_url=self._request.endpoint.display_url,
            skipped=skipped,
            note=self._owner.note,
            trace=self.connection.trace,
        )

    def _step_context(self) -> RenderContext:
        """A step before the request has a number of its own."""
        self._has_begun = True
        connection = self.connection
        return self.context.for_step(connection.next_id(), next_step_id=connection.next_id, captured=self.captured)

    def _request_context(self) -> RenderContext:
        """The steps of the request, of `on_response` and of `on_end` share the call's number."""
        return self.context.for_step(self.context.call_id, next_step_id=self.connection.next_id, captured=self.captured)

    async def _send(self, data: str | bytes) -> None:
        if self._is_stopped or self._state is _LEFT:
            raise Interrupted
        await self.channel.send(data)

    async def _receive_pending(self) -> Message:
        # What came before the end is looked at first: it may be what the step waits for.
        while not self._pending:
            if self._is_stopped or self._state is _LEFT:
                raise Interrupted
            await self.channel.wait()
        return self._pending.popleft()

    def _keep(self, message: Message) -> None:
        """A step has skipped a message: it may be a notification that came before the answer which tells its id."""
        if self._plan.message_filter is not None:
            self._kept.append(message)
        else:
            self._kept_bytes -= message.size

    def show_later(self, messages: Iterable[Message]) -> None:
        """Show messages that came before the leg began to the exchange's own filters, when the request is out."""
        self._kept += messages

    def _count(self, message: Message) -> None:
        self._kept_bytes += message.size
        if self._kept_bytes > MAX_KEPT_BYTES:
            reason = f"more than {MAX_KEPT_BYTES // 1024} KiB arrived before {self._owner.note.what}"
            self.fail(WebSocketProtocolError(reason, endpoint=self._request.endpoint.display_url))

    # A request of several steps

    async def _send_request(self, steps: tuple[Step, ...]) -> None:
        """Send the request in a task of its own: responses are taken while it is still sending."""
        error: WebSocketError
        try:
            with anyio.CancelScope() as self._scope:
                for step in steps:
                    if step.send_each is not None:
                        await self._send_each(step, step.send_each)
                    else:
                        moment = self._moment(self._receive_awaited, lambda message: None, self._request_context)
                        await self._run_request_step(step, moment)
                await self.channel.flush()
                self._owner.request_sent(self)
            return
        except Interrupted:
            return
        except StepFailed as failure:
            error = _tool_error(failure, self._request)
        except WebSocketError as failure:
            error = failure
        except (ValueError, ResponseError) as failure:
            error = WebSocketToolError(str(failure), response=None, endpoint=self._request.endpoint.display_url)
        except Exception as failure:  # noqa: BLE001 - the bulkhead
            log_internal_error(_log, failure, "sending a request")
            error = internal_error(failure, endpoint=self._request.endpoint.display_url)
        if self._state is _RUNNING:
            self._owner.leg_failed(self, error)
            self.channel.interrupt()

    async def _run_request_step(self, step: Step, moment: Moment) -> None:
        if step.expect is not None and step.http is None:
            context = moment.context()
            moment.context = lambda: context
            # From now on, so that an answer that comes with the sending is not missed.
            self._awaited = step, context
        try:
            await run_steps((step,), moment)
        finally:
            self._awaited = None

    def _is_awaited(self, message: Message) -> bool:
        assert self._awaited is not None
        step, context = self._awaited
        assert step.expect is not None
        try:
            is_awaited = (step.reject is not None and step.reject.matches(message, context)) or step.expect.matches(
                message, context
            )
        except ResponseError:
            return False
        if is_awaited:
            self._awaited, self._answer = None, message
        return is_awaited

    async def _receive_awaited(self) -> Message:
        while self._answer is None:
            # The exchange's own task reads; it may be away, and then this one does.
            await self.channel.wait()
        answer, self._answer = self._answer, None
        return answer

    async def _send_each(self, step: Step, each: SendEach) -> None:
        context = self._request_context()
        source: Any = each.of.render(context)
        every = render_number(each.every, context) if isinstance(each.every, Template) else each.every
        due = anyio.current_time()
        self._owner.source_begun(step)
        items = _items(source, each, context)
        try:
            async for item in items:
                if every is not None:
                    await anyio.sleep_until(due)
                    due = max(due, anyio.current_time()) + every
                item_context = self._request_context().replace(item=item)
                data = each.message.encode(item_context)
                if self.connection.trace is not None:
                    self.connection.trace("sent", data, step_name(step))
                await self._send(data)
                await self.channel.flush()
        finally:
            await _close(items, source)  # noqa: ASYNC102 - shielded and bounded in there

    # Responses

    def remember(self, message: Message) -> None:
        """Capture what `on_response` says of a response.

        Raises:
            ResponseError: The value is not in the message.
        """
        handler = self._plan.on_response
        if handler is not None and handler.capture:
            capture(handler.capture, message, self.captured, self.context.replace(message=message))

    def acknowledge(self, message: Message) -> None:
        """Send what `on_response` says of a response that was handed to the caller.

        Raises:
            WebSocketToolError: It cannot be made.
        """
        handler = self._plan.on_response
        if handler is None or handler.send is None or self.connection.error is not None:
            return
        try:
            data = handler.send.encode(self._request_context().replace(message=message))
        except ValueError as error:
            reason = str(error)
        else:
            if self.connection.trace is not None:
                self.connection.trace("sent", data, "on_response")
            self.connection.post(data)
            return
        raise WebSocketToolError(
            f"on_response failed: {reason}", response=message.content(), endpoint=self._request.endpoint.display_url
        )

    # Leaving

    def part(self) -> None:
        """Say nothing more, and go on reading: the exchange has moved to another leg."""
        self._is_stopped = self._has_moved = True
        if self._scope is not None:
            self._scope.cancel()
        self.channel.part()

    def finish(self, *, by_server: bool, in_full: bool) -> tuple[Step, ...]:
        """Let go of the connection, unless there is a farewell to say.

        Args:
            by_server: The server has ended the exchange.
            in_full: Every expected response has come.

        Returns:
            The steps of `on_end` that are left to run with `say_farewell`; the leg keeps the connection until then.
        """
        if self._scope is not None:
            self._scope.cancel()
        steps: tuple[Step, ...] = ()
        if self._plan.on_end and self.connection.error is None and self._state is not _LEFT:
            steps = self._farewell(by_server=by_server, in_full=in_full)
        if not steps:
            self._leave()
            return ()
        self._state = _LEAVING
        self._pending.clear()
        self._kept_bytes = 0
        self._note = WaitNote()
        return steps

    def _farewell(self, *, by_server: bool, in_full: bool) -> tuple[Step, ...]:
        if by_server or self._has_moved or not self._has_begun:
            return ()
        return tuple(step for step in self._plan.on_end if step.always) if in_full else self._plan.on_end

    def send_first(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Queue the first message of a farewell now, before anything that is sent later; gives what is left to do."""
        for index, step in enumerate(steps):
            if step.http is not None:
                return steps[index:]
            context = self._request_context()
            try:
                if step.compute is not None:
                    self.captured.update(step.compute.compute(context))
                if step.send is not None:
                    data = step.send.encode(context)
                    if self.connection.trace is not None:
                        self.connection.trace("sent", data, step_name(step))
                    self.connection.post(data)
            except MissingCaptureError:
                continue
            except ValueError as error:
                self._log_farewell(step, str(error))
                return ()
            if step.send is not None or step.expect is not None:
                self._first = context
                return steps[index:]
        return ()

    async def say_farewell(self, steps: tuple[Step, ...]) -> bool:
        """Do the rest of a farewell, at most 2 s; True if the last step waited for a message and it came."""
        moment = self._moment(self._receive_pending, lambda message: None, self._request_context)
        moment.note = self._note
        moment.omits_steps_without_captures = True
        answered = False
        try:
            with anyio.move_on_after(CLOSING_TIME):
                if self._first is not None:
                    if steps[0].expect is not None:
                        await wait_for(steps[0], self._first, moment)
                        answered = True
                    steps = steps[1:]
                if steps:
                    answered = await run_steps(steps, moment)
                return answered
            self._log_farewell(None, f"not answered in time: {self._note.told()}")
        except StepFailed as error:
            self._log_farewell(None, error.told)
        except (Interrupted, WebSocketError):
            self.farewell_failed = True
        except (ResponseError, ValueError) as error:
            self._log_farewell(None, str(error))
        finally:
            self._leave()
        return False

    def _log_farewell(self, step: Step | None, reason: str) -> None:
        self.farewell_failed = True
        where = "on_end" if step is None else step_name(step)
        _log.info("%s: %s: %s", where, self._request.endpoint.display_url, reason)

    def abandon(self) -> None:
        """Let go without the farewell that `finish` asked for."""
        self._leave()

    def _leave(self) -> None:
        if self._state is _LEFT:
            return
        # A farewell comes behind the request that it is about, or the peer could not make sense of it.
        has_farewell = self._state is _LEAVING
        self._state = _LEFT
        self.channel.finish(withdraws=not has_farewell)
        if self._between is not None:
            self._between.call_ended(self)
        if self._request.farewell is not None:
            self.connection.farewell_said(self._request.farewell)


def encode_request(request: Request, step: Step, context: RenderContext) -> str | bytes:
    """The message of a request that is one. Its arguments were tried, so what fails is what was captured.

    Raises:
        WebSocketToolError: It cannot be made.
    """
    message = step.send
    assert message is not None
    try:
        if message is not request.plan.sole_message:
            return message.encode(context)
        prepared = request.message
        assert prepared is not None
        return prepared if isinstance(prepared, (str, bytes)) else prepared.encode(context)
    except ValueError as error:
        reason = str(error)
    raise _tool_error(StepFailed(step, reason), request)


def _tool_error(failed: StepFailed, request: Request) -> WebSocketToolError:
    return WebSocketToolError(failed.told, response=failed.response, endpoint=request.endpoint.display_url)


async def _items(source: Any, each: SendEach, context: RenderContext) -> AsyncGenerator[Any, None]:
    """The items of `send_each`: elements, or pieces of bytes."""
    if isinstance(source, str):
        source = each.decode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        size = each.chunk_size(context) or max(len(data), 1)
        for start in range(0, len(data), size):
            yield data[start : start + size]
    elif isinstance(source, (AsyncIterable, Iterable)) and not isinstance(source, Mapping):
        try:
            if isinstance(source, AsyncIterable):
                async for item in source:
                    yield item
            else:
                for item in source:
                    yield item
        except Exception as error:  # noqa: BLE001 - the bulkhead; a source of items is the user's own code
            log_internal_error(_log, error, f"iterating the source of {each.of.where}")
            failure = type(error).__qualname__
        else:
            return
        # Not in the handler: the text of what it raised may hold secrets.
        raise ValueError(f"{each.of.where}: its source failed: {failure}")
    else:
        raise ValueError(f"{each.of.where}: must be a list, text, bytes or an iterable, not {type(source).__name__}")


async def _close(items: AsyncGenerator[Any, None], source: Any) -> None:
    with anyio.move_on_after(CLOSING_TIME, shield=True):
        await items.aclose()
        await close_source(source)


async def close_source(source: Any) -> None:
    """End a source of items: a generator, a memory channel, or whatever else can be closed. For at most 2 s."""
    with anyio.move_on_after(CLOSING_TIME, shield=True):
        aclose, close = getattr(source, "aclose", None), getattr(source, "close", None)
        if aclose is not None:
            await aclose()
        elif close is not None:
            close()
