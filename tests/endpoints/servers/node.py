"""Servers on Node.js: a script of this folder with what package.json names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .installing import node_script
from .process import running

__all__ = ["NodeServer", "graphql", "socketio"]

_PORT = re.compile(r"^port (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class NodeServer:
    """A running server, and the token it wants at login."""

    port: int
    token: str


@contextmanager
def graphql(installed: Path, folder: Path) -> Iterator[NodeServer]:
    with _running("graphql.js", installed, folder) as server:
        yield server


@contextmanager
def socketio(installed: Path, folder: Path) -> Iterator[NodeServer]:
    with _running("socketio.js", installed, folder) as server:
        yield server


@contextmanager
def _running(script: str, installed: Path, folder: Path) -> Iterator[NodeServer]:
    token = "a token: with {braces} & signs"
    log = folder / "server.log"
    command = [*node_script(script, installed), token]
    with running(command, folder=folder, ready=lambda: _PORT.search(log.read_text()) is not None):
        printed = _PORT.search(log.read_text())
        assert printed is not None
        yield NodeServer(int(printed[1]), token)
