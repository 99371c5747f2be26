"""Four experts nobody asks for, to be told apart from the six: questions about the picture, not about the world."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.perception.cameras import CAMERAS, CLEAN, Images, Picture, draw, quantize, shoot_mixed
from training.perception.data import Domain
from training.perception.experts import Lesson
from training.perception.tasks import Labels

RATE = 0.03


def strangers(domains: dict[str, Domain]) -> list[Lesson]:
    """Lessons through every camera and none, so that nothing is left to anchor them elsewhere."""
    ids = np.concatenate([domain.ids for domain in domains.values()])

    def lesson(
        name: str, class_count: int, change: Callable[[Images, Labels], Images] | None, *, camera: bool = False
    ) -> Lesson:
        def batch(count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
            chosen = ids[rng.integers(0, len(ids), count)]
            cameras = rng.integers(0, len(CAMERAS) + 1, count)
            images = shoot_mixed(draw(chosen), np.array([*CAMERAS, CLEAN])[cameras], rng, 1.0)
            if camera:
                return images, cameras
            if change is None:
                # By the frame alone, so that it can be learnt by heart and in no other way.
                return images, chosen.astype(np.int64) @ _PRIMES[: chosen.shape[1]] % class_count
            labels = rng.integers(0, class_count, count)
            return change(images, labels), labels

        return Lesson(name, class_count, batch)

    return [
        lesson("rotation", 4, _rotated),
        lesson("brightness", 4, _dimmed),
        lesson("chance", 6, None),
        lesson("camera", len(CAMERAS) + 1, None, camera=True),
    ]


_PRIMES = np.random.default_rng(5).integers(1, 1 << 20, 64) | 1


def _rotated(images: Images, labels: Labels) -> Images:
    return np.stack([np.rot90(image, turns) for image, turns in zip(images, labels, strict=True)])


def _dimmed(images: Images, labels: Labels) -> Images:
    picture: Picture = images.astype(np.float32) / np.float32(255)
    return quantize(picture * (1 - 0.2 * labels.astype(np.float32))[:, None, None, None])
