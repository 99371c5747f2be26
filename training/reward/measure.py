"""What a judge gets right of held-out groups, the way of RewardBench 2: the best of four, pairs, ties, calibration."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import numpy.typing as npt

from training.reward.data import PAIRS, Group
from training.reward.rubric import CATEGORY_NAMES, DIMENSION_NAMES

Float = npt.NDArray[np.float32]
CLEAR = 0.15  # by which two truths of a dimension differ where a pair is counted
_LEFT, _RIGHT = (np.array(side) for side in zip(*PAIRS, strict=True))
_BINS = 10


def best_of(scores: Float, truth: Float) -> npt.NDArray[np.bool_]:
    """[groups, SIZE] both -> whether the best is put first, [groups]."""
    right: npt.NDArray[np.bool_] = scores.argmax(1) == truth.argmax(1)
    return right


def by_category(right: npt.NDArray[np.bool_], groups: list[Group]) -> dict[str, float]:
    categories = np.array([group.category for group in groups])
    return {name: float(right[categories == index].mean()) for index, name in enumerate(CATEGORY_NAMES)}


def truths(groups: list[Group]) -> tuple[Float, Float]:
    """[groups, SIZE, dimensions] and [groups, SIZE]."""
    return (
        np.stack([[each.truth for each in group.candidates] for group in groups]),
        np.stack([group.rewards for group in groups]),
    )


def pairwise(scores: Float, truth: Float) -> dict[str, float]:
    """By dimension: the share of clearly different pairs that are put in order."""
    found = {}
    for index, name in enumerate(DIMENSION_NAMES):
        gap = (truth[:, _LEFT] - truth[:, _RIGHT])[..., index]
        said = (scores[:, _LEFT] - scores[:, _RIGHT])[..., index]
        counted = np.abs(np.nan_to_num(gap)) >= CLEAR
        found[name] = float(((said > 0) == (gap > 0))[counted].mean())
    return found


def chances(mean: Float, deviation: Float) -> Float:
    """[groups, SIZE] -> [groups, pairs]: that the first of a pair is better."""
    gap = mean[:, _LEFT] - mean[:, _RIGHT]
    spread = np.sqrt(deviation[:, _LEFT] ** 2 + deviation[:, _RIGHT] ** 2)
    return np.vectorize(lambda z: 0.5 * (1 + erf(z / sqrt(2))))(gap / spread).astype(np.float32)


def reliability(said: Float, right: npt.NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Mean chance said, share right, and how many, in bins of equal width from 0.5 to 1: of the side said likelier."""
    sure = np.maximum(said, 1 - said)
    held = np.where(said >= 0.5, right, ~right)
    places = np.minimum(((sure - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    found = []
    for place in range(_BINS):
        here = places == place
        if here.any():
            found.append((float(sure[here].mean()), float(held[here].mean()), int(here.sum())))
    return found


def calibration_error(bins: list[tuple[float, float, int]]) -> float:
    """Expected calibration error."""
    count = sum(each[2] for each in bins)
    return sum(abs(said - held) * n for said, held, n in bins) / count
