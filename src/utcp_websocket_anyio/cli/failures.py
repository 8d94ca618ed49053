"""Failures as a user sees them: a line on stderr, and an exit code that scripts can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from utcp.exceptions import UtcpSerializerValidationError, UtcpVariableNotFound

from ..errors import (
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)
from .output import echo, json_text, paint

__all__ = [
    "CLOSED_PIPE",
    "EXIT_CODES",
    "INTERRUPTED",
    "UNWRITABLE",
    "Failure",
    "as_failures",
    "as_plugin_failures",
    "failure_of",
    "last_line",
]

UNWRITABLE = 74  # EX_IOERR of sysexits.h
INTERRUPTED = 130
CLOSED_PIPE = 141

EXIT_CODES = {
    0: "done",
    1: "the tool answered with an error, or a checked file is not valid",
    2: "usage error; nothing was sent",
    3: "could not connect",
    4: "the credentials were refused",
    5: "timed out",
    6: "connection closed early, or unexpected response",
    69: "the extra 'cli' is not installed",
    UNWRITABLE: "the output could not be written",
    INTERRUPTED: "interrupted by Ctrl-C (143: by SIGTERM, 141: by a closed pipe)",
}

# The first that fits; WebSocketAuthError is also a WebSocketConnectionError.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (WebSocketToolError, 1),
    (WebSocketAuthError, 4),
    (WebSocketConnectionError, 3),
    (WebSocketTimeoutError, 5),
    (WebSocketClosedError, 6),
    (WebSocketProtocolError, 6),
    (RecursionError, 6),
    (OSError, UNWRITABLE),
    (Exception, 2),
)
_DETAILS = ("endpoint", "status", "phase", "code", "reason", "names", "response")


class Failure(click.ClickException):
    """A failure to be shown.

    Args:
        text: The reason, and what to do about it if that is known.
        kind: The name of the error behind it.
        details: Further fields of its JSON form.
    """

    def __init__(self, text: str, *, code: int = 2, kind: str = "UsageError", **details: Any) -> None:
        super().__init__(text)
        self.code = code
        self.as_json = False
        self._details = {"error": kind, "message": text, **details, "exit_code": code}

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # a class attribute there
        return self.code

    def show(self, file: Any = None) -> None:
        """Write it to stderr: as JSON, if the command's output is."""
        if self.as_json:
            echo(json_text(self._details), err=True)
        else:
            # A line of ours begins at the margin, and no line of others does.
            echo(self.message.replace("\n", "\n  "), err=True, prefix=paint("utcp-ws: ", err=True, fg="red"))


@contextmanager
def as_failures(*, as_json: bool = False) -> Iterator[None]:
    """Turn every error that a user can do something about into a `Failure`.

    Raises:
        click.exceptions.Exit: The reader of the output has gone.
    """
    failure: Failure | None
    try:
        yield
    except Failure as error:
        error.as_json |= as_json
        raise
    except (WebSocketError, UtcpSerializerValidationError, UtcpVariableNotFound, ValueError, RecursionError) as error:
        failure = failure_of(error)
    except BrokenPipeError:
        failure = None
    except OSError as error:
        failure = failure_of(error)
    else:
        return
    if failure is None:
        raise click.exceptions.Exit(CLOSED_PIPE)
    failure.as_json = as_json
    raise failure


@contextmanager
def as_plugin_failures(kind: str) -> Iterator[None]:
    """Make a failure of whatever the plugin of another protocol raises; it may be anything.

    Args:
        kind: The type of the call template.
    """
    failure: Failure | None = None
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, BrokenPipeError, UtcpVariableNotFound):
        raise
    except Exception as error:
        if kind == "websocket" or isinstance(error, WebSocketError):
            raise
        text = last_line(str(error)) or type(error).__name__
        if isinstance(error, RuntimeError) and "needs asyncio" in text:
            text += "; give --backend asyncio"
        failure = Failure(f"{kind}: {text}", code=1, kind=type(error).__name__)
    if failure is not None:
        raise failure


def last_line(text: str) -> str:
    """The last line of a text, which is the essence of a traceback."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def failure_of(error: Exception, *, hint: str = "") -> Failure:
    """The failure that an error is for a user.

    Args:
        hint: Advice that is added to its text.
    """
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    details = {name: value for name in _DETAILS if (value := getattr(error, name, None))}
    if isinstance(error, UtcpVariableNotFound):
        text = f"the variable {error.variable_name} has no value; set it in the environment"
    elif isinstance(error, WebSocketToolError):
        text = f"the tool answered with an error: {error}"
    elif isinstance(error, RecursionError):
        text = "what came is nested too deeply"
    elif isinstance(error, OSError) and not isinstance(error, WebSocketError):
        where = f"{error.filename}: " if error.filename is not None else "the output could not be written: "
        text = f"{where}{error.strerror or error}"
    else:
        text = str(error)
    if isinstance(error, WebSocketAuthError) and error.status is not None:
        text += "; give credentials with --auth or --header"
    details = {"close_code" if name == "code" else name: value for name, value in details.items()}
    return Failure(text + hint, code=code, kind=type(error).__name__, **details)
