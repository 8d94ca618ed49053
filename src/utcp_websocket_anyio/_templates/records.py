"""Between WebSocket messages and the records in them: the fields `incoming` and `outgoing`.

A message goes through the stages of `incoming` in a fixed order: inflate, split, each, json. A stage that does not
apply to what comes leaves it as it is. All is bounded: an inflated message, and all records of a message together, by
`max_message_size`; their number too, as an empty list element is a record that costs memory all the same.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .received import Message, ResponseError
from .shapes import check_members

__all__ = ["Incoming", "Outgoing", "compile_incoming", "compile_outgoing"]

# What zlib calls the three formats (RFC 1952, 1950, 1951).
_WINDOW_BITS = {"gzip": 31, "zlib": 15, "raw": -15}
_RECORD_COST = 64
"""Bytes that a record counts for besides its text, so that a message of nothing but separators is bounded, too."""

_decoder = json.JSONDecoder()


class Incoming:
    """Turns a message into records.

    Args:
        max_size: Bytes that a message may inflate to, and that its records may have together.
    """

    __slots__ = ("_inflate", "_stages", "max_size")

    def __init__(self, inflate: int | None, stages: list[Callable[[str], Iterable[str] | None]], max_size: int) -> None:
        self._inflate = inflate
        self._stages = stages
        self.max_size: int = max_size

    def records(self, data: str | bytes) -> list[Message]:
        """The records of a message; the message itself if no stage applies to it.

        Raises:
            ResponseError: It inflates to more than `max_size`, or holds too many records.
        """
        frame = "text" if isinstance(data, str) else "binary"
        if self._inflate is not None and isinstance(data, bytes):
            data = self._inflated(data, self._inflate)
        if not self._stages:
            return [Message(data, frame)]
        text = Message(data).text_or_none()
        if text is None:
            return [Message(data, frame)]
        # None of the stages may have changed it: then it stays what it was, bytes included.
        records: list[str] | None = None
        for stage in self._stages:
            if records is None:
                made = stage(text)
                records = None if made is None else self._bounded(made)
                continue
            records = self._bounded(record for one in records for record in _one_or_many(one, stage(one)))
        return [Message(data, frame)] if records is None else [Message(record, frame) for record in records]

    def _bounded(self, records: Iterable[str]) -> list[str]:
        kept: list[str] = []
        size = 0
        for record in records:
            size += len(record) + _RECORD_COST
            # A few records may always be: the limit is meant for what is many times as large as it came.
            if size > 2 * self.max_size + 1000 * _RECORD_COST:
                raise ResponseError("a message contains more records than max_message_size allows")
            kept.append(record)
        return kept

    def _inflated(self, data: bytes, window_bits: int) -> bytes:
        stream = zlib.decompressobj(window_bits)
        try:
            inflated = stream.decompress(data, self.max_size + 1)
        except zlib.error:
            # Not compressed in this way: it stays as it is.
            return data
        if len(inflated) > self.max_size:
            raise ResponseError(f"a message inflates to more than max_message_size, {self.max_size} bytes")
        return inflated if stream.eof or window_bits < 0 or inflated else data


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The transformation of each message that is sent.

    Attributes:
        suffix: Text that is appended to text messages.
        frame: ``"binary"``: text goes in binary frames.
        fragment: Bytes of a frame; longer messages go in several. None: never.
    """

    suffix: str = ""
    frame: str | None = None
    fragment: int | None = None

    def apply(self, data: str | bytes) -> str | bytes:
        """The message as it is sent."""
        if isinstance(data, str):
            data += self.suffix
            return data.encode() if self.frame == "binary" else data
        return data


def compile_incoming(value: Any, where: str, max_size: int) -> Incoming | None:
    """Compile the field `incoming`.

    Raises:
        ValueError: Its form is wrong.
    """
    if value is None:
        return None
    check_members(value or None, "incoming", where)  # an empty object would do nothing: a mistake
    inflate = value.get("inflate")
    if inflate is not None and (not isinstance(inflate, str) or inflate not in _WINDOW_BITS):
        raise ValueError(f"{where}.inflate: must be one of {', '.join(_WINDOW_BITS)}")
    stages: list[Callable[[str], Iterable[str] | None]] = []
    split = value.get("split")
    if split is not None:
        if not isinstance(split, str) or not split:
            raise ValueError(f"{where}.split: must be the text between records, or 'json'")
        stages.append(_split_json if split == "json" else _splitter(split))
    if value.get("each") is not None:
        if not isinstance(value["each"], bool):
            raise ValueError(f"{where}.each: must be true or false")
        if value["each"]:
            stages.append(_each)
    if value.get("json") is not None:
        stages.append(_opener(_paths(value["json"], f"{where}.json")))
    return Incoming(None if inflate is None else _WINDOW_BITS[inflate], stages, max_size)


