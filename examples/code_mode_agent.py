"""An agent that writes code: `code-mode` runs it, and each tool is a plain function in it.

Install `code-mode`. It calls every tool in an event loop of its own, in a thread; one stock client with this plugin
serves them all. In the place of a model, the code is written here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from anyio.from_thread import start_blocking_portal
from utcp_code_mode import CodeModeUtcpClient

from utcp_websocket_anyio import ToolServer

server = ToolServer("shop")
STOCK = {"tea": (4, 120), "coffee": (7, 0), "cocoa": (5, 30)}


@server.tool
def products() -> list[str]:
    """The names of all products."""
    return list(STOCK)


@server.tool
def price(product: str) -> int:
    """What a product costs."""
    return STOCK[product][0]


@server.tool
def in_stock(product: str) -> int:
    """How many of a product there are."""
    return STOCK[product][1]


# The sandbox has no loops over what is not known to it, so this is written with functions.
CODE = """
available = filter(lambda name: shop.in_stock(product=name), shop.products())
cheapest = min(available, key=lambda name: shop.price(product=name))
print("the cheapest one costs", shop.price(product=cheapest))
return cheapest
"""


class Client(CodeModeUtcpClient):
    """`code-mode` 1.1.0 lacks the `close` that core 1.2 asks for."""

    async def close(self) -> None:
        await self._base_client.close()


async def agent(url: str) -> dict[str, Any]:
    manual = {"name": "shop", "call_template_type": "websocket", "url": url}
    client = await Client.create(config={"manual_call_templates": [manual]})
    try:
        return await client.call_tool_chain(CODE)
    finally:
        await client.close()


def main() -> None:
    with start_blocking_portal("trio") as portal:
        future, _ = portal.start_task(server.serve, "127.0.0.1", 0)
        outcome = asyncio.run(agent(server.url))
        print("result:", outcome["result"])
        print("printed:", *outcome["logs"])
        future.cancel()


if __name__ == "__main__":
    main()
