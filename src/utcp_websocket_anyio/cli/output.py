"""What commands write: results on stdout, everything about them on stderr."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.json import JSON
from rich.table import Table

__all__ = ["console", "one_line", "print_table", "waiting", "write_item", "write_result"]

_UNBROKEN = 10_000


def console(*, err: bool = False) -> Console:
    """A console for stdout or stderr as they are now, which tests replace."""
    stream = sys.stderr if err else sys.stdout
    # Where nobody looks at it, no line is to be broken.
    return Console(stderr=err, highlight=False, width=None if stream.isatty() else _UNBROKEN)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal's stderr that something takes its time."""
    shown = console(err=True)
    if not shown.is_terminal:
        yield
        return
    with shown.status(text):
        yield


def print_table(table: Table) -> None:
    """A table on stdout; elsewhere than on a terminal without the blanks that fill its lines."""
    out = console()
    if out.is_terminal:
        out.print(table, markup=False)
        return
    with out.capture() as captured:
        out.print(table, markup=False)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def write_result(value: Any, *, as_json: bool) -> None:
    """The result of one call: text as it is, bytes as they are unless to a terminal, anything else as JSON."""
    if as_json:
        click.echo(one_line(value))
    elif isinstance(value, str):
        click.echo(value)
    elif isinstance(value, bytes) and not sys.stdout.isatty():
        click.echo(value, nl=False)
    else:
        out = console()
        text = json.dumps(value, indent=2, ensure_ascii=False, default=_bytes)
        if out.is_terminal:
            out.print(JSON(text, ensure_ascii=False))
        else:
            click.echo(text)


def write_item(value: Any, *, as_json: bool) -> None:
    """One response of a stream, in a line; JSON text has no line breaks of its own."""
    click.echo(value if isinstance(value, str) and not as_json else one_line(value))


def one_line(value: Any) -> str:
    """A value as JSON; bytes as a call template writes them."""
    return json.dumps(value, ensure_ascii=False, default=_bytes)


def _bytes(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"type": "binary", "data": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} is no JSON value")
