"""The options that say how the command reaches the network. They hold for this process, and no file can set them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from .._net.settings import NetworkSettings, configure, current_settings
from ..errors import mapped
from .failures import Failure

__all__ = ["network_options", "reached_through", "trust_option"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_PASSWORD = "UTCP_WS_KEY_PASSWORD"  # noqa: S105 - the name of the variable
# How the members of NetworkSettings are called here; their errors name them.
_OPTIONS = {
    "proxy: ": "--proxy: ",
    "ca_file": "--cacert",
    "client_cert": "--cert",
    "client_key_password": _PASSWORD,
    "client_key": "--key",
    "trusted_hosts: ": "--trust-host: ",
}

trust_option: Decorator = click.option(
    "--trust-host",
    "trusted_hosts",
    multiple=True,
    metavar="HOST",
    help="A name, address or network (192.168.0.0/16) to which plain ws:// and http:// are allowed. May be repeated.",
)
network_options: tuple[Decorator, ...] = (
    trust_option,
    click.option(
        "--key",
        "client_key",
        metavar="FILE",
        help=f"The key of --cert, if it is not in that file. Its password is taken from {_PASSWORD}.",
    ),
    click.option("--cert", "client_cert", metavar="FILE", help="A client certificate (PEM)."),
    click.option("--cacert", "ca_file", metavar="FILE", help="Certificates (PEM) to trust beside the system's."),
    click.option("--no-proxy", is_flag=True, help="Use no proxy, whatever the environment says."),
    click.option(
        "--proxy",
        metavar="URL",
        help="A proxy: http://, https://, socks5:// or socks5h://. ${NAME} is taken from the environment.",
    ),
)


@contextmanager
def reached_through(options: dict[str, Any], expand: Callable[[str, str], str]) -> Iterator[None]:
    """Reach the network as the command line says for the length of a block.

    Args:
        options: The values of `network_options`, which are taken out of it.
        expand: Puts the environment into a value, given with the name of its option.

    Raises:
        Failure: An option cannot be used; no secret is shown.
    """
    given = {name: options.pop(name, None) for name in ("ca_file", "client_cert", "client_key", "trusted_hosts")}
    given = {name: value for name, value in given.items() if value}
    proxy, no_proxy = options.pop("proxy", None), options.pop("no_proxy", False)
    if proxy is not None and no_proxy:
        raise Failure("--proxy and --no-proxy contradict each other")
    if no_proxy:
        given["proxy"] = None
    elif proxy is not None:
        given["proxy"] = expand(proxy, "--proxy")
    if "client_cert" in given and _PASSWORD in os.environ:
        given["client_key_password"] = os.environ[_PASSWORD]
    with mapped(_with_option_names, ValueError):
        settings = NetworkSettings(**given)
    before = current_settings()
    configure(settings)
    try:
        yield
    finally:
        configure(before)


def _with_option_names(reason: str) -> Failure:
    return Failure(re.sub("|".join(_OPTIONS), lambda member: _OPTIONS[member[0]], reason))
