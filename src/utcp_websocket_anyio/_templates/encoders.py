"""Encoders, through which a value is piped on its way into a message, and the forms of any value as text or bytes.

Three kinds of values meet here: JSON values, bytes that a caller passed as an argument, and bytes that an encoder
made (`Digest`). In text, the caller's bytes are base64, as JSON has them; a digest is hex, as the documents of APIs
print it. Everywhere else bytes are bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from .spelling import known_names

__all__ = ["ABSENT", "Absent", "Digest", "as_bytes", "compile_encoder", "is_bytes", "json_text", "text_of", "utf8"]

Encoder = Callable[[Any], Any]


class Digest(bytes):
    """Bytes that an encoder or a signature made; text has them in hex."""

    __slots__ = ()


class Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
"""The value of an optional placeholder whose value is missing or null."""


def is_bytes(value: Any) -> bool:
    """True for everything that holds bytes."""
    return isinstance(value, (bytes, bytearray, memoryview))


def _bytes_in_text(value: Any) -> str:
    if isinstance(value, Digest):
        return value.hex()
    if is_bytes(value):
        return base64.b64encode(value).decode()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


# json.dumps makes an encoder for each call that asks for anything except the defaults.
_encode = json.JSONEncoder(allow_nan=False, default=_bytes_in_text).encode


def json_text(value: Any) -> str:
    """JSON as `json.dumps` writes it by default, bytes as text.

    Raises:
        ValueError: The value is not a JSON value: NaN and Infinity, an object of another type, nested without end.
    """
    try:
        if type(value) is int:
            return int.__repr__(value)  # what the encoder does, without its setting out for more
        return _encode(value)
    except (TypeError, ValueError) as error:
        # Python's text about long integers speaks of sys.set_int_max_str_digits.
        reason = "an integer has too many digits" if "int_max_str_digits" in str(error) else str(error)
    except RecursionError:
        reason = "it is nested too deeply"
    raise ValueError(f"an argument cannot be encoded as JSON: {reason}")


def text_of(value: Any) -> str:
    """A value inside a longer text: a string as it is, bytes as text, anything else as its JSON text."""
    if isinstance(value, str):
        return value
    if value is ABSENT:
        return ""
    return _bytes_in_text(value) if is_bytes(value) else json_text(value)


def utf8(text: str) -> bytes:
    """Text in UTF-8.

    Raises:
        ValueError: It contains a lone surrogate. Python's own error would carry the text, which may be secret.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    raise ValueError("contains a lone surrogate, which UTF-8 cannot encode")


def as_bytes(value: Any) -> bytes:
    """Bytes as they are, anything else as its text in UTF-8."""
    return bytes(value) if is_bytes(value) else utf8(text_of(value))


def compile_encoder(source: str, *, of_time: bool) -> Encoder:
    """Compile an encoder, the part of a placeholder behind a ``|``.

    Args:
        of_time: True if it directly follows `now`, and so gets a time and not a text.

    Raises:
        ValueError: There is no such encoder, or it cannot follow what stands before it.
    """
    name, colon, parameter = source.partition(":")
    name = name.rstrip() if colon else name
    if name in _OF_TIME and (colon != "") == (name == "date"):
        if not of_time:
            raise ValueError(f"the encoder {name} works on now only, as in {{{{now|{source}}}}}")
        return _date(parameter) if name == "date" else _OF_TIME[name]
    if source in _ENCODERS:
        encode = _ENCODERS[source]
        return (lambda time: encode(iso_time(time))) if of_time else encode
    if name == "date" and not colon:
        raise ValueError("the encoder date needs a format, as in {{now|date:%Y-%m-%d}}")
    raise ValueError(f"unknown encoder {source[:60]!a}; {known_names(source, [*_ENCODERS, *_OF_TIME])}")


# A time is an aware datetime in UTC.


