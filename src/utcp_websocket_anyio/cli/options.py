"""The options that commands share, and how what is typed becomes credentials and headers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from .failures import Failure

__all__ = ["Pairs", "common", "parse_auth", "parse_headers", "parse_variables"]

Command = TypeVar("Command", bound=Callable[..., Any])
Pairs = tuple[str, ...]

_ENVIRONMENT = re.compile(r"\$\{([A-Za-z0-9_]+)\}")
_AUTH_FORMS = "bearer:TOKEN, basic:USER:PASSWORD, key:HEADER=VALUE, a JSON object with auth_type, or @FILE with one"

_BACKEND = click.option(
    "--backend",
    type=click.Choice(["trio", "asyncio"]),
    default="trio",
    show_default=True,
    help="The event loop to run on.",
)
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="JSON on stdout, one value per line; errors too, on stderr."
)
_HEADER = click.option(
    "--header",
    "-H",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A handshake header; ${NAME} is taken from the environment. May be repeated.",
)
_AUTH = click.option(
    "--auth", metavar="AUTH", help=f"Credentials: {_AUTH_FORMS}. ${{NAME}} is taken from the environment."
)
_VARIABLE = click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A UTCP variable of the manual: ${NAME} in its file. May be repeated.",
)


def common(*, network: bool = True) -> Callable[[Command], Command]:
    """The options of a command that reads a manual; with `network`, also of one that connects."""
    options = [_JSON, _VARIABLE, *((_AUTH, _HEADER, _BACKEND) if network else ())]
    return lambda command: reduce(lambda wrapped, option: option(wrapped), options, command)


def parse_headers(values: Pairs) -> dict[str, str]:
    """Headers as curl takes them, ``Name: value``."""
    headers = {}
    for value in values:
        name, colon, text = value.partition(":")
        if not colon or not name.strip():
            raise Failure("--header: write it as 'NAME: VALUE'")
        headers[name.strip()] = _from_environment(text.strip(), "--header")
    return headers


def parse_variables(values: Pairs) -> dict[str, str]:
    """UTCP variables, ``NAME=VALUE``."""
    variables = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier():
            raise Failure("--var: write it as NAME=VALUE")
        variables[name] = text
    return variables


def parse_auth(value: str | None) -> dict[str, Any] | None:
    """Credentials in the JSON form that a call template has them in. No text of a failure shows any of them."""
    if value is None:
        return None
    if value.startswith("@"):
        try:
            return _auth_object(Path(value[1:]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"--auth: {value[1:]} cannot be read: {_reason(error)}") from None
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
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Failure('--auth: must be a JSON object, such as {"auth_type": "api_key", "api_key": "…"}')
    return value


def _api_key(name: str, key: str) -> dict[str, Any]:
    return {"auth_type": "api_key", "api_key": key, "var_name": name, "location": "header"}


def _from_environment(text: str, option: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise Failure(f"{option}: there is no {match[1]} in the environment")
        return found

    return _ENVIRONMENT.sub(value, text)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or "it is no UTF-8 text"
