"""The shipped perception package: what is committed is whole, small, and as good as its card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from training.perception.served import Package
from training.perception.tasks import STRANGER_NAMES, TASK_NAMES

ROOT = Path(__file__).parents[3]
FOLDER, STRANGERS = ROOT / "models/perception/1", ROOT / "training/perception/weights/strangers.safetensors"


@pytest.fixture(scope="module")
def package() -> Package:
    return Package.read(FOLDER)


def score(package: Package, weights: np.ndarray[tuple[int], np.dtype[np.float32]], task: str) -> float:
    images, labels = package.images("scoring")
    return float(np.mean(package.network.logits(weights, images[task], task).argmax(axis=1) == labels[task]))


def test_the_package_has_the_six_tasks_and_sets_of_all_of_them(package: Package) -> None:
    assert package.manifest.task_names == TASK_NAMES
    calibration, none = package.images("calibration")
    scoring, labels = package.images("scoring")
    assert (set(calibration), none) == (set(TASK_NAMES), {})
    assert set(scoring) == set(labels) == set(TASK_NAMES)
    for task in package.manifest.tasks:
        assert set(labels[task.name]) == set(range(len(task.classes)))


def test_its_weights_are_small_enough_to_be_committed() -> None:
    files = [path for path in (*FOLDER.rglob("*"), STRANGERS) if path.suffix in (".safetensors", ".onnx")]
    assert sum(path.stat().st_size for path in files) <= 24_000_000


def test_experts_answer_their_own_tasks_better_than_the_base(package: Package) -> None:
    gains = [
        score(package, package.base + vector, task) - score(package, package.base, task)
        for task, vector in zip(TASK_NAMES, package.task_vectors, strict=True)
    ]
    assert min(gains) > 0
    assert np.mean(gains) > 0.1


def test_one_preference_alone_is_answered_nearly_as_well_as_by_its_expert(package: Package) -> None:
    assert package.corners is not None
    for index, task in enumerate(TASK_NAMES):
        weights = package.layout.combine(package.base, package.task_vectors, package.corners[index])
        expert = package.base + package.task_vectors[index]
        assert score(package, weights, task) > score(package, expert, task) - 0.05


def test_the_strangers_are_of_the_same_layout() -> None:
    tensors = load_file(str(STRANGERS))
    base = load_file(str(FOLDER / "base.safetensors"))
    assert {key: value.shape for key, value in tensors.items()} == {
        f"{name}/{key}": value.shape for name in STRANGER_NAMES for key, value in base.items()
    }
