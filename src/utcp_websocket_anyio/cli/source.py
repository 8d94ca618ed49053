"""The target of a command: an endpoint's URL, or a file (call template, UTCP manual, client configuration)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.register_manual_response import RegisterManualResult
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.exceptions import UtcpVariableNotFound
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .._client.client import AnyioUtcpClient, open_client
from .._connections.trace import Trace
from .._net.security import display_url, split_address
from .._templates.call_template import WebSocketCallTemplate, WebSocketCallTemplateSerializer
from ..errors import WebSocketClosedError, WebSocketProtocolError, WebSocketSecurityError, WebSocketTimeoutError
from ..protocol import WebSocketCommunicationProtocol
from .failures import Failure, as_plugin_failures, failure_of, last_line
from .options import Access

__all__ = [
    "Manual",
    "Source",
    "did_you_mean",
    "is_url",
    "no_tool",
    "open_manual",
    "read_source",
    "select_tool",
]

# For an endpoint that was not described to say which tools it has, in seconds. Those that know UTCP answer at once.
DISCOVERY_TIME = 5.0

# Longer names get no "did you mean" hint.
_MAX_NAME = 60

# May be meant as an address although it has no scheme: a host with a port or a path.
_ADDRESS = re.compile(r"(?P<host>localhost|\[[0-9a-fA-F:]+\]|[\w-]+(?:\.[\w-]+)*)(?P<port>:\d+)?(?P<path>[/?].*)?")
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|\[::1\]")
# The parts of credentials that are not secret, and are checked before there are values.
_OPEN_PARTS = ("auth_type", "location", "var_name", "token_url")


@dataclass(frozen=True)
class Source:
    """A manual's call template in JSON form, and where it is from.

    Attributes:
        target: The text that the user typed.
        config: The rest of the client configuration that it was in.
    """

    name: str
    template: dict[str, Any]
    config: dict[str, Any]
    target: str

    @property
    def is_websocket(self) -> bool:
        return bool(self.template.get("call_template_type") == "websocket")

    @property
    def asks_endpoint(self) -> bool:
        """True if its tools are not in the file, and no other place for them is named."""
        named = self.template.get("tools") is not None or self.template.get("discovery_url") is not None
        return self.is_websocket and not named

    def qualified(self, variable: str) -> str:
        """The name that UTCP gives a variable of this manual: the manual's comes first."""
        return f"{self.name.replace('_', '__')}_{variable}"

    def variables(self, access: Access) -> dict[str, str]:
        """The variables that the command line gives, secrets of headers and credentials among them."""
        given = {**access.variables, **_Secrets(access).values}
        return {self.qualified(name): value for name, value in given.items()}

    def missing(self, error: UtcpVariableNotFound) -> Failure:
        """The failure of a variable without a value, with the names under which it can be given."""
        name: str = error.variable_name
        own = name.removeprefix(self.qualified(""))
        give = f", or give --var {own}=…" if own != name else ""
        text = f"the variable {own} has no value; set {name} in the environment{give}"
        return Failure(text, kind=type(error).__name__, variable=name)


@dataclass(frozen=True)
class Manual:
    """A registered manual. Its tools' names begin with its own."""

    source: Source
    client: AnyioUtcpClient
    name: str
    tools: list[Tool]

    def tool(self, name: str) -> Tool:
        """The tool of that name, with or without the manual's before it."""
        for tool in self.tools:
            if name in (tool.name, self.short(tool)):
                return tool
        raise no_tool(name, map(self.short, self.tools))

    async def replace_template(self, tool: Tool, template: WebSocketCallTemplate) -> None:
        """Replace the call template of a tool."""
        tool.tool_call_template = template
        repository = self.client.config.tool_repository
        own = await repository.get_manual_call_template(self.name)
        assert own is not None
        await repository.save_manual(own, UtcpManual(tools=self.tools))

    @staticmethod
    def display_url(tool: Tool) -> str:
        """The endpoint of a tool, without query and user information."""
        return display_url(str(getattr(tool.tool_call_template, "url", "")))

    def short(self, tool: Tool) -> str:
        return tool.name.removeprefix(f"{self.name}.")


