"""Speech to text while it is spoken, on asyncio and on trio.

Run it: ``python examples/live_transcript.py``, or with ``--backend trio``. It needs no network but loopback: the
transcriber is a peer of its own, which hears a word in every fifth of a second of sound. The microphone is a generator;
what it gives is sent while the words come back. Leaving the call stops the microphone, whatever the reason: here once
because the speaker is done, and once because the listener has no more time.
"""

from __future__ import annotations

import argparse
import json
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import anyio
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from utcp_websocket_anyio import AnyioUtcpClient, open_client

RATE, SAMPLE = 16_000, 2  # per second, and bytes
SPEECH = ["this", "is", "what", "the", "speaker", "has", "to", "say", "and", "nothing", "else"]

# The transcriber, as such services are: audio in binary frames, commands and results in JSON.


def transcribe(connection: ServerConnection) -> None:
    """Hears one word in every fifth of a second."""
    heard, words = 0, 0

    def tell(kind: str, **members: Any) -> None:
        connection.send(json.dumps({"type": kind, **members}))

    try:
        for message in connection:
            if isinstance(message, bytes):
                heard += len(message)
                while heard >= (words + 1) * RATE * SAMPLE // 5:
                    tell("word", text=SPEECH[words % len(SPEECH)])
                    words += 1
            elif json.loads(message)["type"] == "done":
                tell("end", seconds=heard / RATE / SAMPLE)
                return
    except ConnectionClosed:
        print(f"   (the transcriber: somebody left after {heard / RATE / SAMPLE:.1f} s)")


@contextmanager
def transcriber() -> Iterator[str]:
    """The address of a transcriber, which runs in threads, so that it is the same for both event loops."""
    with serve(transcribe, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


# The client: what a manual says about the transcriber, and a microphone.


def manual(url: str) -> dict[str, Any]:
    return {
        "name": "speech",
        "call_template_type": "websocket",
        "url": url,
        "tools": [
            {
                "name": "transcribe",
                "description": "The words that are spoken, as they are understood",
                "inputs": {"type": "object", "properties": {"audio": {"type": "array"}}, "required": ["audio"]},
                "tool_call_template": {
                    "call_template_type": "websocket",
                    "request": [
                        {"send_each": {"of": "{{args.audio}}", "message": "{{item}}"}},
                        {"send": {"type": "done"}},
                    ],
                    "message_filter": {"type": "word"},
                    "end_filter": {"type": "end"},
                    "result": {"path": "text"},
                },
            }
        ],
    }


async def microphone(seconds: float) -> AsyncGenerator[bytes, None]:
    """A tenth of a second of sound each tenth of a second; it is switched off when no more is wanted."""
    said_all = False
    try:
        for _ in range(round(seconds * 10)):
            await anyio.sleep(0.1)
            yield bytes(RATE * SAMPLE // 10)
        said_all = True
    finally:
        print(f"   (the microphone: {'the speaker is done' if said_all else 'nobody listens'})")


async def listen(client: AnyioUtcpClient, spoken: float, patience: float) -> None:
    """Print what is said, for so long."""
    print(f"{spoken} s are spoken, and somebody listens for {patience} s:")
    with anyio.move_on_after(patience) as deadline:
        async with aclosing(client.call_tool_streaming("speech.transcribe", {"audio": microphone(spoken)})) as stream:
            async for word in stream:
                print(f"   {word}")
    print("   That was all." if not deadline.cancelled_caught else "   There is no more time.")


async def main() -> None:
    with transcriber() as url:
        async with open_client({"manual_call_templates": [manual(url)]}) as client:
            await listen(client, spoken=2, patience=60)
            await listen(client, spoken=60, patience=1.5)
    print("Every connection is closed, and nothing is left running.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    logging.getLogger().setLevel(logging.WARNING)  # UTCP's core has it at INFO
    anyio.run(main, backend=parser.parse_args().backend)
