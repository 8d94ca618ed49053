"""The command ``utcp-ws`` itself."""

from __future__ import annotations

import click

from .._version import __version__
from .calls import call, stream
from .check import check
from .command import Program
from .demo import demo
from .discovery import discover
from .listen import listen
from .schema import schema
from .serve import serve

__all__ = ["program"]


_HELP = """\
Find, call and publish tools at WebSocket endpoints.

TARGET is the URL of an endpoint that knows UTCP, or a file: a call template (with its tools), a UTCP manual, or a
client configuration. Results go to stdout, everything else to stderr.

\b
Completion of commands, files, tools and arguments:
  bash  eval "$(_UTCP_WS_COMPLETE=bash_source utcp-ws)"  in ~/.bashrc
  zsh   eval "$(_UTCP_WS_COMPLETE=zsh_source utcp-ws)"   in ~/.zshrc
  fish  _UTCP_WS_COMPLETE=fish_source utcp-ws | source   in config.fish
"""


@click.group(
    cls=Program, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="utcp-ws")
def program() -> None:
    """The command; its help is `_HELP`."""


for _command in (demo, discover, call, stream, listen, check, schema, serve):
    program.add_command(_command)
