"""Answers of the six questions, on frames laid out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from training.minigrid import tiles
from training.perception import tasks

NAMES = tiles.tile_names()
AGENT = tiles.AGENT


def frame(things: dict[tuple[int, int], str], *, rest: int = tiles.EMPTY) -> npt.NDArray[np.uint8]:
    """[1, 49]: the agent below the middle; `things` by (cells ahead, cells to the right)."""
    ids = np.full((7, 7), rest, np.uint8)
    ids[6, 3] = AGENT
    for (ahead, right), name in things.items():
        ids[6 - ahead, 3 + right] = NAMES.index(name)
    return ids.reshape(1, 49)


def answer(task: tasks.Task, ids: npt.NDArray[np.uint8]) -> str:
    return task.classes[int(task.answer(ids)[0])]


BY_NAME = {task.name: task for task in tasks.TASKS}


@pytest.mark.parametrize(
    ("task", "things", "expected"),
    [
        ("front_object", {}, "empty"),
        ("front_object", {(1, 0): "wall"}, "wall"),
        ("front_object", {(1, 0): "red ball", (2, 0): "wall"}, "ball"),
        ("front_object", {(1, 0): "open blue door"}, "door"),
        ("door_state", {(1, 0): "wall"}, "none"),
        ("door_state", {(1, 1): "locked red door", (4, 0): "open blue door"}, "locked"),
        ("goal_distance", {}, "none"),
        ("goal_distance", {(1, 1): "goal"}, "up to 2"),
        ("goal_distance", {(3, 0): "goal"}, "3 or 4"),
        ("goal_distance", {(6, 3): "goal"}, "7 or more"),
        ("free_ahead", {(1, 0): "lava"}, "0"),
        ("free_ahead", {(3, 0): "wall"}, "2"),
        ("free_ahead", {(1, 0): "open red door", (2, 0): "closed red door"}, "1"),
        ("free_ahead", {}, "5 or more"),
        ("danger", {}, "none"),
        ("danger", {(5, 0): "lava"}, "ahead"),
        ("danger", {(1, -1): "lava", (5, 0): "lava"}, "left"),
        ("danger", {(0, 2): "lava"}, "right"),
    ],
)
def test_each_question_is_answered_as_one_reads_the_frame(
    task: str, things: dict[tuple[int, int], str], expected: str
) -> None:
    assert answer(BY_NAME[task], frame(things)) == expected


@pytest.mark.parametrize(("kind", "first"), [("key", 1), ("ball", 7), ("box", 13)])
def test_what_is_carried_is_read_from_the_agents_own_cell(kind: str, first: int) -> None:
    ids = frame({(1, 0): "red key"})
    assert answer(BY_NAME["carried"], ids) == "nothing"
    for color in range(6):
        ids[0, tiles.AGENT_CELL] = AGENT + first + color
        assert kind in NAMES[AGENT + first + color]
        assert answer(BY_NAME["carried"], ids) == kind


def test_every_answer_is_a_class_of_its_task() -> None:
    ids = np.random.default_rng(0).integers(0, tiles.AGENT, (500, 49)).astype(np.uint8)
    ids[:, tiles.AGENT_CELL] = AGENT
    for task in tasks.TASKS:
        labels = task.answer(ids)
        assert labels.dtype == np.int64
        assert labels.min() >= 0
        assert labels.max() < len(task.classes)


def test_the_base_is_told_no_thing_from_another() -> None:
    things = [tiles.GOAL, tiles.LAVA, *range(4, tiles.OBJECT_COUNT)]
    ids = np.full((len(things), 49), tiles.EMPTY, np.uint8)
    ids[:, 10] = things
    maps = tasks.coarse_map(ids)
    assert set(maps[:, 10]) == {tasks.COARSE_CLASSES.index("thing")}
    carrying = frame({})
    carrying[0, tiles.AGENT_CELL] = AGENT + 1
    assert np.array_equal(tasks.coarse_map(frame({})), tasks.coarse_map(carrying))
