"""Garbage collection at random points: amid any allocation, in a turn of the loop, and in another thread."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

__all__ = ["collecting"]


@asynccontextmanager
async def collecting(seed: int) -> AsyncIterator[None]:
    """Have garbage collected very often while the block runs.

    Args:
        seed: Decides how often.
    """
    randomly = random.Random(seed)
    before = gc.get_threshold()
    is_over = threading.Event()

    def collect_in_a_thread(randomly: random.Random) -> None:
        while not is_over.wait(randomly.random() / 20):
            gc.collect()

    async def collect_in_the_loop() -> None:
        while True:
            await anyio.sleep(randomly.random() / 20)
            gc.collect(randomly.randrange(3))

    thread = threading.Thread(target=collect_in_a_thread, args=(random.Random(seed),), daemon=True)
    gc.set_threshold(randomly.choice([50, 200, 700]), 5, 5)
    thread.start()
    try:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(collect_in_the_loop)
            yield
            task_group.cancel_scope.cancel()
    finally:
        gc.set_threshold(*before)
        is_over.set()
        thread.join()
