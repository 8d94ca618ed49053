"""Calls through a client: what they cost, when variables count, and how streams end."""

from __future__ import annotations

import gc
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.peers import Peer, echo_server, peer
from support.plugin import WEBSOCKET, FakeProtocol, FakeTemplate, FakeTemplateSerializer, config, install, manual
from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.exceptions import UtcpVariableNotFound
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.interfaces.tool_post_processor import ToolPostProcessor

from utcp_websocket_anyio import AnyioUtcpClient, WebSocketToolError, open_client

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("registries")]


@pytest.fixture
def protocol(registries: None) -> FakeProtocol:
    made = FakeProtocol()
    install(lambda: made)
    return made


def secretive(secret: str = "$KEY") -> dict[str, Any]:
    """A manual whose tool holds a variable, in a template that was saved unresolved."""
    tool = {"name": "tool", "tool_call_template": {"call_template_type": "fake", "name": "t", "secret": secret}}
    return manual("m", tool)


async def save(client: AnyioUtcpClient, values: dict[str, Any]) -> None:
    """Store a manual with its variables unresolved, as a protocol that fetched it would."""
    template = CallTemplateSerializer().validate_dict(values)
    tools = [Tool.model_validate({**tool, "name": f"{template.name}.{tool['name']}"}) for tool in values["tools"]]
    await client.config.tool_repository.save_manual(template, UtcpManual(tools=tools))


class Collect(ToolPostProcessor):
    """Keeps what it is given, and marks results."""

    tool_post_processor_type: str = "collect"
    seen: list[Any] = []  # noqa: RUF012 - copied by pydantic

    def post_process(self, caller: Any, tool: Tool, manual_call_template: CallTemplate, result: Any) -> Any:
        self.seen.append((tool, manual_call_template))
        tool.tags.append("written by a post-processor")
        return {**result, "seen": len(self.seen)}


# What a call costs