def iso_time(time: datetime) -> str:
    """The text of a time: ISO 8601 in UTC, with milliseconds."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unix_ns(time: datetime) -> int:
    # In integers: a float has not enough digits for nanoseconds.
    delta = time - _EPOCH
    return ((delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1000


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_OF_TIME: Mapping[str, Encoder] = {
    "unix": lambda time: _unix_ns(time) // 1_000_000_000,
    "unix_ms": lambda time: _unix_ns(time) // 1_000_000,
    "unix_ns": _unix_ns,
    "date": iso_time,
}

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)


def _plain_directive(letter: str) -> Callable[[datetime], str]:
    return lambda time: time.strftime(f"%{letter}")


# What strftime would take from the locale of the process, or leaves to the platform.
_DIRECTIVES: Mapping[str, Callable[[datetime], str]] = {
    "a": lambda time: _DAYS[time.weekday()][:3],
    "A": lambda time: _DAYS[time.weekday()],
    "b": lambda time: _MONTHS[time.month - 1][:3],
    "h": lambda time: _MONTHS[time.month - 1][:3],
    "B": lambda time: _MONTHS[time.month - 1],
    "p": lambda time: "AM" if time.hour < 12 else "PM",
    "c": lambda time: (
        f"{_DAYS[time.weekday()][:3]} {_MONTHS[time.month - 1][:3]} {time.day:2} {time:%H:%M:%S} {time.year:04}"
    ),
    "x": lambda time: f"{time:%m/%d}/{time.year % 100:02}",
    "X": lambda time: f"{time:%H:%M:%S}",
    "D": lambda time: f"{time:%m/%d}/{time.year % 100:02}",
    "e": lambda time: f"{time.day:2}",
    "F": lambda time: f"{time.year:04}-{time:%m-%d}",
    "R": lambda time: f"{time:%H:%M}",
    "T": lambda time: f"{time:%H:%M:%S}",
    "s": lambda time: str(_unix_ns(time) // 1_000_000_000),
    "Y": lambda time: f"{time.year:04}",
    "n": lambda time: "\n",
    "t": lambda time: "\t",
    "%": lambda time: "%",
    **{letter: _plain_directive(letter) for letter in "dmyHIMSfzZjUWGuVw"},
}


def _date(form: str) -> Encoder:
    for match in _DIRECTIVE.finditer(form):
        if match[1] not in _DIRECTIVES:
            raise ValueError(f"the format of date has no directive {match[0]!r}; use one of {''.join(_DIRECTIVES)}")
    if not form:
        raise ValueError("the encoder date needs a format, as in {{now|date:%Y-%m-%d}}")
    return lambda time: _DIRECTIVE.sub(lambda match: _DIRECTIVES[match[1]](time), form)


# Values


def _line(value: Any) -> str:
    text = text_of(value)
    if any(character in text for character in "\r\n\0"):
        raise ValueError("a value for |line contains a line break or NUL; it must be one line")
    return text


def _ms_to_s(value: Any) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError("a value for |ms_to_s is not a number")
    seconds = number / 1000
    return int(seconds) if seconds.is_integer() else seconds


def _unsigned(size: int) -> Encoder:
    def encode(value: Any) -> Digest:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 256**size:
            raise ValueError(f"a value for |u{8 * size} is not an integer from 0 to {256**size - 1}")
        return Digest(value.to_bytes(size, "big"))

    return encode


def _little_endian(value: Any) -> Digest:
    if not is_bytes(value):
        raise ValueError("le reverses the bytes of u8, u16 or u32; put it behind one of them")
    return Digest(bytes(value)[::-1])


_XML_REFERENCES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"})


def _as_pattern(value: Any) -> str:
    import regex  # slow to load, and few templates need it

    return regex.escape(text_of(value))


def _hash(name: str) -> Encoder:
    return lambda value: Digest(hashlib.new(name, as_bytes(value), usedforsecurity=False).digest())


_ENCODERS: Mapping[str, Encoder] = {
    "json": json_text,
    "text": text_of,
    "lower": lambda value: text_of(value).lower(),
    "upper": lambda value: text_of(value).upper(),
    "base64": lambda value: base64.b64encode(as_bytes(value)).decode(),
    "base64url": lambda value: base64.urlsafe_b64encode(as_bytes(value)).decode().rstrip("="),
    "hex": lambda value: as_bytes(value).hex(),
    "urlencode": lambda value: quote(as_bytes(value), safe=""),
    "xml": lambda value: text_of(value).translate(_XML_REFERENCES),
    "regex": _as_pattern,
    "line": _line,
    "bytes": lambda value: len(as_bytes(value)),
    "ms_to_s": _ms_to_s,
    "sha1": _hash("sha1"),
    "sha256": _hash("sha256"),
    "sha512": _hash("sha512"),
    "md5": _hash("md5"),
    "u8": _unsigned(1),
    "u16": _unsigned(2),
    "u32": _unsigned(4),
    "le": _little_endian,
}
