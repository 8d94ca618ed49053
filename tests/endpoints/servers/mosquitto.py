"""Mosquitto, with MQTT over WebSocket for one user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .installing import debian_program
from .process import free_port, listens, running

__all__ = ["Mosquitto", "mosquitto"]


@dataclass(frozen=True)
class Mosquitto:
    """A running broker and whom it lets in."""

    port: int
    user: str
    password: str
    log: Path

    def said(self, text: str) -> int:
        """How often the broker has logged something."""
        return self.log.read_text(errors="replace").count(text)


@contextmanager
def mosquitto(installed: Path, folder: Path) -> Iterator[Mosquitto]:
    program = debian_program("mosquitto", "mosquitto")
    server = Mosquitto(free_port(), "lamp", "a pass:word", folder / "server.log")
    set_password = [debian_program("mosquitto_passwd", "mosquitto"), "-b", "-c", "passwords"]
    subprocess.run([*set_password, server.user, server.password], cwd=folder, check=True, capture_output=True)
    settings = [
        f"listener {server.port} 127.0.0.1",
        "protocol websockets",
        "socket_domain ipv4",  # without it, 2.0.11 listens on every interface
        "listener 0 plain.sock",  # with none but WebSocket listeners, 2.0 does not start
        "allow_anonymous false",
        "password_file passwords",
        "persistence false",
    ]
    if os.geteuid() == 0:
        settings.append("user root")  # otherwise it becomes a user who may not read the folder
    (folder / "mosquitto.conf").write_text("\n".join(settings))
    with running([program, "-c", "mosquitto.conf"], folder=folder, ready=lambda: listens(server.port)):
        yield server
