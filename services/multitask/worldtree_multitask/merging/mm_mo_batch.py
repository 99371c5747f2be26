"""What MM-MO tries next: NSGA-II (pymoo) over what the surrogate hopes for, fed by steps from weak points to strong."""

from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldtree_multitask.merging.front import Objectives, best_rows, hypervolume
from worldtree_multitask.merging.surrogate import Points, Surrogate, square_distances

_BOLDNESS = 0.3  # deviations of the surrogate above its mean; with 1 the search covers no more than chance does
_POOL = 60
_GENERATIONS = 12
_REMEMBERED = 300  # points that the surrogate learns from, of the best mean: its cost grows with their cube
_OVERSHOOT = 0.5  # of the way from a weak point to a strong one, beyond it, at most


def propose(
    points: Points,
    objectives: Objectives,
    metric: NDArray[np.float64],
    *,
    count: int,
    bound: float,
    rng: np.random.Generator,
) -> Points:
    """`count` points of [0, bound] to try, [count, directions]. The same rng gives the same ones."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.optimize import minimize

    kept = np.argsort(-objectives.mean(axis=1), kind="stable")[:_REMEMBERED]
    surrogate = Surrogate(points[kept], objectives[kept], metric)
    steps = np.clip(weak_to_strong(points, objectives, _POOL * 2 // 3, rng), 0.0, bound)
    start = np.concatenate([steps, rng.uniform(0.0, bound, size=(_POOL - len(steps), points.shape[1]))])
    found = minimize(
        _hopes(surrogate, points.shape[1], objectives.shape[1], bound),
        NSGA2(pop_size=_POOL, sampling=start),
        ("n_gen", _GENERATIONS),
        seed=int(rng.integers(2**31)),
    )
    pool = np.concatenate([found.pop.get("X"), start])
    hopes = surrogate.hopes(pool, _BOLDNESS)
    # By turns for the front and for the best mean, which is the merge itself.
    covering = most_covering(hopes, objectives[best_rows(objectives)])
    by_mean = np.argsort(-hopes.mean(axis=1), kind="stable")
    order = list(dict.fromkeys(np.column_stack([covering, by_mean]).ravel().tolist()))
    return screened(pool[order], points, metric, count)


def weak_to_strong(points: Points, objectives: Objectives, count: int, rng: np.random.Generator) -> Points:
    """[count, directions]: each goes from a point that is beaten through one of the front and some way beyond, plus a
    little noise; the front's points are likelier the better their mean. With no beaten point: around the front.
    """
    strong = best_rows(objectives)
    weak = np.setdiff1d(np.arange(len(points)), strong)
    ranks = 1.0 / (1.0 + np.arange(len(strong)))
    ends = points[rng.choice(strong, size=count, p=ranks / ranks.sum())]
    starts = points[rng.choice(weak, size=count)] if len(weak) else ends
    beyond = rng.uniform(0.0, _OVERSHOOT, size=(count, 1))
    noise = rng.standard_normal(ends.shape) * 0.05 * rng.integers(0, 2, size=ends.shape)
    steps: Points = ends + beyond * (ends - starts) + noise
    return steps


def most_covering(hopes: Objectives, front: Objectives) -> NDArray[np.int64]:
    """Rows of `hopes`, first the one that adds most hypervolume to the front, then the one that adds most to both, and
    so on; those that add nothing by their mean.
    """
    hopes = np.clip(hopes, 0.0, 1.0)
    covered = hypervolume(front)
    taken: list[int] = []
    # What a row adds never grows when others are taken, so a row whose last known gain is still the highest is next.
    gains = {row: hypervolume(np.vstack([front, hopes[row]])) - covered for row in range(len(hopes))}
    queue = [(-gain, row, 0) for row, gain in gains.items() if gain > 0]
    heapify(queue)
    while queue:
        _, row, known_at = heappop(queue)
        if known_at == len(taken):
            taken.append(row)
            front = np.vstack([front, hopes[row]])
            covered = hypervolume(front)
        elif (gain := hypervolume(np.vstack([front, hopes[row]])) - covered) > 0:
            heappush(queue, (-gain, row, len(taken)))
    left = np.setdiff1d(np.arange(len(hopes)), taken)
    left = left[np.argsort(-hopes[left].mean(axis=1), kind="stable")]
    return np.array([*taken, *left.tolist()], dtype=np.int64)


def screened(pool: Points, points: Points, metric: NDArray[np.float64], count: int) -> Points:
    """The first `count` that the Fisher information says will answer otherwise than all points known and chosen so far;
    where too few do, the first others. All of `pool` where it holds no more.
    """
    among = np.sqrt(square_distances(points, points, metric))
    near = 0.05 * float(np.median(among[among > 0])) if (among > 0).any() else 0.0
    chosen: list[int] = []
    for row in range(len(pool)):
        others = np.concatenate([points, pool[chosen]])
        if len(chosen) < count and np.sqrt(square_distances(pool[[row]], others, metric)).min() > near:
            chosen.append(row)
    chosen += [row for row in range(len(pool)) if row not in chosen][: count - len(chosen)]
    return pool[chosen]


def _hopes(surrogate: Surrogate, directions: int, objectives: int, bound: float) -> Any:
    """As pymoo has problems: to minimise are the surrogate's hopes, negated, and the mean coefficient (sparsity)."""
    from pymoo.core.problem import Problem

    class Hopes(Problem):  # type: ignore[misc] # pymoo has no types
        def _evaluate(self, x: Points, out: dict[str, Any], *args: object, **kwargs: object) -> None:
            out["F"] = np.column_stack([-surrogate.hopes(x, _BOLDNESS), np.abs(x).mean(axis=1)])

    return Hopes(n_var=directions, n_obj=objectives + 1, xl=0.0, xu=bound)
