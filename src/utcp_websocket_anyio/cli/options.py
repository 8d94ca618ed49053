"""The options that commands share, given once, and how what is typed becomes credentials and headers.

A command that reads a manual has `access_options`; it gets one `Access` and knows nothing of the options behind it.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from .failures import Failure
from .network import network_options, reached_through, trust_option

__all__ = ["Access", "Pairs", "access_options", "as_json_option", "backend_option"]

CommandFunction = Callable[..., Any]
Decorator = Callable[[CommandFunction], CommandFunction]
Pairs = tuple[str, ...]

_ENVIRONMENT = re.compile(r"\$\{([A-Za-z0-9_]+)\}")
_AUTH_FORMS = "bearer:TOKEN, basic:USER:PASSWORD, key:HEADER=VALUE, a JSON object with auth_type, or @FILE with one"


@dataclass(frozen=True)
class Access:
    """The options of the command line that concern a manual, and the way to its endpoint.

    Attributes:
        headers: Handshake headers.
        auth: Credentials in the JSON form that a call template has them in.
        variables: Values of the manual's variables.
        backend: The event loop, ``"trio"`` or ``"asyncio"``.
        timeout: Seconds to wait for an answer; None: what the call template says.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    auth: Mapping[str, Any] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    backend: str = "trio"
    timeout: float | None = None


backend_option = click.option(
    "--backend",
    type=click.Choice(["trio", "asyncio"]),
    default="trio",
    show_default=True,
    help="The event loop to run on.",
)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON on stdout, one value per line; errors too, on stderr."
)
_VARIABLE = click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A UTCP variable of the manual: ${NAME} in its file. May be repeated.",
)
_ENDPOINT: tuple[Decorator, ...] = (
    click.option(
        "--auth", metavar="AUTH", help=f"Credentials: {_AUTH_FORMS}. ${{NAME}} is taken from the environment."
    ),
    click.option(
        "--header",
        "-H",
        "headers",
        multiple=True,
        metavar="'NAME: VALUE'",
        help="A handshake header; ${NAME} is taken from the environment. May be repeated.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="How long to wait for an answer.",
    ),
    backend_option,
)


def access_options(*, network: bool = True) -> Decorator:
    """Give a command the options of a manual and hand it their values as one ``access``, and ``as_json``.

    Args:
        network: True if it connects.
    """
    options: list[Decorator] = [as_json_option, _VARIABLE]
    options += [*network_options, *_ENDPOINT] if network else [trust_option]

    def decorate(function: CommandFunction) -> CommandFunction:
        @functools.wraps(function)
        def command(
            *arguments: Any,
            variables: Pairs,
            headers: Pairs = (),
            auth: str | None = None,
            timeout: float | None = None,
            backend: str = "trio",
            **others: Any,
        ) -> Any:
            access = Access(
                headers=_headers(headers),
                auth=_auth(auth),
                variables=_variables(variables),
                backend=backend,
                timeout=timeout,
            )
            with reached_through(others, _from_environment):
                return function(*arguments, access=access, **others)

        wrapped: CommandFunction = command
        for option in options:
            wrapped = option(wrapped)
        return wrapped

    return decorate


def _headers(values: Pairs) -> dict[str, str]:
    """Headers as curl takes them, ``Name: value``."""
    headers = {}
    for value in values:
        name, colon, text = value.partition(":")
        if not colon or not name.strip():
            raise Failure("--header: write it as 'NAME: VALUE'")
        headers[name.strip()] = _from_environment(text.strip(), "--header")
    return headers


def _variables(values: Pairs) -> dict[str, str]:
    """UTCP variables, ``NAME=VALUE``."""
    variables = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier():
            raise Failure("--var: write it as NAME=VALUE")
        variables[name] = text
    return variables


def _auth(value: str | None) -> dict[str, Any] | None:
    """Credentials in the JSON form that a call template has them in. No text of a failure shows any of them."""
    if value is None:
        return None
    if value.startswith("@"):
        try:
            return _auth_object(Path(value[1:]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or "not UTF-8 text"
        raise Failure(f"--auth: {value[1:]} cannot be read: {reason}")
    value = _from_environment(value, "--auth")
    if value.startswith("{"):
        return _auth_object(value)
    kind, _, rest = value.partition(":")
    if kind == "bearer" and rest:
        return _api_key("Authorization", f"Bearer {rest}")
    if kind == "basic" and ":" in rest:
        username, _, password = rest.partition(":")
        return {"auth_type": "basic", "username": username, "password": password}
    if kind == "key" and "=" in rest:
        name, _, key = rest.partition("=")
        return _api_key(name, key)
    raise Failure(f"--auth: takes {_AUTH_FORMS}")


def _auth_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Failure('--auth: must be a JSON object, such as {"auth_type": "api_key", "api_key": "…"}')
    return value


def _api_key(name: str, key: str) -> dict[str, Any]:
    return {"auth_type": "api_key", "api_key": key, "var_name": name, "location": "header"}


def _from_environment(text: str, option: str) -> str:
    """The text with ``${NAME}`` from the environment, in a single pass: a value is never looked through again."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise Failure(f"{option}: there is no {match[1]} in the environment")
        return found

    return _ENVIRONMENT.sub(value, text)
