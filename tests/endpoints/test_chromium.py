from __future__ import annotations

import base64
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketConnectionError, WebSocketToolError

from .servers.chromium import Chromium, chromium
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def browser(start: Any) -> Chromium:
    found: Chromium = start(chromium)
    return found


def tools_of(browser: Chromium) -> Any:
    return open_tools("chromium", {"PORT": browser.port, "BROWSER": browser.browser})


async def test_a_page_is_attached_to_at_the_address_that_the_browser_lists(browser: Chromium) -> None:
    with anyio.fail_after(30):
        page = await browser.new_page()
        (listed,) = [target for target in await browser.pages() if target["id"] == page]
        assert listed["webSocketDebuggerUrl"] == f"ws://127.0.0.1:{browser.port}/devtools/page/{page}"
        async with tools_of(browser) as tools:
            answer = await tools.call("evaluate", page=page, expression="Promise.resolve({a: [1, null, '{{uuid}}']})")
            assert answer["value"] == {"a": [1, None, "{{uuid}}"]}
            assert await tools.call("evaluate", page=page, expression="undefined") == {"type": "undefined"}
            assert await tools.call("close", page=page) is True


async def test_an_answer_of_three_megabytes_arrives_whole(browser: Chromium) -> None:
    with anyio.fail_after(30):
        async with tools_of(browser) as tools:
            page = await tools.call("open", url="about:blank")
            answer = await tools.call("evaluate", page=page, expression="'0123456789'.repeat(300_000)")
            await tools.call("close", page=page)
    assert answer["value"] == "0123456789" * 300_000


async def test_calls_at_once_get_their_own_answers_whatever_order_they_come_in(browser: Chromium) -> None:
    async def evaluate(tools: Tools, tool: str, page: str, n: int) -> None:
        # Each waits for the next one, so that the last one sent is answered first.
        expression = f"waiting[{n + 1}].then(() => {{ done[{n}](); return {n}; }})"
        assert (await tools.call(tool, page=page, expression=expression))["value"] == n

    prepare = (
        "var done = [], waiting = [...Array(41).keys()].map((n) => new Promise((resolve) => done[n] = resolve)); 0"
    )
    with anyio.fail_after(30):
        async with tools_of(browser) as tools:
            for tool in ("evaluate", "evaluate_in_session"):
                page = await tools.call("open", url="about:blank")
                await tools.call("evaluate", page=page, expression=prepare)
                async with anyio.create_task_group() as group:
                    for n in range(40):
                        group.start_soon(evaluate, tools, tool, page, n)
                    await tools.call("evaluate", page=page, expression="done[40]()")
                await tools.call("close", page=page)


async def test_navigating_waits_for_the_event_that_the_page_is_loaded(browser: Chromium) -> None:
    with anyio.fail_after(30):
        async with tools_of(browser) as tools:
            page = await tools.call("open", url="about:blank")
            for title in ("one", "two"):
                loaded = await tools.call("navigate", page=page, url=f"data:text/html,<title>{title}</title>")
                assert loaded > 0
                assert (await tools.call("evaluate", page=page, expression="document.title"))["value"] == title
            picture = await tools.call("command", page=page, method="Page.captureScreenshot")
            assert base64.b64decode(picture["data"]).startswith(b"\x89PNG")
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("navigate", page=page, url="http://127.0.0.1:1/")
            assert raised.value.response["result"]["errorText"] == "net::ERR_UNSAFE_PORT"
            await tools.call("close", page=page)


async def test_console_messages_are_streamed_between_answers_until_the_page_is_closed(browser: Chromium) -> None:
    seen: list[Any] = []

    with anyio.fail_after(30):
        async with tools_of(browser) as tools:
            page = await tools.call("open", url="about:blank")
            await tools.call("evaluate", page=page, expression="console.log('before')")
            stream = tools.stream("console", page=page)
            async with aclosing(stream):
                assert (await anext(stream))[0]["value"] == "before"
                for n in range(300):
                    await tools.call("evaluate", page=page, expression=f"console.log({n}), {n}")
                await tools.call("close", page=page)
                seen = [args[0]["value"] async for args in stream]
    assert seen == list(range(300))


async def test_hundreds_of_events_may_come_before_an_answer(browser: Chromium) -> None:
    with anyio.fail_after(30):
        async with tools_of(browser) as tools:
            page = await tools.call("open", url="about:blank")
            await tools.call("command", page=page, method="Runtime.enable")
            expression = "for (let n = 0; n < 3000; n++) console.log('x'.repeat(200)); 'done'"
            answer = await tools.call("evaluate", page=page, expression=expression)
            await tools.call("close", page=page)
    assert answer["value"] == "done"


async def test_exceptions_and_unknown_commands_and_pages_are_errors_of_their_own(browser: Chromium) -> None:
    with anyio.fail_after(30):
        async with tools_of(browser) as tools:
            page = await tools.call("open", url="about:blank")
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("evaluate", page=page, expression="noSuchName")
            thrown = raised.value.response["result"]["exceptionDetails"]["exception"]
            assert thrown["className"] == "ReferenceError"
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("command", page=page, method="No.such")
            assert raised.value.response["error"]["code"] == -32601
            with pytest.raises(WebSocketToolError):
                await tools.call("evaluate_in_session", page="no-such-page", expression="1")
            with pytest.raises(WebSocketConnectionError):
                await tools.call("evaluate", page="no-such-page", expression="1")
            await tools.call("close", page=page)
