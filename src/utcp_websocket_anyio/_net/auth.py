"""Credentials: what they add to a handshake, what makes two of them the same, and OAuth2 tokens.

A `TokenCache` belongs to one protocol object, which may be used from several event loops in several threads at once.
One token request serves all of them. The cases, for a caller that needs a token:

- there is one that lasts another 30 seconds: it is used;
- none is being fetched: this caller *leads*, and fetches it in its own task, within its own time limit;
- one is: this caller *follows*, and waits to be woken. A leader that fails tells its followers the error; one that
  is cancelled tells them nothing, and the first of them that runs leads. A leader in another event loop may never be
  heard of again (its loop was stopped), so a follower there waits for a few seconds only, and then leads as well.

`TokenCache._lock` protects its two tables. It is held for dictionary operations only, never while anything waits. Which
event loop a follower waits in is left to its `Wakeup`.
"""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import json
import math
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

import anyio
from pydantic import SecretBytes, SecretStr
from utcp.data.auth import Auth
from utcp.data.auth_implementations import ApiKeyAuth, BasicAuth, OAuth2Auth

from ..errors import WebSocketAuthError, WebSocketConnectionError, WebSocketError, WebSocketSecurityError
from .forks import in_each_child
from .http import may_come_right, request, seconds_to_wait
from .security import check_header, display_url, is_text
from .transport import Network
from .wakeup import Wakeup, current_loop

__all__ = [
    "Credentials",
    "TokenCache",
    "check_credentials",
    "credential_key",
    "handshake_credentials",
    "merge_headers",
]

Pairs = tuple[tuple[str, str], ...]

_RENEWED_BEFORE = 30.0
"""Seconds before its end at which a token is not used any more."""

_UNKNOWN_LIFETIME = 3600.0
"""Seconds that a token is used whose end the server does not say."""

_MAX_TOKENS = 256
"""Tokens that are kept: credentials may hold arguments of calls."""

_PATIENCE = 5.0
"""Seconds that a follower waits for a leader in another event loop, which may have stopped."""

_MAX_ANSWER = 2**20
"""Bytes of a token endpoint's answer."""

_KEY = secrets.token_bytes(32)
"""Makes the keys of this process's tables useless elsewhere."""

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
    """The headers and query parameters that an authentication adds to a handshake."""

    headers: Pairs = ()
    query: Pairs = ()

    def __repr__(self) -> str:
        return f"<Credentials, headers {[name for name, _ in self.headers]}, {len(self.query)} parameters>"


def credential_key(auth: Auth | None) -> Hashable:
    """The identity of a whole credential configuration: a keyed hash, which shows nothing of it."""
    if auth is None:
        return None
    kind = f"{type(auth).__module__}.{type(auth).__qualname__}"
    text = json.dumps([kind, auth.model_dump()], sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), key=_KEY, digest_size=32).digest()


def _plain(value: Any) -> Any:
    # The representation of pydantic's secrets is the same for all of them.
    return value.get_secret_value() if isinstance(value, SecretStr | SecretBytes) else repr(value)


def check_credentials(auth: Auth | None) -> None:
    """Check that credentials can go into a handshake. OAuth2's token is checked when there is one.

    Raises:
        WebSocketSecurityError: They would change the handshake; no value is shown.
        ValueError: They are of a kind that this package does not know.
    """
    if not isinstance(auth, OAuth2Auth):
        handshake_credentials(auth, None)


