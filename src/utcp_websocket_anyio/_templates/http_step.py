"""The part `http` of a step: one HTTP request, as pure data. Who sends it is decided elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from .._net.security import check_header, check_http_url
from .encoders import ABSENT, json_text, text_of, utf8
from .messages import MessageTemplate, compile_message
from .placeholders import Placeholder, RenderContext, Scope
from .shapes import check_members
from .urls import UrlTemplate, compile_url, percent_encoded
from .values import CompiledTemplate, Template, compile_renderer, compile_template

__all__ = ["HttpRequest", "HttpTemplate", "compile_http"]

_METHOD = re.compile(r"[A-Z]{1,20}")
_BODIES = ("json", "form", "body")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it is sent. Its `repr` shows nothing of it, as all of it may be secret."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    content: bytes | None

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method}>"


class HttpTemplate(CompiledTemplate):
    """An HTTP request with placeholders."""

    __slots__ = ("_content", "_headers", "_method", "_query", "parts", "url")

    def __init__(
        self,
        source: Any,
        where: str,
        *,
        method: str,
        url: UrlTemplate,
        headers: Mapping[str, Template],
        query: Template | None,
        content: tuple[str | None, CompiledTemplate, Callable[[RenderContext], bytes]] | None,
    ) -> None:
        super().__init__(source, where, ())
        self._method = method
        self.url = url
        self._headers = headers
        self._query = query
        self._content = content
        self.parts: tuple[CompiledTemplate, ...] = (
            url,
            *headers.values(),
            *(() if query is None else (query,)),
            *(() if content is None else (content[1],)),
        )
        self.absorb(self.parts)

    def render(self, context: RenderContext) -> HttpRequest:
        """The request for a context.

        Raises:
            WebSocketSecurityError: The URL or a header may not be used (section 9 of the specification).
            ValueError: A value cannot be put in.
        """
        url = self.url.render(context)
        if self._query is not None:
            pairs = _pairs(self._query, context)
            if pairs:
                url += ("&" if "?" in url else "?") + pairs
        check_http_url(url, self.url.where)
        headers = []
        for name, template in self._headers.items():
            value = template.render(context)
            if value is not ABSENT:
                text = text_of(value)
                check_header(name, text, template.where)
                headers.append((name, text))
        content = None
        if self._content is not None:
            content_type, _, render = self._content
            content = render(context)
            if content_type is not None and "content-type" not in {name.lower() for name in self._headers}:
                headers.append(("Content-Type", content_type))
        return HttpRequest(self._method, url, tuple(headers), content)


def compile_http(value: Any, where: str, scope: Scope) -> HttpTemplate:
    """Compile an HTTP request.

    Raises:
        ValueError: Its form is wrong.
    """
    check_members(value, "http", where)
    if not isinstance(value.get("url"), str):
        raise ValueError(f"{where}.url: must be the address of the request")
    url = compile_url(value["url"], f"{where}.url", scope)
    if url.origin is not None and "${" not in url.origin:
        check_http_url(url.origin, f"{where}.url")
    bodies = [name for name in _BODIES if name in value]
    if len(bodies) > 1:
        raise ValueError(f"{where}: {' and '.join(bodies)} exclude each other; a request has one body")
    method = value.get("method", "POST" if bodies else "GET")
    if not isinstance(method, str) or not _METHOD.fullmatch(method.upper()):
        raise ValueError(f"{where}.method: must be a method of HTTP, such as GET or POST")
    headers = value.get("headers") or {}
    if not isinstance(headers, dict) or not all(isinstance(one, str) for one in headers.values()):
        raise ValueError(f"{where}.headers: must be an object of names and texts")
    templates = {}
    for name, text in headers.items():
        templates[name] = compile_template(text, f"{where}.headers.{name}", scope)
        check_header(name, text if templates[name].is_static else "", f"{where}.headers")
    query = value.get("query")
    if query is not None and not isinstance(query, dict):
        raise ValueError(f"{where}.query: must be an object of names and values")
    return HttpTemplate(
        value,
        where,
        method=method.upper(),
        url=url,
        headers=templates,
        query=None if query is None else compile_template(query, f"{where}.query", scope),
        content=_content(bodies[0], value[bodies[0]], f"{where}.{bodies[0]}", scope) if bodies else None,
    )


def _content(
    kind: str, value: Any, where: str, scope: Scope
) -> tuple[str | None, CompiledTemplate, Callable[[RenderContext], bytes]]:
    if kind == "json":
        found: list[Placeholder] = []
        render = compile_renderer(value, where, scope, found)
        template = Template(value, where, found, render)
        return "application/json", template, lambda context: json_text(render(context)).encode()
    if kind == "form":
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be an object of names and values")
        form = compile_template(value, where, scope)
        return "application/x-www-form-urlencoded", form, lambda context: _pairs(form, context).encode()
    message: MessageTemplate = compile_message(value, where, scope)

    def content(context: RenderContext) -> bytes:
        data = message.encode(context)
        return utf8(data) if isinstance(data, str) else data

    return None, message, content


def _pairs(template: Template, context: RenderContext) -> str:
    """Names and values, percent-encoded; a list repeats its name."""
    values = template.render(context)
    return "&".join(
        f"{quote(utf8(name), safe='')}={percent_encoded(text_of(one), template.where)}"
        for name, value in values.items()
        for one in (value if isinstance(value, list) else [value])
    )
