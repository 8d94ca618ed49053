"""The stock client and this one, on the same input: the same results, the same errors, the same protocol calls."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.plugin import WEBSOCKET, FakeProtocol, config, install, manual
from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.implementations import utcp_client_implementation
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.implementations.in_mem_tool_repository import InMemToolRepository
from utcp.implementations.utcp_client_implementation import UtcpClientImplementation
from utcp.interfaces.concurrent_tool_repository import ConcurrentToolRepository
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import AnyioToolRepository, AnyioUtcpClient, open_client

pytestmark = pytest.mark.usefixtures("registries")

Scenario = Callable[[UtcpClient], Awaitable[Any]]


def parsed(values: dict[str, Any]) -> CallTemplate:
    return CallTemplateSerializer().validate_dict(values)


async def attempt(call: Awaitable[Any]) -> Any:
    """The result, or the error's type and text."""
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - it is compared
        return f"{type(error).__name__}: {error}"


async def stored(client: UtcpClient) -> dict[str, Any]:
    """Everything in the repository; in which order manuals come that are registered at once, nobody promises."""
    repository = client.config.tool_repository
    return {
        "tools": sorted((tool.model_dump() for tool in await repository.get_tools()), key=str),
        "manuals": sorted((found.model_dump() for found in await repository.get_manuals()), key=str),
        "templates": sorted((found.model_dump() for found in await repository.get_manual_call_templates()), key=str),
    }


async def collected(stream: Any) -> list[Any]:
    return [item async for item in stream]


# Scenarios: the configuration, and what is done with the client


async def registering_twice(client: UtcpClient) -> Any:
    first = await client.register_manual(parsed(manual()))
    return [first.success, await attempt(client.register_manual(parsed(manual()))), await stored(client)]


async def deregistering(client: UtcpClient) -> Any:
    await client.register_manuals([parsed(manual("a")), parsed(manual("b"))])
    return [await client.deregister_manual(name) for name in ("a", "a", "never")] + [await stored(client)]


async def names_are_sanitized(client: UtcpClient) -> Any:
    template = parsed(manual("my-manual v1.0/é", {"name": "a.b c"}, {"name": "my_manual_v1_0_é.prefixed"}))
    result = await client.register_manual(template)
    return [template.name, result.model_dump(), await attempt(client.call_tool("my_manual_v1_0_é.a.b c", {}))]


async def only_allowed_protocols(client: UtcpClient) -> Any:
    tools: list[dict[str, Any]] = [{"name": "own"}, {"name": "other", "tool_call_template": WEBSOCKET}]
    for name, allowed in {"a": None, "b": [], "c": ["websocket"], "d": ["fake", "websocket"], "e": ["http"]}.items():
        await client.register_manual(parsed(manual(name, *tools, allowed_communication_protocols=allowed)))
    return await stored(client)


async def a_protocol_that_is_not_there(client: UtcpClient) -> Any:
    template = CallTemplate(name="m", call_template_type="smoke_signals")
    CallTemplateSerializer.call_template_serializers["smoke_signals"] = (
        CallTemplateSerializer.call_template_serializers["fake"]
    )
    return [
        await attempt(client.register_manual(template)),
        [result.success for result in await client.register_manuals([template])],
    ]


async def calling(client: UtcpClient) -> Any:
    await client.register_manual(parsed(manual()))
    return [
        await client.call_tool("m.tool", {"x": 1}),
        await collected(client.call_tool_streaming("m.tool", {})),
        await attempt(client.call_tool("m.other", {})),
        await attempt(client.call_tool("", {})),
        await attempt(collected(client.call_tool_streaming("n.tool", {}))),
    ]


async def calling_what_is_no_longer_allowed(client: UtcpClient) -> Any:
    template = parsed(manual())
    result = await client.register_manual(template)
    template.allowed_communication_protocols = ["http"]
    await client.config.tool_repository.save_manual(template, result.manual)
    return [
        await attempt(client.call_tool("m.tool", {})),
        await attempt(collected(client.call_tool_streaming("m.tool", {}))),
    ]


