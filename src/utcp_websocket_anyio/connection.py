"""One pooled connection: read at all times, used by one exchange at a time or shared by many.

Who reads. A WebSocket nobody reads answers no ping and notices no close, so a connection is always being read; but a
task of its own between the wire and the waiting caller costs two task switches a call. So an *exclusive* exchange reads
the wire itself while it waits, and the connection's own reader task takes over when nobody has read for a moment: while
the connection is idle, and while the consumer of a stream is away, into an inbox of bounded size (past which TCP holds
the sender back). A *multiplexed* connection is read by its reader task alone, which routes each message to the
exchanges whose filters match.

Who writes. An exclusive exchange sends itself, and takes its connection with it when it is cancelled half-way; on a
shared one the messages of all go through an `Outbox`.

Failure is a state, not an exception that travels: the first error ends the connection, and everyone who uses it gets a
copy of it.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from .conversation import capture, converse, response_faults
from .errors import WebSocketAuthError, WebSocketClosedError, WebSocketError
from .heartbeat import Heartbeat
from .lull import Lull
from .message import Message
from .outbox import Outbox, Outgoing
from .router import Recipient, Router
from .template import Values
from .wire import CLOSING_TIME, Interrupted

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .plan import ConnectionPlan, Step
    from .watch import Watch
    from .wire import Wire

__all__ = ["Connection"]

_log = logging.getLogger(__name__)

_INBOX_MESSAGES = 16
_INBOX_BYTES = 256 * 1024
_SETTLING_ROUNDS = 100


class Connection:
    """An open WebSocket with the conversation around it: login, heartbeat, automatic replies, farewell."""

    def __init__(self, wire: Wire, plan: ConnectionPlan, *, label: str) -> None:
        self.wire = wire
        self.plan = plan
        self.label = label
        self.calls = 0
        self.retired = False
        self.unanswered = False
        self.captured: dict[str, Any] = {}
        self.on_lost: Callable[[Connection], None] | None = None
        self._opened = anyio.current_time()
        self._error: WebSocketError | None = None
        self._reason: WebSocketError | None = None
        self._call_id = 0
        self._values = Values({}, "")
        self._user: Recipient | None = None
        self._reading = False
        self._lull = Lull(self._is_read_or_full)
        self._arrival: anyio.Event | None = None
        self._ended: anyio.Event | None = None
        self._heartbeat: Heartbeat | None = None
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._router = Router()
        self._outbox: Outbox | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.label}, {self.state}, {self.calls} calls>"

    @property
    def state(self) -> str:
        if self._error is not None:
            return "closed"
        if self.retired:
            return "closing"
        return "active" if self._user is not None or self._router else "idle"

    @property
    def error(self) -> WebSocketError | None:
        """Why the connection is closed; None while it is open."""
        return self._error

    @property
    def usable(self) -> bool:
        return self._error is None and not self.retired and self.wire.closed is None

    def start(self, task_group: TaskGroup, watch: Watch) -> None:
        """Start what keeps the connection alive; it ends with it."""
        task_group.start_soon(self._keep_reading)
        if self.plan.multiplex:
            self._outbox = Outbox()
            task_group.start_soon(self._keep_writing, self._outbox)
        if self.plan.ping_interval is not None:
            self._heartbeat = Heartbeat(self, self.plan.ping_interval, task_group=task_group, watch=watch)
        _log.info("connection opened: %s", self.label, extra={"endpoint": self.label, "event": "opened"})

    def have_read(self) -> None:
        """See to it that somebody reads: a pong will come."""
        if not self._reading:
            self._lull.nudge()

    @property
    def is_held_back(self) -> bool:
        """Whether messages wait for a slow consumer, and a pong may wait behind them."""
        return self._user is not None and (bool(self._inbox) or self.wire.pending())

    # Exclusive use

    @property
    def quiet(self) -> bool:
        """Whether nothing has arrived that is still to be discarded."""
        return not self.wire.pending()

    async def settle(self) -> None:
        """Discard what has arrived while the connection was idle, as long as that does not go on and on."""
        for _ in range(_SETTLING_ROUNDS):
            if not self.usable or self.quiet:
                break
            self._lull.nudge()
            await anyio.lowlevel.checkpoint()

    def attach(self, user: Recipient) -> None:
        """Begin an exclusive use: what comes from now on is the user's. Only a close on this side calls its `fail`."""
        self._user = user
        self.calls += 1

    def detach(self, user: Recipient) -> None:
        """End an exclusive use. What comes from now on is nobody's."""
        if self._user is user:
            self._user = None
            self._inbox.clear()
            self._inbox_bytes = 0

    def receive_nowait(self) -> Message | None:
        """The next message that is already there."""
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message.data)
        return message

    def take_nowait(self) -> deque[str | bytes] | None:
        """All messages that are already there, or None where each has to be looked at before it is handed on."""
        if self._inbox or self.plan.auto_reply:
            return None
        return self.wire.take_nowait()

    async def receive(self, user: Recipient | None = None) -> Message:
        """The next message that is not answered automatically. Cancelling it loses nothing.

        Args:
            user: Whose use of the connection this is part of; None: the connection's own.

        Raises:
            Interrupted: The use has ended, because the connection was retired.
            WebSocketClosedError: The connection is closed, by whichever side.
            WebSocketProtocolError: The peer broke the protocol.
        """
        while True:
            if self._user is not user:
                raise Interrupted
            if (message := self.receive_nowait()) is not None:
                return message
            if self._error is not None:
                raise copy.copy(self._error)
            if self._reading:
                if self._arrival is None or self._arrival.is_set():
                    self._arrival = anyio.Event()
                await self._arrival.wait()
                continue
            self._reading = True
            try:
                data = await self.wire.receive()
            except Interrupted:
                continue
            except WebSocketError as error:
                self.fail(error)
                continue
            finally:
                self._reading = False
                self._lull.reads += 1
                self._wake(self._arrival)
            message = Message(data)
            if not (self.plan.auto_reply and await self._reply(message)):
                return message

    async def send(self, data: str | bytes) -> None:
        """Send one message of an exclusive use. Cancelled half-way, the connection is lost."""
        try:
            await self.wire.send(data)
        except WebSocketError as error:
            self.fail(error)
            raise

    # Shared use

    def join(self, recipient: Recipient) -> None:
        """Have messages offered to `recipient` until it leaves."""
        if self._error is not None:
            raise copy.copy(self._error)
        self._router.add(recipient)

    def leave(self, recipient: Recipient) -> None:
        self._router.remove(recipient)

    def post(self, data: str | bytes) -> Outgoing:
        """Have one message sent in order, whoever is cancelled meanwhile."""
        assert self._outbox is not None
        return self._outbox.post(data)

    # Conversations

    def next_call_id(self) -> int:
        """A number larger than every one before on this connection."""
        self._call_id += 1
        return self._call_id

    async def log_in(self) -> None:
        """Have the conversation that opens the connection.

        Raises:
            WebSocketAuthError: A step was rejected.
        """
        await self._converse(self.plan.on_connect, "on_connect")

    async def _converse(self, steps: tuple[Step, ...], where: str) -> None:
        await converse(
            steps,
            values=self._own_values,
            send=self.send,
            receive=self.receive,
            captured=self.captured,
            rejected=lambda index, _: WebSocketAuthError(
                f"the endpoint rejected the step {where}[{index}]", endpoint=self.label
            ),
            label=self.label,
        )

    def _own_values(self) -> Values:
        """What placeholders stand for where the connection itself speaks: one uuid, and no arguments."""
        self._values.call_id = self.next_call_id()
        self._values.captured = self.captured
        return self._values

    async def _reply(self, message: Message) -> bool:
        """Answer an application-level ping, if the message is one."""
        for automatic in self.plan.auto_reply:
            with response_faults(self.label):
                if not automatic.match.matches(message, self._values):
                    continue
                capture(automatic.capture, message, self.captured)
                reply = automatic.reply.encode(self._own_values())
            await (self.send(reply) if self._outbox is None else self._outbox.reply(reply))
            return True
        return False

    # The tasks

    async def _keep_reading(self) -> None:
        try:
            while not (self._error or self.retired):
                if self.plan.multiplex or await self._turn_to_read():
                    with suppress(Interrupted):
                        await self._read_one()
        except WebSocketError as error:
            self.fail(error)

    async def _read_one(self) -> None:
        self._reading = True
        try:
            message = Message(await self.wire.receive())
        finally:
            self._reading = False
            self._wake(self._arrival)
        if self.plan.auto_reply and await self._reply(message):
            return
        if self._user is not None or self.retired:
            self._inbox.append(message)
            self._inbox_bytes += len(message.data)
        elif self._router:
            self._router.route(message)

    async def _turn_to_read(self) -> bool:
        """Wait until it is the reader task's turn; False: there is nothing to read any more."""
        if self._user is not None or not self._lull.has_come:
            await self._lull.wait()
        return not (self._error or self.retired)

    def _is_read_or_full(self) -> bool:
        if self._error or self.retired:
            return False
        return self._reading or len(self._inbox) >= _INBOX_MESSAGES or self._inbox_bytes >= _INBOX_BYTES

    async def _keep_writing(self, outbox: Outbox) -> None:
        try:
            await outbox.send_all(self.wire)
        except WebSocketError as error:
            self.fail(error)

    # The end

    def fail(self, error: WebSocketError) -> None:
        """Record why the connection ended, once, and wake everyone who waits on it."""
        if self._error is not None:
            return
        self._error = error = self._reason or error  # how a close on this side ends on the wire is not why
        self.wire.abort()
        if self._outbox is not None:
            self._outbox.close()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._lull.nudge()
        self._wake(self._ended)
        self._wake(self._arrival)
        for recipient in self._router.everyone():
            recipient.fail(copy.copy(error))
        self._report(error)
        if self.on_lost is not None:
            self.on_lost(self)

    def retire(self, why: str) -> None:
        """Have nobody use the connection any more, and fail who does; `aclose` is to follow."""
        self.retired = True
        self._lull.nudge()
        self._reason = WebSocketClosedError(why, code=1000, endpoint=self.label)
        self._dismiss(self._reason)

    async def aclose(self) -> None:
        """Close a retired connection: farewell, closing handshake, socket. Bounded, and not to be cancelled."""
        if self._error is not None:
            return
        assert self._reason is not None
        try:
            with anyio.CancelScope(shield=True):
                if self.plan.on_close:
                    with anyio.move_on_after(CLOSING_TIME):
                        await self._say_farewell()
                await self.wire.close()
        finally:
            # The end of asyncio.run cancels without asking anyio's scopes.
            self.fail(self._reason)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, by whichever side."""
        if self._error is None:
            if self._ended is None:
                self._ended = anyio.Event()
            await self._ended.wait()

    def abort(self, why: str) -> None:
        """Close the socket now, without a word to the peer."""
        self.retired = True
        error = WebSocketClosedError(why, endpoint=self.label)
        self._dismiss(error)
        self.fail(error)

    async def _say_farewell(self) -> None:
        try:
            await self._converse(self.plan.on_close, "on_close")
        except WebSocketError as error:
            _log.debug("farewell cut short: %s: %s", self.label, type(error).__name__)

    def _dismiss(self, error: WebSocketError) -> None:
        users = self._router.everyone()
        if self._user is not None:
            users.append(self._user)
            self.detach(self._user)
        for user in users:
            self._router.remove(user)
            user.fail(copy.copy(error))
        self.wire.interrupt()
        self._wake(self._arrival)

    def _report(self, error: WebSocketError) -> None:
        how, level = ("closed", logging.INFO) if self.retired else ("lost", logging.WARNING)
        lasted = anyio.current_time() - self._opened
        extra = {"endpoint": self.label, "event": how, "duration": lasted, "calls": self.calls}
        text = "connection %s: %s: %s after %.1f s, %d calls"
        _log.log(level, text, how, self.label, error.args[0], lasted, self.calls, extra=extra)

    @staticmethod
    def _wake(event: anyio.Event | None) -> None:
        if event is not None:
            event.set()
