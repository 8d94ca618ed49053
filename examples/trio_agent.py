"""An agent on trio: several tools at once, one that is too slow, and a subscription that goes on beside them.

Run it: ``python examples/trio_agent.py``. It needs no network but loopback, takes some seconds, and Ctrl-C leaves it
at any moment, with every connection closed and nothing left running.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import trio

from utcp_websocket_anyio import AnyioUtcpClient, ToolServer, open_client

# What the agent can use. It could be anywhere; here it runs in the same process.

server = ToolServer("travel")


@server.tool(tags=["weather"])
async def weather(city: str) -> dict[str, Any]:
    """The weather of a city."""
    await trio.sleep(0.3)
    return {"city": city, "sky": "clear" if city == "Lisbon" else "rain", "celsius": 5 + len(city)}


@server.tool(tags=["trains"])
async def train(start: str, goal: str) -> str | None:
    """The next train between two cities; None if there is none."""
    await trio.sleep(0.5)
    return None if goal == "Reykjavik" else f"{start} 08:15 - {goal} 19:40"


@server.tool(tags=["history"])
async def chronicle(city: str) -> str:
    """The whole history of a city, which takes its time."""
    await trio.sleep(60)
    return f"{city} was founded..."


@server.tool(tags=["prices"])
async def prices(goal: str) -> AsyncIterator[int]:
    """The price of a ticket, each time it changes."""
    euros = 50 + 10 * len(goal)
    while True:
        yield euros
        euros += 7 if euros % 2 else -3
        await trio.sleep(0.4)


# The agent


async def watch(client: AnyioUtcpClient, goal: str) -> None:
    """The subscription: it ends when the task is cancelled, and gives its connection up then."""
    async with aclosing(client.call_tool_streaming("travel.prices", {"goal": goal})) as changes:
        async for euros in changes:
            print(f"      price of a ticket to {goal}: {euros} EUR")


async def use(client: AnyioUtcpClient, tool: str, arguments: dict[str, Any], findings: dict[str, Any]) -> None:
    findings[tool] = await client.call_tool(f"travel.{tool}", arguments)
    print(f"   {tool}({', '.join(map(str, arguments.values()))}) -> {findings[tool]}")


async def research(client: AnyioUtcpClient, goal: str) -> dict[str, Any]:
    """What the agent can find out within two seconds, everything at once."""
    findings: dict[str, Any] = {}
    with trio.move_on_after(2) as deadline:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, client, "weather", {"city": goal}, findings)
            nursery.start_soon(use, client, "train", {"start": "Paris", "goal": goal}, findings)
            nursery.start_soon(use, client, "chronicle", {"city": goal}, findings)
    if deadline.cancelled_caught:
        print("   chronicle was too slow: its call was cancelled")
    return findings


async def travel(client: AnyioUtcpClient) -> None:
    """The agent's task, with a subscription beside it for as long as that takes."""
    tools = await client.search_tools("weather trains prices")
    print(f"Found {', '.join(tool.name for tool in tools)}.\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, client, "Lisbon")
        for goal in ("Reykjavik", "Lisbon"):
            print(f"Can we go to {goal}?")
            findings = await research(client, goal)
            print(f"   => {'Yes' if findings.get('train') else 'No'}.\n")
        nursery.cancel_scope.cancel()


async def leave_at_ctrl_c(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            print("\nInterrupted.")
            scope.cancel()


async def main() -> bool:
    """Returns whether the agent came to its end."""
    finished = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_at_ctrl_c, nursery.cancel_scope)
        await nursery.start(server.serve, "127.0.0.1", 0)
        manual = {"name": "travel", "call_template_type": "websocket", "url": server.url}
        async with open_client({"manual_call_templates": [manual]}) as client:
            await travel(client)
            finished = True
        nursery.cancel_scope.cancel()
    print("Every connection is closed, and nothing is left running.")
    return finished


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # UTCP's core has it at INFO
    sys.exit(0 if trio.run(main) else 128 + signal.SIGINT)
