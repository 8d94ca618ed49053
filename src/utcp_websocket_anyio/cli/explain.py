"""A call template in words: what each of its fields makes happen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["explain", "filter_in_words"]

_HOLES = {
    "{{uuid}}": "this call's UUID",
    "{{call_id}}": "the number of this message",
    "{{now}}": "the time of the call",
    "{{tool_name}}": "the tool's name",
    "{{args}}": "all arguments",
}
_NAMED_HOLE = re.compile(r"\{\{\s*(args|captured)\.([^\s{}|]+)\s*\}\}|\$\{(\w+)\}|UTCP_ARG_(\S+?)_UTCP_ARG")


def explain(template: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a call template says, field by field in the order in which it counts.

    Args:
        template: Its JSON form, valid.

    Returns:
        Fields and sentences. Values that may be secret are not in them.
    """
    return [(name, words(template[name])) for name, words in _FIELDS.items() if template.get(name) is not None]


def filter_in_words(value: Any) -> str:
    """Which messages a filter means, as the end of "a message …"."""
    if isinstance(value, str):
        return f"in whose text {value} is found"
    if isinstance(value, list):
        return f"that is {_json(value)}"
    parts = [words(value) for name, words in _MESSAGE_OPERATORS.items() if name in value]
    rest = {name: item for name, item in value.items() if name not in _MESSAGE_OPERATORS and name != "$json"}
    if rest or not parts:
        parts.insert(0, f"that is {_json(rest)}")
    return ", and ".join(parts)


def _either(options: list[Any], words: Callable[[Any], str]) -> str:
    return "either " + " or ".join(map(words, options)) if len(options) > 1 else words(options[0])


def _behind(value: Mapping[str, Any]) -> str:
    more = f" and goes on with {_json(value['$json'])}" if "$json" in value else ""
    return f"that begins with {_value(value['$after'])}{more}"


_MESSAGE_OPERATORS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "$or": lambda value: _either(value["$or"], filter_in_words),
    "$and": lambda value: ", and ".join(map(filter_in_words, value["$and"])),
    "$text": lambda value: f"that is the text {_value(value['$text'])}",
    "$hex": lambda value: f"that is binary and begins with the bytes {value['$hex']}",
    "$frame": lambda value: f"that is {value['$frame']}",
    "$after": _behind,
}
_VALUE_OPERATORS: dict[str, Callable[[Any], str]] = {
    "$any": lambda _: "anything",
    "$absent": lambda _: "nothing",
    "$in": lambda value: f"one of {', '.join(map(_json, value))}",
    "$regex": lambda value: f"text matching {value}",
    "$or": lambda value: _either(value, _json),
    "$and": lambda value: " and ".join(map(_json, value)),
}


def _json(value: Any) -> str:
    """What JSON a filter wants, as a noun."""
    if isinstance(value, list):
        return f"a JSON list beginning with {', '.join(map(_json, value))}" if value else "a JSON list"
    if not isinstance(value, dict):
        return _value(value)
    parts = [words(value[name]) for name, words in _VALUE_OPERATORS.items() if name in value]
    members = [_member(name, item) for name, item in value.items() if name not in _VALUE_OPERATORS]
    if members or not parts:
        parts.insert(0, f"a JSON object{' with ' + ' and '.join(members) if members else ''}")
    return " and ".join(parts)


def _member(key: str, value: Any) -> str:
    if value == {"$any": True}:
        return key
    if value == {"$absent": True}:
        return f"no {key}"
    return f"{key} = {_json(value)}" if not isinstance(value, dict) else f"{key} being {_json(value)}"


def _value(value: Any) -> str:
    """A value of a filter or template, its placeholders named."""
    if isinstance(value, str):
        if value in _HOLES:
            return _HOLES[value]
        if (named := _NAMED_HOLE.fullmatch(value)) is not None:
            if named[1] == "captured":
                return f"the captured {named[2]}"
            return f"the {'variable' if named[3] else 'argument'} {named[2] or named[3] or named[4]}"
    return json.dumps(value, ensure_ascii=False)


def _message(value: Any) -> str:
    if isinstance(value, dict) and value.get("type") == "binary" and "data" in value:
        return f"a binary message: {_value(value['data'])}, written in {value.get('encoding', 'base64')}"
    if isinstance(value, str):
        return f"the text {_value(value)}"
    return f"the JSON {_value(value)}"


def _steps(values: list[dict[str, Any]]) -> str:
    return "; then ".join(_step(value) for value in values) or "nothing"


