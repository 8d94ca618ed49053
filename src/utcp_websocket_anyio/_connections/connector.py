"""Opening a connection: `prepare`, credentials, handshake, login, and trying again where that may help.

What `prepare` captures is used for one handshake only: each attempt runs it again, so that a URL that works once is
never used twice.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
from utcp.data.auth_implementations import OAuth2Auth

from .._net.auth import TokenCache, handshake_credentials, merge_headers
from .._net.security import add_query, check_captured_url
from .._net.transport import Network
from .._wire import Target, open_wire
from ..errors import (
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketTimeoutError,
)
from .connection import Connection, MoveAskedError
from .exclusive import ExclusiveConnection
from .multiplexed import MultiplexedConnection
from .steps import Captures, Moment, StepFailed, WaitNote, login_error, run_steps

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .._templates.placeholders import RenderContext
    from .._templates.plan import Endpoint, Plan
    from .statistics import Counters
    from .trace import Trace

__all__ = ["Connector", "backoff"]

_log = logging.getLogger(__name__)

_LOST = 1006
"""The code of a close without a close frame (RFC 6455, section 7.1.5)."""

_FIRST_BACKOFF = 0.1
_MAX_BACKOFF = 3.0


class Connector:
    """Opens connections with the credentials and TLS settings of one protocol object.

    Args:
        network: The way to endpoints, token endpoints and HTTP servers.
        counters: Counters of further attempts.
        tokens: The access tokens, which the event loops of one protocol object share; None: a cache of its own.
        trace: Observer of every message; None: no observer.
    """

    def __init__(
        self, network: Network, counters: Counters, tokens: TokenCache | None = None, *, trace: Trace | None = None
    ) -> None:
        self.network = network
        self._counters = counters
        self._tokens = tokens or TokenCache()
        self.trace = trace

    async def connect(
        self,
        endpoint: Endpoint,
        plan: Plan,
        context: RenderContext,
        tasks: TaskGroup,
        *,
        carried: Mapping[str, Any] | None = None,
    ) -> Connection:
        """Open a connection within `plan.connection_timeout` seconds, login included.

        Cancelling it leaves nothing open.

        Args:
            endpoint: Destination of the connection.
            plan: Plan of the call that opens it.
            context: The arguments of the call that needs it.
            tasks: Task group of its tasks.
            carried: Values captured by the connection that it replaces.

        Raises:
            WebSocketTimeoutError: Time ran out in the first attempt; in a later one the last error is raised.
            WebSocketAuthError: The credentials were refused, or a login.
            WebSocketConnectionError: There is no way to connect, or no attempt succeeded.
            WebSocketProtocolError: What was connected to does not speak the protocol asked for.
        """
        failure: WebSocketError | None = None
        is_replacement = carried is not None
        way = plan
        retries = 0
        note = WaitNote()
        note.begin("the connection")
        with anyio.move_on_after(plan.connection_timeout) as scope:
            while True:
                try:
                    attempt = _Attempt(self, endpoint, way, context, tasks=tasks, carried=carried, note=note)
                    attempt.is_replacement = is_replacement
                    return await self._connect_once(attempt)
                except WebSocketConnectionError as error:
                    failure = error
                except MoveAskedError as asked:
                    if is_replacement:
                        # Its stream knows how it goes on, and makes the next attempt.
                        raise
                    way, carried = asked.applied_to(plan)
                    failure = WebSocketConnectionError(asked.args[0], endpoint=endpoint.display_url, transient=True)
                except WebSocketClosedError as error:
                    if error.code != _LOST:
                        # The server has said why, and would say it again.
                        raise
                    reason = "the connection was lost during the login"
                    failure = WebSocketConnectionError(reason, endpoint=endpoint.display_url, transient=True)
                if not failure.transient or retries == plan.reconnect_attempts:
                    break
                retries += 1
                self._counters.reconnects += 1
                pause = max(backoff(retries), failure.retry_after or 0)
                if failure.retry_after is not None and anyio.current_time() + pause >= scope.deadline:
                    # The server will not be ready before the time is up.
                    break
                _log.info(
                    "connecting again in %.2f s: %s: %s",
                    pause,
                    endpoint.display_url,
                    failure.args[0],
                    extra={"endpoint": endpoint.display_url, "event": "retry", "attempt": retries},
                )
                await anyio.sleep(pause)
        raise failure or WebSocketTimeoutError(
            f"timed out after {plan.connection_timeout:g} s while waiting for {note.told()}",
            phase="connect",
            endpoint=endpoint.display_url,
        )

    async def _connect_once(self, attempt: _Attempt) -> Connection:
        """One attempt; a second handshake with a fresh token when the server refuses the cached one."""
        await attempt.prepare()
        auth = attempt.plan.auth
        if not isinstance(auth, OAuth2Auth):
            return await attempt.handshake(None)
        attempt.note.begin("the access token")
        display_url = attempt.endpoint.display_url
        token = await self._tokens.token(auth, network=self.network, endpoint=display_url)
        try:
            return await attempt.handshake(token)
        except WebSocketAuthError as error:
            if error.status != 401:
                raise
            self._tokens.discard(auth, token)
        token = await self._tokens.token(auth, network=self.network, endpoint=display_url)
        # What was prepared is used for one handshake only.
        await attempt.prepare()
        return await attempt.handshake(token)


class _Attempt:
    """One attempt to open a connection."""

    def __init__(
        self,
        connector: Connector,
        endpoint: Endpoint,
        plan: Plan,
        context: RenderContext,
        *,
        tasks: TaskGroup,
        carried: Mapping[str, Any] | None,
        note: WaitNote,
    ) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.note = note
        self._connector = connector
        self._tasks = tasks
        self._captured = Captures({} if carried is None else carried)
        self.is_replacement = False
        self._requested: list[str] = []
        self._call = context.for_step(0, captured=self._captured)
        # The connection's moments have a uuid of their own; URL and headers have the call's.
        self._context = context.for_handshake(self._captured)

    async def prepare(self) -> None:
        """Run `prepare`.

        Raises:
            WebSocketAuthError: A step was rejected, or answered with 401 or 403.
            WebSocketConnectionError: Another step failed.
        """
        steps = self.plan.settings.prepare
        if not steps:
            return
        moment = Moment(
            context=lambda: self._context.for_step(0, captured=self._captured),
            captured=self._captured,
            send=_no_connection,
            receive=_no_connection,
            network=self._connector.network,
            display_url=self.endpoint.display_url,
            note=self.note,
            requested=self._requested,
            trace=self._connector.trace,
        )
        try:
            await run_steps(steps, moment)
            return
        except StepFailed as error:
            failed = error
        raise login_error(failed, self.endpoint.display_url)

    async def handshake(self, token: str | None) -> Connection:
        """Connect and log in."""
        display_url, settings = self.endpoint.display_url, self.plan.settings
        credentials = handshake_credentials(self.plan.auth, token)
        handshake = self.plan.handshake(self._call)
        if self.plan.url.origin is None:
            # What a remote server answered is no better than what its manual may say.
            for source in (*self._captured.sources, *self._requested):
                check_captured_url(handshake.url, source, "url")
        for url in (*self._requested, handshake.url):
            self._captured.may_come_from(url)
        self.note.begin("the handshake")
        target = Target(
            url=add_query(handshake.url, credentials.query),
            endpoint=display_url,
            headers=merge_headers(handshake.headers, credentials.headers),
            subprotocols=handshake.subprotocols,
            compression=settings.compression,
            compression_threshold=settings.compression_threshold,
            max_message_size=settings.max_message_size,
            network=self._connector.network,
        )
        wire = await open_wire(target)
        if self._connector.trace is not None:
            self._connector.trace("note", f"connected to {display_url}", "")
        kind = MultiplexedConnection if settings.multiplex else ExclusiveConnection
        connection = kind(
            wire,
            settings,
            display_url=display_url,
            tasks=self._tasks,
            network=self._connector.network,
            context=self._context,
            captured=self._captured,
            trace=self._connector.trace,
        )
        if self.is_replacement and self.plan.opens_its_own and connection.is_shared:
            connection.begin_replaying()
        if settings.on_connect:
            try:
                keeps_skipped = self.is_replacement and self.plan.message_filter is not None
                await connection.log_in(settings.on_connect, self.note, keeps_skipped=keeps_skipped)
            except BaseException:
                connection.abort("the login failed")
                raise
        if isinstance(connection.error, MoveAskedError):
            # With the last message of the login.
            raise copy.copy(connection.error)
        self._captured.take_back()
        return connection


async def _no_connection(data: str | bytes = b"") -> Any:  # noqa: ASYNC124 - stands in for one that sends
    raise AssertionError(f"a step of prepare has no connection to use ({len(data)} bytes)")


def backoff(retry: int) -> float:
    """Seconds before the given retry, counted from 1: exponential, with full jitter in its upper half."""
    # Bounded before it is raised to a power: 2.0 ** 1024 overflows.
    longest = min(_FIRST_BACKOFF * 2.0 ** min(retry - 1, 10), _MAX_BACKOFF)
    return longest * (0.5 + random.random() / 2)  # noqa: S311 - jitter needs no cryptography
