"""The rules about addresses and headers: what is refused, what is shown, what counts as this machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict
from utcp.data.auth_implementations import OAuth2Auth
from utcp.data.call_template import CallTemplate
from utcp.data.tool import Tool

from utcp_websocket_anyio._net.security import (
    Address,
    check_header,
    check_http_url,
    check_manual_origin,
    check_websocket_url,
    display_url,
    is_loopback,
    is_reserved_header,
    split_address,
)
from utcp_websocket_anyio._templates.call_template import WebSocketCallTemplate
from utcp_websocket_anyio.errors import WebSocketSecurityError

REMOTE = "https://tools.example/manual"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("wss://example.com/chat", Address(True, "example.com", 443)),
        ("WSS://Example.COM", Address(True, "example.com", 443)),
        ("wss://example.com.:8443?x=1", Address(True, "example.com.", 8443)),
        ("wss://xn--mnchen-3ya.example/", Address(True, "xn--mnchen-3ya.example", 443)),
        ("wss://under_score.example/", Address(True, "under_score.example", 443)),
        ("wss://[2001:db8::1]:9/", Address(True, "2001:db8::1", 9)),
        ("wss://example.com:/", Address(True, "example.com", 443)),
        ("ws://localhost:8080/a?b=c@d", Address(False, "localhost", 8080)),
        ("ws://LOCALHOST/", Address(False, "localhost", 80)),
        ("ws://127.0.0.1/@user", Address(False, "127.0.0.1", 80)),
        ("ws://127.9.8.7/", Address(False, "127.9.8.7", 80)),
        ("ws://[::1]:65535/", Address(False, "::1", 65535)),
    ],
)
def test_an_allowed_url_is_taken_apart_into_what_is_connected_to(url: str, address: Address) -> None:
    check_websocket_url(url)
    assert split_address(url) == address


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "localhost.",
        "127.0.0.1.",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "127.0.0.01",
        "128.0.0.1",
        "foo.localhost",
        "[::]",
        "[::2]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "10.0.0.1",
    ],
)
def test_a_plain_url_goes_to_a_literal_loopback_host_only(host: str) -> None:
    with pytest.raises(WebSocketSecurityError, match="use wss://"):
        check_websocket_url(f"ws://{host}:80/")
    with pytest.raises(WebSocketSecurityError, match=r"token_url: .*use https://"):
        check_http_url(f"http://{host}:80/", "token_url")
    check_websocket_url(f"wss://{host}:80/")
    check_http_url(f"https://{host}:80/", "token_url")


@pytest.mark.parametrize(
    "url",
    [
        "ws://evil.com\\@127.0.0.1/",
        "ws://127.0.0.1\\.evil.com/",
        "ws:\\\\127.0.0.1/",
        "ws://127.0.0.1\t/",
        "ws://local\nhost/",
        "ws://localhost\r\n/",
        "ws://localhost /",
        " ws://localhost/",
        "ws://localhost/\x00",
        "ws://localhost/\x7f",
        "wss://example.com/a b",
        "ws://\uff11\uff12\uff17.0.0.1/",
        "ws://127\u30020\u30020\u30021/",
        "ws://\u24db\u24de\u24d2alhost/",
        "ws://l\u00f6calhost/",
        "wss://m\u00fcnchen.example/",
        "ws://%6cocalhost/",
        "ws://127.0.0.1%2f.evil.com/",
        "ws://127.0.0.1;evil.com/",
        "ws://127.0.0.1,evil.com/",
        "ws://[127.0.0.1]/",
        "ws://[localhost]/",
        "wss://[v1.evil]/",
        "ws://[::1%25lo]/",
        "ws://[::1%lo]/",
        "ws://[::1/",
        "ws://::1/",
        "ws://[::1]evil.com/",
        "ws://[::1]:x/",
        "ws:///path",
        "ws://",
        "ws://:80/",
        "wss://a..b/",
        "wss://.a/",
        "wss://-a/",
        f"wss://{'a' * 64}.example/",
        f"wss://{'a.' * 127}bc/",
        "ws://localhost:0/",
        "ws://localhost:65536/",
        "ws://localhost:99999999/",
        "ws://localhost:-1/",
        "ws://localhost:8_0/",
        "ws://localhost:\u0668\u0660/",
        "ws://localhost:80:80/",
        "http://localhost/",
        "ftp://localhost/",
        "javascript:alert(1)",
        "//localhost/",
        "localhost",
        "",
    ],
)
def test_a_url_that_parsers_read_differently_or_not_at_all_is_refused(url: str) -> None:
    with pytest.raises(WebSocketSecurityError, match=r"^url: ") as caught:
        check_websocket_url(url)
    assert caught.value.endpoint == display_url(url)
    if not url.startswith(("http:", "ftp:", "javascript:")):
        with pytest.raises(WebSocketSecurityError, match=r"^discovery_url: "):
            check_http_url(url.replace("wss:", "https:").replace("ws:", "http:"), "discovery_url")


@pytest.mark.parametrize("user", ["user:geheim@", "geheim@", ":geheim@", "a@geheim@", "127.0.0.1:80@", "@"])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_user_information_is_refused_and_not_shown(scheme: str, user: str) -> None:
    with pytest.raises(WebSocketSecurityError, match="put credentials in auth") as caught:
        check_websocket_url(f"{scheme}://{user}localhost/?geheim#geheim")
    assert "geheim" not in str(caught.value)
    assert caught.value.endpoint == f"{scheme}://localhost/"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://u:p@Example.com:1/a/b?token=x#y", "wss://example.com:1/a/b"),
        ("wss://example.com?token=x", "wss://example.com"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
        ("wss://example.com/caf\u00e9/{{args.x}}", "wss://example.com/caf\u00e9/{{args.x}}"),
        ("wss://a@b@c/", "wss://c/"),
        ("wss://evil.com\\@localhost/", "<invalid URL>"),
        ("wss://user:p/w@example.com/", "<invalid URL>"),
        ("wss://example.com/\x1b[31m", "<invalid URL>"),
        ("wss://example.com/\u202eevil", "<invalid URL>"),
        ("wss://[::1/", "<invalid URL>"),
        ("token=x", "<invalid URL>"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret_or_deceive(url: str, shown: str) -> None:
    assert display_url(url) == shown


@given(st.text(alphabet=st.sampled_from("ws:/@\\?#[]%.a1 \n\ud800\u3002")) | st.text())
def test_showing_and_judging_any_text_never_breaks(text: str) -> None:
    for url in (text, f"ws://{text}", f"wss://localhost{text}"):
        shown = display_url(url)
        assert shown == "<invalid URL>" or not set("?#\n") & set(shown)
        is_loopback(url)
        try:
            check_websocket_url(url)
        except WebSocketSecurityError:
            continue
        assert shown != "<invalid URL>" or not url.isprintable()
        if url.startswith("ws://"):
            assert is_loopback(url)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
        "foo.localhost.",
        "localhost.localdomain",
        "ip6-loopback",
        "127.0.0.1",
        "127.255.255.254",
        "127.0.0.1.",
        "127.1",
        "0",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "0X7F.1",
        "0177.0.0.1",
        "017700000001",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::1%lo]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:0.0.0.0]",
        "user@localhost",
        "l%6fcalhost",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\uff0e0\uff611",
        "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
        "local\thost",
        "localhost\\.evil.com",
        "evil.com\\@127.0.0.1",
    ],
)
def test_loopback_is_recognised_in_every_spelling_that_leads_there(host: str) -> None:
    assert is_loopback(f"wss://{host}/path")


@pytest.mark.parametrize(
    "url",
    [
        "wss://example.com/",
        "wss://localhost.evil.com/",
        "wss://notlocalhost/",
        "wss://127.0.0.1.evil.com/",
        "wss://example.com/localhost",
        "wss://example.com/?u=ws://127.0.0.1",
        "wss://10.0.0.1/",
        "wss://128.0.0.1/",
        "wss://2130706432.example/",
        "wss://face/",
        "wss://[2001:db8::1]/",
        "wss://[::ffff:10.0.0.1]/",
        "wss://[::1/",
        "wss://${HOST}/",
        "localhost",
        "",
    ],
)
def test_other_hosts_are_not_loopback(url: str) -> None:
    assert not is_loopback(url)


def tool(template: Any, name: str = "spy") -> Any:
    return SimpleNamespace(name=name, tool_call_template=template)


def remote_template(**fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(url=fields.pop("url", "wss://tools.example/"), **fields)


def secret_from(token_url: str) -> OAuth2Auth:
    return OAuth2Auth(token_url=token_url, client_id="id", client_secret="secret", scope=None)


@pytest.mark.parametrize(
    ("template", "field"),
    [
        (remote_template(url="ws://127.0.0.1:9000/"), "url"),
        (remote_template(url="wss://0x7f.1/"), "url"),
        (remote_template(discovery_url="http://localhost/manual"), "discovery_url"),
        (remote_template(auth=secret_from("https://localhost./token")), "auth.token_url"),
    ],
)
def test_a_remote_manual_may_not_name_loopback(template: WebSocketCallTemplate, field: str) -> None:
    good = Tool(name="good", tool_call_template=remote_template())
    bad = Tool(name="bad", tool_call_template=template)
    with pytest.raises(
        WebSocketSecurityError, match=rf"'bad' of a remote manual names a loopback address in {field} "
    ) as caught:
        check_manual_origin("wss://u:p@tools.example/?token=x", [good, bad])
    assert caught.value.endpoint == "wss://tools.example/"
    check_manual_origin(REMOTE, [good])


@pytest.mark.parametrize("origin", ["ws://localhost:1/", "http://127.0.0.1/manual", "https://[::1]/"])
def test_a_local_manual_may_name_loopback(origin: str) -> None:
    check_manual_origin(origin, [tool(remote_template(url="ws://127.0.0.1:9000/"))])


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.com\\@127.0.0.1/",
        "https://user@127.0.0.1/",
        "https://2130706433/",
        "https://evil.localhost/",
        "https://${HOST}/",
        "ftp://localhost/",
        "",
    ],
)
def test_a_manual_is_local_only_where_no_parser_could_think_otherwise(origin: str) -> None:
    with pytest.raises(WebSocketSecurityError, match=r"loopback address in .*url"):
        check_manual_origin(origin, [tool(remote_template(url="ws://127.0.0.1:9000/"))])


def test_the_inline_tools_of_a_remote_manuals_templates_are_looked_at_too() -> None:
    innermost = {
        "name": "inner",
        "tool_call_template": {
            "call_template_type": "websocket",
            "url": "wss://tools.example/",
            "auth": {"auth_type": "oauth2", "token_url": "http://127.0.0.1/", "client_id": "i", "client_secret": "s"},
        },
    }
    middle = {
        "name": "middle",
        "tool_call_template": {
            "call_template_type": "websocket",
            "url": "wss://tools.example/",
            "tools": [{"name": "without template"}, innermost],
        },
    }
    where = r"tools\[0\]\.tool_call_template\.tools\[1\]\.tool_call_template\.auth\.token_url"
    with pytest.raises(WebSocketSecurityError, match=f"'spy' .* a loopback address in {where} "):
        check_manual_origin(REMOTE, [tool(remote_template(tools=[middle]))])


def test_inline_tools_may_be_nested_deeper_than_python_recurses() -> None:
    template: dict[str, Any] = {"call_template_type": "websocket", "url": "ws://127.1/"}
    for _ in range(5000):
        template = {"call_template_type": "websocket", "tools": [{"tool_call_template": template}]}
    with pytest.raises(WebSocketSecurityError, match=r"loopback address in .*url"):
        check_manual_origin(REMOTE, [tool(template)])


class OtherTemplate(CallTemplate):
    call_template_type: str = "other"
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://127.0.0.1:9200/"},
        {"url": "HTTP://LocalHost4.LocalDomain/"},
        {"host": "localhost", "port": 22},
        {"host": "127.1"},
        {"hosts": ["example.com", "[::1]:80"]},
        {"base_url": "http://0/"},
        {"baseUrl": "http://0/"},
        {"config": {"mcpServers": {"x": {"url": "http://localhost:3000/sse"}}}},
        {"servers": [{"endpoint": "https://example.com/"}, {"endpoint": "tcp://127.0.0.1/"}]},
        {"oauth": {"token_url": "http://localhost6/"}},
    ],
    ids=str,
)
def test_call_templates_of_every_protocol_are_looked_at(fields: dict[str, Any]) -> None:
    with pytest.raises(WebSocketSecurityError, match="'spy' of a remote manual names a loopback address in "):
        check_manual_origin(REMOTE, [tool(OtherTemplate(**fields))])


def test_hosts_elsewhere_and_values_that_are_not_addresses_are_fine_in_every_protocol() -> None:
    fields: dict[str, Any] = {
        "url": "https://example.com/?next=http://localhost/",
        "host": "example.com",
        "headers": {"Origin": "http://localhost"},
        "body": "http://127.0.0.1/",
        "path": "/localhost",
    }
    check_manual_origin(REMOTE, [tool(OtherTemplate(**fields))])


def test_what_a_websocket_template_sends_is_data_but_its_http_steps_are_addresses() -> None:
    sent = {"type": "open", "url": "http://127.0.0.1/"}
    fields: dict[str, Any] = {
        "call_template_type": "websocket",
        "url": "wss://tools.example/",
        "message": sent,
        "on_connect": [{"send": sent, "expect": sent}],
        "prepare": [{"http": {"method": "POST", "url": "https://tools.example/", "json": sent}}],
        "headers": {"X-Host": "localhost"},
    }
    check_manual_origin(REMOTE, [tool(fields)])
    fields["resume"] = {"prepare": [{"http": {"url": "https://127.0.0.1/"}}]}
    with pytest.raises(WebSocketSecurityError, match=r"loopback address in resume\.prepare\[0\]\.http\.url"):
        check_manual_origin(REMOTE, [tool(fields)])


def test_the_schemas_of_inline_tools_name_no_addresses() -> None:
    inline = {
        "name": "fetch",
        "inputs": {"properties": {"url": "http://localhost/"}},
        "tool_call_template": {"call_template_type": "websocket", "url": "wss://tools.example/"},
    }
    check_manual_origin(REMOTE, [tool({"call_template_type": "websocket", "tools": [inline]})])


@pytest.mark.parametrize(
    "name", ["Host", "CONNECTION", "upgrade", "Sec-WebSocket-Key", "sec-websocket-protocol", "Content-Length"]
)
def test_headers_of_the_handshake_itself_cannot_be_set(name: str) -> None:
    assert is_reserved_header(name)
    with pytest.raises(WebSocketSecurityError, match=f"{name} belongs to the handshake"):
        check_header(name, "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [("Origin", "https://example.com"), ("X-Token", ""), ("sec-fetch-mode", "websocket"), ("x!#$%&'*+.^_`|~1", "a\tb")],
)
def test_other_headers_can_be_set(name: str, value: str) -> None:
    assert not is_reserved_header(name)
    check_header(name, value)


@pytest.mark.parametrize("name", ["", "X Y", "X:", "X\r\nHost", "X\x00", "X-\u00fc", "(x)", "X\n"])
def test_a_header_name_is_a_token(name: str) -> None:
    with pytest.raises(WebSocketSecurityError, match="invalid header name"):
        check_header(name, "x")


@pytest.mark.parametrize("value", ["\r\nHost: evil", "\n", "\r", "a\x00", "\x1b", "\x7f", "\u20ac", "\xfc", "\x85"])
def test_a_header_value_that_could_end_its_line_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(WebSocketSecurityError, match="the value of the header X-Token") as caught:
        check_header("X-Token", f"geheim{value}")
    assert "geheim" not in str(caught.value)
    assert value not in str(caught.value)
