"""Room is bounded, time is kept, and a broken shared store is left alone."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from worldtree_gateway.answers import Answer
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.cache import AnswerCache, SharedAnswers
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_runtime.stores import MemoryStore, StoreUnavailable


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def answer(size: int = 100, *, stored_s: float = 1000.0, ttl_s: float = 10.0) -> Answer:
    return Answer((b"x" * size,), stored_s, stored_s + ttl_s)


def test_the_least_recently_used_answer_leaves_first() -> None:
    cache = AnswerCache(3 * answer().byte_count, clock=Clock())
    for key in (b"a", b"b", b"c"):
        cache.put(key, answer())
    assert cache.get(b"a")
    cache.put(b"d", answer())
    assert [bool(cache.get(key)) for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    cache.check_integrity()


def test_an_answer_larger_than_the_cache_is_not_kept_and_pushes_nothing_out() -> None:
    cache = AnswerCache(1000, clock=Clock())
    cache.put(b"small", answer())
    cache.put(b"large", answer(1000))
    assert cache.get(b"small")
    assert cache.get(b"large") is None
    cache.check_integrity()


def test_an_expired_answer_gives_its_room_back() -> None:
    clock = Clock()
    cache = AnswerCache(1000, clock=clock)
    cache.put(b"a", answer(ttl_s=10))
    clock.now_s += 10
    assert cache.get(b"a") is None
    assert cache.byte_count == 0
    cache.check_integrity()


def test_an_answer_too_old_for_one_caller_stays_for_the_next() -> None:
    clock = Clock()
    cache = AnswerCache(1000, clock=clock)
    cache.put(b"a", answer(ttl_s=10))
    clock.now_s += 5
    assert cache.get(b"a", age_max_s=4) is None
    assert cache.get(b"a") is not None
    cache.check_integrity()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400), st.floats(0, 3)), max_size=60), st.integers(0, 2000))
def test_the_books_are_right_whatever_is_put(puts: list[tuple[int, int, float]], byte_limit: int) -> None:
    clock = Clock()
    cache = AnswerCache(byte_limit, clock=clock)
    for key, size, pause_s in puts:
        clock.now_s += pause_s
        cache.get(bytes([key]))
        cache.put(bytes([key]), answer(size, stored_s=clock.now_s, ttl_s=5))
        cache.check_integrity()


def test_the_breaker_lets_one_call_try_after_a_while() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failure_count=2, retry_s=5, clock=clock)
    breaker.failed(OSError("down"))
    assert breaker.allows()
    breaker.failed(OSError("down"))
    assert (breaker.up, breaker.allows()) == (False, False)
    clock.now_s += 5
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.failed(OSError("down"))
    assert not breaker.allows()
    clock.now_s += 5
    assert breaker.allows()
    breaker.succeeded()
    assert (breaker.up, breaker.allows()) == (True, True)


class BrokenStore(MemoryStore):
    """A store that is down, as Redis is when its machine is."""

    get_count = 0

    async def get(self, key: str) -> bytes | None:
        self.get_count += 1
        raise StoreUnavailable("no answer")


async def test_a_broken_store_is_a_miss_that_is_counted_and_then_not_asked_again() -> None:
    registry, store, clock = CollectorRegistry(), BrokenStore(), Clock()
    breaker = CircuitBreaker(failure_count=2, retry_s=5, clock=clock)
    shared = SharedAnswers(store, store, breaker, GatewayMetrics(registry), byte_limit=1 << 20, clock=clock)
    assert [await shared.get(b"k") for _ in range(5)] == [None] * 5
    assert store.get_count == 2
    assert registry.get_sample_value("worldtree_cache_store_errors_total", {"operation": "get", "fault": "other"}) == 2
    assert not shared.up
    await shared.close()


async def test_what_one_gateway_puts_another_gets_until_it_expires() -> None:
    clock, store = Clock(), MemoryStore()
    both = [
        SharedAnswers(
            store,
            store,
            CircuitBreaker(failure_count=1, retry_s=1),
            GatewayMetrics(CollectorRegistry()),
            byte_limit=1 << 20,
            clock=clock,
        )
        for _ in range(2)
    ]
    both[0].put_later(b"k", answer(ttl_s=10), current=lambda: True)
    both[0].put_later(b"old", answer(stored_s=900, ttl_s=10), current=lambda: True)
    both[0].put_later(b"purged", answer(ttl_s=10), current=lambda: False)
    await asyncio.gather(*both[0]._writing)
    assert await both[1].get(b"k") == answer(ttl_s=10)
    assert await both[1].get(b"old") is None
    assert await both[1].get(b"purged") is None


@pytest.mark.parametrize("byte_limit", [0, 100])
def test_a_cache_without_room_holds_nothing(byte_limit: int) -> None:
    cache = AnswerCache(byte_limit, clock=Clock())
    cache.put(b"a", answer())
    assert cache.get(b"a") is None
    cache.check_integrity()
