"""Preferences and fronts: what a preference buys, and what MM-MO's search covers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from worldtree_multitask.merging import Merged
from worldtree_multitask.merging.front import best_rows, hypervolume

from training.perception.measure import Labelled, Study
from training.perception.tasks import TASK_NAMES

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
GRID_VALUES = (0.1, 0.3, 0.5, 0.8)  # of one task's coefficient, in the wider grid


def _scores(study: Study, weights: list[float]) -> NDArray[np.float64]:
    return study.scores(study.weights(study.merge("preference", {"weights": weights})))


def strength_rows(study: Study) -> list[dict[str, Any]]:
    """One task's preference from 0 to 1, the others sharing the rest alike: that task's own score."""
    rows = []
    for index, task in enumerate(TASK_NAMES):
        curve = []
        for strength in STRENGTHS:
            weights = [(1 - strength) / (len(TASK_NAMES) - 1)] * len(TASK_NAMES)
            weights[index] = strength
            curve.append(float(_scores(study, weights)[index]))
        rows.append({"kind": "strength", "task": task, "strengths": list(STRENGTHS), "scores": curve})
    return rows


def random_preference_rows(study: Study, merges: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Preference-weighted score over random preferences (Dirichlet, all alike), of the map and of every fixed merge."""
    preferences = np.random.default_rng(23).dirichlet(np.ones(len(TASK_NAMES)), count)
    mapped = np.array([_scores(study, preference.tolist()) for preference in preferences])
    scores = {row["title"]: np.array(list(row["scores"].values())) for row in merges if row["title"] != "experts"}
    fixed = {title: float((preferences @ each).mean()) for title, each in scores.items()}
    title = max(fixed, key=lambda name: fixed[name])
    return [
        {
            "kind": "preference",
            "preferences": count,
            "map": float((preferences * mapped).sum(axis=1).mean()),
            "fixed": fixed[title],
            "fixed_title": title,
            "better_share": float(np.mean((preferences * mapped).sum(axis=1) > preferences @ scores[title])),
        }
    ]


def _covered(study: Study, coefficients: list[NDArray[np.float32]]) -> float:
    """Hypervolume of the test scores of these merges."""
    scores = [study.scores(study.weights(Merged(coefficients=each))) for each in coefficients]
    return float(hypervolume(np.array(scores)[best_rows(np.array(scores))]))


def _agreement(study: Study, coefficients: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """What MM-MO searches by without labels: the share of calibration images answered as the task's own expert does."""
    network, package = study.package.network, study.package
    answers: Labelled = {
        task: (images, network.logits(package.base + vector, images, task).argmax(axis=1))
        for vector, (task, images) in zip(package.task_vectors, study.calibration.items(), strict=True)
    }
    return np.array([study.scores(study.weights(Merged(coefficients=each)), answers) for each in coefficients])


def _chosen(study: Study, coefficients: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [coefficients[row] for row in best_rows(_agreement(study, coefficients))]


def front_rows(study: Study, evaluations: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """MM-MO against grids of task arithmetic with as many merges tried, the Fisher information's counted in. Each
    chooses its front on the calibration images, without labels, and is measured on the test images.
    """
    layers, tasks = len(study.package.layout.layers), len(TASK_NAMES)
    found = study.merge("mm_mo", {"evaluations": evaluations, "front_size": 256})
    tried = evaluations + layers * tasks + 1
    rng = np.random.default_rng(29)
    scales = [np.full((layers, tasks), scale, np.float32) for scale in np.linspace(0, 1.5, tried)]
    picked = rng.choice(len(GRID_VALUES) ** tasks, min(tried, len(GRID_VALUES) ** tasks), replace=False)
    digits = (picked[:, None] // len(GRID_VALUES) ** np.arange(tasks)) % len(GRID_VALUES)
    wide = [np.tile(np.array(GRID_VALUES, np.float32)[row], (layers, 1)) for row in digits]
    rows = []
    for title, front in (
        ("MM-MO", [point.coefficients for point in found.front]),
        ("task arithmetic, one scale", _chosen(study, scales)),
        ("task arithmetic, a scale a task", _chosen(study, wide)),
    ):
        covered = _covered(study, front)
        rows.append({"kind": "front", "title": title, "tried": tried, "points": len(front), "hypervolume": covered})
        say(f"front of {title}: {len(front)} points, hypervolume {covered:.3f}")
    return rows
