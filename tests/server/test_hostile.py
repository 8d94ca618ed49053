"""Clients that mean harm, over real sockets: what a tool server holds because of them, and for how long."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import trio
import trustme
from support.tool_server import UPGRADE, Thread, discovered, entered, frame, port_of, raw_client
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from utcp_websocket_anyio import ToolServer

pytestmark = pytest.mark.anyio

TEXT, PING, CLOSE = 1, 9, 8
MEBIBYTE = 2**20


def call(tool: str, **arguments: object) -> bytes:
    request = {"type": "call_tool", "request_id": 1, "tool_name": tool, "arguments": arguments}
    return frame(TEXT, json.dumps(request).encode())


def until_closed(client: socket.socket) -> bytes:
    """The bytes that a client gets until it is disconnected, in whatever way."""
    received = bytearray()
    with suppress(ConnectionError):
        while data := client.recv(MEBIBYTE):
            received += data
    return bytes(received)


def adding(**options: object) -> ToolServer:
    server = ToolServer("adding", **options)  # type: ignore[arg-type]  # limits of several types

    @server.tool
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool
    async def wait() -> None:
        await anyio.sleep_forever()

    @server.tool
    async def give() -> str:
        return "x" * 4 * MEBIBYTE

    return server


async def still_serves(url: str) -> bool:
    async with entered() as protocol:
        template = (await discovered(protocol, url))["add"]
        return bool(await protocol.call_tool(None, "manual.add", {"a": 1, "b": 2}, template) == 3)


# Memory


SERVER = """
import sys, anyio, anyio.to_thread
from utcp_websocket_anyio import ToolServer

server = ToolServer("memory")

@server.tool
async def echo(text: str) -> str:
    await anyio.sleep(0.01)
    return text

@server.tool
async def give() -> str:
    return "x" * 4 * 2**20

