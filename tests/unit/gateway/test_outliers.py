"""Who fails one call after the other is left alone for a while, unless most do."""

from worldtree_gateway.outliers import Standing, sound


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def standing(clock: Clock) -> Standing:
    return Standing(failure_limit=3, base_s=10, clock=clock)


def test_so_many_failures_in_a_row_send_it_away_each_time_for_longer() -> None:
    clock = Clock()
    one = standing(clock)
    assert [one.failed() for _ in range(3)] == [False, False, True]
    assert one.away
    clock.now_s += 10
    assert not one.away
    assert [one.failed() for _ in range(3)] == [False, False, True]
    clock.now_s += 19.9
    assert one.away
    clock.now_s += 0.1
    assert not one.away


def test_a_success_clears_what_was() -> None:
    clock = Clock()
    one = standing(clock)
    for _ in range(5):
        one.failed()
        one.failed()
        one.succeeded()
    assert not one.away


def test_failures_while_it_is_away_do_not_keep_it_away() -> None:
    clock = Clock()
    one = standing(clock)
    for _ in range(30):
        one.failed()
    clock.now_s += 10
    assert not one.away


def test_where_most_are_away_it_is_not_their_fault() -> None:
    clock = Clock()
    standings = [standing(clock) for _ in range(4)]
    for sick in range(4):
        expected = [index >= sick for index in range(4)] if sick <= 2 else [True] * 4
        assert sound(standings) == expected
        for _ in range(3):
            standings[sick].failed()
    assert sound(standings) == [True] * 4
    assert sound([]) == []
    assert sound(standings[:1]) == [True]


def test_a_new_connection_begins_anew() -> None:
    clock = Clock()
    one = standing(clock)
    for _ in range(3):
        one.failed()
    one.cleared()
    assert not one.away
    assert [one.failed() for _ in range(3)] == [False, False, True]
