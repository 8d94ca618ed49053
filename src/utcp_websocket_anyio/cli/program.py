"""The command ``utcp-ws`` itself, and what its subcommands have in common."""

from __future__ import annotations

import logging

import click

from .._version import __version__
from .calls import call, stream
from .check import check
from .demo import demo
from .discovery import discover
from .failures import EXIT_CODES
from .listen import listen
from .serve import serve

__all__ = ["program"]

_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="utcp-ws")
@click.option("--verbose", "-v", is_flag=True, help="What becomes of connections, on stderr.")
@click.pass_context
def program(context: click.Context, *, verbose: bool) -> None:
    """Find, call and publish tools at WebSocket endpoints, as they are.

    TARGET is the URL of an endpoint that knows UTCP, or a file: a call template (with its tools), a UTCP manual, or a
    client configuration.
    """
    if verbose:
        _log_to_stderr(context)


def _log_to_stderr(context: click.Context) -> None:
    log = logging.getLogger("utcp_websocket_anyio")
    level = log.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)

    @context.call_on_close
    def restore() -> None:
        log.removeHandler(handler)
        log.setLevel(level)


for _command in (demo, discover, call, stream, listen, check, serve):
    program.add_command(_command)
