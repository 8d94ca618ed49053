"""Tools in a web application: one client for its whole life, shared by all requests.

Install `fastapi` and `uvicorn`, and run it as it is, which serves a few tools of its own and the application at port
8000; or set ``TOOLS_URL`` to an endpoint of yours and run it with ``uvicorn fastapi_app:app``.

    curl -X POST localhost:8000/tools/service.add -H 'content-type: application/json' -d '{"a": 1, "b": 2}'
    curl -N localhost:8000/count/5
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse

from utcp_websocket_anyio import ToolServer, WebSocketError, WebSocketTimeoutError, open_client

server = ToolServer("service")


@server.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool
async def count(to: int) -> AsyncIterator[int]:
    """Count up."""
    for number in range(to):
        yield number


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The client's connections belong to this block: they are opened once, reused by all requests, and closed when the
    # application ends.
    manual = {"name": "service", "call_template_type": "websocket", "url": os.environ["TOOLS_URL"]}
    async with open_client({"manual_call_templates": [manual]}) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/tools/{name}")
async def call(name: str, arguments: dict[str, Any], request: Request) -> Any:
    """Call a tool."""
    client = request.app.state.client
    if await client.config.tool_repository.get_tool(name) is None:
        raise HTTPException(404, f"there is no tool {name}")
    return await client.call_tool(name, arguments)


@app.get("/count/{to}")
async def stream(to: int, request: Request) -> StreamingResponse:
    """Pass a tool's stream on, as it comes. A browser that goes away ends it."""

    async def lines() -> AsyncIterator[str]:
        # It needs no `aclosing`: a stream that is dropped is over.
        async for item in request.app.state.client.call_tool_streaming("service.count", {"to": to}):
            yield f"{item}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.exception_handler(WebSocketError)
async def failed(request: Request, error: WebSocketError) -> JSONResponse:  # noqa: ARG001 - as FastAPI calls it
    """The text of an error says what happened, and shows no credentials."""
    status = 504 if isinstance(error, WebSocketTimeoutError) else 502
    return JSONResponse({"error": str(error)}, status_code=status)


def main(port: int = 8000) -> None:
    # The tools' server has an event loop of its own, in another thread.
    with start_blocking_portal("trio") as portal:
        future, _ = portal.start_task(server.serve, "127.0.0.1", 0)
        os.environ["TOOLS_URL"] = server.url
        uvicorn.run(app, port=port)
        future.cancel()


if __name__ == "__main__":
    main()
