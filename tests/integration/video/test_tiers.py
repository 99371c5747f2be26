"""Blocks below the pool: host memory, a store that may be slow, down, wiped or full of rubbish, and a restart."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from worldtree_runtime.stores import FolderStore, MemoryStore, RedisStore, Store
from worldtree_video.host_tier import HeldBlock, HostTier
from worldtree_video.metrics import VideoMetrics
from worldtree_video.stored_block import BlockFormat, StoredBlock
from worldtree_video.tiers import Tiers

FP32 = BlockFormat("a" * 64, "fp32", {"kv": (np.float32, (2, 4, 8))}, (2, 4, 4, 3))
INT8 = BlockFormat(
    "b" * 64,
    "int8",
    {"kv": (np.int8, (2, 4, 8)), "scale": (np.float32, (2, 8)), "state": (np.float32, (3,))},
    (1, 2, 2, 3),
)


def make(form: BlockFormat, i: int) -> StoredBlock:
    rng = np.random.default_rng(i)
    tensors = {name: (rng.standard_normal(shape) * 9).astype(dtype) for name, (dtype, shape) in form.spec.items()}
    return StoredBlock(tensors, rng.integers(0, 256, form.pixels_shape, np.uint8))


def key(i: int) -> bytes:
    return i.to_bytes(32, "big")


def some(form: BlockFormat, *numbers: int) -> dict[bytes, StoredBlock]:
    return {key(i): make(form, i) for i in numbers}


def expect(found: Mapping[bytes, StoredBlock], form: BlockFormat, *numbers: int) -> None:
    assert sorted(found) == [key(i) for i in sorted(numbers)]
    for i in numbers:
        block, wanted = found[key(i)], make(form, i)
        assert block.pixels.tobytes() == wanted.pixels.tobytes()
        for name, tensor in wanted.tensors.items():
            assert block.tensors[name].tobytes() == tensor.tobytes()
            assert block.tensors[name].dtype == tensor.dtype


SIZE = make(FP32, 0).nbytes


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> VideoMetrics:
    return VideoMetrics(registry)


def count(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(f"worldtree_{name}_total", {"tier": "store"}) or 0.0


@pytest.fixture(params=["memory", "folder", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store
    match request.param:
        case "memory":
            opened = MemoryStore()
        case "folder":
            opened = FolderStore(str(tmp_path))
        case _:
            opened = RedisStore(request.getfixturevalue("valkey").url, timeout_s=10.0)
    yield opened
    await opened.close()


async def written(tiers: Tiers) -> None:
    async with asyncio.timeout(20):
        while tiers.leaving_count:  # noqa: ASYNC110 - nobody else has to know when that is
            await asyncio.sleep(0.01)


def test_the_host_tier_lets_the_least_recently_used_go() -> None:
    host = HostTier(3 * SIZE)
    for i in range(3):
        assert host.put(key(i), HeldBlock(FP32, make(FP32, i))) == []
    assert host.get(key(0)) is not None
    assert [name for name, _ in host.put(key(3), HeldBlock(FP32, make(FP32, 3)))] == [key(1)]
    assert host.put(key(2), HeldBlock(FP32, make(FP32, 2))) == []  # again: no second copy
    assert host.get(key(1)) is None
    assert (len(host), host.used_bytes, host.hit_count, host.miss_count, host.evicted_count) == (3, 3 * SIZE, 1, 1, 1)
    host.check_integrity()


def test_a_block_larger_than_the_host_tier_passes_it_by() -> None:
    host = HostTier(SIZE - 1)
    assert [name for name, _ in host.put(key(0), HeldBlock(FP32, make(FP32, 0)))] == [key(0)]
    assert len(host) == host.used_bytes == 0


async def test_blocks_come_back_from_host_from_the_way_down_and_from_the_store(
    store: Store, metrics: VideoMetrics
) -> None:
    async with Tiers(HostTier(4 * SIZE), store, metrics) as tiers:
        tiers.put(FP32, some(FP32, *range(10)))
        expect(await tiers.get(FP32, [key(i) for i in range(12)]), FP32, *range(10))  # most are on their way
        await written(tiers)
        tiers.check_integrity()
        numbers = [0, 5, 9, 3]
        assert tiers.held_count(map(key, range(10))) == 4
        assert tiers.stored_count(map(key, range(10))) >= 6
        expect(await tiers.get(FP32, [key(i) for i in numbers]), FP32, *numbers)
        assert tiers.held_count(map(key, numbers)) == 4  # they returned to host memory
        tiers.check_integrity()


async def test_two_formats_share_the_host_and_are_told_apart_in_the_store(store: Store, metrics: VideoMetrics) -> None:
    async with Tiers(HostTier(SIZE), store, metrics) as tiers:
        tiers.put(FP32, some(FP32, 1, 2))
        tiers.put(INT8, some(INT8, 3, 4))
        tiers.put(FP32, some(FP32, 5))
        await written(tiers)
    async with Tiers(HostTier(SIZE), store, metrics) as tiers:
        expect(await tiers.get(INT8, [key(i) for i in range(6)]), INT8, 3, 4)
        expect(await tiers.get(FP32, [key(i) for i in range(4)]), FP32, 1, 2)


async def test_saved_blocks_outlive_the_process_and_another_one_finds_them(store: Store, metrics: VideoMetrics) -> None:
    async with Tiers(HostTier(0), store, metrics) as tiers:
        assert await tiers.save(INT8, some(INT8, 1, 2)) == {key(1), key(2)}
        assert await tiers.save(INT8, some(INT8, 2, 3)) == {key(2), key(3)}
    async with Tiers(HostTier(10 * SIZE), store, metrics) as other:
        expect(await other.get(INT8, [key(i) for i in range(5)]), INT8, 1, 2, 3)
        assert other.held_count(map(key, range(5))) == 3


async def test_a_block_stored_already_is_not_written_again_until_half_its_time(metrics: VideoMetrics) -> None:
    now_s = [0.0]
    store = MemoryStore(lambda: now_s[0])
    async with Tiers(HostTier(0), store, metrics, ttl_s=100, clock=lambda: now_s[0]) as tiers:
        await tiers.save(FP32, some(FP32, 1))
        (name,) = list(store._entries)
        await store.delete(name)
        now_s[0] = 49
        assert await tiers.save(FP32, some(FP32, 1)) == {key(1)}
        assert await store.get(name) is None
        now_s[0] = 51
        await tiers.save(FP32, some(FP32, 1))
        assert await store.get(name) is not None


async def test_what_the_store_lost_is_written_again_as_soon_as_that_is_seen_or_feared(metrics: VideoMetrics) -> None:
    store = MemoryStore()
    async with Tiers(HostTier(0), store, metrics) as tiers:
        await tiers.save(FP32, some(FP32, 1, 2))
        await store.close()
        expect(await tiers.get(FP32, [key(1)]), FP32)
        await tiers.save(FP32, some(FP32, 1, 2))
        expect(await tiers.get(FP32, [key(1)]), FP32, 1)
        assert len(store) == 1, "of the other nothing was seen"
        tiers.doubt()
        await tiers.save(FP32, some(FP32, 1, 2))
        expect(await tiers.get(FP32, [key(1), key(2)]), FP32, 1, 2)


async def test_a_corrupt_or_foreign_block_is_refused_counted_deleted_and_not_believed(
    metrics: VideoMetrics, registry: CollectorRegistry, tmp_path: Path
) -> None:
    store = FolderStore(str(tmp_path))
    other_shape = replace(FP32, spec={"kv": (np.float32, (4, 2, 8))})
    async with Tiers(HostTier(0), store, metrics) as tiers:
        await tiers.save(FP32, some(FP32, 1, 2))
        await tiers.save(other_shape, some(other_shape, 3))
        name = f"worldtree:block:{'a' * 16}:fp32:"
        await store.set(f"{name}{key(4).hex()}", b"rubbish", 60)
        whole = await store.get(f"{name}{key(2).hex()}")
        assert whole is not None
        await store.set(f"{name}{key(2).hex()}", whole[:-1] + bytes([whole[-1] ^ 1]), 60)
        await store.set(f"{name}{key(5).hex()}", whole, 60)  # a block under another's key
        expect(await tiers.get(FP32, [key(i) for i in range(6)]), FP32, 1)
        assert count(registry, "tier_refused") == 4
        assert await store.get_many([f"{name}{key(i).hex()}" for i in (2, 3, 4, 5)]) == [None] * 4
        assert tiers.stored_count(map(key, range(6))) == 1
        expect(await tiers.get(FP32, [key(i) for i in range(6)]), FP32, 1)
        assert count(registry, "tier_refused") == 4


async def test_what_each_model_has_in_a_tier_is_counted_as_long_as_it_is_relied_on() -> None:
    now_s = [0.0]
    store = MemoryStore(lambda: now_s[0])
    metrics = VideoMetrics(CollectorRegistry())
    small = make(INT8, 0).nbytes
    async with Tiers(HostTier(2 * SIZE), store, metrics, ttl_s=100, clock=lambda: now_s[0]) as tiers:
        await tiers.save(FP32, some(FP32, 1, 2))
        now_s[0] = 20
        await tiers.save(INT8, some(INT8, 3))
        tiers.put(FP32, some(FP32, 4, 4))
        tiers.put(INT8, some(INT8, 5))
        host = tiers.host.shares
        assert (host.block_count(FP32.digest), host.used_bytes(FP32.digest)) == (1, SIZE)
        assert (host.block_count(INT8.digest), host.used_bytes(INT8.digest)) == (1, small)
        kept = tiers.store_shares
        assert (kept.block_count(FP32.digest), kept.used_bytes(FP32.digest)) == (2, 2 * SIZE)
        assert (kept.block_count(INT8.digest), kept.used_bytes(INT8.digest)) == (1, small)
        tiers.check_integrity()
        now_s[0] = 51  # half their time is over
        assert tiers.store_shares.block_count(FP32.digest) == 0
        assert tiers.store_shares.block_count(INT8.digest) == 1
        tiers.check_integrity()
        tiers.doubt()
        assert tiers.store_shares.block_count(INT8.digest) == 0
        assert len(await tiers.get(INT8, [key(3)])) == 1
        assert tiers.store_shares.block_count(INT8.digest) == 1
        assert tiers.store_shares.block_count("c" * 64) == 0
        tiers.check_integrity()


async def test_without_a_store_the_host_tier_is_all_there_is(
    metrics: VideoMetrics, registry: CollectorRegistry
) -> None:
    async with Tiers(HostTier(2 * SIZE), None, metrics) as tiers:
        tiers.put(FP32, some(FP32, 1, 2, 3))
        expect(await tiers.get(FP32, [key(i) for i in range(5)]), FP32, 2, 3)
        assert await tiers.save(FP32, some(FP32, 1)) == set()
        assert tiers.leaving_count == 0
        assert registry.get_sample_value("worldtree_tier_dropped_total", {"tier": "host"}) == 1


async def test_a_store_that_dies_costs_its_blocks_and_no_errors_and_is_used_again(
    valkey: Any, metrics: VideoMetrics, registry: CollectorRegistry
) -> None:
    store = RedisStore(valkey.url, timeout_s=2.0)
    async with Tiers(HostTier(2 * SIZE), store, metrics) as tiers:
        tiers.put(FP32, some(FP32, *range(6)))
        await written(tiers)
        valkey.kill()
        expect(await tiers.get(FP32, [key(i) for i in range(6)]), FP32, 4, 5)
        assert await tiers.save(FP32, some(FP32, 9)) == set()
        assert count(registry, "tier_unavailable") == 2
        tiers.put(FP32, some(FP32, 10, 11))
        await written(tiers)
        assert count(registry, "tier_dropped") == 2  # 4 and 5 went nowhere
        valkey.restart()
        assert await tiers.save(FP32, some(FP32, 0)) == {key(0)}  # it was there, and must not be taken for it
        tiers.put(FP32, some(FP32, 12, 13))
        await written(tiers)
        expect(await tiers.get(FP32, [key(i) for i in range(14)]), FP32, 0, 10, 11, 12, 13)
        tiers.check_integrity()
    await store.close()


async def test_a_store_that_hangs_fills_a_bounded_queue_and_the_oldest_go(
    valkey: Any, metrics: VideoMetrics, registry: CollectorRegistry
) -> None:
    store = RedisStore(valkey.url, timeout_s=30.0)
    async with Tiers(HostTier(SIZE), store, metrics, queue_bytes=20 * SIZE) as tiers:
        valkey.pause(1500)
        for i in range(100):
            tiers.put(FP32, some(FP32, i))
            tiers.check_integrity()
            if i == 5:
                await asyncio.sleep(0.05)  # some are being written
        assert tiers.leaving_count <= 20
        assert count(registry, "tier_dropped") >= 79
        await written(tiers)
        expect(await tiers.get(FP32, [key(i) for i in range(79, 100)]), FP32, *range(79, 100))
    await store.close()


async def test_closing_waits_for_nothing_and_leaves_no_task(valkey: Any, metrics: VideoMetrics) -> None:
    store = RedisStore(valkey.url, timeout_s=30.0)
    before = asyncio.all_tasks()
    async with Tiers(HostTier(0), store, metrics) as tiers:
        valkey.pause(3000)
        tiers.put(FP32, some(FP32, *range(50)))
        await asyncio.sleep(0.1)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 1.0
    assert asyncio.all_tasks() == before
    await store.close()


async def test_callers_that_leave_break_nothing(store: Store, metrics: VideoMetrics) -> None:
    async with Tiers(HostTier(2 * SIZE), store, metrics) as tiers:
        await tiers.save(FP32, some(FP32, *range(20)))
        calls = [asyncio.create_task(tiers.get(FP32, [key(i % 20), key((i + 7) % 20)])) for i in range(40)]
        await asyncio.sleep(0.002)
        for call in calls[::3]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        expect(await tiers.get(FP32, [key(i) for i in range(20)]), FP32, *range(20))
        await written(tiers)
        tiers.check_integrity()


async def test_reading_is_measured_and_what_was_never_read_counts_as_free(
    metrics: VideoMetrics, tmp_path: Path
) -> None:
    async with Tiers(HostTier(0), FolderStore(str(tmp_path)), metrics) as tiers:
        assert tiers.estimate_s(FP32, 5, 5) == 0
        await tiers.save(FP32, some(FP32, *range(8)))
        started_s = time.perf_counter()
        await tiers.get(FP32, [key(i) for i in range(8)])
        took_s = time.perf_counter() - started_s
        assert took_s / 2 < tiers.estimate_s(FP32, 0, 8) <= took_s
        assert tiers.estimate_s(FP32, 0, 16) == pytest.approx(2 * tiers.estimate_s(FP32, 0, 8))
        assert tiers.estimate_s(INT8, 0, 8) == 0  # another format has other costs


async def test_what_the_store_holds_ends_by_itself(valkey: Any, metrics: VideoMetrics) -> None:
    store = RedisStore(valkey.url, timeout_s=10.0)
    async with Tiers(HostTier(0), store, metrics, ttl_s=500) as tiers:
        await tiers.save(FP32, some(FP32, 1))
    with Redis.from_url(valkey.url) as client:
        (name,) = client.keys("*")
        assert name == f"worldtree:block:{'a' * 16}:fp32:{key(1).hex()}".encode()
        assert 0 < client.ttl(name) <= 500
    await store.close()
