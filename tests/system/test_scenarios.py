"""`scenarios.json` with the published plugin and with this one: what both do, and where the other differs.

The page `docs/how-to/moving.md` has a line for each difference. The published plugin runs on asyncio.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import utcp_websocket
from support.backends import BACKENDS
from support.peers import Peer, peer

import utcp_websocket_anyio
from utcp_websocket_anyio import (
    MissingArgumentError,
    WebSocketClosedError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio

PUBLISHED = "utcp-websocket 1.2.1"
DATA = json.loads(Path(__file__).with_name("scenarios.json").read_text(encoding="utf-8"))
SCENARIOS: list[dict[str, Any]] = DATA["scenarios"]
KINDS = {
    WebSocketTimeoutError: "timeout",
    WebSocketClosedError: "closed",
    WebSocketProtocolError: "protocol",
    MissingArgumentError: "missing argument",
}
NAME = re.compile(r"<(\w+)(?: ([\w-]+))?>")

_PLUGINS = [pytest.param((BACKENDS[0].values[0], utcp_websocket), id="published")] + [
    pytest.param((backend.values[0], utcp_websocket_anyio), id=f"ours-{backend.id}") for backend in BACKENDS
]


@pytest.fixture(params=_PLUGINS)
def plugin(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(plugin: Any) -> Any:
    return plugin[0]


@dataclass
class Endpoint:
    """The server of a scenario."""

    scenario: dict[str, Any]
    opened: int = 0
    asked: int = 0
    closed: dict[int, anyio.Event] = field(default_factory=dict)
    over: list[anyio.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.over = [anyio.Event() for _ in self.scenario["steps"]]
        self.closed = {number: anyio.Event() for number in range(1, 10)}

    async def __call__(self, peer: Peer) -> None:
        await peer.read_request()
        if peer.request.startswith("POST"):
            await self._answer_request(peer)
            raise anyio.EndOfStream
        scripts = self.scenario["connections"]
        script = scripts[min(self.opened, len(scripts) - 1)]
        self.opened += 1
        number = self.opened
        await peer.handshake()
        bound: dict[str, str] = {"path": peer.request.split(" ")[1]}
        for line in script:
            await self._play(peer, line, bound)
            if line.startswith("* server closes"):
                self.closed[number].set()

    async def _answer_request(self, peer: Peer) -> None:
        await peer.receive_exactly(int(peer.header("Content-Length") or 0))
        body = json.dumps(self.scenario["requests"][self.asked]).encode()
        self.asked += 1
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        await peer.send_raw(head.encode() + body)

    async def _play(self, peer: Peer, line: str, bound: dict[str, str]) -> None:
        kind, _, text = line.partition(" ")
        if kind == ">":
            said = await peer.receive_text()
            if named := NAME.fullmatch(text):
                bound[named[1]] = said
            else:
                assert json.loads(said) == json.loads(text)
        elif kind == "<":

            def fill(found: re.Match[str]) -> str:
                return (peer.header(found[2]) or "") if found[1] == "header" else bound.get(found[1], found[0])

            await peer.send(NAME.sub(fill, text))
        elif text.startswith("after step"):
            await self.over[int(text.split()[-1]) - 1].wait()
        elif text.startswith("server closes"):
            await peer.close(int(text.split()[-1]))


class Caller:
    """A plugin's protocol object, and what the scenario has it do."""

    def __init__(self, module: Any, protocol: Any, fields: dict[str, Any], endpoint: Endpoint) -> None:
        self._module = module
        self._protocol = protocol
        self._fields = fields
        self._endpoint = endpoint

    async def take(self, step: dict[str, Any]) -> Any:
        """The result of a step."""
        self._fields.update(step.get("fields", {}))
        template = self._module.WebSocketCallTemplateSerializer().validate_dict(copy.deepcopy(self._fields))
        name = f"{self._fields['name']}.tool"
        if "call" in step:
            return await self._protocol.call_tool(None, name, step["call"], template)
        if "stream" in step:
            items: list[Any] = []
            async with aclosing(self._protocol.call_tool_streaming(None, name, step["stream"], template)) as stream:
                async for item in stream:
                    items.append(item)
                    if len(items) == step.get("take"):
                        break
            return items
        if "discover" in step:
            found = await self._protocol.register_manual(None, template)
            return [tool.name for tool in found.manual.tools]
        results: list[Any] = [None] * len(step["at_once"])

        async def one(index: int, arguments: dict[str, Any]) -> None:
            results[index] = await self._outcome({"call": arguments})

        async with anyio.create_task_group() as task_group:
            for index, arguments in enumerate(step["at_once"]):
                task_group.start_soon(one, index, arguments)
        return results

    async def _outcome(self, step: dict[str, Any]) -> Any:
        """A result, or what kind of error came instead."""
        try:
            return await self.take(step)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            return {"error": KINDS.get(type(error), type(error).__name__)}

    async def steps(self) -> AsyncGenerator[tuple[dict[str, Any], Any]]:
        """Each step with its outcome."""
        for number, step in enumerate(self._endpoint.scenario["steps"]):
            if "closed" in step:
                await self._endpoint.closed[step["closed"]].wait()
            else:
                yield step, await self._outcome(step)
            self._endpoint.over[number].set()


@asynccontextmanager
async def caller(module: Any, endpoint: Endpoint) -> AsyncIterator[Caller]:
    """A plugin that knows the endpoint."""
    async with peer(endpoint) as url:
        host = url.partition("://")[2].strip("/")

        def local(text: str) -> str:
            return text.replace("http://127.0.0.1/", f"http://{host}/")

        fields = json.loads(local(json.dumps(endpoint.scenario["fields"])))
        fields = {"name": "manual", "call_template_type": "websocket", "url": url, **fields}
        if module is utcp_websocket_anyio:
            async with module.WebSocketCommunicationProtocol() as protocol:
                yield Caller(module, protocol, fields, endpoint)
            return
        protocol = module.WebSocketCommunicationProtocol()
        try:
            yield Caller(module, protocol, fields, endpoint)
        finally:
            with anyio.CancelScope(shield=True):
                await protocol.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
async def test_a_scenario_goes_as_the_data_say(plugin: Any, scenario: dict[str, Any]) -> None:
    module = plugin[1]
    with anyio.fail_after(120):
        async with caller(module, Endpoint(scenario)) as driver, aclosing(driver.steps()) as steps:
            async for step, outcome in steps:
                wanted = step.get(PUBLISHED, step["should"]) if module is utcp_websocket else step["should"]
                if wanted == {"other": True}:
                    assert outcome != step["should"]
                else:
                    assert outcome == wanted


async def test_it_runs_on_trio(plugin: Any) -> None:
    scenario = {"fields": {}, "connections": [["> <request>", "< <request>"]], "steps": [{"call": {"n": 1}}]}
    async with caller(plugin[1], Endpoint(scenario)) as driver:
        assert await driver.take({"call": {"n": 1}}) == '{"n": 1}'


def test_it_is_the_published_plugin_that_is_compared() -> None:
    assert f"utcp-websocket {importlib.metadata.version('utcp-websocket')}" == PUBLISHED


def test_every_difference_has_its_line_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "moving.md").read_text(encoding="utf-8")
    different = [
        scenario["situation"] for scenario in SCENARIOS if any(PUBLISHED in step for step in scenario["steps"])
    ]
    assert len(different) > 10
    assert [situation for situation in different if f"| {situation} |" not in page] == []
