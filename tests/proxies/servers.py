"""tinyproxy, squid and microsocks from Debian's packages, as processes on loopback that last for a block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from endpoints.servers.installing import debian_program
from endpoints.servers.process import free_port, listens, running

__all__ = ["Proxy", "microsocks", "squid", "tinyproxy"]

USER, PASSWORD = "alice", "pass9word"  # tinyproxy takes letters and digits only


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
    # As root it becomes a user of its own, who may not look into pytest's folders.
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        folder.chmod(0o755)
        proxy = Proxy(("https",), free_port(), folder / "server.log")
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "proxy.pem"))
        (folder / "check").write_text(_CHECK)
        (folder / "check").chmod(0o755)
        settings = [
            f"https_port 127.0.0.1:{proxy.port} tls-cert={folder}/proxy.pem tls-key={folder}/proxy.pem",
            f"auth_param basic program {folder}/check",
            "auth_param basic children 2 startup=1",
            "auth_param basic realm test",
            "acl known proxy_auth REQUIRED",
            "http_access allow known",
            "http_access deny all",
            "cache deny all",
            "access_log none",
            "cache_log /dev/null",
            "pid_filename none",
            "shutdown_lifetime 1 second",
            "pinger_enable off",
        ]
        (folder / "squid.conf").write_text("\n".join(settings) + "\n")
        command = [program, "-n", f"test{proxy.port}", "-N", "-d", "1", "-f", str(folder / "squid.conf")]
        with running(command, folder=folder, ready=lambda: listens(proxy.port)):
            yield proxy


@contextmanager
def microsocks(folder: Path, authority: trustme.CA) -> Iterator[Proxy]:
    program = debian_program("microsocks", "microsocks")
    proxy = Proxy(("socks5", "socks5h"), free_port(), folder / "server.log")
    command = [program, "-i", "127.0.0.1", "-p", str(proxy.port), "-u", USER, "-P", PASSWORD]
    with running(command, folder=folder, ready=lambda: listens(proxy.port)):
        yield proxy
