"""One pooled connection: read at all times, used by one exchange at a time or shared by many.

Who reads. On trio, a WebSocket nobody reads answers no ping and notices no close, so a connection is always being read;
but a task of its own between the wire and the waiting caller costs two task switches a call. So an *exclusive* exchange
reads the wire itself while it waits, and the connection's own reader task takes over when nobody has read for a moment:
while the connection is idle, and while the consumer of a stream is away, into an inbox of bounded size (past which TCP
holds the sender back). On asyncio, where the transport pushes, the wire does all that without a task and tells when
there is something to be thrown away. A *multiplexed* connection is read by its reader task alone, which routes each
message to the exchanges whose filters match.

Who writes. An exclusive exchange sends itself, and takes its connection with it when it is cancelled half-way; on a
shared one the messages of all go through an `Outbox`.

Failure is a state, not an exception that travels: the first error ends the connection, and everyone who uses it gets a
copy of it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from .._templates.received import Message
from .._wire import CLOSING_TIME, Interrupted
from ..errors import WebSocketClosedError, WebSocketError
from .outbox import Outbox, Outgoing
from .pings import Heartbeat
from .router import Recipient, Router
from .stand_in import StandIn
from .steps import ConnectionScript

if TYPE_CHECKING:
    from collections import deque

    from anyio.abc import TaskGroup

    from .._templates.plan import ConnectionSettings
    from .._wire import Wire
    from .deadlines import Deadlines

__all__ = ["Connection"]

_log = logging.getLogger(__name__)

_SETTLING_ROUNDS = 100


class Connection:
    """An open WebSocket with the conversation around it: login, heartbeat, automatic replies, farewell."""

    def __init__(self, wire: Wire, plan: ConnectionSettings, *, display_url: str) -> None:
        self.wire = wire
        self.plan = plan
        self.display_url = display_url
        self.calls = 0
        self.retired = False
        self.unanswered = False
        self.is_being_read = False
        self.script = ConnectionScript(plan.auto_reply, display_url)
        self.on_lost: Callable[[Connection], None] | None = None
        self._opened = wire.current_time()
        self._error: WebSocketError | None = None
        self._reason: WebSocketError | None = None
        self._user: Recipient | None = None
        self._stand_in: StandIn | None = None
        self._inbox: deque[Message] | None = None
        self._arrival: anyio.Event | None = None
        self._ended: anyio.Event | None = None
        self._heartbeat: Heartbeat | None = None
        self._router: Router | None = None
        self._outbox: Outbox | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.display_url}, {self.state}, {self.calls} calls>"

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
        return not self.is_over and self.wire.closed is None

    def start(self, task_group: TaskGroup, deadlines: Deadlines) -> None:
        """Start what keeps the connection alive; it ends with it."""
        if self.plan.multiplex:
            self._router = Router()
            self._outbox = Outbox()
            task_group.start_soon(self._failing, self._keep_routing, self._router)
            task_group.start_soon(self._failing, self._outbox.send_all, self.wire)
        elif self.plan.auto_reply or not self.wire.notify(self._discard):
            self._stand_in = StandIn(self)
            self._inbox = self._stand_in.inbox
            task_group.start_soon(self._failing, self._stand_in.run)
        if self.plan.ping_interval is not None:
            self._heartbeat = Heartbeat(self, self.plan.ping_interval, task_group=task_group, deadlines=deadlines)
        _log.info("connection opened: %s", self.display_url, extra={"endpoint": self.display_url, "event": "opened"})

    def have_read(self) -> None:
        """See to it that somebody reads: a pong will come."""
        if not self.is_being_read:
            self._nudge()

    @property
    def is_held_back(self) -> bool:
        """Whether messages wait for a slow consumer, and a pong may wait behind them."""
        return self.is_in_use and (bool(self._inbox) or self.wire.pending())

    @property
    def is_in_use(self) -> bool:
        """Whether an exclusive exchange has it."""
        return self._user is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be read any more, but by a farewell."""
        return self.retired or self._error is not None

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
            if self._stand_in is None:
                self._discard()
            else:
                self._stand_in.nudge()
            await anyio.lowlevel.checkpoint()

    def attach(self, user: Recipient) -> None:
        """Begin an exclusive use: what comes from now on is the user's. Only a close on this side calls its `fail`."""
        self._user = user
        self.calls += 1
        if self._stand_in is None:
            self.wire.notify(None)

    def detach(self, user: Recipient) -> None:
        """End an exclusive use. What comes from now on is nobody's."""
        if self._user is user:
            self._user = None
            if self._inbox is not None:
                self._inbox.clear()
            elif not self.retired:
                self.wire.notify(self._discard)

    def receive_nowait(self) -> Message | None:
        """The next message that is already there."""
        return self._inbox.popleft() if self._inbox else None

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
            if self.is_being_read:
                if self._arrival is None or self._arrival.is_set():
                    self._arrival = anyio.Event()
                await self._arrival.wait()
                continue
            self.is_being_read = True
            try:
                data = await self.wire.receive()
            except Interrupted:
                continue
            except WebSocketError as error:
                self.fail(error)
                continue
            finally:
                self.is_being_read = False
                if self._stand_in is not None:
                    self._stand_in.others_have_read()
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
        assert self._router is not None
        self._router.add(recipient)

    def leave(self, recipient: Recipient) -> None:
        assert self._router is not None
        self._router.remove(recipient)

    def post(self, data: str | bytes) -> Outgoing:
        """Have one message sent in order, whoever is cancelled meanwhile."""
        assert self._outbox is not None
        return self._outbox.post(data)

    # Conversations

    async def log_in(self) -> None:
        """Have the conversation that opens the connection.

        Raises:
            WebSocketAuthError: A step was rejected.
        """
        await self.script.run_steps(self.plan.on_connect, "on_connect", send=self.send, receive=self.receive)

    async def _say_farewell(self) -> None:
        try:
            await self.script.run_steps(self.plan.on_close, "on_close", send=self.send, receive=self.receive)
        except WebSocketError as error:
            _log.debug("farewell cut short: %s: %s", self.display_url, type(error).__name__)

    async def _reply(self, message: Message) -> bool:
        """Answer an application-level ping, if the message is one."""
        reply = self.script.reply_to(message)
        if reply is None:
            return False
        await (self.send(reply) if self._outbox is None else self._outbox.reply(reply))
        return True

    # The tasks

    async def _keep_routing(self, router: Router) -> None:
        while not self.is_over:
            message = await self.read_one()
            if message is not None:
                router.route(message)
            if not self.plan.auto_reply:
                for data in self.wire.take_nowait():
                    router.route(Message(data))

    async def read_one(self) -> Message | None:
        """Read a message in the task of a reader; None if it is not to be seen by anyone."""
        self.is_being_read = True
        try:
            message = Message(await self.wire.receive())
        except Interrupted:
            return None
        finally:
            self.is_being_read = False
            self._wake(self._arrival)
        return None if self.plan.auto_reply and await self._reply(message) else message

    def _discard(self) -> None:
        """Throw away what came while the connection is idle, and notice its end."""
        if self.is_in_use or self.is_over:
            return
        if self.wire.closed is None:
            self.wire.take_nowait()
        else:
            self.fail(self.wire.closed)

    def _nudge(self) -> None:
        if self._stand_in is not None:
            self._stand_in.nudge()

    # The end

    async def _failing(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """A task of the connection: what goes wrong in it is the connection's end."""
        try:
            await run(*arguments)
        except WebSocketError as error:
            self.fail(error)

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
        self._nudge()
        self._wake(self._ended)
        self._wake(self._arrival)
        for recipient in self._recipients():
            recipient.fail(copy.copy(error))
        self._report(error)
        if self.on_lost is not None:
            self.on_lost(self)

    def retire(self, why: str) -> None:
        """Have nobody use the connection any more, and fail who does; `aclose` is to follow."""
        self.retired = True
        self._nudge()
        self._reason = WebSocketClosedError(why, code=1000, endpoint=self.display_url)
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
        error = WebSocketClosedError(why, endpoint=self.display_url)
        self._dismiss(error)
        self.fail(error)

    def _dismiss(self, error: WebSocketError) -> None:
        users = self._recipients()
        if self._user is not None:
            users.append(self._user)
            self.detach(self._user)
        for user in users:
            if self._router is not None:
                self._router.remove(user)
            user.fail(copy.copy(error))
        self.wire.notify(None)
        self.wire.interrupt()
        self._wake(self._arrival)

    def _recipients(self) -> list[Recipient]:
        return [] if self._router is None else self._router.everyone()

    def _report(self, error: WebSocketError) -> None:
        how, level = ("closed", logging.INFO) if self.retired else ("lost", logging.WARNING)
        lasted = self.wire.current_time() - self._opened
        extra = {"endpoint": self.display_url, "event": how, "duration": lasted, "calls": self.calls}
        text = "connection %s: %s: %s after %.1f s, %d calls"
        _log.log(level, text, how, self.display_url, error.args[0], lasted, self.calls, extra=extra)

    @staticmethod
    def _wake(event: anyio.Event | None) -> None:
        if event is not None:
            event.set()
