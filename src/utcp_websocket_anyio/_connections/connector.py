"""Opening a connection: credentials, handshake, login, and trying again where that may help."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import anyio
from utcp.data.auth_implementations import OAuth2Auth

from .._net.auth import TokenCache, handshake_credentials, merge_headers
from .._net.security import add_query, check_websocket_url
from .._net.transport import Network
from .._templates.placeholders import RenderContext
from .._wire import Target, open_wire
from ..errors import WebSocketAuthError, WebSocketConnectionError, WebSocketError, WebSocketTimeoutError
from .connection import Connection
from .exclusive import ExclusiveConnection
from .multiplexed import MultiplexedConnection

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .._templates.plan import Endpoint, Plan
    from .statistics import Counters

__all__ = ["Connector"]

_log = logging.getLogger(__name__)

_BACKOFF_FIRST = 0.1
_BACKOFF_LONGEST = 3.0


class Connector:
    """Opens connections with the credentials and TLS settings of one protocol object.

    Args:
        network: The way to endpoints and token endpoints.
        counters: Where further attempts are counted.
        tokens: The access tokens, which the event loops of one protocol object share; None: a cache of its own.
    """

    def __init__(self, network: Network, counters: Counters, tokens: TokenCache | None = None) -> None:
        self.network = network
        self._counters = counters
        self._tokens = tokens or TokenCache()

    async def connect(self, endpoint: Endpoint, plan: Plan, tasks: TaskGroup) -> Connection:
        """Open a connection within `plan.connection_timeout` seconds, login included.

        Cancelling it leaves nothing open.

        Raises:
            WebSocketTimeoutError: Time ran out in the first attempt; in a later one the last error is raised.
            WebSocketAuthError: The credentials were refused.
            WebSocketConnectionError: There is no way to connect, or no attempt succeeded.
            WebSocketProtocolError: What was connected to does not speak the protocol asked for.
        """
        check_websocket_url(endpoint.url)
        failure: WebSocketError | None = None
        retries = 0
        with anyio.move_on_after(plan.connection_timeout):
            while True:
                try:
                    return await self._connect_once(endpoint, plan, tasks)
                except WebSocketConnectionError as error:
                    failure = error
                if not failure.transient or retries == plan.reconnect_attempts:
                    break
                retries += 1
                self._counters.reconnects += 1
                pause = backoff(retries)
                _log.info(
                    "connecting again in %.2f s: %s: %s",
                    pause,
                    endpoint.display_url,
                    failure.args[0],
                    extra={"endpoint": endpoint.display_url, "event": "retry", "attempt": retries},
                )
                await anyio.sleep(pause)
        raise failure or WebSocketTimeoutError(
            f"no connection within {plan.connection_timeout:g} s", phase="connect", endpoint=endpoint.display_url
        )

    async def _connect_once(self, endpoint: Endpoint, plan: Plan, tasks: TaskGroup) -> Connection:
        """One attempt; a second one with a fresh token when the server refuses the cached one."""
        auth = plan.auth
        if not isinstance(auth, OAuth2Auth):
            return await self._handshake(endpoint, plan, None, tasks)
        token = await self._tokens.token(auth, network=self.network, endpoint=endpoint.display_url)
        try:
            return await self._handshake(endpoint, plan, token, tasks)
        except WebSocketAuthError as error:
            if error.status != 401:
                raise
            self._tokens.discard(auth, token)
        token = await self._tokens.token(auth, network=self.network, endpoint=endpoint.display_url)
        return await self._handshake(endpoint, plan, token, tasks)

    async def _handshake(self, endpoint: Endpoint, plan: Plan, token: str | None, tasks: TaskGroup) -> Connection:
        credentials = handshake_credentials(plan.auth, token)
        settings = endpoint.settings
        target = Target(
            url=add_query(endpoint.url, credentials.query),
            endpoint=endpoint.display_url,
            headers=merge_headers(endpoint.headers, credentials.headers),
            subprotocols=tuple(template.text(RenderContext({}, "")) for template in settings.subprotocols),
            compression=settings.compression,
            compression_threshold=settings.compression_threshold,
            max_message_size=settings.max_message_size,
            network=self.network,
        )
        wire = await open_wire(target)
        kind = MultiplexedConnection if settings.multiplex else ExclusiveConnection
        connection = kind(wire, settings, display_url=endpoint.display_url, tasks=tasks)
        try:
            await connection.log_in()
        except BaseException:
            connection.abort("the login failed")
            raise
        return connection


def backoff(retry: int) -> float:
    """Seconds before the given retry, counted from 1: exponential, with full jitter in its upper half."""
    longest = min(_BACKOFF_FIRST * 2.0 ** (retry - 1), _BACKOFF_LONGEST)
    return longest * (0.5 + random.random() / 2)  # noqa: S311 - jitter needs no cryptography
