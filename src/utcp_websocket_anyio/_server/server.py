"""`ToolServer`: Python functions as UTCP tools, published over WebSocket.

The server runs on trio and on asyncio. What it does is the same on both and stands in modules that know neither:
`admission` decides which clients may connect, `session` serves one connection, `tools` knows what a function is. Two
modules carry the messages, one for each event loop; `transport` is the seam between.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any, TypeVar, overload

import anyio
import anyio.abc
import sniffio
from utcp.python_specific_tooling.version import __version__ as utcp_version

from .admission import Admission, host_of, is_loopback
from .listening import open_sockets
from .session import Service, Session
from .threads import Workers
from .tools import Tool, as_tool
from .transport import Carrier, Connection, Handshake, Refusal

__all__ = ["ToolServer"]

_log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


class ToolServer:
    """Publishes functions as UTCP tools, on trio and on asyncio.

    ::

        server = ToolServer("arithmetic")

        @server.tool
        async def add(a: int, b: int) -> int:
            "Add two integers."
            return a + b

        async with anyio.create_task_group() as task_group:
            await task_group.start(server.serve, "127.0.0.1", 0)
            print(server.url)

    On trio, its nursery does as well as anyio's task group.

    The schemas of a tool come from its function's type hints, its description from the docstring; arguments are
    validated and converted by pydantic before the function is called, and results are turned into JSON by it.

    An ``async`` function runs in the server's event loop. A plain one runs in a worker thread, which is abandoned if
    the call is cancelled. Generators of both kinds are streams: `call_tool_streaming` gives each item as it comes,
    `call_tool` a list of them. What a function raises is the tool's error; its text goes to the caller, its traceback
    to the log. A call that its client gives up is cancelled.

    A server on loopback serves programs on the same machine, and no page in its browser. Beyond loopback, give it a
    token.

    Args:
        name: Name of the server, for logs.
        token: Token that clients must send, as ``Authorization: Bearer …`` or ``?token=…``. A client that has done so
            finds it in the manual, as the credentials of each tool.
        origins: Origins of pages that may connect, such as ``http://localhost:3000``. A page of any other is refused.
        hosts: Further names and addresses of the server. A handshake is refused if its ``Host`` is neither one of them
            nor the address that the client has reached, the host that is served, the machine's name or, there,
            ``localhost``.
        max_calls: Calls at once on one connection; the next one waits.
        max_message_size: Longest incoming message, in bytes. Together, the messages that one connection has in
            progress may have as many; the next one waits.
        ping_interval: Seconds between two pings to each client; None: no pings.
        pong_timeout: Seconds without a sign of life after which a client is dead.
        ssl_context: TLS context, to serve ``wss://``.

    Raises:
        ValueError: An argument is not valid; the text names it.
    """

    def __init__(
        self,
        name: str,
        *,
        token: str | None = None,
        origins: Iterable[str] = (),
        hosts: Iterable[str] = (),
        max_calls: int = 100,
        max_message_size: int = 16 * 2**20,
        ping_interval: float | None = 30.0,
        pong_timeout: float = 30.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self._tools: dict[str, Tool] = {}
        self._admission = Admission(hosts=hosts, origins=origins, token=token)
        for limit, value in (("max_calls", max_calls), ("max_message_size", max_message_size)):
            if value < 1:
                raise ValueError(f"{limit} must be at least 1")
        for limit, seconds in (("ping_interval", ping_interval), ("pong_timeout", pong_timeout)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{limit} must be greater than 0")
        self._max_message_size = max_message_size
        self._service = partial(
            Service,
            name=name,
            tools=self._tools,
            max_calls=max_calls,
            max_bytes=max_message_size,
            ping_interval=ping_interval,
            pong_timeout=pong_timeout,
        )
        self._ssl_context = ssl_context
        self._url: str | None = None
        self._addresses: list[str] = []

    def __repr__(self) -> str:
        return f"<ToolServer {self.name!r}, {len(self._tools)} tools, {self._url or 'not serving'}>"

    @property
    def url(self) -> str:
        """The URL of the tools, once it is serving.

        Raises:
            RuntimeError: The server is not serving.
        """
        if self._url is None:
            raise RuntimeError(
                "the server is not serving; start it with: await task_group.start(server.serve, host, port)"
            )
        return self._url

    @property
    def audience(self) -> str:
        """A sentence that says who can call the tools, once it is serving.

        Raises:
            RuntimeError: The server is not serving.
        """
        if not self._addresses:
            raise RuntimeError("the server is not serving")
        has_token = self._admission.has_token
        if all(map(is_loopback, self._addresses)):
            programs = f"programs on this machine{' that know the token' if has_token else ''}"
        else:
            reached = ", ".join(self._addresses)
            programs = f"everybody who can reach {reached}{' and knows the token' if has_token else ''}"
        origins = ", ".join(sorted(self._admission.origins))
        return f"{programs}; {f'pages of {origins}' if origins else 'no page in a browser'}"

    @overload
    def tool(self, function: Function) -> Function: ...

    @overload
    def tool(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] = (),
        timeout: float | None = None,
    ) -> Callable[[Function], Function]: ...

    def tool(
        self,
        function: Function | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] = (),
        timeout: float | None = None,
    ) -> Function | Callable[[Function], Function]:
        """Publish a function; also as a decorator, with or without arguments.

        Args:
            function: Function, plain or asynchronous, or generator of either kind; None: return a decorator.
            name: Name of the tool; defaults to the function's name.
            description: Description of the tool; defaults to the docstring.
            tags: Tags of the tool, for searching.
            timeout: Seconds that a client should wait for the whole response (`response_timeout`).

        Returns:
            The function, unchanged.

        Raises:
            ValueError: There is a tool of that name already, or the name is not valid.
            TypeError: The function has parameters that cannot be named in JSON, or types without a schema.
        """
        if function is None:
            return partial(self.tool, name=name, description=description, tags=tags, timeout=timeout)
        name = name or str(getattr(function, "__name__", type(function).__name__))
        if name in self._tools:
            raise ValueError(f"there is a tool named {name!r} already")
        self._tools[name] = as_tool(function, name=name, description=description, tags=tags, timeout=timeout)
        return function

    async def serve(  # noqa: ASYNC128 - passed on to the backend, which knows when it listens
        self, host: str, port: int, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled. Cancelling it cancels the calls and closes the connections (code 1001, within 2 s).

        Args:
            host: The address to listen at; a name: all its addresses; ``0.0.0.0``: every IPv4 address of the machine.
            port: The port to listen at; 0: any free one, see `url`.
            task_status: Set by a task group's ``start``, which returns when clients can connect.

        Raises:
            OSError: The server cannot listen there.
            RuntimeError: The server is serving already.
        """
        if self._url is not None:
            raise RuntimeError(f"the server is serving already, at {self._url}")
        library = sniffio.current_async_library()
        seam = import_module(f".on_{library}", __package__)
        sockets = await open_sockets(host, port)
        try:
            self._addresses = [bound.getsockname()[0] for bound in sockets]
            if not self._admission.has_token and not all(map(is_loopback, self._addresses)):
                _log.warning("server %s has no token, and can be called by %s", self.name, self.audience)
            self._url = f"{self._scheme}://{_shown(host)}:{sockets[0].getsockname()[1]}"
            service = self._service(
                workers=Workers(seam.loop_caller()),
                open_tasks=seam.open_tasks,
                open_scope=seam.open_scope,
                is_cancelled=seam.is_cancelled,
            )
            carrier = Carrier(
                ssl_context=self._ssl_context,
                max_message_size=self._max_message_size,
                admit=partial(self._refusal, host),
                handle=partial(self._handle, service),
                started=task_status.started,
            )
            await seam.serve_connections(sockets, carrier)
        finally:
            self._url = None
            self._addresses = []
            for bound in sockets:
                bound.close()

    def manual(self, url: str | None = None) -> dict[str, Any]:
        """The UTCP manual of the tools, as JSON, without credentials.

        Args:
            url: URL at which the tools are called; None: `url`.
        """
        return self._manual(url or self.url, None)

    @property
    def _scheme(self) -> str:
        return "ws" if self._ssl_context is None else "wss"

    def _refusal(self, served: str, handshake: Handshake) -> Refusal | None:
        refusal = self._admission.refusal(handshake, served)
        if refusal is not None:
            _log.info("server %s refused a client: %s", self.name, refusal.reason)
        return refusal

    async def _handle(self, service: Service, connection: Connection) -> None:
        handshake = connection.handshake
        # Where the client came to, so it can come back: a listener's own address may mean nothing to it. The query may
        # hold credentials, which have a place of their own.
        path = handshake.target.partition("?")[0]
        url = f"{self._scheme}://{handshake.host}{'' if path == '/' else path}"
        auth = self._admission.credentials(handshake)
        await Session(connection, service, partial(self._manual, url, auth)).run()

    def _manual(self, url: str, auth: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "utcp_version": utcp_version,
            "manual_version": "1.0.0",
            "tools": [tool.described(url, auth) for tool in self._tools.values()],
        }


def _shown(host: str) -> str:
    """The host of a URL that leads to what is served."""
    address = host_of(host) or host
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared
    return f"[{reachable}]" if ":" in reachable else reachable
