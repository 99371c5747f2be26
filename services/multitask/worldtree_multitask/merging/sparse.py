"""Task vectors thinned out before they are added: TIES-Merging and DARE."""

from typing import Annotated, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters, check_experts


class TiesParameters(Parameters):
    """Of `ties`."""

    density: Annotated[float, Field(gt=0.0, le=1.0, description="share of each task vector's entries kept")] = 0.2
    scale: Annotated[float, Field(ge=-2.0, le=2.0, description="times the merged task vector")] = 1.0
    experts: Annotated[tuple[str, ...], Field(description="experts to merge; empty: all")] = ()


class Ties:
    """TIES-Merging (Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", Algorithm 1)."""

    name: ClassVar[str] = "ties"
    description: ClassVar[str] = "trim, elect signs, then the mean of those that agree (TIES-Merging)"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = TiesParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: TiesParameters
    ) -> Merged:
        columns = check_experts(parameters.experts, context.experts)
        trimmed = np.stack([trim(task_vectors[column], parameters.density) for column in columns])
        return Merged(weights=base + np.float32(parameters.scale) * disjoint_mean(trimmed))


class DareParameters(Parameters):
    """Of `dare`."""

    drop: Annotated[float, Field(ge=0.0, lt=1.0, description="chance that an entry of a task vector is dropped")] = 0.5
    then: Annotated[
        Literal["arithmetic", "ties"], Field(description="how what is left is merged: their sum, or as ties does")
    ] = "arithmetic"
    density: Annotated[float, Field(gt=0.0, le=1.0, description="of ties: share of entries kept by its trim")] = 1.0
    scale: Annotated[float, Field(ge=-2.0, le=2.0, description="times the merged task vector")] = 0.3
    seed: Annotated[int, Field(ge=0, lt=2**32, description="decides which entries are dropped")] = 0
    experts: Annotated[tuple[str, ...], Field(description="experts to merge; empty: all")] = ()


class Dare:
    """Drop and rescale (Yu et al., "Language Models are Super Mario", DARE), then a sum or TIES.

    What is dropped of an expert depends on `seed` and its name alone: not on which others are merged, nor on their
    order. The seed is a parameter, not the context's, so that a recipe names one content.
    """

    name: ClassVar[str] = "dare"
    description: ClassVar[str] = "drop entries at random and rescale the rest, then add or ties (DARE)"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = DareParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: DareParameters
    ) -> Merged:
        columns = check_experts(parameters.experts, context.experts)
        thinned = np.stack(
            [
                drop_and_rescale(
                    task_vectors[column],
                    parameters.drop,
                    np.random.default_rng([parameters.seed, crc32(context.experts[column].encode())]),
                )
                for column in columns
            ]
        )
        if parameters.then == "ties":
            merged = disjoint_mean(np.stack([trim(vector, parameters.density) for vector in thinned]))
        else:
            merged = thinned.sum(axis=0)
        return Merged(weights=base + np.float32(parameters.scale) * merged)


def trim(task_vector: Flat, density: float) -> Flat:
    """All but the `density` share of largest entries set to zero; at least one is kept, equals of the last one too."""
    kept = max(1, round(density * task_vector.size))
    if kept >= task_vector.size:
        return task_vector
    sizes = np.abs(task_vector)
    threshold = np.partition(sizes, task_vector.size - kept)[task_vector.size - kept]
    return np.where(sizes >= threshold, task_vector, np.float32(0.0))


def disjoint_mean(vectors: NDArray[np.float32]) -> Flat:
    """Entry by entry, the mean of those experts whose sign is that of the sum. `vectors`: [experts, parameters].

    Where the sum is zero no sign is elected, and the entry stays zero.
    """
    # In double precision, or the order of the experts decides the sign of a sum that nearly cancels.
    agree = (np.sign(vectors) == np.sign(vectors.sum(axis=0, dtype=np.float64))) & (vectors != 0)
    total: Flat = np.where(agree, vectors, np.float32(0.0)).sum(axis=0)
    mean: Flat = total / np.maximum(agree.sum(axis=0), 1).astype(np.float32)
    return mean


def drop_and_rescale(task_vector: Flat, drop: float, rng: np.random.Generator) -> Flat:
    """Each entry is zero by the chance `drop`, else divided by 1 - drop: the expectation stays."""
    kept = rng.random(task_vector.size, dtype=np.float32) >= drop
    return np.where(kept, task_vector / np.float32(1.0 - drop), np.float32(0.0))