async def main():
    async with anyio.create_task_group() as task_group:
        await task_group.start(server.serve, "127.0.0.1", 0)
        print(server.url, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        task_group.cancel_scope.cancel()

anyio.run(main, backend=sys.argv[1])
"""


@contextmanager
def server_process(backend: str) -> Iterator[tuple[int, str]]:
    """A server in a process of its own; gives its id and the server's URL."""
    command = [sys.executable, "-c", SERVER, backend]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().strip()
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def send_all(client: socket.socket, data: bytes, times: int) -> None:
    """Send as much as the server takes: when it has not taken anything for a while, it does not any more."""
    client.settimeout(1)
    with suppress(OSError):
        for _ in range(times):
            client.sendall(data)


def calls_that_are_read(client: socket.socket) -> None:
    sending = threading.Thread(target=send_all, args=(client, call("echo", text="x" * 4 * MEBIBYTE), 60))
    client.settimeout(30)
    sending.start()
    received = 0
    while received < 60 * 4 * MEBIBYTE:
        with suppress(TimeoutError):
            received += len(client.recv(MEBIBYTE))
    sending.join()


def calls_that_are_not_read(client: socket.socket) -> None:
    send_all(client, call("echo", text="x" * 4 * MEBIBYTE), 60)


def answers_that_are_not_read(client: socket.socket) -> None:
    send_all(client, call("give") * 60, 1)
    assert client.recv(1)
    time.sleep(1)  # for as many more as the server makes


def pings_whose_pongs_are_not_read(client: socket.socket) -> None:
    send_all(client, frame(PING, b"x" * 125) * 1000, 500)


def fragments_of_nothing(client: socket.socket) -> None:
    client.sendall(frame(TEXT, fin=False))
    send_all(client, frame(0, fin=False) * 10_000, 1000)


def nonsense(client: socket.socket) -> None:
    send_all(client, frame(TEXT, b"x") * 10_000, 500)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("attack", "limit"),
    [
        # 60 calls with 4 MiB each took 480 MiB once. 16 MiB of messages exist in several forms.
        (calls_that_are_read, 160),
        (calls_that_are_not_read, 160),
        (answers_that_are_not_read, 160),
        (pings_whose_pongs_are_not_read, 16),
        (fragments_of_nothing, 16),
        (nonsense, 30),
    ],
)
def test_one_connection_takes_a_bounded_amount_of_memory(
    backend: str, attack: Callable[[socket.socket], None], limit: int, record_property: Callable[[str, object], None]
) -> None:
    with server_process(backend) as (pid, url):
        before = peak(pid)
        with raw_client(url) as client:
            attack(client)
        grown = peak(pid) - before
        record_property("MiB", grown // MEBIBYTE)
        assert grown < limit * MEBIBYTE


# Size


async def test_a_message_that_is_far_too_long_is_refused_and_its_sender_told(thread: Thread) -> None:
    url = await thread.serve(adding(max_message_size=100_000))

    def send() -> int | None:
        with connect(url, compression=None, max_size=None) as client, pytest.raises(ConnectionClosed) as caught:
            client.send("x" * 4_000_000)
            client.recv()
        return caught.value.rcvd.code if caught.value.rcvd is not None else None

    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(send) == 1009
    assert await still_serves(url)


async def test_the_limit_counts_bytes(thread: Thread) -> None:
    url = await thread.serve(adding(max_message_size=1000))

    def send(text: str) -> int | None:
        with connect(url, compression=None) as client:
            client.send(text)
            try:
                client.recv()
            except ConnectionClosed as error:
                return error.rcvd.code if error.rcvd is not None else None
            return None

    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(send, "ü" * 500) is None
        assert await anyio.to_thread.run_sync(send, "ü" * 501) == 1009


async def test_fragments_without_end_close_the_connection(thread: Thread) -> None:
    url = await thread.serve(adding(max_message_size=1000))

    def send() -> bytes:
        with raw_client(url, frame(TEXT, fin=False)) as client:
            with suppress(OSError):
                for _ in range(100):
                    client.sendall(frame(0, fin=False) * 1000)
            return until_closed(client)

    with anyio.fail_after(30):
        await anyio.to_thread.run_sync(send)
    assert await still_serves(url)


async def test_text_that_is_not_utf_8_closes_the_connection(thread: Thread) -> None:
    url = await thread.serve(adding())

    def send() -> bytes:
        with raw_client(url, frame(TEXT, b"\xff\xff")) as client:
            return until_closed(client)

    with anyio.fail_after(30):
        await anyio.to_thread.run_sync(send)
    assert await still_serves(url)


# Time


async def test_beyond_its_calls_a_client_gets_its_pongs_and_its_end_is_noticed(thread: Thread) -> None:
    server = adding(max_calls=2, ping_interval=None)
    cancelled = threading.Semaphore(0)

    @server.tool
    async def hold() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.release()

    url = await thread.serve(server)

    def stay() -> bytes:
        with raw_client(url, call("hold") * 10 + frame(PING, b"are you there?")) as client:
            return client.recv(100)

    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(stay) == b"\x8a\x0eare you there?"
        for _ in range(2):
            assert await anyio.to_thread.run_sync(cancelled.acquire, True, 20)
    assert not cancelled.acquire(blocking=False)  # the others were never begun


async def test_a_client_that_answers_no_ping_is_dropped(thread: Thread) -> None:
    url = await thread.serve(adding(ping_interval=0.05, pong_timeout=0.05))

    def stay() -> bytes:
        with raw_client(url) as client:
            return until_closed(client)

    with anyio.fail_after(30):
        assert (await anyio.to_thread.run_sync(stay)).startswith(b"\x89")


async def test_one_that_answers_them_is_kept(thread: Thread) -> None:
    url = await thread.serve(adding(ping_interval=0.05, pong_timeout=20))
    async with entered() as protocol:
        template = (await discovered(protocol, url))["add"]
        for _ in range(5):
            assert await protocol.call_tool(None, "manual.add", {"a": 1, "b": 2}, template) == 3
            await anyio.sleep(0.1)
        assert "2 open" in repr(protocol)  # none was replaced


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01"])
async def test_a_client_without_a_handshake_is_dropped_after_a_while(
    thread: Thread, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seam in ("on_asyncio", "on_trio"):
        monkeypatch.setattr(f"utcp_websocket_anyio._server.{seam}.HANDSHAKE_TIME", 0.2)
    url = await thread.serve(adding())

    def stay() -> bytes:
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=20) as client:
            client.sendall(sent)
            return until_closed(client)

    with anyio.fail_after(30):
        answer = await anyio.to_thread.run_sync(stay)
    assert not answer or b" 101 " not in answer


def silent(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(url)), timeout=30)


