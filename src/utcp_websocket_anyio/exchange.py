"""One request and its responses, from sending the first message to the end of the exchange.

What each message means is decided elsewhere (`verdict`). There are two ways to drive an exchange, `collect` for a call
and the `open`/`next` pair for a stream, and two ways for messages to come: an exclusive exchange takes them from its
connection itself, a multiplexed one is offered them by the router and keeps its verdicts in a bounded `Mailbox`.

Times. One cancel scope holds the deadline of the whole call. A stream has no scope while its consumer has an item, so
each wait gets its own, with the same deadline.
"""

from __future__ import annotations

import math
from collections import ChainMap, deque
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from .conversation import converse, response_faults
from .errors import (
    WebSocketClosedError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)
from .mailbox import Mailbox, Raised
from .message import Message, ResponseError
from .verdict import END, SKIP, Judge

if TYPE_CHECKING:
    from .connection import Connection
    from .outbox import Outgoing
    from .plan import Step
    from .pool import Pool
    from .request import Request
    from .template import Values

__all__ = ["Exchange"]

_NORMAL_CLOSURES = (1000, 1001, 1005)


class Exchange:
    """One exchange on a connection of the pool.

    Args:
        request: The call, prepared.
        pool: Where the connection comes from.
        streaming: Whether the responses are taken one by one.
    """

    correlation: tuple[tuple[str | int, ...], Any] | None = None
    _connection: Connection | None = None
    _deadline = math.inf
    _scope: anyio.CancelScope | None = None
    _failure: WebSocketError | None = None
    _begun = False
    _over = False
    _reusable = False
    # What follows is for a shared connection, where messages come whether they are awaited or not.
    _step: tuple[Step, Values] | None = None
    _listening = False
    _outgoing: Outgoing | None = None

    def __init__(self, request: Request, *, pool: Pool, streaming: bool) -> None:
        self._request = request
        self._plan = plan = request.plan
        self._values = request.values
        self._endpoint = request.endpoint
        self._pool = pool
        self._expected = self._remaining = expected = plan.expected(streaming=streaming)
        self._judge = Judge(
            plan, request.values, streaming=streaming, open_ended=expected is None, label=request.endpoint.label
        )
        self._shared = plan.connection.multiplex
        if self._shared:
            self._mailbox = Mailbox(plan.connection.max_message_size)

    # Driving

    async def collect(self) -> Any:
        """Run the whole exchange; cancelling it gives its connection up.

        Returns:
            The response; a list where the template asks for another number than one; None where it asks for none.
        """
        if self._expected == 0:
            # The only exchange that may have nothing to wait for.
            await anyio.lowlevel.checkpoint()
        if not self._claim():
            await self._acquire()
        responses: list[Any] = []
        try:
            with self._limited() as scope:
                await self._begin()
                while (response := await self._next()) is not END:
                    responses.append(response)
            if scope.cancelled_caught:
                self._interrupted()
        finally:
            self.finish()
        if self._expected == 1:
            return responses[0]
        return None if self._expected == 0 else responses

    async def open(self) -> None:
        """Send the request of a stream. `finish` is to be called afterwards, whatever happens."""
        if not self._claim():
            await self._acquire()
        with self._limited() as scope:
            await self._begin()
        if scope.cancelled_caught:
            self._interrupted()

    async def next(self) -> Any:
        """The next response of a stream, or `END`."""
        if anyio.current_time() >= self._deadline:
            # Also where messages come so fast that nobody ever waits.
            self._interrupted()
            return END
        response = self._next_nowait()
        if response is not SKIP:
            return response
        with self._limited():
            return await self._next()
        self._interrupted()
        return END

    def _next_nowait(self) -> Any:
        """The next response if it is already there, `END` after the last one, otherwise `SKIP`."""
        if self._failure is not None:
            raise self._failure
        while not self._over:
            if self._shared:
                verdict = self._mailbox.pop() if self._mailbox else None
            else:
                assert self._connection is not None
                message = self._connection.receive_nowait()
                verdict = None if message is None else self._judged(message)
            if verdict is None:
                return SKIP
            if verdict is not SKIP:
                return self._counted(verdict)
        return END

    def take_nowait(self) -> deque[Any] | None:
        """The responses of an open-ended stream that are already there; what ends it is left to `next`."""
        if self._shared or self._remaining is not None or self._failure or self._over or self._connection is None:
            return None
        messages = self._connection.take_nowait()
        if messages is None or self._judge.takes_all(messages):
            return messages
        responses: deque[Any] = deque()
        try:
            for data in messages:
                verdict = self._judged(Message(data))
                if verdict is END:
                    self._counted(END)
                    break
                if verdict is not SKIP:
                    responses.append(verdict)
        except WebSocketError as error:
            self._failure = error
        return responses

    def finish(self) -> None:
        """Give the connection back, or up. Synchronous, so that it also serves who was cancelled or abandoned."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._shared:
            connection.leave(self)
            if self._outgoing is not None:
                self._outgoing.data = None
            return
        connection.detach(self)
        if self._reusable and not self._plan.close_after_response:
            self._pool.release(connection, self._endpoint, unanswered=self._expected == 0)
        else:
            self._pool.retire(connection, "the exchange is over" if self._over else "the exchange was given up")

    def finish_later(self) -> None:
        """As `finish`, from any thread."""
        self._pool.call_later(self.finish)

    def _claim(self) -> bool:
        """Begin with a connection that is free right now, if there is one."""
        connection = self._pool.claim(self._endpoint, self._plan, clean=self._needs_clean)
        if connection is None:
            return False
        self._begin_with(connection)
        return True

    async def _acquire(self) -> None:
        self._begin_with(await self._pool.acquire(self._endpoint, self._plan, clean=self._needs_clean))

    @property
    def _needs_clean(self) -> bool:
        return self._expected != 0 and self._plan.message_filter is None

    def _begin_with(self, connection: Connection) -> None:
        if not self._shared:
            connection.attach(self)
        self._connection = connection
        self._deadline = anyio.current_time() + self._request.timeout

    async def _begin(self) -> None:
        connection, plan = self._connection, self._plan
        assert connection is not None
        self._values.captured = ChainMap({}, connection.captured) if self._shared else connection.captured
        if self._shared:
            connection.calls += 1
        if plan.before:
            await self._converse(connection)
        if plan.uses_call_id:
            self._values.call_id = connection.next_call_id()
        if self._shared:
            await self._post(connection)
        elif not plan.listen_only:
            await connection.send(self._encoded())
        self._begun = True
        if self._expected == 0:
            self._over = self._reusable = True

    async def _post(self, connection: Connection) -> None:
        """Begin on a shared connection: join before the request can be answered."""
        connection.leave(self)
        self._step = None
        if self._plan.correlation is not None:
            path, value = self._plan.correlation
            self.correlation = path, value.render(self._values)
        connection.join(self)
        if self._plan.listen_only:
            self._listening = True
            return
        self._outgoing = connection.post(self._encoded())
        self._listening = True
        if self._expected == 0:
            await self._outgoing.done.wait()
            if not self._outgoing.is_sent:
                # Why not is in the queue, and is raised.
                await self._mailbox.take()

    def _encoded(self) -> str | bytes:
        if self._request.frame is not None:
            return self._request.frame
        assert self._plan.message is not None
        # Its arguments have been tried; what else is in it was captured.
        with response_faults(self._endpoint.label):
            return self._plan.message.encode(self._values)

    async def _converse(self, connection: Connection) -> None:
        if self._shared:
            connection.join(self)
        await converse(
            self._plan.before,
            values=lambda: self._values.for_step(connection.next_call_id()),
            send=self._send_step if self._shared else connection.send,
            receive=self._mailbox.take if self._shared else connection.receive,
            captured=self._values.captured,
            rejected=lambda index, message: WebSocketToolError(
                f"the endpoint rejected the step before[{index}]",
                response=message.content(),
                endpoint=self._endpoint.label,
            ),
            waiting=self._wait_for_step,
            label=self._endpoint.label,
        )

    async def _send_step(self, data: str | bytes) -> None:
        assert self._connection is not None
        self._connection.post(data)

    # Time

    def _limited(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope(deadline=self._deadline)
        return self._scope

    def _interrupted(self) -> None:
        """The scope was cancelled, by `fail` or by the deadline."""
        if self._failure is not None:
            raise self._failure
        if not (self._begun and self._expected is None and self._plan.is_subscription):
            raise WebSocketTimeoutError(
                f"no complete response within {self._request.timeout:g} s",
                phase="response",
                endpoint=self._endpoint.label,
            )
        self._over = True

    # Messages

    async def _next(self) -> Any:
        """Wait for the next response, or for the end."""
        wait = self._await_verdict if self._plan.idle_timeout is None or self._expected else self._await_within_silence
        while not self._over:
            verdict = await wait()
            if not (verdict is SKIP or self._over):
                return self._counted(verdict)
        return END

    async def _await_within_silence(self) -> Any:
        with anyio.move_on_after(self._plan.idle_timeout):
            while (verdict := await self._await_verdict()) is SKIP:
                pass
            return verdict
        self._over = True
        return END

    async def _await_verdict(self) -> Any:
        assert self._connection is not None
        try:
            if self._shared:
                return await self._mailbox.take()
            return self._judged(await self._connection.receive())
        except WebSocketClosedError as error:
            if not self._ends_well(error):
                raise
        self._over = True
        return END

    def _ends_well(self, error: WebSocketClosedError) -> bool:
        if self._expected is not None or error is self._failure:
            return False
        return self._plan.ends_on_any_close or error.code in _NORMAL_CLOSURES

    def _counted(self, verdict: Any) -> Any:
        if isinstance(verdict, Raised):
            if isinstance(verdict.error, WebSocketClosedError) and self._ends_well(verdict.error):
                self._over = True
                return END
            raise verdict.error
        if verdict is END:
            self._over = self._reusable = True
        elif self._remaining is not None:
            self._remaining -= 1
            self._over = self._reusable = self._remaining == 0
        return verdict

    def _judged(self, message: Message) -> Any:
        try:
            return self._judge.judge(message)
        except ResponseError as error:
            fault = str(error)
        raise WebSocketProtocolError(fault, endpoint=self._endpoint.label)

    # As the recipient of a shared connection, or the user of an exclusive one that is closed on this side

    def offer(self, message: Message) -> None:
        """Take a message from the router if it means something here."""
        try:
            with response_faults(self._endpoint.label):
                verdict = self._offered(message)
        except WebSocketError as error:
            verdict = Raised(error)
        if verdict is SKIP or self._failure is not None:
            return
        size = len(message.data)
        if not self._mailbox.has_room_for(size):
            fault = f"{len(self._mailbox)} responses wait to be taken; the stream was read too slowly"
            self._mailbox.clear()
            verdict = Raised(WebSocketProtocolError(fault, endpoint=self._endpoint.label))
            self._listening = False
        self._mailbox.put(verdict, size)

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone: at once when it was closed here, otherwise after what came before."""
        if self._connection is not None and self._connection.retired:
            self._failure = error
            if self._scope is not None:
                self._scope.cancel()
        else:
            self._mailbox.put(Raised(error))

    def _offered(self, message: Message) -> Any:
        if self._step is None:
            return self._judge.judge(message) if self._listening else SKIP
        step, values = self._step
        assert step.expect is not None
        if not (step.expect.matches(message, values) or (step.reject and step.reject.matches(message, values))):
            return SKIP
        # From here on the next message may already be one of the exchange's.
        self._step = None
        self._listening = self._plan.listen_only and step is self._plan.before[-1]
        return message

    def _wait_for_step(self, step: Step, values: Values) -> None:
        self._step = None if step.expect is None else (step, values)
        self._listening = self._plan.listen_only and step.expect is None and step is self._plan.before[-1]