def _step(value: Mapping[str, Any]) -> str:
    parts = []
    if "send" in value:
        parts.append(f"send {_message(value['send'])}")
    if "expect" in value:
        parts.append(f"wait for a message {filter_in_words(value['expect'])}")
    if "reject" in value:
        parts.append(f"fail at one {filter_in_words(value['reject'])}")
    if value.get("capture"):
        parts.append(f"keep {', '.join(value['capture'])} of it")
    return ", ".join(parts)


def _result(value: Mapping[str, Any]) -> str:
    if "regex" in value:
        return f"of each response, what the first group of {value['regex']} finds"
    behind = f" behind the prefix {_value(value['after'])}" if "after" in value else ""
    return f"of each response, the part {value.get('path') or 'that is all'} of its JSON{behind}"


def _count(value: int) -> str:
    if value == 0:
        return "send the request and wait for nothing"
    if value == -1:
        return "take every response until the end; response_timeout is how long the subscription lasts"
    return f"take {value} response{'s' if value > 1 else ''}{'; a call returns them as a list' if value > 1 else ''}"


def _auth(value: Mapping[str, Any]) -> str:
    kind = value.get("auth_type")
    if kind == "api_key":
        return f"an API key, in the {value.get('location', 'header')} as {value.get('var_name', 'X-Api-Key')}"
    if kind == "basic":
        return "user name and password, in the header Authorization"
    return "a token of OAuth2 (client credentials), fetched from token_url and renewed in time"


def _if(value: bool, yes: str, no: str) -> str:
    return yes if value else no


def _seconds(text: str) -> Callable[[Any], str]:
    return lambda value: text.format(f"{value:g} s" if isinstance(value, (int, float)) else _value(value))


_FIELDS: dict[str, Callable[[Any], str]] = {
    "url": lambda value: f"connect to {value.partition('?')[0]}{' with a query' if '?' in value else ''}",
    "auth": lambda value: f"log in with {_auth(value)}",
    "headers": lambda value: f"send the handshake headers {', '.join(value)}",
    "header_fields": lambda value: f"send the arguments {', '.join(value)} as handshake headers",
    "protocol": lambda value: f"insist on the subprotocol {value}",
    "compression": lambda _: "offer compression (permessage-deflate)",
    "compression_threshold": lambda value: f"send messages shorter than {value} bytes uncompressed",
    "connection_timeout": _seconds("the connection and its login may take {}"),
    "reconnect_attempts": lambda value: f"try {value} more time{'' if value == 1 else 's'} to connect",
    "on_connect": lambda value: f"after each handshake: {_steps(value)}",
    "auto_reply": lambda value: "; ".join(
        f"whenever a message {filter_in_words(reply['match'])} comes, answer {_message(reply['reply'])}"
        for reply in value
    ),
    "before": lambda value: f"before each request, on its connection: {_steps(value)}",
    "listen_only": lambda value: _if(value, "send no request: responses are what the server pushes", "send a request"),
    "message": lambda value: f"send {_message(value)}",
    "message_filter": lambda value: f"a response is a message {filter_in_words(value)}; others are skipped",
    "error_filter": lambda value: f"the call fails at a message {filter_in_words(value)}",
    "end_filter": lambda value: f"the end is a message {filter_in_words(value)}",
    "end_on_close": lambda value: _if(
        value == "any", "the end is any close of the connection", "the end is also a normal close of the connection"
    ),
    "idle_timeout": _seconds("the end is also a silence of {}"),
    "expected_responses": _count,
    "response_timeout": _seconds("wait {} from the request to the last response"),
    "timeout": _seconds("wait {} for a free connection, and for responses unless response_timeout says otherwise"),
    "result": lambda value: f"return, {_result(value)}",
    "response_format": lambda value: {
        "json": "return responses as JSON values",
        "text": "return responses as text",
        "raw": "return responses as they come",
    }[value],
    "multiplex": lambda value: _if(value, "concurrent calls share one connection", "each call has a connection"),
    "keep_alive": lambda value: _if(value, "keep the connection for the next call", "connect anew for each call"),
    "close_after_response": lambda value: _if(value, "close the connection after the call", "keep the connection"),
    "max_connections": lambda value: f"open {value} connection{'' if value == 1 else 's'} at most",
    "max_message_size": lambda value: f"refuse messages longer than {value} bytes",
    "ping_interval": _seconds("send a ping every {}"),
    "pong_timeout": _seconds("give the connection up when its pong takes longer than {}"),
    "on_close": lambda value: f"before closing: {_steps(value)}",
    "tools": lambda value: f"the tools are in the file: {len(value)}",
    "discovery_url": lambda _: "fetch the tools from discovery_url",
    "discovery_message": lambda value: f"ask the endpoint for its tools with {_message(value)}",
}
