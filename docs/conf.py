"""The API reference, from the docstrings: ``nox -s docs``.

It is built without network, so what belongs to other packages is named but not linked. Whatever else a public docstring
or signature names must be there, every public name must be on the page, and every member must have a docstring.
"""

from __future__ import annotations

import builtins
import inspect
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import utcp_websocket_anyio
from utcp_websocket_anyio import WebSocketCallTemplate

project = "utcp-websocket-anyio"
author = "the authors of utcp-websocket-anyio"
version = release = utcp_websocket_anyio.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"
html_theme = "furo"
html_title = f"{project} {version}"

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

nitpicky = True
_OTHERS = (
    "asyncio|collections|contextlib|os|pathlib|ssl|trio|types|typing|typing_extensions",
    "anyio|pydantic|trio_websocket|utcp",
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
    (r"py:class", r"utcp_websocket_anyio\.(configuration\.Config|server\.Function)"),
]

_NAME = "utcp_websocket_anyio.WebSocketCallTemplate"
_log = logging.getLogger(__name__)


def list_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give the call template's fields with the descriptions that they have in its schema."""
    if name != _NAME:
        return
    for field, info in WebSocketCallTemplate.model_fields.items():
        default = "" if info.is_required() else f" Default: ``{info.get_default(call_default_factory=True)!r}``."
        description = (info.description or "As in UTCP").rstrip(".")
        lines += ["", f".. py:attribute:: {field}", "", f"   {description}.{default}", ""]


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """The call template's has forty parameters, which are listed as its fields."""
    return ("(**fields)", None) if name == _NAME else None


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what pydantic needs and how errors are made; miss the docstring of what is left."""
    if name.startswith("_") or name in ("model_config", "model_post_init", "validate_auth", "plan"):
        return True
    if name in WebSocketCallTemplate.model_fields or name == "tool_repository_type":
        return True
    if callable(obj) and not inspect.getdoc(obj):
        _log.warning("%s has no docstring", getattr(obj, "__qualname__", name))
    return None


def find_field(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """A field of a call template is named without it, wherever it is named."""
    target = node["reftarget"]
    if target not in WebSocketCallTemplate.model_fields:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "attr", f"{_NAME}.{target}", node, contnode)


def miss_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Every name that the package offers has to be on the page."""
    there = {name for name, *_ in env.domains.python_domain.get_objects()}
    for name in utcp_websocket_anyio.__all__:
        if f"utcp_websocket_anyio.{name}" not in there:
            _log.warning("%s is not in the reference", name)


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("autodoc-process-docstring", list_fields)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", find_field)
    app.connect("env-check-consistency", miss_names)