async def searching(client: UtcpClient) -> Any:
    tools: list[dict[str, Any]] = [
        {"name": "weather", "description": "the weather of a city", "tags": ["forecast", "city"]},
        {"name": "time", "description": "the time in a city", "tags": ["clock"]},
        {"name": "nothing"},
    ]
    await client.register_manual(parsed(manual("m", *tools)))
    found = [
        await client.search_tools("weather city"),
        await client.search_tools("what time is it", limit=1),
        await client.search_tools("CLOCK", any_of_tags_required=["Clock", "city"]),
        await client.search_tools("city", any_of_tags_required=["none"]),
        await client.search_tools("city", limit=0),
    ]
    return [[tool.model_dump() for tool in tools] for tools in found] + [await attempt(client.search_tools("x", -1))]


async def required_variables(client: UtcpClient) -> Any:
    call_template = {"call_template_type": "fake", "name": "t", "secret": "${INNER} $OTHER"}
    with_tool = {"name": "m 1", "call_template_type": "fake", "number": 1}
    found = manual("n", {"name": "tool", "tool_call_template": {**call_template, "secret": "plain"}})
    results = [
        await attempt(client.get_required_variables_for_manual_and_tools(parsed(values)))
        for values in (manual("m-1", secret="$A$B ${A}"), manual("m", secret="$ref $X"), with_tool, found)
    ]
    await client.register_manual(parsed(manual("v")))
    tool = await client.config.tool_repository.get_tool("v.tool")
    assert tool is not None
    tool.tool_call_template = parsed({**call_template, "tools": []})
    manual_of_v = await client.config.tool_repository.get_manual("v")
    assert manual_of_v is not None
    manual_of_v.tools = [tool]
    await client.config.tool_repository.save_manual(parsed(manual("v")), manual_of_v)
    results += [
        await client.get_required_variables_for_registered_tool("v.tool"),
        await attempt(client.get_required_variables_for_registered_tool("v.other")),
        await attempt(client.call_tool("v.tool", {})),
    ]
    return [sorted(result) if isinstance(result, list) else result for result in results]


async def variables(client: UtcpClient) -> Any:
    secrets = {
        "a": "$FROM_CONFIG ${FROM_CONFIG}",
        "b": "$FROM_FILE",
        "c_d": "$FROM_ENVIRONMENT",
        "e": "$ref $NOWHERE",
        "f": "$NOWHERE",
        "g": "$5 and $",
    }
    outcomes = []
    for name, secret in secrets.items():
        outcomes.append(await attempt(client.register_manual(parsed(manual(name, secret=secret)))))
    return [outcome if isinstance(outcome, str) else outcome.manual_call_template.secret for outcome in outcomes] + [
        client.config.variables
    ]


async def post_processing(client: UtcpClient) -> Any:
    await client.register_manual(parsed(manual()))
    return [
        await client.call_tool("m.tool", {"text": "a long text"}),
        await collected(client.call_tool_streaming("m.tool", {})),
    ]


async def nothing(client: UtcpClient) -> Any:
    return await stored(client)


async def several_at_once(client: UtcpClient) -> Any:
    templates = [parsed(manual("good")), parsed(manual("bad")), parsed(manual("also good"))]
    results = await client.register_manuals(templates)
    return [
        [
            (result.success, len(result.manual.tools), [text.splitlines()[-1] for text in result.errors])
            for result in results
        ],
        await stored(client),
    ]


