from __future__ import annotations

from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketToolError

from .servers.pylsp import pylsp
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio

TEXT = "import os\nimport json\njson.dumps(undefined)\n"


@pytest.fixture(scope="module")
def port(start: Any) -> int:
    found: int = start(pylsp)
    return found


def uri(name: str) -> str:
    return f"file:///nowhere/{name}.py"


async def settle(tools: Tools, name: str) -> list[Any]:
    """Wait for the diagnostics of the last text: the server ends when it cannot push them to who has left."""
    found: list[Any] = await tools.call("diagnose", uri=uri(name), text=TEXT)
    return found


async def test_hover_answers_after_the_initialize_handshake(port: int) -> None:
    with anyio.fail_after(30):
        async with open_tools("pylsp", {"PORT": port}) as tools:
            shown = await tools.call("hover", uri=uri("hover"), text=TEXT, line=2, character=6)
            await settle(tools, "hover")
    assert "Serialize ``obj``" in shown["value"]


async def test_diagnostics_that_are_pushed_are_the_answer_for_their_version(port: int) -> None:
    with anyio.fail_after(30):
        async with open_tools("pylsp", {"PORT": port}) as tools:
            first = await tools.call("diagnose", uri=uri("lint"), text=TEXT)
            second = await tools.call("diagnose", uri=uri("lint"), text="import os\n")
            third = await tools.call("diagnose", uri=uri("lint"), text="'fine'\n")
    assert [item["message"] for item in first] == ["'os' imported but unused", "undefined name 'undefined'"]
    assert [item["message"] for item in second] == ["'os' imported but unused"]
    assert third == []


async def test_pushed_diagnostics_reach_their_own_subscriber_between_answers(port: int) -> None:
    seen: list[str] = []
    pushed = anyio.Event()

    async def watch(tools: Tools) -> None:
        async for published in tools.stream("watch"):
            seen.append(published["uri"])
            pushed.set()

    with anyio.fail_after(40):
        async with open_tools("pylsp", {"PORT": port}) as tools, anyio.create_task_group() as group:
            await settle(tools, "before")
            group.start_soon(watch, tools)
            await anyio.wait_all_tasks_blocked()
            shown = await tools.call("hover", uri=uri("between"), text=TEXT, line=1, character=8)
            assert "JSON" in shown["value"]
            while not pushed.is_set():
                symbols = await tools.call(
                    "request", method="textDocument/documentSymbol", params={"textDocument": {"uri": uri("between")}}
                )
                assert [symbol["name"] for symbol in symbols] == ["os", "json"]
    assert seen == [uri("between")]


async def test_requests_at_once_get_the_answers_to_their_numbers(port: int) -> None:
    shown: dict[int, str] = {}

    async def hover(tools: Tools, n: int) -> None:
        text = f"def function_{n}():\n    'number {n} of many'\nfunction_{n}\n"
        answer = await tools.call("hover", uri=uri(f"many_{n}"), text=text, line=2, character=3)
        shown[n] = answer["value"]
        await settle(tools, f"many_{n}")

    with anyio.fail_after(40):
        async with open_tools("pylsp", {"PORT": port}) as tools, anyio.create_task_group() as group:
            for n in range(8):
                group.start_soon(hover, tools, n)
    assert {n: f"number {n} of many" in text for n, text in shown.items()} == dict.fromkeys(range(8), True)


async def test_an_error_answer_fails_its_call_and_null_is_a_result(port: int) -> None:
    with anyio.fail_after(30):
        async with open_tools("pylsp", {"PORT": port}) as tools:
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("request", method="textDocument/noSuchThing")
            answer = await tools.call("request", method="shutdown", params={})
    assert raised.value.response["error"]["code"] == -32601
    assert answer is None
