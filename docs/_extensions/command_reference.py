"""``{command}``: the options of a subcommand of ``utcp-ws``, from the command itself."""

from __future__ import annotations

import click
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from utcp_websocket_anyio.cli.failures import EXIT_CODES
from utcp_websocket_anyio.cli.program import program

_log = logging.getLogger(__name__)


class Command(SphinxDirective):
    """The ``--help`` text of the named subcommand."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Its usage, its help, its options."""
        name = self.arguments[0]
        command = program.commands.get(name)
        if command is None:
            _log.warning("there is no command %r", name, location=self.get_location())
            return []
        documented = self.env.metadata[self.env.docname]
        documented["commands"] = f"{documented.get('commands', '')} {name}"
        context = click.Context(command, info_name=name, parent=click.Context(program, info_name="utcp-ws"))
        text = command.get_help(context)
        return [nodes.literal_block(text, text, language="none")]


class ExitCodes(SphinxDirective):
    """The exit codes, as the command has them."""

    def run(self) -> list[nodes.Node]:
        """A table: code and meaning."""
        rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
        text = StringList(["| code | meaning |", "|--:|---|", *rows], self.get_source_info()[0])
        return self.parse_text_to_nodes(text)


def miss_commands(app: Sphinx, env: object) -> None:
    """Every subcommand has to be on a page."""
    there = " ".join(str(data.get("commands", "")) for data in app.env.metadata.values()).split()
    for name, command in program.commands.items():
        if name not in there and not command.hidden:
            _log.warning("the command %r is not in the reference", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive known."""
    app.add_directive("command", Command)
    app.add_directive("exit-codes", ExitCodes)
    app.connect("env-check-consistency", miss_commands)
    return {"parallel_read_safe": False}