def handshake_credentials(auth: Auth | None, token: str | None) -> Credentials:
    """The credentials that are added to a handshake.

    Args:
        token: The access token, for OAuth2.

    Raises:
        WebSocketSecurityError: They would change the handshake; no value is shown.
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
    raise ValueError(f"auth: unsupported auth_type {auth.auth_type!r}; use api_key, basic or oauth2")


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


def _api_key(auth: ApiKeyAuth) -> Credentials:
    if auth.location == "header":
        return _header(auth.var_name, auth.api_key)
    if auth.location == "query":
        if not auth.var_name or not (is_text(auth.var_name) and is_text(auth.api_key)):
            raise WebSocketSecurityError("auth: the name or value of the API key cannot be in a URL")
        return Credentials(query=((auth.var_name, auth.api_key),))
    check_header(auth.var_name, "", where="auth")
    if not _COOKIE_VALUE.fullmatch(auth.api_key):
        raise WebSocketSecurityError("auth: the API key contains characters that a cookie cannot (RFC 6265)")
    return Credentials(headers=(("Cookie", f"{auth.var_name}={auth.api_key}"),))


def _join_cookies(existing: Iterable[str], cookie: str) -> str:
    name = cookie.partition("=")[0]
    others = [pair.strip() for header in existing for pair in header.split(";")]
    return "; ".join([*(pair for pair in others if pair and pair.partition("=")[0].strip() != name), cookie])


def _header(name: str, value: str) -> Credentials:
    check_header(name, value, where="auth")
    return Credentials(headers=((name, value),))


def _basic(username: str, password: str) -> str:
    """RFC 7617, in UTF-8."""
    if not (is_text(username) and is_text(password)):
        raise WebSocketSecurityError("auth: user name or password contains an invalid character (lone surrogate)")
    return base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass(frozen=True, slots=True, repr=False)
class _Token:
    value: str
    usable_until: float


class _Fetch:
    """A token request under way, and what came of it. Its members are read and written under the cache's lock."""

    def __init__(self) -> None:
        self.loop = current_loop()
        self.followers: list[Wakeup] = []
        self.is_over = False
        self.token: str | None = None
        self.error: WebSocketError | None = None


