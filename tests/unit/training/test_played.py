"""Episodes of an evaluation that was cut short."""

from pathlib import Path

from worldtree.episodes import Episode
from worldtree.simulator import Outcome

from training.navigator.played import Played


def episode(seed: int, shortest: int | None = 4) -> Episode:
    outcome = Outcome(success=True, steps=5, fell=False, collisions=1, shortest=shortest)
    return Episode("MiniGrid-LavaGapS7-v0", seed, "go", outcome, (0.25, 1.5), (0.125, 1.0), (16, 0))


def test_what_was_played_is_known_to_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "cells" / "lava.jsonl"
    assert Played(path).known(range(9)) == {}
    for each in (episode(3), episode(5, shortest=None), episode(11)):
        Played(path).keep(each)
    assert Played(path).known(range(9)) == {3: episode(3), 5: episode(5, shortest=None)}


def test_a_line_that_was_cut_off_is_played_again(tmp_path: Path) -> None:
    path = tmp_path / "lava.jsonl"
    Played(path).keep(episode(3))
    Played(path).keep(episode(4))
    path.write_text(path.read_text()[:-20])
    assert Played(path).known(range(9)) == {3: episode(3)}
    Played(path).keep(episode(4))
    assert Played(path).known(range(9)) == {3: episode(3), 4: episode(4)}
