"""What a command is about: an endpoint's URL, or a file: call template, UTCP manual or client configuration."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.tool import Tool
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .._client.client import AnyioUtcpClient, open_client
from .._net.security import display_url, split_address
from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from ..errors import WebSocketSecurityError
from .failures import Failure

__all__ = ["Access", "Manual", "Source", "is_url", "open_manual", "read_source"]


@dataclass(frozen=True)
class Access:
    """What the command line adds to a manual: headers, credentials, and the values of its variables."""

    headers: Mapping[str, str] = field(default_factory=dict)
    auth: Mapping[str, Any] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A manual's call template in JSON form, and where it is from.

    Attributes:
        config: The rest of the client configuration that it was in.
    """

    name: str
    template: dict[str, Any]
    config: dict[str, Any]

    def variables(self, access: Access) -> dict[str, str]:
        """The variables of the command line under the names that UTCP gives them: the manual's comes first."""
        prefix = self.name.replace("_", "__")
        own = {f"{prefix}_{name}": value for name, value in access.variables.items()}
        return {**(self.config.get("variables") or {}), **own}


@dataclass(frozen=True)
class Manual:
    """A registered manual. Its tools' names begin with its own."""

    client: AnyioUtcpClient
    name: str
    tools: list[Tool]

    def tool(self, name: str) -> Tool:
        """The tool of that name, with or without the manual's before it."""
        for tool in self.tools:
            if name in (tool.name, self.short(tool)):
                return tool
        there = ", ".join(map(self.short, self.tools)) or "none"
        raise Failure(f"there is no tool {name!r}; there are: {there}")

    def resolved(self, tool: Tool) -> CallTemplate:
        """The tool's call template with the values of its variables."""
        serializer = CallTemplateSerializer()
        values = serializer.to_dict(tool.tool_call_template)
        client = self.client
        return serializer.validate_dict(client.variable_substitutor.substitute(values, client.config, self.name))

    def short(self, tool: Tool) -> str:
        return tool.name.removeprefix(f"{self.name}.")


def is_url(target: str) -> bool:
    """Whether a target is meant as a URL, even if it is a wrong one."""
    return "://" in target


def read_source(target: str) -> list[Source]:
    """The manuals that a target stands for: one, but for a client configuration with several.

    Raises:
        Failure: It is none, or cannot be read.
    """
    if is_url(target):
        return [Source("endpoint", {"name": "endpoint", "call_template_type": "websocket", "url": target}, {})]
    path = Path(target)
    content = _read(path)
    if not isinstance(content, dict):
        raise Failure(f"{target}: must hold a JSON object: a call template, a UTCP manual or a client configuration")
    if isinstance(content.get("manual_call_templates"), list):
        rest = {key: value for key, value in content.items() if key != "manual_call_templates"}
        return [_named(template, "manual", rest) for template in content["manual_call_templates"]]
    if "call_template_type" not in content and "url" not in content and isinstance(content.get("tools"), list):
        content = _around(content["tools"])
    return [_named(content, path.stem, {})]


@asynccontextmanager
async def open_manual(source: Source, access: Access) -> AsyncIterator[Manual]:
    """The manual's tools, in a client of their own.

    Headers and credentials of the command line go to the manual's own origin and to no other.
    """
    ensure_plugins_initialized()
    config = {**source.config, "variables": source.variables(access)}
    template: CallTemplate
    if source.template.get("call_template_type", "websocket") == "websocket":
        template = with_access(WebSocketCallTemplateSerializer().validate_dict(source.template), access)
    else:
        template = CallTemplateSerializer().validate_dict(source.template)
        if access.headers or access.auth:
            raise Failure("--header and --auth are for WebSocket endpoints; the manual is none")
    async with open_client(config) as client:
        result = await client.register_manual(template)
        if not result.success:
            raise Failure("; ".join(result.errors) or "the manual could not be registered")
        registered = result.manual_call_template
        if isinstance(registered, WebSocketCallTemplate) and (access.headers or access.auth):
            for tool in result.manual.tools:
                own = tool.tool_call_template
                if isinstance(own, WebSocketCallTemplate) and _origin(own.url) == _origin(registered.url):
                    tool.tool_call_template = with_access(own, access)
            await client.config.tool_repository.save_manual(registered, result.manual)
        yield Manual(client, registered.name, result.manual.tools)


def with_access(template: WebSocketCallTemplate, access: Access) -> WebSocketCallTemplate:
    """A template with the headers and credentials of the command line, which win over its own."""
    if not access.headers and access.auth is None:
        return template
    serializer = WebSocketCallTemplateSerializer()
    values = serializer.to_dict(template)
    given = {name.lower() for name in access.headers}
    kept = {name: value for name, value in (template.headers or {}).items() if name.lower() not in given}
    values["headers"] = {**kept, **access.headers}
    if access.auth is not None:
        values["auth"] = dict(access.auth)
    return serializer.validate_dict(values)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = error.strerror or "it cannot be read"
    except UnicodeDecodeError:
        fault = "it is no UTF-8 text"
    except json.JSONDecodeError as error:
        fault = f"it is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    except RecursionError:
        fault = "it is nested too deeply"
    raise Failure(f"{path}: {fault}")


def _named(template: Any, name: str, config: dict[str, Any]) -> Source:
    if not isinstance(template, dict):
        raise Failure("a call template must be a JSON object")
    # What the client makes of a manual's name.
    name = re.sub(r"\W", "_", str(template.get("name") or name))
    return Source(name, {"call_template_type": "websocket", **template, "name": name}, config)


def _around(tools: list[Any]) -> dict[str, Any]:
    """A call template for a manual that has none, whose tools each name their own endpoint."""
    templates = [tool.get("tool_call_template") for tool in tools if isinstance(tool, dict)]
    known = [template for template in templates if isinstance(template, dict)]
    url = next((own["url"] for own in known if own.get("call_template_type") == "websocket" and "url" in own), None)
    if url is None:
        raise Failure("none of the manual's tools has a tool_call_template of type websocket with a url")
    kinds = sorted({str(own.get("call_template_type")) for own in known})
    return {
        "call_template_type": "websocket",
        "url": url,
        "tools": tools,
        "allowed_communication_protocols": kinds,
    }


def _origin(url: str) -> Any:
    try:
        return split_address(url)
    except WebSocketSecurityError:
        return display_url(url)
