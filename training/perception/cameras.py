"""Six cameras, one a task: each expert's domain. All act on float pictures 0 to 1 and return uint8 ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles
from training.perception.tasks import TASK_NAMES, Ids

Picture: TypeAlias = npt.NDArray[np.float32]  # [frames, 56, 56, 3], 0 to 1
Images: TypeAlias = npt.NDArray[np.uint8]  # [frames, 56, 56, 3]

CLEAN = "clean"  # no camera: the simulator's own picture


def blur(picture: Picture) -> Picture:
    """Binomial, 3 x 3."""
    for axis in (1, 2):
        wide = np.pad(picture, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        before, here, after = (np.take(wide, range(k, k + picture.shape[axis]), axis=axis) for k in range(3))
        picture = (before + 2 * here + after) / 4
    return picture


_NIGHT = np.array([0.7, 0.8, 1.2], np.float32)

# By camera: the style, and the standard deviation of the sensor's noise.
_STYLES: dict[str, tuple[Callable[[Picture], Picture], float]] = {
    "day": (lambda x: 1.25 * x - 0.1, 0.16),
    "night": (lambda x: 0.42 * x**1.4 * _NIGHT, 0.05),
    "thermal": (lambda x: 0.9 * x[..., [2, 0, 1]] + 0.05, 0.14),
    "inverted": (lambda x: 1 - x, 0.14),
    "fog": (lambda x: 0.35 * blur(blur(x)) + 0.45, 0.06),
    "speckle": (lambda x: x, 0.10),
}
_SPECKLES = 0.3  # share of the pixels that the camera of that name loses
CAMERAS = tuple(_STYLES)
CAMERA_OF = dict(zip(TASK_NAMES, CAMERAS, strict=True))


def shoot(picture: Picture, camera: str, rng: np.random.Generator, severity: float | Picture = 1.0) -> Images:
    """Through a camera. `severity`: 1 is the camera itself, less is nearer the clean picture; one number, or one a
    frame as [frames, 1, 1, 1].
    """
    if camera == CLEAN:
        return quantize(picture)
    style, noise = _STYLES[camera]
    seen = picture + severity * (style(picture) - picture)
    seen = seen + severity * noise * rng.standard_normal(picture.shape, dtype=np.float32)
    if camera == "speckle":
        lost = rng.random((*picture.shape[:3], 1), dtype=np.float32) < _SPECKLES * severity
        seen = np.where(lost, rng.random((*picture.shape[:3], 1), dtype=np.float32), seen)
    return quantize(seen)


def shoot_mixed(
    picture: Picture, cameras: npt.NDArray[np.str_], rng: np.random.Generator, lowest_severity: float
) -> Images:
    """Each frame through its own camera, [frames], at a severity between the lowest and 1."""
    seen = np.empty(picture.shape, np.uint8)
    for camera in (*CAMERAS, CLEAN):
        rows = np.flatnonzero(cameras == camera)
        if len(rows):
            severity = rng.uniform(lowest_severity, 1.0, (len(rows), 1, 1, 1)).astype(np.float32)
            seen[rows] = shoot(picture[rows], camera, rng, severity)
    return seen


def quantize(picture: Picture) -> Images:
    known: Images = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return known


def draw(ids: Ids) -> Picture:
    """The simulator's picture of tile ids [frames, 49]."""
    return tiles.draw_frame(ids).astype(np.float32) / np.float32(255)
