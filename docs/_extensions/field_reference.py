"""``{fields}``: the fields of a call template, from their JSON Schema, so that the page cannot differ from the code.

``{members}`` is a table of what an object in a field may have, ``{field}`` the role that links to a field. A field that
is listed nowhere is an error of the build.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from utcp_websocket_anyio import WebSocketCallTemplate
from utcp_websocket_anyio.cli.schema import call_template_schema

_log = logging.getLogger(__name__)

_SCHEMA = call_template_schema()
_MEANINGS = {
    "name": "The manual's name: what tools are called by, `name.tool`, and what variables begin with",
    "call_template_type": "Says that this is a call template of this plugin",
    "auth": "`api_key`, `basic` or `oauth2`: [authenticate](../how-to/authenticate.md)",
    "allowed_communication_protocols": "Protocols that the manual's tools may use; null: its own",
}
# What an object with these members is called.
_SHAPES = {"$any": "filter", "compute": "step", "path": "extraction", "match": "entry"}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, or what it refers to."""
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = _SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return found


def shape(schema: dict[str, Any]) -> str | None:
    """What an object is called, by what it may have."""
    members = resolved(schema).get("properties", {})
    return next((name for member, name in _SHAPES.items() if member in members), None)


def kinds(schema: dict[str, Any]) -> Iterator[str]:
    """The type of a value, in the words of JSON."""
    schema = resolved(schema)
    if "anyOf" in schema:
        if any(shape(one) == "filter" for one in schema["anyOf"]):
            yield "filter"
            return
        for one in schema["anyOf"]:
            yield from kinds(one)
    elif "enum" in schema:
        yield from (f'"{value}"' for value in schema["enum"])
    elif "const" in schema:
        value = schema["const"]
        yield str(value).lower() if isinstance(value, bool) else f'"{value}"'
    elif schema.get("type") == "array":
        inner = " or ".join(dict.fromkeys(kinds(schema["items"]))) if schema.get("items") else ""
        several = inner[:-1] + "ies" if inner.endswith("y") else inner + "s"
        yield f"list of {several}" if inner and " " not in inner else f"list of {inner}" if inner else "list"
    elif isinstance(schema.get("type"), list):
        yield from schema["type"]
    elif "type" in schema:
        yield shape(schema) or schema["type"]
    else:
        yield "anything"


def describe_type(schema: dict[str, Any]) -> str:
    """What a value may be, in one line."""
    found = list(dict.fromkeys(kinds(schema)))
    # An extraction may be a list of extractions, and a text template is text.
    found = [kind for kind in found if not (kind == "list of extractions" and "extraction" in found)]
    return " or ".join(found)


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


def objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects that a field may be or hold, outermost first."""
    schema = resolved(schema)
    for one in schema.get("anyOf", []):
        yield from objects(one)
    if schema.get("type") == "array" and schema.get("items"):
        yield from objects(schema["items"])
    if schema.get("properties"):
        yield schema


def member_rows(field: str, inside: str | None = None) -> list[str]:
    """A table of what the object in a field may have, or of what one of its members may have."""
    schema: dict[str, Any] = _SCHEMA["properties"][field]
    if inside is not None:
        schema = next(objects(schema))["properties"][inside]
    rows = ["| member | type | meaning |", "|---|---|---|"]
    for name, member in next(objects(schema))["properties"].items():
        meaning = resolved(member).get("description", "").replace("|", "\\|")
        rows.append(f"| `{name}` | {describe_type(member)} | {meaning} |")
    return rows


class Fields(SphinxDirective):
    """Lists the fields that are its content, one name in each line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One entry per field: its name, type, default, what it means, and what an object in it may have."""
        lines: list[str] = []
        known = WebSocketCallTemplate.model_fields
        listed = self.env.metadata[self.env.docname].setdefault("fields", "")
        for name in self.content:
            if name not in known:
                _log.warning("there is no field %r", name, location=self.get_location())
                continue
            schema = _SCHEMA["properties"][name]
            meaning = _MEANINGS.get(name) or (known[name].description or "").strip().rstrip(".")
            if not meaning:
                _log.warning("the field %r has no description", name, location=self.get_location())
            kind = "object or null" if name == "auth" else describe_type(schema)
            lines += [f"::::{{describe-field}} {name} · {kind}", ""]
            lines += [f"{meaning}. *{describe_default(known[name])}*", ""]
            described = next(objects(schema), None)
            if name != "auth" and described is not None and shape(described) in (None, "entry"):
                lines += [*member_rows(name), ""]
            lines += ["::::", ""]
            listed += f" {name}"
        self.env.metadata[self.env.docname]["fields"] = listed
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


class Members(SphinxDirective):
    """A table of what the object in a field may have: ``{members} on_connect``, or ``{members} on_connect http``."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        return self.parse_text_to_nodes(StringList(member_rows(*self.arguments), self.get_source_info()[0]))


def parse_field(env: BuildEnvironment, signature: str, node: Any) -> str:
    """The name of the field stands before its type."""
    name, _, kind = signature.partition(" · ")
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
    """Make the directives and the role known."""
    app.add_object_type("describe-field", "field", "%s (field)", parse_field)
    app.add_directive("fields", Fields)
    app.add_directive("members", Members)
    app.connect("env-check-consistency", miss_fields)
    return {"parallel_read_safe": False}
