"""A server that plays its part of a conversation, and checks that the client plays the other.

A conversation is written as the documentation has it, one line for each thing that happens, in order:

    * variables TOKEN=secret        what the manual's variables are; before everything else
    * connect /ws?token=secret      a connection is opened; the path is checked where there is one
    * header Authorization: Bearer  the handshake has this header
    * subprotocol chat.v1           the server picks it
    > {"op": "login"}               the client says this
    < {"event": "welcome"}          the server says this
    > hex 0a0b                      a binary message, both ways
    * 30 s later                    the server waits (only where time is virtual)
    * server closes 1008 reason     the server closes with a code
    * connection lost               without a word
    * client closes                 the client does
    * POST /token {"key": "k"}      the client makes an HTTP request
    * 200 {"token": "t"}            which is answered

`␞` stands for the record separator, U+001E.
JSON that the client says is compared as JSON. `<name>` in what it says stands for any text or number there, and for the
same one everywhere after; `…` stands for anything. A conversation that does not say so begins with `* connect`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from support.peers import CLOSE, PING, PONG, Peer

_HTTP_REQUEST = re.compile(r"(GET|POST|PUT|DELETE|PATCH) (\S+)(?: (.+))?")
_HTTP_ANSWER = re.compile(r"([1-5]\d\d)(?: (.*))?")
_LATER = re.compile(r"([\d.]+) s later")
_NAME = re.compile(r"<([a-z_]+)>")


@dataclass
class Line:
    """One thing that happens."""

    kind: str
    text: str

    @property
    def opens_connection(self) -> bool:
        """True if it happens on another connection than the lines before it."""
        return self.kind == "*" and (self.text.split(" ")[0] == "connect" or bool(_HTTP_REQUEST.fullmatch(self.text)))

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


class Conversation:
    """The script of a conversation, and its progress.

    Attributes:
        variables: What the conversation says the manual's variables are.
        local: Replaces addresses in what the server says by those of this server.
    """

    def __init__(self, text: str, local: Callable[[str], str] = lambda text: text) -> None:
        self.variables: dict[str, str] = {}
        self.local = local
        self._lines: list[Line] = []
        self._at = 0
        self._bound: dict[str, Any] = {}
        self._moved = anyio.Event()
        for line in text.replace("␞", "\x1e").split("\n"):
            kind, _, rest = line.partition(" ")
            if kind == "*" and rest.startswith("variables "):
                for pair in rest.split()[1:]:
                    name, _, value = pair.partition("=")
                    self.variables[name] = value
            elif kind in ("*", ">", "<"):
                self._lines.append(Line(kind, rest))
            elif line.strip() and not line.startswith("#"):
                raise ValueError(f"no line of a conversation: {line}")
        first = self._lines[0] if self._lines else None
        if first is not None and not first.opens_connection:
            self._lines.insert(0, Line("*", "connect"))

    @property
    def rest(self) -> list[str]:
        """The lines that have not happened yet, except a client that closes."""
        return [str(line) for line in self._lines[self._at :] if line.text != "client closes"]

    async def __call__(self, peer: Peer) -> None:
        """The server's part on one connection, from the moment when it is this connection's turn."""
        await peer.read_request()
        if "upgrade:" not in peer.request.lower():
            await self._answer_http(peer)
            raise anyio.EndOfStream
        await self._until(lambda line: line.text.partition(" ")[0] == "connect")
        await self._connect(peer)
        while (line := self._line) is not None:
            if line.opens_connection:
                break
            await self._play(peer, line)
            self._advance()
        await self._until_closed(peer)

    @property
    def _line(self) -> Line | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _advance(self) -> None:
        self._at += 1
        self._moved.set()
        self._moved = anyio.Event()

    async def _until(self, wanted: Callable[[Line], Any]) -> None:
        while (line := self._line) is None or line.kind != "*" or not wanted(line):
            await self._moved.wait()

    async def _connect(self, peer: Peer) -> None:
        line = self._line
        assert line is not None
        path = line.text.removeprefix("connect").strip()
        if path:
            self._compare(peer.request.split(" ")[1], path)
        self._advance()
        answer: list[str] = []
        while (line := self._line) is not None and line.kind == "*":
            word, _, rest = line.text.partition(" ")
            if word == "header":
                name, _, value = rest.partition(": ")
                self._compare(peer.header(name) or "", value)
            elif word == "subprotocol":
                answer.append(f"Sec-WebSocket-Protocol: {rest}")
            elif refused := _HTTP_ANSWER.fullmatch(line.text):
                self._advance()
                await self._refuse(peer, refused[1], refused[2] or "")
                raise anyio.EndOfStream
            else:
                break
            self._advance()
        await peer.handshake(*answer)

    async def _refuse(self, peer: Peer, status: str, body: str) -> None:
        content = self._filled(body).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        await peer.send_raw(head.encode() + content)

    async def _answer_http(self, peer: Peer) -> None:
        await self._until(lambda line: _HTTP_REQUEST.fullmatch(line.text))
        assert self._line is not None
        wanted = _HTTP_REQUEST.fullmatch(self._line.text)
        assert wanted is not None
        method, path, _ = peer.request.split("\r\n")[0].split(" ")
        assert method == wanted[1]
        self._compare(path, wanted[2])
        body = (await peer.receive_exactly(int(peer.header("Content-Length") or 0))).decode()
        if wanted[3]:
            self._compare(body, wanted[3])
        self._advance()
        assert self._line is not None
        answer = _HTTP_ANSWER.fullmatch(self._line.text)
        assert answer is not None, f"an HTTP request needs an answer, not {self._line}"
        self._advance()
        await self._refuse(peer, answer[1], answer[2] or "")

    async def _play(self, peer: Peer, line: Line) -> None:
        if line.kind == ">":
            said = await peer.receive()
            self._compare(f"hex {said.hex()}" if isinstance(said, bytes) else said, line.text)
        elif line.kind == "<":
            text = self._filled(line.text)
            binary = text.startswith("hex ")
            await peer.send(bytes.fromhex(text.removeprefix("hex ")) if binary else text)
        elif later := _LATER.fullmatch(line.text):
            await self._wait(peer, float(later[1]))
        elif line.text.startswith("server closes"):
            _, _, code, *reason = line.text.split(" ", 3)
            await peer.close(int(code), "".join(reason))
        elif line.text == "connection lost":
            await anyio.aclose_forcefully(peer.stream)
        elif line.text == "client closes":
            self._advance()
            await self._until_closed(peer)
        else:
            raise ValueError(f"no line of a conversation: {line}")

    async def _until_closed(self, peer: Peer) -> None:
        """Wait for the client's close, before which it says nothing that is not written down."""
        while True:
            opcode, payload = await peer.receive_frame()
            assert opcode in (PING, CLOSE), f"the client said {payload!r} behind the end"
            await peer.send_frame(CLOSE if opcode == CLOSE else PONG, payload)
            if opcode == CLOSE:
                raise anyio.EndOfStream

    async def _wait(self, peer: Peer, seconds: float) -> None:
        """Let time pass, in which the client may send pings and nothing else."""
        with anyio.move_on_after(seconds):
            while True:
                opcode, payload = await peer.receive_frame()
                assert opcode == PING, f"the client said {payload!r} within {seconds:g} s"
                await peer.send_frame(PONG, payload)

    def _filled(self, text: str) -> str:
        """A message of the server, with the bound values and with addresses of this server."""

        def fill(found: re.Match[str]) -> str:
            value = self._bound.get(found[1], found[0])
            return value if isinstance(value, str) else json.dumps(value)

        # A number that was bound stands without the quotes that its name has to have in JSON.
        numbers = {name: value for name, value in self._bound.items() if not isinstance(value, str)}
        for name, value in numbers.items():
            text = text.replace(f'"<{name}>"', json.dumps(value))
        return self.local(_NAME.sub(fill, text))

    def _compare(self, said: str, wanted: str) -> None:
        said_json, wanted_json = _parsed(said), _parsed(wanted)
        if isinstance(wanted_json, (dict, list)) and isinstance(said_json, (dict, list)):
            matches = self._matches(said_json, wanted_json)
        else:
            matches = self._matches(said, wanted)
        assert matches, f"the client said {said}\n           instead of {wanted}"

    def _matches(self, said: Any, wanted: Any) -> bool:
        if isinstance(wanted, dict):
            return (
                isinstance(said, dict)
                and said.keys() == wanted.keys()
                and all(self._matches(said[key], value) for key, value in wanted.items())
            )
        if isinstance(wanted, list):
            return (
                isinstance(said, list)
                and len(said) == len(wanted)
                and all(self._matches(*pair) for pair in zip(said, wanted, strict=True))
            )
        if not isinstance(wanted, str):
            return type(said) is type(wanted) and bool(said == wanted)
        if wanted == "…":
            return True
        if alone := _NAME.fullmatch(wanted):
            return bool(self._bound.setdefault(alone[1], said) == said)
        return isinstance(said, str) and self._matches_text(said, wanted)

    def _matches_text(self, said: str, wanted: str) -> bool:
        pattern = ""
        names: list[str] = []
        for part in re.split(r"(<[a-z_]+>|…)", wanted):
            if part == "…":
                pattern += ".*"
            elif found := _NAME.fullmatch(part):
                if found[1] in self._bound or found[1] in names:
                    value = self._bound.get(found[1])
                    pattern += rf"\{names.index(found[1]) + 1}" if found[1] in names else re.escape(str(value))
                else:
                    names.append(found[1])
                    pattern += "(.+?)"
            else:
                pattern += re.escape(part)
        matched = re.fullmatch(pattern, said, re.DOTALL)
        if matched is not None:
            self._bound.update(zip(names, matched.groups(), strict=True))
        return matched is not None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
