"""The configuration of an `AnyioUtcpClient`, from whatever form it is given in.

Besides a client's configuration itself, what it is made of can be given: a call template, a UTCP manual, or a list of
these, as they lie in files. Any other mapping is an error: core ignores keys that it does not know, and a
misspelled configuration would be an empty one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from utcp.data.utcp_client_config import UtcpClientConfig, UtcpClientConfigSerializer
from utcp.implementations.in_mem_tool_repository import InMemToolRepository
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .repository import AnyioToolRepository

__all__ = ["Config", "load_config", "manual_as_template"]

Config = str | os.PathLike[str] | dict[str, Any] | Sequence[dict[str, Any]] | UtcpClientConfig


async def load_config(config: Config | None) -> UtcpClientConfig:
    """The configuration as an object, and its repository as one that needs no asyncio.

    As in core, an object that is given is used itself, so that changes to its variables count later.

    Args:
        config: The object; its JSON form; a call template, a manual or a list of these; or the path of a file with one
            of these. None: the default.

    Raises:
        UtcpSerializerValidationError: The configuration is not valid.
        ValueError: The file cannot be read, is not JSON, or holds something else.
    """
    ensure_plugins_initialized()
    if isinstance(config, UtcpClientConfig):
        loaded = config
    elif config is None:
        loaded = UtcpClientConfig()
    elif isinstance(config, (str, os.PathLike)):
        path = os.fspath(config)
        loaded = _loaded(await _read(path), f"the config file {path}", Path(path).stem)
    elif isinstance(config, dict) or (isinstance(config, (list, tuple)) and all(isinstance(i, dict) for i in config)):
        loaded = _loaded(config, "config", "manual")
    else:
        raise TypeError(
            f"config must be a UtcpClientConfig, its JSON form, a call template, a manual, a list of these, or a path,"
            f" not {type(config).__name__}"
        )
    # Core's repository waits on asyncio's locks. A subclass of it is somebody's own and stays.
    if type(loaded.tool_repository) is InMemToolRepository:
        loaded.tool_repository = AnyioToolRepository.sharing(loaded.tool_repository)
    return loaded


def _loaded(content: Any, where: str, name: str) -> UtcpClientConfig:
    """A configuration of any JSON form. `name` is that of a manual that has none."""
    known = UtcpClientConfig.model_fields.keys()
    if isinstance(content, (list, tuple)) and all(isinstance(item, dict) for item in content):
        templates = [_template(item, f"{where}[{n}]", f"{name}_{n + 1}") for n, item in enumerate(content)]
        content = {"manual_call_templates": templates}
    elif isinstance(content, dict) and content and not known & content.keys():
        content = {"manual_call_templates": [_template(content, where, name)]}
    return UtcpClientConfigSerializer().validate_dict(content)


def _template(content: dict[str, Any], where: str, name: str) -> dict[str, Any]:
    """A call template, or one around a manual."""
    if "call_template_type" in content:
        return {"name": name, **content}
    if isinstance(content.get("tools"), list):
        return manual_as_template(content["tools"], where, name)
    expected = "a client configuration, a call template (with a call_template_type) or a manual (with tools)"
    known = [*UtcpClientConfig.model_fields, "call_template_type", "tools"]
    near = next((match for key in map(str, content) for match in difflib.get_close_matches(key, known, 1)), None)
    raise ValueError(f"{where} is not {expected}" + (f"; is {near} misspelled?" if near else ""))


def manual_as_template(tools: list[Any], where: str, name: str) -> dict[str, Any]:
    """A call template, in JSON form, for a manual that came without one: its tools say how they are called.

    Raises:
        ValueError: One of them does not say it.
    """
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("tool_call_template"), dict):
            raise ValueError(
                f"{where}: tools[{index}] has no tool_call_template, and a manual alone does not say how it is called"
            )
    kinds = {str(tool["tool_call_template"].get("call_template_type")) for tool in tools}
    return {
        "name": name,
        "call_template_type": "websocket",
        # It must be one, and is never used.
        "url": "wss://manual.invalid/",
        "tools": tools,
        "allowed_communication_protocols": sorted({"websocket", *kinds}),
    }


async def _read(path: str) -> Any:
    try:
        return json.loads(await anyio.Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Invalid config file: {path}, error: {error}") from error
