"""Calls are sent again as a share of those that come, and a few beyond that; a storm of failures gets no more."""

import pytest
from worldtree_gateway.retry_budget import RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def spent(budget: RetryBudget, limit: int = 10_000) -> int:
    """How many may be sent again at once."""
    return next(count for count in range(limit) if not budget.spend())


def test_a_gateway_that_has_just_started_may_send_some_again() -> None:
    assert spent(RetryBudget(ratio=0.2, per_s=10, clock=Clock())) == 100
    assert spent(RetryBudget(ratio=0.2, per_s=0, clock=Clock())) == 0


def test_a_share_of_the_calls_may_be_sent_again() -> None:
    budget = RetryBudget(ratio=0.2, per_s=0, clock=Clock())
    for _ in range(1001):
        budget.earn()
    assert spent(budget) == 200


@pytest.mark.parametrize(("ratio", "per_s", "allowed_per_s"), [(0.2, 10.0, 30), (0.2, 0.0, 20), (0.0, 10.0, 10)])
def test_while_all_calls_fail_the_rate_of_those_sent_again_is_bounded(
    ratio: float, per_s: float, allowed_per_s: float
) -> None:
    clock = Clock()
    budget = RetryBudget(ratio=ratio, per_s=per_s, clock=clock)
    counts = []
    for _ in range(120):
        count = 0
        for _ in range(100):  # calls a second, all of which fail, and fail again
            clock.now_s += 0.01
            budget.earn()
            count += budget.spend()
        counts.append(count)
    assert sum(counts[60:]) / 60 == pytest.approx(allowed_per_s, rel=0.1)


def test_what_was_earned_long_ago_is_worth_nothing() -> None:
    clock = Clock()
    budget = RetryBudget(ratio=1.0, per_s=0, clock=clock)
    for _ in range(1000):
        budget.earn()
    clock.now_s += 120
    assert spent(budget) == 0


def test_what_was_overdrawn_comes_back() -> None:
    clock = Clock()
    budget = RetryBudget(ratio=0, per_s=1, clock=clock)
    assert spent(budget) == 10
    clock.now_s += 120
    assert spent(budget) in (9, 10)
