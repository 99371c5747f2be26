"""An API key as its owner has it, and the line that a gateway keeps of it.

    key    wt_3f9a1c2b_Zk3...                        id (public), then 32 random bytes as base64url
    line   3f9a1c2b acme user $scrypt$ln=14,r=8,p=1$SALT$HASH

The line says who the key is for and lets nobody else in: it holds a hash of the secret, in PHC's string format.
"""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from worldtree_runtime.messages import TENANT

from worldtree_gateway.identity import Caller, Role

PREFIX = "wt_"
_KEY = re.compile(r"wt_(?P<id>[0-9a-f]{8})_(?P<secret>[A-Za-z0-9_-]{43})")
_ID = re.compile(r"[0-9a-f]{8}")
_HASH = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{22,86})\$([A-Za-z0-9+/]{43,86})")
_SECRET_BYTES, _SALT_BYTES, _DIGEST_BYTES = 32, 16, 32
_COST, _BLOCK, _LANES = 14, 8, 1  # 16 MiB and about 50 ms a look, of which a gateway needs one for each key
_MEMORY_BYTES_MAX = 64 << 20  # a line may ask for so much: whoever writes it has no quarrel with this machine
_COST_MIN = 12
_ROLES = {role.name.lower(): role for role in Role}


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """What a caller showed. It has the shape of a key, and may be anybody's or nobody's."""

    key_id: str
    text: str

    def __repr__(self) -> str:
        return f"PresentedKey({self.key_id})"  # a key in a traceback would be one in the log

    @classmethod
    def parse(cls, text: str) -> "PresentedKey | None":
        match = _KEY.fullmatch(text)
        return None if match is None else cls(match["id"], text)

    def fingerprint(self) -> bytes:
        """SHA-256: enough to know again, in this process, a key of 256 random bits that was verified before."""
        return hashlib.sha256(self.text.encode()).digest()


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line. `cost`, `block` and `lanes` are scrypt's log2(N), r and p."""

    key_id: str
    tenant: str
    role: Role
    cost: int
    block: int
    lanes: int
    salt: bytes
    digest: bytes

    @property
    def caller(self) -> Caller:
        return Caller(self.tenant, self.key_id, self.role)

    @property
    def line(self) -> str:
        hashed = f"$scrypt$ln={self.cost},r={self.block},p={self.lanes}${_base64(self.salt)}${_base64(self.digest)}"
        return f"{self.key_id} {self.tenant} {self.role.name.lower()} {hashed}"

    def is_key(self, presented: PresentedKey) -> bool:
        """Takes tens of milliseconds and as many MiB: not in the event loop."""
        digest = _hash(presented.text, self.salt, self.cost, self.block, self.lanes, len(self.digest))
        return hmac.compare_digest(digest, self.digest)

    @classmethod
    def parse(cls, line: str) -> "KnownKey":
        """Raises ValueError with what is wrong, without the line's hash."""
        parts = line.split()
        if len(parts) != 4:
            raise ValueError(f"a key's line has 4 parts (ID TENANT ROLE HASH), got {len(parts)}")
        key_id, tenant, role, hashed = parts
        if not _ID.fullmatch(key_id):
            raise ValueError("a key's id has 8 hexadecimal digits in lower case")
        check_tenant(tenant)
        if role not in _ROLES:
            raise ValueError(f'the role of key {key_id} must be {" or ".join(_ROLES)}, got "{role[:40]}"')
        match = _HASH.fullmatch(hashed)
        if match is None:
            raise ValueError(f"the hash of key {key_id} must be $scrypt$ln=N,r=N,p=N$SALT$HASH")
        cost, block, lanes = (int(match[group]) for group in (1, 2, 3))
        if not (cost >= _COST_MIN and block >= 1 and lanes >= 1 and _memory_bytes(cost, block) <= _MEMORY_BYTES_MAX):
            raise ValueError(
                f"the hash of key {key_id} must have ln of {_COST_MIN} or more and take {_MEMORY_BYTES_MAX >> 20} MiB "
                f"at most, got ln={cost}, r={block}, p={lanes}"
            )
        return cls(key_id, tenant, _ROLES[role], cost, block, lanes, _bytes(match[4]), _bytes(match[5]))


def check_tenant(tenant: str) -> None:
    """Raises ValueError for a name that no tenant can have."""
    if not TENANT.fullmatch(tenant):
        raise ValueError(f'a tenant has 1 to 64 characters of A-Z a-z 0-9 . _ : @ / -, got "{tenant[:80]}"')


def role_named(name: str) -> Role | None:
    """None: there is no such role."""
    return _ROLES.get(name)


def new_key(tenant: str, role: Role) -> tuple[str, KnownKey]:
    """A key that nobody had before, and what is kept of it. Raises ValueError for a tenant that can't be."""
    check_tenant(tenant)
    key_id = secrets.token_hex(4)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = _hash(text, salt, _COST, _BLOCK, _LANES, _DIGEST_BYTES)
    return text, KnownKey(key_id, tenant, role, _COST, _BLOCK, _LANES, salt, digest)


def _hash(text: str, salt: bytes, cost: int, block: int, lanes: int, byte_count: int) -> bytes:
    maxmem = 2 * _MEMORY_BYTES_MAX  # OpenSSL counts a little beside the table itself
    return hashlib.scrypt(text.encode(), salt=salt, n=1 << cost, r=block, p=lanes, maxmem=maxmem, dklen=byte_count)


def _memory_bytes(cost: int, block: int) -> int:
    return 128 * block << cost


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
