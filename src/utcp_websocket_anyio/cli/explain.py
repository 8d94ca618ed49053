"""A call template in words: what each of its fields makes happen.

The sentences are the fields' own (`fields.Role.words`); here is how a value of each kind is put into one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .._templates.fields import FIELDS, OLD_NAMES

__all__ = ["explain", "filter_in_words"]

_HOLES = {
    "{{uuid}}": "this call's UUID",
    "{{call_id}}": "the number of this message",
    "{{now}}": "the time of the call",
    "{{tool_name}}": "the tool's name",
    "{{args}}": "all arguments",
    "{{step_id}}": "the number of this step",
    "{{message}}": "the message",
    "{{item}}": "the item",
    "{{gap}}": "the seconds without a connection",
    "{{dollar}}": "a dollar sign",
}
_NAMED_HOLE = re.compile(
    r"\{\{\s*(args|captured|message|item)\.([^\s{}|]+)\s*\}\}|\$\{(\w+)\}|UTCP_ARG_(\S+?)_UTCP_ARG"
)


def explain(template: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Explain a call template, field by field in the order in which they take effect.

    Args:
        template: JSON form of the template, valid.

    Returns:
        Fields and sentences. Values that may be secret are not in them.
    """
    template = {OLD_NAMES.get(name, name): value for name, value in template.items()}
    explained = [("url", _field("url", template["url"]))] if template.get("url") is not None else []
    if template.get("auth") is not None:
        explained.append(("auth", f"log in with {_auth(template['auth'])}"))
    others = [name for name in FIELDS if name != "url" and template.get(name) is not None]
    return [*explained, *((name, _field(name, template[name])) for name in others)]


def _field(name: str, value: Any) -> str:
    role = FIELDS[name]
    if isinstance(role.words, tuple):
        return role.words[0] if value else role.words[1]
    return role.words.format(_KINDS.get(role.kind, _plain)(value))


def filter_in_words(value: Any) -> str:
    """The messages that a filter matches, as the end of "a message …"."""
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
    "$not": lambda value: f"except one {filter_in_words(value['$not'])}",
    "$regex": lambda value: f"in whose text {value['$regex']} is found",
    "$in": lambda value: f"that is one of {', '.join(map(_json, value['$in']))}",
    "$equals": lambda value: f"that is exactly {json.dumps(value['$equals'], ensure_ascii=False)}",
    "$select": lambda value: f"such that {value['$select']}",
}
_VALUE_OPERATORS: dict[str, Callable[[Any], str]] = {
    "$any": lambda _: "anything",
    "$absent": lambda _: "nothing",
    "$equals": lambda value: f"exactly {json.dumps(value, ensure_ascii=False)}",
    "$not": lambda value: f"anything except {_json(value)}",
    "$select": lambda value: f"such that {value}",
    "$in": lambda value: f"one of {', '.join(map(_json, value))}",
    "$regex": lambda value: f"text matching {value}",
    "$or": lambda value: _either(value, _json),
    "$and": lambda value: " and ".join(map(_json, value)),
}


def _json(value: Any) -> str:
    """The JSON that a filter matches, as a noun phrase."""
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
            if named[1] in ("captured", "message", "item"):
                what = {"captured": "the captured {}", "message": "{} of the message", "item": "{} of the item"}
                return what[named[1]].format(named[2])
            return f"the {'variable' if named[3] else 'argument'} {named[2] or named[3] or named[4]}"
    return json.dumps(value, ensure_ascii=False)


def _message(value: Any) -> str:
    if isinstance(value, dict) and value.get("type") == "binary" and "data" in value:
        data = value["data"]
        parts = " and ".join(map(_part, data)) if isinstance(data, list) else _value(data)
        return f"a binary message: {parts}, written in {value.get('encoding', 'base64')}"
    if isinstance(value, str):
        return f"the text {_value(value)}"
    return f"the JSON {_value(value)}"


def _part(value: Any) -> str:
    if not isinstance(value, dict):
        return _value(value)
    return f"{_value(value.get('data'))} in {value.get('encoding', 'base64')}"


def _steps(values: list[dict[str, Any]]) -> str:
    return "; then ".join(_step(value) for value in values) or "nothing"


def _step(value: Mapping[str, Any]) -> str:
    parts = []
    if value.get("compute"):
        parts.append(f"compute {', '.join(value['compute'])}")
    if "http" in value:
        request = value["http"]
        method = request.get("method", "POST" if request.keys() & {"json", "form", "body"} else "GET")
        # A query may hold secrets.
        parts.append(f"send an HTTP request, {method.upper()} {str(request.get('url')).partition('?')[0]}")
    if "send" in value:
        parts.append(f"send {_message(value['send'])}")
    if "send_each" in value:
        parts.append(_send_each(value["send_each"]))
    if "expect" in value:
        kind = "answer" if "http" in value else "message"
        parts.append(f"wait for {'an' if 'http' in value else 'a'} {kind} {filter_in_words(value['expect'])}")
    if "reject" in value:
        parts.append(f"fail at one {filter_in_words(value['reject'])}")
    if value.get("capture"):
        parts.append(f"keep {', '.join(value['capture'])} of it")
    if value.get("when") == "always":
        parts.append("also after the expected responses")
    return ", ".join(parts)


def _send_each(value: Mapping[str, Any]) -> str:
    pieces = f", in pieces of {_plain(value['chunk'])} bytes" if "chunk" in value else ""
    paced = f", one every {_seconds(value['every'])}" if "every" in value else ""
    return (
        f"send, for each item of {_value(value.get('of'))}{pieces}{paced}, {_message(value.get('message', '{{item}}'))}"
    )


