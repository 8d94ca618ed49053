"""Credentials: what they put into a handshake, what makes two the same, and OAuth2 tokens."""

from __future__ import annotations

import base64
import copy
import re
import ssl
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import anyio
from utcp.data.auth import Auth
from utcp.data.auth_implementations import ApiKeyAuth, BasicAuth, OAuth2Auth

from .errors import WebSocketAuthError, WebSocketConnectionError, WebSocketError, WebSocketSecurityError
from .http import request_json
from .security import check_header, check_http_url, display_url

__all__ = [
    "Credentials",
    "TokenCache",
    "add_query",
    "check_credentials",
    "credential_key",
    "handshake_credentials",
    "merge_headers",
]

Pairs = tuple[tuple[str, str], ...]

_RENEWED_BEFORE = 30.0
"""Seconds before its end at which a token is not used any more."""

_COOKIE_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an authentication adds to a handshake."""

    headers: Pairs = ()
    query: Pairs = ()

    def __repr__(self) -> str:
        return f"<Credentials, headers {[name for name, _ in self.headers]}, {len(self.query)} parameters>"


class _Secret:
    """A hashable value that does not show itself."""

    __slots__ = ("_value",)

    def __init__(self, value: Hashable) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "<secret>"


def credential_key(auth: Auth | None) -> Hashable:
    """The identity of a whole credential configuration."""
    if auth is None:
        return None
    return _Secret((type(auth), tuple(sorted((name, repr(value)) for name, value in auth.model_dump().items()))))


def check_credentials(auth: Auth | None) -> None:
    """Whether credentials can go into a handshake at all, without an OAuth2 token.

    Raises:
        WebSocketSecurityError: They hold what would change the handshake; no value is shown.
        ValueError: They are of a kind that this package does not know.
    """
    if not isinstance(auth, OAuth2Auth):
        handshake_credentials(auth, None)


def handshake_credentials(auth: Auth | None, token: str | None) -> Credentials:
    """What credentials add to a handshake.

    Args:
        token: The access token, for OAuth2.

    Raises:
        WebSocketSecurityError: They hold what would change the handshake; no value is shown.
    """
    if auth is None:
        return Credentials()
    if isinstance(auth, OAuth2Auth):
        return _header("Authorization", f"Bearer {token}")
    if isinstance(auth, BasicAuth):
        if ":" in auth.username:
            raise WebSocketSecurityError("auth: a user name with a colon cannot be told from its password (RFC 7617)")
        return _header("Authorization", f"Basic {_basic(auth.username, auth.password)}")
    if isinstance(auth, ApiKeyAuth):
        if auth.location == "query":
            return Credentials(query=((auth.var_name, auth.api_key),))
        if auth.location == "header":
            return _header(auth.var_name, auth.api_key)
        check_header(auth.var_name, "")
        if not _COOKIE_VALUE.fullmatch(auth.api_key):
            raise WebSocketSecurityError("auth: the API key holds characters that a cookie cannot (RFC 6265)")
        return Credentials(headers=(("Cookie", f"{auth.var_name}={auth.api_key}"),))
    raise ValueError(f"auth: {auth.auth_type!r} is none of api_key, basic, oauth2")


def merge_headers(headers: Iterable[tuple[str, str]], credentials: Pairs) -> Pairs:
    """Headers with credentials added: these win over headers of the same name, and join a Cookie header."""
    merged = list(headers)
    for name, value in credentials:
        same = [header for header in merged if header[0].lower() == name.lower()]
        merged = [header for header in merged if header not in same]
        if name == "Cookie" and same:
            value = "; ".join([*(existing for _, existing in same), value])
        merged.append((name, value))
    return tuple(merged)


def add_query(url: str, parameters: Pairs) -> str:
    """A URL with parameters added to its query."""
    for name, value in parameters:
        url += f"{'&' if '?' in url else '?'}{quote(name, safe='')}={quote(value, safe='')}"
    return url


def _basic(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def _header(name: str, value: str) -> Credentials:
    check_header(name, value)
    return Credentials(headers=((name, value),))


class _Fetch:
    """A token request under way, and what came of it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.token: str | None = None
        self.error: WebSocketError | None = None


