"""URLs with placeholders in path and query, which can change nothing else of them.

A URL is what stands before its path (scheme, host, port), the path, and the query as a list of parameters. Values are
percent-encoded where they are put in, except what a URL may begin with: a captured URL or a client's variable, which
goes in as it is and is then judged like a written one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import quote

from .encoders import ABSENT, text_of, utf8
from .placeholders import CALL, Parts, Placeholder, RenderContext, Scope, parse
from .values import CompiledTemplate, placeholders_of

__all__ = ["UrlTemplate", "compile_url", "percent_encoded"]

_BEFORE_PATH = re.compile(r"(?:[^/?#&]*://)?[^/?#&]*")
_NOTHING: frozenset[str] = frozenset()


class UrlTemplate(CompiledTemplate):
    """A URL with placeholders.

    Attributes:
        origin: The URL up to its path where that is known now; otherwise None.
    """

    __slots__ = ("_before", "_joint", "_path", "_query", "origin")

    def __init__(self, source: str, where: str, *, before: Parts, path: Parts, joint: str, query: list[Parts]) -> None:
        super().__init__(source, where, placeholders_of([*before, *path, *[part for one in query for part in one]]))
        self._before = before
        self._path = path
        self._joint = joint
        self._query = query
        self.origin: str | None = None
        if all(isinstance(part, str) or part.is_constant for part in before):
            self.origin = self._rendered_before(RenderContext({}, ""), _NOTHING)

    def render(self, context: RenderContext, *, as_written: Collection[str] = ()) -> str:
        """The URL with its values, percent-encoded, so that none adds a segment, a parameter or a fragment.

        Args:
            as_written: Kinds of placeholders that stay as they are, where two URLs are compared and not used.

        Raises:
            ValueError: A value makes a segment ``.`` or ``..``, or a variable was not resolved.
        """
        before = self.origin if self.origin is not None else self._rendered_before(context, as_written)
        path = "".join(
            [part if isinstance(part, str) else _quoted(part, context, as_written, self.where) for part in self._path]
        )
        if placeholders_of(self._path) and any(segment in (".", "..") for segment in path.split("/")):
            raise ValueError(f"{self.where}: an argument makes the path segment '.' or '..'")
        parameters: list[str] = []
        for parts in self._query:
            parameters += _parameter(parts, context, as_written, self.where)
        if not parameters:
            return before + path
        return f"{before}{path}{self._joint}{'&'.join(parameters)}"

    def _rendered_before(self, context: RenderContext, as_written: Collection[str]) -> str:
        unresolved = [part.source for part in placeholders_of(self._before) if part.kind == "$"]
        if unresolved:
            raise ValueError(f"{self.where}: contains a variable that was not resolved: {', '.join(unresolved)}")
        text = ""
        for part in self._before:
            if isinstance(part, str):
                text += part
            else:
                text += part.source if part.kind in as_written else _whole(part, context, self.where)
        return text.partition("#")[0]


def compile_url(url: str, where: str, scope: Scope = CALL) -> UrlTemplate:
    """Compile a URL. Variables (``${…}``) may stand anywhere, as a client resolves them later.

    Raises:
        ValueError: A placeholder stands before the path, or the URL has a fragment (RFC 6455, section 3).
    """
    percent_encoded(url, where)  # for what cannot be encoded
    parts = parse(url, where, scope)
    first = parts[0] if parts else ""
    if isinstance(first, Placeholder) and first.kind in ("captured.", "$", "constant"):
        # A whole URL, or its beginning. What follows is path and query, or goes on with the host if it is text.
        before: list[str | Placeholder] = [first]
        rest = list(parts[1:])
        if first.kind == "captured." and rest and isinstance(rest[0], str) and rest[0][:1] not in "/?&":
            raise ValueError(f"{where}: {first.source} contains a whole URL; only a path or query may follow it")
        if rest and isinstance(rest[0], str) and first.kind != "captured.":
            host = _BEFORE_PATH.match(rest[0])
            assert host is not None
            if host[0]:
                before.append(host[0])
                rest[0] = rest[0][len(host[0]) :]
    else:
        before, rest = _split(parts, where)
    path, joint, query = _path_and_query(rest)
    if any("#" in part for part in [*path, *(part for one in query for part in one)] if isinstance(part, str)):
        raise ValueError(f"{where}: a WebSocket URL has no fragment")
    return UrlTemplate(url, where, before=tuple(before), path=tuple(path), joint=joint, query=query)


def _split(parts: Parts, where: str) -> tuple[list[str | Placeholder], list[str | Placeholder]]:
    """Split into the parts before the path, and the rest."""
    before: list[str | Placeholder] = []
    rest = list(parts)
    text = ""
    while rest:
        part = rest[0]
        if isinstance(part, Placeholder):
            if part.kind not in ("$", "constant"):
                raise ValueError(f"{where}: {part.source} may only stand in path and query")
            before.append(rest.pop(0))
            text += "x"
            continue
        known = _BEFORE_PATH.match(text + part)
        assert known is not None
        end = known.end() - len(text)
        before.append(part[:end])
        if end < len(part):
            rest[0] = part[end:]
            break
        rest.pop(0)
        text += part
    return before, rest


def _path_and_query(parts: list[str | Placeholder]) -> tuple[list[str | Placeholder], str, list[Parts]]:
    """The path, what joins the query to it, and the query's parameters."""
    path: list[str | Placeholder] = []
    query: list[Parts] = []
    joint = ""
    parameter: list[str | Placeholder] = []
    for index, part in enumerate(parts):
        if isinstance(part, Placeholder):
            (parameter if joint else path).append(part)
            continue
        text = part
        if not joint:
            # A beginning that is a whole URL may have a query of its own, which is then gone on with.
            joint = "&" if index == 0 and text.startswith("&") else "?" if "?" in text else ""
            if not joint:
                path.append(text)
                continue
            before, _, text = text.partition(joint)
            if before:
                path.append(before)
        first, *others = text.split("&")
        if first:
            parameter.append(first)
        for other in others:
            query.append(tuple(parameter))
            parameter = [other] if other else []
    if joint:
        query.append(tuple(parameter))
    return path, joint, query


