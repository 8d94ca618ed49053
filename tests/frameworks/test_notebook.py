"""The stock client in the kernel of a notebook: one event loop that lives as long as the kernel, a task per cell."""

from __future__ import annotations

from typing import Any

from jupyter_client.manager import start_new_kernel

from frameworks.chain import STEPS, STREAM, configuration


def test_a_chain_of_calls_and_a_stream_in_cells(url: str) -> None:
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)

    def cell(source: str) -> Any:
        printed: list[str] = []

        def note(message: Any) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = client.execute_interactive(source, timeout=120, output_hook=note)
        assert reply["content"]["status"] == "ok", reply["content"]
        # A kernel shows log records of level INFO. Nothing else but results is printed.
        return "\n".join(line for line in "".join(printed).splitlines() if "[INFO]" not in line)

    try:
        cell("from utcp.utcp_client import UtcpClient")
        cell(f"client = await UtcpClient.create(config={configuration(url)!r})")
        for name, arguments, expected in STEPS:
            assert cell(f"print(await client.call_tool('m.{name}', {arguments!r}))") == str(expected)
        stream = f"print([item async for item in client.call_tool_streaming('m.count', {STREAM[1]!r})])"
        assert cell(stream) == str(STREAM[2])
        # An interrupted cell, a left stream, and the next cell.
        cell("async for item in client.call_tool_streaming('m.forever', {}):\n    break")
        assert cell("print(await client.call_tool('m.add', {'a': 1, 'b': 1}))") == "2"
        # Another event loop beside the kernel's, as libraries do that are synchronous for their callers.
        cell("import asyncio")
        assert cell("print(await asyncio.to_thread(asyncio.run, client.call_tool('m.add', {'a': 2, 'b': 2})))") == "4"
        cell("await client.close()")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
