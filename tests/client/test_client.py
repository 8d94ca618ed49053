"""The life of a client: how it comes to be, whom it closes, and that a failed one leaves nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from support.peers import Peer, echo_server, peer
from support.plugin import FakeProtocol, config, install, manual
from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.tool import Tool
from utcp.data.utcp_client_config import UtcpClientConfig
from utcp.data.utcp_manual import UtcpManual
from utcp.exceptions import UtcpProtocolCloseError, UtcpSerializerValidationError, UtcpVariableNotFound
from utcp.implementations.in_mem_tool_repository import InMemToolRepository
from utcp.interfaces.communication_protocol import CommunicationProtocol
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import (
    AnyioToolRepository,
    AnyioUtcpClient,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    open_client,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("registries")]


def websocket(url: str, name: str = "ws") -> dict[str, Any]:
    """The manual of an endpoint that knows nothing of UTCP, with one tool."""
    tool = {"name": "echo", "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    return {"name": name, "call_template_type": "websocket", "url": url, "response_format": "json", "tools": [tool]}


def one_protocol(hook: Any = None) -> FakeProtocol:
    """A fake protocol of which every client gets this instance."""
    protocol = FakeProtocol(hook)
    install(lambda: protocol)
    return protocol


def names(tools: list[Tool]) -> list[str]:
    return sorted(tool.name for tool in tools)


async def test_a_client_calls_a_tool_over_websocket() -> None:
    with anyio.fail_after(20):
        async with echo_server() as url, open_client(config(websocket(url))) as client:
            assert isinstance(client, UtcpClient)
            assert names(await client.search_tools("echo")) == ["ws.echo"]
            assert await client.call_tool("ws.echo", {"n": 1}) == {"n": 1}


async def test_many_tasks_call_through_one_client() -> None:
    answers: dict[int, Any] = {}
    with anyio.fail_after(20):
        async with echo_server() as url, open_client(config(websocket(url))) as client:

            async def call(n: int) -> None:
                answers[n] = await client.call_tool("ws.echo", {"n": n})

            async with anyio.create_task_group() as task_group:
                for n in range(50):
                    task_group.start_soon(call, n)
    assert answers == {n: {"n": n} for n in range(50)}


# The configuration


async def test_without_a_configuration_a_client_has_no_tools() -> None:
    with anyio.fail_after(10):
        async with open_client() as client:
            assert await client.search_tools("anything") == []
            assert client.root_dir == str(Path.cwd())


@pytest.mark.parametrize("form", ["dict", "path", "str path", "object"])
async def test_a_configuration_comes_in_every_form(form: str, tmp_path: Path) -> None:
    install()
    values = config(manual(), variables={"a": "b"})
    path = tmp_path / "client.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    given: Any = {"dict": values, "path": path, "str path": str(path), "object": UtcpClientConfig(**values)}[form]
    with anyio.fail_after(10):
        async with open_client(given, root_dir=tmp_path) as client:
            assert client.root_dir == str(tmp_path)
            assert client.config.variables == {"a": "b"}
            assert (await client.call_tool("m.tool", {}))["tool"] == "m.tool"


async def test_a_configuration_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    wrong: Any = [1]
    with anyio.fail_after(10):
        with pytest.raises(ValueError, match=r"Invalid config file: .*client\.json"):
            await open_client(path).__aenter__()
        path.write_text("{", encoding="utf-8")
        with pytest.raises(ValueError, match=r"Invalid config file: .*client\.json"):
            await open_client(path).__aenter__()
        path.write_text("null", encoding="utf-8")
        with pytest.raises(UtcpSerializerValidationError):
            await open_client(path).__aenter__()
        with pytest.raises(UtcpSerializerValidationError, match="variables"):
            await open_client({"variables": 1}).__aenter__()
        with pytest.raises(TypeError, match="list"):
            await open_client(wrong).__aenter__()


async def test_the_default_repository_becomes_one_for_every_event_loop_with_the_same_contents() -> None:
    install()
    core = InMemToolRepository()
    given = UtcpClientConfig(tool_repository=core)
    template = CallTemplateSerializer().validate_dict(manual("old"))
    await core.save_manual(template, UtcpManual(tools=[Tool(name="old.tool", tool_call_template=template)]))
    with anyio.fail_after(10):
        async with open_client(given) as client:
            assert client.config is given
            assert type(client.config.tool_repository) is AnyioToolRepository
            assert (await client.call_tool("old.tool", {}))["tool"] == "old.tool"
            await client.register_manual(CallTemplateSerializer().validate_dict(manual("new")))
    assert names(await core.get_tools()) == ["new.tool", "old.tool"]


async def test_a_repository_of_the_users_own_stays() -> None:
    class Own(InMemToolRepository):
        async def get_manual_call_template(self, manual_call_template_name: str) -> CallTemplate | None:
            # Then nothing is known of what the manual allows.
            return None

    install()
    own: Any = Own()  # type: ignore[call-arg]  # core's constructor needs none
    with anyio.fail_after(10):
        async with open_client(UtcpClientConfig(tool_repository=own)) as client:
            await client.register_manual(CallTemplateSerializer().validate_dict(manual()))
            assert client.config.tool_repository is own
            assert names(await own.get_tools()) == ["m.tool"]
            assert (await client.call_tool("m.tool", {"x": 1}))["args"] == {"x": 1}
            assert [item["number"] async for item in client.call_tool_streaming("m.tool", {})] == [0, 1, 2]
            with pytest.raises(ValueError, match=r"Tool not found: m\.other"):
                await client.call_tool("m.other", {})


async def test_the_configurations_variables_may_name_others(monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setenv("FROM_ENVIRONMENT", "found")
    with anyio.fail_after(10):
        async with open_client(config(manual(secret="$KEY"), variables={"m_KEY": "$FROM_ENVIRONMENT"})) as client:
            assert client.config.variables == {"m_KEY": "found"}
        with pytest.raises(UtcpVariableNotFound, match="NOWHERE"):
            await open_client({"variables": {"a": "$NOWHERE"}}).__aenter__()


# Registration


async def test_manuals_are_registered_in_parallel() -> None:
    inside, together = 0, anyio.Event()

    async def meet(what: str) -> None:
        nonlocal inside
        if what.startswith("register"):
            inside += 1
            if inside == 3:
                together.set()
            await together.wait()

    one_protocol(meet)
    with anyio.fail_after(10):
        async with open_client(config(manual("a"), manual("b"), manual("c"))) as client:
            assert len(await client.config.tool_repository.get_manuals()) == 3


async def test_a_manual_that_cannot_be_registered_does_not_keep_the_others_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail_once(what: str) -> None:
        if what == "register bad":
            raise ConnectionError("nobody there")

    one_protocol(fail_once)
    templates = [CallTemplateSerializer().validate_dict(manual(name)) for name in ("a", "bad", "c")]
    with anyio.fail_after(10):
        async with open_client() as client:
            results = await client.register_manuals(templates)
            assert [result.success for result in results] == [True, False, True]
            assert "nobody there" in results[1].errors[0]
            assert names(await client.search_tools("tool")) == ["a.tool", "c.tool"]
    assert "the manual bad could not be registered: ConnectionError: nobody there" in caplog.text


async def test_a_missing_variable_fails_a_registration_after_the_others_have_settled() -> None:
    protocol = one_protocol()
    templates = [CallTemplateSerializer().validate_dict(values) for values in (manual("a", secret="$NO"), manual("b"))]
    with anyio.fail_after(10):
        async with open_client() as client:
            with pytest.raises(UtcpVariableNotFound, match="a_NO"):
                await client.register_manuals(templates)
            assert names(await client.search_tools("tool")) == ["b.tool"]
    assert protocol.log == ["register b", "close"]


async def test_what_an_error_of_a_validation_shows_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    install()
    with anyio.fail_after(10):
        given = config(manual(number="$SECRET"), variables={"m_SECRET": "hunter2"})
        with pytest.raises(UtcpSerializerValidationError):
            await open_client(given).__aenter__()
        given = config({**manual(), "secret": "$SECRET"}, variables={"m_SECRET": "hunter2"})
        given["manual_call_templates"][0]["tools"] = [{"name": "tool", "tags": "hunter2"}]
        async with open_client(given):
            pass
    assert "the manual m could not be registered: ValidationError" in caplog.text
    assert "hunter2" not in caplog.text


# A creation that fails


async def test_a_failed_creation_removes_what_it_registered_and_closes_what_it_created() -> None:
    protocol = one_protocol()
    shared = AnyioToolRepository()
    with anyio.fail_after(10):
        async with open_client(UtcpClientConfig(tool_repository=shared)) as other:
            await other.register_manual(CallTemplateSerializer().validate_dict(manual("kept")))
            protocol.log.clear()
            given = UtcpClientConfig(tool_repository=shared, **config(manual("a"), manual("b", secret="$MISSING")))
            with pytest.raises(UtcpVariableNotFound):
                await open_client(given).__aenter__()
            assert protocol.log == ["register a", "deregister a", "close"]
            assert names(await shared.get_tools()) == ["kept.tool"]


async def test_a_cancelled_creation_removes_what_it_registered_and_closes_what_it_created() -> None:
    stalled = anyio.Event()

    async def stall(what: str) -> None:
        if what == "register slow":
            stalled.set()
            await anyio.sleep_forever()

    protocol = one_protocol(stall)
    shared = AnyioToolRepository()
    given = UtcpClientConfig(tool_repository=shared, **config(manual("fast"), manual("slow")))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as task_group:

            async def create() -> None:
                async with open_client(given):
                    pytest.fail("it was cancelled before")

            task_group.start_soon(create)
            await stalled.wait()
            while not await shared.get_manuals():
                await anyio.lowlevel.checkpoint()
            task_group.cancel_scope.cancel()
    assert sorted(protocol.log[:2]) == ["register fast", "register slow"]
    assert protocol.log[2:] == ["deregister fast", "close"]
    assert await shared.get_manuals() == []


async def test_a_failure_to_clean_up_is_logged_and_the_first_failure_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(what: str) -> None:
        if not what.startswith("register"):
            raise RuntimeError(f"cannot {what}")

    one_protocol(fail)
    with anyio.fail_after(10), pytest.raises(UtcpVariableNotFound):
        await open_client(config(manual("a"), manual("b", secret="$MISSING"))).__aenter__()
    assert "cannot deregister a" in caplog.text
    assert "could not all be closed: RuntimeError: cannot close" in caplog.text


async def test_a_factory_that_fails_leaves_the_protocols_before_it_closed() -> None:
    def broken() -> CommunicationProtocol:
        raise LookupError("no such thing")

    protocol = one_protocol()
    install(broken, "broken")
    with anyio.fail_after(10), pytest.raises(LookupError, match="no such thing"):
        await open_client().__aenter__()
    assert protocol.log == ["close"]


async def test_a_clean_up_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stall(what: str) -> None:
        if not what.startswith("register"):
            await anyio.sleep_forever()

    monkeypatch.setattr("utcp_websocket_anyio._client.client._CLEAN_UP_TIME", 0.05)
    protocol = one_protocol(stall)
    with anyio.fail_after(10), pytest.raises(UtcpVariableNotFound):
        await open_client(config(manual("a"), manual("b", secret="$MISSING"))).__aenter__()
    assert protocol.log == ["register a", "deregister a", "close"]


# The end of the block


async def test_leaving_the_block_closes_each_protocol_once_and_leaves_shared_ones_alone() -> None:
    protocol, shared = one_protocol(), FakeProtocol()
    install(FakeProtocol, "other")
    CommunicationProtocol.communication_protocols["shared"] = shared
    with anyio.fail_after(10):
        async with open_client() as client:
            assert protocol.log == []
            assert repr(client) == "<AnyioUtcpClient <AnyioToolRepository 0 manuals, 0 tools>>"
        assert protocol.log == ["close"]
        assert repr(client) == "<AnyioUtcpClient closed>"
        async with open_client() as client:
            await client.close()
        assert protocol.log == ["close", "close"]
    assert shared.log == []


async def test_protocols_that_fail_to_close_are_raised_together_after_all_were_asked() -> None:
    async def fail(what: str) -> None:
        raise OSError("stuck")

    asked = [FakeProtocol(fail), FakeProtocol(), FakeProtocol(fail)]
    for number, protocol in enumerate(asked):
        install(partial(next, iter([protocol])), f"fake{number}")
    with anyio.fail_after(10):
        with pytest.raises(UtcpProtocolCloseError) as raised:
            async with open_client():
                pass
    assert [type(failure) for failure in raised.value.failures] == [OSError, OSError]
    assert [protocol.log for protocol in asked] == [["close"]] * 3


async def test_an_error_in_the_block_comes_out_as_it_is_and_everything_is_closed() -> None:
    protocol = one_protocol()
    error = LookupError("in the block")
    with anyio.fail_after(10):
        with pytest.raises(LookupError) as raised:
            async with echo_server() as url, open_client(config(websocket(url))) as client:
                await client.call_tool("ws.echo", {"n": 1})
                raise error
    assert raised.value is error
    assert protocol.log == ["close"]


async def test_an_error_in_the_block_is_not_hidden_by_a_failure_to_close(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(what: str) -> None:
        raise OSError("stuck")

    one_protocol(fail)
    with anyio.fail_after(10), pytest.raises(LookupError):
        async with open_client():
            raise LookupError
    assert "stuck" in caplog.text


async def test_a_cancelled_block_closes_everything_and_does_not_wait_for_a_silent_server() -> None:
    async def note(what: str) -> None:
        finished.append(what)

    finished: list[str] = []
    one_protocol(note)
    gone = anyio.Event()

    async def silent(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        calling.set()
        await peer.until_gone()
        gone.set()

    calling = anyio.Event()
    with anyio.fail_after(20):
        async with peer(silent) as url, anyio.create_task_group() as task_group:

            async def use() -> None:
                async with open_client(config(websocket(url))) as client:
                    await client.call_tool("ws.echo", {"n": 1})

            task_group.start_soon(use)
            await calling.wait()
            began = anyio.current_time()
            task_group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await gone.wait()
        assert anyio.current_time() - began < 1.5
    assert finished == ["close"]


async def test_calls_that_still_run_when_the_client_is_closed_fail() -> None:
    async def silent(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        calling.set()
        await peer.until_closed()

    calling = anyio.Event()
    failures: list[Exception] = []
    with anyio.fail_after(20):
        async with (
            peer(silent) as url,
            anyio.create_task_group() as task_group,
            open_client(config(websocket(url))) as client,
        ):

            async def call() -> None:
                with pytest.raises(WebSocketClosedError) as raised:
                    await client.call_tool("ws.echo", {"n": 1})
                failures.append(raised.value)

            task_group.start_soon(call)
            await calling.wait()
    assert len(failures) == 1


async def test_deregistering_closes_the_manuals_connections() -> None:
    async def answer_and_wait(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.until_closed()
        closed.set()

    closed = anyio.Event()
    with anyio.fail_after(20):
        async with peer(answer_and_wait) as url, open_client(config(websocket(url))) as client:
            await client.call_tool("ws.echo", {"n": 1})
            assert await client.deregister_manual("ws")
            await closed.wait()
            with pytest.raises(ValueError, match="Tool not found"):
                await client.call_tool("ws.echo", {"n": 1})
            assert not await client.deregister_manual("ws")


async def test_a_websocket_factory_of_the_users_own_is_used_and_entered() -> None:
    made: list[WebSocketCommunicationProtocol] = []

    def make() -> CommunicationProtocol:
        made.append(WebSocketCommunicationProtocol())
        return made[-1]

    CommunicationProtocol.communication_protocol_factories["websocket"] = make
    with anyio.fail_after(20):
        async with echo_server() as url, open_client(config(websocket(url))) as client:
            assert await client.call_tool("ws.echo", {"n": 1}) == {"n": 1}
            assert "Pool" in repr(made[0])
        assert len(made) == 1
        assert repr(made[0]) == "<WebSocketCommunicationProtocol closed>"


# Without a block


def test_create_gives_a_client_without_a_block_on_asyncio() -> None:
    protocol = one_protocol()

    async def use() -> None:
        with anyio.fail_after(10):
            async with echo_server() as url:
                client = await AnyioUtcpClient.create(config=config(websocket(url), manual()))
                answers = await asyncio.gather(*(client.call_tool("ws.echo", {"n": n}) for n in range(3)))
                assert answers == [{"n": n} for n in range(3)]
                closing = asyncio.create_task(client.close())
                await closing

    asyncio.run(use())
    assert protocol.log == ["register m", "close"]


def test_a_failed_create_leaves_nothing() -> None:
    protocol = one_protocol()

    async def use() -> None:
        with anyio.fail_after(10), pytest.raises(UtcpVariableNotFound):
            await AnyioUtcpClient.create(config=config(manual("a"), manual("b", secret="$MISSING")))

    asyncio.run(use())
    assert protocol.log == ["register a", "deregister a", "close"]


def test_create_on_trio_says_what_to_use() -> None:
    with pytest.raises(RuntimeError, match="open_client"):
        trio.run(AnyioUtcpClient.create)


async def test_an_interrupt_inside_a_registration_comes_out_as_it_is() -> None:
    async def interrupt(what: str) -> None:
        if what == "register a":
            raise KeyboardInterrupt

    protocol = one_protocol(interrupt)
    with anyio.fail_after(10):
        raised: BaseException | None = None
        try:
            async with open_client() as client:
                try:
                    await client.register_manuals([CallTemplateSerializer().validate_dict(manual("a"))])
                except KeyboardInterrupt as error:
                    raised = error
        finally:
            assert isinstance(raised, KeyboardInterrupt)
    assert protocol.log == ["register a", "close"]


def test_importing_the_client_configures_no_logging() -> None:
    assert logging.getLogger("utcp_websocket_anyio").handlers == []