def _parameter(parts: Parts, context: RenderContext, as_written: Collection[str], where: str) -> list[str]:
    """A parameter: none if its value is absent, one for each element if its value is a list."""
    last = parts[-1] if parts else ""
    name = parts[0] if len(parts) == 2 else ""
    if isinstance(last, Placeholder) and isinstance(name, str) and (len(parts) == 1 or name.endswith("=")):
        if last.kind in as_written:
            return [name + last.source]
        value = last.value(context)
        if value is ABSENT:
            return []
        if isinstance(value, list):
            return [name + _encoded(text_of(item), last, where) for item in value]
    return ["".join([part if isinstance(part, str) else _quoted(part, context, as_written, where) for part in parts])]


def _quoted(placeholder: Placeholder, context: RenderContext, as_written: Collection[str], where: str) -> str:
    if placeholder.kind in as_written or (placeholder.kind == "$" and placeholder.name not in context.args):
        return placeholder.source
    return _encoded(placeholder.text(context), placeholder, where)


def _encoded(text: str, placeholder: Placeholder, where: str) -> str:
    return text if placeholder.encoders[-1:] == ("urlencode",) else percent_encoded(text, where)


def percent_encoded(text: str, where: str) -> str:
    """Text in which all but letters, digits and ``-._~`` is percent-encoded (RFC 3986).

    Raises:
        ValueError: It contains a lone surrogate.
    """
    try:
        return quote(utf8(text), safe="")
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{where}: {reason}")


def _whole(placeholder: Placeholder, context: RenderContext, where: str) -> str:
    value = placeholder.value(context)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {placeholder.source} must be the text of a URL")
    return value
