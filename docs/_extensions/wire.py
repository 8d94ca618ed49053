"""The notation of conversations, ``wire``: what a client and a server say to each other, one line each.

``>`` is what the client says, ``<`` what the server says, ``*`` anything else that happens, ``#`` a remark. The test of
the documentation has a server play its part.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, using
from pygments.lexers.data import JsonLexer
from pygments.token import Comment, Generic, Name, Text
from sphinx.application import Sphinx


class WireLexer(RegexLexer):
    """Colours a conversation."""

    name = "wire"
    aliases: ClassVar[list[str]] = ["wire"]
    tokens: ClassVar[dict[str, Any]] = {
        "root": [
            (r"(> )([\[{][^␞\n]*\n)", bygroups(Generic.Inserted, using(JsonLexer))),
            (r"(< )([\[{][^␞\n]*\n)", bygroups(Name.Namespace, using(JsonLexer))),
            (r"> .*\n", Generic.Inserted),
            (r"< .*\n", Name.Namespace),
            (r"\* .*\n", Comment.Special),
            (r"#.*\n", Comment),
            (r".*\n", Text),
        ]
    }


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the notation known."""
    app.add_lexer("wire", WireLexer)
    return {"parallel_read_safe": True}
