"""The Redis store against a real server, also while it is down."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from worldtree_runtime.errors import Kind
from worldtree_runtime.stores import RedisStore, StoreUnavailable, open_store


@pytest.fixture
async def store(valkey: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(valkey.url, timeout_s=5.0)
    yield store
    await store.close()


async def test_a_value_comes_back_byte_for_byte_and_goes_when_deleted(store: RedisStore) -> None:
    value = bytes(range(256)) * 1000
    assert await store.get("k") is None
    await store.set("k", value, 60)
    assert await store.get("k") == value
    await store.delete("k")
    await store.delete("k")
    assert await store.get("k") is None


async def test_a_value_expires_at_its_own_time(store: RedisStore) -> None:
    await store.set("short", b"1", 0.05)
    await store.set("long", b"2", 60)
    await asyncio.sleep(0.1)
    assert (await store.get("short"), await store.get("long")) == (None, b"2")


async def test_a_ttl_below_a_millisecond_still_expires(store: RedisStore) -> None:
    await store.set("k", b"1", 0.0001)
    await asyncio.sleep(0.05)
    assert await store.get("k") is None


async def test_of_many_that_set_if_absent_exactly_one_wins_across_stores(valkey: Any) -> None:
    stores = [RedisStore(valkey.url, timeout_s=10.0) for _ in range(4)]
    won = await asyncio.gather(*(stores[i % 4].set_if_absent("k", b"%d" % i, 60) for i in range(40)))
    assert sum(won) == 1
    assert await stores[0].get("k") == b"%d" % won.index(True)
    for each in stores:
        await each.close()


async def test_more_calls_at_once_than_connections_wait_their_turn(valkey: Any) -> None:
    store = RedisStore(valkey.url, timeout_s=10.0)
    await asyncio.gather(*(store.set(f"k{i}", b"%d" % i, 60) for i in range(300)))
    assert await asyncio.gather(*(store.get(f"k{i}") for i in range(300))) == [b"%d" % i for i in range(300)]
    assert valkey.connected_client_count() <= 64
    await store.close()


async def test_a_killed_server_is_unavailable_and_a_new_one_is_found_without_being_told(valkey: Any) -> None:
    store = RedisStore(valkey.url, timeout_s=5.0)
    await store.set("k", b"1", 60)
    valkey.kill()
    for call in (store.get("k"), store.set("k", b"2", 60), store.delete("k"), store.set_if_absent("k", b"3", 60)):
        with pytest.raises(StoreUnavailable) as caught:
            await call
        assert caught.value.kind is Kind.UNAVAILABLE
        assert caught.value.retry_after_s is not None
    valkey.restart()
    assert await store.get("k") is None
    await store.set("k", b"4", 60)
    assert await store.get("k") == b"4"
    await store.close()


async def test_a_restart_between_two_calls_is_not_noticed(valkey: Any) -> None:
    store = RedisStore(valkey.url, timeout_s=10.0)
    await asyncio.gather(*(store.set(f"k{i}", b"1", 60) for i in range(8)))  # several pooled connections, dead soon
    valkey.kill()
    valkey.restart()
    assert await asyncio.gather(*(store.set_if_absent(f"k{i}", b"2", 60) for i in range(8))) == [True] * 8
    await store.close()


async def test_a_server_that_hangs_costs_the_timeout_and_no_connection(valkey: Any) -> None:
    store = RedisStore(valkey.url, timeout_s=0.2)
    await store.set("k", b"1", 60)
    valkey.pause(5000)
    started_s = time.monotonic()
    answers = await asyncio.gather(*(store.get("k") for _ in range(100)), return_exceptions=True)
    assert time.monotonic() - started_s < 4.0
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert "did not answer within 0.2 s" in str(answers[0])
    # from now on nobody waits for it, until it has had its rest
    for _ in range(50):
        with pytest.raises(StoreUnavailable, match="did not answer 100 times in a row") as caught:
            await store.get("k")
        assert 0 < (caught.value.retry_after_s or 0) <= 1.0
    assert time.monotonic() - started_s < 4.5
    await asyncio.sleep(5.3 - (time.monotonic() - started_s))
    # one after another: a hundred at once can take a busy machine more than the 0.2 s that each has
    assert [await store.get("k") for _ in range(100)] == [b"1"] * 100
    await store.close()


async def test_callers_that_leave_give_their_connections_back(valkey: Any) -> None:
    store = RedisStore(valkey.url, timeout_s=10.0)
    await store.set("k", b"1", 60)
    valkey.pause(300)
    calls = [asyncio.create_task(store.get("k")) for _ in range(100)]
    await asyncio.sleep(0.1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0.3)
    # an answer meant for a cancelled call must not reach another one
    await asyncio.gather(*(store.set(f"k{i}", b"%d" % i, 60) for i in range(200)))
    assert await asyncio.gather(*(store.get(f"k{i}") for i in range(200))) == [b"%d" % i for i in range(200)]
    await store.close()


async def test_the_message_names_the_server_and_not_its_password() -> None:
    store = open_store("redis://someone:secret@127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1") as caught:
        await store.get("k")
    assert "secret" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
async def test_a_ttl_that_is_no_time_is_refused_before_anything_is_sent(ttl_s: float) -> None:
    store = RedisStore("redis://127.0.0.1:1/0")
    with pytest.raises(ValueError, match="ttl_s must be more than 0"):
        await store.set("k", b"1", ttl_s)
    with pytest.raises(ValueError, match="ttl_s must be more than 0"):
        await store.set_if_absent("k", b"1", ttl_s)
    await store.close()
