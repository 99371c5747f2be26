"""The shipped MiniGrid package: what it makes of how its cache was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.minigrid import pose, tiles
from training.minigrid.data import record
from training.minigrid.package import Histories, Package

ROOT = Path(__file__).parents[3]
PACKAGE, TEACHER = ROOT / "models/minigrid/1", ROOT / "training/minigrid/weights/teacher.npz"
BLOCKS = 9


def make(package: Package, *, nfe: int, then: list[int]) -> npt.NDArray[np.uint8]:
    """Frames [n, 56, 56, 3] after four real ones, whose evaluations are `then`; the one before them takes `nfe`."""
    episode = record("MiniGrid-FourRooms-v0", 3, length=4)
    history = Histories(package, 1, seed=0)
    for k, frame in enumerate(tiles.draw_frame(episode.ids)):
        history.observe(frame[None], np.array([pose.NONE if k == 0 else episode.actions[k]], np.int64))
    turn = np.array([pose.LEFT], np.int64)
    return np.concatenate([history.step(turn, levels=package.schedule(n), kind="renoise") for n in (nfe, *then)])


def test_a_session_whose_evaluations_change_in_the_middle_is_drawn_in_real_tiles() -> None:
    frames = make(Package(PACKAGE, block_count=BLOCKS), nfe=4, then=[1, 2, 8])
    _, errors = tiles.nearest_tile(frames)
    assert (errors <= 2).mean() > 0.95


def test_how_a_cached_frame_was_made_is_read_and_where_none_was_made_nothing_is() -> None:
    package, teacher = (Package(PACKAGE, block_count=BLOCKS, parameters=each) for each in (None, TEACHER))
    episode = record("MiniGrid-FourRooms-v0", 3, length=2)
    histories = [Histories(each, 1, seed=0) for each in (package, teacher)]
    for k, frame in enumerate(tiles.draw_frame(episode.ids)):
        for history in histories:
            history.observe(frame[None], np.array([pose.NONE if k == 0 else episode.actions[k]], np.int64))
    position, table, mask, given = histories[0]._table()
    x = np.random.default_rng(0).standard_normal((1, 1, 56, 56, 3)).astype(np.float32)
    action = np.array([pose.LEFT], np.int64)

    def answer(quality: npt.NDArray[np.float32], of: Package = package) -> npt.NDArray[np.float32]:
        return of.denoise(x, 1.0, action, position, table, mask, quality)

    beyond = given.copy()
    beyond[:, 2:] = 1  # of slots that are masked
    assert np.array_equal(answer(beyond), answer(given))
    marked = [answer(np.where(mask, np.float32(nfe), np.float32(0))) for nfe in (1, 2)]
    for each in marked:
        assert not np.array_equal(each, answer(given))
    assert np.array_equal(answer(np.ones_like(given), teacher), answer(given, teacher))  # it came before
