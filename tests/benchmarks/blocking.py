"""A blocking socket: the fastest that Python's own means allow, for one connection and nothing of UTCP."""

from __future__ import annotations

import base64
import os
import socket
import struct
from urllib.parse import urlsplit

from measure import Outcome, arguments
from workloads import WORKLOADS, pushed

contender, name, url = arguments()
workload = WORKLOADS[name]
outcome = Outcome()
payload = "x" * workload.size


class Blocking:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65536)
        self.buffer = self.buffer.partition(b"\r\n\r\n")[2]

    def send(self, message: str) -> None:
        data = message.encode()
        size = len(data)
        head = b"\x81" + (
            bytes([0x80 | size])
            if size < 126
            else struct.pack("!BH", 0xFE, size)
            if size < 65536
            else struct.pack("!BQ", 0xFF, size)
        )
        # A mask of zeros is a mask, and costs nothing.
        self.socket.sendall(head + bytes(4) + data)

    def recv(self) -> str:
        head = self.take(2)
        size = head[1]
        if size == 126:
            (size,) = struct.unpack("!H", self.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.take(8))
        return self.take(size).decode()

    def take(self, size: int) -> bytes:
        if len(self.buffer) < size:
            parts, have = [self.buffer], len(self.buffer)
            while have < size:
                part = self.socket.recv(max(65536, size - have))
                parts.append(part)
                have += len(part)
            self.buffer = b"".join(parts)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def close(self) -> None:
        self.socket.sendall(b"\x88\x82" + bytes(4) + struct.pack("!H", 1000))
        self.take(2)
        self.socket.close()


def connect() -> None:
    outcome.start()
    for _ in range(workload.count):
        connection = Blocking(url + "/echo")
        connection.send(payload)
        outcome.check(connection.recv(), payload)
        connection.close()
    outcome.stop()


def stream() -> None:
    connection = Blocking(f"{url}/stream?count={workload.count}&size={workload.size}")
    expected = pushed(workload.size)
    connection.send("go")
    outcome.check(connection.recv(), expected)
    outcome.start()
    for _ in range(workload.count - 1):
        outcome.check(connection.recv(), expected)
    outcome.stop()


def calls() -> None:
    connection = Blocking(url + "/echo")
    for number in range(-workload.warmup, workload.count):
        if number == 0:
            outcome.start()
        connection.send(payload)
        outcome.check(connection.recv(), payload)
    outcome.stop()


run = {"connect": connect, "stream-64": stream, "stream-64k": stream}.get(name, calls)
run()
outcome.report()
