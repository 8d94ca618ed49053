"""Credentials: what they put into a handshake, what makes two the same, and OAuth2 tokens."""

from __future__ import annotations

import base64
import copy
import functools
import math
import re
import ssl
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

import anyio
from utcp.data.auth import Auth
from utcp.data.auth_implementations import ApiKeyAuth, BasicAuth, OAuth2Auth

from ..errors import WebSocketAuthError, WebSocketConnectionError, WebSocketError, WebSocketSecurityError
from .http import request_json
from .security import check_header, display_url

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

_LONGEST_ANSWER = 2**20
"""Bytes of a token endpoint's answer."""

# RFC 6265, section 4.1.1: what cannot end the value, or begin another cookie.
_COOKIE_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
# RFC 6749, section 5.2. Others are not shown: what a server writes there may quote the request.
_REFUSALS = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)


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
    """Whether credentials can go into a handshake at all; OAuth2's are known to when there is a token.

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
        ValueError: They are of a kind that this package does not know.
    """
    if auth is None:
        return Credentials()
    if isinstance(auth, OAuth2Auth):
        if token is None:
            raise ValueError("auth: OAuth2 needs a token")
        return _header("Authorization", f"Bearer {token}")
    if isinstance(auth, BasicAuth):
        if ":" in auth.username:
            raise WebSocketSecurityError("auth: a user name with a colon cannot be told from its password (RFC 7617)")
        return _header("Authorization", f"Basic {_basic(auth.username, auth.password)}")
    if isinstance(auth, ApiKeyAuth):
        return _api_key(auth)
    raise ValueError(f"auth: {auth.auth_type!r} is none of api_key, basic, oauth2")


def merge_headers(headers: Iterable[tuple[str, str]], credentials: Pairs) -> Pairs:
    """Headers with credentials added.

    A credential replaces the headers of its name. Only a cookie joins the others, as a request has one Cookie header
    (RFC 6265, section 5.4); there it replaces the cookie of its name.
    """
    merged = tuple(headers)
    for name, value in credentials:
        same = [existing for other, existing in merged if other.lower() == name.lower()]
        merged = tuple(header for header in merged if header[0].lower() != name.lower())
        merged += ((name, _join_cookies(same, value) if name.lower() == "cookie" else value),)
    return merged


def add_query(url: str, parameters: Pairs) -> str:
    """A URL with parameters added to its query, percent-encoded. It must have no fragment."""
    for name, value in parameters:
        path, _, query = url.partition("?")
        separator = "&" if query and not query.endswith("&") else ""
        url = f"{path}?{query}{separator}{quote(name, safe='')}={quote(value, safe='')}"
    return url


def _api_key(auth: ApiKeyAuth) -> Credentials:
    if auth.location == "header":
        return _header(auth.var_name, auth.api_key)
    if auth.location == "query":
        if not auth.var_name or not (_is_text(auth.var_name) and _is_text(auth.api_key)):
            raise WebSocketSecurityError("auth: name or value of the API key cannot be in a URL")
        return Credentials(query=((auth.var_name, auth.api_key),))
    _check_header(auth.var_name, "")
    if not _COOKIE_VALUE.fullmatch(auth.api_key):
        raise WebSocketSecurityError("auth: the API key holds characters that a cookie cannot (RFC 6265)")
    return Credentials(headers=(("Cookie", f"{auth.var_name}={auth.api_key}"),))


def _join_cookies(existing: Iterable[str], cookie: str) -> str:
    name = cookie.partition("=")[0]
    others = [pair.strip() for header in existing for pair in header.split(";")]
    return "; ".join([*(pair for pair in others if pair and pair.partition("=")[0].strip() != name), cookie])


def _header(name: str, value: str) -> Credentials:
    _check_header(name, value)
    return Credentials(headers=((name, value),))


def _check_header(name: str, value: str) -> None:
    try:
        check_header(name, value)
    except WebSocketSecurityError as error:
        fault = str(error)
    else:
        return
    raise WebSocketSecurityError(f"auth: {fault}")


