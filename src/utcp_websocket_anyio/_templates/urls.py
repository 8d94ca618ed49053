"""URLs with placeholders in path and query, which can change nothing else of them."""

from __future__ import annotations

import re
from urllib.parse import quote

from .placeholders import Parts, Placeholder, RenderContext, parse
from .values import CompiledTemplate, placeholders_of

__all__ = ["UrlTemplate", "compile_url"]

_BEFORE_PATH = re.compile(r"(?:[^/?#]*://)?[^/?#]*")


class UrlTemplate(CompiledTemplate):
    """A URL with holes in its path and query."""

    __slots__ = ("_authority", "_path", "_query")

    def __init__(self, source: str, where: str, authority: str, path: Parts, query: Parts | None) -> None:
        super().__init__(source, where, placeholders_of([*path, *(query or ())]))
        self._authority = authority
        self._path = path
        self._query = query

    @property
    def origin(self) -> str:
        """The URL up to its path, which no argument can change."""
        return self._authority

    def render(self, values: RenderContext) -> str:
        """The URL with its holes filled, percent-encoded, so that none adds a segment, a parameter or a fragment.

        Raises:
            ValueError: A value makes a segment ``.`` or ``..``, or a variable was not resolved.
        """
        if "${" in self._authority:
            names = ", ".join(hole.source for hole in placeholders_of(parse(self._authority, self.where)))
            raise ValueError(f"{self.where}: has a variable that was not resolved: {names}")
        path = "".join(part if isinstance(part, str) else _quoted(part, values) for part in self._path)
        if placeholders_of(self._path) and any(segment in (".", "..") for segment in path.split("/")):
            raise ValueError(f"{self.where}: an argument makes the path segment '.' or '..'")
        if self._query is None:
            return self._authority + path
        query = "".join(part if isinstance(part, str) else _quoted(part, values) for part in self._query)
        return f"{self._authority}{path}?{query}"


def compile_url(url: str, where: str) -> UrlTemplate:
    """Compile a URL. Variables (``${…}``) may stand anywhere, as a client resolves them later.

    Raises:
        ValueError: A placeholder stands before the path, or the URL has a fragment (RFC 6455, section 3).
    """
    before_path = _BEFORE_PATH.match(url)
    assert before_path is not None
    authority = before_path[0]
    for hole in placeholders_of(parse(authority, where)):
        if hole.kind != "$":
            raise ValueError(f"{where}: {hole.source} may only stand in path and query")
    path, question_mark, query = url[len(authority) :].partition("?")
    if "#" in _outsideholes_of(path) + _outsideholes_of(query):
        raise ValueError(f"{where}: a WebSocket URL has no fragment")
    return UrlTemplate(url, where, authority, parse(path, where), parse(query, where) if question_mark else None)


def _quoted(hole: Placeholder, values: RenderContext) -> str:
    if hole.kind == "$" and hole.name not in values.args:
        return hole.source
    text = hole.text(values)
    return text if hole.encoder == "urlencode" else quote(text, safe="")


def _outsideholes_of(text: str) -> str:
    return "".join(part for part in parse(text, "url") if isinstance(part, str))