PROCESSORS = [
    {"tool_post_processor_type": "filter_dict", "exclude_keys": ["secret"]},
    {"tool_post_processor_type": "limit_strings", "limit": 3},
]
SCENARIOS: list[tuple[Scenario, dict[str, Any]]] = [
    (registering_twice, {}),
    (deregistering, {}),
    (names_are_sanitized, {}),
    (only_allowed_protocols, {}),
    (a_protocol_that_is_not_there, {}),
    (calling, {}),
    (calling_what_is_no_longer_allowed, {}),
    (searching, {}),
    (
        searching,
        {"tool_search_strategy": {"tool_search_strategy_type": "tag_and_description_word_match", "tag_weight": 0}},
    ),
    (required_variables, {"variables": {"v_OTHER": "found"}}),
    (required_variables, {"variables": {"v_OTHER": "found", "v_INNER": "too", "m__1_A": "1", "m__1_B": "2"}}),
    (post_processing, {"post_processing": PROCESSORS}),
    (several_at_once, {}),
    (nothing, {}),
    (nothing, config(manual("a"), manual("b", {"name": "x"}, {"name": "y"}))),
    (nothing, config(manual("same"), manual("other"), manual("bad"))),
    (nothing, config(manual("a"), manual("b", secret="$MISSING"))),
    (nothing, {"variables": {"a": "$NOT_THERE"}}),
    (nothing, {"variables": None}),
]


async def fail_bad(what: str) -> None:
    if what == "register bad":
        raise LookupError("this one is bad")


def with_stock(given: Any, scenario: Scenario) -> Any:
    async def run() -> Any:
        client = await UtcpClient.create(config=given)
        result = await scenario(client)
        await client.close()
        return result

    return recorded(run, "asyncio")


def with_ours(given: Any, scenario: Scenario, backend: str) -> Any:
    async def run() -> Any:
        async with open_client(given) as client:
            return await scenario(client)

    return recorded(run, backend)