def _basic(username: str, password: str) -> str:
    """RFC 7617, in UTF-8."""
    if not (_is_text(username) and _is_text(password)):
        raise WebSocketSecurityError("auth: user name or password holds what is no text")
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def _is_text(value: str) -> bool:
    """Whether a string can be encoded: JSON can bring half a surrogate pair, and Python's error holds the string."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


@dataclass(frozen=True, slots=True, repr=False)
class _Token:
    value: str
    usable_until: float


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
        self._tokens: dict[Hashable, _Token] = {}
        self._fetches: dict[Hashable, _Fetch] = {}

    async def token(self, auth: OAuth2Auth, *, ssl_context: ssl.SSLContext | None, endpoint: str) -> str:
        """The token for these credentials, fetched if there is none that lasts another 30 seconds.

        Cancelling it ends its own fetch, if it makes one; another caller that waits for it then makes its own.

        Args:
            ssl_context: How the token endpoint's TLS is verified; None: against the system's trust store.
            endpoint: What the token is for, as errors show it.

        Raises:
            WebSocketAuthError: The token endpoint refuses the credentials, or gives no usable token.
            WebSocketConnectionError: It could not be asked, redirected, or failed (5xx).
            WebSocketProtocolError: Its answer is too long, or not encoded as it says.
            WebSocketSecurityError: It is not at an address that may be asked.
        """
        key = credential_key(auth)
        while True:
            known = self._tokens.get(key)
            if known is not None and anyio.current_time() < known.usable_until:
                return known.value
            fetch = self._fetches.get(key)
            if fetch is None:
                return await self._lead(key, auth, ssl_context, endpoint)
            await fetch.done.wait()
            if fetch.error is not None:
                error = copy.copy(fetch.error)
                error.endpoint = endpoint
                raise error
            if fetch.token is not None:
                return fetch.token

    def discard(self, auth: OAuth2Auth, token: str) -> None:
        """Throw away a token that was refused, unless there already is another."""
        key = credential_key(auth)
        known = self._tokens.get(key)
        if known is not None and known.value == token:
            del self._tokens[key]

    async def _lead(self, key: Hashable, auth: OAuth2Auth, ssl_context: ssl.SSLContext | None, endpoint: str) -> str:
        fetch = self._fetches[key] = _Fetch()
        try:
            began = anyio.current_time()
            value, lifetime = await _fetch_token(auth, ssl_context, endpoint)
            self._forget_expired(began)
            self._tokens[key] = _Token(value, began + lifetime - _RENEWED_BEFORE)
            fetch.token = value
        except WebSocketError as error:
            fetch.error = error
            raise
        finally:
            del self._fetches[key]
            fetch.done.set()
        return value

    def _forget_expired(self, now: float) -> None:
        self._tokens = {key: token for key, token in self._tokens.items() if now < token.usable_until}


async def _fetch_token(auth: OAuth2Auth, ssl_context: ssl.SSLContext | None, endpoint: str) -> tuple[str, float]:
    """Ask for a token: RFC 6749, section 4.4.2. Returns it with its lifetime in seconds, infinite where unknown."""
    form = {"grant_type": "client_credentials"}
    if auth.scope:
        form["scope"] = auth.scope
    if not all(map(_is_text, (auth.client_id, auth.client_secret, *form.values()))):
        raise WebSocketSecurityError("auth: client_id, client_secret or scope holds what is no text", endpoint=endpoint)
    request = functools.partial(
        request_json,
        "POST",
        auth.token_url,
        ssl_context=ssl_context,
        what=f"token request to {display_url(auth.token_url)}",
        endpoint=endpoint,
        max_size=_LONGEST_ANSWER,
    )
    status, answer = await request(form={**form, "client_id": auth.client_id, "client_secret": auth.client_secret})
    if status == 401 and _refusal(answer) == "invalid_client":
        # Section 2.3.1: a server may take the credentials only in the header, form-encoded.
        basic = _basic(quote_plus(auth.client_id), quote_plus(auth.client_secret))
        status, answer = await request(form=form, headers=(("Authorization", f"Basic {basic}"),))
    where = f"the token endpoint {display_url(auth.token_url)}"
    if status >= 500:
        raise WebSocketConnectionError(
            f"{where} answered with status {status}", endpoint=endpoint, status=status, transient=True
        )
    if status != 200:
        reason = ", ".join(filter(None, (f"status {status}", _refusal(answer))))
        raise WebSocketAuthError(f"{where} gave no token ({reason})", endpoint=endpoint, status=status)
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise WebSocketAuthError(f"{where} answered without a usable access_token", endpoint=endpoint)
    return token, _lifetime(answer.get("expires_in"))


def _refusal(answer: Any) -> str | None:
    """The error code of an answer, where it is one of OAuth's."""
    code = answer.get("error") if isinstance(answer, dict) else None
    return code if isinstance(code, str) and code in _REFUSALS else None


def _lifetime(expires_in: Any) -> float:
    """Seconds; what says nothing sensible counts as not said, and the token is kept until it is refused."""
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError, OverflowError):
        return math.inf
    return math.inf if math.isnan(seconds) else seconds
