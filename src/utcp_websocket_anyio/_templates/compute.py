"""`compute`: values that a step makes before it sends, such as a signature or a query string.

A value is a tree of small functions of a `RenderContext`, compiled once. Inside, everything is bytes or a JSON value;
at the outside, bytes that a hash or signature gives become text, in hex unless `as` says otherwise. Values are computed
in order, each seeing those before it as captured.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from .encoders import ABSENT, Digest, as_bytes, is_bytes, text_of, utf8
from .messages import DECODERS
from .placeholders import CALL, Placeholder, RenderContext, Scope, parse
from .spelling import unknown_name
from .values import CompiledTemplate, compile_renderer, is_single_placeholder

__all__ = ["Computation", "compile_computation"]

Compute = Callable[[RenderContext], Any]

_HASHES = ("sha256", "sha512", "sha384", "sha1", "md5")
_AS: Mapping[str, Callable[[bytes], str]] = {
    "hex": bytes.hex,
    "base64": lambda data: base64.b64encode(data).decode(),
    "base64url": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
}
_KEY_ENCODINGS = tuple(DECODERS)
_SIGNATURES = ("ed25519", "es256", "rs256")
_JWT_ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA")
# The members of each kind of object, after the one that names the kind.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "hmac": ("key", "text", "as", "key_encoding"),
    "hash": ("text", "as"),
    "query": ("sort", "encode"),
    "jwt": ("key", "algorithm", "headers", "key_encoding"),
    "sign": ("key", "text", "as", "key_encoding"),
}


class Computation(CompiledTemplate):
    """The values that a step computes.

    Attributes:
        names: Their names, in order.
    """

    __slots__ = ("_values", "names")

    def __init__(
        self,
        source: Any,
        where: str,
        placeholders: list[Placeholder],
        values: Mapping[str, tuple[str, Compute]],
        needed: frozenset[str],
    ) -> None:
        super().__init__(source, where, placeholders)
        self._values = values
        self.names: tuple[str, ...] = tuple(values)
        # Not those that a value before computes.
        self.captures = needed

    def compute(self, context: RenderContext) -> dict[str, Any]:
        """All values by their names.

        Raises:
            ValueError: One cannot be computed. No value and no key is in the text.
        """
        computed: dict[str, Any] = {}
        within = context.replace(captured=ChainMap(computed, context.captured))  # type: ignore[arg-type]  # read only
        for name, (where, compute) in self._values.items():
            try:
                value = compute(within)
            except ValueError as error:
                reason = str(error)
            else:
                computed[name] = None if value is ABSENT else value
                continue
            raise ValueError(reason if reason.startswith(where) else f"{where}: {reason}")
        return computed


def compile_computation(value: Any, where: str, scope: Scope = CALL) -> Computation:
    """Compile an object of names and values.

    Raises:
        ValueError: Its form is wrong.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be an object of names and values, such as {{'time': '{{{{now|unix}}}}'}}")
    found: list[Placeholder] = []
    values: dict[str, tuple[str, Compute]] = {}
    needed: set[str] = set()
    for name, item in value.items():
        own: list[Placeholder] = []
        values[name] = f"{where}.{name}", _compile(item, f"{where}.{name}", scope, own, is_inside=False)
        found += own
        needed |= {
            one.name
            for one in own
            if one.kind == "captured." and not one.is_optional and not {one.name, one.root} & values.keys() - {name}
        }
    return Computation(value, where, found, values, frozenset(needed))


