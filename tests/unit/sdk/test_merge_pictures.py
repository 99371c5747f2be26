"""What the pictures of merges show; and that they are drawn whatever the number of tasks, points and layers."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worldtree.cli.merge_plot import best_point
from worldtree.cli.pictures.merges import draw_coefficients, draw_front, traded_most
from worldtree.errors import InvalidRequest
from worldtree.multitask_types import FrontPoint, Merge, ParetoFront, Recipe, TaskScore


def front(scores: np.ndarray) -> ParetoFront:
    """`scores` [points, tasks]."""
    points = [
        FrontPoint(
            merge=f"front.{index}",
            preference=tuple(row),
            scores=tuple(TaskScore(f"task_{task}", float(score), 0.95, 0.4) for task, score in enumerate(row)),
            objectives=tuple(row),
            sparsity=0.0,
        )
        for index, row in enumerate(scores)
    ]
    return ParetoFront("front", tuple(points), hypervolume=0.4, evaluation_count=80)


def merge(layer_count: int, expert_count: int) -> Merge:
    coefficients = np.linspace(-0.5, 1, layer_count * expert_count, dtype=np.float32)
    return Merge(
        name="mine",
        digest="d" * 64,
        model="perception",
        version="1",
        model_digest="e" * 64,
        recipe=Recipe("adamerging"),
        create_time=datetime.now(UTC),
        make_s=1.0,
        scores=(),
        mean_score=0.8,
        kept_share=0.9,
        worse_than_base=False,
        guarded=False,
        notes=(),
        layers=tuple(f"layer_{index}" for index in range(layer_count)),
        experts=tuple(f"task_{index}" for index in range(expert_count)),
        coefficients=coefficients.reshape(layer_count, expert_count),
        image_count=8,
        evaluation_count=8,
        front_point_count=0,
        front=None,
    )


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_the_two_tasks_shown_against_each_other_are_those_that_are_traded_most() -> None:
    scores = np.array([[0.9, 0.1, 0.5, 0.6], [0.8, 0.2, 0.9, 0.5], [0.7, 0.3, 0.1, 0.7]])
    assert traded_most(scores) == (2, 3)
    assert traded_most(scores[:, :3]) == (1, 2)
    assert traded_most(np.array([[0.5]])) == (0, 0)


@pytest.mark.parametrize(("points", "tasks"), [(1, 1), (1, 2), (2, 2), (40, 6), (3, 14)])
def test_a_front_is_drawn_whatever_its_size(tmp_path: Path, points: int, tasks: int) -> None:
    drawn = front(np.random.default_rng(0).uniform(0.4, 0.95, (points, tasks)))
    width, height = size(draw_front(drawn, drawn.points[-1], tmp_path / "front.png"))
    assert 1200 <= width <= 2400
    assert 600 <= height <= 1200


@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (8, 6), (24, 12)])
def test_coefficients_are_drawn_in_cells_that_hold_their_numbers(tmp_path: Path, layers: int, experts: int) -> None:
    width, height = size(draw_coefficients(merge(layers, experts), tmp_path / "sub" / "mine.png"))
    assert width >= 130 * experts
    assert height >= 50 * layers


def test_the_point_that_is_marked_suits_the_preference() -> None:
    drawn = front(np.array([[0.8, 0.8], [0.9, 0.3], [0.3, 0.9]]))
    assert best_point(drawn, None) is drawn.points[0]
    assert best_point(drawn, {"task_0": 1.0}) is drawn.points[1]
    assert best_point(drawn, [0.1, 0.9]) is drawn.points[2]
    for weights in ({"stranger": 1.0}, [1.0]):
        with pytest.raises(InvalidRequest, match="--preference"):
            best_point(drawn, weights)


def test_without_matplotlib_the_extra_is_named() -> None:
    code = """
import sys; sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
from pathlib import Path
import worldtree
from worldtree.cli.pictures.merges import _figure
try: _figure(1, 1)
except worldtree.MissingExtra as error: print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "pip install 'worldtree[cli]'" in done.stdout
