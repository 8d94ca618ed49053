"""tinyproxy, squid and microsocks from Debian's packages, as processes on loopback that last for a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from endpoints.servers.installing import debian_program
from endpoints.servers.process import free_port, listens, running

__all__ = ["Proxy", "microsocks", "squid", "tinyproxy"]

USER, PASSWORD = "alice", "a+pass%word"
ENCODED = f"{USER}:a%2Bpass%25word"


# A helper as squid asks it: a user and a password on each line, percent-encoded.
_CHECK = f"""#!/bin/sh
while read -r given; do
    [ "$given" = "{USER} {PASSWORD}" ] && echo OK || echo ERR
done
"""


@dataclass(frozen=True)
class Proxy:
    """A running proxy that asks for a password.

    Attributes:
        schemes: How its URL may begin.
        log: What it writes while it works.
    """

    schemes: tuple[str, ...]
    port: int
    log: Path

    def url(self, scheme: str, *, user: str = f"{USER}:{PASSWORD}") -> str:
        return f"{scheme}://{user}{'@' if user else ''}127.0.0.1:{self.port}"


@contextmanager
def tinyproxy(folder: Path, authority: trustme.CA) -> Iterator[Proxy]:
    program = debian_program("tinyproxy", "tinyproxy")
    proxy = Proxy(("http",), free_port(), folder / "server.log")
    settings = [
        f"Port {proxy.port}",
        "Listen 127.0.0.1",
        "Allow 127.0.0.1",
        "Timeout 60",
        "MaxClients 50",
        f"BasicAuth {USER} {PASSWORD}",
        "LogLevel Connect",
    ]
    (folder / "tinyproxy.conf").write_text("\n".join(settings) + "\n")
    with running([program, "-d", "-c", "tinyproxy.conf"], folder=folder, ready=lambda: listens(proxy.port)):
        yield proxy


@contextmanager
def squid(folder: Path, authority: trustme.CA) -> Iterator[Proxy]:
    """squid, asked over TLS."""
    program = debian_program("squid", "squid-openssl")
    proxy = Proxy(("https",), free_port(), folder / "access.log")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "proxy.pem"))
    (folder / "check").write_text(
        f'#!/bin/sh\nwhile read -r given; do [ "$given" = "{USER} a%2Bpass%25word" ] && echo OK || echo ERR; done\n'
    )
    (folder / "check").chmod(0o755)
    settings = [
        f"https_port 127.0.0.1:{proxy.port} tls-cert={folder}/proxy.pem tls-key={folder}/proxy.pem",
        f"auth_param basic program {folder}/check",
        "auth_param basic realm test",
        "acl known proxy_auth REQUIRED",
        "http_access allow known",
        "http_access deny all",
        "cache deny all",
        f"access_log stdio:{folder}/access.log",
        f"cache_log {folder}/cache.log",
        f"pid_filename {folder}/squid.pid",
        f"coredump_dir {folder}",
        "shutdown_lifetime 1 second",
        "pinger_enable off",
        *(["cache_effective_user root"] if os.geteuid() == 0 else []),
    ]
    (folder / "squid.conf").write_text("\n".join(settings) + "\n")
    command = [program, "-N", "-f", str(folder / "squid.conf")]
    with running(command, folder=folder, ready=lambda: listens(proxy.port)):
        yield proxy


@contextmanager
def microsocks(folder: Path, authority: trustme.CA) -> Iterator[Proxy]:
    program = debian_program("microsocks", "microsocks")
    proxy = Proxy(("socks5", "socks5h"), free_port(), folder / "server.log")
    command = [program, "-i", "127.0.0.1", "-p", str(proxy.port), "-u", USER, "-P", PASSWORD]
    with running(command, folder=folder, ready=lambda: listens(proxy.port)):
        yield proxy
