"""What a failure means to who typed the command: a line on stderr, and an exit code that scripts can use."""

from __future__ import annotations

import json
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

__all__ = ["EXIT_CODES", "Failure", "as_failures"]

EXIT_CODES = {
    0: "done",
    1: "the tool answered with an error, or the file that was checked is not valid",
    2: "a mistake in the command, its arguments or a file it names; nothing was sent",
    3: "no connection",
    4: "the credentials were refused",
    5: "a time limit passed",
    6: "the connection was closed too early, or what came was not what the template says",
    69: "the extra 'cli' is not installed",
    130: "interrupted by Ctrl-C (143: by SIGTERM, 141: by a closed pipe)",
}

# The first that fits; WebSocketAuthError is also a WebSocketConnectionError.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (WebSocketToolError, 1),
    (WebSocketAuthError, 4),
    (WebSocketConnectionError, 3),
    (WebSocketTimeoutError, 5),
    (WebSocketClosedError, 6),
    (WebSocketProtocolError, 6),
    (Exception, 2),
)


class Failure(click.ClickException):
    """A failure to be shown.

    Args:
        text: What is wrong, and what to do about it where that is known.
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
            click.echo(json.dumps(self._details, default=repr), err=True)
        else:
            click.secho("utcp-ws: ", err=True, fg="red", nl=False)
            click.echo(self.message, err=True)


@contextmanager
def as_failures(*, as_json: bool = False) -> Iterator[None]:
    """Turn every error that a user can do something about into a `Failure`."""
    try:
        yield
    except Failure as error:
        error.as_json = as_json
        raise
    except (WebSocketError, UtcpSerializerValidationError, UtcpVariableNotFound, ValueError) as error:
        failure = _failure(error)
    else:
        return
    failure.as_json = as_json
    raise failure


def _failure(error: Exception) -> Failure:
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    details = {
        name: value
        for name in ("endpoint", "status", "phase", "code", "reason", "names")
        if (value := _get(error, name))
    }
    if isinstance(error, UtcpVariableNotFound):
        name = error.variable_name
        text = f"the variable {name} has no value; set it in the environment, or give --var {name.rpartition('_')[2]}=…"
    elif isinstance(error, WebSocketToolError):
        details["response"] = error.response
        shown = error.response if isinstance(error.response, str) else json.dumps(error.response, default=repr)
        text = f"the tool answered with an error: {shown}"
    else:
        text = str(error)
    if isinstance(error, WebSocketAuthError) and error.status is not None:
        text += "; give credentials with --auth or --header"
    details = {"close_code" if name == "code" else name: value for name, value in details.items()}
    return Failure(text, code=code, kind=type(error).__name__, **details)


def _get(error: Exception, name: str) -> Any:
    return getattr(error, name, None)
