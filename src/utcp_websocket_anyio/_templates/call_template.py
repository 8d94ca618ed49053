"""The call template: how a manual says that a tool is a WebSocket endpoint.

How a template becomes a plan, and when it is compiled again. `WebSocketCallTemplate` is what UTCP stores and passes
around. Validating one compiles it (`plan.Plan`), so whatever can be wrong with it is wrong then, and a call finds
everything prepared. The stock client builds an equal template anew at every call: `validate_dict` keeps what it has
built, by a digest of the values (`_Cache`), and hands out copies, which share the plan. A template is mutable; `plan`
compares its fields with those that were compiled, and compiles anew if one has changed.

Two things are filled in when a template is validated, as manual and tools are known together only then: an inline tool
takes from its manual what it does not set (`_inherited`), and ``${name}`` of a tool's declared input becomes an
argument, before a client takes it for a variable (`_declared`). Variables themselves are a client's: `with_variables`.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import marshal
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urljoin

from pydantic import ConfigDict, PrivateAttr, ValidationError, field_validator, model_validator
from utcp.data.auth import Auth, AuthSerializer
from utcp.data.auth_implementations import OAuth2Auth
from utcp.data.tool import Tool, ToolSerializer
from utcp.exceptions import UtcpSerializerValidationError
from utcp.interfaces.serializer import Serializer

from .._net.auth import check_credentials
from .._net.forks import in_each_child
from .._net.security import check_header, check_http_url, check_websocket_url
from .compiler import CombinationError, compile_plan
from .fields import FIELDS, OLD_NAMES, CallTemplateFields
from .json_values import IMMUTABLE, check_json, copy_json
from .placeholders import RenderContext, Scope
from .plan import Plan
from .spelling import near_or_shown_name
from .urls import compile_url
from .values import declare_inputs

__all__ = ["WebSocketCallTemplate", "WebSocketCallTemplateSerializer", "declare_tool_inputs"]

_log = logging.getLogger(__name__)

# The fields that define the request: a tool that has one of these inherits none of them from the manual.
_REQUEST = ("message", "request", "listen_only")
_NOT_INHERITED = ("name", "tools", "discovery_message", "discovery_url")
_VARIABLE = re.compile(r"\$(?:\{([a-zA-Z0-9_]+)\}|([a-zA-Z0-9_]+))")
_ABSOLUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


class WebSocketCallTemplate(CallTemplateFields):  # noqa: PLW1641 - mutable, so not hashable
    """A call template of type ``websocket``: the way to call a tool over WebSocket.

    The field descriptions are the reference; the documentation shows templates for real endpoints. Times are seconds,
    sizes bytes. Unknown fields are ignored with a warning, so that manuals made for later versions still load.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(defer_build=False)

    _snapshot: dict[str, Any] = PrivateAttr(default_factory=dict)
    _plan: Plan | None = PrivateAttr(default=None)
    _variables: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        """Give old names their new ones, and warn of names that do not exist."""
        if not isinstance(values, Mapping):
            return values
        known = cls.model_fields
        values = {key: value for key, value in values.items() if key != "$schema"}
        for old, new in OLD_NAMES.items():
            if old in values:
                value = values.pop(old)
                if value is not None and values.get(new) is not None:
                    raise ValueError(f"{old}: is an old name of {new}; give only one of them")
                if value is not None or new not in values:
                    values[new] = value
        unknown = [key for key in values if key not in known]
        if unknown:
            _log.warning(
                "WebSocket call template: unknown field ignored: %s",
                ", ".join(sorted(near_or_shown_name(key, known) for key in unknown)),
            )
        return values

    @field_validator("auth", mode="before")
    @classmethod
    def validate_auth(cls, value: Any) -> Auth | None:
        """Validate `auth` without ever showing its values, which core's own message would."""
        if value is None or isinstance(value, Auth):
            return value
        try:
            return AuthSerializer().validate_dict(value)
        except Exception as error:  # noqa: BLE001 - whatever a plugin's serializer raises
            reason = _auth_error(value, error)
        raise ValueError(reason)

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_as_json(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [ToolSerializer().to_dict(tool) if isinstance(tool, Tool) else tool for tool in value]

    @model_validator(mode="after")
    def _compile(self) -> WebSocketCallTemplate:
        _check_addresses(self, {})
        for name in self.header_fields or ():
            check_header(name, "", "header_fields")
        check_credentials(self.auth)
        for name in _FREE_FORM:
            check_json(getattr(self, name), name)
        if self.tools is not None:
            own = _own_fields(self)
            # In place: the list is the validated one, and an assignment here would hide its type from type checkers.
            self.tools[:] = [_inline_tool(tool, f"tools[{index}]", own) for index, tool in enumerate(self.tools)]
        self._take_plan({})
        return self

    def _take_plan(self, variables: Mapping[str, str], auth: Auth | None = None) -> None:
        fields = dict(self.__dict__)
        self._snapshot = _copy_of(fields)
        self._variables = variables
        compiled = _copy_of(fields)
        if auth is not None:
            compiled["auth"] = auth
        if self.end_on_close == "normal" and "end_on_close" not in self.model_fields_set:
            compiled["end_on_close"] = None
        try:
            self._plan = compile_plan(compiled, variables)
        except CombinationError:
            # A manual whose tools all have their own templates is only what they take from it.
            if not self.tools or any(tool.get("tool_call_template") is None for tool in self.tools):
                raise
            self._plan = None

    def with_variables(self, variables: Mapping[str, str]) -> WebSocketCallTemplate:
        """A copy of the template in which ``$name`` and ``${name}`` stand for the client's values.

        A value is never scanned again. Wherever placeholders work it is a value like an argument: escaped inside JSON
        text and patterns, percent-encoded in a URL's path and query, as it is where a URL begins with it. In `auth` and
        `discovery_url` it is put in as text. The fields of the copy are the same as before (the JSON form shows
        ``${name}`` still), so that a tool which takes them from its manual has the variable, not its value; except
        `discovery_url`, which no tool takes.

        ``$name`` that is not in `variables` stays as it is; ``${name}`` is then an argument, if there is one of that
        name. Inline `tools` are not changed: each is resolved when it is called.

        Args:
            variables: Value by name, as written in the template.

        Raises:
            ValueError: With these values the template is not valid; no value is in the text.
        """
        variables = dict(variables)
        copied = copy.deepcopy(self)
        if self.auth is not None:
            values = _substituted(AuthSerializer().to_dict(self.auth), variables)
            copied.auth = type(self).validate_auth(values)
            check_credentials(copied.auth)
        if self.discovery_url is not None:
            copied.discovery_url = _substituted(self.discovery_url, variables)
        _check_addresses(copied, variables)
        auth, copied.auth = copied.auth, None if self.auth is None else self.auth.model_copy()
        copied._take_plan(variables, auth)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> WebSocketCallTemplate:
        # The stock client copies templates at every call. Copies share what is compiled, which never changes.
        # pydantic's own copy takes three times as long; this is all that a model has.
        copied = type(self).__new__(type(self))
        private = self.__pydantic_private__
        object.__setattr__(copied, "__dict__", _copy_of(self.__dict__))
        object.__setattr__(copied, "__pydantic_extra__", None)
        object.__setattr__(copied, "__pydantic_fields_set__", set(self.__pydantic_fields_set__))
        object.__setattr__(copied, "__pydantic_private__", None if private is None else dict(private))
        if memo is not None:
            memo[id(self)] = copied
        return copied

    def __eq__(self, other: object) -> bool:
        # The model's own would compare the plans as well.
        return type(other) is type(self) and self.__dict__ == other.__dict__ and self._variables == other._variables

    @property
    def plan(self) -> Plan:
        """The compiled form of the template as it is now, also where a field was changed after validation.

        Raises:
            ValueError: The template was changed into one that is not valid, or is that of a manual which is only valid
                together with what its tools say.
        """
        # Asked for at every call; pydantic's own way to a private attribute takes ten times as long.
        private = self.__pydantic_private__
        assert private is not None
        plan: Plan | None = private["_plan"]
        if plan is not None and self.__dict__ == private["_snapshot"]:
            return plan
        try:
            given = {
                name: value
                for name, value in self.__dict__.items()
                if name in self.model_fields_set or value != _DEFAULTS.get(name)
            }
            changed = type(self).model_validate(given)
            if private["_variables"]:
                changed = changed.with_variables(private["_variables"])
            elif changed._plan is None:
                changed._plan = compile_plan(_copy_of(changed.__dict__))
        except ValidationError as error:
            reason = "; ".join(_reason(detail["loc"], detail["msg"]) for detail in error.errors(include_input=False))
        else:
            assert changed._plan is not None
            self._plan, self._snapshot = changed._plan, changed._snapshot
            return changed._plan
        raise ValueError(f"the call template is not valid: {reason}")


class WebSocketCallTemplateSerializer(Serializer[WebSocketCallTemplate]):
    """Between `WebSocketCallTemplate` and its JSON form; the round trip keeps every field."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # core declares no types

    def to_dict(self, obj: WebSocketCallTemplate) -> dict[str, Any]:
        """The JSON form of a call template.

        Fields at their default are left out; `name`, `call_template_type` and `url` always stay. The result shares
        nothing with the template.
        """
        values: dict[str, Any] = {
            "name": obj.name,
            "call_template_type": obj.call_template_type,
            "url": obj.url,
        }
        if obj.auth is not None:
            values["auth"] = AuthSerializer().to_dict(obj.auth)
        # The stock client asks for it at every call: nearly all fields are at their default, which is None.
        fields = obj.__dict__
        for name, default in _DEFAULTS.items():
            value = fields[name]
            if (value is not default and value != default) or (name == "end_on_close" and _says_how_it_ends(obj)):
                values[name] = copy_json(value)
        return values

    def validate_dict(self, obj: dict[str, Any]) -> WebSocketCallTemplate:
        """Build a call template from its JSON form, which is left unchanged.

        Raises:
            UtcpSerializerValidationError: Something is wrong with it; the text names the field and shows no secret.
        """
        try:
            return _validated(obj)
        except ValidationError as error:
            reason = "; ".join(_reason(detail["loc"], detail["msg"]) for detail in error.errors(include_input=False))
        except RecursionError:
            reason = "it is nested too deeply"
        raise UtcpSerializerValidationError(f"Invalid WebSocket call template: {reason}")


def declare_tool_inputs(tool: Tool) -> Tool:
    """Make `${name}` of a tool's declared inputs an argument in its WebSocket call template.

    The stock client takes every ``${…}`` for a variable of its own, so this has to happen before it sees the template.

    Returns:
        The tool itself where there is nothing to rewrite, otherwise a copy.
    """
    template = tool.tool_call_template
    names = tool.inputs.properties
    if not isinstance(template, WebSocketCallTemplate) or not names:
        return tool
    serializer = WebSocketCallTemplateSerializer()
    values = serializer.to_dict(template)
    rewritten = _declared(values, names)
    if rewritten == values:
        return tool
    return tool.model_copy(update={"tool_call_template": serializer.validate_dict(rewritten)})


def _says_how_it_ends(template: WebSocketCallTemplate) -> bool:
    """True if `end_on_close` is its default, and yet says something: with `resume`, streams have another one."""
    return template.resume is not None and "end_on_close" in template.model_fields_set


# What was built is kept


class _Cache:
    """Templates by a digest of the values that they were built of, bounded in number and in size.

    A digest with a key of this process: what is in it cannot be guessed. 1, "1" and true differ, as in JSON they do.
    The lock is for the clients of several threads.
    """

    MAX_ENTRIES = 1024
    MAX_BYTES = 4 * 2**20
    """Bytes of the encoded values. A compiled template takes about twenty times as much."""

    MAX_ENTRY_BYTES = 2**20

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, tuple[WebSocketCallTemplate, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def begin_anew(self) -> None:
        """Have nothing, in a process that was forked: another thread may have been putting something in."""
        self._lock = threading.Lock()
        self._entries = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, values: dict[str, Any]) -> WebSocketCallTemplate:
        """The template of these values, built now or before. Not to be handed out, only copies of it.

        Raises:
            ValidationError: They are not valid.
        """
        try:
            # It tells 1 from "1" and True, and keeps objects out.
            encoded = marshal.dumps(values, 2)
        except ValueError:
            return WebSocketCallTemplate.model_validate(copy_json(values))
        digest = hashlib.blake2b(encoded, key=self._key, digest_size=20).digest()
        with self._lock:
            known = self._entries.get(digest)
            if known is not None:
                self._entries.move_to_end(digest)
                return known[0]
        built = WebSocketCallTemplate.model_validate(copy_json(values))
        if len(encoded) <= self.MAX_ENTRY_BYTES:
            with self._lock:
                if digest not in self._entries:
                    self._entries[digest] = built, len(encoded)
                    self._size += len(encoded)
                while len(self._entries) > self.MAX_ENTRIES or self._size > self.MAX_BYTES:
                    _, (_, size) = self._entries.popitem(last=False)
                    self._size -= size
        return built


_cache = _Cache()
in_each_child(_cache.begin_anew)


def _validated(values: dict[str, Any]) -> WebSocketCallTemplate:
    """Build a template, or copy the one that was built of the same values: the stock client asks at every call."""
    return copy.deepcopy(_cache.get(values))


# Inline tools


def _declared(values: dict[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    return {key: declare_inputs(value, names) if key in _TEMPLATED else value for key, value in values.items()}


def _own_fields(template: WebSocketCallTemplate) -> dict[str, Any]:
    """The fields that inline tools inherit from a manual's template, in JSON form."""
    values = WebSocketCallTemplateSerializer().to_dict(
        # Not its tools, which are many.
        template.model_copy(update={"tools": None})
    )
    return {name: value for name, value in values.items() if name not in _NOT_INHERITED}


def _inline_tool(tool: dict[str, Any], where: str, manual: Mapping[str, Any]) -> dict[str, Any]:
    """An inline tool in JSON form, with what it inherits and with its inputs declared.

    It is checked here, so that a bad one is an error of the template.
    """
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise ValueError(f"{where}.name: a tool needs a name")
    inputs = tool.get("inputs") or {}
    if not isinstance(inputs, dict) or not isinstance(inputs.get("properties") or {}, dict):
        raise ValueError(f"{where}.inputs: must be a JSON schema with an object of properties")
    template = tool.get("tool_call_template")
    if template is None:
        return tool
    if not isinstance(template, dict) or not isinstance(template.get("call_template_type"), str):
        raise ValueError(f"{where}.tool_call_template: must be an object with a call_template_type")
    if template["call_template_type"] != "websocket":
        return tool
    template = _declared(_inherited(template, manual), inputs.get("properties") or {})
    try:
        _cache.get(template)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        reason = _reason(detail["loc"], detail["msg"])
    else:
        return {**tool, "tool_call_template": template}
    raise ValueError(f"{where}.tool_call_template.{reason}")


def _inherited(template: dict[str, Any], manual: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's template, with the manual's fields where it has none, if its URL is the manual's to complete."""
    url = template.get("url")
    if not (url is None or (isinstance(url, str) and _is_incomplete(url))):
        return template
    own = {OLD_NAMES.get(name, name): value for name, value in template.items()}
    own.pop("url", None)
    taken = {name: value for name, value in manual.items() if not (name in _REQUEST and own.keys() & set(_REQUEST))}
    return {**taken, **own, "url": _resolved_url(str(manual["url"]), url or "")}


def _is_incomplete(url: str) -> bool:
    """True for a relative URL, and for one that a captured value begins."""
    text = url.lstrip()
    return re.match(r"\{\{\s*captured\.", text) is not None or not (
        _ABSOLUTE.match(text) or text.startswith(("$", "{{", "UTCP_ARG_"))
    )


def _resolved_url(base: str, url: str) -> str:
    """A tool's URL, given the manual's: RFC 3986, and textually behind a placeholder that begins the base."""
    if not url:
        return base
    if url.lstrip().startswith("{{"):
        return url
    if not _ABSOLUTE.match(base):
        return base + url
    scheme, _, rest = base.partition("://")
    # urljoin knows which schemes take relative references, and ws is among them from Python 3.13 on only.
    joined = urljoin(f"http://{rest}", url)
    return f"{scheme}{joined.removeprefix('http')}" if joined.startswith("http://") else joined


# Checks


def _check_addresses(template: WebSocketCallTemplate, variables: Mapping[str, str]) -> None:
    """The rules for URLs, as far as they are known: a client resolves its variables later."""
    url = compile_url(template.url, "url", Scope(variables=variables))
    if url.origin is not None and url.is_static:
        check_websocket_url(url.render(RenderContext({}, "")))
    elif url.origin is not None:
        # White space inside the braces of a placeholder is not part of the URL.
        path = re.sub(r"\{\{(?:(?!\}\}).)*\}\}", "x", template.url, flags=re.DOTALL)
        check_websocket_url(path if not variables else url.origin)
    if template.discovery_url is not None and "${" not in template.discovery_url:
        check_http_url(template.discovery_url, "discovery_url")
    if isinstance(template.auth, OAuth2Auth) and "${" not in template.auth.token_url:
        check_http_url(template.auth.token_url, "auth.token_url")


def _substituted(value: Any, variables: Mapping[str, str]) -> Any:
    """A JSON value with the variables in it, each put in once."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), value)
    if isinstance(value, dict):
        return {key: _substituted(item, variables) for key, item in value.items()}
    return [_substituted(item, variables) for item in value] if isinstance(value, list) else value


def _copy_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    copied = dict(fields)
    for name, value in fields.items():
        if value is not None and type(value) not in IMMUTABLE:
            copied[name] = _copied(value)
    return copied


def _copied(value: Any) -> Any:
    return value.model_copy() if isinstance(value, Auth) else copy_json(value)


def _reason(location: tuple[int | str, ...], text: str) -> str:
    text = text.removeprefix("Value error, ")
    field = ".".join(str(part) for part in location[:1])
    return f"{field}: {text}" if field else text


def _auth_error(value: Any, error: Exception) -> str:
    known = ", ".join(sorted(AuthSerializer.auth_serializers))
    kind = value.get("auth_type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in AuthSerializer.auth_serializers:
        return f"needs an auth_type, one of {known}"
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, ValidationError):
        chain = chain.__cause__ or chain.__context__
    if chain is None:
        return f"is not valid for auth_type {kind}"
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in chain.errors(include_input=False)
    )


_ALWAYS = ("name", "call_template_type", "url", "auth")
_TEMPLATED = tuple(name for name, role in FIELDS.items() if role.templated)
_FREE_FORM = (*(name for name, role in FIELDS.items() if role.is_free_form), "tools")
_DEFAULTS = {
    name: field.get_default(call_default_factory=True)
    for name, field in WebSocketCallTemplate.model_fields.items()
    if name not in _ALWAYS
}