def _compile(value: Any, where: str, scope: Scope, found: list[Placeholder], *, is_inside: bool) -> Compute:
    """A value: a constant, a template, or one of the objects."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError(
                f"{where}: must be a template (string), a constant, or an object that says what to compute"
            )
        return compile_renderer(value, where, scope, found)
    kind = next((name for name in _KINDS if name in value), None)
    if kind is None:
        names = ", ".join(_KINDS)
        raise ValueError(
            f"{where}: {unknown_name(next(iter(value)), _KINDS, 'kind')}" if value else f"{where}: needs one of {names}"
        )
    unknown = sorted(value.keys() - {kind, *_KINDS[kind]})
    if unknown:
        raise ValueError(f"{where}: {unknown_name(unknown[0], (kind, *_KINDS[kind]), 'key')}")
    if kind == "query":
        return _query(value, where, scope, found)
    if kind == "jwt":
        return _jwt(value, where, scope, found)
    make = {"hmac": _hmac, "hash": _hash, "sign": _sign}[kind](value, where, scope, found)
    to_text = _as(value, where, is_inside=is_inside)
    if to_text is None:
        return lambda context: Digest(make(context))
    return lambda context: to_text(make(context))


def _as(value: Mapping[str, Any], where: str, *, is_inside: bool) -> Callable[[bytes], str] | None:
    """The function that turns bytes into text; None where they stay bytes, as a part of another computation."""
    if "as" not in value:
        return None if is_inside else _AS["hex"]
    if not isinstance(value["as"], str) or value["as"] not in _AS:
        raise ValueError(f"{where}.as: must be one of {', '.join(_AS)}")
    return _AS[value["as"]]


def _text(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Callable[..., bytes]:
    """The bytes of `text`: a template, or a list of parts that are joined."""
    if "text" not in value:
        raise ValueError(f"{where}: needs text (a template, or a list of parts)")
    text = value["text"]
    parts = [
        _compile(part, f"{where}.text[{index}]", scope, found, is_inside=True)
        for index, part in enumerate(text if isinstance(text, list) else [text])
    ]
    return lambda context: b"".join([as_bytes(part(context)) for part in parts])


def _key(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Callable[..., bytes]:
    if "key" not in value:
        raise ValueError(f"{where}: needs a key")
    encoding = value.get("key_encoding", "utf-8")
    if encoding not in _KEY_ENCODINGS:
        raise ValueError(f"{where}.key_encoding: must be one of {', '.join(_KEY_ENCODINGS)}")
    key = _compile(value["key"], f"{where}.key", scope, found, is_inside=True)
    decode = DECODERS[encoding]

    def make(context: RenderContext) -> bytes:
        given = key(context)
        if is_bytes(given):
            return bytes(given)
        try:
            return decode(text_of(given))
        except ValueError:
            pass
        raise ValueError(f"{where}.key: is not valid {encoding}")

    return make


def _hash_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in _HASHES:
        raise ValueError(f"{where}: must be one of {', '.join(_HASHES)}")
    return value


def _hash(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Callable[..., bytes]:
    name = _hash_name(value["hash"], f"{where}.hash")
    text = _text(value, where, scope, found)
    return lambda context: hashlib.new(name, text(context), usedforsecurity=False).digest()


def _hmac(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Callable[..., bytes]:
    name = _hash_name(value["hmac"], f"{where}.hmac")
    key = _key(value, where, scope, found)
    text = _text(value, where, scope, found)
    return lambda context: hmac.new(key(context), text(context), name).digest()


# Query strings


def _query(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Compute:
    members = value["query"]
    if isinstance(members, str):
        parts = parse(members, f"{where}.query", scope)
        if not is_single_placeholder(parts):
            raise ValueError(f"{where}.query: must be an object of names and values")
    elif not isinstance(members, dict):
        raise ValueError(f"{where}.query: must be an object of names and values")
    for flag in ("sort", "encode"):
        if not isinstance(value.get(flag, True), bool):
            raise ValueError(f"{where}.{flag}: must be true or false")
    encode = value.get("encode", True)
    sort = value.get("sort", False)
    render = compile_renderer(members, f"{where}.query", scope, found)

    def make(context: RenderContext) -> str:
        given = render(context)
        if not isinstance(given, dict):
            raise ValueError(f"{where}.query: must come out as an object of names and values")
        pairs = [
            (name, text_of(one))
            for name, value in given.items()
            for one in (value if isinstance(value, list) else [value])
        ]
        if sort:
            pairs.sort(key=lambda pair: utf8(pair[0]))
        if not encode:
            return "&".join([f"{name}={text}" for name, text in pairs])
        return "&".join([f"{quote(utf8(name), safe='')}={quote(utf8(text), safe='')}" for name, text in pairs])

    return make


# With the extra `sign`


def _jwt(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Compute:
    algorithm = value.get("algorithm")
    if algorithm not in _JWT_ALGORITHMS:
        raise ValueError(f"{where}.algorithm: must be one of {', '.join(_JWT_ALGORITHMS)}")
    if not isinstance(value["jwt"], dict):
        raise ValueError(f"{where}.jwt: must be an object of claims")
    if not isinstance(value.get("headers", {}), dict):
        raise ValueError(f"{where}.headers: must be an object")
    claims = compile_renderer(value["jwt"], f"{where}.jwt", scope, found)
    headers = compile_renderer(value.get("headers", {}), f"{where}.headers", scope, found)
    key = _key(value, where, scope, found)
    try:
        import jwt
    except ImportError:
        _raise_missing_extra(where, "jwt")

    def make(context: RenderContext) -> str:
        payload, header = claims(context), headers(context)
        secret = key(context)
        try:
            json.dumps([payload, header], allow_nan=False)
            return jwt.encode(payload, secret, algorithm=algorithm, headers=header)
        except Exception as error:  # noqa: BLE001 - of two libraries; their texts and contexts may hold the key
            reason = type(error).__name__
        raise ValueError(f"{where}: the token cannot be signed with this key by {algorithm} ({reason})")

    return make


def _sign(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Callable[..., bytes]:
    kind = value["sign"]
    if kind not in _SIGNATURES:
        raise ValueError(f"{where}.sign: must be one of {', '.join(_SIGNATURES)}")
    key = _key(value, where, scope, found)
    text = _text(value, where, scope, found)
    try:
        import cryptography  # noqa: F401 - of an extra
    except ImportError:
        _raise_missing_extra(where, "sign")

    def make(context: RenderContext) -> bytes:
        secret, message = key(context), text(context)
        try:
            return _signature(kind, secret, message)
        except Exception as error:  # noqa: BLE001 - the library's texts and contexts may hold the key
            reason = str(error) if isinstance(error, _WrongKeyError) else type(error).__name__
        raise ValueError(f"{where}: the text cannot be signed with this key by {kind} ({reason})")

    return make


def _raise_missing_extra(where: str, what: str) -> None:
    raise ValueError(f"{where}: {what} needs the extra sign: pip install 'utcp-websocket-anyio[sign]'")


class _WrongKeyError(Exception):
    pass


_ED25519_SEED = 32


def _signature(kind: str, secret: bytes, message: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

    if kind == "ed25519" and len(secret) == _ED25519_SEED:
        return ed25519.Ed25519PrivateKey.from_private_bytes(secret).sign(message)
    if secret.lstrip().startswith(b"-----BEGIN"):
        key = serialization.load_pem_private_key(secret, password=None)
    else:
        key = serialization.load_der_private_key(secret, password=None)
    if kind == "ed25519" and isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if kind == "rs256" and isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if kind == "es256" and isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        # As in JWS (RFC 7518, section 3.4): both numbers, not their DER form.
        first, second = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return first.to_bytes(32, "big") + second.to_bytes(32, "big")
    raise _WrongKeyError("the key is of another kind")
