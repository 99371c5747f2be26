"""The memory store on a fake clock."""

import asyncio
import random

import pytest
from worldtree_runtime.stores import MemoryStore, RedisStore, open_store
from worldtree_runtime.stores.memory_store import ENTRY_OVERHEAD_BYTES


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_value_lives_for_its_ttl_and_not_longer() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    await store.set("k", b"v", 10)
    clock.now_s += 9.999
    assert await store.get("k") == b"v"
    clock.now_s += 0.001
    assert await store.get("k") is None
    assert store.used_bytes == 0
    store.check_integrity()


async def test_setting_again_renews_the_time() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    await store.set("k", b"old", 10)
    clock.now_s += 5
    await store.set("k", b"new", 10)
    clock.now_s += 9
    assert await store.get("k") == b"new"
    clock.now_s += 1
    assert await store.get("k") is None
    store.check_integrity()


async def test_the_least_recently_used_value_leaves_first() -> None:
    store = MemoryStore(Clock(), max_bytes=3 * (ENTRY_OVERHEAD_BYTES + 1 + 100))
    for key in "abc":
        await store.set(key, bytes(100), 60)
    await store.get("a")
    await store.set("d", bytes(100), 60)
    assert [await store.get(key) is not None for key in "abcd"] == [True, False, True, True]
    store.check_integrity()


async def test_a_value_larger_than_the_store_is_not_kept_and_pushes_nothing_out() -> None:
    store = MemoryStore(Clock(), max_bytes=1000)
    await store.set("small", b"v", 60)
    await store.set("large", bytes(2000), 60)
    assert (await store.get("small"), await store.get("large")) == (b"v", None)
    await store.set("small", bytes(2000), 60)  # replaces: the old value must not be served as the new one
    assert await store.get("small") is None
    store.check_integrity()


async def test_set_if_absent_wins_once_and_again_after_expiry() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    assert await asyncio.gather(*(store.set_if_absent("k", b"%d" % i, 5) for i in range(5))) == [True] + [False] * 4
    assert await store.get("k") == b"0"
    clock.now_s += 5
    assert await store.set_if_absent("k", b"again", 5)
    store.check_integrity()


async def test_a_key_that_is_set_for_ever_does_not_pile_up_expiries() -> None:
    store = MemoryStore(Clock())
    for _ in range(10_000):
        await store.set("k", b"v", 3600)
    assert len(store._expiries) < 200
    store.check_integrity()


async def test_any_sequence_of_calls_keeps_the_books_right() -> None:
    chance, clock = random.Random(7), Clock()
    store = MemoryStore(clock, max_bytes=4000)
    for _ in range(3000):
        key = f"k{chance.randrange(20)}"
        match chance.randrange(4):
            case 0:
                await store.set(key, bytes(chance.randrange(900)), chance.uniform(0.1, 5))
            case 1:
                await store.set_if_absent(key, bytes(chance.randrange(900)), chance.uniform(0.1, 5))
            case 2:
                await store.delete(key)
            case _:
                await store.get(key)
        clock.now_s += chance.uniform(0, 0.3)
        store.check_integrity()
    clock.now_s += 10
    assert (len(store), store.used_bytes) == (0, 0)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
async def test_a_ttl_that_is_no_time_is_refused(ttl_s: float) -> None:
    store = MemoryStore(Clock())
    await store.set("k", b"v", 1)
    with pytest.raises(ValueError, match="ttl_s must be more than 0"):
        await store.set("other", b"v", ttl_s)
    with pytest.raises(ValueError, match="ttl_s must be more than 0"):
        await store.set_if_absent("k", b"v", ttl_s)


async def test_the_url_picks_the_store() -> None:
    assert isinstance(open_store(None), MemoryStore)
    redis_store = open_store("redis://127.0.0.1:1/0")
    assert isinstance(redis_store, RedisStore)
    await redis_store.close()
    with pytest.raises(ValueError, match="must be redis:"):
        open_store("http://127.0.0.1:1/0")
