"""The base of all commands: examples in their help, ``-v`` anywhere, and one way out for every failure."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import click

from .failures import CLOSED_PIPE, EXIT_CODES, INTERRUPTED, UNWRITABLE, Failure, as_failures, failure_of
from .output import discard_output, echo

__all__ = ["Command", "Program"]

_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


class Command(click.Command):
    """A command of ``utcp-ws``.

    Args:
        examples: Command lines for its help.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)
        self.params.append(_verbose())

    def invoke(self, ctx: click.Context) -> Any:
        with as_failures(as_json=bool(ctx.params.get("as_json"))):
            return super().invoke(ctx)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of the help, which is never cut."""
        return super().get_short_help_str(10_000)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        super().format_epilog(ctx, formatter)


class Program(click.Group):
    """The group of all commands. Whatever happens in one of them ends as a line on stderr and an exit code."""

    command_class = Command

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, epilog=_EXIT_CODES, **options)
        self.params.append(_verbose())

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        """Run the command that the arguments name, and end the process with its exit code."""
        if not options.pop("standalone_mode", True):
            return self._click_main(args, *arguments, **options)
        given = sys.argv[1:] if args is None else args
        sys.exit(self._exit_code(given, args, *arguments, **options))

    # click would take a pipe that was closed while it wrote a help text for an error of its own.

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with as_failures():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with as_failures():
            return super().invoke(ctx)

    def _click_main(self, *arguments: Any, **options: Any) -> Any:
        main: Any = super().main
        return main(*arguments, standalone_mode=False, **options)

    def _exit_code(self, given: Sequence[str], *arguments: Any, **options: Any) -> int:
        try:
            return _finished(self._click_main(*arguments, **options))
        except click.ClickException as error:
            _show(error, as_json="--json" in given)
            code = error.exit_code
        except click.Abort:
            return INTERRUPTED
        except OSError as error:
            code = CLOSED_PIPE if isinstance(error, BrokenPipeError) else UNWRITABLE
            if code == UNWRITABLE:
                _show(failure_of(error), as_json="--json" in given)
        if code in (CLOSED_PIPE, UNWRITABLE):
            discard_output()
        return code


def _finished(result: Any) -> int:
    """The exit code of a command that came to its end, if what it wrote got out."""
    sys.stdout.flush()
    code = result if isinstance(result, int) else 0
    if code == CLOSED_PIPE:
        discard_output()
    return code


def _show(error: click.ClickException, *, as_json: bool) -> None:
    if as_json and not isinstance(error, Failure):
        error = Failure(error.format_message(), code=error.exit_code)
        error.as_json = True
    try:
        error.show()
    except OSError:
        # There is nowhere to say it; the exit code remains.
        discard_output(err=True)


def _verbose() -> click.Option:
    def enable(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            _log_to_stderr(context.find_root())

    return click.Option(
        ["--verbose", "-v"], is_flag=True, expose_value=False, callback=enable, help="Log connection events to stderr."
    )


class _StderrHandler(logging.Handler):
    """Writes to what stderr is when there is something to write: beside a spinner it is another."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            echo(self.format(record), err=True)
        except OSError:
            discard_output(err=True)


def _log_to_stderr(context: click.Context) -> None:
    if context.meta.setdefault("utcp-ws.verbose", False):
        return
    context.meta["utcp-ws.verbose"] = True
    log = logging.getLogger("utcp_websocket_anyio")
    level = log.level
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)

    @context.call_on_close
    def restore() -> None:
        log.removeHandler(handler)
        log.setLevel(level)
