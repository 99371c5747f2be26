"""JSON Web Tokens: verified with the keys of a JWKS file, which may change while it is in use."""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from jwt.algorithms import AllowedPublicKeys
from worldtree_runtime.messages import TENANT

from worldtree_gateway.api_key import role_named
from worldtree_gateway.errors import TokenRefused
from worldtree_gateway.identity import Caller, Role
from worldtree_gateway.reloaded import ReloadedFiles

EXPIRED = "TOKEN_EXPIRED"  # the reason, where nothing else is wrong
TOKEN_BYTES_MAX = 6144  # gRPC lets 8 KiB of metadata pass for sure
_RSA_BITS_MIN = 2048
_SECRET_BITS_MIN = 256
_SUBJECT_CHARS_MAX = 128
_HELD_COUNT_MAX = 4096
_LATEST_S = 1 << 53  # a token may last for ever, which is more seconds than a float has
# Strangers write tokens, and JSON can be more than a parser of tokens expects: nested too deep, numbers too large.
_UNREADABLE = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError)

# What a key may be used with follows from the key alone. A token's header only chooses among these, so a public key is
# never an HMAC secret, and "none" is nobody's.
_ALGORITHMS: Mapping[tuple[str, str], frozenset[str]] = {
    ("RSA", ""): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
    ("oct", ""): frozenset({"HS256", "HS384", "HS512"}),
}


@dataclass(frozen=True, slots=True)
class TokenKey:
    """One key of a JWKS, and the algorithms that it may be used with."""

    key_id: str
    key: "AllowedPublicKeys | bytes"
    algorithms: frozenset[str]

    def __repr__(self) -> str:
        return f"TokenKey({self.key_id!r})"  # a secret in a traceback would be one in the log


