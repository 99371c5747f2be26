"""A small network with experts that were truly trained, for tests of methods and of plug-ins: numpy alone, a second.

Three tasks of four classes, each with images of its own look. The base has seen a little of all; each expert was
trained on one task and lost some of the others, so that what a method makes of them can be measured.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from worldtree_multitask.merging.layout import Flat, Layout
from worldtree_multitask.merging.method import Context, Images, Labels, Logits

TASKS = ("stripes", "spots", "waves")
_CLASSES = 4
_SIZE_PX = 4
_PIXELS = 3 * _SIZE_PX**2
_HIDDEN = 16
_NOISE = 80.0  # of 255
_CONTRAST = 60.0


class SmallNetwork:
    """pixels -> 16 -> 16 by tanh, then a fixed head a task."""

    def __init__(self) -> None:
        self.layout = Layout(
            {"first": ["first.weight", "first.bias"], "second": ["second.weight", "second.bias"]},
            {
                "first.weight": (_PIXELS, _HIDDEN),
                "first.bias": (_HIDDEN,),
                "second.weight": (_HIDDEN, _HIDDEN),
                "second.bias": (_HIDDEN,),
            },
        )
        rng = np.random.default_rng(7)
        self.heads = {task: rng.normal(size=(_HIDDEN, _CLASSES)).astype(np.float32) for task in TASKS}
        self.evaluation_count = 0

    def logits(self, weights: Flat, images: Images, task: str) -> Logits:
        self.evaluation_count += len(images)
        parts = self.layout.views(weights)
        first = np.tanh(_pixels(images) @ parts["first.weight"] + parts["first.bias"])
        second = np.tanh(first @ parts["second.weight"] + parts["second.bias"])
        logits: Logits = second @ self.heads[task]
        return logits

    def gradient(self, weights: Flat, images: Images, labels: Labels, task: str) -> Flat:
        """Of the mean cross-entropy."""
        parts = self.layout.views(weights)
        pixels = _pixels(images)
        first = np.tanh(pixels @ parts["first.weight"] + parts["first.bias"])
        second = np.tanh(first @ parts["second.weight"] + parts["second.bias"])
        powers = np.exp(second @ self.heads[task])
        by_logits = (powers / powers.sum(axis=1, keepdims=True) - np.eye(_CLASSES)[labels]) / len(labels)
        by_second = by_logits @ self.heads[task].T * (1 - second**2)
        by_first = by_second @ parts["second.weight"].T * (1 - first**2)
        return self.layout.flatten(
            {
                "first.weight": pixels.T @ by_first,
                "first.bias": by_first.sum(axis=0),
                "second.weight": first.T @ by_second,
                "second.bias": by_second.sum(axis=0),
            }
        )


@dataclass(frozen=True)
class Study:
    """A network, its base [parameters], task vectors [tasks, parameters], and labelled images by task."""

    network: SmallNetwork
    base: Flat
    task_vectors: NDArray[np.float32]
    calibration: dict[str, Images]
    calibration_labels: dict[str, Labels]
    scoring: dict[str, Images]
    scoring_labels: dict[str, Labels]

    def context(self, *, labelled: bool = False, seed: int = 0) -> Context:
        """With the calibration images of all tasks."""
        return Context(
            layout=self.network.layout,
            experts=TASKS,
            network=SmallNetwork(),
            images=self.calibration,
            labels=self.calibration_labels if labelled else {},
            rng=np.random.default_rng(seed),
        )

    def scores(self, weights: Flat) -> NDArray[np.float64]:
        """By task, the share of scoring images answered right."""
        pairs = ((task, images, self.scoring_labels[task]) for task, images in self.scoring.items())
        return np.array(
            [np.mean(self.network.logits(weights, images, task).argmax(1) == labels) for task, images, labels in pairs]
        )


@cache
def small_study() -> Study:
    """The same to the bit at each call: its arrays are shared, and cannot be written to."""
    network = SmallNetwork()
    rng = np.random.default_rng(11)
    base = (rng.normal(size=network.layout.size) * 0.15).astype(np.float32)
    looks = {task: np.clip(127 + rng.normal(size=(_CLASSES, _PIXELS)) * _CONTRAST, 0, 255) for task in TASKS}
    train, calibration, scoring = ({task: _draw(looks[task], count, rng) for task in TASKS} for count in (160, 48, 200))
    base = _train(network, base, {task: (images[:24], labels[:24]) for task, (images, labels) in train.items()}, 10)
    experts = [_train(network, base, {task: train[task]}, 300) for task in TASKS]
    task_vectors = np.stack(experts) - base
    for array in (base, task_vectors, *(images for images, _ in calibration.values())):
        array.flags.writeable = False
    return Study(
        network,
        base,
        task_vectors,
        {task: images for task, (images, _) in calibration.items()},
        {task: labels for task, (_, labels) in calibration.items()},
        {task: images for task, (images, _) in scoring.items()},
        {task: labels for task, (_, labels) in scoring.items()},
    )


def _draw(looks: NDArray[np.float64], count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    """As many of each class, or nearly."""
    labels = rng.permutation(np.arange(count) % _CLASSES).astype(np.int64)
    pixels = looks[labels] + rng.normal(size=(count, _PIXELS)) * _NOISE
    return np.clip(pixels, 0, 255).astype(np.uint8).reshape(count, _SIZE_PX, _SIZE_PX, 3), labels


def _train(network: SmallNetwork, weights: Flat, data: dict[str, tuple[Images, Labels]], steps: int) -> Flat:
    for _ in range(steps):
        gradients = [network.gradient(weights, images, labels, task) for task, (images, labels) in data.items()]
        weights = weights - np.float32(0.2) * np.sum(gradients, axis=0)
    return weights


def _pixels(images: Images) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(127.5) - np.float32(1)
