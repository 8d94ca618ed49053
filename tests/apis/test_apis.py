"""The manuals of examples/apis, driven against simulated peers of the APIs they are for, by the manual alone.

What a test may change of a manual is where the API is, and how long its times are: a peer has a day in an hour. A peer
enforces what the API does: signatures, heartbeats, acknowledgements and farewells show in its answers and counters.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import open_client

from .driving import Driver, operations_of
from .running import Running, peer_of

pytestmark = pytest.mark.anyio

MANUALS = Path(__file__).parents[2] / "examples" / "apis"
APIS = sorted(path.stem for path in (Path(__file__).parent / "ops").glob("*.json"))
LONGEST = 600
ASYNCIO_DEBUG = False  # it takes time that the peers count


@dataclass(frozen=True)
class Way:
    """How a manual is driven: by which client, and whether its calls share connections where it says so."""

    client: str
    shared: bool


STOCK, OWN = "stock client", "open_client"
WAYS = {
    f"{client}, {'shared' if shared else 'exclusive'}": Way(client, shared)
    for client in (STOCK, OWN)
    for shared in (True, False)
}


@pytest.mark.timeout(LONGEST + 60)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", APIS)
async def test_every_case_of_an_api_is_done_by_its_manual_alone(
    name: str, way: Way, anyio_backend_name: str, request: pytest.FixtureRequest
) -> None:
    if way.client == STOCK and anyio_backend_name == "trio":
        pytest.skip("the stock client is for asyncio")
    wanted = operations_of(name)
    chosen = request.config.getoption("--case")
    wrong = {}
    with peer_of(name) as peer, anyio.fail_after(LONGEST):
        manual = manual_for(name, wanted, peer, way)
        async with (
            open_tools(manual, way.client, variables_of(wanted, peer)) as tools,
            httpx.AsyncClient(base_url=peer.http, trust_env=False, timeout=30) as control,
        ):
            driver = Driver(tools, control, {operation["name"]: operation for operation in wanted["operations"]})
            for operation in wanted["operations"]:
                for case in operation["cases"]:
                    title = f"{operation['name']}: {case['name']}"
                    if chosen in title:
                        wrong[title] = await driver.run({"op": operation["name"], **case})
    faults = [f"{title}: {reason}" for title, reasons in wrong.items() for reason in reasons]
    assert not faults, "\n".join(["", *faults])


def manual_for(name: str, wanted: Mapping[str, Any], peer: Running, way: Way) -> dict[str, Any]:
    """A manual as it is, with the peer's address and times."""
    text = (MANUALS / f"{name}.json").read_text(encoding="utf-8")
    for address, place in wanted["addresses"].items():
        assert address in text
        text = text.replace(address, place.format(ws=peer.ws, http=peer.http))
    manual: dict[str, Any] = json.loads(text)
    for template in [manual, *(tool["tool_call_template"] for tool in manual["tools"])]:
        heartbeat = template.get("heartbeat") or {}
        for member in {"every", "timeout", "silence"} & heartbeat.keys():
            if not isinstance(heartbeat[member], str):
                heartbeat[member] /= wanted["factor"]
        if not way.shared and template.get("multiplex"):
            template["multiplex"] = False
    return manual


def variables_of(wanted: Mapping[str, Any], peer: Running) -> dict[str, str]:
    return {name: str(value).format(ws=peer.ws, http=peer.http) for name, value in wanted["config"].items()}


@asynccontextmanager
async def open_tools(manual: dict[str, Any], client: str, variables: Mapping[str, str]) -> AsyncIterator[Any]:
    """A manual's tools, as a user calls them."""
    named = {f"{manual['name']}_{name}": value for name, value in variables.items()}
    config = {"variables": named, "manual_call_templates": [manual]}
    if client == OWN:
        async with open_client(config) as opened:
            yield Tools(opened, manual["name"])
    else:
        created = await UtcpClient.create(config=config)
        try:
            yield Tools(created, manual["name"])
        finally:
            with anyio.move_on_after(10, shield=True):
                await created.close()


@dataclass(frozen=True)
class Tools:
    """The tools of a manual that a client knows."""

    client: UtcpClient
    manual: str

    async def call(self, tool: str, arguments: dict[str, Any], /) -> Any:
        return await self.client.call_tool(f"{self.manual}.{tool}", arguments)

    def stream(self, tool: str, arguments: dict[str, Any], /) -> Any:
        return self.client.call_tool_streaming(f"{self.manual}.{tool}", arguments)