def read_jwks(path: Path) -> tuple[TokenKey, ...]:
    """The keys of a file that verify signatures. Raises ValueError that names the file and the key, or OSError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries = document["keys"]
        if not isinstance(entries, list):
            raise TypeError
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f'{path}: a JWKS is {{"keys": [...]}} in JSON') from None
    keys = []
    for place, entry in enumerate(entries):
        try:
            if isinstance(entry, dict) and entry.get("use", "sig") != "sig":
                continue
            keys.append(_read_key(entry))
        except ValueError as error:
            raise ValueError(f"{path}: keys[{place}]: {error}") from None
    if not keys:
        raise ValueError(f"{path}: none of its {len(entries)} keys verifies signatures")
    names = [key.key_id for key in keys]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: each key needs a kid of its own")
    return tuple(keys)


def _read_key(entry: Any) -> TokenKey:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name, ""), str) for name in ("kty", "crv", "alg")):
        raise ValueError("a key is an object with kty, and for curves crv")
    kind = (entry.get("kty", ""), entry.get("crv", ""))
    algorithms = _ALGORITHMS.get(kind)
    if algorithms is None:
        raise ValueError(f"its kty and crv must be one of {sorted(map(list, _ALGORITHMS))}, got {list(kind)}")
    named = entry.get("alg")
    if named is not None:
        if named not in algorithms:
            raise ValueError(f"alg {named} is none for this kind of key: {', '.join(sorted(algorithms))}")
        algorithms = frozenset({named})
    try:
        key = jwt.PyJWK(entry, algorithm=min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise ValueError(f"it can't be read ({type(error).__name__})") from None  # the text may hold the key
    bits = len(key) * 8 if isinstance(key, bytes) else getattr(key, "key_size", None)
    least = {"RSA": _RSA_BITS_MIN, "oct": _SECRET_BITS_MIN}.get(kind[0])
    if least is not None and (bits or 0) < least:
        raise ValueError(f"a key of kty {kind[0]} has {least} bits or more, got {bits}")
    if hasattr(key, "private_bytes"):
        raise ValueError("it is a private key: a gateway verifies, and needs the public one only")
    return TokenKey(str(entry.get("kid", "")), key, algorithms)


class TokenVerifier:
    """Finds whose a token is. `tenant_claim` names the claim that holds the tenant, `role_claim` the role (absent:
    a user).

    A token that held is known again by its SHA-256, until it expires or the keys change: a look costs microseconds.
    """

    def __init__(
        self,
        keys: ReloadedFiles[tuple[TokenKey, ...]],
        *,
        issuer: str,
        audience: str,
        leeway_s: float,
        tenant_claim: str,
        role_claim: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer, self._audience, self._leeway_s = issuer, audience, leeway_s
        self._tenant_claim, self._role_claim = tenant_claim, role_claim
        self._clock = clock
        self._held_with: tuple[TokenKey, ...] = ()  # the keys that the tokens below held with
        self._held: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()  # and until when, latest used last

    def find(self, token: str) -> Caller:
        """Raises TokenRefused, whose message never repeats the token."""
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenRefused("TOO_LONG", f"it has {len(token)} bytes, {TOKEN_BYTES_MAX} at most are read")
        keys = self._keys.get()
        if keys is not self._held_with:
            self._held_with = keys
            self._held.clear()
        name = hashlib.sha256(token.encode()).digest()
        caller, ends_s = self._held.get(name, (None, 0.0))
        if caller is not None and self._clock() < ends_s:
            self._held.move_to_end(name)
            return caller
        caller, ends_s = self._verified(token, keys)
        self._held[name] = (caller, ends_s)
        if len(self._held) > _HELD_COUNT_MAX:
            self._held.popitem(last=False)
        return caller

    def _verified(self, token: str, keys: Sequence[TokenKey]) -> tuple[Caller, float]:
        """The caller, and until when that holds, in seconds since 1970."""
        try:
            header = jwt.get_unverified_header(token)
        except _UNREADABLE:
            raise TokenRefused("MALFORMED", "it is no JSON Web Token") from None
        key = _key_of(header, keys)
        claims = self._claims(token, key, str(header.get("alg")))
        return self._caller(claims), min(int(claims["exp"]), _LATEST_S) + self._leeway_s

    def _claims(self, token: str, key: TokenKey, algorithm: str) -> Mapping[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "aud", "iss", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused(EXPIRED.removeprefix("TOKEN_"), "it has expired") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("AUDIENCE", f'its aud must be or hold "{self._audience}"') from None
        except jwt.InvalidIssuerError:
            raise TokenRefused("ISSUER", f'its iss must be "{self._issuer}"') from None
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise TokenRefused("NOT_YET_VALID", "its nbf or iat is in the future") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused("CLAIM_MISSING", f"it must have the claim {error.claim}") from None
        except _UNREADABLE:
            raise TokenRefused("SIGNATURE", "its signature does not hold") from None
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant = claims.get(self._tenant_claim)
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise TokenRefused(
                "TENANT", f"its claim {self._tenant_claim} must name a tenant: 1 to 64 of A-Z a-z 0-9 . _ : @ / -"
            )
        named = claims.get(self._role_claim, Role.USER.name.lower())
        role = role_named(named) if isinstance(named, str) else None
        if role is None:
            raise TokenRefused("ROLE", f'its claim {self._role_claim} must be "user" or "operator"')
        subject = str(claims["sub"])
        if not (subject.isascii() and subject.isprintable() and 0 < len(subject) <= _SUBJECT_CHARS_MAX):
            raise TokenRefused("SUBJECT", f"its sub must have 1 to {_SUBJECT_CHARS_MAX} printable ASCII characters")
        # a token's own id: no key's, which has no colon; and no other tenant's, whose name has no #
        return Caller(tenant, f"jwt:{tenant}#{subject}", role)


def _key_of(header: Mapping[str, Any], keys: Sequence[TokenKey]) -> TokenKey:
    """The one key that a token's header means, if it may be used as the header says. Raises TokenRefused."""
    named, algorithm = header.get("kid"), header.get("alg")
    found = [key for key in keys if named is None or key.key_id == named]
    if not found:
        raise TokenRefused("KEY_UNKNOWN", "no key of its kid is known here")
    fitting = [key for key in found if isinstance(algorithm, str) and algorithm in key.algorithms]
    if not fitting:
        allowed = ", ".join(sorted({each for key in found for each in key.algorithms}))
        shown = algorithm[:20] if isinstance(algorithm, str) else "none"
        raise TokenRefused("ALGORITHM", f'its alg must be one of {allowed}, got "{shown}"')
    if len(fitting) > 1:
        raise TokenRefused("KEY_UNKNOWN", "it must name its key by kid, as several are known here")
    return fitting[0]
