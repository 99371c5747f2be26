"""What a replica has to do is what we know of it, for as long as that holds; one that came is not overrun."""

from worldtree_gateway.load import Load


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_calls_of_others_are_what_the_replica_tells_beyond_ours() -> None:
    load = Load(ramp_s=0, clock=Clock())
    assert load.calls(2) == 2
    load.told(7, ours=3)
    assert load.calls(0) == 4
    assert load.calls(5) == 9
    load.told(2, ours=3)  # some of ours have yet to arrive there
    assert load.calls(3) == 3


def test_what_others_do_is_not_believed_for_ever() -> None:
    clock = Clock()
    load = Load(ramp_s=0, clock=clock)
    load.told(7, ours=0)
    clock.now_s += 30
    assert load.calls(0) == 7
    clock.now_s += 1
    assert load.calls(0) == 0


def test_a_session_that_is_opened_counts_until_its_own_calls_do() -> None:
    clock = Clock()
    load = Load(ramp_s=0, clock=clock)
    load.opened()
    clock.now_s += 6
    load.opened()
    assert (load.pressure(1), load.calls(1)) == (3, 1)
    clock.now_s += 6
    assert load.pressure(1) == 2
    load.came()
    assert load.pressure(1) == 1


def test_a_session_that_is_gone_again_counts_no_more() -> None:
    load = Load(ramp_s=0, clock=Clock())
    for _ in range(3):
        load.opened()
    load.held = 1  # as it tells
    assert load.pressure(0) == 1


def test_calls_weigh_more_at_one_that_came_and_sessions_to_come_do_not() -> None:
    clock = Clock()
    load = Load(ramp_s=20, clock=clock)
    load.came()
    load.told(3, ours=1)
    assert load.pressure(0) == 20
    load.opened()
    assert load.pressure(0) == 21
    clock.now_s += 10
    assert load.pressure(0) == 5
    clock.now_s += 10
    assert load.pressure(0) == 2


def test_the_share_of_one_that_came_grows_from_a_tenth_to_all_of_it() -> None:
    clock = Clock()
    load = Load(ramp_s=20, clock=clock)
    assert load.share == 1, "one that was never away is no news"
    load.came()
    shares = []
    for _ in range(6):
        shares.append(load.share)
        clock.now_s += 5
    assert shares == [0.1, 0.25, 0.5, 0.75, 1, 1]
    load.came()
    assert load.share == 0.1


def test_without_a_ramp_the_share_is_whole_at_once() -> None:
    load = Load(ramp_s=0, clock=Clock())
    load.came()
    assert load.share == 1
