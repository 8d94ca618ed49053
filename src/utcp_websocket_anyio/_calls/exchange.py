"""One request and its responses, from sending the first message to the end of the exchange.

An exchange talks to a `Channel`, which either kind of connection gives it, and has no branch for the kind. Messages
come to it by one way, `accept`, which is called where a message is read and decides at once what it means:

=========  ==========================================================================================
state      what `accept` does with a message
=========  ==========================================================================================
OPENING    keeps it for the step that waits, or for the exchange's own filters
RUNNING    classifies it (`responses`); what means something waits in a bounded queue for the caller
later      drops it
=========  ==========================================================================================

The caller takes from that queue, with `collect` for a call or `open` and `next` for a stream, and waits on the channel
while it is empty. What ends an exchange from outside, its deadline (see `deadlines`) or a close of its connection on
this side, is recorded in its state, and the wait that it is in is interrupted.
"""

from __future__ import annotations

import enum
import math
from collections import ChainMap, deque
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

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
from .responses import Meaning, ResponseClassifier

if TYPE_CHECKING:
    from .._connections.connection import Channel, Connection
    from .._connections.pool import Pool
    from .._templates.placeholders import RenderContext
    from .request import Request

__all__ = ["END", "Exchange", "State"]

_NORMAL_CLOSURES = (1000, 1001, 1005)
_MAX_QUEUED_MESSAGES = 10_000
_MAX_QUEUED_BYTES = 64 * 2**20
_MAX_PARSED_BYTES = 64 * 1024
"""Beyond this, queued messages are parsed again when they are taken: parsed JSON takes up to 25 times the memory."""
_MAX_KEPT_BYTES = 256 * 1024


class _End(enum.Enum):
    END = enum.auto()


END: Final = _End.END
"""What `Exchange.next` returns after the last response."""


class State(enum.IntEnum):
    """How far an exchange has come."""

    OPENING = enum.auto()
    """It waits for its connection, or runs its `before` steps."""

    RUNNING = enum.auto()
    """Its request is out, or about to be; messages are responses."""

    COMPLETE = enum.auto()
    """The server has answered in full, an error included. The connection can be used again."""

    ENDED = enum.auto()
    """It ended without error, but not by a message: by silence, its duration, or a close."""

    EXPIRED = enum.auto()
    """Its deadline has passed."""

    FAILED = enum.auto()
    """An error ended it."""


