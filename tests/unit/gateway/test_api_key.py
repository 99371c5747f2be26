"""Keys: how they look, what is kept of them, and what a line may not say."""

import base64
import hashlib
import re

import pytest
from worldtree_gateway.api_key import KnownKey, PresentedKey, new_key
from worldtree_gateway.identity import Caller, Role

TEXT, KNOWN = new_key("acme", Role.OPERATOR)
SALT_HASH = KNOWN.line.rpartition("p=1$")[2]


def presented(text: str) -> PresentedKey:
    found = PresentedKey.parse(text)
    assert found is not None
    return found


def test_a_key_is_known_again_and_no_other_is() -> None:
    line = KnownKey.parse(KNOWN.line)
    assert line == KNOWN
    assert line.is_key(presented(TEXT))
    assert not line.is_key(presented(TEXT[:-1] + ("A" if TEXT[-1] != "A" else "B")))
    assert line.caller == Caller("acme", TEXT[3:11], Role.OPERATOR)


def test_a_line_is_a_hash_that_others_can_check_and_holds_no_secret() -> None:
    assert re.fullmatch(r"[0-9a-f]{8} acme operator \$scrypt\$ln=14,r=8,p=1\$[\w+/]{22}\$[\w+/]{43}", KNOWN.line)
    salt, digest = (base64.b64decode(part + "==") for part in SALT_HASH.split("$"))
    assert hashlib.scrypt(TEXT.encode(), salt=salt, n=2**14, r=8, p=1, maxmem=2**26, dklen=32) == digest
    assert TEXT[12:] not in KNOWN.line
    assert TEXT[12:] not in repr(presented(TEXT))


def test_no_two_keys_are_alike() -> None:
    other, line = new_key("acme", Role.OPERATOR)
    assert other != TEXT
    assert (line.salt, line.digest) != (KNOWN.salt, KNOWN.digest)


@pytest.mark.parametrize(
    "text",
    ["", "wt_", TEXT[:-1], TEXT + "A", TEXT.upper(), f" {TEXT}", TEXT.replace("wt_", "sk_")],
    ids=["empty", "prefix", "short", "long", "capitals", "space", "stranger"],  # the key is another in each process
)
def test_what_has_not_the_shape_of_a_key_is_none(text: str) -> None:
    assert PresentedKey.parse(text) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "4 parts"),
        (f"{KNOWN.line} more", "4 parts .*, got 5"),
        (KNOWN.line[:8].upper().replace("0", "G") + "X" + KNOWN.line[8:], "8 hexadecimal"),
        (KNOWN.line.replace("acme", "a" * 65), "1 to 64"),
        (KNOWN.line.replace("acme", "äcme"), "1 to 64"),
        (KNOWN.line.replace("operator", "root"), 'user or operator, got "root"'),
        (KNOWN.line.replace("scrypt", "plain"), r"\$scrypt"),
        (KNOWN.line.replace("ln=14", "ln=4"), "ln of 12 or more"),
        (KNOWN.line.replace("ln=14", "ln=30"), "64 MiB at most"),
        (KNOWN.line.replace("r=8", "r=0"), "r=0"),
        (KNOWN.line[:-1], r"\$scrypt"),
    ],
)
def test_a_line_that_cannot_be_is_refused_without_its_hash(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        KnownKey.parse(line)
    assert SALT_HASH not in str(caught.value)


@pytest.mark.parametrize("tenant", ["", "a b", "a" * 65, "ä", "a\n"])
def test_a_tenant_that_no_service_would_take_gets_no_key(tenant: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 characters"):
        new_key(tenant, Role.USER)
