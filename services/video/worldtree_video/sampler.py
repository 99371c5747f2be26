"""From one noise level to the next: how a chunk is drawn in several evaluations."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def next_sample(noisy: Array, x0: Array, *, level: float, following: float, fresh: Array | None = None) -> Array:
    """What the evaluation at `following` starts from, after one at `level` has answered x0 to `noisy`.

    x = (1 - t) x0 + t noise at every level t. With `fresh` noise: sampler renoise (as consistency models do: Song et
    al. 2023, algorithm 1). Without: sampler euler, on with the noise that is in `noisy` (the straight path of flow
    matching).
    """
    t, s = np.float32(level), np.float32(following)
    if fresh is None:
        fresh = np.divide(noisy - (np.float32(1) - t) * x0, t, dtype=np.float32)
    return (np.float32(1) - s) * x0 + s * fresh