class TokenCache:
    """OAuth2 access tokens (client credentials, RFC 6749, section 4.4), one per credential configuration.

    At most `_MAX_TOKENS` are kept; the one used longest ago goes first.

    Args:
        clock: Seconds, the same in every event loop and thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Reentrant: a leader that is garbage collected while this thread holds the lock ends its fetch.
        self._lock = threading.RLock()
        self._tokens: dict[Hashable, _Token] = {}
        self._fetches: dict[Hashable, _Fetch] = {}
        self._clock = clock
        _all_caches.add(self)

    def begin_anew(self) -> None:
        """Keep the tokens, and forget who fetches one, in a process that was forked."""
        self._lock = threading.RLock()
        self._fetches = {}

    async def token(self, auth: OAuth2Auth, *, network: Network, endpoint: str) -> str:
        """The token for these credentials, fetched if there is none that lasts another 30 seconds.

        Cancelling it ends its own fetch, if it makes one; another caller that waits for it then makes its own.

        Args:
            network: The way to the token endpoint.
            endpoint: URL that the token is for, as errors show it.

        Raises:
            WebSocketAuthError: The token endpoint refuses the credentials, or gives no usable token.
            WebSocketConnectionError: It could not be asked, redirected, is busy (429), or failed (5xx).
            WebSocketProtocolError: Its answer is too long, or not encoded as it says.
            WebSocketSecurityError: The token server's address is not allowed.
        """
        key = credential_key(auth)
        avoided: _Fetch | None = None
        while True:
            wakeup: Wakeup | None = None
            with self._lock:
                known = self._tokens.get(key)
                if known is not None and self._clock() < known.usable_until:
                    self._tokens[key] = self._tokens.pop(key)  # the last to be forgotten
                    return known.value
                fetch = self._fetches.get(key)
                if fetch is None or fetch is avoided:
                    fetch = self._fetches[key] = _Fetch()
                else:
                    wakeup = Wakeup()
                    fetch.followers.append(wakeup)
            if wakeup is None:
                return await self._lead(key, fetch, auth, network, endpoint)
            await self._follow(fetch, wakeup)
            if not fetch.is_over:
                avoided = fetch
            if fetch.error is not None:
                error = copy.copy(fetch.error)
                error.endpoint = endpoint
                raise error
            if fetch.token is not None:
                return fetch.token

    def discard(self, auth: OAuth2Auth, token: str) -> None:
        """Throw away a token that was refused, unless there already is another."""
        key = credential_key(auth)
        with self._lock:
            known = self._tokens.get(key)
            if known is not None and known.value == token:
                del self._tokens[key]

    async def _lead(self, key: Hashable, fetch: _Fetch, auth: OAuth2Auth, network: Network, endpoint: str) -> str:
        token: _Token | None = None
        failure: WebSocketError | None = None
        try:
            began = self._clock()
            value, lifetime = await _fetch_token(auth, network, endpoint)
            token = _Token(value, began + lifetime - _RENEWED_BEFORE)
        except WebSocketError as error:
            failure = error
            raise
        finally:
            with self._lock:
                if token is not None:
                    self._keep(key, token)
                    fetch.token = token.value
                fetch.error = failure
                fetch.is_over = True
                if self._fetches.get(key) is fetch:
                    del self._fetches[key]
                followers, fetch.followers = fetch.followers, []
            for wakeup in followers:
                wakeup.set()
        return value

    async def _follow(self, fetch: _Fetch, wakeup: Wakeup) -> None:
        patience = math.inf if fetch.loop == current_loop() else _PATIENCE
        try:
            with anyio.move_on_after(patience):
                await wakeup.wait()
        finally:
            with self._lock:
                if wakeup in fetch.followers:
                    fetch.followers.remove(wakeup)

    def _keep(self, key: Hashable, token: _Token) -> None:
        now = self._clock()
        for other in [other for other, known in self._tokens.items() if now >= known.usable_until]:
            del self._tokens[other]
        self._tokens.pop(key, None)
        self._tokens[key] = token
        while len(self._tokens) > _MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]


_all_caches: weakref.WeakSet[TokenCache] = weakref.WeakSet()


def _begin_anew() -> None:
    for cache in list(_all_caches):
        cache.begin_anew()


in_each_child(_begin_anew)


async def _fetch_token(auth: OAuth2Auth, network: Network, endpoint: str) -> tuple[str, float]:
    """Ask for a token: RFC 6749, section 4.4.2. Returns it with its lifetime in seconds."""
    form = {"grant_type": "client_credentials"}
    if auth.scope:
        form["scope"] = auth.scope
    if not all(map(is_text, (auth.client_id, auth.client_secret, *form.values()))):
        raise WebSocketSecurityError(
            "auth: client_id, client_secret or scope contains an invalid character (lone surrogate)", endpoint=endpoint
        )
    ask = functools.partial(
        request,
        "POST",
        auth.token_url,
        network=network,
        what=f"token request to {display_url(auth.token_url)}",
        endpoint=endpoint,
        max_size=_MAX_ANSWER,
    )
    answer = await ask(form={**form, "client_id": auth.client_id, "client_secret": auth.client_secret})
    if answer.status == 401 and _refusal(answer.json()) == "invalid_client":
        # Section 2.3.1: a server may take the credentials only in the header, form-encoded.
        basic = _basic(quote_plus(auth.client_id), quote_plus(auth.client_secret))
        answer = await ask(form=form, headers=(("Authorization", f"Basic {basic}"),))
    where = f"the token endpoint {display_url(auth.token_url)}"
    status, content = answer.status, answer.json()
    if status >= 500 or may_come_right(status):
        raise WebSocketConnectionError(
            f"{where} answered with status {status}",
            endpoint=endpoint,
            status=status,
            transient=may_come_right(status),
            retry_after=seconds_to_wait(answer.header("retry-after")),
        )
    if status != 200:
        reason = ", ".join(filter(None, (f"status {status}", _refusal(content))))
        raise WebSocketAuthError(f"{where} gave no token ({reason})", endpoint=endpoint, status=status)
    token = content.get("access_token") if isinstance(content, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise WebSocketAuthError(f"{where} answered without a usable access_token", endpoint=endpoint)
    return token, _lifetime(content.get("expires_in"))


def _refusal(answer: Any) -> str | None:
    """The error code of an answer, where it is one of OAuth's."""
    code = answer.get("error") if isinstance(answer, dict) else None
    return code if isinstance(code, str) and code in _REFUSALS else None


def _lifetime(expires_in: Any) -> float:
    """Seconds. What says nothing sensible counts as not said."""
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError, OverflowError):
        return _UNKNOWN_LIFETIME
    return seconds if math.isfinite(seconds) else _UNKNOWN_LIFETIME
