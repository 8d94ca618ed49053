"""One request and its responses, from sending the first message to the end of the exchange.

What each message means is decided elsewhere (`verdict`). There are two ways to drive an exchange, `collect` for a call
and the `open`/`next` pair for a stream, and two ways for messages to come: an exclusive exchange takes them from its
connection itself, a multiplexed one is offered them by the router and keeps its verdicts in a bounded `Mailbox`.

What ends an exchange from outside, its deadline (see `deadlines`) or somebody who closes its connection, is recorded in
it, and the wait that it is in is interrupted.
"""

from __future__ import annotations

import math
from collections import ChainMap, deque
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from .._connections.mailbox import Mailbox, Raised
from .._connections.steps import run_steps
from .._templates.received import Message, ResponseError
from .._wire import Interrupted
from ..errors import (
    WebSocketClosedError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)
from .responses import END, SKIP, ResponseClassifier

if TYPE_CHECKING:
    from .._connections.connection import Connection
    from .._connections.outbox import Outgoing
    from .._connections.pool import Pool
    from .._templates.plan import Step
    from .._templates.values import RenderContext
    from .request import Request

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
    deadline = math.inf
    slack = 0.0
    _connection: Connection | None = None
    _failure: WebSocketError | None = None
    _expired = False
    _begun = False
    _over = False
    _reusable = False
    # What follows is for a shared connection, where messages come whether they are awaited or not.
    _step: tuple[Step, RenderContext] | None = None
    _listening = False
    _outgoing: Outgoing | None = None

    def __init__(self, request: Request, *, pool: Pool, streaming: bool) -> None:
        self._request = request
        self._plan = plan = request.plan
        self._values = request.values
        self._endpoint = request.endpoint
        self._pool = pool
        self._expected = self._remaining = expected = plan.expected(streaming=streaming)
        self._classifier = ResponseClassifier(
            plan,
            request.values,
            streaming=streaming,
            open_ended=expected is None,
            display_url=request.endpoint.display_url,
        )
        self._shared = plan.settings.multiplex
        if self._shared:
            self._mailbox = Mailbox(plan.settings.max_message_size)

    # Driving

    async def collect(self) -> Any:
        """Run the whole exchange; cancelling it gives its connection up.

        Returns:
            The response; a list where the template asks for another number than one; None where it asks for none.
        """
        if self._expected == 0:
            # The only exchange that may have nothing to wait for.
            await anyio.lowlevel.checkpoint()
        responses: list[Any] = []
        try:
            await self.open()
            while (response := await self._next()) is not END:
                responses.append(response)
        finally:
            self.finish()
        if self._expected == 1:
            return responses[0]
        return None if self._expected == 0 else responses

    async def open(self) -> None:
        """Send the request, on a connection that is free. `finish` is to be called afterwards, whatever happens."""
        clean = self._expected != 0 and self._plan.message_filter is None
        connection = self._pool.claim(self._endpoint, self._plan, clean=clean)
        if connection is None:
            connection = await self._pool.acquire(self._endpoint, self._plan, clean=clean)
        if not self._shared:
            connection.attach(self)
        self._connection = connection
        self.deadline = connection.wire.current_time() + self._request.timeout
        self._pool.deadlines.add(self)
        try:
            await self._begin(connection)
        except (Interrupted, WebSocketClosedError):
            if not self._stopped:
                raise
        else:
            return
        self._end_of_stopped()

    async def next(self) -> Any:
        """The next response of a stream, or `END`."""
        if self._connection is not None and self._connection.wire.current_time() >= self.deadline:
            # Also where messages come so fast that nobody ever waits.
            self._expired = True
        if self._stopped:
            return self._end_of_stopped()
        response = self._next_nowait()
        return response if response is not SKIP else await self._next()

    def _next_nowait(self) -> Any:
        """The next response if it is already there, `END` after the last one, otherwise `SKIP`."""
        while not self._over:
            if self._shared:
                verdict = self._mailbox.pop() if self._mailbox else None
            else:
                assert self._connection is not None
                message = self._connection.receive_nowait()
                verdict = None if message is None else self._classified(message)
            if verdict is None:
                return SKIP
            if verdict is not SKIP:
                return self._counted(verdict)
        return END

    def take_nowait(self) -> deque[Any] | None:
        """The responses of an open-ended stream that are already there; what ends it is left to `next`."""
        if self._shared or self._remaining is not None or self._stopped or self._over or self._connection is None:
            return None
        messages = self._connection.take_nowait()
        if messages is None or self._classifier.takes_all(messages):
            return messages
        responses: deque[Any] = deque()
        try:
            for data in messages:
                verdict = self._classified(Message(data))
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
        self._pool.deadlines.discard(self)
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

    async def _begin(self, connection: Connection) -> None:
        plan = self._plan
        self._values.captured = captured = connection.script.captured
        if self._shared:
            connection.calls += 1
            self._values.captured = ChainMap({}, captured)
        if plan.before:
            await self._converse(connection)
        if plan.uses_call_id:
            self._values.call_id = connection.script.next_call_id()
        if self._shared:
            await self._post(connection)
        elif not plan.listen_only:
            await self._send(self._request.encoded())
        self._begun = True
        if self._expected == 0:
            self._over = self._reusable = True

    async def _post(self, connection: Connection) -> None:
        """Begin on a shared connection: join before the request can be answered."""
        if self._plan.before:
            connection.leave(self)
            self._step = None
        if self._plan.correlation is not None:
            path, value = self._plan.correlation
            self.correlation = path, value.render(self._values)
        connection.join(self)
        if self._plan.listen_only:
            self._listening = True
            return
        self._outgoing = connection.post(self._request.encoded())
        self._listening = True
        if self._expected == 0:
            await self._outgoing.wait()
            if not self._outgoing.is_sent:
                # Why not is in the queue, and is raised.
                await self._mailbox.take()

    async def _converse(self, connection: Connection) -> None:
        if self._shared:
            connection.join(self)
        await run_steps(
            self._plan.before,
            values=lambda: self._values.for_step(connection.script.next_call_id()),
            send=self._send,
            receive=self._mailbox.take if self._shared else lambda: connection.receive(self),
            captured=self._values.captured,
            rejected=lambda index, message: WebSocketToolError(
                f"the endpoint rejected the step before[{index}]",
                response=message.content(),
                endpoint=self._endpoint.display_url,
            ),
            waiting=self._wait_for_step,
            display_url=self._endpoint.display_url,
        )

    async def _send(self, data: str | bytes) -> None:
        assert self._connection is not None
        if self._stopped:
            raise Interrupted
        if self._shared:
            self._connection.post(data)
        else:
            await self._connection.send(data)

    # The end from outside

    def expire(self) -> None:
        """The deadline has passed."""
        self._expired = True
        self._stop()

    @property
    def _stopped(self) -> bool:
        return self._expired or self._failure is not None

    def _stop(self) -> None:
        if self._shared:
            self._mailbox.interrupt()
            if self._outgoing is not None:
                self._outgoing.finish()
        elif self._connection is not None:
            self._pool.retire(self._connection, "the exchange was given up")

    def _end_of_stopped(self) -> Any:
        """How an exchange ends that was stopped."""
        if self._failure is not None:
            raise self._failure
        if not (self._begun and self._expected is None and self._plan.is_subscription):
            raise WebSocketTimeoutError(
                f"no complete response within {self._request.timeout:g} s",
                phase="response",
                endpoint=self._endpoint.display_url,
            )
        self._over = True
        return END

    # Messages

    async def _next(self) -> Any:
        """Wait for the next response, or for the end."""
        wait = self._await_verdict if self._plan.idle_timeout is None or self._expected else self._await_within_silence
        try:
            while not self._over:
                verdict = await wait()
                if not (verdict is SKIP or self._over):
                    return self._counted(verdict)
        except (Interrupted, WebSocketClosedError):
            if not self._stopped:
                raise
        else:
            return END
        return self._end_of_stopped()

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
            return self._classified(await self._connection.receive(self))
        except WebSocketClosedError as error:
            if not self._ends_well(error):
                raise
        self._over = True
        return END

    def _ends_well(self, error: WebSocketClosedError) -> bool:
        may_end = self._expected is None and not self._stopped
        return may_end and (self._plan.ends_on_any_close or error.code in _NORMAL_CLOSURES)

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

    def _classified(self, message: Message) -> Any:
        try:
            return self._classifier.classify(message)
        except ResponseError as error:
            fault = str(error)
        raise WebSocketProtocolError(fault, endpoint=self._endpoint.display_url)

    # As the recipient of a shared connection, or the user of an exclusive one that is closed on this side

    def offer(self, message: Message) -> None:
        """Take a message from the router if it means something here."""
        try:
            verdict = self._offered(message)
        except WebSocketError as error:
            verdict = Raised(error)
        except (ResponseError, ValueError) as error:
            verdict = Raised(WebSocketProtocolError(str(error), endpoint=self._endpoint.display_url))
        if verdict is SKIP or self._stopped:
            return
        size = len(message.data)
        if not self._mailbox.has_room_for(size):
            fault = f"{len(self._mailbox)} responses wait to be taken; the stream was read too slowly"
            self._mailbox.clear()
            verdict = Raised(WebSocketProtocolError(fault, endpoint=self._endpoint.display_url))
            self._listening = False
        self._mailbox.put(verdict, size)

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone: at once when it was closed here, otherwise after what came before."""
        if self._connection is not None and self._connection.retired:
            if not self._stopped:
                self._failure = error
                self._stop()
        else:
            self._mailbox.put(Raised(error))

    def _offered(self, message: Message) -> Any:
        if self._step is None:
            return self._classifier.classify(message) if self._listening else SKIP
        step, values = self._step
        assert step.expect is not None
        if not (step.expect.matches(message, values) or (step.reject and step.reject.matches(message, values))):
            return SKIP
        # From here on the next message may already be one of the exchange's.
        self._step = None
        self._listening = self._plan.listen_only and step is self._plan.before[-1]
        return message

    def _wait_for_step(self, step: Step, values: RenderContext) -> None:
        self._step = None if step.expect is None else (step, values)
        self._listening = self._plan.listen_only and step.expect is None and step is self._plan.before[-1]
