"""What a search believes of points that it has not tried: Gaussian processes in a metric that knows the network."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [points, directions]

_REACHES = (0.25, 0.5, 1.0, 2.0)  # times the median distance between known points
_NOISES = (1e-3, 1e-2, 1e-1)  # of the variance: shares of a few images move in steps


class Surrogate:
    """One process for each objective, all with the same kernel exp(-d^2 / 2).

    d is the distance by `metric` [directions, directions]: the Fisher information of the answers, so that points which
    answer alike are near however far their coefficients lie apart.
    """

    def __init__(self, points: Points, values: NDArray[np.float64], metric: NDArray[np.float64]) -> None:
        """`values`: [points, objectives]. The reach of the kernel and the noise are those of the highest evidence."""
        self._points, self._metric = points, metric
        self._mean = values.mean(axis=0)
        self._scale = np.maximum(values.std(axis=0), 1e-3)
        aims = (values - self._mean) / self._scale
        squares = square_distances(points, points, metric)
        apart = squares[squares > 1e-12]
        median = float(np.median(apart)) if len(apart) else 1.0
        best = -np.inf
        for reach in _REACHES:
            for noise in _NOISES:
                unit = median * reach**2
                kernel = np.exp(-0.5 * squares / unit) + noise * np.eye(len(points))
                root = np.linalg.cholesky(kernel)
                solved = np.linalg.solve(root.T, np.linalg.solve(root, aims))
                evidence = float(-0.5 * np.sum(aims * solved) - aims.shape[1] * np.log(np.diag(root)).sum())
                if evidence > best:
                    best, self._unit, self._root, self._solved = evidence, unit, root, solved

    def hopes(self, points: Points, boldness: float) -> NDArray[np.float64]:
        """Mean plus `boldness` deviations, [points, objectives]: as good as each may well be."""
        kernel = np.exp(-0.5 * square_distances(points, self._points, self._metric) / self._unit)
        known = np.linalg.solve(self._root, kernel.T)
        deviation = np.sqrt(np.maximum(1.0 - np.sum(known**2, axis=0), 0.0))
        hopes: NDArray[np.float64] = self._mean + self._scale * (kernel @ self._solved + boldness * deviation[:, None])
        return hopes


def square_distances(left: Points, right: Points, metric: NDArray[np.float64]) -> NDArray[np.float64]:
    """(l - r)^T metric (l - r) for all pairs, [left, right]; never less than 0."""
    by_metric = left @ metric
    squares = np.sum(by_metric * left, axis=1)[:, None] - 2 * by_metric @ right.T
    whole: NDArray[np.float64] = np.maximum(squares + np.sum((right @ metric) * right, axis=1)[None, :], 0.0)
    return whole
