"""The base of every pooled connection: login, pings, messages that are handled at any time, farewell, one end.

There are two kinds. An `ExclusiveConnection` is used by one exchange at a time, a `MultiplexedConnection` by many. They
differ in who reads and in who a message is for; that is in their own modules.

**Reading.** One task at a time is in `Wire.receive`. Whoever it is, each message is *taken in* as soon as it has been
read, synchronously and before the next one is looked at: it is the connection's own (`on_message`), or it is
delivered. So a message always has an owner, and no task has to run for the next one to find its way. A task that needs
a message while another one reads waits until that one has read.

**Writing.** An exclusive exchange sends by itself, and takes its connection with it if it is cancelled half-way.
Everything else is posted to the `Outbox`, whose task is started with the first message.

**The end.** Failure is a state, not an exception that travels: the first error ends the connection, and every user gets
a copy of it. Five verbs, in every module: *fail* (an error ended it), *retire* (no new use; `aclose` follows), *aclose*
(graceful), *abort* (now), and *finish* (an exchange lets go).

A connection that its streams have moved from *parts*: the close frame is sent while they are still its users, and what
the peer says before its own close finds them. So nothing that was under way is lost.
"""

from __future__ import annotations

import copy
import itertools
import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from .._templates.received import Message, ResponseError
from .._wire import CLOSING_TIME, Interrupted
from .._wire._loop import loop_clock, loop_events
from ..errors import WebSocketAuthError, WebSocketClosedError, WebSocketError, WebSocketProtocolError
from .between_calls import BetweenCalls
from .bulkhead import internal_error, log_internal_error
from .heartbeat import Beats, watch_silence
from .outbox import Outbox, Outgoing
from .pings import keep_alive
from .steps import Moment, StepFailed, WaitNote, capture, is_login_refusal, login_error, run_steps

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .._net.transport import Network
    from .._templates.plan import ConnectionSettings, MessageHandler, Path, Plan, ResumeChange, Step
    from .._templates.values import RenderContext, Template
    from .._wire import Wire
    from .trace import Trace

__all__ = ["MAX_KEPT_BYTES", "NOBODY", "Channel", "Connection", "MoveAskedError", "User"]

_log = logging.getLogger(__name__)

MAX_KEPT_BYTES: Final = 256 * 1024
"""Bytes of messages that are kept for whom they may be for: during a login, before a request, between two calls."""


class User(Protocol):
    """An exchange, as its connection sees it."""

    @property
    def has_room(self) -> bool:
        """True if it takes further messages now; while it does not, an exclusive connection is not read for it."""

    def accept(self, message: Message) -> None:
        """Take a message that was read for this exchange. Must not wait."""

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone."""

    def move(self, change: ResumeChange) -> None:
        """The server asks for a new connection: a stream that can resume moves to one."""


class MoveAskedError(WebSocketClosedError):
    """The server asked for another connection before this one was ready. No caller gets it.

    Args:
        reason: Text for people.
        change: The way to open another one.
        captured: Values that this one has captured.
        endpoint: The endpoint, without secrets.
    """

    def __init__(
        self,
        reason: str,
        change: ResumeChange,
        captured: Mapping[str, Any],
        *,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(reason, endpoint=endpoint)
        self.change = change
        self.captured = captured

    def applied_to(self, plan: Plan) -> tuple[Plan, Mapping[str, Any]]:
        """The plan of a call's next attempt to connect, and what it begins with."""
        resume = self.change.applied_to(plan.resume)
        if resume is None:
            return plan, self.captured
        if resume.drops_captures:
            return plan, {}
        return plan.resumed(resume, self.captured), self.captured

    def told(self) -> WebSocketClosedError:
        """The error that a caller gets in its place."""
        return WebSocketClosedError(self.args[0], endpoint=self.endpoint)