async def test_a_call_copies_no_tool_and_builds_no_template_while_nothing_changes(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(10):
        async with open_client({"variables": {"m_KEY": "one"}}) as client:
            await save(client, secretive())
            await client.call_tool("m.tool", {})
            built = FakeTemplateSerializer.built

            def copied(*args: Any, **kwargs: Any) -> Any:
                pytest.fail("a call copied a model")

            monkeypatch.setattr(Tool, "model_copy", copied)
            monkeypatch.setattr(CallTemplate, "model_copy", copied)
            for _ in range(3):
                assert (await client.call_tool("m.tool", {}))["secret"] == "one"
                async with aclosing(client.call_tool_streaming("m.tool", {})) as stream:
                    assert (await stream.__anext__())["secret"] == "one"
            assert FakeTemplateSerializer.built == built


async def test_a_template_without_variables_needs_no_substitution(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(10):
        async with open_client(config(manual())) as client:
            await client.call_tool("m.tool", {})
            monkeypatch.setattr(DefaultVariableSubstitutor, "substitute", lambda *_: pytest.fail("substituted"))
            assert (await client.call_tool("m.tool", {}))["tool"] == "m.tool"


async def test_a_template_that_its_protocol_wrote_into_is_built_anew(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client(config(secretive("as it was"))) as client:
            await client.call_tool("m.tool", {})
            protocol.templates[-1].secret = "written by the protocol"
            assert (await client.call_tool("m.tool", {}))["secret"] == "as it was"


# Variables


async def test_a_changed_variable_counts_at_the_next_call(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client({"variables": {"m_KEY": "one"}}) as client:
            await save(client, secretive("<$KEY> and <${KEY}>"))
            variables = client.config.variables
            assert variables is not None
            assert (await client.call_tool("m.tool", {}))["secret"] == "<one> and <one>"
            variables["m_KEY"] = "two"
            assert (await client.call_tool("m.tool", {}))["secret"] == "<two> and <two>"
            client.config.variables = {"m_KEY": "three"}
            assert [item["secret"] async for item in client.call_tool_streaming("m.tool", {})] == [
                "<three> and <three>"
            ] * 3
            client.config.variables = {}
            with pytest.raises(UtcpVariableNotFound, match="m_KEY"):
                await client.call_tool("m.tool", {})


async def test_variables_of_the_environment_and_of_loaders_count_when_they_change(
    protocol: FakeProtocol, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "variables.env"
    loader = {"variable_loader_type": "dotenv", "env_file_path": str(path)}
    monkeypatch.setenv("m_KEY", "environment")
    path.write_text("")
    with anyio.fail_after(10):
        async with open_client({"load_variables_from": [loader]}) as client:
            await save(client, secretive())
            assert (await client.call_tool("m.tool", {}))["secret"] == "environment"
            path.write_text("m_KEY=file")
            assert (await client.call_tool("m.tool", {}))["secret"] == "file"
            path.write_text("m_KEY=changed")
            assert (await client.call_tool("m.tool", {}))["secret"] == "changed"


async def test_a_substitutor_of_the_users_own_is_asked_at_each_call(protocol: FakeProtocol) -> None:
    class Own(DefaultVariableSubstitutor):
        value = "one"

        def substitute(self, obj: Any, config: Any, variable_namespace: str | None = None) -> Any:
            return {**obj, "secret": f"{variable_namespace} {self.value}"}

    with anyio.fail_after(10):
        async with open_client(config(secretive("no variable"))) as client:
            assert (await client.call_tool("m.tool", {}))["secret"] == "no variable"
            client.variable_substitutor = own = Own()
            assert (await client.call_tool("m.tool", {}))["secret"] == "m one"
            own.value = "two"
            assert (await client.call_tool("m.tool", {}))["secret"] == "m two"


async def test_a_manual_saved_anew_counts_at_the_next_call(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client(config(secretive("old"))) as client:
            assert (await client.call_tool("m.tool", {}))["secret"] == "old"
            await save(client, secretive("new"))
            assert (await client.call_tool("m.tool", {}))["secret"] == "new"


async def test_nothing_is_kept_of_a_manual_that_was_deregistered(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client(config(secretive("old"), manual("n"))) as client:
            await client.call_tool("m.tool", {})
            await client.call_tool("n.tool", {})
            await client.deregister_manual("m")
            assert list(client._resolved._by_tool) == ["n.tool"]


# What a caller gets back


async def test_nothing_that_a_caller_gets_back_alters_a_stored_tool(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client() as client:
            result = await client.register_manual(CallTemplateSerializer().validate_dict(secretive("stored")))
            found = await client.config.tool_repository.get_tool("m.tool")
            assert found is not None
            for tool in (result.manual.tools[0], found, (await client.search_tools("tool"))[0]):
                assert isinstance(tool.tool_call_template, FakeTemplate)
                tool.tool_call_template.secret = "altered"
                tool.name = "altered"
            assert [tool.name for tool in await client.search_tools("tool")] == ["m.tool"]
            assert (await client.call_tool("m.tool", {}))["secret"] == "stored"


async def test_a_post_processor_gets_a_tool_of_its_own_and_the_resolved_template(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        collect = Collect()
        async with open_client({"variables": {"m_KEY": "one"}}) as client:
            await save(client, secretive())
            client.config.post_processing = [collect]
            assert (await client.call_tool("m.tool", {}))["seen"] == 1
            assert [item["seen"] async for item in client.call_tool_streaming("m.tool", {})] == [2, 3, 4]
            stored = await client.config.tool_repository.get_tool("m.tool")
            assert stored is not None
            assert stored.tags == []
    assert {tool.name for tool, _ in collect.seen} == {"m.tool"}
    assert {template.secret for _, template in collect.seen} == {"one"}


# Refusals


async def test_a_tool_whose_protocol_its_manual_does_not_allow_is_not_called(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client() as client:
            await save(client, manual("m", {"name": "tool", "tool_call_template": WEBSOCKET}))
            with pytest.raises(ValueError, match=r"'websocket' which is not allowed by manual 'm'.*\['fake'\]"):
                await client.call_tool("m.tool", {})
            with pytest.raises(ValueError, match="not allowed"):
                await client.call_tool_streaming("m.tool", {}).__anext__()
    assert protocol.templates == []


async def test_a_tool_that_is_not_there_is_named(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client() as client:
            with pytest.raises(ValueError, match=r"Tool not found: m\.tool"):
                await client.call_tool("m.tool", {})
            stream = client.call_tool_streaming("m.tool", {})
            with pytest.raises(ValueError, match=r"Tool not found: m\.tool"):
                await stream.__anext__()
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()


# Streams


async def test_a_stream_that_is_closed_early_closes_that_of_the_protocol(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client(config(manual())) as client:
            async with aclosing(client.call_tool_streaming("m.tool", {})) as stream:
                assert (await stream.__anext__())["number"] == 0
                assert (await stream.asend(None))["number"] == 1
                assert "end m.tool" not in protocol.log
            assert protocol.log[-1] == "end m.tool"
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()


async def test_a_stream_that_was_never_read_calls_nothing(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client(config(manual())) as client:
            await client.call_tool_streaming("m.tool", {}).aclose()
            client.call_tool_streaming("m.tool", {})
    assert protocol.log == ["register m", "close"]


async def test_an_error_thrown_into_a_stream_closes_that_of_the_protocol(protocol: FakeProtocol) -> None:
    with anyio.fail_after(10):
        async with open_client(config(manual())) as client:
            for error in (LookupError("thrown"), LookupError):
                stream: Any = client.call_tool_streaming("m.tool", {})
                await stream.__anext__()
                with pytest.raises(LookupError):
                    await stream.athrow(error)
                assert protocol.log[-1] == "end m.tool"
            stream = client.call_tool_streaming("m.tool", {})
            with pytest.raises(TypeError):
                await stream.asend("a value")


async def test_a_failing_post_processor_ends_the_stream(protocol: FakeProtocol) -> None:
    class Fails(Collect):
        def post_process(self, *args: Any) -> Any:
            raise LookupError

    with anyio.fail_after(10):
        async with open_client(config(manual())) as client:
            client.config.post_processing = [Fails()]
            stream = client.call_tool_streaming("m.tool", {})
            with pytest.raises(LookupError):
                await stream.__anext__()
            assert protocol.log[-1] == "end m.tool"


async def test_only_one_task_reads_a_stream_at_a_time(registries: None) -> None:
    async def stall(what: str) -> None:
        if what.startswith("stream"):
            reading.set()
            await anyio.sleep_forever()

    reading = anyio.Event()
    install(lambda: FakeProtocol(stall))
    with anyio.fail_after(10):
        async with open_client(config(manual())) as client, anyio.create_task_group() as task_group:
            stream: Any = client.call_tool_streaming("m.tool", {})
            task_group.start_soon(stream.__anext__)
            await reading.wait()
            for another in (stream.__anext__, stream.aclose):
                with pytest.raises(RuntimeError, match="another task"):
                    await another()
            task_group.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["break", "closed", "cancelled"])
async def test_an_abandoned_stream_gives_up_its_connection_at_once(how: str) -> None:
    async def push(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("1")
        try:
            await peer.until_closed()
        finally:
            gone.set()

    gone = anyio.Event()
    template = {**WEBSOCKET, "listen_only": True}
    with anyio.fail_after(10):
        async with peer(push) as url:
            values = {**template, "name": "ws", "url": url, "tools": [{"name": "feed"}]}
            async with open_client(config(values)) as client:
                if how == "break":
                    async for item in client.call_tool_streaming("ws.feed", {}):
                        assert item == "1"
                        break
                    gc.collect()
                elif how == "closed":
                    async with aclosing(client.call_tool_streaming("ws.feed", {})) as stream:
                        assert await stream.__anext__() == "1"
                else:
                    with anyio.CancelScope() as scope:
                        async for _ in client.call_tool_streaming("ws.feed", {}):
                            scope.cancel()
                await gone.wait()


# Arguments as `${name}`


async def test_a_declared_input_is_an_argument_in_a_manual_of_any_protocol(protocol: FakeProtocol) -> None:
    inputs = {"type": "object", "properties": {"text": {"type": "string"}}}
    with anyio.fail_after(20):
        async with echo_server() as url:
            template = {
                **WEBSOCKET,
                "url": url,
                "message": {"said": "${text}", "key": "${KEY}"},
                "response_format": "json",
            }
            protocol.found["m"] = [{"name": "say", "inputs": inputs, "tool_call_template": template}]
            values = manual("m", allowed_communication_protocols=["websocket"])
            async with open_client(config(values, variables={"m_KEY": "a variable", "m_text": "not this"})) as client:
                assert await client.get_required_variables_for_registered_tool("m.say") == ["m_KEY"]
                assert await client.call_tool("m.say", {"text": "hello"}) == {"said": "hello", "key": "a variable"}


async def test_a_failed_call_raises_this_packages_error(registries: None) -> None:
    def refuse(message: str | bytes) -> list[str | bytes]:
        return ['{"error": "no"}']

    with anyio.fail_after(20):
        async with echo_server(respond=refuse) as url:
            tool = {"name": "tool"}
            values = {**WEBSOCKET, "name": "ws", "url": url, "error_filter": {"error": {"$any": True}}, "tools": [tool]}
            async with open_client(config(values)) as client:
                with pytest.raises(WebSocketToolError):
                    await client.call_tool("ws.tool", {})
