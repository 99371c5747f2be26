"""What gateways share is asked for once, together, and never waited for by who has left; a broken store is a miss."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry
from worldtree_gateway.answers import Answer
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.shared_answers import SharedAnswers
from worldtree_runtime.stores import MemoryStore, StoreUnavailable
from worldtree_runtime.stores.store import Fault

NOW_S = 1000.0


class Trips(MemoryStore):
    """A store that notes which keys each round trip asked for. `gate` holds them back; `down`: no trip arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = False
        self.fault: Fault = "other"

    async def get(self, key: str) -> bytes | None:
        await self._trip([key])
        return await super().get(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        await self._trip(keys)
        return [await MemoryStore.get(self, key) for key in keys]

    async def _trip(self, keys: Sequence[str]) -> None:
        self.asked.append(tuple(keys))
        await self.gate.wait()
        if self.down:
            raise StoreUnavailable("no answer", fault=self.fault)


def answer(name: bytes, *, size: int = 10, stored_s: float = NOW_S) -> Answer:
    return Answer((name * size,), stored_s, stored_s + 10.0)


def shared_answers(
    store: MemoryStore,
    breaker: CircuitBreaker | None = None,
    registry: CollectorRegistry | None = None,
    clock: Callable[[], float] = lambda: NOW_S,
) -> SharedAnswers:
    return SharedAnswers(
        store,
        store,
        breaker or CircuitBreaker(failure_count=2, retry_s=5, clock=lambda: NOW_S),
        GatewayMetrics(registry or CollectorRegistry()),
        byte_limit=1 << 20,
        clock=clock,
    )


@pytest.fixture
def store() -> Trips:
    return Trips()


@pytest.fixture
async def shared(store: Trips) -> AsyncIterator[SharedAnswers]:
    opened = shared_answers(store)
    yield opened
    await opened.close()
    opened.check_integrity()


async def put(shared: SharedAnswers, *answers: tuple[bytes, Answer]) -> None:
    for key, each in answers:
        shared.put_later(key, each, current=lambda: True)
    await asyncio.gather(*shared._writing)


async def test_keys_of_one_moment_share_a_round_trip(shared: SharedAnswers, store: Trips) -> None:
    await put(shared, (b"a", answer(b"a")), (b"b", answer(b"b")))
    found = await asyncio.gather(*(shared.get(key) for key in (b"a", b"b", b"c")))
    assert found == [answer(b"a"), answer(b"b"), None]
    assert [len(keys) for keys in store.asked] == [3]


async def test_a_key_is_asked_for_once_for_all_who_want_it_meanwhile(shared: SharedAnswers, store: Trips) -> None:
    await put(shared, (b"a", answer(b"a")))
    store.gate.clear()
    asking = [asyncio.create_task(shared.get(b"a")) for _ in range(5)]
    await asyncio.sleep(0.01)
    asking += [asyncio.create_task(shared.get(b"a"))]
    await asyncio.sleep(0.01)
    store.gate.set()
    assert await asyncio.gather(*asking) == [answer(b"a")] * 6
    assert len(store.asked) == 1


async def test_more_keys_than_a_round_trip_takes_go_in_several_at_once(shared: SharedAnswers, store: Trips) -> None:
    store.gate.clear()
    asking = [asyncio.create_task(shared.get(b"%d" % number)) for number in range(70)]
    await asyncio.sleep(0.01)
    assert [len(keys) for keys in store.asked] == [32, 32, 6]  # none waits for another
    store.gate.set()
    assert await asyncio.gather(*asking) == [None] * 70


async def test_a_large_one_goes_alone(shared: SharedAnswers, store: Trips) -> None:
    large = answer(b"x", size=500_000)
    await put(shared, (b"large", large), (b"small", answer(b"s")))
    found = await asyncio.gather(shared.get(b"small"), shared.get(b"large", alone=True), shared.get(b"other"))
    assert found == [answer(b"s"), large, None]
    assert sorted(len(keys) for keys in store.asked) == [1, 2]


async def test_who_leaves_takes_nothing_from_the_others(shared: SharedAnswers, store: Trips) -> None:
    await put(shared, (b"a", answer(b"a")))
    store.gate.clear()
    first, second = (asyncio.create_task(shared.get(b"a")) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    store.gate.set()
    assert await second == answer(b"a")


async def test_who_asks_after_a_purge_gets_nothing_that_was_read_before_it(shared: SharedAnswers, store: Trips) -> None:
    store.gate.clear()
    before = asyncio.create_task(shared.get(b"a", purge_count=1))
    await asyncio.sleep(0.01)
    after = asyncio.create_task(shared.get(b"a", purge_count=2))
    await asyncio.sleep(0.01)
    assert len(store.asked) == 2
    store.gate.set()
    assert await asyncio.gather(before, after) == [None, None]


async def test_what_cannot_be_read_is_a_miss_and_takes_no_other_along(shared: SharedAnswers, store: Trips) -> None:
    await put(shared, (b"a", answer(b"a")))
    await store.set(f"worldtree:answer:{b'bad'.hex()}", b"not an answer", 10)
    assert await asyncio.gather(shared.get(b"bad"), shared.get(b"a")) == [None, answer(b"a")]


async def test_a_broken_store_is_a_miss_that_is_counted_and_then_not_asked_again(store: Trips) -> None:
    registry, store.down = CollectorRegistry(), True
    shared = shared_answers(store, registry=registry)
    assert [await shared.get(b"k") for _ in range(5)] == [None] * 5
    assert len(store.asked) == 2
    assert registry.get_sample_value("worldtree_cache_store_errors_total", {"operation": "get", "fault": "other"}) == 2
    assert not shared.up
    await shared.close()
    shared.check_integrity()


async def test_what_does_not_come_in_time_is_for_a_while_neither_asked_for_nor_written(store: Trips) -> None:
    now_s = NOW_S
    shared = shared_answers(store, clock=lambda: now_s)
    store.down, store.fault = True, "timeout"
    assert await shared.get(b"large", alone=True) is None
    store.down = False
    await put(shared, (b"large", answer(b"l")), (b"small", answer(b"s")))
    assert await asyncio.gather(shared.get(b"large", alone=True), shared.get(b"small")) == [None, answer(b"s")]
    assert [len(keys) for keys in store.asked] == [1, 1]
    now_s += 60
    await put(shared, (b"large", answer(b"l", stored_s=now_s)))
    assert await shared.get(b"large", alone=True) == answer(b"l", stored_s=now_s)
    await shared.close()
    shared.check_integrity()


async def test_all_of_a_round_trip_that_fails_are_told(shared: SharedAnswers, store: Trips) -> None:
    store.down = True
    assert await asyncio.gather(*(shared.get(b"%d" % number) for number in range(5))) == [None] * 5
    assert shared.up  # it failed once


async def test_what_one_gateway_puts_another_gets_until_it_expires() -> None:
    store = MemoryStore()
    both = [shared_answers(store) for _ in range(2)]
    both[0].put_later(b"k", answer(b"k"), current=lambda: True)
    both[0].put_later(b"old", answer(b"o", stored_s=NOW_S - 100), current=lambda: True)
    both[0].put_later(b"purged", answer(b"p"), current=lambda: False)
    await asyncio.gather(*both[0]._writing)
    assert await both[1].get(b"k") == answer(b"k")
    assert await both[1].get(b"old") is None
    assert await both[1].get(b"purged") is None
