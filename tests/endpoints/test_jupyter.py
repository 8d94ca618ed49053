from __future__ import annotations

from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketAuthError, WebSocketToolError

from .servers.jupyter import Jupyter, jupyter
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start: Any) -> Jupyter:
    found: Jupyter = start(jupyter)
    return found


def tools_of(server: Jupyter, **other: str) -> Any:
    return open_tools("jupyter", {"PORT": server.port, "KERNEL": server.kernel, "TOKEN": server.token, **other})


async def test_output_comes_as_it_is_made_and_ends_when_the_kernel_is_idle(server: Jupyter) -> None:
    code = "import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.3)\n'the end'"
    with anyio.fail_after(30):
        async with tools_of(server) as tools:
            arrivals = [(anyio.current_time(), content) async for content in tools.stream("execute", code=code)]
    printed = "".join(content["text"] for _, content in arrivals[:-1])
    assert printed == "0\n1\n2\n"
    assert arrivals[-1][1]["data"] == {"text/plain": "'the end'"}
    assert arrivals[-1][0] - arrivals[0][0] > 0.4


async def test_a_call_gives_all_output_as_a_list(server: Jupyter) -> None:
    with anyio.fail_after(30):
        async with tools_of(server) as tools:
            assert await tools.call("execute", code="pass") == []
            outputs = await tools.call("execute", code="print('{{uuid}} ${PORT} \"quoted\"')")
    # The kernel may send what it prints in several pieces.
    assert "".join(output["text"] for output in outputs) == '{{uuid}} ${PORT} "quoted"\n'
    assert {output["name"] for output in outputs} == {"stdout"}


async def test_an_exception_in_the_kernel_fails_the_call_after_what_was_printed(server: Jupyter) -> None:
    with anyio.fail_after(30):
        async with tools_of(server) as tools:
            seen: list[str] = []
            with pytest.raises(WebSocketToolError) as raised:
                async for content in tools.stream("execute", code="print('before', flush=True)\n1/0"):
                    seen.append(content["text"])
            assert "".join(seen) == "before\n"
            assert raised.value.response["content"]["ename"] == "ZeroDivisionError"
            with pytest.raises(WebSocketToolError):
                await tools.call("evaluate", expression="no_such_name")
            assert await tools.call("evaluate", expression="6 * 7") == "42"


async def test_calls_at_once_share_a_connection_and_get_their_own_answers(server: Jupyter) -> None:
    values: dict[int, str] = {}

    async def evaluate(tools: Tools, n: int) -> None:
        values[n] = await tools.call("evaluate", expression=f"{n} * {n}")

    with anyio.fail_after(30):
        async with tools_of(server) as tools:
            async with anyio.create_task_group() as group:
                for n in range(30):
                    group.start_soon(evaluate, tools, n)
            assert await server.connections() == 1
    assert values == {n: str(n * n) for n in range(30)}


async def test_another_kind_of_request_is_answered_while_output_is_still_coming(server: Jupyter) -> None:
    with anyio.fail_after(30):
        async with tools_of(server) as tools:
            code = "import time\nprint('first', flush=True)\ntime.sleep(0.2)\nprint('second', flush=True)"
            seen: list[str] = []
            async for content in tools.stream("execute", code=code):
                if not seen:
                    assert "print" in await tools.call("complete", code="pri", cursor_pos=3)
                seen.append(content["text"])
    assert "".join(seen) == "first\nsecond\n"


async def test_a_wrong_token_is_an_authentication_error(server: Jupyter) -> None:
    with anyio.fail_after(30):
        async with tools_of(server, TOKEN="wrong") as tools:
            with pytest.raises(WebSocketAuthError) as raised:
                await tools.call("evaluate", expression="1")
    assert raised.value.status == 403
    assert "wrong" not in str(raised.value)