def half_a_handshake(url: str) -> socket.socket:
    client = silent(url)
    client.sendall(UPGRADE[:-2])
    return client


def idle(url: str) -> socket.socket:
    return raw_client(url)


def calling(url: str) -> socket.socket:
    client = raw_client(url, call("wait") * 10 + frame(TEXT, b"manual"))
    assert client.recv(1)  # the manual: all of it has been read
    return client


def not_reading(url: str) -> socket.socket:
    client = raw_client(url, call("give") * 10)
    assert client.recv(1)
    return client


@pytest.mark.parametrize("stubborn", [silent, half_a_handshake, idle, calling, not_reading])
async def test_no_client_can_hold_up_a_server_that_ends(
    thread: Thread, stubborn: Callable[[str], socket.socket]
) -> None:
    # The clients answer no close, and never hang up.
    url = await thread.serve(adding())
    with anyio.fail_after(40):
        clients = [await anyio.to_thread.run_sync(stubborn, url) for _ in range(3)]
        try:
            with anyio.fail_after(8):  # it promises 2, and the machine may be busy
                await anyio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
            for client in clients:
                await anyio.to_thread.run_sync(until_closed, client)
        finally:
            for client in clients:
                client.close()


async def test_nor_can_one_in_the_middle_of_tls(thread: Thread) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    url = await thread.serve(adding(ssl_context=context))
    with anyio.fail_after(40), silent(url) as client:
        client.sendall(b"\x16\x03\x01\x02\x00")
        with anyio.fail_after(8):
            await anyio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
        until_closed(client)


async def test_every_connected_client_gets_a_close_when_the_server_ends(thread: Thread) -> None:
    url = await thread.serve(adding())
    with anyio.fail_after(30), calling(url) as client:
        await anyio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
        ended = await anyio.to_thread.run_sync(until_closed, client)
    assert (0x80 | CLOSE).to_bytes(1, "big") + b"\x0c" + (1001).to_bytes(2, "big") + b"going away" in ended


def messages(stream: bytes) -> list[tuple[int, bytes]]:
    """The frames of a server, as far as they are complete."""
    frames, at = [], 0
    while at + 2 <= len(stream):
        size, head = stream[at + 1], 2
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(stream[at + 2 : at + head], "big")
        if at + head + size > len(stream):
            break
        frames.append((stream[at] & 0x0F, stream[at + head : at + head + size]))
        at += head + size
    return frames


async def test_a_goodbye_is_never_said_in_the_middle_of_a_message(thread: Thread) -> None:
    url = await thread.serve(adding())
    with anyio.fail_after(40), not_reading(url) as client:
        await anyio.to_thread.run_sync(thread.cancel)
        ended = await anyio.to_thread.run_sync(until_closed, client)
    received = messages(b"\x81" + ended)
    assert all(json.loads(payload)["request_id"] == 1 for opcode, payload in received if opcode == TEXT)
    # What is left over is the beginning of a message, and nothing but that.
    whole = sum(len(payload) for _, payload in received)
    assert b"going away" not in (b"\x81" + ended)[whole + 14 * (len(received) + 1) :]


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
async def test_a_client_that_pings_and_reads_no_pongs_is_dropped(thread: Thread) -> None:
    # On trio they are held up by TCP instead.
    url = await thread.serve(adding())

    def ask() -> None:
        with raw_client(url) as client, pytest.raises(ConnectionError):
            for _ in range(3000):
                client.sendall(frame(PING, b"x" * 125) * 1000)

    with anyio.fail_after(40):
        await anyio.to_thread.run_sync(ask)
    assert await still_serves(url)


@pytest.mark.parametrize("anyio_backend", [("trio", {})], ids=["trio"])
@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", UPGRADE[:-2]])
async def test_nothing_is_kept_for_a_client_that_leaves_before_the_handshake(
    thread: Thread, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utcp_websocket_anyio._server.on_trio.HANDSHAKE_TIME", 1000)
    url = await thread.serve(adding())

    def tasks() -> int:
        return thread.call(lambda: trio.lowlevel.current_statistics().tasks_living)

    with anyio.fail_after(30):
        before = await anyio.to_thread.run_sync(tasks)
        for _ in range(3):
            client = silent(url)
            client.sendall(sent)
            client.close()
        while await anyio.to_thread.run_sync(tasks) > before:
            await anyio.sleep(0.01)
