"""The user's network settings: what they accept, what they show, and what each of them permits."""

from __future__ import annotations

import copy
import dataclasses
import gc
import ipaddress
import pickle
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support.http_peer import answering, serve_http

from utcp_websocket_anyio import (
    NetworkSettings,
    WebSocketCallTemplate,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketSecurityError,
    configure,
    open_client,
)
from utcp_websocket_anyio._net.http import request
from utcp_websocket_anyio._net.security import check_http_url, check_manual_origin, check_websocket_url
from utcp_websocket_anyio._net.settings import current_settings, is_trusted_host
from utcp_websocket_anyio._net.transport import Network

pytestmark = pytest.mark.anyio

SECRET = "geheim"
needs_unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


@dataclasses.dataclass
class Files:
    authority: trustme.CA
    ca: str
    cert: str
    key: str
    encrypted_key: str
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client = authority.issue_cert("client.example")
    client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    client.private_key_pem.write_to_path(str(folder / "client.key"))
    key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(SECRET.encode()),
    )
    (folder / "encrypted.key").write_bytes(encrypted)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    names = ("ca.pem", "client.pem", "client.key", "encrypted.key")
    ca, cert, key_file, encrypted_key = (str(folder / name) for name in names)
    return Files(authority, ca, cert, key_file, encrypted_key, server)


async def get(url: str, settings: NetworkSettings | None = None) -> int:
    with anyio.fail_after(30):
        return (await request("GET", url, network=Network(settings), what="test request")).status


# What they accept


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"proxy": "ftp://p:1"}, "proxy: ftp:// is not a kind of proxy that can be used; use one of http://"),
        ({"proxy": "socks4://p:1"}, "proxy: socks4:// is not"),
        ({"proxy": "p:1"}, "proxy: "),
        ({"proxy": ""}, "proxy: "),
        ({"proxy": 5}, 'proxy: must be a URL, "environment" or None'),
        ({"proxy": "http://"}, "proxy: must be a URL of scheme, host and port"),
        ({"proxy": "http://p:1/path"}, "proxy: must be a URL of scheme, host and port"),
        ({"proxy": "http://p:1?geheim"}, "proxy: must be a URL of scheme, host and port"),
        ({"proxy": "http://p:0"}, "proxy: must be a URL of scheme, host and port"),
        ({"proxy": "http://p:99999"}, "proxy: must be a URL such as"),
        ({"proxy": "http://p:geheim"}, "proxy: must be a URL such as"),
        ({"proxy": "http://[p"}, "proxy: must be a URL such as"),
        ({"proxy": "http://p\r\nX: geheim"}, "proxy: must be a URL such as"),
        ({"proxy": "http://u:%ff@p:1"}, "proxy: must be a URL such as"),
        ({"proxy": "http://:geheim@p:1"}, "proxy: needs a user name and a password"),
        ({"proxy": "socks5://geheim@p:1"}, "proxy: needs a user name and a password"),
        ({"proxy": "http://u%3Ageheim:x@p:1"}, "proxy: a user name with a colon"),
        ({"proxy": "http://u:%0Ageheim@p:1"}, "proxy: its user name or password contains a control character"),
        ({"proxy": f"socks5://u:geheim{'x' * 250}@p:1"}, "proxy: its user name or password is longer than 255"),
        ({"ca_file": "/nowhere/geheim.pem"}, "ca_file: /nowhere/geheim.pem: No such file or directory"),
        ({"ca_file": ""}, "ca_file: must be the path of a file"),
        ({"client_key": "x"}, "client_key and client_key_password need a client_cert"),
        ({"client_key_password": "geheim"}, "client_key and client_key_password need a client_cert"),
        ({"trusted_hosts": "nas.home"}, "trusted_hosts: must be a list"),
        ({"trusted_hosts": [1]}, "trusted_hosts: must be a list"),
        ({"trusted_hosts": ["http://nas.home"]}, "trusted_hosts: 'http://nas.home' is not a host name, an address"),
        ({"trusted_hosts": ["nas.home:80"]}, "trusted_hosts: 'nas.home:80' is not"),
        ({"trusted_hosts": ["*"]}, "trusted_hosts: '*' is not"),
        ({"trusted_hosts": ["10.0.0.0/33"]}, "trusted_hosts: '10.0.0.0/33' is not"),
        ({"trusted_hosts": [""]}, "trusted_hosts: '' is not"),
        ({"unix_sockets": ["x"]}, "unix_sockets: must be an object"),
        ({"unix_sockets": {"10.0.0.1": "/s"}}, "unix_sockets: '10.0.0.1' is not a host name"),
        ({"unix_sockets": {"localhost": "/s"}}, "unix_sockets: 'localhost' is this machine itself"),
        ({"unix_sockets": {"docker.local": ""}}, "unix_sockets['docker.local']: must be the path of a file"),
        ({"max_idle_connections": -1}, "max_idle_connections: must be an integer that is not negative"),
        ({"max_idle_connections": True}, "max_idle_connections: must be an integer"),
        ({"max_idle_connections": 1.5}, "max_idle_connections: must be an integer"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_named_at_once(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is looked at
        NetworkSettings(**fields)
    assert str(caught.value).startswith(says)
    assert SECRET not in str(caught.value).replace("geheim.pem", "")


def test_certificates_are_loaded_when_the_settings_are_made(files: Files, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    other = trustme.CA().issue_cert("other.example").private_key_pem
    other.write_to_path(str(tmp_path / "other.key"))
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"ca_file": str(tmp_path / "text")}, "ca_file: .*no certificate in PEM form"),
        ({"client_cert": str(tmp_path / "text")}, "client_cert: .*cannot be read"),
        ({"client_cert": files.cert}, "client_cert: .*cannot be read"),
        ({"client_cert": files.cert, "client_key": "/nowhere"}, "No such file"),
        ({"client_cert": files.cert, "client_key": str(tmp_path / "other.key")}, "does not belong to the certificate"),
        ({"client_cert": files.cert, "client_key": files.encrypted_key}, "another client_key_password"),
        (
            {"client_cert": files.cert, "client_key": files.encrypted_key, "client_key_password": f"{SECRET}2"},
            "another client_key_password",
        ),
    )
    for fields, says in mistakes:
        with pytest.raises(ValueError, match=says) as caught:
            NetworkSettings(**fields)
        assert SECRET not in str(caught.value)
    NetworkSettings(ca_file=files.ca, client_cert=files.cert, client_key=files.key)
    NetworkSettings(client_cert=files.cert, client_key=files.encrypted_key, client_key_password=SECRET)


