"""Credentials in a handshake, and OAuth2 tokens: fetched when needed, once for everybody, never shown."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from pydantic import SecretStr
from support.http_peer import HttpPeer, HttpServer, serve_http, silent
from support.peers import Peer, peer
from utcp.data.auth import Auth
from utcp.data.auth_implementations import ApiKeyAuth, BasicAuth, OAuth2Auth

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketSecurityError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._net import auth as auth_module
from utcp_websocket_anyio._net.auth import TokenCache, credential_key, handshake_credentials, merge_headers
from utcp_websocket_anyio._net.transport import Network

pytestmark = pytest.mark.anyio

SECRET = "geheim"
ENDPOINT = "wss://example.com/"


class Endpoint:
    """A WebSocket server that answers each handshake by the next of its statuses, the last one from then on.

    Attributes:
        handshakes: The requests, in order.
    """

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses) or [101]
        self.handshakes: list[Peer] = []

    async def __call__(self, connection: Peer) -> None:
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        self.handshakes.append(connection)
        if status != 101:
            await connection.answer(f"{status} Refused", "Content-Length: 0")
            return
        await connection.handshake()
        while True:
            await connection.send(await connection.receive())

    def sent(self, header: str) -> list[str | None]:
        """The values of a header, one per handshake."""
        return [handshake.header(header) for handshake in self.handshakes]


class Issuer:
    """A token endpoint: each answer carries another token.

    Attributes:
        forms: What it was asked with.
        basic: The Authorization headers that it was asked with.
    """

    def __init__(self, **answer: Any) -> None:
        self._answer = answer
        self.forms: list[dict[str, str]] = []
        self.basic: list[str | None] = []

    async def __call__(self, connection: HttpPeer) -> None:
        assert connection.method == "POST"
        self.forms.append(connection.form)
        self.basic.append(connection.headers.get("authorization"))
        await self.respond(connection)

    async def respond(self, connection: HttpPeer) -> None:
        await connection.answer({"access_token": f"token-{len(self.forms)}", "token_type": "Bearer", **self._answer})


class Refusing(Issuer):
    """One that refuses the first requests, one answer each."""

    def __init__(self, *refusals: tuple[int, Any]) -> None:
        super().__init__()
        self._refusals = list(refusals)

    async def respond(self, connection: HttpPeer) -> None:
        if self._refusals:
            status, content = self._refusals.pop(0)
            await connection.answer(content, status)
        else:
            await super().respond(connection)


def api_key(key: str, **fields: Any) -> ApiKeyAuth:
    return ApiKeyAuth.model_validate({"api_key": key, **fields})


def oauth2(server: HttpServer, **fields: Any) -> OAuth2Auth:
    given = {"token_url": f"{server.url}/token", "client_id": "client", "client_secret": SECRET, **fields}
    return OAuth2Auth(**given)


def template(url: str, auth: Auth | None, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, auth=auth, message="hello", **fields)


@asynccontextmanager
async def entered() -> AsyncIterator[WebSocketCommunicationProtocol]:
    with anyio.fail_after(15):
        async with WebSocketCommunicationProtocol() as protocol:
            yield protocol


async def call(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    assert await protocol.call_tool(None, "manual.t", {}, call_template) == "hello"


async def token_of(cache: TokenCache, auth: OAuth2Auth, endpoint: str = ENDPOINT) -> str:
    with anyio.fail_after(10):
        return await cache.token(auth, network=Network(), endpoint=endpoint)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# In the handshake


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (api_key("k 1"), "X-Api-Key", "k 1"),
        (api_key("k", var_name="Authorization"), "Authorization", "k"),
        (api_key("k=1", var_name="session", location="cookie"), "Cookie", "session=k=1"),
        (BasicAuth(username="aladdin", password="opensesame"), "Authorization", "Basic YWxhZGRpbjpvcGVuc2VzYW1l"),
        (
            BasicAuth(username="ü", password="a:b"),
            "Authorization",
            f"Basic {base64.b64encode('ü:a:b'.encode()).decode()}",
        ),
    ],
)
async def test_credentials_go_into_a_header(auth: Auth, header: str, value: str) -> None:
    endpoint = Endpoint()
    async with entered() as protocol, peer(endpoint) as url:
        await call(protocol, template(url, auth))
    assert endpoint.sent(header) == [value]


async def test_an_api_key_in_the_query_is_encoded_and_joins_what_is_there() -> None:
    endpoint = Endpoint()
    auth = api_key("k&x=1 é", var_name="api key", location="query")
    async with entered() as protocol, peer(endpoint) as url:
        await call(protocol, template(f"{url}path?a=b", auth))
        await call(protocol, template(f"{url}path", auth))
    targets = [handshake.request.split(" ", 2)[1] for handshake in endpoint.handshakes]
    assert targets == ["/path?a=b&api%20key=k%26x%3D1%20%C3%A9", "/path?api%20key=k%26x%3D1%20%C3%A9"]


async def test_credentials_win_over_a_header_of_their_name_and_a_cookie_joins_the_others() -> None:
    endpoint = Endpoint()
    async with entered() as protocol, peer(endpoint) as url:
        key = api_key("right")
        await call(protocol, template(url, key, headers={"x-api-KEY": "wrong", "X-Other": "stays"}))
        cookie = api_key("right", var_name="key", location="cookie")
        await call(protocol, template(url, cookie, headers={"cookie": "theme=dark; key=wrong"}))
    assert endpoint.sent("X-Api-Key") == ["right", None]
    assert endpoint.handshakes[0].request.lower().count("x-api-key") == 1
    assert endpoint.sent("X-Other") == ["stays", None]
    assert endpoint.sent("Cookie") == [None, "theme=dark; key=right"]
    assert endpoint.handshakes[1].request.lower().count("cookie:") == 1


def test_several_cookie_headers_become_one() -> None:
    merged = merge_headers([("Cookie", "a=1"), ("X", "y"), ("cookie", "b=2; k=0")], (("Cookie", "k=3"),))
    assert merged == (("X", "y"), ("Cookie", "a=1; b=2; k=3"))


@pytest.mark.parametrize(
    "auth",
    [
        api_key(f"{SECRET}\r\nX-Evil: 1"),
        api_key(f"{SECRET}\0"),
        api_key(f"{SECRET}é"),
        api_key(SECRET, var_name="X:Y"),
        api_key(SECRET, var_name="Host"),
        api_key(SECRET, var_name="Sec-WebSocket-Protocol"),
        api_key(f"{SECRET};admin=1", location="cookie"),
        api_key(SECRET, var_name="a=b", location="cookie"),
        api_key(SECRET, var_name="", location="query"),
        api_key(f"{SECRET}\ud800", location="query"),
        BasicAuth(username="a:b", password=SECRET),
        BasicAuth(username="a", password=f"{SECRET}\ud800"),
    ],
)
def test_credentials_that_would_change_the_handshake_are_refused_and_not_shown(auth: Auth) -> None:
    with pytest.raises(WebSocketSecurityError) as caught:
        handshake_credentials(auth, None)
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="auth: ") as refused:
        template("ws://127.0.0.1:9/", auth)
    assert SECRET not in str(refused.value)


async def test_a_connection_is_never_shared_across_credentials() -> None:
    endpoint = Endpoint()
    async with entered() as protocol, peer(endpoint) as url:
        for key in ("a", "b", "a", "b", None):
            await call(protocol, template(url, None if key is None else api_key(key)))
    assert endpoint.sent("X-Api-Key") == ["a", "b", None]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_handshake_is_an_auth_error_and_not_tried_again(status: int) -> None:
    endpoint = Endpoint(status)
    async with entered() as protocol, peer(endpoint) as url:
        with pytest.raises(WebSocketAuthError) as caught:
            await call(protocol, template(f"{url}?q={SECRET}", api_key(SECRET, location="query")))
    assert isinstance(caught.value, PermissionError)
    assert caught.value.status == status
    assert caught.value.endpoint == url
    assert len(endpoint.handshakes) == 1
    assert all(SECRET not in f"{error} {error!r} {error.__dict__}" for error in chain(caught.value))


def test_a_secret_shows_itself_in_no_representation() -> None:
    for auth in (api_key(SECRET), BasicAuth(username=SECRET, password=SECRET)):
        assert SECRET not in f"{credential_key(auth)!r} {handshake_credentials(auth, None)!r}"


# Tokens


async def test_a_token_is_asked_for_with_the_credentials_in_the_form_and_sent_as_bearer() -> None:
    endpoint, issuer = Endpoint(), Issuer(expires_in=3600)
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        await call(protocol, template(url, oauth2(server, scope="a b"), headers={"authorization": "wrong"}))
    assert issuer.forms == [
        {"grant_type": "client_credentials", "scope": "a b", "client_id": "client", "client_secret": SECRET}
    ]
    assert issuer.basic == [None]
    assert endpoint.sent("Authorization") == ["Bearer token-1"]


async def test_one_token_serves_every_connection_that_needs_it() -> None:
    endpoint, issuer = Endpoint(), Issuer(expires_in=3600)
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        for _ in range(3):
            await call(protocol, template(url, oauth2(server), keep_alive=False))
        async with anyio.create_task_group() as task_group:
            for path in "abcdef":
                task_group.start_soon(call, protocol, template(url + path, oauth2(server)))
    assert len(issuer.forms) == 1
    assert endpoint.sent("Authorization") == ["Bearer token-1"] * 9


async def test_each_credential_configuration_has_a_token_of_its_own() -> None:
    cache, issuer = TokenCache(), Issuer()
    async with serve_http(issuer) as server:
        configurations = [
            oauth2(server),
            oauth2(server, scope="a"),
            oauth2(server, client_id="other"),
            oauth2(server, client_secret="other"),
            oauth2(server, token_url=f"{server.url}/other"),
        ]
        first = [await token_of(cache, auth) for auth in configurations]
        again = [await token_of(cache, auth.model_copy()) for auth in configurations]
    assert first == again == [f"token-{n}" for n in range(1, 6)]


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("expires_in", [100, 100.0, "100"])
async def test_a_token_is_renewed_thirty_seconds_before_its_end(expires_in: Any) -> None:
    clock = Clock()
    cache, issuer = TokenCache(clock), Issuer(expires_in=expires_in)
    async with serve_http(issuer) as server:
        assert await token_of(cache, oauth2(server)) == "token-1"
        clock.now += 69.9
        assert await token_of(cache, oauth2(server)) == "token-1"
        clock.now += 0.1
        assert await token_of(cache, oauth2(server)) == "token-2"
        clock.now += 69.9
        assert await token_of(cache, oauth2(server)) == "token-2"


@pytest.mark.parametrize(
    "answer", [{}, {"expires_in": None}, {"expires_in": "soon"}, {"expires_in": [1]}, {"expires_in": float("inf")}]
)
async def test_a_token_without_a_sensible_end_is_kept_for_an_hour_or_until_it_is_refused(
    answer: dict[str, Any],
) -> None:
    clock = Clock()
    cache = TokenCache(clock)
    async with serve_http(Issuer(**answer)) as server:
        auth = oauth2(server)
        assert await token_of(cache, auth) == "token-1"
        clock.now += 3500
        assert await token_of(cache, auth) == "token-1"
        cache.discard(auth, "token-1")
        assert await token_of(cache, auth) == "token-2"
        clock.now += 3700
        assert await token_of(cache, auth) == "token-3"


async def test_a_token_that_lasts_no_thirty_seconds_is_used_once() -> None:
    cache = TokenCache()
    async with serve_http(Issuer(expires_in=30)) as server:
        assert [await token_of(cache, oauth2(server)) for _ in range(3)] == ["token-1", "token-2", "token-3"]


async def test_expired_tokens_of_other_credentials_are_forgotten() -> None:
    cache = TokenCache()
    async with serve_http(Issuer(expires_in=30)) as server:
        for n in range(20):
            await token_of(cache, oauth2(server, client_id=str(n)))
    assert len(cache._tokens) == 1


async def test_the_token_used_longest_ago_is_the_first_to_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "_MAX_TOKENS", 3)
    cache = TokenCache()
    async with serve_http(Issuer(expires_in=3600)) as server:
        for client in "abcadae":
            await token_of(cache, oauth2(server, client_id=client))
        # b went for d, c for e; a was used in between.
        assert await token_of(cache, oauth2(server, client_id="a")) == "token-1"
        assert await token_of(cache, oauth2(server, client_id="b")) == "token-6"
    assert len(cache._tokens) == 3


def test_the_key_of_credentials_shows_nothing_and_tells_all_apart() -> None:
    class Other(ApiKeyAuth):
        secret: SecretStr

    keys = [
        credential_key(auth)
        for auth in (
            api_key(SECRET),
            api_key(f"{SECRET}2"),
            api_key(SECRET, location="query"),
            BasicAuth(username="a", password=SECRET),
            api_key(f"{SECRET}\ud800"),
            Other.model_validate({"api_key": SECRET, "secret": "a"}),
            Other.model_validate({"api_key": SECRET, "secret": "b"}),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert all(isinstance(key, bytes) and SECRET.encode() not in key for key in keys)
    assert credential_key(api_key(SECRET)) == credential_key(api_key(SECRET))


class Slow(Issuer):
    """One that answers when told to.

    Attributes:
        asked: Released by every request.
        answering: Set it to let every answer go.
    """

    def __init__(self, **answer: Any) -> None:
        super().__init__(**answer)
        self.asked = anyio.Semaphore(0)
        self.answering = anyio.Event()

    async def respond(self, connection: HttpPeer) -> None:
        self.asked.release()
        await self.answering.wait()
        await super().respond(connection)


async def test_any_number_of_concurrent_callers_make_one_request() -> None:
    cache, issuer = TokenCache(), Slow()
    tokens: list[str] = []

    async def ask(auth: OAuth2Auth) -> None:
        tokens.append(await token_of(cache, auth))

    async with serve_http(issuer) as server, anyio.create_task_group() as task_group:
        for _ in range(100):
            task_group.start_soon(ask, oauth2(server))
        await server.asked.wait()
        await anyio.wait_all_tasks_blocked()
        issuer.answering.set()
    assert tokens == ["token-1"] * 100
    assert len(issuer.forms) == 1


async def test_when_the_caller_that_asks_is_cancelled_another_takes_over() -> None:
    cache, issuer = TokenCache(), Slow()
    tokens: list[str] = []

    async def ask(auth: OAuth2Auth) -> None:
        tokens.append(await token_of(cache, auth))

    async with serve_http(issuer) as server, anyio.create_task_group() as others:
        async with anyio.create_task_group() as leader:
            leader.start_soon(ask, oauth2(server))
            await issuer.asked.acquire()
            for _ in range(10):
                others.start_soon(ask, oauth2(server))
            await anyio.wait_all_tasks_blocked()
            leader.cancel_scope.cancel()
        await issuer.asked.acquire()
        issuer.answering.set()
    assert tokens == [tokens[0]] * 10
    assert len(issuer.forms) == 2


async def test_a_cancelled_waiter_disturbs_no_other_caller() -> None:
    cache, issuer = TokenCache(), Slow()
    tokens: list[str] = []

    async def ask(auth: OAuth2Auth) -> None:
        tokens.append(await token_of(cache, auth))

    async with serve_http(issuer) as server, anyio.create_task_group() as leader:
        leader.start_soon(ask, oauth2(server))
        await server.asked.wait()
        async with anyio.create_task_group() as others:
            others.start_soon(ask, oauth2(server))
            await anyio.wait_all_tasks_blocked()
            others.cancel_scope.cancel()
        issuer.answering.set()
    assert tokens == ["token-1"]
    assert len(issuer.forms) == 1


async def test_a_failure_reaches_every_waiter_with_its_own_endpoint_and_the_next_caller_asks_again() -> None:
    class SlowlyRefusing(Slow):
        async def respond(self, connection: HttpPeer) -> None:
            await self.answering.wait()
            await connection.answer({"error": "invalid_scope"}, 400)

    cache, issuer = TokenCache(), SlowlyRefusing()
    errors: list[WebSocketAuthError] = []

    async def ask(auth: OAuth2Auth, endpoint: str) -> None:
        with pytest.raises(WebSocketAuthError) as caught:
            await token_of(cache, auth, endpoint)
        errors.append(caught.value)

    async with serve_http(issuer) as server:
        async with anyio.create_task_group() as task_group:
            for n in range(3):
                task_group.start_soon(ask, oauth2(server), f"wss://example.com/{n}")
            await server.asked.wait()
            await anyio.wait_all_tasks_blocked()
            issuer.answering.set()
        assert len(issuer.forms) == 1
        assert {error.endpoint for error in errors} == {f"wss://example.com/{n}" for n in range(3)}
        assert len({id(error) for error in errors}) == 3
        await ask(oauth2(server), ENDPOINT)
    assert len(issuer.forms) == 2


# A token that is refused


async def test_a_token_that_the_handshake_refuses_is_renewed_once() -> None:
    endpoint, issuer = Endpoint(401, 101), Issuer(expires_in=3600)
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        await call(protocol, template(url, oauth2(server)))
    assert endpoint.sent("Authorization") == ["Bearer token-1", "Bearer token-2"]
    assert len(issuer.forms) == 2


async def test_when_the_renewed_token_is_refused_too_it_is_an_auth_error() -> None:
    endpoint, issuer = Endpoint(401), Issuer(expires_in=3600)
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        with pytest.raises(WebSocketAuthError) as caught:
            await call(protocol, template(url, oauth2(server)))
    assert caught.value.status == 401
    assert endpoint.sent("Authorization") == ["Bearer token-1", "Bearer token-2"]
    assert len(issuer.forms) == 2


async def test_a_handshake_that_forbids_renews_no_token() -> None:
    endpoint, issuer = Endpoint(403), Issuer(expires_in=3600)
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        with pytest.raises(WebSocketAuthError) as caught:
            await call(protocol, template(url, oauth2(server)))
    assert caught.value.status == 403
    assert len(issuer.forms) == len(endpoint.handshakes) == 1


async def test_a_late_refusal_of_an_old_token_keeps_the_new_one() -> None:
    cache = TokenCache()
    async with serve_http(Issuer()) as server:
        auth = oauth2(server)
        assert await token_of(cache, auth) == "token-1"
        cache.discard(auth, "token-1")
        assert await token_of(cache, auth) == "token-2"
        cache.discard(auth, "token-1")
        assert await token_of(cache, auth) == "token-2"


# A token endpoint that refuses


async def test_a_client_that_the_form_does_not_identify_tries_http_basic_once() -> None:
    issuer = Refusing((401, {"error": "invalid_client"}))
    async with serve_http(issuer) as server:
        auth = oauth2(server, client_id="a b", client_secret=f"{SECRET}:é", scope="s")
        assert await token_of(TokenCache(), auth) == "token-2"
    encoded = base64.b64encode(f"a+b:{SECRET}%3A%C3%A9".encode()).decode()
    assert issuer.basic == [None, f"Basic {encoded}"]
    assert issuer.forms[1] == {"grant_type": "client_credentials", "scope": "s"}


async def test_a_client_refused_in_both_ways_is_an_auth_error() -> None:
    issuer = Refusing(*[(401, {"error": "invalid_client"})] * 3)
    async with serve_http(issuer) as server:
        with pytest.raises(WebSocketAuthError, match=r"gave no token \(status 401, invalid_client\)") as caught:
            await token_of(TokenCache(), oauth2(server))
    assert len(issuer.forms) == 2
    assert (caught.value.status, caught.value.endpoint) == (401, ENDPOINT)


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (400, {"error": "invalid_client"}, r"status 400, invalid_client"),
        (400, {"error": "invalid_scope", "error_description": SECRET}, r"status 400, invalid_scope"),
        (400, {"error": SECRET}, r"\(status 400\)"),
        (401, {"error": "unauthorized_client"}, r"status 401, unauthorized_client"),
        (401, b"<html>", r"\(status 401\)"),
        (403, {"error": ["invalid_client"]}, r"\(status 403\)"),
        (204, b"", r"\(status 204\)"),
        (200, {}, "without a usable access_token"),
        (200, [], "without a usable access_token"),
        (200, {"access_token": None}, "without a usable access_token"),
        (200, {"access_token": ""}, "without a usable access_token"),
        (200, {"access_token": f"{SECRET}\r\nX-Evil: 1"}, "without a usable access_token"),
        (200, {"access_token": f"{SECRET} {SECRET}"}, "without a usable access_token"),
        (200, {"access_token": f"{SECRET}é"}, "without a usable access_token"),
    ],
)
async def test_a_refusal_is_an_auth_error_that_shows_none_of_the_servers_words(
    status: int, content: Any, says: str
) -> None:
    issuer = Refusing((status, content))
    async with serve_http(issuer) as server:
        with pytest.raises(WebSocketAuthError, match=says) as caught:
            await token_of(TokenCache(), oauth2(server))
    assert len(issuer.forms) == 1
    assert not caught.value.transient
    assert all(SECRET not in f"{error} {error!r} {error.__dict__}" for error in chain(caught.value))


async def test_a_token_endpoint_in_trouble_is_asked_again_as_any_server_is() -> None:
    endpoint, issuer = Endpoint(), Refusing((503, SECRET), (429, SECRET))
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        await call(protocol, template(url, oauth2(server), reconnect_attempts=2))
    assert endpoint.sent("Authorization") == ["Bearer token-3"]


async def test_a_token_endpoint_says_how_long_to_wait_and_one_that_failed_is_not_asked_again() -> None:
    async def busy(connection: HttpPeer) -> None:
        await connection.answer({}, 429, [("Retry-After", "7")])

    async with serve_http(busy) as server:
        with pytest.raises(WebSocketConnectionError) as caught:
            await token_of(TokenCache(), oauth2(server))
    assert (caught.value.status, caught.value.transient, caught.value.retry_after) == (429, True, 7.0)
    async with serve_http(Refusing((500, SECRET))) as server:
        with pytest.raises(WebSocketConnectionError) as failed:
            await token_of(TokenCache(), oauth2(server))
    assert (failed.value.status, failed.value.transient, failed.value.retry_after) == (500, False, None)


async def test_a_token_endpoint_in_lasting_trouble_is_a_connection_error() -> None:
    endpoint, issuer = Endpoint(), Refusing(*[(503, SECRET)] * 9)
    async with entered() as protocol, peer(endpoint) as url, serve_http(issuer) as server:
        with pytest.raises(WebSocketConnectionError) as caught:
            await call(protocol, template(url, oauth2(server), reconnect_attempts=1))
    assert not isinstance(caught.value, WebSocketAuthError)
    assert caught.value.status == 503
    assert len(issuer.forms) == 2
    assert not endpoint.handshakes


async def test_a_redirected_token_request_is_refused() -> None:
    async def redirect(connection: HttpPeer) -> None:
        await connection.answer({}, 307, [("Location", "/elsewhere")])

    async with serve_http(redirect) as server:
        with pytest.raises(WebSocketConnectionError, match="redirect, which is not followed"):
            await token_of(TokenCache(), oauth2(server))
    assert len(server.peers) == 1


async def test_an_endless_answer_is_cut_off() -> None:
    async def pour(connection: HttpPeer) -> None:
        await connection.begin(headers=[("Transfer-Encoding", "chunked")])
        while True:
            await connection.send_raw(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    async with serve_http(pour) as server:
        with pytest.raises(WebSocketProtocolError, match="longer than 1048576 bytes"):
            await token_of(TokenCache(), oauth2(server))


async def test_a_token_request_runs_inside_the_connection_timeout() -> None:
    endpoint = Endpoint()
    async with entered() as protocol, peer(endpoint) as url, serve_http(silent) as server:
        with pytest.raises(WebSocketTimeoutError) as caught:
            await call(protocol, template(url, oauth2(server), connection_timeout=0.1))
        assert caught.value.phase == "connect"
        await server.left.wait()
    assert not endpoint.handshakes


@pytest.mark.parametrize("url", ["http://example.com/token", "ftp://localhost/", "http://user:geheim@localhost/token"])
async def test_a_token_url_where_no_secret_may_go_is_refused_before_anything_is_sent(url: str) -> None:
    auth = OAuth2Auth(token_url=url, client_id="client", client_secret=SECRET, scope=None)
    with pytest.raises(WebSocketSecurityError) as caught:
        await token_of(TokenCache(), auth)
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match=r"auth\.token_url") as refused:
        template("ws://127.0.0.1:9/", auth)
    assert SECRET not in str(refused.value)


async def test_a_client_secret_that_is_not_text_is_refused_and_not_shown() -> None:
    async with serve_http(Issuer()) as server:
        with pytest.raises(WebSocketSecurityError) as caught:
            await token_of(TokenCache(), oauth2(server, client_secret=f"{SECRET}\ud800"))
        assert not server.connected.is_set()
    assert all(SECRET not in f"{error} {error!r}" for error in chain(caught.value))


# Secrets


async def test_no_log_record_and_no_error_shows_a_credential(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []

    async def fail(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
        with pytest.raises(WebSocketError) as caught:
            await call(protocol, call_template)
        errors.extend(chain(caught.value))

    async with entered() as protocol, peer(Endpoint(401)) as strict, peer(Endpoint()) as url:
        for auth in (
            api_key(SECRET),
            api_key(SECRET, location="query"),
            api_key(SECRET, location="cookie"),
            BasicAuth(username=SECRET, password=SECRET),
        ):
            await call(protocol, template(url, auth))
            await fail(protocol, template(strict, auth))
        secret = {"client_id": SECRET, "scope": SECRET}
        async with serve_http(Issuer(access_token=SECRET)) as server:
            issued = oauth2(server, token_url=f"{server.url}/?k={SECRET}", **secret)
            await call(protocol, template(url, issued))
            await fail(protocol, template(strict, issued))
        for refusal in ((401, {"error": "invalid_client"}), (400, {"error": SECRET}), (302, {}), (500, SECRET)):
            async with serve_http(Refusing(*[refusal] * 2)) as server:
                refused = oauth2(server, token_url=f"{server.url}/?k={SECRET}", **secret)
                await fail(protocol, template(url, refused, reconnect_attempts=0))
    assert len(errors) >= 9
    texts = [f"{error} {error!r} {error.__dict__}" for error in errors]
    texts += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    encoded = base64.b64encode(f"{SECRET}:{SECRET}".encode()).decode()
    assert caplog.records
    assert not [text for text in texts if SECRET in text or encoded in text]
