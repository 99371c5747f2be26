"""One package under examination: its merges by the service's own methods, scored on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from worldtree_multitask.merging import Context, Merged, method

from training.perception.data import Domain
from training.perception.served import Package
from training.perception.tasks import STRANGER_NAMES, TASK_NAMES

Scores: TypeAlias = NDArray[np.float64]  # [tasks], share answered right
Labelled: TypeAlias = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def draw_labelled(domains: Mapping[str, Domain], count: int, seed: int) -> Labelled:
    """`count` class-balanced images of each task."""
    return {
        name: domain.batch(count, np.random.default_rng([seed, k])) for k, (name, domain) in enumerate(domains.items())
    }


@dataclass(frozen=True)
class Study:
    """`calibration`: what merges may learn from, without labels; `validation`: what a scale is tuned on, with labels;
    `test`: what nothing sees. `strangers`: task vectors of experts nobody asks for, [strangers, parameters].
    """

    package: Package
    calibration: dict[str, NDArray[np.uint8]]
    validation: Labelled
    test: Labelled
    strangers: NDArray[np.float32]

    @staticmethod
    def read(folder: Path, strangers: Path, validation: Labelled, test: Labelled) -> Study:
        package = Package.read(folder)
        tensors = load_file(str(strangers))
        vectors = [
            package.layout.flatten(
                {key.split("/", 1)[1]: v for key, v in tensors.items() if key.startswith(f"{name}/")}
            )
            for name in STRANGER_NAMES
        ]
        return Study(package, package.images("calibration")[0], validation, test, np.stack(vectors))

    def merge(self, name: str, parameters: Mapping[str, Any] | None = None, *, pool: bool = False) -> Merged:
        """By a method of the service. `pool`: the strangers lie among the experts."""
        chosen = method(name)
        if chosen is None:
            raise ValueError(f"method must be installed, got {name!r}")
        vectors = self.package.task_vectors
        context = Context(
            layout=self.package.layout,
            experts=(*TASK_NAMES, *STRANGER_NAMES) if pool else TASK_NAMES,
            network=self.package.network,
            images=self.calibration,
            corners=None if pool else self.package.corners,
            tasks=TASK_NAMES,
        )
        given = np.concatenate([vectors, self.strangers]) if pool else vectors
        return chosen.merge(self.package.base, given, context, chosen.parameters.model_validate(parameters or {}))

    def weights(self, merged: Merged, *, pool: bool = False) -> NDArray[np.float32]:
        if merged.weights is not None:
            return merged.weights
        if merged.coefficients is None:
            raise ValueError("a merge must have weights or coefficients")
        vectors = self.package.task_vectors
        given = np.concatenate([vectors, self.strangers]) if pool else vectors
        return self.package.layout.combine(self.package.base, given, merged.coefficients)

    def scores(self, weights: NDArray[np.float32], images: Labelled | None = None) -> Scores:
        """On the test images, or others."""
        network = self.package.network
        return np.array(
            [
                np.mean(network.logits(weights, pictures, task).argmax(axis=1) == labels)
                for task, (pictures, labels) in (images or self.test).items()
            ]
        )

    def expert_scores(self, images: Labelled | None = None) -> Scores:
        """Each expert on its own task."""
        return np.diag([self.scores(self.package.base + vector, images) for vector in self.package.task_vectors])
