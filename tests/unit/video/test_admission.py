"""Who may play, by what it costs."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from worldtree_video.admission import admit, play_load
from worldtree_video.cost import CostModel
from worldtree_video.errors import FpsUnavailable

CPU = CostModel({size: 0.01 * size for size in (1, 2, 4, 8)})
GPU = CostModel(dict.fromkeys((1, 2, 4, 8), 0.01))


@dataclass
class Asked:
    """A play that asks for admission."""

    fps: float
    full_nfe: int = 4
    frames_per_chunk: int = 1
    deadline_s: float = 0.0
    next_start_s: float = 0.0

    @property
    def period_s(self) -> float:
        return self.frames_per_chunk / self.fps

    def pace(self, left_s: float, chunk_s: Callable[[int], float]) -> None:
        raise AssertionError("nothing is started here")


def test_a_load_is_evaluations_and_commit_times_chunks_a_second() -> None:
    assert play_load([Asked(5)], CPU, max_batch=8) == pytest.approx((4 * 0.01 + 0.01) * 5)
    assert play_load([Asked(5), Asked(10, full_nfe=1)], CPU, max_batch=8) == pytest.approx(0.25 + 0.2)
    assert play_load([Asked(5, frames_per_chunk=5)], CPU, max_batch=8) == pytest.approx(0.05)
    assert play_load([], CPU, max_batch=8) == 0.0


def test_plays_that_share_ticks_share_their_cost() -> None:
    assert play_load([Asked(5)] * 4, GPU, max_batch=8) == pytest.approx(0.25)
    assert play_load([Asked(5)] * 4, GPU, max_batch=2) == pytest.approx(0.5)


def test_plays_are_taken_until_the_load_is_reached_and_the_refusal_says_what_could_be() -> None:
    held: list[Asked] = []
    for _ in range(3):
        admit(Asked(5), held, CPU, max_batch=8, load_max=0.85)
        held.append(Asked(5))
    with pytest.raises(FpsUnavailable) as refused:
        admit(Asked(5), held, CPU, max_batch=8, load_max=0.85)
    assert refused.value.metadata["fps"] == "5"
    fps_possible = float(refused.value.metadata["fps_possible"])
    assert fps_possible == pytest.approx(0.1 / 0.05, rel=0.03)
    assert "5 fps" in str(refused.value)
    assert f"{fps_possible:g} fps" in str(refused.value)
    admit(Asked(fps_possible), held, CPU, max_batch=8, load_max=0.85)
    held.append(Asked(2.0))
    with pytest.raises(FpsUnavailable) as none:
        admit(Asked(1), held, CPU, max_batch=8, load_max=0.85)
    assert none.value.metadata["fps_possible"] == "0"
    assert none.value.retry_after_s


def test_a_play_that_is_faster_than_a_chunk_is_refused_whatever_the_load() -> None:
    admit(Asked(19), [], GPU, max_batch=8, load_max=2.0)
    with pytest.raises(FpsUnavailable) as refused:
        admit(Asked(30), [], GPU, max_batch=8, load_max=2.0)
    assert float(refused.value.metadata["fps_possible"]) == pytest.approx(20, rel=0.03)