class _Nobody:
    """The user of a channel that was finished."""

    has_room = True

    def accept(self, message: Message) -> None:
        """Drop it."""

    def fail(self, error: WebSocketError) -> None:
        """It is over already."""

    def move(self, change: ResumeChange) -> None:
        """It is over already."""


NOBODY: Final[User] = _Nobody()


class Channel(ABC):
    """An exchange's hold on its connection, the same for both kinds of connection."""

    __slots__ = ()

    @abstractmethod
    async def send(self, data: str | bytes) -> None:
        """Send a message, or queue it where others send, too.

        Raises:
            WebSocketError: The connection is closed.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Wait until what was sent has left the queue."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until `User.accept` was called at least once more. Cancelling it loses nothing.

        Raises:
            Interrupted: The exchange was finished, or its connection closed on this side.
            WebSocketError: The connection is closed, and everything that came before was accepted.
        """

    @abstractmethod
    def take_nowait(self) -> deque[str | bytes] | None:
        """All messages that have been read already; None if each of them must be looked at first."""

    @abstractmethod
    def listen(self, correlation: tuple[Path, Any] | None) -> None:
        """The exchange's own filters apply from now on; narrow down what it is offered.

        Args:
            correlation: The place and value that every message for this exchange has; None: unknown.
        """

    @abstractmethod
    def part(self) -> None:
        """Say nothing more, and go on reading: the exchange has moved to another connection.

        The connection is closed as soon as all its exchanges have. What the peer says until its own close, which ends
        the connection, is accepted.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Wake the exchange out of `wait`, `send` and `flush`, if it is there now; it looks at its own state then."""

    @abstractmethod
    def finish(self, *, withdraws: bool = True) -> None:
        """Let go of the connection. Synchronous, so it is safe after cancellation.

        Args:
            withdraws: True to leave out what is queued and has not begun to be sent.
        """


