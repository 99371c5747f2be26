"""Whoever keeps to a rate is let through, whoever doesn't waits exactly as long as is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_gateway.buckets import LocalBuckets, Use
from worldtree_gateway.rate import Rate

RATES = st.builds(Rate, st.floats(0.1, 1000), st.floats(1, 500))
STEPS = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), max_size=30)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@given(RATES, STEPS)
def test_in_no_stretch_of_time_is_more_used_than_the_burst_and_what_the_rate_gives(
    rate: Rate, steps: list[tuple[float, float]]
) -> None:
    arrival_s, now_s, used = 0.0, 0.0, []
    for pause_s, units in steps:
        now_s += pause_s
        after_s, wait_s = rate.used(arrival_s, now_s, units)
        if wait_s == 0:
            arrival_s = after_s
            used.append((now_s, units))
    for first, (begin_s, _) in enumerate(used):
        for last in range(first, len(used)):
            total = sum(units for _, units in used[first : last + 1])
            assert total <= (rate.burst + rate.per_s * (used[last][0] - begin_s)) * (1 + 1e-9) + 1e-6


@given(RATES, STEPS)
def test_after_the_wait_that_was_told_it_is_let_through(rate: Rate, steps: list[tuple[float, float]]) -> None:
    arrival_s, now_s = 0.0, 0.0
    for pause_s, wanted in steps:
        units = min(wanted, rate.burst)
        now_s += pause_s
        after_s, wait_s = rate.used(arrival_s, now_s, units)
        if wait_s > 0:
            now_s += wait_s + 1e-6
            after_s, wait_s = rate.used(arrival_s, now_s, units)
        assert wait_s == 0
        arrival_s = after_s


async def test_all_is_used_or_nothing() -> None:
    clock = Clock()
    buckets, calls, frames = LocalBuckets(clock=clock), Rate(10, 10), Rate(1, 5)
    uses = [Use("k", "calls", calls, 1), Use("k", "frames", frames, 3)]
    assert await buckets.use(uses) is None
    refusal = await buckets.use(uses)
    assert refusal is not None
    assert (refusal.use.name, refusal.wait_s) == ("frames", pytest.approx(1.0))
    assert await buckets.use([Use("k", "calls", calls, 9)]) is None, "the refused call took no call"
    assert await buckets.use([Use("other", "frames", frames, 5)]) is None, "another key's frames are its own"
    clock.now_s += 1.0
    assert await buckets.use(uses) is None


async def test_what_is_owed_is_counted_beyond_the_burst_and_told() -> None:
    clock = Clock()
    buckets, rate = LocalBuckets(clock=clock), Rate(10, 20)
    owed = await buckets.use([Use("k", "frames", rate, 50)], owed=True)
    assert owed is not None
    assert owed.wait_s == pytest.approx(3.0)
    nothing = [Use("k", "frames", rate, 0)]
    refusal = await buckets.use(nothing)
    assert refusal is not None
    clock.now_s += refusal.wait_s
    assert await buckets.use(nothing) is None


async def test_who_was_not_seen_for_longest_is_forgotten() -> None:
    buckets, rate = LocalBuckets(clock=Clock(), names_max=2), Rate(1, 1)
    for owner in ("a", "b", "c"):
        assert await buckets.use([Use(owner, "calls", rate, 1)]) is None
    assert await buckets.use([Use("c", "calls", rate, 1)]) is not None
    assert await buckets.use([Use("a", "calls", rate, 1)]) is None


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rate_is_above_nothing(per_s: float, burst: float) -> None:
    with pytest.raises(AssertionError, match="must be above 0"):
        Rate(per_s, burst)
