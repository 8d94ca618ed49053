"""Masking keys (RFC 6455, section 10.3): none is given twice, in no thread and in no process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from utcp_websocket_anyio._wire._buffers import MaskingKeys, masking_keys

MANY = 3000  # more than are drawn at once


def test_keys_are_four_bytes_and_not_given_twice() -> None:
    keys = MaskingKeys()
    drawn = [keys.next() for _ in range(MANY)]
    assert {len(key) for key in drawn} == {4}
    # Of 3,000 random ones two are the same once in a thousand times; of keys given twice all are.
    assert len(set(drawn)) > MANY - 5


def test_a_draw_that_is_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> bytes:
        raise KeyboardInterrupt

    keys = MaskingKeys()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "urandom", interrupted)
        keys.next()
    assert len(keys.next()) == 4


def test_threads_get_different_ones() -> None:
    def draw() -> list[bytes]:
        return [masking_keys.next() for _ in range(100)]

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        assert not set(first.submit(draw).result()) & set(second.submit(draw).result())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_gets_different_ones() -> None:
    masking_keys.next()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"".join(masking_keys.next() for _ in range(100)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    ours = {masking_keys.next() for _ in range(100)}
    assert len(theirs) == 400
    assert len(ours & {theirs[start : start + 4] for start in range(0, 400, 4)}) < 5
