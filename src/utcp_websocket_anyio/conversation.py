"""Steps: the part of a conversation that goes before, around and after requests.

One function has every such conversation: a login (`on_connect`), what precedes a request (`before`) and a farewell
(`on_close`). What differs between them, who sends and receives and what a rejection means, comes in as arguments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import WebSocketError, WebSocketProtocolError
from .message import Message, ResponseError

if TYPE_CHECKING:
    from .extraction import Extraction
    from .plan import Step
    from .template import Values

__all__ = ["capture", "converse", "response_faults"]


async def converse(
    steps: Iterable[Step],
    *,
    values: Callable[[], Values],
    send: Callable[[str | bytes], Awaitable[object]],
    receive: Callable[[], Awaitable[Message]],
    captured: MutableMapping[str, Any],
    rejected: Callable[[int, Message], WebSocketError],
    waiting: Callable[[Step, Values], None] = lambda step, values: None,
    label: str,
) -> None:
    """Take the steps one after the other.

    Args:
        values: What the placeholders of the next step stand for; called once per step.
        receive: The next message of the connection.
        captured: Where what the steps capture is put.
        rejected: The error of a step, by its index, whose `reject` filter the message matches.
        waiting: Told of each step before anything of it is sent.
        label: The endpoint, for errors.
    """
    for index, step in enumerate(steps):
        stand_for = values()
        waiting(step, stand_for)
        if step.send is not None:
            with response_faults(label):
                data = step.send.encode(stand_for)
            await send(data)
        if step.expect is None:
            continue
        while True:
            message = await receive()
            with response_faults(label):
                if step.reject is not None and step.reject.matches(message, stand_for):
                    raise rejected(index, message)
                if step.expect.matches(message, stand_for):
                    capture(step.capture, message, captured)
                    break


def capture(extractions: Mapping[str, Extraction], message: Message, captured: MutableMapping[str, Any]) -> None:
    """Put what `extractions` pick from `message` into `captured`.

    Raises:
        ResponseError: It is not there.
    """
    for name, extraction in extractions.items():
        captured[name] = extraction.extract(message)


@contextmanager
def response_faults(label: str) -> Iterator[None]:
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
    raise WebSocketProtocolError(fault, endpoint=label)
