"""The errors that the protocol object raises: this package's own, with nothing of other libraries in them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.peers import echo_server
from support.protocol import entered, template

from utcp_websocket_anyio import WebSocketCommunicationProtocol, WebSocketError

pytestmark = pytest.mark.anyio

SECRET = "hunter2"


class StrangeError(LookupError):
    pass


STRANGE: list[Callable[[], Exception]] = [
    lambda: StrangeError(SECRET),
    lambda: UnicodeEncodeError("utf-8", SECRET, 0, 1, "surrogates not allowed"),
    lambda: OverflowError(SECRET),
    lambda: RecursionError(SECRET),
    lambda: TypeError(SECRET),
    lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]),
]


class Repository:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def get_tool(self, name: str) -> Any:
        raise self.error


class Caller:
    """A client whose repository raises."""

    def __init__(self, error: Exception) -> None:
        self.config = self
        self.tool_repository = Repository(error)


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("how", ["call", "stream"])
async def test_any_other_error_is_one_of_ours_that_shows_its_type(
    make: Callable[[], Exception], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = make()
    caller: Any = Caller(error)
    async with echo_server() as url, entered() as protocol:
        needs = template(url, message="{{args.x}}")
        with pytest.raises(WebSocketError, match=type(error).__name__) as raised:
            if how == "call":
                await protocol.call_tool(caller, "manual.t", {}, needs)
            else:
                await protocol.call_tool_streaming(caller, "manual.t", {}, needs).__anext__()
        assert type(raised.value) is WebSocketError
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)
        assert SECRET not in str(raised.value)
        assert protocol.statistics().errors == {"WebSocketError": 1}
        # It is in the log, with its place and without its text.
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert type(error).__name__ in record.getMessage()
        assert "test_boundary" in record.getMessage()
        assert SECRET not in record.getMessage()
        assert await protocol.call_tool(None, "manual.t", {"x": "fine"}, needs) == "fine"


async def test_a_template_that_was_changed_into_an_invalid_one_is_a_value_error() -> None:
    changed = template("ws://127.0.0.1:1/", message="x")
    changed.response_timeout = -1
    async with entered() as protocol:
        for use in (
            lambda: protocol.call_tool(None, "manual.t", {}, changed),
            lambda: protocol.call_tool_streaming(None, "manual.t", {}, changed).__anext__(),
            lambda: protocol.register_manual(None, changed),
        ):
            with pytest.raises(ValueError, match="response_timeout") as raised:
                await use()
            assert type(raised.value) is ValueError
            assert raised.value.__context__ is None


async def test_a_name_that_begins_with_its_manuals_is_whole() -> None:
    tool = {"name": "manual.status", "inputs": {"type": "object", "properties": {}}}
    async with echo_server() as url, entered() as protocol:
        own = template(url, message="{{tool_name}}", tools=[tool, {"name": "other"}])
        await protocol.register_manual(None, own)
        assert await protocol.call_tool(None, "manual.status", {}, own) == "manual.status"
        assert await protocol.call_tool(None, "manual.other", {}, own) == "other"
        assert await protocol.call_tool(None, "unknown.other", {}, own) == "other"


async def test_a_missing_argument_names_the_endpoint() -> None:
    async with echo_server() as url, entered() as protocol:
        needs = template(f"{url}secret?token=x", message="{{args.a}} {{args.b}}")
        with pytest.raises(ValueError, match=r"missing argument: a, b .*ws://127") as raised:
            await protocol.call_tool(None, "manual.t", {}, needs)
        assert "token" not in str(raised.value)


async def test_an_object_that_was_used_cannot_be_entered(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("on trio it cannot be used before")
    protocol = WebSocketCommunicationProtocol()
    with anyio.fail_after(30):
        async with echo_server() as url:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
            with pytest.raises(RuntimeError, match="create a new one"):
                await protocol.__aenter__()
            await protocol.close()