class Connection(ABC):
    """An open WebSocket of the pool.

    Args:
        wire: The open wire.
        settings: Settings for keeping and closing it.
        display_url: The endpoint, for logs and errors.
        tasks: The pool's task group, where the connection's tasks run.
        network: The way to HTTP servers, for steps.
        context: The arguments of the call that opened it; those in the connection's moments belong to the endpoint.
        captured: Values captured by `prepare`, or by the connection before this one.
        trace: Observer of every message; None: no observer.

    Attributes:
        captured: Values that its moments have captured and computed; calls see them, too.
        is_leaving: True if it takes no further exchange and closes when the last one is over.
        is_parting: True if its close frame is sent, or about to be, and its users only read.
        was_given_up: True if this side gave it up as if it had been lost.
        between_calls: What arrives between the calls of its session; None: it is no session's.
        ends_session: True if its end is the end of its session, and no loss.
        keep_alive: Seconds after which it is closed when it is idle; None: never.
        lineage: The same for a connection and those that have replaced it; None: it was not replaced, and replaces
            none.
        farewells: Messages that the calls on it will send when they leave.
        may_get_stray_response: True if a response to an earlier request may still arrive.
        last_message: Time of the last message, on the clock of the event loop; only known with handlers.
        new_event: Makes an event of the event loop.
    """

    # An idle connection should be small: as a dictionary, so many attributes take 1.6 KB.
    __slots__ = (
        "_beats",
        "_clock",
        "_closing_code",
        "_closing_error",
        "_context",
        "_ended",
        "_error",
        "_handles_messages",
        "_has_read",
        "_ids",
        "_inbox",
        "_is_being_read",
        "_is_logging_in",
        "_is_started",
        "_keepers",
        "_keeps_messages",
        "_opened",
        "_outbox",
        "_replayed",
        "_replayed_bytes",
        "_skipped",
        "_skipped_bytes",
        "_takes_messages_whole",
        "_tasks",
        "_user",
        "between_calls",
        "calls",
        "captured",
        "display_url",
        "ends_session",
        "farewells",
        "is_leaving",
        "is_parting",
        "keep_alive",
        "last_message",
        "lineage",
        "may_get_stray_response",
        "network",
        "new_event",
        "on_farewell",
        "on_leaving",
        "on_lost",
        "reads",
        "retired",
        "settings",
        "trace",
        "was_given_up",
        "wire",
    )

    is_shared: bool
    """True if several exchanges may use it at once."""

    def __init__(
        self,
        wire: Wire,
        settings: ConnectionSettings,
        *,
        display_url: str,
        tasks: TaskGroup,
        network: Network,
        context: RenderContext,
        captured: dict[str, Any] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.wire = wire
        self.settings = settings
        self.display_url = display_url
        self.network = network
        self.trace = trace
        self.captured = {} if captured is None else captured
        self.calls = 0
        self.retired = False
        self.is_leaving = False
        self.is_parting = False
        self.was_given_up = False
        self.may_get_stray_response = False
        self.between_calls: BetweenCalls | None = None
        self.ends_session = False
        self._is_logging_in = False
        self.farewells: Counter[Hashable] = Counter()
        self.keep_alive: float | None = None
        self.lineage: object | None = None
        self.on_lost: Callable[[Connection], None] | None = None
        self.on_leaving: Callable[[Connection], None] | None = None
        self.on_farewell: Callable[[Connection], None] | None = None
        self._context = context
        self._tasks = tasks
        self.new_event = loop_events()
        self._clock = loop_clock()
        self._opened = self.last_message = self._clock()
        self._ids = itertools.count(1)
        self._is_started = False
        self._error: WebSocketError | None = None
        self._closing_error: WebSocketError | None = None
        self._inbox: deque[Message] | None = None
        self._skipped: list[Message] = []
        self._skipped_bytes = 0
        self._user: User | None = None
        self.reads = 0
        self._is_being_read = False
        self._has_read: anyio.Event | None = None
        self._ended: anyio.Event | None = None
        self._closing_code = 1000
        self._outbox: Outbox | None = None
        self._beats: Beats | None = None
        self._keepers: list[anyio.CancelScope] = []
        beat = settings.heartbeat
        watches = beat is not None and (beat.expect is not None or beat.silence is not None)
        self._replayed: list[Message] | None = None
        self._replayed_bytes = 0
        # True if messages may have to be kept, for streams on their way here or for a session's next call.
        self._keeps_messages = False
        self._handles_messages = bool(settings.on_message) or watches
        self._takes_messages_whole = not self._handles_messages and settings.incoming is None
        self._set_up()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.display_url}, {self.state}, {self.calls} calls>"

    @property
    def state(self) -> str:
        """One of "idle", "active", "closing" and "closed"."""
        if self._error is not None:
            return "closed"
        if self.retired or self.is_parting:
            return "closing"
        return "active" if self.is_in_use else "idle"

    @property
    def error(self) -> WebSocketError | None:
        """Why the connection is closed; None while it is open."""
        return self._error

    @property
    def is_available(self) -> bool:
        """True if a further exchange may use it."""
        return self.wire.closed is None and self._error is None and not self.retired and not self.is_leaving

    @property
    def has_unread_data(self) -> bool:
        """True if data has arrived that has not been read."""
        return self.wire.has_unread_data()

    @property
    @abstractmethod
    def is_in_use(self) -> bool:
        """True if an exchange uses it."""

    @property
    def is_over(self) -> bool:
        """True once retired or failed; then only the farewell may still read."""
        return self.retired or self._error is not None

    @abstractmethod
    def open_channel(self, user: User) -> Channel:
        """Begin an exchange's use of the connection."""

    @abstractmethod
    async def drain(self) -> None:
        """Discard what arrived while the connection was unused, unless there is no end to it."""

    def start(self) -> None:
        """Start what keeps the connection alive after its login."""
        self._is_started = True
        self._start_reading()
        if self.settings.ping_interval is not None:
            self._run(self._keep, self._ping, self.settings.ping_interval)
        heartbeat = self.settings.heartbeat
        if heartbeat is not None and heartbeat.every is not None:
            self._beats = Beats(
                heartbeat,
                context=self.next_context,
                compute=self.captured.update,
                send=self.post,
                pong_timeout=self.settings.pong_timeout,
                is_backlogged=self._is_backlogged,
            )
            self._run(self._keep, self._beat, self._beats)
        if heartbeat is not None and heartbeat.silence is not None:
            self._run(self._keep, self._watch_silence, heartbeat.silence)
        _log.info("connection opened: %s", self.display_url, extra={"endpoint": self.display_url, "event": "opened"})

    # Placeholders

    def next_id(self) -> int:
        """A number larger than every one before on this connection."""
        return next(self._ids)

    def next_context(self) -> RenderContext:
        """The values of placeholders in the connection's next own step, reply or beat."""
        return self._context.for_step(self.next_id(), next_step_id=self.next_id, captured=self.captured)

    # What the kinds do differently

    @abstractmethod
    def _set_up(self) -> None:
        """Set the attributes of this kind."""

    @abstractmethod
    def _start_reading(self) -> None:
        """Make sure that the connection is read from now on, whether or not it is in use."""

    @abstractmethod
    def _ensure_reading(self) -> None:
        """Make sure that something reads now, so that a pong is noticed."""

    @abstractmethod
    def _deliver(self, message: Message) -> None:
        """Route a message that is not the connection's own."""

    @abstractmethod
    def _dismiss(self, error: WebSocketError) -> None:
        """End every use, with an error for each user."""

    @abstractmethod
    def exchange_left(self) -> None:
        """An exchange has left a connection that takes no further one, and others are still there."""

    @abstractmethod
    def _users(self) -> Iterable[User]:
        """The recipients of the connection's error when it is lost."""

    # Reading

    async def receive(self, user: User | None = None) -> Message:
        """The next message for an exclusive user, or for the connection's own conversation. Cancelling loses nothing.

        Raises:
            Interrupted: The use has ended.
            WebSocketError: The connection is closed, and everything that came before was received.
        """
        while True:
            if self._user is not user:
                raise Interrupted
            if self._inbox:
                return self._inbox.popleft()
            if self._error is not None:
                raise copy.copy(self._error)
            await self._read()

    async def _read(self) -> None:
        """Read a message and take it in, or wait until another task has read one."""
        if self._is_being_read:
            if self._has_read is None or self._has_read.is_set():
                self._has_read = anyio.Event()
            await self._has_read.wait()
            return
        self._is_being_read = True
        try:
            data = await self.wire.receive()
        except Interrupted:
            return
        except WebSocketError as error:
            self.fail(error)
            return
        finally:
            self._is_being_read = False
            self.reads += 1
            if self._has_read is not None:
                self._has_read.set()
        self._take_in(data)
        if self._outbox is not None:
            await self._outbox.wait_for_room()

    def _take_in(self, data: str | bytes) -> None:
        """Route the records of a message right after it has been read."""
        try:
            if self._takes_messages_whole:
                self._deliver(Message(data))
            elif self.settings.incoming is None:
                self._take_in_record(Message(data))
            else:
                for record in self.settings.incoming.records(data):
                    self._take_in_record(record)
        except ResponseError as error:
            self.fail(WebSocketProtocolError(str(error), endpoint=self.display_url))
        except Exception as error:  # noqa: BLE001 - the bulkhead: it ends this connection and nothing else
            self._fail_internally(error, "taking in a message")

    def _take_in_record(self, message: Message) -> None:
        # What comes behind the message that has retired it reaches no exchange. If it were captured, a stream that goes
        # on from what it has captured would never get it.
        if self.retired or not (self._handles_messages and self._handle(message)):
            self._deliver(message)

    def _handle(self, message: Message) -> bool:
        """Do what `heartbeat` and `on_message` say of a message; True if it is hidden from exchanges."""
        self.last_message = self._clock()
        context = self._context.replace(captured=self.captured, message=message)
        beats = self._beats
        if beats is not None and self._is_answer_to_beat(beats, message, context):
            return True
        for handler in self.settings.on_message:
            try:
                if not handler.matches(message, context):
                    continue
            except ResponseError as error:
                self._log_step(handler.where, str(error))
                continue
            if self.trace is not None:
                self.trace("received", message.data, handler.where)
            self._do_as_told(handler, message)
            return not handler.deliver
        return False

    def _is_answer_to_beat(self, beats: Beats, message: Message, context: RenderContext) -> bool:
        heartbeat = self.settings.heartbeat
        assert heartbeat is not None
        if heartbeat.expect is None:
            return False
        context = context if beats.last_context is None else beats.last_context
        try:
            if not heartbeat.expect.matches(message, context):
                return False
            capture(heartbeat.capture, message, self.captured, context)
        except (ResponseError, ValueError) as error:
            self._log_step(heartbeat.where, str(error))
            return False
        if self.trace is not None:
            self.trace("received", message.data, "answer to heartbeat")
        beats.answered()
        return True

    def _do_as_told(self, handler: MessageHandler, message: Message) -> None:
        """Do what an entry of `on_message` says. What goes wrong in it is logged, and its reply left out."""
        context = self.next_context().replace(message=message)
        try:
            capture(handler.capture, message, self.captured, context)
            if handler.compute is not None:
                self.captured.update(handler.compute.compute(context))
            if handler.reply is not None:
                reply = handler.reply.encode(context)
                if self.trace is not None:
                    self.trace("sent", reply, f"reply of {handler.where}")
                self._open_outbox().reply(reply)
        except (ResponseError, ValueError) as error:
            self._log_step(handler.where, f"reply left out: {error}")
        if handler.lost:
            self.give_up(WebSocketClosedError(f"closed as {handler.where} says", endpoint=self.display_url))
            return
        if handler.resume is not None and self._is_logging_in:
            # It is not in use yet: the call that waits for it opens another one, in the way that this says.
            reason = f"the endpoint asked for another connection ({handler.where}) before this one was ready"
            self.fail(MoveAskedError(reason, handler.resume, self.captured, endpoint=self.display_url))
            return
        if handler.resume is not None:
            self._closing_code = 1011
            for user in list(self._users()):
                user.move(handler.resume)
        if handler.retire or handler.resume is not None:
            self.leave()

    def _log_step(self, where: str, reason: str) -> None:
        extra = {"endpoint": self.display_url}
        _log.warning("%s: %s: %s", where, self.display_url, reason, extra=extra)

    def leave(self) -> None:
        """Take no further exchange, and close when the last one is over."""
        if not self.is_leaving:
            self.is_leaving = True
            if self.on_leaving is not None:
                self.on_leaving(self)

    def part(self) -> None:
        """Send the close frame behind what is queued, and go on reading for the users that are still there."""
        if not (self.is_parting or self.is_over):
            self.is_parting = True
            self._stop_keepers()
            self._run(self._send_close)

    async def _send_close(self) -> None:
        if self._outbox is not None:
            await self._outbox.flush()
        await self.wire.send_close(self._closing_code)

    def take_in_unread(self) -> None:
        """Route what was read from the socket and not received yet."""
        for data in self.wire.take_nowait():
            self._take_in(data)

    # Writing

    async def send(self, data: str | bytes) -> None:
        """Send one message in the caller's task. Cancelled half-way, the connection is lost."""
        try:
            outgoing = self.settings.outgoing
            if outgoing is None:
                await self.wire.send(data)
            else:
                await self.wire.send(outgoing.apply(data), outgoing.fragment)
        except WebSocketError as error:
            self._fail_behind_messages(error)
            raise

    async def _transmit(self, messages: list[str | bytes]) -> None:
        """Send what has come together in the outbox."""
        outgoing = self.settings.outgoing
        try:
            if outgoing is None:
                await self.wire.send_many(messages)
            else:
                await self.wire.send_many([outgoing.apply(data) for data in messages], outgoing.fragment)
        except WebSocketError:
            # A reply that is due behind the close frame is left out, and what is still to come is read.
            if not self.is_parting or self.wire.closed is not None:
                raise

    def post(self, data: str | bytes) -> Outgoing:
        """Queue one message; it is sent in order, even if the caller is cancelled meanwhile."""
        return self._open_outbox().post(data)

    def _open_outbox(self) -> Outbox:
        if self._outbox is None:
            self._outbox = Outbox()
            if self._error is not None:
                self._outbox.close()
            self._run(self._outbox.send_all, self._transmit)
        return self._outbox

    # The connection's own conversations

    async def log_in(self, steps: tuple[Step, ...], note: WaitNote, *, keeps_skipped: bool = False) -> None:
        """Run `on_connect`.

        Args:
            steps: The steps.
            note: Record of the message that is waited for.
            keeps_skipped: True to keep what the steps skip for the first users: a stream that goes on with this
                connection is told what it has missed before it is told that it goes on.

        Raises:
            WebSocketAuthError: A step was rejected, or the connection closed with a code that means as much.
            WebSocketConnectionError: Another step failed.
            WebSocketError: The connection was closed.
        """
        failure: WebSocketError
        self._is_logging_in = True
        moment = self._own_moment(note)
        if keeps_skipped:
            moment.skipped = self._keep_skipped
        try:
            await run_steps(steps, moment)
            self._is_logging_in = False
            if self._skipped:
                self._inbox = deque([*self._skipped, *(self._inbox or ())])
                self._skipped.clear()
            return
        except StepFailed as error:
            failure = login_error(error, self.display_url)
        except WebSocketError as error:
            if not is_login_refusal(error):
                raise
            reason = f"the endpoint refused the login: {error.args[0]}"
            failure = WebSocketAuthError(reason, endpoint=self.display_url)
        raise failure

    def _keep_for_later(self, message: Message) -> None:
        """Put a message into the inbox: it is for the conversation that goes on, or for the first user."""
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)

    def _keep_skipped(self, message: Message) -> None:
        self._skipped.append(message)
        self._skipped_bytes += message.size
        if self._skipped_bytes > MAX_KEPT_BYTES:
            reason = f"more than {MAX_KEPT_BYTES // 1024} KiB arrived during the login"
            self.fail(WebSocketProtocolError(reason, endpoint=self.display_url))

    # What comes before all the streams are here that a shared connection was opened for

    def begin_replaying(self) -> None:
        """Keep what is routed from now on for each stream that will go on here, until all of them do.

        A server may begin with what was missed while some of the streams are still on their way.
        """
        self._replayed = []
        self._keeps_messages = True

    def take_replayed(self) -> tuple[Message, ...]:
        """What has come so far, for a stream that goes on here now.

        Raises:
            WebSocketProtocolError: It was more than is kept.
        """
        if self._replayed_bytes > MAX_KEPT_BYTES:
            reason = f"more than {MAX_KEPT_BYTES // 1024} KiB arrived before the stream had resumed"
            raise WebSocketProtocolError(reason, endpoint=self.display_url)
        return tuple(self._replayed or ())

    def forget_replayed(self) -> None:
        """All streams are here."""
        self._replayed = None
        self._replayed_bytes = 0
        self._keeps_messages = self.between_calls is not None

    def _keep_replayed(self, message: Message, replayed: list[Message]) -> None:
        if self._replayed_bytes <= MAX_KEPT_BYTES:
            replayed.append(message)
            self._replayed_bytes += message.size
            if self._replayed_bytes > MAX_KEPT_BYTES:
                replayed.clear()

    # What comes between the calls of a session

    def begin_session(self) -> None:
        """Keep what arrives between two calls for the next one."""
        self.between_calls = BetweenCalls()
        self._keeps_messages = True

    @property
    def has_kept(self) -> bool:
        """True if something arrived between the calls of a session and was not taken yet."""
        return bool(self.between_calls)

    def _is_kept(self, message: Message) -> bool:
        """Keep a message if it has to be; True if it is then for nobody who is here now."""
        if self._replayed is not None:
            self._keep_replayed(message, self._replayed)
            return False
        between = self.between_calls
        if between is None or self.is_over or not between.keep(message):
            return False
        if between.size > MAX_KEPT_BYTES:
            reason = f"the session was closed: more than {MAX_KEPT_BYTES // 1024} KiB arrived between its calls"
            self.give_up(WebSocketClosedError(reason, endpoint=self.display_url))
        return True

    async def _say_farewell(self) -> None:
        moment = self._own_moment(WaitNote())
        moment.omits_steps_without_captures = True
        try:
            await run_steps(self.settings.on_close, moment)
        except (WebSocketError, StepFailed, Interrupted) as error:
            _log.debug("farewell cut short: %s: %s", self.display_url, type(error).__name__)

    def _own_moment(self, note: WaitNote) -> Moment:
        return Moment(
            context=self.next_context,
            captured=self.captured,
            send=self._send_step,
            receive=self.receive,
            network=self.network,
            display_url=self.display_url,
            note=note,
            trace=self.trace,
        )

    async def _send_step(self, data: str | bytes) -> None:
        await self.send(data)

    # The tasks

    def start_task(self, run: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Start a task of an exchange; it must let no exception escape."""
        self._tasks.start_soon(run, *arguments)

    def can_be_shared(self, farewell: Hashable) -> bool:
        """True if a further exchange may share it, whose farewell would not silence another one."""
        return self.is_available and (farewell is None or farewell not in self.farewells)

    def plan_farewell(self, farewell: Hashable) -> None:
        """Note that an exchange will send this message when it leaves."""
        self.farewells[farewell] += 1

    def drop_farewell(self, farewell: Hashable) -> None:
        """Forget one that was planned."""
        self.farewells[farewell] -= 1
        if self.farewells[farewell] <= 0:
            del self.farewells[farewell]

    def farewell_said(self, farewell: Hashable) -> None:
        """Note that an exchange has left and its farewell was sent."""
        self.drop_farewell(farewell)
        if self.on_farewell is not None:
            self.on_farewell(self)

    def _run(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Start a task of the connection. Whatever goes wrong in it ends the connection, and nothing else."""
        self._tasks.start_soon(self._run_guarded, run, *arguments)

    async def _run_guarded(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await run(*arguments)
        except WebSocketError as error:
            self._fail_behind_messages(error)
        except Exception as error:  # noqa: BLE001 - the bulkhead
            self._fail_internally(error, f"running {run.__name__}")

    async def _keep(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run a task that ends when the connection is retired: it must not cut the closing handshake short."""
        with anyio.CancelScope() as scope:
            if not self.is_over:
                self._keepers.append(scope)
                await run(*arguments)

    def _stop_keepers(self) -> None:
        while self._keepers:
            self._keepers.pop().cancel()

    def _fail_internally(self, error: Exception, doing: str) -> None:
        log_internal_error(_log, error, doing)
        self.fail(internal_error(error, endpoint=self.display_url))

    async def _ping(self, interval: float) -> None:
        timeout = self.settings.pong_timeout
        await keep_alive(
            self.wire,
            interval=interval,
            pong_timeout=timeout,
            ensure_reading=self._ensure_reading,
            is_backlogged=self._is_backlogged,
        )
        self._give_up(f"no pong within {timeout:g} s")

    async def _beat(self, beats: Beats) -> None:
        await beats.run()
        self._give_up("the heartbeat was not answered in time")

    async def _watch_silence(self, seconds: float | Template) -> None:
        await watch_silence(seconds, self.next_context(), lambda: self.last_message, self._is_backlogged)
        self._give_up("no message came for longer than heartbeat.silence allows")

    def _give_up(self, why: str) -> None:
        self.give_up(WebSocketClosedError(why, code=1011, endpoint=self.display_url))

    def _is_backlogged(self) -> bool:
        """True if messages wait for a slow consumer, and a pong or an answer to a beat may wait behind them."""
        return self._user is not None and not self._is_being_read and self.wire.has_unread_data()

    # The end

    def fail(self, error: WebSocketError) -> None:
        """Record why the connection ended, once, and wake everything that waits on it."""
        if self._error is not None:
            return
        # A close on this side is why, however it then ended on the wire.
        self._error = error = self._closing_error or error
        self.wire.abort()
        if self._outbox is not None:
            self._outbox.close()
        self._stop_keepers()
        for event in (self._ended, self._has_read):
            if event is not None:
                event.set()
        self._ensure_reading()
        for user in self._users():
            user.fail(copy.copy(error))
        if self._is_started:
            self._report(error)
        if self.on_lost is not None:
            self.on_lost(self)

    def _fail_behind_messages(self, error: WebSocketError) -> None:
        """Fail, after what came before the end: a task that writes may notice it first, or while no task reads."""
        for data in () if self.is_over else self.wire.take_nowait():
            self._take_in(data)
        self.fail(error)

    def give_up(self, error: WebSocketError) -> None:
        """Fail every user with an error, and close with code 1011 in the background."""
        if self.is_over:
            return
        self.was_given_up = True
        self._tasks.start_soon(self.aclose, 1011)
        self.retire(error)

    def retire(self, why: str | WebSocketError) -> None:
        """Stop new use and fail current users. Call `aclose` next."""
        self.retired = True
        if isinstance(why, str):
            why = WebSocketClosedError(why, code=1000, endpoint=self.display_url)
        self._closing_error = why
        self._stop_keepers()
        self._ensure_reading()
        self._end_use(why)

    async def aclose(self, code: int | None = None) -> None:
        """Close a retired connection: farewell, closing handshake, socket. Bounded; it cannot be cancelled.

        Args:
            code: The close code; only with 1000 there is a farewell. None: 1000, or 1011 if its streams have moved.
        """
        if self._error is not None:
            return
        if code is None:
            code = self._closing_code
        assert self._closing_error is not None
        is_flushed = False
        try:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(CLOSING_TIME):
                    if self._outbox is not None:
                        await self._outbox.flush()
                    is_flushed = True
                    if self.settings.on_close and code == 1000:
                        await self._say_farewell()
                if is_flushed:
                    # A peer that has not read what came before would not read a close frame either.
                    await self.wire.close(code)
        except Exception as error:  # noqa: BLE001 - the bulkhead
            log_internal_error(_log, error, "closing a connection")
        finally:
            # The end of asyncio.run cancels without asking anyio's scopes.
            self.fail(self._closing_error)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, by whichever side."""
        if self._error is None:
            if self._ended is None:
                self._ended = anyio.Event()
            await self._ended.wait()

    def abort(self, why: str) -> None:
        """Close the socket now, without a word to the peer."""
        self.retired = True
        error = WebSocketClosedError(why, endpoint=self.display_url)
        self._end_use(error)
        self.fail(error)

    def _end_use(self, error: WebSocketError) -> None:
        self._dismiss(error)
        self.wire.set_data_callback(None)
        self.wire.interrupt()
        if self._has_read is not None:
            self._has_read.set()

    def _report(self, error: WebSocketError) -> None:
        is_expected = self.retired or self.is_parting
        how, level = ("closed", logging.INFO) if is_expected else ("lost", logging.WARNING)
        lasted = self._clock() - self._opened
        extra = {"endpoint": self.display_url, "event": how, "duration": lasted, "calls": self.calls}
        text = "connection %s: %s: %s after %.1f s, %d calls"
        _log.log(level, text, how, self.display_url, error.args[0], lasted, self.calls, extra=extra)
