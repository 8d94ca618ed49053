"""One connection to a tool server, from the side of the server: pings, and what may be in progress at once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.backends import virtual_time

from utcp_websocket_anyio._server.session import Service, Session
from utcp_websocket_anyio._server.threads import Workers
from utcp_websocket_anyio._server.tools import as_tool
from utcp_websocket_anyio._server.transport import Disconnected, Handshake

pytestmark = pytest.mark.anyio


class Client:
    """A client that exists only in the test: what it sends, what it was sent, and how it answers pings."""

    handshake = Handshake("/", "127.0.0.1", (), (), "127.0.0.1")

    def __init__(self) -> None:
        self.progress: object = 0
        self.pings: list[float] = []
        self.pongs = anyio.Event()
        self.received: list[Any] = []
        self.reads = True
        self.closed: tuple[int, str] | None = None
        self.is_aborted = False
        self._messages: deque[str | bytes] = deque()
        self._changed = anyio.Event()
        self.session: Session

    def say(self, message: Any) -> None:
        self._messages.append(message if isinstance(message, (str, bytes)) else json.dumps(message))
        self.change()

    def change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.is_aborted:
                raise Disconnected
            await self._changed.wait()

    async def receive(self) -> str | bytes:
        await anyio.lowlevel.checkpoint()
        await self._until(lambda: bool(self._messages))
        return self._messages.popleft()

    async def send(self, text: str) -> None:
        await self._until(lambda: self.reads)
        self.received.append(json.loads(text))
        self.change()

    async def got(self, count: int) -> list[Any]:
        while len(self.received) < count:
            await self._changed.wait()
        return self.received

    async def ping(self) -> None:
        self.pings.append(anyio.current_time())
        await self.pongs.wait()

    async def close(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def abort(self) -> None:
        self.is_aborted = True
        self.change()


@asynccontextmanager
async def session(*functions: Callable[..., Any], **limits: Any) -> AsyncIterator[Client]:
    client = Client()
    options: dict[str, Any] = {
        "max_calls": 100,
        "max_bytes": 2**20,
        "ping_interval": 30.0,
        "pong_timeout": 20.0,
        **limits,
    }
    tools = {
        function.__name__: as_tool(function, name=function.__name__, description=None, tags=(), timeout=None)
        for function in functions
    }
    service = Service(
        name="test",
        tools=tools,
        workers=Workers(lambda call: call()),
        open_tasks=anyio.create_task_group,
        open_scope=anyio.CancelScope,
        is_cancelled=lambda: True,
        **options,
    )
    with anyio.fail_after(10_000):
        async with anyio.create_task_group() as tasks:
            client.session = Session(client, service, dict)
            tasks.start_soon(client.session.run)
            yield client
            tasks.cancel_scope.cancel()
    assert client.closed == (1001, "going away")


def call(tool: str, request_id: Any = 1, **arguments: Any) -> dict[str, Any]:
    return {"type": "call_tool", "request_id": request_id, "tool_name": tool, "arguments": arguments}


# Pings, by a clock that jumps


@pytest.mark.parametrize("anyio_backend", [virtual_time()], ids=["virtual time"])
class TestPings:
    async def test_a_client_that_answers_is_kept(self) -> None:
        async with session() as client:
            client.pongs.set()
            began = anyio.current_time()
            await anyio.sleep(100)
            assert [round(at - began) for at in client.pings] == [30, 60, 90]
            assert not client.is_aborted

    async def test_one_that_does_not_is_dropped_after_the_time_for_it(self) -> None:
        async with session() as client:
            await anyio.sleep(49)
            assert not client.is_aborted
            await anyio.sleep(2)
            assert client.is_aborted

    async def test_a_long_message_in_either_direction_is_life(self) -> None:
        async with session() as client:
            for _ in range(30):
                await anyio.sleep(10)
                client.progress = object()
            assert not client.is_aborted
            assert len(client.pings) == 1
            await anyio.sleep(41)
            assert client.is_aborted

    async def test_while_the_server_does_not_read_no_pong_is_expected(self) -> None:
        released = anyio.Event()

        async def wait() -> None:
            await released.wait()

        async with session(wait, max_calls=1) as client:
            for _ in range(12):
                client.say(call("wait"))
            await anyio.sleep(300)
            assert not client.is_aborted
            released.set()
            assert len(await client.got(12)) == 12
            await anyio.sleep(100)
            assert client.is_aborted

    async def test_but_not_for_ever(self) -> None:
        async def wait() -> None:
            await anyio.sleep_forever()

        async with session(wait, max_calls=1) as client:
            for _ in range(12):
                client.say(call("wait"))
            await anyio.sleep(1000)
            assert client.is_aborted

    async def test_without_an_interval_no_client_is_pinged(self) -> None:
        async with session(ping_interval=None) as client:
            await anyio.sleep(1000)
            assert client.pings == []
            assert not client.is_aborted


# The budget


def counted() -> tuple[Callable[[str], Awaitable[str]], list[int], anyio.Event]:
    """A tool that holds its calls until it is released, and how many there are now and were at most."""
    now_and_most, released = [0, 0], anyio.Event()

    async def hold(text: str = "") -> str:
        now_and_most[0] += 1
        now_and_most[1] = max(now_and_most)
        await released.wait()
        now_and_most[0] -= 1
        return text

    return hold, now_and_most, released


@pytest.mark.parametrize(
    ("limits", "length", "most"),
    [
        ({"max_calls": 3}, 0, 3),
        ({"max_calls": 1}, 0, 1),
        ({"max_bytes": 10_000}, 2000, 4),  # and what stands around the text
        ({"max_bytes": 10_000}, 9000, 1),
        ({"max_bytes": 1000}, 9000, 1),  # a single one always has room
    ],
)
async def test_calls_beyond_the_budget_wait_for_their_turn(limits: dict[str, int], length: int, most: int) -> None:
    hold, now_and_most, released = counted()
    async with session(hold, **limits) as client:
        for number in range(10):
            client.say(call("hold", number, text="x" * length))
        await anyio.wait_all_tasks_blocked()
        assert now_and_most == [most, most]
        released.set()
        answers = await client.got(10)
        assert now_and_most == [0, most]
        assert {answer["request_id"] for answer in answers} == set(range(10))
        assert {len(answer["result"]) for answer in answers} == {length}


async def test_calls_that_wait_are_begun_in_their_order() -> None:
    begun: list[int] = []

    async def note(number: int) -> None:
        begun.append(number)

    async with session(note, max_calls=1) as client:
        for number in range(9):
            client.say(call("note", number=number))
        await client.got(9)
    assert begun == list(range(9))


async def test_unread_answers_count(anyio_backend_name: str) -> None:
    begun = 0

    async def give() -> str:
        nonlocal begun
        begun += 1
        return "x" * 1000

    async with session(give, max_bytes=10_000) as client:
        client.reads = False
        for number in range(100):
            client.say(call("give", number))
        await anyio.wait_all_tasks_blocked()
        assert 9 <= begun <= 12
        client.reads = True
        client.change()
        assert len(await client.got(100)) == 100


async def test_a_stream_is_no_faster_than_its_reader() -> None:
    made = 0

    async def pour() -> AsyncIterator[int]:
        nonlocal made
        for number in range(1000):
            made += 1
            yield number

    async with session(pour) as client:
        client.reads = False
        client.say(call("pour"))
        await anyio.wait_all_tasks_blocked()
        assert made == 1
        client.reads = True
        client.change()
        assert (await client.got(1001))[-1] == {"type": "stream_end", "request_id": 1}


async def test_nonsense_is_answered_no_faster_than_it_is_read() -> None:
    async with session(max_calls=3) as client:
        client.reads = False
        for _ in range(100):
            client.say("nonsense")
        await anyio.wait_all_tasks_blocked()
        assert 60 < len(client._messages) < 70
        client.reads = True
        client.change()
        assert len(await client.got(100)) == 100


# Calls that their client gives up


def cancel(request_id: Any = 1) -> dict[str, Any]:
    return {"type": "cancel", "request_id": request_id}


class Held:
    """Tools that do not end by themselves, and what has become of their calls."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def hold(self, name: str) -> None:
        self.begun.append(name)
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.append(name)

    async def pour(self, name: str) -> AsyncIterator[int]:
        self.begun.append(name)
        try:
            for number in range(1000):
                yield number
        finally:
            self.ended.append(name)

    async def drip(self, name: str) -> AsyncIterator[int]:
        try:
            yield 0
            await anyio.sleep_forever()
        finally:
            self.ended.append(name)

    async def echo(self, name: str) -> str:
        self.begun.append(name)
        return name

    async def stubborn(self, name: str) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        return name

    async def swallow(self, name: str) -> AsyncIterator[int]:
        self.begun.append(name)
        yield 1
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():  # noqa: ASYNC103 - which a tool should not do
            self.ended.append(name)
        yield 2  # noqa: ASYNC119 - and this neither

    async def fail(self, name: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError(name)

    def session(self, **limits: Any) -> Any:
        tools = (self.hold, self.pour, self.drip, self.echo, self.stubborn, self.swallow, self.fail)
        return session(*tools, **limits)


async def test_a_call_that_is_given_up_is_cancelled_and_not_answered() -> None:
    held = Held()
    async with held.session() as client:
        client.say(call("hold", 1, name="first"))
        client.say(call("hold", "2", name="second"))
        await anyio.wait_all_tasks_blocked()
        client.say(cancel("2"))
        await anyio.wait_all_tasks_blocked()
        assert held.ended == ["second"]
        client.say(call("echo", 3, name="third"))
        assert await client.got(1) == [{"type": "tool_response", "request_id": 3, "result": "third"}]
        assert held.ended == ["second"]
    assert held.ended == ["second", "first"]


@pytest.mark.parametrize("request_id", [2, "1", 1.5, None, [1], True])
async def test_to_give_up_what_is_not_there_does_nothing(request_id: Any) -> None:
    held = Held()
    async with held.session() as client:
        client.say(call("hold", 1, name="it"))
        client.say(cancel(request_id))
        client.say(call("echo", name="x"))
        await client.got(1)
        assert held.ended == []
    assert client.received[-1]["result"] == "x"


async def test_a_call_without_an_id_cannot_be_given_up() -> None:
    async with session() as client:
        client.say({"type": "cancel"})
        ((answer),) = await client.got(1)
    error = '"cancel" needs the "request_id" of a call'
    assert answer == {"type": "tool_error", "request_id": None, "error": error}


async def test_one_that_was_answered_is_as_if_it_were_not_there() -> None:
    held = Held()
    async with held.session() as client:
        client.say(call("echo", name="x"))
        await client.got(1)
        client.say(cancel())
        client.say(call("echo", name="y"))
        assert [answer["result"] for answer in await client.got(2)] == ["x", "y"]


async def test_a_call_can_be_given_up_before_it_is_begun() -> None:
    held = Held()
    async with held.session() as client:
        for number in range(50):
            client.say(call("hold", number, name="it"))
            client.say(cancel(number))
        client.say(call("echo", name="last"))
        await client.got(1)
        await anyio.wait_all_tasks_blocked()
        assert len(held.begun) - 1 == len(held.ended)
    assert [answer["result"] for answer in client.received] == ["last"]


async def test_beyond_the_limit_of_calls_giving_up_does_not_wait_its_turn() -> None:
    held = Held()
    async with held.session(max_calls=2) as client:
        for number in range(5):
            client.say(call("hold", number, name=str(number)))
        client.say(call("echo", 5, name="last"))
        await anyio.wait_all_tasks_blocked()
        assert held.begun == ["0", "1"]
        for number in (3, 0, 1, 2):
            client.say(cancel(number))
        assert [answer["result"] for answer in await client.got(1)] == ["last"]
        await anyio.wait_all_tasks_blocked()
        # The third may have had its turn for a moment.
        assert set(held.begun) - {"2"} == {"0", "1", "4", "last"}
        assert set(held.begun) - set(held.ended) == {"4", "last"}


async def test_an_id_that_was_given_up_can_be_used_again() -> None:
    hold, _, released = counted()
    held = Held()
    async with session(hold, held.echo, max_calls=2) as client:
        client.say(call("hold", 0))
        client.say(call("hold", 1))
        client.say(call("echo", 7, name="given up"))
        client.say(cancel(7))
        client.say(call("echo", 7, name="again"))
        await anyio.wait_all_tasks_blocked()
        released.set()  # both of the others are begun at once
        await client.got(3)
    assert held.begun == ["again"]


async def test_what_is_given_up_and_never_comes_takes_no_memory() -> None:
    held = Held()
    async with held.session(max_calls=1) as client:
        for number in range(3):
            client.say(call("hold", number, name=str(number)))
        for number in range(1000):
            client.say(cancel(f"never {number}"))
        await anyio.wait_all_tasks_blocked()
        assert len(client.session._given_up) == 10  # as many calls may wait
        client.say(cancel(2))
        client.say(cancel(0))
        await anyio.wait_all_tasks_blocked()
        client.say(cancel(1))
        await anyio.wait_all_tasks_blocked()
        assert held.ended == held.begun == ["0", "1"]
        assert len(client.session._given_up) == 0
        assert client.session._running == {}


async def test_under_load_it_is_forgotten_too() -> None:
    held = Held()
    async with held.session(max_calls=1) as client:
        client.say(call("hold", 0, name="it"))
        for number in range(1, 4):
            # At any time a call runs and another waits.
            client.say(call("hold", number, name="it"))
            client.say(cancel("never"))
            await anyio.wait_all_tasks_blocked()
            assert len(client.session._given_up) == 1
            client.say(cancel(number - 1))
            await anyio.wait_all_tasks_blocked()
            assert len(client.session._given_up) == 0
        assert held.ended == ["it"] * 3


@pytest.mark.parametrize("tool", ["pour", "drip"])
async def test_no_message_is_cut_short_because_its_call_is_given_up(tool: str) -> None:
    held = Held()
    async with held.session() as client:
        client.reads = False
        client.say(call(tool, name="stream"))
        await anyio.wait_all_tasks_blocked()
        client.say(cancel())
        await anyio.wait_all_tasks_blocked()
        assert held.ended == []
        client.reads = True
        client.change()
        while client.session._running:
            await anyio.sleep(0.001)
        assert held.ended == ["stream"]
        client.say(call("echo", 2, name="next"))
        answers = await client.got(2)
    assert answers == [
        {"type": "tool_response", "request_id": 1, "result": 0},
        {"type": "tool_response", "request_id": 2, "result": "next"},
    ]


async def test_a_tool_that_does_not_let_itself_be_cancelled_is_not_answered_for() -> None:
    held = Held()
    async with held.session() as client:
        client.say(call("stubborn", 1, name="it"))
        client.say(call("swallow", 2, name="stream"))
        await client.got(1)
        client.say(cancel(1))
        client.say(cancel(2))
        while client.session._running:
            await anyio.sleep(0.001)
        assert held.ended == ["stream"]
        client.say(call("echo", 3, name="next"))
        await client.got(2)
    assert [answer["result"] for answer in client.received] == [1, "next"]


async def test_what_it_raises_then_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with Held().session() as client:
        client.say(call("fail", name="it"))
        await anyio.wait_all_tasks_blocked()
        client.say(cancel())
        await anyio.wait_all_tasks_blocked()
    assert client.received == []
    assert caplog.messages == ["tool fail of server test failed"]


async def test_a_long_way_to_give_up_works_too() -> None:
    held = Held()
    async with held.session() as client:
        client.say(call("hold", name="it"))
        client.say(json.dumps({**cancel(), "reason": "x" * 5000}))
        await anyio.wait_all_tasks_blocked()
        client.say(json.dumps(cancel()).encode())
        await anyio.wait_all_tasks_blocked()
        assert len(held.begun) == len(held.ended)
    assert client.received == []


# What hostile clients say


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("message", "request_id", "says"),
    [
        ("nonsense", None, "the message is not JSON"),
        ("", None, "the message is not JSON"),
        (b"\xff", None, "the message is not JSON"),
        ('{"type": "utcp"}'.encode("utf-16"), None, "the message is not JSON"),
        ('{"type": "call_tool", "request_id": NaN}', None, "the message is not JSON"),
        ("1" * 10_000, None, "the message is not JSON"),
        (DEEP, None, "the message is not JSON"),
        ("[1]", None, "the message is not a JSON object"),
        ({"type": "other", "request_id": 5}, 5, '"type" must be "utcp", "discover", "call_tool" or "cancel"'),
        ({"type": ["utcp"]}, None, '"type" must be "utcp", "discover", "call_tool" or "cancel"'),
        (call("echo", "i" * 999), None, '"request_id" must be JSON of at most 1000 characters'),
        ('{"type": "call_tool", "request_id": 1e999}', None, '"request_id" must be JSON of at most 1000 characters'),
        (call("nothing"), 1, "unknown tool 'nothing'"),
        (call("n" * 100_000), 1, f"unknown tool '{'n' * 100}...'"),
        ({**call("echo"), "tool_name": {}}, 1, "unknown tool whose name is not a string"),
        ({**call("echo"), "arguments": [1]}, 1, "wrong arguments: Input should be a valid dictionary"),
        ({**call("echo"), "arguments": None}, 1, "wrong arguments: numbers: Field required"),
        (call("echo", numbers=["a"] * 5000), 1, "wrong arguments: 5000 errors"),
        (call("echo", **{"k" * 5000: 1}), 1, "wrong arguments: numbers: Field required; " + "k" * 200 + "..."),
    ],
)
async def test_a_message_that_is_not_a_request_is_answered_briefly_and_the_next_one_is_served(
    message: Any, request_id: Any, says: str
) -> None:
    async def echo(numbers: list[int]) -> list[int]:
        return numbers

    async with session(echo) as client:
        client.say(message)
        client.say(call("echo", 2, numbers=[3]))
        answers = await client.got(2)
    assert {"type": "tool_error", "request_id": request_id, "error": says} in answers
    assert {"type": "tool_response", "request_id": 2, "result": [3]} in answers


async def test_of_many_faults_some_are_named_and_the_others_counted() -> None:
    async def echo(numbers: list[int]) -> list[int]:
        return numbers

    async with session(echo) as client:
        client.say(call("echo", numbers=["a"] * 25))
        ((answer),) = await client.got(1)
    assert answer["error"].startswith("wrong arguments: numbers.0: Input should be a valid integer")
    assert answer["error"].endswith("; and 15 more")


async def test_lone_surrogates_go_out_as_they_came() -> None:
    async def reverse(text: Any) -> Any:
        return text[::-1]

    async with session(reverse) as client:
        client.say(call("reverse", "\ud800", text="a\udfff"))
        ((answer),) = await client.got(1)
    assert answer == {"type": "tool_response", "request_id": "\ud800", "result": "\udfffa"}


async def test_a_tool_that_exits_ends_its_call_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async with session(leave) as client:
        client.say(call("leave"))
        client.say(call("leave", 2))
        assert [answer["error"] for answer in await client.got(2)] == ["SystemExit: 3"] * 2
