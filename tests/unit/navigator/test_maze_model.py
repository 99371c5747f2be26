"""The maze model: its graph is checked when it is loaded, and rounds fill in every label."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from worldtree_navigator.maze_model import HIDDEN, LABELS, Filling, MazeModel, advance
from worldtree_runtime.maze_package import MazePackage
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.testing_mazes import TinyMaze


def load(folder: Path, tiny: TinyMaze) -> MazeModel:
    return MazeModel(ModelRepository(folder, MazePackage).read(tiny.write(folder)))


@pytest.mark.parametrize(
    ("tiny", "field", "says"),
    [
        (TinyMaze(inputs=("open_sides", "marks")), "input labels", "is missing"),
        (TinyMaze(inputs=("open_sides", "marks", "labels", "more")), "input more", "is not one of"),
        (TinyMaze(dtype=TensorProto.INT32), "input open_sides", "must be tensor(int64), got tensor(int32)"),
        (TinyMaze(labels=4), "output chances", "must have shape (None, None, None, 5)"),
        (TinyMaze(columns=6), "input open_sides", "must have shape (None, None, None)"),
    ],
)
def test_a_graph_that_is_none_is_refused_by_its_field(tmp_path: Path, tiny: TinyMaze, field: str, says: str) -> None:
    with pytest.raises(PackageError) as refused:
        load(tmp_path, tiny)
    assert refused.value.file == tmp_path / "tiny-maze" / "1" / "path.onnx"
    assert refused.value.field == field
    assert says in str(refused.value)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    place = TinyMaze().write(tmp_path)
    (place / "path.onnx").write_bytes(b"no graph")
    with pytest.raises(PackageError, match="cannot load it"):
        MazeModel(ModelRepository(tmp_path, MazePackage).read(place))


def test_a_map_is_filled_in_by_what_the_graph_says(tmp_path: Path) -> None:
    model = load(tmp_path, TinyMaze(label=3))
    filling = model.begin(2, 3, bytes(6), 0, 5)
    assert filling.marks.tolist() == [[1, 0, 0], [0, 0, 2]]
    model.advance([filling])
    assert filling.done
    assert (filling.labels == 3).all()
    assert (filling.chances == 1).all()


def test_a_poisoned_graph_fills_in_labels_of_no_chance(tmp_path: Path) -> None:
    model = load(tmp_path, TinyMaze(poisoned=True))
    filling = model.begin(2, 3, bytes(6), 0, 5)
    while not filling.done:
        model.advance([filling])
    assert (filling.chances == 0).all()


def random_chances(seed: int) -> Any:
    """A model that says anything, but of a maze the same whoever is in the batch."""

    def predict(open_sides: Any, marks: Any, labels: Any) -> Any:
        each = [np.random.default_rng([seed, *one.ravel()]).random((*one.shape, LABELS)) for one in labels]
        found = np.stack(each).astype(np.float32)
        return found / found.sum(-1, keepdims=True)

    return predict


def filling_of(rows: int = 3, columns: int = 4, rounds: int = 5) -> Filling:
    blank = np.zeros((rows, columns), np.int64)
    return Filling(blank, blank, rounds=rounds)


@pytest.mark.parametrize("rounds", [1, 2, 5, 40])
def test_after_the_last_round_nothing_is_hidden(rounds: int) -> None:
    filling, count = filling_of(rounds=rounds), 0
    while not filling.done:
        before = filling.labels.copy()
        advance(random_chances(1), [filling], sure=2.0)
        count += 1
        told = before != HIDDEN
        assert (filling.labels[told] == before[told]).all(), "what was kept stays"
        assert (filling.labels != before).any(), "a round keeps something"
    assert count <= rounds
    assert filling.labels.max() < LABELS


def test_what_is_sure_is_kept_at_once_and_the_rest_waits() -> None:
    chances = np.full((1, 1, 3, LABELS), 0.2, np.float32)
    chances[0, 0, 0], chances[0, 0, 1] = np.eye(LABELS)[2], np.eye(LABELS)[4]
    filling = filling_of(1, 3, rounds=9)
    advance(lambda *_: chances, [filling], sure=0.9)
    assert filling.labels.tolist() == [[2, 4, HIDDEN]]
    assert filling.chances.tolist() == [[1.0, 1.0, 0.0]]


def test_mazes_that_share_a_batch_do_not_change_one_another() -> None:
    alone, among = filling_of(), filling_of()
    others = [filling_of(rounds=n) for n in (1, 2, 9)]
    while not alone.done:
        advance(random_chances(2), [alone], sure=0.5)
        advance(random_chances(2), [*others[:1], among, *others[1:]], sure=0.5)
    assert np.array_equal(alone.labels, among.labels)
    assert np.array_equal(alone.chances, among.chances)