class TokenCache:
    """OAuth2 access tokens (client credentials, RFC 6749, section 4.4), one per credential configuration.

    There is no lock: who finds no token fetches it, who comes meanwhile waits for that fetch, and when the one who
    fetches is cancelled, one of those who wait takes over.
    """

    def __init__(self) -> None:
        self._tokens: dict[Hashable, tuple[str, float | None]] = {}
        self._fetches: dict[Hashable, _Fetch] = {}

    async def token(self, auth: OAuth2Auth, *, ssl_context: ssl.SSLContext | None, endpoint: str) -> str:
        """The token for these credentials, fetched if there is none that lasts another 30 seconds.

        Cancelling it cancels a fetch that only this caller makes.

        Raises:
            WebSocketAuthError: The token endpoint refuses the credentials, or gives no usable token.
            WebSocketConnectionError: It could not be asked.
        """
        key = credential_key(auth)
        while True:
            known = self._tokens.get(key)
            if known is not None and (known[1] is None or anyio.current_time() < known[1]):
                return known[0]
            fetch = self._fetches.get(key)
            if fetch is None:
                return await self._lead(key, auth, ssl_context, endpoint)
            await fetch.done.wait()
            if fetch.error is not None:
                raise copy.copy(fetch.error)
            if fetch.token is not None:
                return fetch.token

    def discard(self, auth: OAuth2Auth, token: str) -> None:
        """Throw away a token that was refused, unless there already is another."""
        key = credential_key(auth)
        known = self._tokens.get(key)
        if known is not None and known[0] == token:
            del self._tokens[key]

    async def _lead(self, key: Hashable, auth: OAuth2Auth, ssl_context: ssl.SSLContext | None, endpoint: str) -> str:
        fetch = self._fetches[key] = _Fetch()
        try:
            began = anyio.current_time()
            token, lifetime = await _fetch_token(auth, ssl_context, endpoint)
            self._tokens[key] = token, None if lifetime is None else began + lifetime - _RENEWED_BEFORE
            fetch.token = token
        except WebSocketError as error:
            fetch.error = error
            raise
        finally:
            del self._fetches[key]
            fetch.done.set()
        return token


async def _fetch_token(auth: OAuth2Auth, ssl_context: ssl.SSLContext | None, endpoint: str) -> tuple[str, float | None]:
    check_http_url(auth.token_url, "auth.token_url")
    form = {"grant_type": "client_credentials"}
    if auth.scope:
        form["scope"] = auth.scope
    secret = {"client_id": auth.client_id, "client_secret": auth.client_secret}
    ask = request_json
    status, answer = await ask(
        "POST", auth.token_url, form=form | secret, ssl_context=ssl_context, what="token request"
    )
    if status == 401 and isinstance(answer, dict) and answer.get("error") == "invalid_client":
        # RFC 6749, section 2.3.1: a server may want the credentials in the header instead.
        basic = _basic(quote(auth.client_id, safe=""), quote(auth.client_secret, safe=""))
        status, answer = await ask(
            "POST",
            auth.token_url,
            form=form,
            headers=(("Authorization", f"Basic {basic}"),),
            ssl_context=ssl_context,
            what="token request",
        )
    if status >= 500:
        raise WebSocketConnectionError(
            f"the token endpoint {display_url(auth.token_url)} answered with status {status}",
            endpoint=endpoint,
            status=status,
            transient=True,
        )
    if status != 200:
        raise WebSocketAuthError(
            f"the token endpoint {display_url(auth.token_url)} refused the credentials (status {status})",
            endpoint=endpoint,
            status=status,
        )
    return _read_token(answer, endpoint)


def _read_token(answer: Any, endpoint: str) -> tuple[str, float | None]:
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise WebSocketAuthError("the token endpoint gave no usable access_token", endpoint=endpoint)
    lifetime = answer.get("expires_in")
    try:
        return token, None if lifetime is None else float(lifetime)
    except (TypeError, ValueError):
        return token, None
