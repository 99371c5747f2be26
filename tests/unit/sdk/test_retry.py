import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree import Aborted, DeadlineExceeded, ResourceExhausted, Unavailable, WorldtreeError
from worldtree._retry import MAX_ATTEMPTS, MAX_DELAY_S, MAX_RETRY_AFTER_S, Attempts


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def attempts(*, safe: bool = True, timeout_s: float | None = None, clock: Clock | None = None) -> Attempts:
    return Attempts(safe=safe, timeout_s=timeout_s, clock=clock or Clock(), jitter=lambda: 0.5)


def unavailable(retry_after_s: float | None = None) -> Unavailable:
    error = Unavailable("nobody")
    error.retry_after_s = retry_after_s
    return error


def test_delays_grow_until_the_tries_are_used_up() -> None:
    tries = attempts()
    delays = [tries.delay_after(unavailable()) for _ in range(MAX_ATTEMPTS)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, None])


def test_the_server_s_own_delay_goes_before_the_curve() -> None:
    delay_s = attempts().delay_after(unavailable(3.0))
    assert delay_s is not None
    assert 3.0 <= delay_s <= 3.6


def test_a_server_that_asks_for_too_much_patience_is_not_waited_for() -> None:
    assert attempts().delay_after(unavailable(MAX_RETRY_AFTER_S + 1)) is None


@pytest.mark.parametrize("error", [Aborted("x"), ResourceExhausted("x"), DeadlineExceeded("x"), WorldtreeError("x")])
def test_only_unavailable_is_tried_again(error: WorldtreeError) -> None:
    assert attempts().delay_after(error) is None


def test_an_unsafe_call_is_never_repeated() -> None:
    assert attempts(safe=False).delay_after(unavailable()) is None


def test_no_try_begins_after_the_deadline() -> None:
    clock = Clock()
    tries = attempts(timeout_s=1.0, clock=clock)
    assert tries.remaining_s == pytest.approx(1.0)
    clock.now_s += 0.95
    assert tries.remaining_s == pytest.approx(0.05)
    assert tries.delay_after(unavailable()) is None


@given(st.floats(0, 1), st.floats(0.01, 60), st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=10))
def test_the_whole_call_stays_within_its_timeout(
    jitter: float, timeout_s: float, retry_afters_s: list[float | None]
) -> None:
    clock = Clock()
    tries = Attempts(safe=True, timeout_s=timeout_s, clock=clock, jitter=lambda: jitter)
    for retry_after_s in retry_afters_s:
        delay_s = tries.delay_after(unavailable(retry_after_s))
        if delay_s is None:
            break
        assert 0 <= delay_s <= max(MAX_DELAY_S, MAX_RETRY_AFTER_S) * 1.2
        clock.now_s += delay_s
    assert clock.now_s <= 100.0 + timeout_s