def test_settings_cannot_be_changed_and_are_compared_by_value() -> None:
    sockets = {"docker.local": "/s"}
    one = NetworkSettings(trusted_hosts=["a.home"], unix_sockets=sockets)
    sockets["other.local"] = "/t"
    assert dict(one.unix_sockets) == {"docker.local": "/s"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.proxy = None  # type: ignore[misc]  # refused at run time, too
    with pytest.raises(TypeError):
        one.unix_sockets["x"] = "y"  # type: ignore[index]  # refused at run time, too
    same = NetworkSettings(trusted_hosts=("a.home",), unix_sockets={"docker.local": "/s"})
    assert one == same
    assert hash(one) == hash(same)
    assert one != NetworkSettings()
    several = [f"{n}.home" for n in range(20)]
    assert NetworkSettings(trusted_hosts=several) == NetworkSettings(trusted_hosts=set(several))
    assert pickle.loads(pickle.dumps(one)) == copy.copy(one) == copy.deepcopy(one) == one
    assert dataclasses.replace(one, trusted_hosts=()) == NetworkSettings(unix_sockets={"docker.local": "/s"})


def test_no_secret_is_in_their_representation(files: Files) -> None:
    assert repr(NetworkSettings()) == "NetworkSettings()"
    settings = NetworkSettings(
        proxy=f"http://alice:{SECRET}@proxy.example:3128",
        client_cert=files.cert,
        client_key=files.encrypted_key,
        client_key_password=SECRET,
        trusted_hosts=["nas.home"],
        unix_sockets={"docker.local": "/s"},
    )
    shown = repr(settings)
    assert SECRET not in shown
    assert "alice" not in shown
    assert "proxy='http://proxy.example:3128'" in shown
    assert "client_key_password='<secret>'" in shown
    assert "unix_sockets={'docker.local': '/s'}" in shown
    assert repr(Network(settings)) == f"<Network {shown}>"


# TLS


async def test_a_ca_file_is_trusted_beside_the_systems_store(files: Files) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files.authority.issue_cert("127.0.0.1").configure_cert(context)
    async with serve_http(answering({}), ssl_context=context) as server:
        with pytest.raises(WebSocketConnectionError, match="the certificate is not trusted"):
            await get(server.url)
        assert await get(server.url, NetworkSettings(ca_file=files.ca)) == 200
    system = len(ssl.create_default_context().get_ca_certs())
    assert len(Network(NetworkSettings(ca_file=files.ca)).tls.get_ca_certs()) >= system + 1


@pytest.mark.parametrize("key", ["key", "encrypted_key"])
async def test_a_client_certificate_is_shown_to_the_endpoint_and_not_to_a_proxy(files: Files, key: str) -> None:
    password = SECRET if key == "encrypted_key" else None
    settings = NetworkSettings(
        ca_file=files.ca, client_cert=files.cert, client_key=getattr(files, key), client_key_password=password
    )
    async with serve_http(answering({}), ssl_context=files.server) as server:
        assert await get(server.url, settings) == 200
        with pytest.raises(WebSocketConnectionError):
            await get(server.url, NetworkSettings(ca_file=files.ca))
    network = Network(settings)
    assert network.tls is not network.proxy_tls


async def test_the_users_own_context_is_used_as_it_is_and_never_changed(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(ssl.SSLContext):
        def set_alpn_protocols(self, alpn_protocols: Any) -> None:
            raise AssertionError("changed")

    own = Own(ssl.PROTOCOL_TLS_CLIENT)
    own.load_verify_locations(files.ca)
    own.load_cert_chain(files.cert, files.key)
    before = (own.options, own.verify_flags, own.verify_mode, own.check_hostname)
    async with serve_http(answering({}), ssl_context=files.server) as server:
        with anyio.fail_after(30):
            answer = await request("GET", server.url, network=Network(None, own), what="test request")
    assert answer.status == 200
    assert (own.options, own.verify_flags, own.verify_mode, own.check_hostname) == before


def test_paths_are_paths_and_settings_are_settings(files: Files) -> None:
    assert NetworkSettings(ca_file=Path(files.ca)) == NetworkSettings(ca_file=files.ca)
    with pytest.raises(TypeError, match="network must be NetworkSettings, not dict"):
        WebSocketCommunicationProtocol(network={"proxy": None})  # type: ignore[arg-type]  # refused at run time, too


def test_a_context_and_certificates_together_are_a_mistake(files: Files) -> None:
    context = ssl.create_default_context()
    for settings in (
        NetworkSettings(ca_file=files.ca),
        NetworkSettings(client_cert=files.cert, client_key=files.key),
    ):
        with pytest.raises(ValueError, match="an ssl_context is used as it is"):
            WebSocketCommunicationProtocol(ssl_context=context, network=settings)
        configure(settings)
        with pytest.raises(ValueError, match="an ssl_context is used as it is"):
            WebSocketCommunicationProtocol(ssl_context=context)
        configure(NetworkSettings())
    WebSocketCommunicationProtocol(ssl_context=context, network=NetworkSettings(proxy=None))


# Trusted hosts


@pytest.mark.parametrize(
    ("trusted", "host", "allowed"),
    [
        ("nas.home", "nas.home", True),
        ("NAS.Home.", "nas.home", True),
        ("nas.home", "NAS.home.", True),
        ("nas.home", "x.nas.home", False),
        ("nas.home", "nas.home.evil.example", False),
        ("nas", "nas", True),
        ("192.168.1.5", "192.168.1.5", True),
        ("192.168.1.5", "192.168.1.6", False),
        ("192.168.0.0/16", "192.168.255.1", True),
        ("192.168.0.0/16", "192.169.0.1", False),
        ("192.168.1.7/16", "192.168.2.1", True),
        ("192.168.0.0/16", "192.168.0.1.evil.example", False),
        ("fd00::/8", "[fd12::1]", True),
        ("[fd00::1]", "[fd00:0::1]", True),
        ("fd00::/8", "[fe80::1]", False),
        ("0.0.0.0/0", "10.1.1.1", True),
        ("0.0.0.0/0", "example.com", False),
    ],
)
def test_plain_connections_go_to_trusted_hosts_as_they_are_written(trusted: str, host: str, allowed: bool) -> None:
    with pytest.raises(WebSocketSecurityError):
        check_websocket_url(f"ws://{host}/")
    configure(NetworkSettings(trusted_hosts=[trusted]))
    for check in (
        lambda: check_websocket_url(f"ws://{host}:8080/"),
        lambda: check_http_url(f"http://{host}/", "discovery_url"),
        lambda: WebSocketCallTemplate(url=f"ws://{host}/"),
        lambda: Network().route("ws", check_websocket_url(f"ws://{host}/"), "ws://x/"),
    ):
        if allowed:
            check()
        else:
            with pytest.raises(ValueError, match="trusted hosts only"):
                check()


def test_trusted_hosts_are_those_of_the_process_only(caplog: pytest.LogCaptureFixture) -> None:
    settings = NetworkSettings(trusted_hosts=["nas.home"])
    WebSocketCommunicationProtocol(network=settings)
    assert "trusted_hosts count only if configure() was given them" in caplog.text
    assert not is_trusted_host("nas.home")
    with pytest.raises(ValueError, match="trusted hosts only"):
        WebSocketCallTemplate(url="ws://nas.home/")
    configure(settings)
    WebSocketCallTemplate(url="ws://nas.home/")
    # Whichever settings a protocol object was given.
    address = check_websocket_url("ws://nas.home/")
    assert Network(NetworkSettings(proxy=None)).route("ws", address, "ws://nas.home/").proxy is None
    configure(NetworkSettings())
    with pytest.raises(WebSocketSecurityError, match="trusted hosts only"):
        Network(settings).route("ws", address, "ws://nas.home/")


def test_a_remote_manual_cannot_use_trusted_hosts_but_may_name_the_one_it_came_from() -> None:
    configure(NetworkSettings(trusted_hosts=["192.168.0.0/16", "nas.home"], unix_sockets={"docker.local": "/s"}))

    def tool(url: str) -> Any:
        return {"name": "spy", "tool_call_template": {"call_template_type": "other", "url": url}}

    names = ("ws://192.168.1.5/", "wss://192.168.1.5/", "http://NAS.home./x", "http://docker.local/", "ftp://nas.home/")
    for url in names:
        for origin in ("wss://tools.example/", "ws://192.168.1.6/"):
            with pytest.raises(WebSocketSecurityError, match="'spy' of a remote manual names a trusted-host address"):
                check_manual_origin(origin, [tool(url)])
    check_manual_origin("ws://nas.home/utcp", [tool("ws://nas.home:81/")])
    check_manual_origin("ws://192.168.1.5/", [tool("ws://192.168.1.5:81/")])
    check_manual_origin("ws://127.0.0.1/", [tool("ws://192.168.1.5/"), tool("http://docker.local/")])


# Unix sockets


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # The path of a socket may have some 100 characters.
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "s"


@needs_unix_sockets
async def test_a_host_name_stands_for_a_unix_socket(short_path: Path) -> None:
    heard: list[bytes] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            heard.append(await stream.receive())
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with await anyio.create_unix_listener(short_path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        settings = NetworkSettings(unix_sockets={"Docker.local": str(short_path)}, proxy="http://127.0.0.1:9")
        assert await get("http://docker.local/v1?x=1", settings) == 200
        tasks.cancel_scope.cancel()
    assert heard[0].startswith(b"GET /v1?x=1 HTTP/1.1\r\nHost: docker.local\r\n")


@needs_unix_sockets
async def test_the_error_for_a_missing_unix_socket_says_so(short_path: Path) -> None:
    settings = NetworkSettings(unix_sockets={"docker.local": str(short_path)})
    with pytest.raises(WebSocketConnectionError, match="No such file or directory"):
        await get("http://docker.local/", settings)


async def test_a_template_may_name_a_socket_of_any_settings_but_only_its_own_client_finds_it() -> None:
    with pytest.raises(ValueError, match="trusted hosts only"):
        WebSocketCallTemplate(url="ws://docker.local/")
    settings = NetworkSettings(unix_sockets={"docker.local": "/s"})
    address = check_websocket_url("ws://docker.local/")
    WebSocketCallTemplate(url="ws://docker.local/")
    assert Network(settings).route("ws", address, "ws://docker.local/").unix_socket == "/s"
    with pytest.raises(WebSocketSecurityError, match="trusted hosts only"):
        Network(NetworkSettings(proxy=None)).route("ws", address, "ws://docker.local/")
    # Equal ones do not stand for each other.
    same = NetworkSettings(unix_sockets={"docker.local": "/s"})
    del settings
    gc.collect()
    check_websocket_url("ws://docker.local/")
    del same
    gc.collect()
    with pytest.raises(WebSocketSecurityError):
        check_websocket_url("ws://docker.local/")


# For whom they are


def test_configure_is_for_the_whole_process_and_takes_nothing_else() -> None:
    settings = NetworkSettings(max_idle_connections=5)
    configure(settings)
    assert current_settings() is settings
    seen: list[NetworkSettings] = []
    thread = threading.Thread(target=lambda: seen.append(Network().settings))
    thread.start()
    thread.join()
    assert seen == [settings]
    with pytest.raises(TypeError, match="configure takes NetworkSettings, not dict"):
        configure({"proxy": None})  # type: ignore[arg-type]  # refused at run time, too
    assert current_settings() is settings


async def test_settings_of_a_client_win_over_those_of_the_process() -> None:
    configure(NetworkSettings(max_idle_connections=5))
    own = NetworkSettings(max_idle_connections=6)
    async with open_client(network=own) as client, open_client() as other:
        protocols: list[Any] = [each._protocol_for("websocket") for each in (client, other)]
    limits = [protocol._opening.network.settings.max_idle_connections for protocol in protocols]
    assert limits == [6, 5]


def test_an_address_is_the_same_in_every_spelling() -> None:
    configure(NetworkSettings(trusted_hosts=["fd00::1"]))
    assert is_trusted_host(str(ipaddress.ip_address("fd00:0:0::1")))
    assert is_trusted_host("FD00::0001")
