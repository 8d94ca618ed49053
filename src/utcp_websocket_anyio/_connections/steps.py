"""Steps: the part of a conversation that goes before, around and after requests.

One function has every such conversation: a login (`on_connect`), what precedes a request (`before`) and a farewell
(`on_close`). What differs between them, who sends and receives and what a rejection means, comes in as arguments.
`ConnectionScript` is a connection's own part: login, farewell and automatic replies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._templates.received import Message, ResponseError
from .._templates.values import RenderContext
from ..errors import WebSocketAuthError, WebSocketError, WebSocketProtocolError

if TYPE_CHECKING:
    from .._templates.extraction import Extraction
    from .._templates.plan import MessageHandler, Step

__all__ = ["ConnectionScript", "run_steps"]

Send = Callable[["str | bytes"], Awaitable[object]]
Receive = Callable[[], Awaitable[Message]]


class ConnectionScript:
    """What a connection itself has to say. Its placeholders stand for one uuid, and for no arguments.

    Args:
        display_url: The endpoint, for errors.

    Attributes:
        captured: What was captured on the connection so far.
    """

    def __init__(self, auto_reply: tuple[MessageHandler, ...], display_url: str) -> None:
        self.captured: dict[str, Any] = {}
        self._auto_reply = auto_reply
        self._display_url = display_url
        self._call_id = 0
        self._values: RenderContext | None = None

    def next_call_id(self) -> int:
        """A number larger than every one before on this connection."""
        self._call_id += 1
        return self._call_id

    async def run_steps(self, steps: tuple[Step, ...], where: str, *, send: Send, receive: Receive) -> None:
        """Have the conversation that opens or closes the connection.

        Args:
            where: The place of the steps in the call template, for errors.

        Raises:
            WebSocketAuthError: A step was rejected.
        """
        if steps:
            await run_steps(
                steps,
                values=self._next_values,
                send=send,
                receive=receive,
                captured=self.captured,
                rejected=lambda index, _: WebSocketAuthError(
                    f"the endpoint rejected the step {where}[{index}]", endpoint=self._display_url
                ),
                display_url=self._display_url,
            )

    def reply_to(self, message: Message) -> str | bytes | None:
        """The answer to an application-level ping; None if the message is none.

        Raises:
            WebSocketProtocolError: The answer cannot be made of what was captured.
        """
        for automatic in self._auto_reply:
            with response_faults(self._display_url):
                if automatic.matches(message, self._own_values()):
                    values = self._next_values().replace(message=message)
                    capture(automatic.capture, message, self.captured, values)
                    return None if automatic.reply is None else automatic.reply.encode(values)
        return None

    def _own_values(self) -> RenderContext:
        if self._values is None:
            self._values = RenderContext({}, "", captured=self.captured)
        return self._values

    def _next_values(self) -> RenderContext:
        return self._own_values().for_step(self.next_call_id())


async def run_steps(
    steps: Iterable[Step],
    *,
    values: Callable[[], RenderContext],
    send: Send,
    receive: Receive,
    captured: MutableMapping[str, Any],
    rejected: Callable[[int, Message], WebSocketError],
    skipped: Callable[[Message], None] = lambda message: None,
    display_url: str,
) -> None:
    """Take the steps one after the other.

    Args:
        values: What the placeholders of the next step stand for; called once per step.
        receive: The next message of the connection.
        captured: Where what the steps capture is put.
        rejected: The error of a step, by its index, whose `reject` filter the message matches.
        skipped: Told of each message that a waiting step does not take.
        display_url: The endpoint, for errors.
    """
    for index, step in enumerate(steps):
        stand_for = values()
        if step.send is not None:
            with response_faults(display_url):
                data = step.send.encode(stand_for)
            await send(data)
        if step.expect is None:
            continue
        while True:
            message = await receive()
            with response_faults(display_url):
                if step.reject is not None and step.reject.matches(message, stand_for):
                    raise rejected(index, message)
                if step.expect.matches(message, stand_for):
                    capture(step.capture, message, captured, stand_for)
                    break
                skipped(message)


def capture(
    extractions: Mapping[str, Extraction],
    message: Message,
    captured: MutableMapping[str, Any],
    values: RenderContext,
) -> None:
    """Put what `extractions` pick from `message` into `captured`.

    Raises:
        ResponseError: It is not there.
    """
    for name, extraction in extractions.items():
        captured[name] = extraction.extract(message, values)


@contextmanager
def response_faults(display_url: str) -> Iterator[None]:
    """Turn what is wrong with a message, or with what was captured from one, into the caller's error.

    Nothing of the original error is behind it.
    """
    try:
        yield
    except WebSocketError:
        raise
    except (ResponseError, ValueError) as error:
        fault = str(error)
    else:
        return
    raise WebSocketProtocolError(fault, endpoint=display_url)
