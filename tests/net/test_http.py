"""One HTTP request: its answer within limits, its failures as the package's errors, its secrets in no log."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import ssl
import zlib
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
import trustme
from support.http_peer import Handler, HttpPeer, HttpServer, answering, serve_http, silent
from support.peers import silent_server

from utcp_websocket_anyio._net.http import Answer, request
from utcp_websocket_anyio._net.transport import Network, connection_failure
from utcp_websocket_anyio.errors import (
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketSecurityError,
)

pytestmark = pytest.mark.anyio

SECRET = "geheim"


async def get(url: str, *, ssl_context: ssl.SSLContext | None = None, **options: Any) -> tuple[int, Any]:
    network = Network(ssl_context=ssl_context)
    method = "POST" if "form" in options else "GET"
    with anyio.fail_after(30):
        answer = await request(method, url, network=network, what="test request", **options)
    return answer.status, answer.json()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def test_an_answer_is_its_status_and_its_json() -> None:
    async with serve_http(answering({"tools": [1, "é"]}, status=201)) as server:
        assert await get(f"{server.url}/manual?v=1") == (201, {"tools": [1, "é"]})
    (asked,) = server.peers
    assert (asked.method, asked.target, asked.body) == ("GET", "/manual?v=1", b"")
    assert asked.headers["accept"] == "application/json"
    assert asked.headers["accept-encoding"] == "gzip"


async def test_a_form_is_sent_urlencoded_with_the_given_headers() -> None:
    async with serve_http(answering({})) as server:
        with anyio.fail_after(10):
            await request(
                "POST",
                server.url,
                network=Network(),
                form={"a": "1 &=", "b": ""},
                headers=[("Authorization", "Basic x")],
                what="test",
            )
    (asked,) = server.peers
    assert asked.method == "POST"
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert asked.headers["authorization"] == "Basic x"
    assert asked.form == {"a": "1 &=", "b": ""}


async def ask(server: HttpServer, method: str = "GET", path: str = "/", **options: Any) -> tuple[HttpPeer, Answer]:
    """Make a request; what the server saw of it, and the answer."""
    with anyio.fail_after(30):
        answer = await request(method, f"{server.url}{path}", network=Network(), what="step 1 of prepare", **options)
    return server.peers[-1], answer


async def test_every_kind_of_body_is_sent_with_its_type() -> None:
    async with serve_http(answering({})) as server:
        for options, body, media_type in (
            ({"json": {"a": [1, "é", None]}}, b'{"a": [1, "\\u00e9", null]}', "application/json"),
            (
                {"form": [("a", "1"), ("a", "2 &"), ("b", "é")]},
                b"a=1&a=2+%26&b=%C3%A9",
                "application/x-www-form-urlencoded",
            ),
            ({"body": "text é"}, "text é".encode(), None),
            ({"body": b"\x00\xff"}, b"\x00\xff", None),
            ({"body": ""}, b"", None),
            ({"json": 0, "headers": [("content-type", "application/vnd.x+json")]}, b"0", "application/vnd.x+json"),
            ({}, b"", None),
        ):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                seen, _ = await ask(server, method, **options)
                assert (seen.method, seen.body, seen.headers.get("content-type")) == (method, body, media_type)


async def test_a_query_is_added_percent_encoded_and_what_is_there_stays_as_it_is() -> None:
    async with serve_http(answering({})) as server:
        for path, query, target in (
            ("/a", [("q", "x y&=é"), ("q", "2"), ("", "")], "/a?q=x%20y%26%3D%C3%A9&q=2&="),
            ("/a?sig=%2B+b&c", [("d", "1")], "/a?sig=%2B+b&c&d=1"),
            ("/a?b=1", [], "/a?b=1"),
            ("", [("a", "1")], "/?a=1"),
        ):
            seen, _ = await ask(server, path=path, query=query)
            assert seen.target == target


async def test_headers_are_sent_and_those_that_are_given_win() -> None:
    async with serve_http(answering({})) as server:
        seen, _ = await ask(server, headers=[("Accept", "text/plain"), ("X-A", "1"), ("ACCEPT-ENCODING", "br")])
    assert seen.headers["accept"] == "text/plain"
    assert seen.headers["x-a"] == "1"
    assert seen.headers["accept-encoding"] == "gzip"
    assert seen.headers["user-agent"] == "utcp-websocket-anyio"
    assert seen.headers["host"] == server.url.removeprefix("http://")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"headers": [("X", f"{SECRET}\r\nY: 1")]}, "step 1 of prepare: the value of the header X contains a control"),
        ({"headers": [("X Y", SECRET)]}, "step 1 of prepare: invalid header name 'X Y'"),
        ({"headers": [("Host", "evil")]}, "step 1 of prepare: the header Host belongs to the handshake"),
        ({"headers": [("Content-Length", "1")]}, "step 1 of prepare: the header Content-Length belongs"),
        ({"query": [("a", f"{SECRET}\ud800")]}, "step 1 of prepare: a query parameter contains a lone surrogate"),
        ({"form": {"a": f"{SECRET}\ud800"}}, "step 1 of prepare: a value contains a lone surrogate"),
        ({"body": f"{SECRET}\ud800"}, "step 1 of prepare: a value contains a lone surrogate"),
        ({"json": {"a": float("nan")}}, "step 1 of prepare: Out of range float"),
        ({"query": [("a", "x" * 70_000)]}, "step 1 of prepare: the URL is too long"),
    ],
    ids=str,
)
async def test_what_cannot_be_sent_is_refused_before_anything_is_connected(options: dict[str, Any], says: str) -> None:
    async with serve_http(answering({})) as server:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is looked at
            await ask(server, "POST", **options)
        assert not server.connected.is_set()
    assert str(caught.value).startswith(says)
    assert SECRET not in str(caught.value)
    assert list(chain(caught.value)) == [caught.value]


@pytest.mark.parametrize("method", ["", "get", "CONNECT", "TRACE", f"GET /{SECRET}\r\n"])
async def test_other_methods_are_refused(method: str) -> None:
    async with serve_http(answering({})) as server:
        with pytest.raises(ValueError, match="is not one of DELETE, GET, HEAD"):
            await ask(server, method)
        assert not server.connected.is_set()


async def test_an_answer_has_status_headers_and_bytes() -> None:
    headers = [("X-A", "1"), ("x-a", "2"), ("Set-Cookie", SECRET)]
    async with serve_http(answering(b"\xff", 404, headers)) as server:
        _, answer = await ask(server)
    assert (answer.status, answer.body, answer.json()) == (404, b"\xff", None)
    assert answer.header("X-A") == "1, 2"
    assert answer.header("x-b") is None
    assert SECRET not in repr(answer)


async def test_answers_without_a_body_are_read() -> None:
    async def no_content(peer: HttpPeer) -> None:
        await peer.send_raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")

    async def head(peer: HttpPeer) -> None:
        await peer.send_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")

    async with serve_http(no_content) as server, serve_http(head) as other:
        assert (await ask(server))[1].status == 204
        assert (await ask(other, "HEAD"))[1].body == b""


async def test_a_head_without_end_is_given_up() -> None:
    async def pour(peer: HttpPeer) -> None:
        await peer.send_raw(b"HTTP/1.1 200 OK\r\n")
        while True:
            await peer.send_raw(b"X: " + b"x" * 10_000 + b"\r\n")

    async with serve_http(pour) as server:
        with pytest.raises(WebSocketConnectionError, match="not valid HTTP"):
            await ask(server)


async def test_a_refusal_that_comes_before_the_body_was_read_is_heard() -> None:
    async def refuse(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive(10)
            await stream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, refuse)
        url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/"
        with anyio.fail_after(30):
            try:
                answer = await request("POST", url, network=Network(), what="test", body=b"x" * 5_000_000)
            except WebSocketConnectionError as error:
                # The reset may overtake the answer, which the system then throws away.
                assert "reset" in str(error) or "closed" in str(error) or "lost" in str(error)
            else:
                assert answer.status == 413
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "invalid_grant"}, "invalid_grant"),
        ({"error": "invalid_grant", "error_description": "expired"}, "invalid_grant: expired"),
        ({"error": {"message": "no such model", "code": 5}}, "no such model"),
        ({"error": {"code": 5}}, "5"),
        ({"message": "Forbidden"}, "Forbidden"),
        ({"error": "Forbidden", "message": "Forbidden"}, "Forbidden"),
        ({"detail": "Not authenticated"}, "Not authenticated"),
        ({"error": True, "message": "no"}, "no"),
        ({"error": ["x"]}, None),
        ({}, None),
        ([1], None),
        (b"quota\r\nexceeded\x1b[2J", "quota exceeded\\x1b[2J"),
        (b'"quoted"', "quoted"),
        (b"<html><title>502</title>", None),
        (b"\xff\xfe", None),
        (b"   ", None),
        (b"x" * 600, "x" * 500 + "…"),
        (b"[" * 100_000, "[" * 500 + "…"),
        (b"1" * 5000, "1" * 500 + "…"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_reason_of_a_refusal_is_found_where_servers_write_it(body: Any, reason: str | None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert Answer(400, (), content).reason() == reason


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"\xff", b"[" * 100_000])
async def test_an_answer_that_is_not_json_has_no_parsed_body(body: bytes) -> None:
    async with serve_http(answering(body, status=404)) as server:
        assert await get(server.url) == (404, None)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_refused_and_its_target_not_contacted(status: int) -> None:
    async with serve_http(silent) as target, serve_http(answering({}, status, [("Location", target.url)])) as server:
        with pytest.raises(WebSocketConnectionError, match="redirect, which is not followed") as caught:
            await get(f"{server.url}/a?token={SECRET}")
        assert not target.connected.is_set()
    assert caught.value.status == status
    assert not caught.value.transient
    assert caught.value.endpoint == f"{server.url}/a"


async def test_a_redirect_is_refused_whatever_comes_with_it() -> None:
    async def endless(peer: HttpPeer) -> None:
        await peer.begin(302, headers=[("Location", "/"), ("Content-Encoding", "br"), ("Transfer-Encoding", "chunked")])
        await peer.send_raw(b"5\r\nhello\r\n")

    async with serve_http(endless) as server:
        with pytest.raises(WebSocketConnectionError, match="redirect, which is not followed"):
            await get(server.url)


async def test_errors_name_the_endpoint_that_they_are_about() -> None:
    async with serve_http(answering({}, 302)) as server:
        with pytest.raises(WebSocketConnectionError) as caught:
            await get(server.url, endpoint="wss://example.com/")
    assert caught.value.endpoint == "wss://example.com/"


def gzipped(size: int) -> bytes:
    return gzip.compress(b" " * size)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"1" + b" " * 1000, "identity"), (gzipped(1001), "gzip"), (gzipped(50_000_000), "gzip")],
    ids=["plain", "compressed", "bomb"],
)
async def test_an_answer_over_the_limit_is_cut_off_at_the_limit(body: bytes, encoding: str) -> None:
    async def handler(peer: HttpPeer) -> None:
        await peer.begin(headers=[("Content-Encoding", encoding), ("Transfer-Encoding", "chunked")])
        await peer.send_raw(b"%x\r\n%s\r\n" % (len(body), body))

    async with serve_http(handler) as server:
        with pytest.raises(WebSocketProtocolError, match="longer than 1000 bytes"):
            await get(server.url, max_size=1000)
        with anyio.fail_after(10):
            await server.left.wait()


async def test_what_is_received_counts_even_if_nothing_is_in_it() -> None:
    deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    begin = deflate.compress(b"1") + deflate.flush(zlib.Z_SYNC_FLUSH)
    empty_block = b"\x00\x00\x00\xff\xff" * 200

    async def handler(peer: HttpPeer) -> None:
        await peer.begin(headers=[("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")])
        await peer.send_raw(b"%x\r\n%s\r\n" % (len(begin), begin))
        while True:
            await peer.send_raw(b"%x\r\n%s\r\n" % (len(empty_block), empty_block))

    async with serve_http(handler) as server:
        with pytest.raises(WebSocketProtocolError, match="longer than 100000 bytes"):
            await get(server.url, max_size=100_000)


@pytest.mark.parametrize("encoding", ["identity", "gzip", "GZIP"])
async def test_an_answer_as_long_as_the_limit_is_read(encoding: str) -> None:
    body = b"1" + b" " * 999
    sent = gzip.compress(body) if encoding.lower() == "gzip" else body
    async with serve_http(answering(sent, headers=[("Content-Encoding", encoding)])) as server:
        assert await get(server.url, max_size=1000) == (200, 1)


@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (b"1", "br", "content encoding that was not asked for"),
        (gzip.compress(gzip.compress(b"1", mtime=0), mtime=0), "gzip, gzip", "content encoding that was not asked for"),
        (b"not gzip", "gzip", "not valid gzip"),
        (gzip.compress(b"1", mtime=0)[:-9], "gzip", "not valid gzip"),
    ],
)
async def test_an_answer_that_cannot_be_decompressed_is_a_protocol_error(body: bytes, encoding: str, says: str) -> None:
    async with serve_http(answering(body, headers=[("Content-Encoding", encoding)])) as server:
        with pytest.raises(WebSocketProtocolError, match=says) as caught:
            await get(server.url)
    assert list(chain(caught.value)) == [caught.value]


async def garbage(peer: HttpPeer) -> None:
    await peer.send_raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def close(peer: HttpPeer) -> None:
    await peer.stream.aclose()


async def reset(peer: HttpPeer) -> None:
    await peer.reset()


async def break_off(peer: HttpPeer) -> None:
    await peer.begin(headers=[("Content-Length", "1000")])
    await peer.send_raw(b"{")
    await peer.stream.aclose()


@pytest.mark.parametrize("handler", [garbage, close, reset, break_off])
async def test_a_broken_answer_is_a_transient_connection_error_with_nothing_of_httpx_behind_it(
    handler: Handler,
) -> None:
    async with serve_http(handler) as server:
        with pytest.raises(WebSocketConnectionError, match="the test request failed: ") as caught:
            await get(f"{server.url}/?token={SECRET}", headers=[("Authorization", SECRET)])
    assert caught.value.transient
    assert list(chain(caught.value)) == [caught.value]
    assert SECRET not in str(caught.value)


async def test_the_error_for_a_closed_port_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(WebSocketConnectionError, match="Connection refused") as caught:
            await get(f"http://127.0.0.1:{taken.getsockname()[1]}/?token={SECRET}")
    assert caught.value.transient
    assert list(chain(caught.value)) == [caught.value]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_error_for_an_unknown_host_says_so() -> None:
    outer = httpx.ConnectError("all attempts failed")
    outer.__cause__ = OSError("all attempts failed")
    outer.__cause__.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    error = connection_failure(outer, "https://nowhere.invalid/", what="the test request failed")
    assert str(error) == "the test request failed: the host name cannot be resolved (https://nowhere.invalid/)"
    assert error.transient


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_is_verified_by_the_given_context(server_context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async with serve_http(answering({"ok": True}), ssl_context=server_context) as server:
        assert await get(server.url, ssl_context=trusting) == (200, {"ok": True})


async def test_an_untrusted_certificate_is_a_lasting_error(server_context: ssl.SSLContext) -> None:
    async with serve_http(answering({}), ssl_context=server_context) as server:
        with pytest.raises(WebSocketConnectionError, match="TLS: the certificate is not trusted") as caught:
            await get(f"{server.url}/?token={SECRET}")
        assert not server.asked.is_set()
    assert not caught.value.transient
    assert list(chain(caught.value)) == [caught.value]


async def test_a_plain_server_where_tls_is_due_is_a_lasting_error(trusting: ssl.SSLContext) -> None:
    async def greet(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(WebSocketConnectionError, match="TLS: ") as caught:
            await get(f"https://127.0.0.1:{port}/", ssl_context=trusting)
        tasks.cancel_scope.cancel()
    assert not caught.value.transient


async def test_a_request_cancelled_in_its_tls_handshake_closes_its_socket() -> None:
    with anyio.fail_after(60):
        async with silent_server() as server, anyio.create_task_group() as requests:
            requests.start_soon(get, f"https://127.0.0.1:{server.port}/")
            await server.asked.wait()
            requests.cancel_scope.cancel()


@pytest.mark.parametrize("headers", [None, [("Content-Length", "10")]], ids=["before the answer", "within the answer"])
async def test_a_cancelled_request_closes_its_socket(headers: list[tuple[str, str]] | None) -> None:
    async def handler(peer: HttpPeer) -> None:
        if headers is not None:
            await peer.begin(headers=headers)
            await peer.send_raw(b"[")

    with anyio.fail_after(10):
        async with serve_http(handler) as server:
            async with anyio.create_task_group() as requests:
                requests.start_soon(get, server.url)
                await server.asked.wait()
                await anyio.wait_all_tasks_blocked()
                requests.cancel_scope.cancel()
            await server.left.wait()


@pytest.mark.parametrize("url", ["http://example.com/", "ftp://localhost/", "https://u:p@localhost/"])
async def test_an_address_that_may_not_be_asked_is_refused(url: str) -> None:
    with pytest.raises(WebSocketSecurityError, match=r"^test request: "):
        await get(url)


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login x password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with serve_http(silent) as proxy, serve_http(answering({})) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert (await get(server.url))[0] == 200
        assert not proxy.connected.is_set()
    assert "authorization" not in server.peers[0].headers


def shown(records: list[logging.LogRecord]) -> str:
    return "\n".join(f"{record.getMessage()} {record.__dict__}" for record in records)


@pytest.mark.parametrize("outcome", [answering({"token": SECRET}, headers=[("X-Secret", SECRET)]), garbage, break_off])
async def test_no_log_record_shows_a_request_of_ours(outcome: Handler, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve_http(outcome) as server:
        try:
            await get(f"{server.url}/?token={SECRET}", form={"a": SECRET}, headers=[("Authorization", SECRET)])
        except WebSocketError as error:
            assert SECRET not in str(error)
    assert SECRET not in shown(caplog.records)


async def test_other_loggers_are_untouched_and_only_this_package_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve_http(answering({})) as server:
        await get(server.url)
        assert {record.name for record in caplog.records} <= {"utcp_websocket_anyio._net.http", "asyncio"}
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"{server.url}/theirs?q=1")
    assert {"httpx", "httpcore.connection", "httpcore.http11"} <= {record.name for record in caplog.records}
    loggers = logging.root.manager.loggerDict.items()
    theirs = [logger for name, logger in loggers if name.partition(".")[0] in ("httpx", "httpcore")]
    assert not any(logger.filters for logger in theirs if isinstance(logger, logging.Logger))


async def test_a_request_is_logged_for_debugging_without_its_query(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="utcp_websocket_anyio")
    async with serve_http(answering({})) as server:
        await get(f"{server.url}/a?token={SECRET}")
    assert f"test request: {server.url}/a answered with status 200" in caplog.messages
