"""Runs the cases of ``ops/<name>.json`` through the tools of a manual, and asks the peer afterwards.

A file says in neutral words what a user of the API wants: operations, each with cases. An operation is called by the
tool of its name, or, where its ``tool`` says so, by ``{"name", "arguments", "pick"}``: another tool, the arguments
made of the operation's own (``{"$argument": name}``), and the path of the operation's result in the tool's.

A case has ``args`` and what must come of it:
    expect: The value of a call, or the items of a stream (see `matching`).
    take, for_s, to_end: It is a stream, left after so many items (by `aclose` between two) or seconds (by cancelling
        the pending read), or one that has to end by itself.
    each, at_least, counts_up, first_within_s: Of a stream: what every item is like, how many there are at least, the
        path of a number without gap or repetition, and when the first has to be there.
    error: It has to fail; ``contains``, ``contains_any`` and ``omits`` are about the error's text. ``or_error``: an
        error is as good as the items; only silence is wrong.
    parallel, steps, session: Several operations: at once (``at_s`` delays one), one after the other, or on one
        session (``save`` keeps a part of a result).
    setup, control, teardown: Commands for the peer, before, during (``at_s``) and after.
    after, polite: What the peer's counters are then, or have grown by since: ``is``, ``delta``, ``delta_min``,
        ``delta_max``. ``polite`` is about subscriptions that were given up by message.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import anyio
import httpx

from .building import build
from .matching import difference, pick, short

__all__ = ["Driver", "Tools", "operations_of"]

OPERATIONS = Path(__file__).parent / "ops"
LONGEST = 60
"""Seconds that no case takes, however busy the machine is."""


class Tools(Protocol):
    """The tools of a manual."""

    async def call(self, tool: str, arguments: dict[str, Any], /) -> Any: ...

    def stream(self, tool: str, arguments: dict[str, Any], /) -> AsyncGenerator[Any, None]: ...


def operations_of(name: str) -> dict[str, Any]:
    """What a user wants of an API."""
    found: dict[str, Any] = json.loads((OPERATIONS / f"{name}.json").read_text(encoding="utf-8"))
    return found


@dataclass
class Driver:
    """Runs cases.

    Attributes:
        tools: The manual's.
        peer: The address of the peer's HTTP server.
        operations: By name.
    """

    tools: Tools
    peer: httpx.AsyncClient
    operations: dict[str, dict[str, Any]]
    saved: dict[str, Any] = field(default_factory=dict)
    session: str = ""

    async def run(self, case: dict[str, Any]) -> list[str]:
        """Run a case; sentences about what was wrong."""
        for command in case.get("setup", []):
            await self.command(command)
        if "setup" in case:
            await anyio.sleep(0.05)  # what keeps connections may notice now that they are gone
        before = await self.state()
        wrong: list[str] = []
        with anyio.move_on_after(LONGEST + 3 * case.get("for_s", 0)) as scope:
            async with anyio.create_task_group() as control:
                for entry in case.get("control", []):
                    control.start_soon(self.command_later, entry)
                wrong += await self.steps(case)
                control.cancel_scope.cancel()
        if scope.cancelled_caught:
            wrong.append("it takes for ever")
        for command in case.get("teardown", []):
            await self.command(command)
        checks = [*case.get("after", []), *case.get("polite", []), {"counter": "peer_bugs", "delta": 0}]
        return wrong + await self.checked(checks, before, case.get("within_s", 5))

    async def checked(self, checks: list[dict[str, Any]], before: dict[str, Any], seconds: float) -> list[str]:
        """What the counters are not yet when so much time is over."""
        until = time.monotonic() + seconds
        while True:
            state = await self.state()
            wrong = [reason for check in checks if (reason := _counted(check, before, state))]
            if not wrong or time.monotonic() > until:
                return [f"afterwards: {reason}" for reason in wrong]
            await anyio.sleep(0.05)

    async def steps(self, case: dict[str, Any]) -> list[str]:
        match case:
            case {"parallel": steps}:
                return await self.at_once(steps)
            case {"session": steps}:
                self.session = uuid4().hex
                wrong = await self.one_by_one(steps, case["op"])
                return wrong + await self.perform({"op": "end"}, case["op"])
            case {"steps": steps}:
                return await self.one_by_one(steps)
            case _:
                return await self.perform(case)

    async def one_by_one(self, steps: list[dict[str, Any]], of: str = "") -> list[str]:
        self.saved = {}
        for step in steps:
            if "wait_s" in step:
                await anyio.sleep(step["wait_s"])
                continue
            wrong = await (self.at_once(step["parallel"], of) if "parallel" in step else self.perform(step, of))
            if wrong:
                return wrong
        return []

    async def at_once(self, steps: list[dict[str, Any]], of: str = "") -> list[str]:
        wrong: list[str] = []

        async def one(step: dict[str, Any]) -> None:
            await anyio.sleep(step.get("at_s", 0))
            wrong.extend(await self.perform(step, of))

        async with anyio.create_task_group() as group:
            for step in steps:
                group.start_soon(one, step)
        return wrong

    async def perform(self, step: dict[str, Any], of: str = "") -> list[str]:
        """Call an operation, or one of a session of an operation; what was wrong."""
        name, arguments, path = self.tool_of(step, of)
        items: list[Any] = []
        result: Any = items
        error: Exception | None = None
        first: float | None = None
        streams = not step.keys().isdisjoint({"take", "for_s", "to_end"})
        try:
            if streams:
                first = await self.follow(name, arguments, step, items)
                items[:] = [pick(item, path) for item in items]
            else:
                result = pick(await self.tools.call(name, arguments), path)
        except _EndedError as ended:
            return [f"{step['op']}: it ended by itself after {ended} items"]
        except Exception as raised:  # noqa: BLE001 - it is what is judged
            error = raised
        for saved, place in step.get("save", {}).items():
            self.saved[saved] = pick(result, place)
        reason = _judged(step, result, error)
        if reason is None and error is None and streams:
            reason = _judged_stream(step, items, first)
        return [f"{step['op']}: {reason}"] if reason else []

    async def follow(
        self, name: str, arguments: dict[str, Any], step: dict[str, Any], items: list[Any]
    ) -> float | None:
        """Add the items of a stream until it is left; when the first came."""
        begun = time.monotonic()
        first = None
        async with aclosing(self.tools.stream(name, arguments)) as stream:
            while step.get("take") is None or len(items) < step["take"]:
                left = begun + step.get("for_s", LONGEST) - time.monotonic()
                with anyio.move_on_after(max(0, left)) as scope:
                    try:
                        items.append(await anext(stream))
                    except StopAsyncIteration:
                        if step.get("to_end"):
                            break
                        raise _EndedError(len(items)) from None
                if scope.cancelled_caught:
                    if "for_s" in step:
                        break
                    raise TimeoutError(f"only {len(items)} items in {LONGEST} s")
                first = first or time.monotonic() - begun
        return first

    def tool_of(self, step: dict[str, Any], of: str) -> tuple[str, dict[str, Any], str]:
        """Tool, arguments, and path of the result."""
        arguments = build(step.get("args", {}), self.saved)
        if of:
            return f"{of}_{step['op']}", {**arguments, "session": self.session}, "$"
        tool = self.operations[step["op"]].get("tool", {})
        if "arguments" in tool:
            arguments = build(tool["arguments"], arguments)
        return tool.get("name", step["op"]), arguments, tool.get("pick", "$")

    async def state(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.peer.get("/state")).json()
        return found

    async def command(self, command: dict[str, Any]) -> None:
        await self.peer.post("/control", json=command)

    async def command_later(self, entry: dict[str, Any]) -> None:
        await anyio.sleep(entry["at_s"])
        await self.command(entry["post"])


class _EndedError(Exception):
    """A stream ended where it should not have, which is never as good as an error."""


def _judged(step: dict[str, Any], result: Any, error: Exception | None) -> str | None:
    if "error" in step:
        return _judged_error(step["error"], result, error)
    if error is not None:
        return None if step.get("or_error") else f"{type(error).__name__}: {error}"
    return difference(step["expect"], result) if "expect" in step else None


def _judged_error(wanted: dict[str, Any], result: Any, error: Exception | None) -> str | None:
    if error is None:
        return f"no error, but {short(result)}"
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        text += f"{type(cause).__name__}: {cause}\n"
        cause = cause.__cause__ or cause.__context__
    for part in wanted.get("contains", []):
        if part.lower() not in str(error).lower():
            return f"an error without {part!r}: {error}"
    anyone = wanted.get("contains_any", [])
    if anyone and not any(part.lower() in str(error).lower() for part in anyone):
        return f"an error without any of {anyone}: {error}"
    return next((f"the error tells {part!r}" for part in wanted.get("omits", []) if part in text), None)


def _judged_stream(step: dict[str, Any], items: list[Any], first: float | None) -> str | None:
    if "first_within_s" in step and (first is None or first > step["first_within_s"]):
        return f"the first item came after {first} s"
    if len(items) < step.get("at_least", 0):
        return f"only {len(items)} items"
    for i, item in enumerate(items):
        if "each" in step and (reason := difference(step["each"], item, f"[{i}]")):
            return reason
    if "counts_up" in step and items:
        numbers = [pick(item, step["counts_up"]) for item in items]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return f"{step['counts_up']} has gaps: {short(numbers)}"
    return None


def _counted(check: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str | None:
    name = check["counter"]
    value, grown = after.get(name, 0), after.get(name, 0) - before.get(name, 0)
    right = (
        value == check.get("is", value)
        and grown == check.get("delta", grown)
        and check.get("delta_min", grown) <= grown <= check.get("delta_max", grown)
    )
    return None if right else f"{name} is {value}, and was {value - grown}: {check}"
