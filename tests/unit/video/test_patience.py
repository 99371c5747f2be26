"""How long a chunk that nobody steers may wait for a control."""

import pytest
from worldtree_video.patience import Patience

PERIOD_S = 0.2


def settled(load: float, spare_s: float = PERIOD_S) -> Patience:
    patience = Patience(PERIOD_S)
    patience.limit(load)
    for _ in range(100):
        patience.made(spare_s)
    return patience


def test_nothing_is_waited_until_chunks_have_shown_that_there_is_time() -> None:
    patience = Patience(PERIOD_S)
    assert patience.wait_s == 0.0
    patience.made(PERIOD_S)
    assert patience.wait_s == 0.0, "nobody has said how much time plays are promised"
    patience.limit(0.5)
    patience.made(PERIOD_S)
    assert 0.0 < patience.wait_s < 0.05 * PERIOD_S


@pytest.mark.parametrize(("load", "share"), [(0.25, 0.6), (0.65, 0.2), (0.9, 0.0), (1.3, 0.0)])
def test_the_wait_stays_below_what_no_play_is_promised(load: float, share: float) -> None:
    assert settled(load).wait_s == pytest.approx(share * PERIOD_S)


def test_the_wait_is_cut_down_at_once_when_more_is_promised() -> None:
    patience = settled(0.25)
    patience.limit(0.75)
    assert patience.wait_s == pytest.approx(0.1 * PERIOD_S)


def test_a_chunk_that_came_close_to_its_deadline_halves_the_wait() -> None:
    patience = settled(0.5)
    waited_s = patience.wait_s
    patience.made(0.24 * PERIOD_S)
    assert patience.wait_s == pytest.approx(waited_s / 2)
    patience.made(-1.0)
    assert patience.wait_s == pytest.approx(waited_s / 4)
