"""What a file of keys for tokens may hold, and what strangers may write in a token."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from credentials import AUDIENCE, ISSUER, Issuer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from worldtree_gateway.errors import TokenRefused
from worldtree_gateway.reloaded import ReloadedFiles
from worldtree_gateway.tokens import TokenVerifier, read_jwks

SECRET = {"kty": "oct", "k": "A" * 43}
EC = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key()))
ED = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key()))


def rsa_entry(bits: int, *, private: bool = False) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    entry: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key if private else key.public_key()))
    return {name: value for name, value in entry.items() if name not in ("key_ops",)}


RSA = rsa_entry(2048)


def written(folder: Path, document: Any) -> Path:
    path = folder / "jwks.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_what_a_key_may_be_used_with_follows_from_the_key(tmp_path: Path) -> None:
    entries = [
        {**RSA, "kid": "rsa"},
        {**RSA, "kid": "narrow", "alg": "PS512"},
        {**EC, "kid": "ec"},
        {**ED, "kid": "ed"},
        {**SECRET, "kid": "hmac"},
        {**RSA, "kid": "encrypts", "use": "enc"},
    ]
    found = {key.key_id: set(key.algorithms) for key in read_jwks(written(tmp_path, {"keys": entries}))}
    assert found == {
        "rsa": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
        "narrow": {"PS512"},
        "ec": {"ES384"},
        "ed": {"EdDSA"},
        "hmac": {"HS256", "HS384", "HS512"},
    }


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "a JWKS is"),
        ([], "a JWKS is"),
        ({"keys": {}}, "a JWKS is"),
        ({"keys": []}, "none of its 0 keys"),
        ({"keys": ["x"]}, r"keys\[0\]: a key is an object"),
        ({"keys": [RSA, {"kty": "EC", "crv": "secp256k1"}]}, r"keys\[1\]: its kty and crv must be one of"),
        ({"keys": [{**RSA, "alg": "HS256"}]}, "alg HS256 is none for this kind of key"),
        ({"keys": [{**RSA, "alg": "none"}]}, "alg none is none"),
        ({"keys": [{**SECRET, "k": "AAAA"}]}, "256 bits or more, got 24"),
        ({"keys": [rsa_entry(1024)]}, "2048 bits or more, got 1024"),
        ({"keys": [rsa_entry(2048, private=True)]}, "it is a private key"),
        ({"keys": [{"kty": "RSA"}]}, "can't be read"),
        ({"keys": [RSA, RSA]}, "a kid of its own"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_key(tmp_path: Path, document: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_jwks(written(tmp_path, document))


def test_a_secret_is_in_no_repr(tmp_path: Path) -> None:
    (key,) = read_jwks(written(tmp_path, {"keys": [SECRET]}))
    assert "A" * 8 not in repr(key)
    assert str(bytes(32)) not in repr(key)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


def verifier(issuer: Issuer, **given: Any) -> TokenVerifier:
    known = {"issuer": ISSUER, "audience": AUDIENCE, "leeway_s": 0.0, "tenant_claim": "tenant", "role_claim": "role"}
    keys = ReloadedFiles([issuer.path], lambda: read_jwks(issuer.path), every_s=0.0)
    return TokenVerifier(keys, **{**known, **given})


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["RS256", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.fixed_dictionaries({}, optional={"alg": JSON, "kid": JSON, "typ": JSON, "crit": JSON, "b64": JSON})


@settings(deadline=None)
@given(JSON | HEADERS, JSON, st.binary(max_size=300))
def test_whatever_a_stranger_writes_is_refused(issuer: Issuer, header: Any, claims: Any, signature: bytes) -> None:
    token = ".".join((part(json.dumps(header).encode()), part(json.dumps(claims).encode()), part(signature)))
    with pytest.raises(TokenRefused):
        verifier(issuer).find(token)


@pytest.mark.parametrize(
    "header", [b"[" * 5000, b'{"alg":' + b"[" * 5000, b'{"alg":1e400}', b"\xff\xfe", b"", b'{"alg":["RS256"]}', b"null"]
)
def test_a_header_that_breaks_parsers_is_refused(issuer: Issuer, header: bytes) -> None:
    with pytest.raises(TokenRefused):
        verifier(issuer).find(f"{part(header)}.{part(b'{}')}.AAAA")


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "soon", [], {}])
def test_a_time_that_is_none_is_refused_though_it_is_signed(issuer: Issuer, claim: str, value: Any) -> None:
    with pytest.raises(TokenRefused):
        verifier(issuer).find(issuer.token(**{claim: value}))


def test_an_issuer_may_let_a_token_last_for_ever(issuer: Issuer) -> None:
    assert verifier(issuer).find(issuer.token(exp=10**400)).tenant == "acme"


def test_one_subject_of_two_tenants_is_two_callers_of_two_keys(issuer: Issuer) -> None:
    """By which their limits are counted."""
    whose = [("acme", "robot"), ("globex", "robot"), ("acme:x", "y#z"), ("acme", "x#y#z"), ("acme", "x:y#z")]
    callers = [verifier(issuer).find(issuer.token(tenant=tenant, sub=subject)) for tenant, subject in whose]
    assert callers[0].key_id == "jwt:acme#robot"
    assert len({caller.key_id for caller in callers}) == len(whose)


def test_a_token_is_known_again_until_it_expires_or_the_keys_change(issuer: Issuer, tmp_path: Path) -> None:
    other, now_s = Issuer(tmp_path / "jwks.json"), [time.time()]
    keys = verifier(other, clock=lambda: now_s[0])
    token = other.token(exp=int(now_s[0]) + 100)
    caller = keys.find(token)
    assert keys.find(token) is caller, "it was verified again"
    now_s[0] += 101
    assert keys.find(token) is not caller, "it was taken for what it was"
    other.write(ec=other.ec)
    with pytest.raises(TokenRefused, match="no key of its kid"):
        keys.find(token)


def test_only_so_many_tokens_are_held(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldtree_gateway.tokens._HELD_COUNT_MAX", 2)
    keys = verifier(issuer)
    tokens = [issuer.token(sub=f"s{number}") for number in range(4)]
    callers = [keys.find(token) for token in tokens]
    assert keys.find(tokens[3]) is callers[3]
    assert keys.find(tokens[0]) is not callers[0]
    assert len(keys._held) == 2
