"""One call or stream: its responses, its count, its end.

What happens on a connection is the business of a *leg* (`leg`): the steps before the request, the request, the
farewell. The exchange has what the caller sees. Messages come to it by one way, `accepted`, which is called where a
message is read and decides at once what it means; what means something waits in a bounded queue until the caller takes
it, with `collect` for a call or `open` and `next` for a stream.

What ends an exchange (its `State` tells which it was):

1. The server, with a message: an error, the last response, the end, or the last of a fixed number. The connection stays
   good.
2. A close or the loss of the connection. An open-ended exchange may end well by it; a stream may resume.
3. Silence or duration, for open-ended exchanges.
4. Its deadline (see `deadlines`), or a close of its connection on this side.
5. The caller, who leaves.

Whatever it is, the connection is let go of in that moment (`_let_go`): with a farewell, if the template has one and the
server has not ended the exchange; back to the pool or closed, if it has not.

A stream with `resume` survives the loss of its connection: a task of the pool opens another one and begins a new leg on
it, while the caller waits. If the server asks for the move, the stream has two legs for a while:

========  ==========================================  ================================================================
phase     the old leg                                 the new leg (`_next_leg`)
========  ==========================================  ================================================================
opening   is read as before; its loss is a gap        connects, runs `before`, sends the request; what comes is held
parting   its close frame is sent; it is read until   is ready (`_ready`); what comes is held
          the peer has closed, too (`_read_out`)
over      is left                                     is the stream's leg; what was held comes now
========  ==========================================  ================================================================

What the peer sent before it closed is there when its close is: so nothing is lost that was under way when the new leg
was ready, and all of it comes before the new leg's messages. A shared connection is closed when all of its exchanges
have moved or are done; a stream waits for that no longer than for a closing handshake.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from .._connections.bulkhead import internal_error, log_internal_error
from .._connections.connection import MoveAskedError
from .._connections.connector import backoff
from .._connections.pool import Replacement
from .._connections.steps import Captures
from .._templates.encoders import text_of
from .._templates.received import Message, ResponseError
from .._wire import CLOSING_TIME, Interrupted
from ..errors import (
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketToolError,
)
from .base import COMPLETE, ENDED, EXPIRED, OPENING, RUNNING, BaseExchange
from .leg import Leg, close_source
from .responses import RESPONSE, Meaning

if TYPE_CHECKING:
    from .._connections.connection import Connection
    from .._connections.pool import Pool
    from .._templates.plan import Resume, ResumeChange, Step
    from .request import Request

__all__ = ["END", "Exchange"]

_log = logging.getLogger(__name__)

_NORMAL_CLOSURES = (1000, 1001, 1005)
_MAX_QUEUED_MESSAGES = 10_000
_MAX_QUEUED_BYTES = 64 * 2**20
_MAX_PARSED_BYTES = 64 * 1024
"""Beyond this, queued messages are parsed again when they are taken: parsed JSON takes up to 25 times the memory."""

_EXCLUSIVE_MESSAGES = 16
_EXCLUSIVE_BYTES = 256 * 1024
"""Bytes that may wait for a slow consumer on an exclusive connection before TCP holds the sender back."""

_PARTING_MESSAGES = _MAX_QUEUED_MESSAGES // 2
_PARTING_BYTES = _MAX_QUEUED_BYTES // 2
"""As much may wait while a connection parts, which should not take as long as a slow consumer does."""

_LOOK_AGAIN = 0.05
"""Seconds between two looks if a slow consumer has made room for what a parting connection still says."""


class _End(enum.Enum):
    END = enum.auto()


END: Final = _End.END
"""Returned by `Exchange.next` after the last response."""

_UNREAD: Final = object()
"""The value of a queued response that has not been read from its message yet."""


class _Queued:
    """An entry of the caller's queue: a response, the tool's error, or the item that stands for a gap."""

    # Of nearly all responses.
    value: Any = _UNREAD
    is_error = False
    is_final_part = True

    def __init__(self, message: Message, leg: Leg) -> None:
        self.message = message
        self.size = message.size
        self.leg = leg


class Exchange(BaseExchange):
    """One call or stream.

    Args:
        request: The prepared call.
        pool: The pool that its connections come from.
        streaming: True if the responses are taken one by one.
    """

    _leg: Leg | None = None
    _ended_by_server = False
    _queued_bytes = 0
    _failures = 0
    _resuming: anyio.CancelScope | None = None
    _is_left = False
    _next_leg: Leg | None = None
    _next_failure: WebSocketError | None = None
    _ready: Leg | None = None
    _reading_out: anyio.CancelScope | None = None
    _asked: ResumeChange | None = None
    _changed: anyio.Event | None = None
    _has_first = False
    _sources_begun: tuple[Step, ...] = ()
    _has_no_deadline = False

    def __init__(self, request: Request, pool: Pool, *, streaming: bool = False) -> None:
        super().__init__(request, pool)
        plan = request.plan
        self.streaming = streaming
        self._captured: MutableMapping[str, Any] = {}
        self._expected = self._remaining = expected = plan.expected(streaming=streaming)
        self._queue: deque[_Queued] = deque()
        self._held: list[Message] = []
        self._is_open_stream = streaming and expected is None
        if request.timeout is not None:
            self._timeout = request.timeout
        else:
            # An open-ended stream whose template gives it no time: only its first response must come in time.
            self._has_no_deadline = self._is_open_stream
            waits_in_silence = self._is_open_stream and plan.idle_timeout is not None
            self._timeout = math.inf if waits_in_silence else plan.timeout

    # Driving

    async def collect(self) -> Any:
        """Run the whole exchange. Cancelling it closes its connection, unless that is shared.

        Returns:
            The response if the template asks for one; None if it asks for none; else what `collect` makes of them.
        """
        if self._expected == 0:
            # The only exchange that may have nothing to wait for.
            await anyio.lowlevel.checkpoint()
        plan = self._plan
        taken: list[_Queued] = []
        responses: list[Any] = []
        try:
            await self.open()
            while (queued := await self._next()) is not None:
                # A character may be split between two messages, so they are decoded as a whole.
                responses.append(queued.message.data if plan.joins_text else self._value(queued))
                if plan.on_response is not None:
                    taken.append(queued)
                if self._expected == 1:
                    break
            result = responses[0] if self._expected == 1 and plan.collect == "list" else self._collected(responses)
            for queued in taken:
                self._acknowledge(queued)
        finally:
            self.finish()
            if plan.sends_each:
                await self.close_sources()  # noqa: ASYNC102 - shielded and bounded in there
        return result

    @property
    def _only_ends_session(self) -> bool:
        """True if there is nothing to do except to end a session, for which none is opened."""
        plan = self._plan
        if self._endpoint.session is None or not plan.close_after_response or plan.request or plan.before:
            return False
        return self._expected == 0

    async def open(self) -> None:
        """Get a connection and begin. Call `finish` afterwards, whatever happens."""
        plan = self._plan
        reject_stray = not plan.knows_its_answers and self._expected != 0
        farewell = self._request.farewell
        connection = self._pool.claim(self._endpoint, reject_stray=reject_stray, farewell=farewell)
        if connection is None:
            self.note.begin("a free connection")
            connection = await self._pool.acquire(
                self._endpoint,
                plan,
                self._request.context,
                reject_stray=reject_stray,
                farewell=farewell,
                only_open=self._only_ends_session,
            )
            if connection is None:
                self.state = COMPLETE
                return
            self.note.begin("a response")
        self._leg = leg = Leg(self, self._request, connection, self._captured)
        self._watch_deadline(self._timeout)
        try:
            if plan.before:
                await leg.run_before(plan.before, self.deadline)
                # `response_timeout` is for the steps together, and starts again with the request.
                self._forget_deadline()
                self._watch_deadline(self._timeout)
                self.state = RUNNING
                self._move_as_asked(leg)
            self.state = RUNNING
            goes_on = await leg.send_request(plan.request)
            if goes_on or not plan.request:
                self._mind_the_clock(goes_on=goes_on)
            if self._expected == 0 and not goes_on:
                await leg.channel.flush()
                self.state = COMPLETE
        except Interrupted:
            self._raise_or_end()
        except WebSocketError as error:
            self.leg_failed(leg, error)
            self._raise_or_end()

    async def next(self) -> Any:
        """The next response, or `END` after the last one."""
        queued = await self._next()
        if queued is None:
            return END
        value = self._value(queued)
        self._acknowledge(queued)
        return value

    def take_nowait(self) -> deque[Any] | None:
        """The responses of an open-ended stream that are there already; what ends it is left to `next`."""
        leg = self._leg
        if self._remaining is not None or self.state is not RUNNING or self._queue or leg is None:
            return None
        if not self._plan.takes_messages_as_they_are:
            return None
        messages = leg.channel.take_nowait()
        if messages is None or leg.classifier.takes_all(messages):
            return messages
        for data in messages:
            leg.accept(Message(data))
        return None

    def finish(self) -> None:
        """Let go of everything. Synchronous, so it is safe after cancellation."""
        self._is_left = True
        if self._resuming is not None:
            self._stop_resuming(self._resuming)
        self._let_go()

    async def close_sources(self) -> None:
        """Close the sources of `send_each` that were never read: who feeds them would wait for good."""
        for step in self._plan.request:
            if step.send_each is None or any(step is begun for begun in self._sources_begun):
                continue
            try:
                source = step.send_each.of.render(self._request.context)
            except ValueError:
                # It would have been made of something that was not captured.
                continue
            try:
                await close_source(source)
            except Exception as error:  # noqa: BLE001 - the bulkhead: it is the user's own code
                log_internal_error(_log, error, "closing a source")

    def finish_later(self) -> None:
        """As `finish`, from any thread and also while no event loop runs: for a finalizer."""
        self._pool.call_later(self.finish)

    def _mind_the_clock(self, *, goes_on: bool) -> None:
        """From when on the deadline counts, and whether there is one."""
        request = self._plan.request
        if goes_on and self._plan.sends_each:
            # It counts from the last message of the request.
            self._forget_deadline()
        elif not request and self._has_no_deadline:
            self._forget_deadline()

    def source_begun(self, step: Step) -> None:
        """The source of a step with `send_each` is read from now on, and closed at its end."""
        self._sources_begun = (*self._sources_begun, step)

    def request_sent(self, leg: Leg) -> None:
        """A request of several steps is out."""
        if self.state is not RUNNING or leg is not self._leg:
            return
        self.note.begin("a response")
        if self._expected == 0:
            self.state = COMPLETE
            leg.channel.interrupt()
        elif self.deadline == math.inf and not (self._has_no_deadline and self._has_first):
            self._watch_deadline(self._timeout)

    async def _next(self) -> _Queued | None:
        # Messages may come so fast that the caller never waits, and the timer never gets its turn.
        looks_at_clock = self._expected != 1
        while True:
            if self._queue:
                return self._pop()
            if self.state > RUNNING:
                self._raise_or_end()
                return None
            leg = self._leg
            if looks_at_clock and self._pool.clock() >= self.deadline:
                self.expire()
            elif leg is None:
                await self._wait_for_change()
            elif self._expected is not None or self._plan.idle_timeout is None:
                await self._wait(leg)
            else:
                await self._wait_within_silence(leg, self._plan.idle_timeout)
            looks_at_clock = True

    # Receiving

    @property
    def has_room(self) -> bool:
        """True if an exclusive connection may be read on while the caller is away."""
        return self._has_room_for(_EXCLUSIVE_MESSAGES, _EXCLUSIVE_BYTES)

    @property
    def takes_messages(self) -> bool:
        """True if the next message is one that it takes or skips."""
        return self.state is RUNNING and self._expected != 0

    def _has_room_for(self, messages: int, size: int) -> bool:
        return len(self._queue) + len(self._held) < messages and self._queued_bytes < size

    def accepted(self, message: Message, leg: Leg) -> None:
        """Decide what a message means."""
        if self.state is not RUNNING:
            return
        if leg is not self._leg:
            self._hold(message, leg)
            return
        try:
            meaning = leg.classifier.classify(message)
        except WebSocketError as error:
            self._fail(error)
            return
        except (ResponseError, ValueError) as error:
            self._fail(self._unreadable(str(error)))
            return
        if leg.connection.trace is not None:
            told = leg.classifier.why_skipped(message) if meaning is Meaning.SKIP else meaning.name.lower()
            leg.connection.trace("received", message.data, told)
        if meaning is RESPONSE:
            self._respond(message, leg, is_last=False)
        elif meaning is Meaning.SKIP:
            self.note.skip(self._plan.message_filter, message, leg.context)
            self._pool.counters.skipped += 1
        elif meaning is Meaning.END:
            self._end_of_messages()
        elif meaning is Meaning.ERROR:
            queued = _Queued(message, leg)
            queued.is_error = True
            if self._enqueue(queued):
                # An answered failure: nothing more comes, and the connection stays good.
                self._ended_by_server = True
                self.state = COMPLETE
        else:
            self._respond(message, leg, is_last=meaning is Meaning.LAST)

    def _respond(self, message: Message, leg: Leg, *, is_last: bool) -> None:
        plan = self._plan
        if plan.on_response is None and not plan.spread:
            if self._enqueue(_Queued(message, leg)):
                self._count(1, is_last=is_last)
            return
        try:
            leg.remember(message)
        except (ResponseError, ValueError) as error:
            self._fail(
                WebSocketToolError(
                    f"on_response failed: {error}", response=message.content(), endpoint=self._endpoint.display_url
                )
            )
            return
        values: list[Any] = [_UNREAD]
        if plan.spread:
            try:
                value = leg.classifier.value(message)
            except (ResponseError, ValueError) as error:
                self._fail(self._unreadable(str(error)))
                return
            values = value if isinstance(value, list) else [value]
        if self._remaining is not None:
            values = values[: self._remaining]
        for index, value in enumerate(values):
            queued = _Queued(message, leg)
            queued.value = value
            queued.is_final_part = index == len(values) - 1
            if not self._enqueue(queued):
                return
        self._count(len(values), is_last=is_last)

    def _count(self, responses: int, *, is_last: bool) -> None:
        """Count responses; the last one ends the exchange."""
        if self._has_no_deadline and not self._has_first:
            self._has_first = True
            self._forget_deadline()
        remaining = self._remaining
        if remaining is not None:
            self._remaining = remaining = remaining - responses
            if remaining == 0:
                self.state = COMPLETE
                return
        if is_last:
            self._end_of_messages()

    def _end_of_messages(self) -> None:
        """The server says that there are no more responses."""
        self._ended_by_server = True
        if self._expected is None:
            self.state = ENDED
            return
        assert self._remaining is not None
        came = f"{self._expected - self._remaining} of {self._expected} responses"
        self._fail(
            WebSocketProtocolError(f"the server ended the exchange after {came}", endpoint=self._endpoint.display_url)
        )

    def _hold(self, message: Message, leg: Leg) -> None:
        """Keep a message of the next leg: it comes behind the gap, and what the leg before it has still brought."""
        has_room = self._has_room_for(_MAX_QUEUED_MESSAGES, _MAX_QUEUED_BYTES - message.size)
        if not has_room and leg.connection.wire.closed is None:
            self._fail_too_slow()
            self._interrupt()
            return
        self._queued_bytes += message.size
        self._held.append(message)
        is_much = len(self._held) >= _PARTING_MESSAGES or self._queued_bytes >= _PARTING_BYTES
        if is_much and self._reading_out is not None:
            # A shared connection is always read. It cannot wait any longer for what the old one still says.
            self._reading_out.cancel()

    def _take_held(self) -> list[Message]:
        held, self._held = self._held, []
        self._queued_bytes -= sum(message.size for message in held)
        return held

    def _fail_too_slow(self) -> None:
        reason = f"the stream was read too slowly: {len(self._queue) + len(self._held)} responses are queued"
        self._queue.clear()
        self._fail(self._unreadable(reason))

    def _enqueue(self, queued: _Queued) -> bool:
        """Queue something for the caller; False if the exchange has failed because the caller is too slow."""
        queue = self._queue
        self._queued_bytes = size = self._queued_bytes + queued.size
        is_full = queue and (size > _MAX_QUEUED_BYTES or len(queue) >= _MAX_QUEUED_MESSAGES)
        # What a connection that has ended still brings has been in memory all the time, and no more is coming.
        if is_full and queued.leg.connection.wire.closed is None:
            self._fail_too_slow()
            return False
        # Another exchange on the same connection may accept the same message, and callers may change what they get.
        queued.message = queued.message.claimed(keep_parsed=size <= _MAX_PARSED_BYTES)
        queue.append(queued)
        return True

    def _pop(self) -> _Queued:
        queued = self._queue.popleft()
        self._queued_bytes -= queued.size
        self._failures = 0
        if queued.is_error:
            raise queued.leg.classifier.tool_error(queued.message, self._endpoint.display_url)
        return queued

    def _value(self, queued: _Queued) -> Any:
        """A response as the caller gets it."""
        if queued.value is not _UNREAD:
            return queued.value
        try:
            return queued.leg.classifier.value(queued.message)
        except (ResponseError, ValueError) as error:
            reason = str(error)
        unreadable = self._unreadable(reason)
        self._fail(unreadable)
        raise unreadable

    def _acknowledge(self, queued: _Queued) -> None:
        """Acknowledge what the caller was given, on the connection it came from while that is open."""
        if self._plan.on_response is not None and queued.is_final_part:
            leg, connection = queued.leg, queued.leg.connection
            if connection.error is not None or connection.is_parting:
                leg = self._ready or self._leg or leg
            leg.acknowledge(queued.message)

    def _collected(self, responses: list[Any]) -> Any:
        """The result of `call_tool`."""
        if self._expected == 0:
            return None
        how = self._plan.collect
        if how == "join":
            return self._joined(responses)
        if self._expected == 1:
            return responses[0]
        if how == "last":
            return responses[-1] if responses else None
        return responses

    def _joined(self, responses: list[Any]) -> Any:
        # Declared as text, what is joined is decoded as a whole: a character may be split between two messages.
        if self._plan.response_format == "text" and all(isinstance(part, str | bytes) for part in responses):
            data = b"".join(part.encode() if isinstance(part, str) else part for part in responses)
            try:
                return data.decode()
            except UnicodeDecodeError:
                pass
            raise self._unreadable("the responses together are not text")
        if self._expected == 1:
            return responses[0]
        if responses and all(isinstance(part, bytes) for part in responses):
            return b"".join(responses)
        return "".join(
            part.decode(errors="replace") if isinstance(part, bytes) else text_of(part) for part in responses
        )

    # Waiting

    async def _wait(self, leg: Leg) -> None:
        try:
            await leg.channel.wait()
        except Interrupted:
            # Another task has changed the state, or moved the stream to another connection.
            pass
        except WebSocketError as error:
            self.leg_failed(leg, error)

    async def _wait_within_silence(self, leg: Leg, seconds: float) -> None:
        wire = leg.connection.wire
        while True:
            progress = wire.progress
            with anyio.move_on_after(seconds):
                while not self._queue and self.state is RUNNING and self._leg is leg:
                    await self._wait(leg)
                return
            # A message that is still arriving does not count as silence, nor does one that waits for the old leg's end.
            if not (self._held or (wire.has_partial_message() and wire.progress > progress)):
                break
        self.state = ENDED
        self._let_go()

    async def _wait_for_change(self) -> None:
        if self._changed is None or self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    # The end

    def expire(self) -> None:
        """The deadline has passed."""
        leg = self._leg
        if self.state > RUNNING:
            if leg is not None and leg.is_sending:
                # All is there that the caller will get, but the server does not read the rest of the request.
                self._lose(leg)
            return
        is_duration = self.state is RUNNING and self._expected is None and self._plan.is_subscription
        self.state = ENDED if is_duration else EXPIRED
        self._interrupt()

    def leg_failed(self, leg: Leg, error: WebSocketError) -> None:
        """A leg has ended with an error: the loss of its connection, a close, a step that failed."""
        if leg is self._next_leg:
            # Told by `_begin_anew`.
            self._next_failure = error
        if self.state > RUNNING or leg is not self._leg:
            return
        connection = leg.connection
        if connection.retired and not connection.was_given_up:
            # Closed on this side: at once.
            self._queue.clear()
            self._fail(error)
            self._interrupt()
        elif self._ready is not None:
            # It has moved: this is all that its old connection had to say.
            self._lose(leg)
        elif not isinstance(error, WebSocketClosedError):
            self._fail(error)
        elif self._resuming is not None:
            # It is moving already: how its old connection goes does not matter any more.
            self._lose(leg)
        elif self._ends_well(error):
            self._ended_by_server = True
            self.state = ENDED
        elif (resume := self._resume_for(error)) is not None:
            # It may have been in its first `before`: only its opening is over, whatever becomes of the next one.
            self.state = RUNNING
            self._lose(leg)
            self._start_resuming(resume, leg, error)
        else:
            self._fail(error)

    def _ends_well(self, error: WebSocketClosedError) -> bool:
        if self.state is not RUNNING or self._expected is not None:
            return False
        how = self._plan.ends_on_close(streaming=self.streaming)
        return how == "any" or (how == "normal" and error.code in _NORMAL_CLOSURES)

    def _interrupt(self) -> None:
        """Let go of the connection now, and wake the caller: it may be away for long."""
        leg = self._leg
        if self._resuming is not None:
            self._stop_resuming(self._resuming)
        self._let_go()
        if leg is not None:
            leg.channel.interrupt()
        self._wake()

    def _let_go(self) -> None:
        leg = self._leg
        if self.deadline < math.inf:
            self._forget_deadline()
        if leg is not None:
            self._leg = None
            self._release(leg, by_server=self._ended_by_server, in_full=self.state is COMPLETE)

    def _release(self, leg: Leg, *, by_server: bool, in_full: bool) -> None:
        """Give a connection back or close it, after a farewell if there is one."""
        is_good = in_full or (by_server and self.state is ENDED)
        farewell = leg.finish(by_server=by_server, in_full=in_full)
        if farewell:
            try:
                rest = leg.send_first(farewell)
            except Exception as error:  # noqa: BLE001 - the bulkhead: the connection must not get lost
                log_internal_error(_log, error, "beginning a farewell")
                leg.abandon()
                is_good = False
            else:
                leg.connection.start_task(self._part, leg, rest, is_good)
                return
        self._hand_back(leg.connection, is_good=is_good)

    async def _part(self, leg: Leg, steps: tuple[Step, ...], is_good: bool) -> None:
        """Say the rest of a farewell in the background; an exclusive connection earns its reuse by an answer."""
        try:
            answered = await leg.say_farewell(steps)
            # After the expected count nothing more comes, so the connection stays good unless a step has failed.
            is_good = answered or (is_good and not leg.farewell_failed)
        except Exception as error:  # noqa: BLE001 - the bulkhead
            log_internal_error(_log, error, "leaving a call")
            is_good = False
        finally:
            self._hand_back(leg.connection, is_good=is_good)

    # Going on after a loss

    def _resume_for(self, error: WebSocketClosedError) -> Resume | None:
        resume = self._plan.resume
        if resume is None or not self._is_open_stream:
            return None
        return None if resume.is_final(error.code) else resume

    def move(self, leg: Leg, change: ResumeChange) -> None:
        """The server asks for a new connection: the stream moves, and the old one is read meanwhile."""
        if self.state > RUNNING or not self._is_open_stream:
            return
        if leg is self._next_leg and leg is not self._ready:
            # It does not carry the stream yet, and what its steps wait for may never come: another one does instead.
            reason = "the endpoint asked for another connection before the stream had resumed on this one"
            leg.fail(MoveAskedError(reason, change, leg.connection.captured, endpoint=self._endpoint.display_url))
            leg.channel.interrupt()
        elif leg is self._ready or self.state is OPENING:
            self._asked = change
        elif leg is self._leg and self._resuming is None:
            self._start_moving(leg, change)

    def _move_as_asked(self, leg: Leg) -> None:
        """Move a stream whose leg runs now, if the server has asked for it meanwhile."""
        change, self._asked = self._asked, None
        if change is not None:
            self._start_moving(leg, change)

    def _start_moving(self, leg: Leg, change: ResumeChange) -> None:
        resume = change.applied_to(self._plan.resume)
        if resume is not None:
            self._start_resuming(resume, leg, None)

    def close(self, error: WebSocketClosedError) -> None:
        """The pool, or its part for this manual, is closed while the stream is resuming."""
        if self.state is RUNNING:
            self._queue.clear()
            self._fail(error)
            self._interrupt()

    def _lose(self, leg: Leg) -> None:
        """Go on without the connection, or with another one."""
        self._leg = None
        if self._has_no_deadline:
            # It is for the first response only, and begins again with the request. Any other is the whole stream's.
            self._forget_deadline()
        self._release(leg, by_server=False, in_full=False)
        leg.channel.interrupt()

    def _start_resuming(self, resume: Resume, leg: Leg, error: WebSocketClosedError | None) -> None:
        # Here and not in the task: it may be asked for twice before a task has run.
        self._resuming = anyio.CancelScope()
        self._pool.begin_resuming(self, self._endpoint)
        leg.connection.start_task(self._run_resuming, self._resuming, resume, leg, error)

    def _stop_resuming(self, scope: anyio.CancelScope) -> None:
        """The stream ends meanwhile. If it has moved, its new leg has the farewell to say."""
        scope.cancel()
        if self._ready is not None:
            self._leave_old(self._ready)

    async def _run_resuming(
        self, scope: anyio.CancelScope, resume: Resume, old: Leg, error: WebSocketError | None
    ) -> None:
        try:
            with scope:
                await self._keep_resuming(resume, old, error)
        except Exception as failure:  # noqa: BLE001 - the bulkhead
            log_internal_error(_log, failure, "resuming a stream")
            self._fail_resuming(internal_error(failure, endpoint=self._endpoint.display_url))
        finally:
            if self._resuming is scope:
                self._has_resumed()
            if self.state is RUNNING and self._leg is None and self._resuming is None:
                # The end of the pool's tasks; nothing else would ever wake the caller.
                self._fail(
                    WebSocketClosedError(
                        "closed while the stream was resuming", code=1000, endpoint=self._endpoint.display_url
                    )
                )
            self._wake()

    def _fail_resuming(self, error: WebSocketError) -> None:
        """It cannot go on. The caller may wait for what its old connection says."""
        self._fail(error)
        self._interrupt()

    def _has_resumed(self) -> None:
        self._resuming = None
        self._pool.end_resuming(self)

    async def _keep_resuming(self, resume: Resume, old: Leg, error: WebSocketError | None) -> None:
        lost_at = self._pool.clock()
        captured: Mapping[str, Any] = old.connection.captured
        failed = error is not None
        if resume.drops_captures:
            self._captured = {}
        while self.state is RUNNING:
            if failed:
                self._failures += 1
                if self._failures > resume.attempts:
                    assert error is not None
                    self._fail_resuming(error.told() if isinstance(error, MoveAskedError) else error)
                    return
                await anyio.sleep(backoff(self._failures))
            try:
                # As it is now: a connection that the stream moves from goes on capturing.
                carried = {} if resume.drops_captures else Captures(captured)
                leg, waits = await self._begin_anew(resume, old.connection, carried)
            except WebSocketAuthError as refused:
                # The endpoint refuses: trying again does not help.
                self._fail_resuming(refused)
                return
            except Interrupted:
                return
            except MoveAskedError as asked:
                error, failed = asked, True
                resume = asked.change.applied_to(self._plan.resume) or resume
                captured = asked.captured
                if resume.drops_captures:
                    self._captured = {}
                continue
            except WebSocketError as failure:
                error, failed = failure, True
                if isinstance(failure, WebSocketClosedError) and resume.is_final(failure.code):
                    self._fail_resuming(failure)
                    return
                continue
            moved = self._leg is old
            if moved and not await self._read_out(old, leg):
                # The stream was left meanwhile, and its legs with it.
                return
            self._next_leg = self._ready = None
            if self._is_left or self.state is not RUNNING:
                # The stream has ended in the turn in which its new leg was ready.
                self._release(leg, by_server=False, in_full=False)
            else:
                self._take_over(leg, resume, self._pool.clock() - lost_at, moved=moved, waits=waits)
            return

    async def _begin_anew(self, resume: Resume, replaced: Connection, carried: Mapping[str, Any]) -> tuple[Leg, bool]:
        """Open a new leg; True with it if its first response is waited for from now on."""
        plan = self._plan.resumed(resume, {*carried, *self._captured})
        if plan.opens_its_own and isinstance(carried, Captures):
            # Its steps may need what the call has captured, such as the last message that it was given.
            carried.lent = self._captured
        connection = await self._pool.acquire(
            self._endpoint,
            plan,
            self._request.context,
            reject_stray=not plan.knows_its_answers,
            farewell=self._request.farewell,
            replaces=Replacement(replaced, carried, plan.opens_its_own),
        )
        assert connection is not None
        self.note.begin("a response")
        came_before = connection.take_replayed()
        leg = Leg(self, self._request, connection, self._captured)
        leg.show_later(came_before)
        self._expect(leg)
        timeout = self._plan.timeout if self._request.timeout is None else self._request.timeout
        try:
            with anyio.move_on_after(timeout) as scope:
                if plan.before:
                    await leg.run_before(plan.before)
                goes_on = await leg.send_request(plan.request)
                if self._next_failure is None:
                    sends_each = goes_on and plan.sends_each
                    return leg, bool(plan.request) and not sends_each
            if scope.cancelled_caught:
                raise self._timed_out(timeout)
        except Interrupted:
            if self._next_failure is None:
                self._abandon(leg)
                raise
        except BaseException:
            self._abandon(leg)
            raise
        self._abandon(leg)
        assert self._next_failure is not None
        raise self._next_failure

    def _expect(self, leg: Leg) -> None:
        self._take_held()
        self._next_leg, self._next_failure, self._asked = leg, None, None

    def _abandon(self, leg: Leg) -> None:
        """Let go of a new leg that does not get to carry the stream."""
        self._next_leg = None
        self._release(leg, by_server=False, in_full=False)

    async def _read_out(self, old: Leg, leg: Leg) -> bool:
        """Close the old connection, and take what it still says, while the new leg is ready. There are four ends:

        1. The peer has closed, too, or is gone: that was all.
        2. It has had the time of a closing handshake. Only waiting with nothing there counts: what it has sent already
           comes before its close, and this side may be slow.
        3. It sends on and on, more than can have been under way.
        4. Others go on using a shared connection: the time is over, and the stream leaves it.
        5. So much has come for the new leg that it cannot wait.

        Returns:
            False if the stream has let go of both legs meanwhile.
        """
        self._ready = leg
        connection = old.connection
        most = connection.wire.bytes_received + _MAX_QUEUED_BYTES
        left = CLOSING_TIME
        old.part()
        with anyio.CancelScope() as self._reading_out:
            while self._leg is old and self.state is RUNNING:
                if left <= 0 or connection.wire.bytes_received > most:
                    break
                if not self._has_room_for(_PARTING_MESSAGES, _PARTING_BYTES):
                    await anyio.sleep(_LOOK_AGAIN)
                    continue
                began, is_there = self._pool.clock(), connection.has_unread_data
                with anyio.move_on_after(left) as scope:
                    await self._wait(old)
                if scope.cancelled_caught:
                    left = 0
                elif not is_there:
                    left -= self._pool.clock() - began
        self._reading_out = None
        if self._leg is old:
            # The time was over in the turn in which it came.
            connection.take_in_unread()
        return self._ready is leg

    def _leave_old(self, leg: Leg) -> None:
        """Go on with a new leg instead of the old one, if that is still there."""
        old, self._leg, self._ready = self._leg, leg, None
        if old is not None:
            self._release(old, by_server=True, in_full=False)
            old.channel.interrupt()

    def _take_over(self, leg: Leg, resume: Resume, gap: float, *, moved: bool, waits: bool) -> None:
        """Go on with a new leg, which may have failed or been asked to move since it was ready."""
        self._pool.counters.resumes += 1
        _log.warning(
            "stream resumed after %.2f s: %s", gap, self._endpoint.display_url,
            extra={"endpoint": self._endpoint.display_url, "event": "resumed", "gap": gap},
        )  # fmt: skip
        self._has_resumed()
        self._leave_old(leg)
        if not moved and resume.gap_item is not None:
            value = resume.gap_item.render(leg.context.replace(gap=gap))
            queued = _Queued(Message(""), leg)
            queued.value = value
            queued.is_final_part = False
            self._enqueue(queued)
        if waits and self._has_no_deadline and not self._has_first:
            self._watch_deadline(self._timeout)
        for message in self._take_held():
            self.accepted(message, leg)
        if self._next_failure is not None:
            self.leg_failed(leg, self._next_failure)
        elif self.state is RUNNING:
            self._move_as_asked(leg)
        self._wake()