def _kept(value: Mapping[str, Any]) -> list[str]:
    """The values that an object with `compute` and `capture` keeps."""
    kept = [f"compute {', '.join(value['compute'])}"] if value.get("compute") else []
    return [*kept, f"keep {', '.join(value['capture'])} of it"] if value.get("capture") else kept


def _handlers(values: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"whenever a message {filter_in_words(value['match'])} comes, {', '.join(_reactions(value)) or 'do nothing'}"
        for value in values
    )


def _reactions(value: Mapping[str, Any]) -> Iterator[str]:
    yield from _kept(value)
    if "reply" in value:
        yield f"answer {_message(value['reply'])}"
    if value.get("retire"):
        yield "use the connection for nothing new"
    if value.get("resume") not in (None, False):
        yield "move its streams to a new connection"
    if value.get("lost"):
        yield "close the connection"
    if "deliver" in value:
        yield "show it to calls" if value["deliver"] else "hide it from calls"


def _response_handler(value: Mapping[str, Any]) -> str:
    sent = [f"acknowledge it with {_message(value['send'])}"] if "send" in value else []
    return f"of each response, {', '.join([*_kept(value), *sent])}"


def _heartbeat(value: Mapping[str, Any]) -> str:
    parts = []
    if "send" in value:
        jitter = ", the first at a random time" if value.get("jitter") else ""
        parts.append(f"every {_seconds(value.get('every'))}, send {_message(value['send'])}{jitter}")
    if "expect" in value:
        within = f" within {_seconds(value['timeout'])}" if "timeout" in value else ""
        parts.append(f"close the connection without a message {filter_in_words(value['expect'])}{within}")
    parts += _kept(value)
    if "silence" in value:
        parts.append(f"close the connection when nothing comes for {_seconds(value['silence'])}")
    return ", ".join(parts)


def _resume(value: Mapping[str, Any]) -> str:
    own = [name for name in ("prepare", "on_connect", "before", "request") if value.get(name) is not None]
    by = f", with steps of its own for {', '.join(own)}" if own else ""
    final = f", except after a close with {_json_text(value['not_after'])}" if value.get("not_after") else ""
    gap = ", and yield an item for the gap" if "gap_item" in value else ""
    attempts = value.get("attempts", 5)
    return f"go on with a stream on a new connection, after at most {attempts} failures in a row{by}{final}{gap}"


def _incoming(value: Mapping[str, Any]) -> str:
    parts = []
    if value.get("inflate"):
        parts.append(f"inflate binary messages ({value['inflate']})")
    if value.get("split"):
        parts.append(
            f"take messages apart at {_json_text(value['split'])}"
            if value["split"] != "json"
            else "take messages apart into JSON values"
        )
    if value.get("each"):
        parts.append("take each element of a list as a message")
    if value.get("json"):
        paths = value["json"] if isinstance(value["json"], list) else [value["json"]]
        parts.append(f"read the text at {', '.join(paths)} as JSON")
    return ", then ".join(parts) or "take messages as they are"


def _outgoing(value: Mapping[str, Any]) -> str:
    parts = []
    if value.get("suffix"):
        parts.append(f"put {_json_text(value['suffix'])} behind each text")
    if value.get("frame") == "binary":
        parts.append("send text in binary frames")
    if value.get("fragment"):
        parts.append(f"send messages in fragments of {value['fragment']} bytes")
    return ", ".join(parts) or "send messages as they are"


def _extraction(value: Any) -> str:
    if isinstance(value, list):
        return ", and of that ".join(map(_extraction, value))
    parts = []
    if "after" in value and "regex" not in value and "select" not in value:
        parts.append(f"the part {_path(value.get('path'))} of its JSON behind the prefix {_value(value['after'])}")
    elif "path" in value:
        parts.append(f"the part {_path(value['path'])} of its JSON")
    elif "select" in value:
        parts.append(f"what {value['select']} selects")
    elif "regex" in value:
        parts.append(f"what the first group of {value['regex']} finds")
    if "slice" in value:
        first, last = value["slice"]
        parts.append(f"from position {first or 0} {'on' if last is None else f'to {last}'}")
    if "as" in value:
        parts.append(f"as {value['as']}")
    if value.get("json"):
        parts.append("read as JSON")
    if "default" in value:
        parts.append(f"or else {_json_text(value['default'])}")
    return " ".join(parts)


def _path(value: Any) -> str:
    return (value if isinstance(value, str) else _json_text(value)) or "that is all"


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


def _seconds(value: Any) -> str:
    return f"{value:g} s" if isinstance(value, (int, float)) else _value(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _json_text(value)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_CLOSES = {
    "normal": "the end is also a normal close of the connection",
    "any": "the end is any close of the connection",
    "never": "no close of the connection is the end",
}
_KINDS: Mapping[str, Callable[[Any], str]] = {
    "url": lambda value: f"{value.partition('?')[0]}{' with a query' if '?' in value else ''}",
    "names": lambda value: value if isinstance(value, str) else ", ".join(value),
    "text": _value,
    "length": lambda value: str(len(value)),
    "message": _message,
    "filter": filter_in_words,
    "steps": _steps,
    "handlers": _handlers,
    "response_handler": _response_handler,
    "heartbeat": _heartbeat,
    "resume": _resume,
    "incoming": _incoming,
    "outgoing": _outgoing,
    "extraction": _extraction,
    "count": _count,
    "seconds": _seconds,
    "closes": lambda value: _CLOSES.get(value, value),
}