def no_tool(name: str, known: Iterable[str]) -> Failure:
    """The failure of a tool that does not exist."""
    names = list(known)
    there = ", ".join(names) or "none"
    return Failure(f"unknown tool {name!r}{did_you_mean(name, names)}; the tools are: {there}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: which known name is nearest, if one is near."""
    near = difflib.get_close_matches(name[:_MAX_NAME], list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def is_url(target: str) -> bool:
    """True if a target is meant as a URL, even a wrong one."""
    return "://" in target


def read_source(target: str) -> list[Source]:
    """The manuals that a target stands for: one, except for a configuration or a list with several.

    Raises:
        Failure: The file cannot be read, or is not a manual.
    """
    if is_url(target):
        template = {"name": "endpoint", "call_template_type": "websocket", "url": target}
        return [Source("endpoint", template, {}, target)]
    content = _read_json(target)
    stem = Path(target).stem
    if isinstance(content, dict) and isinstance(content.get("manual_call_templates"), list):
        rest = {key: value for key, value in content.items() if key != "manual_call_templates"}
        return [_source(template, f"manual_{n}", rest, target) for n, template in _counted(content)]
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        return [_source(item, f"{stem}_{n}", {}, target) for n, item in enumerate(content, 1)]
    if not isinstance(content, dict):
        raise Failure(f"{target}: must hold a JSON object: a call template, a UTCP manual or a client configuration")
    return [_source(content, stem, {}, target)]


def _counted(content: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return list(enumerate(content["manual_call_templates"], 1))


def _read_json(target: str) -> Any:
    """The content of a JSON file.

    Raises:
        Failure: There is no such file, or it holds something else.
    """
    path = Path(target)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        if isinstance(error, FileNotFoundError):
            reason += _as_url(target)
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    except ValueError as error:
        reason = f"not JSON: {error}"
    except RecursionError:
        reason = "nested too deeply"
    raise Failure(f"{target}: {reason}")


def _as_url(target: str) -> str:
    """The end of a sentence about an address that was typed without its scheme: the URL that may be meant."""
    address = _ADDRESS.fullmatch(target)
    if address is None or target.endswith((".json", ".py")):
        return ""
    if not (address["port"] or "." in address["host"] or address["host"] == "localhost"):
        return ""
    scheme = "ws" if _LOOPBACK.fullmatch(address["host"]) else "wss"
    return f"; a URL needs its scheme: {scheme}://{target}"


def select_tool(target: str, tool_name: str) -> tuple[Source, str]:
    """The manual that a tool's name is about, and the name without the manual's."""
    sources = read_source(target)
    named = {source.name: source for source in sources}
    manual, dot, name = tool_name.partition(".")
    if dot and manual in named:
        return named[manual], name
    if len(sources) != 1:
        near = did_you_mean(manual, named) if dot else ""
        there = ", ".join(named) or "none"
        raise Failure(f"{target} has several manuals: write the tool as MANUAL.TOOL{near}, with one of {there}")
    return sources[0], tool_name


@asynccontextmanager
async def open_manual(source: Source, access: Access, *, trace: Trace | None = None) -> AsyncIterator[Manual]:
    """The manual's tools, in a client of their own.

    Headers and credentials of the command line go to the manual's own origin and to no other. They are variables of the
    client, so that their values arrive as they were typed, whatever is in them.

    Args:
        trace: Observer of every message of its connections.
    """
    ensure_plugins_initialized()
    template: CallTemplate
    if source.is_websocket:
        template = with_access(WebSocketCallTemplateSerializer().validate_dict(source.template), access)
    else:
        template = CallTemplateSerializer().validate_dict(source.template)
        if access.headers or access.auth:
            raise Failure("--header and --auth are for WebSocket endpoints; this manual's is not one")
    async with open_client(source.config) as client:
        if trace is not None:
            observe(client, trace)
        # Not in the configuration, whose own variables may refer to others: these are values.
        client.config.variables = {**(client.config.variables or {}), **source.variables(access)}
        try:
            result = await _registered(client, template, source, access)
            registered = result.manual_call_template
            if isinstance(registered, WebSocketCallTemplate):
                for tool in result.manual.tools:
                    own = tool.tool_call_template
                    if isinstance(own, WebSocketCallTemplate):
                        same = _origin(own.url) == _origin(registered.url)
                        tool.tool_call_template = _for_call(own, access, same_origin=same)
                await client.config.tool_repository.save_manual(registered, result.manual)
            yield Manual(source, client, registered.name, result.manual.tools)
        except UtcpVariableNotFound as error:
            failure = source.missing(error)
        else:
            return
    raise failure


def observe(client: AnyioUtcpClient, trace: Trace) -> None:
    """Tell an observer of every message on the client's WebSocket connections."""
    protocol = client._protocol_for("websocket")
    assert isinstance(protocol, WebSocketCommunicationProtocol)
    protocol._observe(trace)


async def _registered(
    client: AnyioUtcpClient, template: CallTemplate, source: Source, access: Access
) -> RegisterManualResult:
    limit = access.timeout
    if limit is None and source.asks_endpoint and "timeout" not in source.template:
        limit = DISCOVERY_TIME
    try:
        with anyio.move_on_after(limit), as_plugin_failures(template.call_template_type):
            result = await client.register_manual(template)
            if not result.success:
                reasons = "; ".join(map(last_line, result.errors))
                raise Failure(reasons or "the manual could not be registered", code=1, kind="RegistrationError")
            return result
    except (WebSocketClosedError, WebSocketProtocolError, WebSocketTimeoutError) as error:
        if not source.asks_endpoint or (isinstance(error, WebSocketTimeoutError) and error.phase != "response"):
            raise
        failure = failure_of(error, hint=_next_step(source))
    else:
        failure = Failure(
            f"{_shown(source)} did not say within {limit:g} s which tools it has{_next_step(source)}",
            code=5,
            kind="WebSocketTimeoutError",
            phase="response",
            endpoint=_shown(source),
        )
    raise failure


def _next_step(source: Source) -> str:
    if not source.asks_endpoint:
        return ""
    return (
        ". If it does not know UTCP, see what it speaks with"
        f" 'utcp-ws listen {source.target}', and describe it in a file with tools of its own"
    )


def _shown(source: Source) -> str:
    return display_url(str(source.template.get("url", source.target)))


class _Secrets:
    """Headers and credentials of the command line as variables: what stands in a template, and the values."""

    def __init__(self, access: Access) -> None:
        self.values: dict[str, str] = {}
        self.headers = {
            name: self._variable(f"header_{n}", text) for n, (name, text) in enumerate(access.headers.items())
        }
        self.auth = None if access.auth is None else self._credentials(access.auth)

    def _credentials(self, auth: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: self._variable(f"auth_{key}", value) if isinstance(value, str) and key not in _OPEN_PARTS else value
            for key, value in auth.items()
        }

    def _variable(self, name: str, value: str) -> str:
        name = "command_line_" + re.sub(r"[^A-Za-z0-9]", "_", name)
        self.values[name] = value
        return f"${{{name}}}"


def with_access(template: WebSocketCallTemplate, access: Access) -> WebSocketCallTemplate:
    """A template with the headers and credentials of the command line, which win over its own."""
    if not access.headers and access.auth is None:
        return template
    serializer = WebSocketCallTemplateSerializer()
    values = serializer.to_dict(template)
    secrets = _Secrets(access)
    given = {name.lower() for name in access.headers}
    kept = {name: value for name, value in (template.headers or {}).items() if name.lower() not in given}
    values["headers"] = {**kept, **secrets.headers}
    if secrets.auth is not None:
        values["auth"] = secrets.auth
    return serializer.validate_dict(values)


def _for_call(template: WebSocketCallTemplate, access: Access, *, same_origin: bool) -> WebSocketCallTemplate:
    if same_origin:
        template = with_access(template, access)
    if access.timeout is None or template.response_timeout is not None:
        return template
    # The command line's own limit ends the call; the template's must not end it earlier.
    serializer = WebSocketCallTemplateSerializer()
    return serializer.validate_dict({**serializer.to_dict(template), "timeout": access.timeout + 1})


def _source(content: Any, name: str, config: dict[str, Any], target: str) -> Source:
    if not isinstance(content, dict):
        raise Failure(f"{target}: a call template must be a JSON object")
    if "call_template_type" not in content and "url" not in content and isinstance(content.get("tools"), list):
        content = _around(content["tools"], target)
    # The client changes a manual's name in the same way.
    name = re.sub(r"\W", "_", str(content.get("name") or name))
    return Source(name, {"call_template_type": "websocket", **content, "name": name}, config, target)


def _around(tools: list[Any], target: str) -> dict[str, Any]:
    """A call template for a manual that has none, whose tools each name their own endpoint."""
    templates = [tool.get("tool_call_template") for tool in tools if isinstance(tool, dict)]
    known = [template for template in templates if isinstance(template, dict)]
    url = next((own["url"] for own in known if own.get("call_template_type") == "websocket" and "url" in own), None)
    if url is None:
        raise Failure(f"{target}: none of the manual's tools has a tool_call_template of type websocket with a url")
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
