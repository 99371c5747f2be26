"""What is hashed at a key's first use, and who waits for it."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from credentials import KeysFile
from worldtree_gateway.api_key import KnownKey, PresentedKey
from worldtree_gateway.errors import AuthenticationBusy, KeyRefused
from worldtree_gateway.key_ring import KeyRing, read_keys
from worldtree_gateway.reloaded import ReloadedFiles


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a key of each id was hashed."""
    counted: Counter[str] = Counter()
    is_key = KnownKey.is_key

    def counting(known: KnownKey, presented: PresentedKey) -> bool:
        counted[known.key_id] += 1
        return is_key(known, presented)

    monkeypatch.setattr(KnownKey, "is_key", counting)
    return counted


@pytest.fixture
def ring(keys: KeysFile) -> Iterator[KeyRing]:
    ring = KeyRing(ReloadedFiles([keys.path], partial(read_keys, keys.path), every_s=0.0), None)
    yield ring
    ring.close()


def presented(text: str) -> PresentedKey:
    key = PresentedKey.parse(text)
    assert key is not None
    return key


def guess(text: str, number: int) -> PresentedKey:
    return presented(f"{text[:-6]}{number:06d}")


async def found(ring: KeyRing, *shown: PresentedKey) -> list[Any]:
    return await asyncio.gather(*(ring.find(each) for each in shown), return_exceptions=True)


async def test_all_who_show_a_key_at_its_first_use_wait_for_one_hash(
    ring: KeyRing, keys: KeysFile, hashed: Counter[str]
) -> None:
    key = presented(keys.add("acme"))
    assert {caller.tenant for caller in await found(ring, *[key] * 40)} == {"acme"}
    assert hashed == {key.key_id: 1}


async def test_who_leaves_while_a_key_is_hashed_takes_nothing_from_the_others(ring: KeyRing, keys: KeysFile) -> None:
    key = presented(keys.add("acme"))
    first = asyncio.create_task(ring.find(key))
    await asyncio.sleep(0)
    other = asyncio.create_task(ring.find(key))
    await asyncio.sleep(0)
    first.cancel()
    assert (await other).tenant == "acme"


async def test_guesses_at_one_id_leave_room_for_the_first_use_of_others(ring: KeyRing, keys: KeysFile) -> None:
    guessed, unseen = keys.add("acme"), presented(keys.add("globex"))
    *refusals, caller = await found(ring, *(guess(guessed, number) for number in range(40)), unseen)
    assert caller.tenant == "globex"
    assert Counter(map(type, refusals)) == {KeyRefused: 3, AuthenticationBusy: 37}


async def test_so_many_ids_wait_at_a_time_and_one_more_is_told_to_come_later(ring: KeyRing, keys: KeysFile) -> None:
    shown = [presented(keys.add(f"t{number}")) for number in range(65)]
    *callers, refusal = await found(ring, *shown)
    assert [caller.tenant for caller in callers] == [f"t{number}" for number in range(64)]
    assert isinstance(refusal, AuthenticationBusy)
    assert (await ring.find(shown[-1])).tenant == "t64"


async def test_a_key_that_was_verified_is_known_at_once_and_no_other_of_its_id_is_hashed(
    ring: KeyRing, keys: KeysFile, hashed: Counter[str]
) -> None:
    text = keys.add("acme")
    key = presented(text)
    assert ring.recognize(key) is None
    assert ring.recognize(key) is None
    caller = await ring.find(key)
    assert ring.recognize(key) == caller
    with pytest.raises(KeyRefused):
        ring.recognize(guess(text, 1))
    assert hashed == {key.key_id: 1}
    keys.revoke(text)
    with pytest.raises(KeyRefused):
        ring.recognize(key)
