"""`AnyioToolRepository`: what is stored stays as it was stored, on any event loop and in any client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio.testing
from support.plugin import config, install, manual
from utcp.data.call_template import CallTemplate
from utcp.data.tool import JsonSchema, Tool
from utcp.data.utcp_client_config import UtcpClientConfig, UtcpClientConfigSerializer
from utcp.data.utcp_manual import UtcpManual
from utcp.implementations.in_mem_tool_repository import InMemToolRepository
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import AnyioToolRepository, WebSocketCallTemplate

pytestmark = pytest.mark.anyio


def template(name: str = "m") -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name=name, url="wss://api.example/", headers={"X": "1"})


def tool(name: str, description: str = "") -> Tool:
    inputs = JsonSchema.model_validate({"type": "object", "properties": {"x": {"type": "string"}}})
    return Tool(name=name, description=description, inputs=inputs, tags=["a"], tool_call_template=template("t"))


async def render_text(**manuals: list[str]) -> AnyioToolRepository:
    repository = AnyioToolRepository()
    for name, tools in manuals.items():
        await repository.save_manual(template(name), UtcpManual(tools=[tool(tool_name) for tool_name in tools]))
    return repository


async def names(repository: Any) -> list[str]:
    return sorted(found.name for found in await repository.get_tools())


Get = Callable[[AnyioToolRepository], Awaitable[Any]]


async def the_tool(repository: AnyioToolRepository) -> Any:
    return await repository.get_tool("m.a")


async def the_tools(repository: AnyioToolRepository) -> Any:
    return (await repository.get_tools())[0]


async def the_manuals_tools(repository: AnyioToolRepository) -> Any:
    return (await repository.get_tools_by_manual("m") or [])[0]


async def the_manual(repository: AnyioToolRepository) -> Any:
    found = await repository.get_manual("m")
    assert found is not None
    return found.tools[0]


async def the_manuals(repository: AnyioToolRepository) -> Any:
    return (await repository.get_manuals())[0].tools[0]


@pytest.mark.parametrize("get", [the_tool, the_tools, the_manuals_tools, the_manual, the_manuals])
async def test_what_it_hands_out_cannot_alter_a_stored_tool(get: Get) -> None:
    repository = await render_text(m=["m.a"])
    before = (await get(repository)).model_dump()
    handed_out = await get(repository)
    handed_out.name = "other"
    handed_out.tags.append("b")
    handed_out.inputs.properties["x"].type = "integer"
    handed_out.tool_call_template.headers["X"] = "2"
    assert (await get(repository)).model_dump() == before
    assert (await the_tool(repository)).model_dump() == before


async def test_what_it_hands_out_cannot_alter_a_stored_call_template() -> None:
    repository = await render_text(m=["m.a"])
    for handed_out in (
        await repository.get_manual_call_template("m"),
        (await repository.get_manual_call_templates())[0],
    ):
        assert isinstance(handed_out, WebSocketCallTemplate)
        assert handed_out.headers is not None
        handed_out.headers["X"] = "2"
    assert await repository.get_manual_call_template("m") == template("m")


async def test_what_was_given_to_it_can_be_altered_without_altering_what_is_stored() -> None:
    repository = AnyioToolRepository()
    given, call_template = UtcpManual(tools=[tool("m.a")]), template("m")
    await repository.save_manual(call_template, given)
    given.tools[0].description = "altered"
    given.tools.clear()
    call_template.url = "wss://other.example/"
    assert await repository.get_tools() == [tool("m.a")]
    assert await repository.get_manual_call_template("m") == template("m")


async def test_a_missing_entry_gives_none_or_false() -> None:
    repository = await render_text(m=["m.a"])
    assert await repository.get_tool("m.b") is None
    assert await repository.get_manual("n") is None
    assert await repository.get_tools_by_manual("n") is None
    assert await repository.get_manual_call_template("n") is None
    assert not await repository.remove_tool("m.b")
    assert not await repository.remove_manual("n")
    assert await names(repository) == ["m.a"]


async def test_a_manual_saved_again_replaces_its_tools() -> None:
    repository = await render_text(m=["m.a", "m.b"], n=["n.a"])
    await repository.save_manual(template("m"), UtcpManual(tools=[tool("m.b", "new"), tool("m.c")]))
    assert await names(repository) == ["m.b", "m.c", "n.a"]
    found = await repository.get_tool("m.b")
    assert found is not None
    assert found.description == "new"


async def test_a_removed_manual_takes_its_tools_with_it() -> None:
    repository = await render_text(m=["m.a"], n=["n.a"])
    assert await repository.remove_manual("m")
    assert await names(repository) == ["n.a"]
    assert [found.name for found in await repository.get_manual_call_templates()] == ["n"]
    assert len(await repository.get_manuals()) == 1


async def test_removing_a_manual_leaves_a_tool_that_another_manual_stored_under_the_same_name() -> None:
    repository = await render_text(m=["tool"], n=["tool"])
    assert await repository.remove_manual("m")
    assert await names(repository) == ["tool"]


async def test_a_removed_tool_is_gone_from_its_manual() -> None:
    repository = await render_text(m=["m.a", "m.b"])
    assert await repository.remove_tool("m.a")
    assert [found.name for found in await repository.get_tools_by_manual("m") or []] == ["m.b"]
    assert await names(repository) == ["m.b"]


async def test_on_the_contents_of_cores_repository_it_and_core_see_the_same() -> None:
    core = InMemToolRepository()
    await core.save_manual(template("m"), UtcpManual(tools=[tool("m.a")]))
    repository = AnyioToolRepository.sharing(core)
    assert await repository.get_tools() == await core.get_tools() == [tool("m.a")]
    await repository.save_manual(template("n"), UtcpManual(tools=[tool("n.a")]))
    assert await core.get_manual("n") == await repository.get_manual("n")
    await core.remove_manual("m")
    assert await names(repository) == ["n.a"]
    assert await repository.remove_tool("n.a")
    assert await core.get_tools_by_manual("n") == []


async def test_its_repr_says_how_much_is_in_it() -> None:
    assert repr(await render_text(m=["m.a", "m.b"])) == "<AnyioToolRepository 1 manuals, 2 tools>"


def test_no_method_is_a_checkpoint() -> None:
    async def use_all() -> None:
        with trio.testing.assert_no_checkpoints():
            repository = await render_text(m=["m.a", "m.b"])
            for get in (the_tool, the_tools, the_manuals_tools, the_manual, the_manuals):
                await get(repository)
            await repository.get_manual_call_template("m")
            await repository.get_manual_call_templates()
            await repository.remove_tool("m.a")
            await repository.remove_manual("m")

    trio.run(use_all)


async def test_a_configuration_can_name_its_type() -> None:
    serializer = UtcpClientConfigSerializer()
    loaded = serializer.validate_dict({"tool_repository": {"tool_repository_type": "anyio_in_memory"}})
    assert type(loaded.tool_repository) is AnyioToolRepository
    assert serializer.to_dict(loaded)["tool_repository"] == {"tool_repository_type": "anyio_in_memory"}


def test_the_stock_client_works_with_it(registries: None) -> None:
    install()

    async def use() -> None:
        with anyio.fail_after(10):
            given = config(manual(), tool_repository={"tool_repository_type": "anyio_in_memory"}, variables={"a": "b"})
            client = await UtcpClient.create(config=given)
            assert type(client.config.tool_repository) is AnyioToolRepository
            assert (await client.call_tool("m.tool", {"x": 1}))["args"] == {"x": 1}
            assert [found.name for found in await client.search_tools("tool")] == ["m.tool"]
            assert await client.deregister_manual("m")
            assert await client.search_tools("tool") == []
            await client.close()

    anyio.run(use)


async def test_two_of_them_have_nothing_in_common() -> None:
    one, other = AnyioToolRepository(), UtcpClientConfig(tool_repository=AnyioToolRepository()).tool_repository
    await one.save_manual(CallTemplate(name="m", call_template_type="text"), UtcpManual(tools=[tool("m.a")]))
    assert await other.get_tools() == []
