"""How long it takes from nothing to a first answer, or to the first refused connection: imports and all."""

from __future__ import annotations

import asyncio
import importlib

from measure import Outcome, arguments, without_logging

contender, name, url = arguments()
outcome = Outcome()


async def ask(package: str) -> bool:
    """Import, and call once; true if what happens is what should."""
    module = importlib.import_module(package)
    module.register()
    # No second try: how long the first one waits for it says nothing about how fast anything is.
    fields = {"reconnect_attempts": 0} if package == "utcp_websocket_anyio" else {}
    template = module.WebSocketCallTemplate(name="bench", url=url + "/echo", message="hello", **fields)
    protocol = module.WebSocketCommunicationProtocol()
    try:
        return bool(await protocol.call_tool(None, "bench.t", {}, template) == "hello") and name == "answer"
    except Exception as error:  # noqa: BLE001 - what the plugin raises is what its libraries raise
        return name == "refused" and isinstance(error, OSError | RuntimeError)
    finally:
        outcome.stop()
        await protocol.close()


async def ask_on_trio(package: str) -> bool:
    module = importlib.import_module(package)
    module.register()
    template = module.WebSocketCallTemplate(name="bench", url=url + "/echo", message="hello", reconnect_attempts=0)
    async with module.WebSocketCommunicationProtocol() as protocol:
        try:
            return bool(await protocol.call_tool(None, "bench.t", {}, template) == "hello") and name == "answer"
        except ConnectionError:
            return name == "refused"
        finally:
            outcome.stop()


outcome.start()
if contender == "utcp":
    importlib.import_module("utcp.utcp_client")
    outcome.stop()
    outcome.right = 1
elif contender.endswith("trio"):
    import trio

    outcome.check(trio.run(ask_on_trio, "utcp_websocket_anyio"), True)
else:
    package = "utcp_websocket" if contender.startswith("plugin") else "utcp_websocket_anyio"
    outcome.check(asyncio.run(ask(package)), True)
without_logging()
outcome.report()
