"""Fewer evaluations when there is no time, all of them when there is, and no flutter between."""

from worldtree_video.degrade import NfeLadder


def chunk_s(nfe: int) -> float:
    return 0.01 * nfe


def test_the_most_evaluations_that_fit_are_taken() -> None:
    assert NfeLadder(8, (1, 2, 4, 8)).choose(0.2, chunk_s) == 8
    assert NfeLadder(8, (1, 2, 4, 8)).choose(0.07, chunk_s) == 4
    assert NfeLadder(8, (1, 2, 4, 8)).choose(0.02, chunk_s) == 2


def test_the_fewest_are_taken_when_none_fit() -> None:
    assert NfeLadder(8, (2, 4, 8)).choose(-1.0, chunk_s) == 2


def test_a_play_never_gets_more_than_its_own_and_without_choices_it_never_yields() -> None:
    assert NfeLadder(4, (1, 2, 4, 8)).choose(9.0, chunk_s) == 4
    assert NfeLadder(4).choose(-1.0, chunk_s) == 4


def test_the_full_number_comes_back_after_four_chunks_with_time_to_spare() -> None:
    ladder = NfeLadder(8, (1, 2, 4, 8))
    assert ladder.choose(0.05, chunk_s) == 4
    assert [ladder.choose(0.11, chunk_s) for _ in range(5)] == [4, 4, 4, 8, 8]


def test_a_play_at_the_edge_does_not_flutter() -> None:
    ladder = NfeLadder(8, (4, 8))
    ladder.choose(0.079, chunk_s)
    chosen = [ladder.choose(left_s, chunk_s) for left_s in (0.081, 0.079) * 20]  # fits, but with nothing to spare
    assert set(chosen) == {4}
    chosen = [ladder.choose(left_s, chunk_s) for left_s in (0.2, 0.2, 0.2, 0.09) * 20]  # never four in a row
    assert set(chosen) == {4}
