"""The documentation: ``nox -s docs``.

It is built without network, so what belongs to other packages is named but not linked. Whatever else a public docstring
or signature names must be there, every public name must be on a page, and every member must have a docstring.
"""

from __future__ import annotations

import builtins
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import utcp_websocket_anyio
from utcp_websocket_anyio import WebSocketCallTemplate
from utcp_websocket_anyio.cli.schema import call_template_schema, manual_schema

project = "utcp-websocket-anyio"
author = "utcp-websocket-anyio contributors"
copyright = f"2026, {author}"  # noqa: A001 - the name that Sphinx reads
version = release = utcp_websocket_anyio.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "field_reference",
    "command_reference",
    "wire",
]
exclude_patterns = ["_build"]
default_role = "py:obj"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
smartquotes_action = "D"  # dashes; quotation marks of JSON stay what they are
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "utcp-websocket-anyio"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "source_repository": "https://github.com/utcp-websocket-anyio/utcp-websocket-anyio/",
    "source_branch": "main",
    "source_directory": "docs/",
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

nitpicky = True
_OTHERS = (
    "asyncio|collections|contextlib|os|pathlib|ssl|trio|types|typing|typing_extensions",
    "anyio|pydantic|trio_websocket|utcp|websockets|BlockingPortal",
)
_IMPORTED = (
    "CallTemplate|ConfigDict|RegisterManualResult|UtcpClient|UtcpProtocolCloseError|UtcpSerializerValidationError"
    "|UtcpVariableNotFound"
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(_OTHERS)})(\..*)?"),
    (r"py:.*", _IMPORTED),
    (r"py:.*", "|".join(name for name in dir(builtins) if not name.startswith("_"))),
    # Type aliases and variables are expanded where they are used.
    (r"py:class", r"utcp_websocket_anyio\.(_client\.config\.Config|_server\.server\.Function|_templates\.fields\.\w+)"),
]

_PACKAGE = "utcp_websocket_anyio"
_TEMPLATE = f"{_PACKAGE}.WebSocketCallTemplate"
_log = logging.getLogger(__name__)


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """The call template's has dozens of parameters, which are listed as its fields."""
    return ("(**fields)", None) if name == _TEMPLATE else None


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what pydantic needs and how errors are made; miss the docstring of what is left."""
    if name.startswith("_") or name in ("model_config", "model_post_init", "validate_auth", "plan"):
        return True
    if name in WebSocketCallTemplate.model_fields or name == "tool_repository_type":
        return True
    if callable(obj) and not inspect.getdoc(obj):
        _log.warning("%s has no docstring", getattr(obj, "__qualname__", name))
    return None


def find_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """What a docstring or signature names: a field, a public name by its private module, a parameter.

    A field of a call template is on a page of its own. A bare name in lower case is taken for a parameter; everything
    else has to lead somewhere.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    name = target.rpartition(".")[2]
    if target in WebSocketCallTemplate.model_fields:
        domain = env.domains.standard_domain
        return domain.resolve_xref(env, node["refdoc"], app.builder, "field", target, node, contnode)
    if name in utcp_websocket_anyio.__all__ and not target.startswith(f"{_PACKAGE}.{name}"):
        node["reftarget"] = f"{_PACKAGE}.{name}"
        python = env.domains.python_domain
        return python.resolve_xref(env, node["refdoc"], app.builder, "obj", node["reftarget"], node, contnode)
    return contnode if re.fullmatch("[a-z_]+", target) else None


def miss_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Every name that the package offers has to be on a page."""
    there = {name for name, *_ in env.domains.python_domain.get_objects()}
    for name in utcp_websocket_anyio.__all__:
        if f"utcp_websocket_anyio.{name}" not in there and not name.startswith("__"):
            _log.warning("%s is not in the reference", name)


def publish_schemas(app: Sphinx, failure: Exception | None) -> None:
    """Put the JSON Schemas where a manual's ``$schema`` can name them."""
    if failure is None and app.builder.format == "html":
        folder = Path(app.outdir, "schema")
        folder.mkdir(exist_ok=True)
        for name, make in {"manual": manual_schema, "call-template": call_template_schema}.items():
            (folder / f"{name}.json").write_text(json.dumps(make(), indent=2), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", find_name)
    app.connect("env-check-consistency", miss_names)
    app.connect("build-finished", publish_schemas)
