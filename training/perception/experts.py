"""Heads on the frozen base, then experts: the backbone fine-tuned gently, its head frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from training.learner import Learner, growing
from training.perception.cameras import CAMERA_OF, CAMERAS, Images, draw, shoot_mixed
from training.perception.data import Domain
from training.perception.model import Backbone
from training.perception.tasks import Labels

TaskVector: TypeAlias = dict[str, Tensor]  # expert minus base, by parameter

HEAD_IMAGES = 4000
HEAD_STEPS = 400
STEPS = 400
BATCH = 40
CLEAN_SHARE = 0.25  # so that experts can be asked about the simulator's own frames, too
RATE = 0.03  # SGD: Adam moves every parameter alike, and disturbs other tasks more for the same gain
ANCHORS = 24  # frames a step, of the other cameras
ANCHOR_WEIGHT = 5.0


@dataclass(frozen=True)
class Lesson:
    """What an expert is taught. `batch`: so many images and labels; `elsewhere`: so many images on which the expert
    should say what the base says, None where the lesson's own images are of all kinds.
    """

    name: str
    class_count: int
    batch: Callable[[int, np.random.Generator], tuple[Images, Labels]]
    elsewhere: Callable[[int, np.random.Generator], Images] | None = None


def lesson_of(domains: dict[str, Domain], name: str) -> Lesson:
    """Of one of the six tasks: its own camera and some clean frames; elsewhere are the other cameras."""
    domain = domains[name]
    ids = np.concatenate([each.ids for each in domains.values()])
    others = [camera for camera in CAMERAS if camera != CAMERA_OF[name]]

    def elsewhere(count: int, rng: np.random.Generator) -> Images:
        return shoot_mixed(draw(ids[rng.integers(0, len(ids), count)]), rng.choice(others, count), rng, 1.0)

    return Lesson(name, len(domain.task.classes), lambda count, rng: domain.batch(count, rng, CLEAN_SHARE), elsewhere)


def fit_head(base: Backbone, lesson: Lesson, seed: int) -> nn.Linear:
    """A linear read-out of the frozen base's summary, frozen itself."""
    rng = np.random.default_rng([seed, 2])
    images, labels = lesson.batch(HEAD_IMAGES, rng)
    with torch.no_grad():
        known = torch.cat([base(part) for part in torch.from_numpy(images).split(250)])
    targets = torch.from_numpy(labels)
    head = nn.Linear(known.shape[1], lesson.class_count)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(HEAD_STEPS):
        rows = torch.from_numpy(rng.integers(0, HEAD_IMAGES, 256))
        loss = nn.functional.cross_entropy(head(known[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.requires_grad_(False)


def fine_tune(
    base: Backbone, head: nn.Linear, lesson: Lesson, seed: int, *, steps: int = STEPS, rate: float = RATE
) -> TaskVector:
    """Cross-entropy on the lesson, and elsewhere the squared distance of summaries to the base's, relative to their
    size ("Learning without Forgetting", Li & Hoiem, with features in the place of answers).
    """
    backbone = copy.deepcopy(base).requires_grad_(True)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=rate, momentum=0.9)
    learner = Learner(backbone, [optimizer], weight=growing(0.95))
    for step in range(steps):
        rng = np.random.default_rng([seed, 3, step])
        images, labels = lesson.batch(BATCH, rng)
        loss = nn.functional.cross_entropy(head(backbone(torch.from_numpy(images))), torch.from_numpy(labels))
        if lesson.elsewhere is not None:
            anchors = torch.from_numpy(lesson.elsewhere(ANCHORS, rng))
            with torch.no_grad():
                before = base(anchors)
            moved = (backbone(anchors) - before).square().mean() / before.square().mean()
            loss = loss + ANCHOR_WEIGHT * moved
        learner.step(loss, min(1.0, (step + 1) / 20, 1 - step / steps))
    start = dict(base.named_parameters())
    return {name: value - start[name] for name, value in learner.average.items()}
