"""The configuration of an `AnyioUtcpClient`, from whatever form it is given in."""

from __future__ import annotations

import json
import os
from typing import Any

import anyio
from utcp.data.utcp_client_config import UtcpClientConfig, UtcpClientConfigSerializer
from utcp.implementations.in_mem_tool_repository import InMemToolRepository
from utcp.plugins.plugin_loader import ensure_plugins_initialized

from .repository import AnyioToolRepository

__all__ = ["Config", "load_config"]

Config = str | os.PathLike[str] | dict[str, Any] | UtcpClientConfig


async def load_config(config: Config | None) -> UtcpClientConfig:
    """The configuration as an object, and its repository as one that needs no asyncio.

    As in core, an object that is given is used itself, so that changes to its variables count later.

    Args:
        config: The object, its JSON form, or the path of a file with that; None: the default.

    Raises:
        UtcpSerializerValidationError: It is not valid.
        ValueError: The file cannot be read, or is no JSON.
    """
    ensure_plugins_initialized()
    if isinstance(config, UtcpClientConfig):
        loaded = config
    elif config is None:
        loaded = UtcpClientConfig()
    elif isinstance(config, (str, os.PathLike)):
        loaded = UtcpClientConfigSerializer().validate_dict(await _read(os.fspath(config)))
    elif isinstance(config, dict):
        loaded = UtcpClientConfigSerializer().validate_dict(config)
    else:
        raise TypeError(f"config must be a UtcpClientConfig, its JSON form or a path, not {type(config).__name__}")
    # Core's repository waits on asyncio's locks. A subclass of it is somebody's own and stays.
    if type(loaded.tool_repository) is InMemToolRepository:
        loaded.tool_repository = AnyioToolRepository.sharing(loaded.tool_repository)
    return loaded


async def _read(path: str) -> Any:
    try:
        return json.loads(await anyio.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Invalid config file: {path}, error: {error}") from error
