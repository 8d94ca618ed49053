"""Schemas that hold no references: every definition stands where it is used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from utcp_websocket_anyio import ToolServer


class Point(BaseModel):
    x: float
    y: float


class Line(BaseModel):
    start: Point
    end: Point = Field(description="Where it ends.")


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Mapping(BaseModel):
    mapping: dict[str, int]
    propertyName: str  # noqa: N815 - a name that a schema has, too


class Folder(BaseModel):
    files: list[File]


class File(BaseModel):
    folder: Folder | None


Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str | None")


def described(function: Any) -> dict[str, Any]:
    server = ToolServer("schemas")
    server.tool(name="tool")(function)
    (tool,) = server.manual("ws://127.0.0.1:9")["tools"]
    assert isinstance(tool, dict)
    return tool


def inputs(function: Any) -> Any:
    return described(function)["inputs"]["properties"]


def test_a_definition_stands_at_each_of_its_places() -> None:
    def draw(line: Line, at: Point) -> Line:
        return line

    tool = described(draw)
    numbers = {name: {"title": name.upper(), "type": "number"} for name in ("x", "y")}
    point = {"properties": numbers, "required": ["x", "y"], "title": "Point", "type": "object"}
    assert tool["inputs"]["properties"]["at"] == point
    line = tool["inputs"]["properties"]["line"]["properties"]
    assert line["start"] == point
    assert line["end"] == {**point, "description": "Where it ends."}
    assert tool["outputs"]["properties"]["start"] == point
    assert "$" not in json.dumps(tool)


def test_a_type_that_contains_itself_is_left_open_where_it_does() -> None:
    def grow(tree: Node) -> Folder:
        return Folder(files=[])

    tool = described(grow)
    tree = tool["inputs"]["properties"]["tree"]
    assert tree["properties"]["value"]["type"] == "integer"
    assert tree["properties"]["children"]["items"] == {"title": "Node", "type": "object"}
    file = tool["outputs"]["properties"]["files"]["items"]
    assert {"title": "Folder", "type": "object"} in file["properties"]["folder"]["anyOf"]
    assert "$" not in json.dumps(tool)


def test_a_type_that_is_nothing_but_itself_is_left_open() -> None:
    def take(value: Json) -> None: ...

    value = inputs(take)["value"]
    assert {"type": "array", "items": {}} in value["anyOf"]
    assert "$" not in json.dumps(value)


def test_alternatives_that_a_member_tells_apart_are_all_there() -> None:
    def feed(pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None: ...

    pet = inputs(feed)["pet"]
    assert pet["discriminator"] == {"propertyName": "kind"}
    assert [one["properties"]["kind"]["const"] for one in pet["oneOf"]] == ["cat", "dog"]
    assert "$" not in json.dumps(pet)


def test_a_member_that_is_called_like_a_key_of_schemas_stays() -> None:
    def take(value: Mapping) -> None: ...

    assert set(inputs(take)["value"]["properties"]) == {"mapping", "propertyName"}


def test_models_that_refer_to_each_other_without_end_are_a_clear_error() -> None:
    # Thirty models, each of them with two of the next: complete, they would have a billion parts.
    model: Any = int
    for number in range(30):
        model = type(f"M{number}", (BaseModel,), {"__annotations__": {"one": model, "two": model}})

    def take(value: Any) -> None: ...

    take.__annotations__["value"] = model
    with pytest.raises(TypeError, match="the schema would have no end"):
        described(take)


async def _items() -> AsyncIterator[Point]:
    yield Point(x=0, y=0)


def _plain_items() -> Iterator[Point]:
    yield Point(x=0, y=0)


def _returned() -> Iterator[Point]:
    return iter(())


@pytest.mark.parametrize("function", [_items, _plain_items, _returned])
def test_the_outputs_of_a_stream_are_those_of_an_item(function: Any) -> None:
    tool = described(function)
    assert set(tool["outputs"]["properties"]) == {"x", "y"}
    assert tool["tool_call_template"]["expected_responses"] == -1


def test_a_partial_and_an_object_that_can_be_called_are_tools_too() -> None:
    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    def add(a: int, b: int) -> int:
        return a + b

    assert set(inputs(Adder())) == {"a", "b"}
    partially = inputs(partial(add, b=1))
    assert partially["a"]["type"] == "integer"
    assert partially["b"]["default"] == 1


@pytest.mark.parametrize("name", ["a b", "a$b", "{{uuid}}", "a/b", "a\n"])
def test_a_name_that_a_template_would_take_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        ToolServer("names").tool(name=name)(_items)
