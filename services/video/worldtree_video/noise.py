"""Noise that depends on nothing but (seed, chunk, step): the same in any batch, on any replica, after any rewind."""

import numpy as np
from numpy.typing import NDArray


def draw(seed: int, chunk_index: int, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise [*shape] float32 from Philox, a counter-based generator (Salmon et al., SC 2011)."""
    # The key is the seed; the counter's upper words name the chunk and the step, so streams never overlap.
    counter = np.array([0, 0, chunk_index, step], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    return generator.standard_normal(shape, dtype=np.float32)
