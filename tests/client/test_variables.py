"""Variables: a value goes in as it is, whatever it holds, and is shown by no error."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest
from pydantic import field_validator
from support.peers import Peer, peer
from support.plugin import FakeProtocol, FakeTemplate, FakeTemplateSerializer, config, install, manual
from utcp.data.call_template import CallTemplateSerializer
from utcp.exceptions import UtcpSerializerValidationError, UtcpVariableNotFound

from utcp_websocket_anyio import open_client

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("registries")]

VALUES = [
    "pa$word",
    "$",
    "a${b}c",
    "pa$user",
    "p{{now}}w",
    "{{args.text}}",
    'pa"ss\\word',
    'x", "admin": true, "y": "',
    "$ref",
    "#/$defs/Point",
    "ünïcode ☃",
    "UTCP_ARG_text_UTCP_ARG",
]


def seen_by(handshakes: list[Any], messages: list[str | bytes]) -> Any:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        handshakes.append(peer)
        while True:
            messages.append(await peer.receive())
            await peer.send('"ok"')

    return script


@pytest.mark.parametrize("value", VALUES)
async def test_a_value_arrives_as_it_is_in_every_kind_of_message(value: str) -> None:
    messages: list[Any] = []
    text = '{"key": "${SECRET}", "inner": {"say": "{{args.text}}", "as": "$SECRET!"}}'
    forms: dict[str, Any] = {
        "dict": {"key": "${SECRET}", "inner": ["$SECRET", "<${SECRET}>"]},
        "json": text,
        "text": "LOGIN ${SECRET} {{args.text}}",
    }
    tools = [
        {
            "name": name,
            "inputs": {"type": "object", "properties": {"text": {"type": "string"}}},
            "tool_call_template": {"call_template_type": "websocket", "message": form, "response_format": "json"},
        }
        for name, form in forms.items()
    ]
    with anyio.fail_after(30):
        async with peer(seen_by([], messages)) as url:
            values = {"name": "m", "call_template_type": "websocket", "url": url, "tools": tools}
            async with open_client(values) as client:
                client.config.variables = {"m_SECRET": value, "m_user": "bob"}
                for name in forms:
                    assert await client.call_tool(f"m.{name}", {"text": "hello"}) == "ok"
    assert json.loads(messages[0]) == {"key": value, "inner": [value, f"<{value}>"]}
    assert json.loads(messages[1]) == {"key": value, "inner": {"say": "hello", "as": f"{value}!"}}
    assert messages[2] == f"LOGIN {value} hello"


@pytest.mark.parametrize("value", [value for value in VALUES if value.isascii()])
async def test_a_value_arrives_as_it_is_in_the_handshake(value: str) -> None:
    """Also that of a manual, from whose template the tools have theirs."""
    handshakes: list[Any] = []
    fields = {
        "auth": {"auth_type": "basic", "username": "${user}", "password": "${SECRET}"},
        "headers": {"X-Key": "<${SECRET}>"},
        "message": "${user}",
        "response_format": "json",
    }
    with anyio.fail_after(30):
        async with peer(seen_by(handshakes, [])) as url:
            values = {"name": "m", "call_template_type": "websocket", "url": f"{url}?key=${{SECRET}}", **fields}
            async with open_client(config(variables={"m_user": "bob"})) as client:
                client.config.variables = {"m_SECRET": value, "m_user": "bob"}
                template = CallTemplateSerializer().validate_dict({**values, "tools": [{"name": "t"}]})
                assert (await client.register_manual(template)).success
                assert await client.call_tool("m.t", {}) == "ok"
    (request,) = handshakes
    target = request.request.split(" ", 2)[1]
    credentials = base64.b64encode(f"bob:{value}".encode()).decode()
    assert request.header("Authorization") == f"Basic {credentials}"
    assert request.header("X-Key") == f"<{value}>"
    assert parse_qs(urlsplit(target).query, keep_blank_values=True) == {"key": [value]}


@pytest.mark.parametrize("value", VALUES)
async def test_a_value_in_another_plugins_template_is_not_scanned_at_the_call(value: str) -> None:
    class Inheriting(FakeProtocol):
        async def register_manual(self, caller: Any, manual_call_template: Any) -> Any:
            result = await super().register_manual(caller, manual_call_template)
            for tool in result.manual.tools:
                tool.tool_call_template = manual_call_template.model_copy(update={"tools": []})
            return result

    install(Inheriting)
    with anyio.fail_after(30):
        async with open_client(config(variables={"m_user": "bob"})) as client:
            client.config.variables = {"m_SECRET": value, "m_user": "bob"}
            template = CallTemplateSerializer().validate_dict(manual(secret="<${SECRET}> $user"))
            assert (await client.register_manual(template)).success
            assert (await client.call_tool("m.tool", {}))["secret"] == f"<{value}> bob"


async def test_a_name_with_a_dollar_in_a_tool_is_not_a_variable() -> None:
    inputs = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Point"}},
        "$defs": {"Point": {"type": "object", "description": "costs $5, see ${nothing}"}},
    }
    tool = {"name": "t", "description": "$5 a piece", "inputs": inputs, "tags": ["$tag"]}
    websocket = {"call_template_type": "websocket", "url": "wss://api.example/", "tools": [tool]}
    install()
    fake = {**manual("f"), "tools": [{**tool, "tool_call_template": {"call_template_type": "fake", "secret": "$KEY"}}]}
    with anyio.fail_after(30):
        async with open_client(config({"name": "w", **websocket}, fake, variables={"f_KEY": "k"})) as client:
            for name in ("w", "f"):
                stored = await client.config.tool_repository.get_tool(f"{name}.t")
                assert stored is not None
                assert stored.description == "$5 a piece"
                assert stored.tags == ["$tag"]
            with pytest.raises(UtcpVariableNotFound, match="f2_KEY"):
                await client.register_manual(CallTemplateSerializer().validate_dict({**fake, "name": "f2"}))


@pytest.mark.parametrize("secret", ["not a number pa$word", "hunter2"])
async def test_no_error_shows_a_value(secret: str) -> None:
    class Picky(FakeTemplate):
        @field_validator("secret")
        @classmethod
        def digits(cls, value: str) -> str:
            if value[:1] != "$" and not value.isdigit():
                raise ValueError(f"{value} is not a number")
            return value

    class PickySerializer(FakeTemplateSerializer):
        def validate_dict(self, obj: dict[str, Any]) -> FakeTemplate:
            return Picky.model_validate(obj)

    install()
    serializer: Any = PickySerializer()  # type: ignore[no-untyped-call]  # core declares no types
    CallTemplateSerializer.call_template_serializers["fake"] = serializer
    with anyio.fail_after(30):
        async with open_client() as client:
            client.config.variables = {"m_NUMBER": secret, "w_URL": f"ws://{secret}.example/"}
            template = CallTemplateSerializer().validate_dict(manual(secret="$NUMBER"))
            with pytest.raises(UtcpSerializerValidationError) as raised:
                await client.register_manual(template)
            assert raised.value.__context__ is None
            assert secret not in str(raised.value)
            websocket = {"name": "w", "call_template_type": "websocket", "url": "${URL}"}
            with pytest.raises(ValueError, match="url") as refused:
                await client.register_manual(CallTemplateSerializer().validate_dict(websocket))
            assert secret not in repr(refused.value)


async def test_a_configurations_values_refer_to_the_environment_and_are_text_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOST", "api.example")
    given = {"a": "wss://${HOST}/x", "b": "pa$word", "c": "$HOST", "d": "a $5 {{now}}"}
    with anyio.fail_after(30):
        async with open_client({"variables": given}) as client:
            assert client.config.variables == {
                "a": "wss://api.example/x",
                "b": "pa$word",
                "c": "api.example",
                "d": "a $5 {{now}}",
            }
        with pytest.raises(UtcpVariableNotFound, match="NOWHERE"):
            await open_client({"variables": {"a": "${NOWHERE}"}}).__aenter__()