def compile_outgoing(value: Any, where: str) -> Outgoing | None:
    """Compile the field `outgoing`.

    Raises:
        ValueError: Its form is wrong.
    """
    if value is None:
        return None
    check_members(value or None, "outgoing", where)  # an empty object would do nothing: a mistake
    suffix = value.get("suffix", "")
    if not isinstance(suffix, str):
        raise ValueError(f"{where}.suffix: must be a string")
    try:
        suffix.encode()
    except UnicodeEncodeError:
        suffix = None
    if suffix is None:
        raise ValueError(f"{where}.suffix: contains a lone surrogate, which UTF-8 cannot encode")
    frame = value.get("frame")
    if frame not in (None, "text", "binary"):
        raise ValueError(f"{where}.frame: must be 'binary' (text goes in binary frames)")
    fragment = value.get("fragment")
    if fragment is not None and (isinstance(fragment, bool) or not isinstance(fragment, int) or fragment < 1):
        raise ValueError(f"{where}.fragment: must be a number of bytes, 1 at least")
    return Outgoing(suffix, frame, fragment)


def _one_or_many(record: str, made: Iterable[str] | None) -> Iterable[str]:
    return (record,) if made is None else made


# Stages: the records of a text, or None where a stage does not apply to it


def _splitter(separator: str) -> Callable[[str], Iterable[str] | None]:
    return lambda text: [record for record in text.split(separator) if record] if separator in text else None


def _split_json(text: str) -> Iterable[str] | None:
    """JSON values one behind the other; None where the text is one value, or something else."""
    records = []
    position = _skip_space(text, 0)
    try:
        while position < len(text):
            _, end = _decoder.raw_decode(text, position)
            records.append(text[position:end])
            position = _skip_space(text, end)
    except (ValueError, RecursionError):
        return None
    return records if len(records) > 1 else None


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _each(text: str) -> Iterable[str] | None:
    """The elements of a JSON list, each as it is written; None where the text is something else."""
    position = _skip_space(text, 0)
    if text[position : position + 1] != "[":
        return None
    position = _skip_space(text, position + 1)
    if text[position : position + 1] == "]":
        return [] if _skip_space(text, position + 1) == len(text) else None
    records = []
    try:
        while True:
            _, end = _decoder.raw_decode(text, position)
            records.append(text[position:end])
            position = _skip_space(text, end)
            sign = text[position : position + 1]
            position = _skip_space(text, position + 1)
            if sign == "]":
                return records if position == len(text) else None
            if sign != ",":
                return None
    except (ValueError, RecursionError):
        return None


def _opener(paths: list[list[str | int]]) -> Callable[[str], Iterable[str] | None]:
    def opened(text: str) -> Iterable[str] | None:
        if text.lstrip(" \t\r\n")[:1] not in ("{", "["):
            return None
        try:
            value = json.loads(text)
            changed = [_open(value, path) for path in paths]
        except (ValueError, RecursionError):
            return None
        return [_json(value)] if any(changed) else None

    return opened


def _open(value: Any, path: list[str | int]) -> bool:
    """Replace the string at a path by the JSON that it holds; False where there is none."""
    for step in path[:-1]:
        value = _part(value, step)
    text = _part(value, path[-1]) if path else None
    if not isinstance(text, str):
        return False
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, dict):
        value[str(path[-1])] = inner
    else:
        value[int(path[-1])] = inner
    return True


def _part(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(str(step))
    if isinstance(value, list) and str(step).isascii() and str(step).isdigit() and len(str(step)) < 10:
        index = int(step)
        return value[index] if index < len(value) else None
    return None


def _json(value: Any) -> str:
    # As short as it came, most likely; what is not ASCII stays as it is, and so does a lone surrogate.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _paths(value: Any, where: str) -> list[list[str | int]]:
    """One path, or a list of paths; each as text with dots."""
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{where}: must be a path such as 'data.payload', or a list of paths")
    return [[step for step in path.split(".") if step] for path in paths]
