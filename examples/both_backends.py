"""A library function that calls tools, written once and tested on asyncio and on trio.

Run its tests: ``python -m pytest examples/both_backends.py``; nox does so on every Python. The function below uses
anyio and nothing of an event loop, so the caller chooses one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import anyio
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from utcp_websocket_anyio import AnyioUtcpClient, WebSocketError, open_client

# The library


async def first_answer(client: AnyioUtcpClient, tools: Sequence[str], arguments: dict[str, Any]) -> Any:
    """Ask several tools the same at once, and take the first answer.

    The other calls are cancelled. A tool that fails is out of the race; only if all fail, the last one's error is
    raised. Cancelling this cancels every call.
    """
    answers: list[Any] = []
    failures: list[WebSocketError] = []

    async def ask(tool: str) -> None:
        try:
            answers.append(await client.call_tool(tool, arguments))
        except WebSocketError as error:
            failures.append(error)
        else:
            task_group.cancel_scope.cancel()

    async with anyio.create_task_group() as task_group:
        for tool in tools:
            task_group.start_soon(ask, tool)
    if answers:
        return answers[0]
    raise failures[-1]


# Its tests. anyio's pytest plugin runs each on every backend that the `anyio_backend` fixture names.

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def url() -> Iterator[str]:
    """An endpoint in a thread of its own, so that it is the same for both: it answers after its path's seconds."""

    def answer(connection: ServerConnection) -> None:
        assert connection.request is not None
        seconds = connection.request.path.removeprefix("/")
        # The loser of the race has hung up.
        with suppress(ConnectionClosed):
            for message in connection:
                if seconds == "never":
                    return
                time.sleep(float(seconds))
                connection.send(f"{message!s} after {seconds} s")

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
async def client(url: str) -> AsyncIterator[AnyioUtcpClient]:
    def tool(name: str, path: str) -> dict[str, Any]:
        template = {"call_template_type": "websocket", "name": name, "url": f"{url}/{path}", "message": "{{args.text}}"}
        return {"name": name, "tool_call_template": template}

    tools = [tool("quick", "0"), tool("slow", "0.5"), tool("broken", "never")]
    manual = {"name": "m", "call_template_type": "websocket", "url": url, "tools": tools}
    async with open_client({"manual_call_templates": [manual]}) as client:
        yield client


async def test_the_quickest_tool_answers(client: AnyioUtcpClient) -> None:
    with anyio.fail_after(10):
        assert await first_answer(client, ["m.slow", "m.quick"], {"text": "hello"}) == "hello after 0 s"


async def test_a_tool_that_fails_is_out_of_the_race(client: AnyioUtcpClient) -> None:
    with anyio.fail_after(10):
        assert await first_answer(client, ["m.broken", "m.slow"], {"text": "hello"}) == "hello after 0.5 s"


async def test_when_all_tools_fail_so_does_the_call(client: AnyioUtcpClient) -> None:
    with anyio.fail_after(10), pytest.raises(WebSocketError):
        await first_answer(client, ["m.broken", "m.broken"], {"text": "hello"})


async def test_a_deadline_cancels_every_call(client: AnyioUtcpClient) -> None:
    with anyio.move_on_after(0.1) as scope:
        await first_answer(client, ["m.slow", "m.slow"], {"text": "hello"})
    assert scope.cancelled_caught
