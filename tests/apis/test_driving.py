"""What drives the cases notices what is wrong: a driver that is content with anything would prove nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from .driving import Driver
from .matching import difference

pytestmark = pytest.mark.anyio


class FakeTools:
    """One tool that gives what it is given, and one that fails."""

    async def call(self, tool: str, arguments: dict[str, Any], /) -> Any:
        if tool == "fail":
            raise ValueError("it is 4009, and the secret is hush")
        return arguments

    async def stream(self, tool: str, arguments: dict[str, Any], /) -> AsyncGenerator[Any, None]:
        for item in arguments["items"]:
            yield item
        if tool == "fail":
            raise ValueError("it is over")


async def run(case: dict[str, Any], *states: dict[str, int]) -> list[str]:
    """The sentences about a case; the peer tells one state after the other, and the last for ever."""
    left = [{"peer_bugs": 0, **state} for state in states or ({},)]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=left.pop(0) if len(left) > 1 else left[0])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://peer") as peer:
        driver = Driver(FakeTools(), peer, {"give": {}, "fail": {}, "other": {"tool": {"name": "give", "pick": "a"}}})
        return await driver.run({"within_s": 0, **case})


STREAM = {"op": "give", "args": {"items": [{"n": 1}, {"n": 2}, {"n": 4}]}}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"op": "give", "args": {"a": 1}, "expect": {"a": 2}}, "is not 2"),
        ({"op": "other", "args": {"a": 1}, "expect": 2}, "is not 2"),
        ({"op": "fail"}, "4009"),
        ({"op": "give", "error": {}}, "no error"),
        ({"op": "fail", "error": {"contains": ["4010"]}}, "without '4010'"),
        ({"op": "fail", "error": {"omits": ["hush"]}}, "tells 'hush'"),
        ({**STREAM, "take": 4}, "ended by itself after 3"),
        ({**STREAM, "take": 4, "or_error": True}, "ended by itself after 3"),
        ({**STREAM, "take": 3, "counts_up": "n"}, "has gaps"),
        ({**STREAM, "to_end": True, "at_least": 4}, "only 3 items"),
        ({**STREAM, "take": 2, "each": {"n": 1}}, "is not 1"),
        ({"op": "fail", "args": {"items": [1]}, "to_end": True}, "it is over"),
        ({"parallel": [{"op": "give"}, {"op": "fail"}]}, "4009"),
    ],
)
async def test_a_wrong_value_is_reported(case: dict[str, Any], reason: str) -> None:
    (said,) = await run(case)
    assert reason in said


@pytest.mark.parametrize(
    "case",
    [
        {"op": "give", "args": {"a": 1}, "expect": {"a": 1}},
        {"op": "fail", "error": {"contains": ["4009"], "omits": ["other"]}},
        {**STREAM, "take": 2, "counts_up": "n", "expect": [{"n": 1}, {"n": 2}]},
        {**STREAM, "to_end": True, "at_least": 3},
        {"op": "fail", "args": {"items": [1]}, "for_s": 5, "or_error": True},
    ],
)
async def test_what_is_right_is_not(case: dict[str, Any]) -> None:
    assert await run(case) == []


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        ({"counter": "left", "is": 3}, False),
        ({"counter": "left", "is": 2}, True),
        ({"counter": "left", "delta": 2}, False),
        ({"counter": "left", "delta": 3}, True),
        ({"counter": "left", "delta_min": 3}, True),
        ({"counter": "left", "delta_max": 1}, True),
        ({"counter": "never", "delta": 0}, False),
    ],
)
async def test_the_peer_is_asked_before_and_after(check: dict[str, Any], wrong: bool) -> None:
    assert bool(await run({"op": "give", "after": [check]}, {"left": 1}, {"left": 3})) is wrong


async def test_a_fault_of_the_peer_is_one_of_the_case() -> None:
    assert await run({"op": "give"}, {}, {"peer_bugs": 1})


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        ({"$any": True}, None, []),
        ({"$type": "number"}, 1.5, [True, "1"]),
        ({"$match": "^a.c$"}, "abc", ["ab", 1]),
        ({"$has": {"a": 1}}, {"a": 1, "b": 2}, [{"a": 2}, {}, []]),
        ({"$len": 2}, [1, 2], [[1], 3]),
        ({"$min": 2}, 2, [1, "2"]),
        ({"$oneof": [1, 2]}, 2, [3]),
        ({"$unordered": [1, {"$min": 5}]}, [6, 1], [[1], [1, 4], [1, 6, 7]]),
        ({"$bytes": {"base64": "YWI="}}, b"ab", ["ab", b"a"]),
        ([1, {"a": None}], [1, {"a": None}], [[1], [1, {}], [True, {"a": None}]]),
    ],
)
def test_matching(expected: Any, right: Any, wrong: list[Any]) -> None:
    assert difference(expected, right) is None
    for value in wrong:
        assert difference(expected, value) is not None
