"""`compute`: the test vectors of standards and of providers' own documents, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from utcp_websocket_anyio._templates import compute
from utcp_websocket_anyio._templates.compute import compile_computation
from utcp_websocket_anyio._templates.values import RenderContext

HI_THERE = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"


def computed(form: Any, /, *, captured: dict[str, Any] | None = None, **args: Any) -> Any:
    context = RenderContext(args, "tool", captured=captured)
    return compile_computation({"value": form}, "on_connect[0].compute").compute(context)["value"]


def fault(form: Any) -> str:
    with pytest.raises(ValueError, match=r"^compute") as raised:
        compile_computation({"a": form}, "compute")
    assert raised.value.__context__ is None
    return str(raised.value)


# Vectors


@pytest.mark.parametrize(
    ("form", "result"),
    [
        # RFC 4231, test cases 1 (SHA-256) and 2 (SHA-256 and SHA-512)
        ({"hmac": "sha256", "key": "0b" * 20, "key_encoding": "hex", "text": "Hi There"}, HI_THERE),
        (
            {"hmac": "sha256", "key": "Jefe", "text": "what do ya want for nothing?"},
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            {"hmac": "sha512", "key": "Jefe", "text": ["what do ya want ", "for nothing?"], "as": "hex"},
            (
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
                "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
            ),
        ),
        # FIPS 180-2: SHA-256 of "abc"; RFC 1321: MD5 of "abc"
        ({"hash": "sha256", "text": "abc"}, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ({"hash": "md5", "text": "abc"}, "900150983cd24fb0d6963f7d28e17f72"),
    ],
)
def test_hashes_are_those_of_the_standards(form: Any, result: str) -> None:
    assert computed(form) == result


def test_obs_authentication_is_that_of_its_documents() -> None:
    secret = {"hash": "sha256", "text": ["{{args.password}}", "{{captured.salt}}"], "as": "base64"}
    form = {"hash": "sha256", "text": [secret, "{{captured.challenge}}"], "as": "base64"}
    given = {
        "salt": "lM1GncleQOaCu9lT1yeUZhFYnqhsLLP1G5lAGo3ixaI=",
        "challenge": "+IxH4CnCiqpX1rM9scsNynZzbOe4KhDeYcTNS3PDaeY=",
    }
    assert computed(form, captured=given, password="supersecretpassword") == (
        "1Ct943GAT+6YQUUX47Ia/ncufilbe6+oD6lY+5kaCu4="
    )


def test_pusher_signature_is_that_of_its_documents() -> None:
    form = {"hmac": "sha256", "key": "7ad3773142a6692b25b8", "text": "{{captured.socket_id}}:private-foobar"}
    assert computed(form, captured={"socket_id": "1234.1234"}) == (
        "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
    )


def test_binance_signature_is_that_of_its_documents() -> None:
    query = {
        "symbol": "BTCUSDT",
        "side": "SELL",
        "type": "LIMIT",
        "timeInForce": "GTC",
        "quantity": "0.01000000",
        "price": "52000.00",
        "newOrderRespType": "ACK",
        "recvWindow": 100,
        "timestamp": 1645423376532,
        "stopPrice": "{{args.stop?}}",
        "apiKey": "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A",
    }
    form = {
        "hmac": "sha256",
        "key": "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j",
        "text": {"query": query, "sort": True},
    }
    assert computed(form) == "cc15477742bd704c29492d96c7ead9414dfd8e0ec4a00f947bb5bb454ddbd08a"


def test_kraken_signature_is_that_of_its_documents() -> None:
    nonce = "1616492376594"
    order = {"nonce": nonce, "ordertype": "limit", "pair": "XBTUSD", "price": 37500, "type": "buy", "volume": 1.25}
    form = {
        "hmac": "sha512",
        "key": "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg==",
        "key_encoding": "base64",
        "text": ["/0/private/AddOrder", {"hash": "sha256", "text": [nonce, {"query": order}]}],
        "as": "base64",
    }
    assert computed(form) == (
        "4/dpxb3iT4tp/ZCVEwSnEsLxx0bqyhLpdfOpc6fn7OR8+UClSV5n9E6aSS8MPtnRfp32bAb0nmbRn6H8ndwLUQ=="
    )


def test_a_query_is_encoded_as_rfc_3986_says_and_sorted_by_bytes() -> None:
    members = {"b": "a b/ü~", "a.1": [1, "x"], "B": None, "c": "{{args.c?}}"}
    assert computed({"query": members}) == "b=a%20b%2F%C3%BC~&a.1=1&a.1=x&B=null"
    assert computed({"query": members, "sort": True, "encode": False}) == "B=null&a.1=1&a.1=x&b=a b/ü~"
    assert computed({"query": "{{args.members}}"}, members={"a": 1}) == "a=1"
    with pytest.raises(ValueError, match=r"\.query: must come out as an object"):
        computed({"query": "{{args.members}}"}, members=[1])


# Values


def test_constants_keep_their_type_and_later_values_see_earlier_ones() -> None:
    form = {"one": 1, "no": False, "none": None, "time": "{{args.time}}", "sum": "{{captured.time}}-{{captured.one}}"}
    compiled = compile_computation(form, "compute")
    assert compiled.names == ("one", "no", "none", "time", "sum")
    assert compiled.captures == frozenset()
    result = compiled.compute(RenderContext({"time": 5}, "tool"))
    assert result == {"one": 1, "no": False, "none": None, "time": 5, "sum": "5-1"}
    assert compile_computation({"n": "{{captured.n}}x"}, "compute").captures == {"n"}


def test_a_part_without_as_gives_its_bytes_and_a_typed_one_its_json_text() -> None:
    nested = {"hash": "sha256", "text": "abc"}
    raw = bytes.fromhex(computed(nested))
    assert computed({"hash": "md5", "text": [nested]}) == computed({"hash": "md5", "text": "{{args.raw}}"}, raw=raw)
    assert computed({"hash": "md5", "text": [nested | {"as": "hex"}]}) == computed({"hash": "md5", "text": raw.hex()})
    assert computed({"hash": "md5", "text": ["a", 5, True, "{{args.x}}"]}, x=[1]) == (
        computed({"hash": "md5", "text": "a5true[1]"})
    )


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ([1], "compute.a: must be a template (string), a constant, or an object that says what to compute"),
        ({}, "compute.a: needs one of hmac, hash, query, jwt, sign"),
        ({"hmca": "sha256"}, "compute.a: unknown kind 'hmca'; did you mean 'hmac'?"),
        ({"hash": "sha257", "text": ""}, "compute.a.hash: must be one of sha256, sha512, sha384, sha1, md5"),
        ({"hash": "md5"}, "compute.a: needs text (a template, or a list of parts)"),
        ({"hmac": "sha1", "text": ""}, "compute.a: needs a key"),
        ({"hash": "md5", "text": "", "as": "text"}, "compute.a.as: must be one of hex, base64, base64url"),
        ({"hash": "md5", "text": "", "ass": "hex"}, "compute.a: unknown key 'ass'; did you mean 'as'?"),
        ({"hmac": "md5", "key": "", "text": "", "key_encoding": "x"}, "compute.a.key_encoding: must be one of base64"),
        ({"query": [1]}, "compute.a.query: must be an object of names and values"),
        ({"query": {}, "sort": "yes"}, "compute.a.sort: must be true or false"),
        ({"jwt": {}, "key": "k", "algorithm": "none"}, "compute.a.algorithm: must be one of HS256, "),
        ({"jwt": "x", "key": "k", "algorithm": "HS256"}, "compute.a.jwt: must be an object of claims"),
        ({"sign": "rot13", "key": "k", "text": ""}, "compute.a.sign: must be one of ed25519, es256, rs256"),
        ("{{arg.x}}", "compute.a: {{arg.x}} does not exist; did you mean {{args.…}}?"),
    ],
    ids=str,
)
def test_a_wrong_form_is_an_error_that_says_where_and_what_is_right(form: Any, expected: str) -> None:
    assert fault(form).startswith(expected)


def test_a_key_is_in_no_error() -> None:
    form = {"hmac": "sha256", "key": "{{args.key}}", "key_encoding": "base64", "text": "x"}
    with pytest.raises(ValueError, match="is not valid base64") as raised:
        computed(form, key="not-base64-secret")
    assert "secret" not in str(raised.value)
    assert raised.value.__context__ is None


# With the extra `sign`


def test_ed25519_signature_is_that_of_rfc_8032() -> None:
    pytest.importorskip("cryptography")
    form = {
        "sign": "ed25519",
        "key": "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "key_encoding": "hex",
        "text": "",
    }
    assert computed(form) == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    second = {**form, "key": "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "text": "r"}
    assert computed(second).startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")


def test_signatures_by_keys_in_pem_are_verified_by_their_public_keys() -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

    def pem(key: Any) -> str:
        form = serialization.PrivateFormat.PKCS8
        encoded: bytes = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return encoded.decode()

    curve = ec.generate_private_key(ec.SECP256R1())
    signature = bytes.fromhex(computed({"sign": "es256", "key": pem(curve), "text": ["a", "b"]}))
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    curve.public_key().verify(der, b"ab", ec.ECDSA(hashes.SHA256()))
    modulus = rsa.generate_private_key(65537, 2048)
    signature = base64.b64decode(computed({"sign": "rs256", "key": pem(modulus), "text": "ab", "as": "base64"}))
    modulus.public_key().verify(signature, b"ab", padding.PKCS1v15(), hashes.SHA256())
    for kind, key in (("es256", pem(modulus)), ("rs256", pem(curve)), ("ed25519", pem(curve)), ("es256", "hunter2")):
        with pytest.raises(ValueError, match=f"cannot be signed with this key by {kind}") as raised:
            computed({"sign": kind, "key": key, "text": "ab"})
        assert "hunter2" not in str(raised.value)
        assert raised.value.__context__ is None


def test_a_token_is_that_of_jwt() -> None:
    jwt = pytest.importorskip("jwt")
    key = "a key of at least thirty-two bytes for HS256"
    form = {
        "jwt": {"iss": "{{args.issuer}}", "exp": "{{now+60|unix}}", "aud": "{{args.audience?}}"},
        "key": "{{args.key}}",
        "algorithm": "HS256",
        "headers": {"kid": "7"},
    }
    token = computed(form, issuer="me", key=key)
    claims = jwt.decode(token, key, algorithms=["HS256"])
    assert claims.keys() == {"iss", "exp"}
    assert claims["iss"] == "me"
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "7", "typ": "JWT"}
    # RFC 7515, appendix A.1: the signature over this signing input with this key.
    rfc_key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
    signing_input = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    )
    standard = base64.b64encode(base64.urlsafe_b64decode(rfc_key + "==")).decode()
    signed = {"hmac": "sha256", "key": standard, "key_encoding": "base64", "text": signing_input, "as": "base64url"}
    assert computed(signed) == "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"


@pytest.mark.parametrize(
    ("module", "form"), [("jwt", {"jwt": {}, "algorithm": "HS256"}), ("cryptography", {"sign": "es256", "text": ""})]
)
def test_without_the_extra_a_clear_error_says_what_to_install(
    module: str, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=r"compute.a: \w+ needs the extra sign: pip install .*\[sign\]"):
        compile_computation({"a": {**form, "key": "k"}}, "compute")
    assert compute.__doc__
    assert json.dumps(form)
