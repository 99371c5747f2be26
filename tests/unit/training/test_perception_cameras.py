"""Cameras and draws: each task's domain."""

from __future__ import annotations

import numpy as np
import pytest

from training.minigrid.data import record
from training.perception import cameras
from training.perception.data import Domain
from training.perception.tasks import TASKS


def _ids() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.concatenate([record("MiniGrid-Playground-v0", seed, length=40).ids for seed in range(3)])


def test_no_severity_is_the_simulators_own_picture() -> None:
    picture = cameras.draw(_ids()[:4])
    clean = cameras.shoot(picture, cameras.CLEAN, np.random.default_rng(0))
    for camera in cameras.CAMERAS:
        assert np.array_equal(cameras.shoot(picture, camera, np.random.default_rng(0), 0.0), clean)


def test_each_camera_changes_the_picture_its_own_way() -> None:
    picture = cameras.draw(_ids()[:4])
    seen = {name: cameras.shoot(picture, name, np.random.default_rng(0)) for name in (*cameras.CAMERAS, "clean")}
    names = list(seen)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            assert np.abs(seen[one].astype(int) - seen[other].astype(int)).mean() > 5, (one, other)


def test_frames_are_shot_each_through_the_camera_that_is_asked_for() -> None:
    picture = cameras.draw(_ids()[:3])
    wanted = np.array(["inverted", "clean", "inverted"])
    seen = cameras.shoot_mixed(picture, wanted, np.random.default_rng(0), 1.0)
    assert np.array_equal(seen[1], cameras.quantize(picture[1]))
    inverted = cameras.quantize(1 - picture)
    for row in (0, 2):
        assert np.abs(seen[row].astype(int) - inverted[row]).mean() < 60
        assert np.abs(seen[row].astype(int) - seen[1]).mean() > 60


def test_a_draw_is_balanced_by_class_and_a_function_of_its_seed() -> None:
    task = next(task for task in TASKS if task.name == "front_object")
    ids = _ids()
    domain = Domain(task, ids, task.answer(ids))
    occurring = len(np.unique(domain.labels))
    images, labels = domain.batch(10 * occurring, np.random.default_rng(1))
    again, _ = domain.batch(10 * occurring, np.random.default_rng(1))
    assert images.shape == (10 * occurring, 56, 56, 3)
    assert set(np.bincount(labels)) <= {0, 10}
    assert np.array_equal(images, again)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_clean_frames_is_kept(share: float) -> None:
    task = TASKS[0]
    ids = _ids()
    domain = Domain(task, ids, task.answer(ids))
    rows = domain.balanced(8, np.random.default_rng(2))
    images, _ = domain.batch(8, np.random.default_rng(2), share)
    assert np.array_equal(images, cameras.quantize(cameras.draw(ids[rows]))) == (share == 1.0)