def recorded(run: Callable[[], Awaitable[Any]], backend: str) -> Any:
    """The result, and the calls that the protocol got."""
    protocol = FakeProtocol(fail_bad)
    install(lambda: protocol)

    async def bounded() -> Any:
        with anyio.fail_after(20):
            return await attempt(run())

    return anyio.run(bounded, backend=backend), sorted(protocol.log)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("scenario", "given"), [pytest.param(*case, id=f"{n}-{case[0].__name__}") for n, case in enumerate(SCENARIOS)]
)
def test_the_same_input_gives_the_same(scenario: Scenario, given: dict[str, Any], backend: str) -> None:
    assert with_ours(given, scenario, backend) == with_stock(given, scenario)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_variables_come_from_the_same_places(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "variables.env"
    path.write_text("b_FROM_FILE=file\na_FROM_CONFIG=not this\n")
    monkeypatch.setenv("c__d_FROM_ENVIRONMENT", "environment")
    monkeypatch.setenv("b_FROM_FILE", "not this")
    monkeypatch.setenv("ROOT", "root")
    given = {
        "variables": {"a_FROM_CONFIG": "<$ROOT>", "g_5": "five"},
        "load_variables_from": [{"variable_loader_type": "dotenv", "env_file_path": str(path)}],
    }
    ours = with_ours(given, variables, backend)
    assert ours == with_stock(given, variables)
    assert "environment" in str(ours)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "content", ["[1]", '{"variables": 1}', '{"tool_repository": {"tool_repository_type": "?"}}', "{"]
)
def test_a_wrong_configuration_file_is_the_same_error(backend: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text(content)
    ours, stock = with_ours(str(path), nothing, backend), with_stock(str(path), nothing)
    # Behind it core puts its traceback.
    assert ours[0].splitlines()[0].split(", error")[0] == stock[0].splitlines()[0].split(", error")[0]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_protocols_that_fail_to_close_are_the_same_error(backend: str) -> None:
    async def stuck(what: str) -> None:
        raise OSError("stuck")

    def closing(use: Callable[[], Awaitable[Any]], on: str) -> Any:
        install(lambda: FakeProtocol(stuck))
        return anyio.run(lambda: attempt(use()), backend=on)

    async def stock() -> None:
        await (await UtcpClient.create()).close()

    async def ours() -> None:
        async with open_client():
            pass

    assert closing(ours, backend) == closing(stock, "asyncio")


# The repositories


async def everything(repository: ConcurrentToolRepository) -> list[Any]:
    """One life of a repository, all methods in turn."""
    from utcp.data.tool import Tool
    from utcp.data.utcp_manual import UtcpManual

    def made(name: str, *tools: str) -> tuple[CallTemplate, UtcpManual]:
        template = parsed(manual(name))
        return template, UtcpManual(tools=[Tool(name=tool, tool_call_template=template) for tool in tools])

    seen: list[Any] = []

    async def look() -> None:
        for name in ("m", "n"):
            seen.append(await repository.get_manual(name))
            seen.append(await repository.get_manual_call_template(name))
            seen.append(await repository.get_tools_by_manual(name))
        seen.append([await repository.get_tool(name) for name in ("m.a", "m.b", "n.a")])
        seen.append(await repository.get_tools())
        seen.append(await repository.get_manuals())
        seen.append(await repository.get_manual_call_templates())

    await look()
    await repository.save_manual(*made("m", "m.a", "m.b"))
    await repository.save_manual(*made("n", "n.a"))
    await look()
    await repository.save_manual(*made("m", "m.b", "m.c"))
    seen.append([await repository.remove_tool("m.c"), await repository.remove_tool("m.a")])
    await look()
    seen.append([await repository.remove_manual("m"), await repository.remove_manual("m")])
    await look()
    return seen


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_repositories_hold_the_same(backend: str) -> None:
    install()
    core: Any = InMemToolRepository
    assert anyio.run(everything, AnyioToolRepository(), backend=backend) == anyio.run(everything, core())


# What is replaced, and what it was written against. When core changes one of these, compare it with what stands in its
# place in client.py, resolution.py and repository.py, and only then note its new digest here.

REPLACED = {
    UtcpClientImplementation: {
        "__init__": "f4966fc3e369efb0",
        "create": "a6d620e187e192fa",
        "close": "77a784837f6c8a62",
        "_close_owned_protocols": "4815b3eebc7e14b2",
        "_register_each": "c7f7f6847d86bdf4",
        "_adopt": "d02561d67ea29793",
        "_adopt_factory_protocols": "209091f5c539bc6c",
        "_protocol_for": "bf4aa360360b50f9",
        "deregister_manual": "e628389d3019ca47",
        "call_tool": "6ce1878551a14186",
        "call_tool_streaming": "fc6a2a30e613dffe",
        "_substitute_call_template_variables": "127483e86cbc823d",
    },
    DefaultVariableSubstitutor: {"substitute": "ddbe5b264e622891"},
    InMemToolRepository: {
        "__init__": "f45cfdb1f61269bc",
        "save_manual": "d547592746a151e6",
        "remove_manual": "e6ed3baa6ad4743c",
        "remove_tool": "dc510f7d07955b59",
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REPLACED.items() for name in names])
def test_core_is_what_the_replacement_was_written_against(kind: Any, name: str) -> None:
    source = inspect.getsource(getattr(kind, name))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == REPLACED[kind][name]


def test_nothing_else_in_cores_client_needs_asyncio() -> None:
    tree = ast.parse(inspect.getsource(utcp_client_implementation))
    methods = [node for node in ast.walk(tree) if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef))]
    uses = {
        method.name
        for method in methods
        for node in ast.walk(method)
        if isinstance(node, ast.Name) and node.id == "asyncio"
    }
    assert uses == {"_close_owned_protocols", "_register_each"}
    assert uses <= vars(AnyioUtcpClient).keys()


@pytest.mark.parametrize(
    ("ours", "core"), [(AnyioUtcpClient, UtcpClientImplementation), (AnyioToolRepository, ConcurrentToolRepository)]
)
def test_every_method_of_the_interface_takes_the_same_arguments(ours: type, core: type) -> None:
    for name, method in inspect.getmembers(core, inspect.isroutine):
        if not name.startswith("_") and name in vars(core):
            expected = inspect.signature(method).parameters.keys()
            assert inspect.signature(getattr(ours, name)).parameters.keys() == expected, name
