"""``{fields}``: the fields of a call template, from the model itself, so that the page cannot differ from the code.

``{field}`` is the role that links to one. A field that the page lists nowhere is an error of the build.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, TypeAliasType, Union, get_args, get_origin

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from utcp_websocket_anyio import WebSocketCallTemplate

_log = logging.getLogger(__name__)

_INHERITED = {
    "name": "The manual's name: what tools are called by, `name.tool`, and what variables begin with",
    "call_template_type": "Says that this is a call template of this plugin",
    "auth": "`api_key`, `basic` or `oauth2`: [authentication](../how-to/authenticate.md)",
    "allowed_communication_protocols": "Protocols that the manual's tools may use; null: its own",
}
_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object", "list": "list"}


def describe_type(annotation: Any) -> str:
    """A type as somebody who writes JSON calls it."""
    if isinstance(annotation, TypeAliasType):
        return describe_type(annotation.__value__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_type(arguments[0])
    if origin is Literal:
        return " or ".join(f'"{argument}"' for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(argument) for argument in arguments))
    if annotation is type(None):
        return "null"
    if origin in (list, tuple):
        inner = describe_type(arguments[0]) if arguments and arguments[0] is not Any else ""
        return f"list of {inner}s" if inner and " " not in inner else f"list of {inner}" if inner else "list"
    if origin is dict:
        return "object"
    name = getattr(annotation, "__name__", str(annotation))
    return _NAMES.get(name, "object" if hasattr(annotation, "model_fields") or "dict" in name.lower() else name)


def describe_default(info: Any) -> str:
    """What holds if the field is not there."""
    if info.is_required():
        return "required"
    if info.default_factory is not None and not isinstance(info.get_default(call_default_factory=True), (dict, list)):
        return "a new one each time"
    value = info.get_default(call_default_factory=True)
    words = {None: "null", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else repr(value).replace("'", '"')
    return f"default `{shown}`"


class Fields(SphinxDirective):
    """Lists the fields that are its content, one name in each line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One entry per field: its name, type, default, and what it means."""
        lines: list[str] = []
        known = WebSocketCallTemplate.model_fields
        listed = self.env.metadata[self.env.docname].setdefault("fields", "")
        for name in self.content:
            if name not in known:
                _log.warning("there is no field %r", name, location=self.get_location())
                continue
            info = known[name]
            meaning = _INHERITED.get(name) or (info.description or "").strip().rstrip(".")
            if not meaning:
                _log.warning("the field %r has no description", name, location=self.get_location())
            kind = "string" if name == "name" else "object" if name == "auth" else describe_type(info.annotation)
            signature = f"{name} · {kind}"
            lines += [
                f"::::{{describe-field}} {signature}",
                "",
                f"{meaning}. *{describe_default(info)}*",
                "",
                "::::",
                "",
            ]
            listed += f" {name}"
        self.env.metadata[self.env.docname]["fields"] = listed
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


def parse_field(env: BuildEnvironment, signature: str, node: Any) -> str:
    """The name of the field stands before its type."""
    name, _, kind = signature.partition(" · ")
    from sphinx import addnodes

    node += addnodes.desc_name(name, name)
    if kind:
        node += addnodes.desc_annotation(kind, f"  {kind}")
    return name


def miss_fields(app: Sphinx, env: BuildEnvironment) -> None:
    """Every field has to be listed once."""
    listed = [name for data in env.metadata.values() for name in str(data.get("fields", "")).split()]
    for name in WebSocketCallTemplate.model_fields:
        if listed.count(name) != 1:
            _log.warning("the field %r is listed %s times in the reference", name, listed.count(name))


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive and the role known."""
    app.add_object_type("describe-field", "field", "%s (field)", parse_field)
    app.add_directive("fields", Fields)
    app.connect("env-check-consistency", miss_fields)
    return {"parallel_read_safe": False}
