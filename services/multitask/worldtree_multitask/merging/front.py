"""The points of a search with several objectives that no other point beats, and how much they cover. pymoo does it."""

import numpy as np
from numpy.typing import NDArray

Objectives = NDArray[np.float64]  # [points, objectives], more is better


def best_rows(objectives: Objectives) -> NDArray[np.int64]:
    """Rows no other row of which is as good in all and better in one; of equal rows the first. Best mean first."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    _, firsts = np.unique(objectives, axis=0, return_index=True)
    firsts.sort()
    kept = firsts[NonDominatedSorting().do(-objectives[firsts], only_non_dominated_front=True)]
    kept.sort()
    ordered: NDArray[np.int64] = kept[np.argsort(-objectives[kept].mean(axis=1), kind="stable")]
    return ordered


def thinned(objectives: Objectives, limit: int) -> NDArray[np.int64]:
    """At most `limit` rows, in their order: the first, the best of each objective, then always the row that lies
    farthest from those already taken.
    """
    if len(objectives) <= limit:
        return np.arange(len(objectives))
    taken = list(dict.fromkeys([0, *objectives.argmax(axis=0).tolist()]))[:limit]
    distances = np.linalg.norm(objectives[:, None] - objectives[None, taken], axis=2).min(axis=1)
    while len(taken) < limit:
        farthest = int(distances.argmax())
        taken.append(farthest)
        distances = np.minimum(distances, np.linalg.norm(objectives - objectives[farthest], axis=1))
    rows: NDArray[np.int64] = np.sort(np.array(taken))
    return rows


def hypervolume(objectives: Objectives) -> float:
    """The volume of what some point is better than, from 0 in each objective."""
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=np.zeros(objectives.shape[1]))(-objectives))


def suited_preferences(objectives: Objectives) -> Objectives:
    """For each point the preference that it suits best, [points, objectives], rows sum to 1: what it is good at beside
    the others of the front, each objective from its worst to its best.
    """
    low, high = objectives.min(axis=0), objectives.max(axis=0)
    shares = (objectives - low) / np.maximum(high - low, 1e-12)
    totals = shares.sum(axis=1, keepdims=True)
    equal = np.full_like(shares, 1.0 / shares.shape[1])
    preferences: Objectives = np.where(totals > 0, shares / np.maximum(totals, 1e-12), equal)
    return preferences
