"""Room is bounded, time is kept, and a broken shared store is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_gateway.answers import Answer
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.cache import AnswerCache


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


@pytest.mark.parametrize("byte_limit", [0, 100])
def test_a_cache_without_room_holds_nothing(byte_limit: int) -> None:
    cache = AnswerCache(byte_limit, clock=Clock())
    cache.put(b"a", answer())
    assert cache.get(b"a") is None
    cache.check_integrity()
