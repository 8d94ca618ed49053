"""The exchange of most calls: one message is sent, and one response comes.

An `Exchange` can do more, and so costs three times as much. What it means here that a message comes, that time passes
or that the connection goes is the same as there; but there are no steps, nothing to acknowledge and nothing to go on
with, a farewell is one message that needs no answer, and one response needs no queue. `Plan.is_single` says for which
templates that is true, and the tests of calls run with both.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from .._connections.bulkhead import log_internal_error
from .._connections.steps import step_name
from .._templates.received import Message, ResponseError
from .._wire import Interrupted
from ..errors import WebSocketError, WebSocketProtocolError
from .base import COMPLETE, EXPIRED, OPENING, RUNNING, BaseExchange
from .leg import encode_request
from .responses import RESPONSE, Meaning, ResponseClassifier, may_be_envelope

if TYPE_CHECKING:
    from .._connections.connection import Channel, Connection
    from .._templates.messages import MessageTemplate
    from .._templates.plan import ResumeChange
    from .._templates.values import RenderContext

__all__ = ["SingleCall"]

_log = logging.getLogger(__name__)


class SingleCall(BaseExchange):
    """A call of one message and one response, and the user of its connection."""

    has_room = True
    _connection: Connection | None = None
    _channel: Channel
    _context: RenderContext
    _classifier: ResponseClassifier
    _response: Message | None = None
    _is_plain = False
    _is_error = False
    _ended_by_server = False
    _early: tuple[Message, ...] = ()

    async def collect(self) -> Any:
        """Run the whole exchange and return the response. Cancelling it closes its connection, unless that is shared.

        Raises:
            WebSocketError: There is no response.
        """
        plan = self._plan
        rejects = not plan.knows_its_answers
        connection = self._pool.claim(self._endpoint, reject_stray=rejects)
        if connection is None:
            connection = await self._pool.acquire(self._endpoint, plan, self._request.context, reject_stray=rejects)
            assert connection is not None
        try:
            channel = self._begin(connection)
            try:
                await channel.send(self._message(connection))
                for message in self._early:
                    self.accept(message)
                if self.state is RUNNING:
                    await channel.wait()
                while self.state is RUNNING:
                    # What is skipped may come so fast that the timer never gets its turn.
                    if self._pool.clock() >= self.deadline:
                        self.expire()
                    else:
                        await channel.wait()
            except WebSocketError as error:
                self.fail(error)
            except Interrupted:
                pass
            return self._result()
        finally:
            self._let_go(is_good=self.state is COMPLETE)

    def _begin(self, connection: Connection) -> Channel:
        request, plan = self._request, self._plan
        self._channel = channel = connection.open_channel(self)
        self._connection = connection
        context = request.context
        if plan.depends_on_connection:
            call_id = connection.next_id() if plan.numbers_calls else 0
            context = context.for_step(call_id, connection.next_id, connection.captured)
        self._context = context
        self._classifier = ResponseClassifier(plan, context, False)
        if plan.correlation is not None:
            path, value = plan.correlation
            channel.listen((path, value.render(context)))
        self._timeout = plan.timeout if request.timeout is None else request.timeout
        self._watch_deadline(self._timeout)
        self.state = RUNNING
        return channel

    def _message(self, connection: Connection) -> str | bytes:
        data = self._request.message
        if not isinstance(data, (str, bytes)):
            data = encode_request(self._request, self._plan.request[0], self._context)
        if connection.trace is not None:
            connection.trace("sent", data, "request")
        return data

    def _result(self) -> Any:
        """The response as the caller gets it."""
        self._raise_or_end()
        response = self._response
        assert response is not None
        if self._is_plain:
            return response.data
        if self._is_error:
            raise self._classifier.tool_error(response, self._endpoint.display_url)
        try:
            return self._classifier.value(response)
        except (ResponseError, ValueError) as error:
            reason = str(error)
        unreadable = self._unreadable(reason)
        self._fail(unreadable)
        raise unreadable

    def _let_go(self, *, is_good: bool) -> None:
        if self.deadline < math.inf:
            self._pool.deadlines.discard(self)
        connection = self._connection
        if connection is not None:
            self._connection = None
            parting = None if self.state is COMPLETE else self._plan.parting
            if parting is None or self._ended_by_server or self.state is OPENING or connection.error is not None:
                self._channel.finish()
            else:
                # It comes behind the request that it is about, or the peer could not make sense of it.
                self._channel.finish(withdraws=False)
                try:
                    self._part(parting, connection)
                except Exception as error:  # noqa: BLE001 - the bulkhead: the connection must not get lost
                    log_internal_error(_log, error, "leaving a call")
            self._hand_back(connection, is_good=is_good)

    def _part(self, parting: MessageTemplate, connection: Connection) -> None:
        """Say that the call is left, in this moment, before anything that is sent later."""
        context = self._context
        data = parting.encode(context.for_step(context.call_id, connection.next_id, connection.captured))
        if connection.trace is not None:
            connection.trace("sent", data, step_name(self._plan.on_end[0]))
        connection.post(data)

    # As its connection sees it

    def accept(self, message: Message) -> None:
        """Decide what a message means."""
        if self.state is not RUNNING:
            if self.state is OPENING:
                # It came with the end of the login, and is looked at when the request is out.
                self._early += (message,)
            return
        connection = self._connection
        is_traced = connection is not None and connection.trace is not None
        if self._plan.takes_messages_as_they_are and not (is_traced or may_be_envelope(message.data)):
            # Without anything in the template that could say otherwise, it is the response, just as it came.
            self._response = message
            self._is_plain = True
            self.state = COMPLETE
            return
        try:
            meaning = self._classifier.classify(message)
        except WebSocketError as error:
            self._fail(error)
            return
        except (ResponseError, ValueError) as error:
            self._fail(self._unreadable(str(error)))
            return
        if connection is not None and connection.trace is not None:
            told = self._classifier.why_skipped(message) if meaning is Meaning.SKIP else meaning.name.lower()
            connection.trace("received", message.data, told)
        if meaning is RESPONSE or meaning is Meaning.LAST:
            # Another exchange on the same connection may accept the same message, and callers may change what they get.
            self._response = message.claimed(keep_parsed=True)
            self.state = COMPLETE
        elif meaning is Meaning.SKIP:
            self.note.skip(self._plan.message_filter, message, self._context)
            self._pool.counters.skipped += 1
        elif meaning is Meaning.ERROR:
            # An answered failure: nothing more comes, and the connection stays good.
            self._response = message.claimed(keep_parsed=True)
            self._is_error = True
            self.state = COMPLETE
        else:
            self._ended_by_server = True
            self._fail(
                WebSocketProtocolError(
                    "the server ended the exchange after 0 of 1 responses", endpoint=self._endpoint.display_url
                )
            )

    def fail(self, error: WebSocketError) -> None:
        """The connection is gone."""
        if self.state > RUNNING:
            return
        self._fail(error)
        connection = self._connection
        if connection is not None and connection.retired and not connection.was_given_up:
            # Closed on this side: at once.
            self._interrupt()

    def move(self, change: ResumeChange) -> None:
        """Stay: only a stream can move."""

    def expire(self) -> None:
        """The deadline has passed. A response may be there, to a request of which the server does not read the rest."""
        if self.state <= RUNNING:
            self.state = EXPIRED
        self._interrupt()

    def _interrupt(self) -> None:
        """Let go of the connection now, and wake the caller."""
        self._let_go(is_good=False)
        self._channel.interrupt()
