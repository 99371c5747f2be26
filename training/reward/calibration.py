"""What experts answer read as scores, and chances as they come true; learnt from labels as wrong as all others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.reward.measure import chances

Float = npt.NDArray[np.float32]
KNOTS = 12
_SPREADS = np.geomspace(0.5, 4.0, 61)


def noisy_ratings(truth: Float, noise: float, rng: np.random.Generator) -> Float:
    """Ratings of candidates [n], a share of which is that of another candidate."""
    wrong = rng.random(len(truth)) < noise
    return np.where(wrong, truth[rng.permutation(len(truth))], truth).astype(np.float32)


def knots_of(answers: Float, ratings: Float, noise: float) -> list[tuple[float, float]]:
    """The score at each of some answers: the mean of the ratings there, freed of what wrong ones add, rising.

    A rating that is another candidate's is the mean of all on average, so that what is seen is drawn towards it by the
    share of the wrong ones.
    """
    told = ~np.isnan(ratings)
    answers, ratings = answers[told], ratings[told]
    order = np.argsort(answers, kind="stable")
    middle = float(ratings.mean())
    found: list[tuple[float, float]] = []
    for part in np.array_split(order, KNOTS):
        score = (float(ratings[part].mean()) - noise * middle) / (1 - noise)
        place = float(np.median(answers[part]))
        if not found or place > found[-1][0] + 1e-4:
            found.append((place, max(score, found[-1][1]) if found else score))
    return [(x, float(np.clip(y, 0.0, 1.0))) for x, y in found]


def spread_of(mean: Float, deviation: Float, labels: Float, noise: float) -> float:
    """By how much deviations must be wider for chances to come true: the likeliest of what was said [groups, pairs]."""
    best, least = 1.0, np.inf
    told = (labels == 0) | (labels == 1)
    for spread in _SPREADS:
        chance = chances(mean, deviation * np.float32(spread))
        said = noise + (1 - 2 * noise) * chance
        loss = -np.where(labels == 1, np.log(said), np.log(1 - said))[told].mean()
        if loss < least:
            best, least = float(spread), float(loss)
    return best
