"""FastAPI, served by uvicorn: one client for the application's life, and one for each request."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from utcp.utcp_client import UtcpClient

from frameworks.chain import SEEN, STEPS, STREAM, configuration, protocol_of
from utcp_websocket_anyio import open_client


def application(url: str, used: list[Any], left: list[str]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.client = await UtcpClient.create(config=configuration(url))
        used.append(app.state.client)
        yield
        await app.state.client.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/shared/{tool}")
    async def shared(tool: str, arguments: dict[str, Any]) -> Any:
        return await app.state.client.call_tool(f"m.{tool}", arguments)

    @app.post("/own/{tool}")
    async def own(tool: str, arguments: dict[str, Any]) -> Any:
        async with open_client(configuration(url)) as client:
            return await client.call_tool(f"m.{tool}", arguments)

    @app.post("/stock/{tool}")
    async def stock(tool: str, arguments: dict[str, Any]) -> Any:
        client = await UtcpClient.create(config=configuration(url))
        try:
            return await client.call_tool(f"m.{tool}", arguments)
        finally:
            await client.close()  # noqa: ASYNC102 - as an application would write it

    @app.post("/stream/{tool}")
    async def stream(tool: str, arguments: dict[str, Any]) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            try:
                async for item in app.state.client.call_tool_streaming(f"m.{tool}", arguments):
                    yield f"{item}\n"
            finally:
                left.append(tool)

        return StreamingResponse(lines())

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["shared", "own", "stock"])
def test_a_chain_of_calls(url: str, kind: str) -> None:
    with served(application(url, [], [])) as client:
        for name, arguments, expected in STEPS:
            assert client.post(f"/{kind}/{name}", json=arguments).json() == expected


def test_a_stream_and_a_client_that_disconnects(url: str) -> None:
    used: list[Any] = []
    left: list[str] = []
    SEEN.clear()
    with served(application(url, used, left)) as client:
        whole = client.post("/stream/count", json=STREAM[1])
        assert whole.text.split() == list(map(str, STREAM[2]))
        with client.stream("POST", "/stream/forever", json={}) as response:
            next(response.iter_lines())
        until(lambda: left == ["count", "forever"])
        # The stream is over on this side; its connection is shared, and good for others.
        protocol = protocol_of(used[0])
        until(lambda: protocol.statistics().active == 0)
        assert client.post("/shared/add", json={"a": 1, "b": 1}).json() == 2
    assert "closed" in repr(protocol)
    until(lambda: SEEN == ["begun", "ended"])


def test_the_example(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLS_URL", url)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import fastapi_app

    with served(fastapi_app.app) as client:
        # The server of these tests has tools of the same names.
        assert client.post("/tools/service.add", json={"a": 1, "b": 2}).json() == 3
        assert client.post("/tools/service.none", json={}).status_code == 404
        wrong = client.post("/tools/service.add", json={"a": "x"})
        assert wrong.status_code == 502
        assert "error" in wrong.json()