class Exchange:
    """One exchange on a connection of the pool.

    Args:
        request: The prepared call.
        pool: The pool that its connection comes from.
        streaming: True if the responses are taken one by one.
    """

    deadline = math.inf
    state = State.OPENING
    _connection: Connection | None = None
    _channel: Channel | None = None
    _failure: WebSocketError | None = None
    _queued_bytes = 0
    _kept_bytes = 0

    def __init__(self, request: Request, *, pool: Pool, streaming: bool) -> None:
        self._request = request
        self._plan = plan = request.plan
        self._endpoint = request.endpoint
        self._pool = pool
        self._values = request.values
        self._expected = self._remaining = plan.expected(streaming=streaming)
        self._classifier = ResponseClassifier(
            plan, request.values, streaming=streaming, display_url=request.endpoint.display_url
        )
        self._queue: deque[tuple[Meaning, Message]] = deque()
        self._pending: deque[Message] = deque()
        self._kept: list[Message] = []

    # Driving

    async def collect(self) -> Any:
        """Run the whole exchange. Cancelling it closes its connection, unless that is shared.

        Returns:
            The response; a list if the template asks for more or fewer than one; None if it asks for none.
        """
        if self._expected == 0:
            # The only exchange that may have nothing to wait for.
            await anyio.lowlevel.checkpoint()
        responses: list[Any] = []
        try:
            await self.open()
            while (response := await self.next()) is not END:
                responses.append(response)
        finally:
            self.finish()
        if self._expected == 1:
            return responses[0]
        return None if self._expected == 0 else responses

    async def open(self) -> None:
        """Send the request, on a connection that is free. Call `finish` afterwards, whatever happens."""
        clean = self._expected != 0 and self._plan.message_filter is None
        connection = self._pool.claim(self._endpoint, reject_stray=clean)
        if connection is None:
            connection = await self._pool.acquire(self._endpoint, self._plan, reject_stray=clean)
        self._connection = connection
        self._channel = connection.open_channel(self)
        self._watch_deadline()
        try:
            await self._begin(connection, self._channel)
        except Interrupted:
            self._raise_or_end()
        except WebSocketClosedError as error:
            self._close(error)
            self._raise_or_end()

    async def next(self) -> Any:
        """The next response, or `END` after the last one."""
        while True:
            if self._queue:
                return self._taken()
            if self.state > State.RUNNING:
                return self._raise_or_end()
            channel = self._channel
            assert channel is not None
            if self._pool.clock() >= self.deadline:
                # Also if messages come so fast that nobody ever waits.
                self.expire()
                continue
            channel.take_in()
            if not self._queue and self.state is State.RUNNING:
                await self._wait(channel)

    def take_nowait(self) -> deque[Any] | None:
        """The responses of an open-ended stream that are there already; what ends it is left to `next`."""
        if self._remaining is not None or self.state is not State.RUNNING or self._queue:
            return None
        assert self._channel is not None
        messages = self._channel.take_nowait()
        if messages is None or self._classifier.takes_all(messages):
            return messages
        responses: deque[Any] = deque()
        for data in messages:
            self.accept(Message(data))
        while self._queue and self._queue[0][0] is Meaning.RESPONSE:
            try:
                responses.append(self._taken())
            except WebSocketError as error:
                self._failure = error
                self.state = State.FAILED
                self._queue.clear()
                break
        return responses

    def finish(self) -> None:
        """Release or retire the connection. Synchronous, so it is safe after cancellation."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        assert self._channel is not None
        self._pool.deadlines.discard(self)
        self._channel.finish()
        if connection.is_shared:
            return
        if self.state is State.COMPLETE and not self._plan.close_after_response:
            self._pool.release(connection, self._endpoint, unanswered=self._expected == 0)
        else:
            is_over = self.state in (State.COMPLETE, State.ENDED)
            self._pool.retire(connection, "the call is over" if is_over else "closed after a failed call")

    def finish_later(self) -> None:
        """As `finish`, from any thread and also while no event loop runs: for a finalizer."""
        self._pool.call_later(self.finish)

    # Sending

    async def _begin(self, connection: Connection, channel: Channel) -> None:
        plan = self._plan
        self._captured: ChainMap[str, Any] = ChainMap({}, connection.script.captured)
        self._take_values(self._values.replace(captured=self._captured))
        if plan.before:
            await self._run_before(connection, channel)
            # `response_timeout` is for the steps together, and starts again with the request.
            self._pool.deadlines.discard(self)
            self._watch_deadline()
        if plan.uses_call_id:
            self._take_values(self._values.replace(call_id=connection.script.next_call_id()))
        correlation = None
        if plan.correlation is not None:
            path, value = plan.correlation
            correlation = path, value.render(self._values)
        channel.listen(correlation)
        self.state = State.RUNNING
        if not plan.listen_only:
            await channel.send(self._request.encoded())
        for message in (*self._kept, *self._pending):
            self.accept(message)
        self._kept.clear()
        self._pending.clear()
        if self._expected == 0:
            await channel.flush()
            self.state = State.COMPLETE

    def _take_values(self, values: RenderContext) -> None:
        self._values = self._request.values = self._classifier.context = values

    async def _run_before(self, connection: Connection, channel: Channel) -> None:
        await run_steps(
            self._plan.before,
            values=lambda: self._values.for_step(connection.script.next_call_id()),
            send=channel.send,
            receive=self._receive_for_step,
            captured=self._captured,
            rejected=lambda index, message: WebSocketToolError(
                f"the endpoint rejected the step before[{index}]",
                response=message.content(),
                endpoint=self._endpoint.display_url,
            ),
            skipped=self._keep,
            display_url=self._endpoint.display_url,
        )

    async def _receive_for_step(self) -> Message:
        while not self._pending:
            if self.state is not State.OPENING:
                raise Interrupted
            assert self._channel is not None
            await self._channel.wait()
        return self._pending.popleft()

    def _keep(self, message: Message) -> None:
        """A step has skipped a message: it may be a notification that came before the answer which tells its id."""
        if self._plan.message_filter is not None:
            self._kept.append(message)
            self._kept_bytes += len(message.data)
            if self._kept_bytes > _MAX_KEPT_BYTES:
                raise WebSocketProtocolError(
                    f"more than {_MAX_KEPT_BYTES // 1024} KiB arrived before the step that was waited for",
                    endpoint=self._endpoint.display_url,
                )

    # Receiving

    def accept(self, message: Message) -> None:
        """Decide what a message means that was read for this exchange."""
        if self.state is State.OPENING:
            self._pending.append(message)
            return
        if self.state is not State.RUNNING:
            return
        try:
            meaning = self._classifier.classify(message)
        except WebSocketError as error:
            self._fail(error)
            return
        except (ResponseError, ValueError) as error:
            self._fail(WebSocketProtocolError(str(error), endpoint=self._endpoint.display_url))
            return
        if meaning is Meaning.SKIP:
            return
        if meaning is Meaning.END:
            self._end_of_messages()
            return
        if not self._enqueue(meaning, message):
            return
        if meaning is Meaning.ERROR:
            # An answered failure: nothing more comes, and the connection stays good.
            self.state = State.COMPLETE
        elif self._remaining is not None:
            self._remaining -= 1
            if self._remaining == 0:
                self.state = State.COMPLETE

    def _end_of_messages(self) -> None:
        """The server says that there are no more responses."""
        if self._expected is None:
            self.state = State.COMPLETE
            return
        assert self._remaining is not None
        came = f"{self._expected - self._remaining} of {self._expected} responses"
        self._fail(
            WebSocketProtocolError(f"the server ended the exchange after {came}", endpoint=self._endpoint.display_url)
        )

    def _enqueue(self, meaning: Meaning, message: Message) -> bool:
        """Queue a message for the caller; False if the exchange has failed, because nobody takes them."""
        size = message.size
        if self._queue and (len(self._queue) >= _MAX_QUEUED_MESSAGES or self._queued_bytes + size > _MAX_QUEUED_BYTES):
            reason = f"the stream was read too slowly: {len(self._queue)} responses are queued"
            self._queue.clear()
            self._fail(WebSocketProtocolError(reason, endpoint=self._endpoint.display_url))
            return False
        self._queued_bytes += size
        # Another exchange on the same connection may accept the same message, and callers may change what they get.
        self._queue.append((meaning, message.claimed(keep_parsed=self._queued_bytes <= _MAX_PARSED_BYTES)))
        return True

    def _taken(self) -> Any:
        """The first response of the queue, as the caller gets it."""
        meaning, message = self._queue.popleft()
        self._queued_bytes -= message.size
        if meaning is Meaning.ERROR:
            raise self._classifier.tool_error(message)
        try:
            return self._classifier.value(message)
        except (ResponseError, ValueError) as error:
            reason = str(error)
        self.state = State.FAILED
        raise WebSocketProtocolError(reason, endpoint=self._endpoint.display_url)

    async def _wait(self, channel: Channel) -> None:
        try:
            if self._plan.idle_timeout is None or self._expected is not None:
                await channel.wait()
            else:
                await self._wait_within_silence(channel, self._plan.idle_timeout)
        except Interrupted:
            if self.state is State.RUNNING:
                # Interrupting is somebody else's way to say that the state has changed.
                raise AssertionError("interrupted, but still running") from None
        except WebSocketClosedError as error:
            self._close(error)
        except WebSocketError as error:
            self._fail(error)

    async def _wait_within_silence(self, channel: Channel, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while not self._queue and self.state is State.RUNNING:
                await channel.wait()
            return
        self.state = State.ENDED

    # The end

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state > State.RUNNING:
            return
        is_duration = self.state is State.RUNNING and self._expected is None and self._plan.is_subscription
        self.state = State.ENDED if is_duration else State.EXPIRED
        self._interrupt()

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone: at once if it was closed on this side, otherwise after what came before."""
        if self.state > State.RUNNING:
            return
        if self._connection is not None and self._connection.retired:
            self._queue.clear()
            self._fail(error)
            self._interrupt()
        elif isinstance(error, WebSocketClosedError):
            self._close(error)
        else:
            self._fail(error)

    def _interrupt(self) -> None:
        """Wake the caller, and give up an exclusive connection at once: its caller may be away for long."""
        assert self._channel is not None
        self._channel.interrupt()
        if self._connection is not None and not self._connection.is_shared:
            self._pool.retire(self._connection, "closed after a failed call")

    def _close(self, error: WebSocketClosedError) -> None:
        """The connection was closed, by the peer or on the way."""
        if self.state > State.RUNNING:
            return
        may_end = self.state is State.RUNNING and self._expected is None
        if may_end and (self._plan.end_on_close == "any" or error.code in _NORMAL_CLOSURES):
            self.state = State.ENDED
        else:
            self._fail(error)

    def _fail(self, error: WebSocketError) -> None:
        self.state = State.FAILED
        self._failure = error

    def _raise_or_end(self) -> Any:
        """Raise why an exchange ended, or return `END` if that was no error."""
        if self.state is State.EXPIRED:
            raise WebSocketTimeoutError(
                f"no complete response within {self._request.timeout:g} s",
                phase="response",
                endpoint=self._endpoint.display_url,
            )
        if self._failure is not None:
            raise self._failure
        return END

    def _watch_deadline(self) -> None:
        self.deadline = self._pool.clock() + self._request.timeout
        self._pool.deadlines.add(self)
