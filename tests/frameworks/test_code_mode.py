"""`code-mode`: Python code that calls tools, each call in an event loop of its own.

Its newest release (1.1.0) lacks the `close` that core 1.2 demands of a client, so its class cannot be created as it
is; the subclass here adds it. It has streams in its interface, but gives none to the code that it runs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

from utcp_code_mode import CodeModeUtcpClient

from frameworks.chain import STREAM, configuration, protocol_of


class Closable(CodeModeUtcpClient):
    async def close(self) -> None:
        await self._base_client.close()


CODE = """
five = m.add(a=2, b=3)
twenty = m.multiply(a=five, b=4)
text = m.repeat(text="ab", times=twenty)
forty = m.length(text=text)
return m.add(a=forty, b=2)
"""


def test_a_chain_of_calls_each_in_an_event_loop_of_its_own(url: str) -> None:
    async def main() -> None:
        client = await Closable.create(config=configuration(url))
        protocol = protocol_of(client._base_client)
        for _ in range(3):
            outcome = await client.call_tool_chain(CODE)
            assert outcome["result"] == 42, outcome["logs"]
        # The loops of these calls are gone, and so are their connections.
        statistics = protocol.statistics()
        assert (statistics.calls, statistics.errors) == (15, {})
        assert statistics.active == 0
        await client.close()
        assert "closed" in repr(protocol)

    asyncio.run(main())


def test_a_streaming_tool_gives_the_code_a_list(url: str) -> None:
    async def main() -> Any:
        client = await Closable.create(config=configuration(url))
        outcome = await client.call_tool_chain("return m.count(n=5)")
        streamed = [item async for item in client._base_client.call_tool_streaming("m.count", {"n": 5})]
        await client.close()
        return outcome["result"], streamed

    assert asyncio.run(main()) == (STREAM[2], STREAM[2])


def test_the_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "code_mode_agent.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[0] == "result: tea"
    assert "Traceback" not in done.stderr
