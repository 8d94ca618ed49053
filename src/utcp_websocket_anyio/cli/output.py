"""Output of commands: results on stdout, everything about them on stderr.

Most of it was written by others: the answers of an endpoint, the names and descriptions in its manual, its reasons for
closing. On a terminal such text could clear the screen, change the title, write the clipboard (OSC 52) or forge lines
of ours. So there is one way out, `echo`, and one function, `visible`, that shows what a terminal would obey as an
escape. Into a pipe text goes as it is. Text of others is never markup: rich sees it as `Text` only.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = [
    "as_json_value",
    "cell",
    "console",
    "discard_output",
    "echo",
    "is_terminal",
    "json_text",
    "note",
    "paint",
    "print_table",
    "visible",
    "waiting",
    "write_item",
    "write_result",
]

_UNBROKEN = 10_000
# DEL, C1, the marks that turn the direction of text around, and lone surrogates, which UTF-8 cannot encode.
_UNSAFE = "\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_ON_A_TERMINAL = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSAFE}]")
_NOT_IN_A_LINE = re.compile(f"[\x00-\x1f\u2028\u2029{_UNSAFE}]")
_NOT_IN_JSON = re.compile(f"[\u2028\u2029{_UNSAFE}]")
_SHORT_ESCAPES = {"\r": r"\r", "\n": r"\n", "\t": r"\t"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command's way out, instead of ending the process here."""
        raise BrokenPipeError


def console(*, err: bool = False) -> Console:
    """A console for stdout or stderr as they are now, which tests replace."""
    stream = sys.stderr if err else sys.stdout
    # Lines are only broken for a reader at a terminal.
    return _Console(
        stderr=err, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else _UNBROKEN
    )


def is_terminal(*, err: bool = False) -> bool:
    """True if stdout or stderr is a terminal; ``FORCE_COLOR`` makes a pipe count as one."""
    return console(err=err).is_terminal


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with everything as an escape that a terminal would obey instead of show.

    Args:
        one_line: Line breaks and tabs, too.
    """
    return (_NOT_IN_A_LINE if one_line else _NOT_ON_A_TERMINAL).sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT_ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def echo(
    text: str, *, style: dict[str, Any] | None = None, prefix: str = "", err: bool = False, nl: bool = True
) -> None:
    """Write a text of others: escaped to a terminal, as it is into a pipe.

    Args:
        style: Arguments of `paint`.
        prefix: Text of our own to write before it, possibly painted.
    """
    if is_terminal(err=err):
        text = visible(text)
    if style is not None:
        text = paint(text, err=err, **style)
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # What the encoding does not have, a lone surrogate for one, is shown escaped instead of failing.
    text = (prefix + text).encode(encoding, "backslashreplace").decode(encoding)
    # click would remove escape sequences on the way into a pipe.
    click.echo(text, err=err, nl=nl, color=True)


def paint(text: str, *, err: bool = False, **style: Any) -> str:
    """The text with the given style of `click.style`, if the terminal has colours and they are not turned off."""
    return click.style(text, **style) if _has_colours(err=err) else text


def _has_colours(*, err: bool = False) -> bool:
    shown = console(err=err)
    return shown.is_terminal and not shown.no_color and shown.color_system is not None


def note(text: str) -> None:
    """A remark on stderr that does not belong to the result."""
    echo(text, err=True, style={"dim": True})


@contextmanager
def waiting(text: str, *, quietly: bool = False) -> Iterator[None]:
    """Show on a terminal's stderr what is waited for, and for how long.

    Args:
        quietly: Show nothing, because the command writes to the terminal meanwhile.
    """
    shown = console(err=True)
    if quietly or not shown.is_terminal or shown.is_dumb_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=shown, transient=True) as progress:
        progress.add_task(visible(text, one_line=True))
        yield


def cell(text: str, style: str = "") -> Text:
    """A cell of a table, safe on a terminal."""
    return Text(visible(text, one_line=True) if is_terminal() else text, style=style)


def print_table(table: Table) -> None:
    """A table on stdout; elsewhere than on a terminal without the blanks that fill its lines."""
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        echo(line.rstrip())


def write_result(value: Any, *, as_json: bool) -> None:
    """The result of one call: text as it is, bytes as they are unless to a terminal, anything else as JSON."""
    if as_json:
        echo(json_text(value))
    elif isinstance(value, str):
        echo(value)
    elif isinstance(value, bytes) and not sys.stdout.isatty():
        click.echo(value, nl=False)
    elif _has_colours():
        console().print(JSONHighlighter()(Text(json_text(value, indent=2))), soft_wrap=True)
    else:
        echo(json_text(value, indent=2))


def write_item(value: Any, *, as_json: bool) -> None:
    """One response of a stream, in a line; JSON text has no line breaks of its own."""
    echo(value if isinstance(value, str) and not as_json else json_text(value))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON: strict, readable, and safe on every terminal.

    Bytes are written as a call template writes them, what JSON has no number for (NaN, Infinity) as null.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_encodable)
    except ValueError:
        text = json.dumps(as_json_value(value), indent=indent, ensure_ascii=False, allow_nan=False, default=_encodable)
    # Such characters stand in strings only, where JSON has an escape for them.
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def as_json_value(value: Any) -> Any:
    """The value with null for every number that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: as_json_value(item) for key, item in value.items()}
    return [as_json_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def _encodable(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"type": "binary", "data": base64.b64encode(value).decode()}
    return repr(value)


def discard_output(*, err: bool = False) -> None:
    """Let nothing more be written, so that the interpreter does not try again when it flushes at its end."""
    stream = sys.stderr if err else sys.stdout
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
