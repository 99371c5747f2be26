"""What can be wrong with a rollout's pictures, things and told actions; how wrong it is follows from what was done.

Half of the kinds are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.minigrid import pose, tiles
from training.perception.cameras import Images, Picture, blur, quantize

Ids = npt.NDArray[np.uint8]
Actions = npt.NDArray[np.uint8]

TAMPERINGS = {"train": ("vanish", "recolour"), "test": ("appear", "swap")}
BLEMISHES = {"train": ("blur", "noise", "shuffle", "tint"), "test": ("mosaic", "ghost", "stripes", "salt")}
MISTELLINGS = {"train": ("random", "mirror"), "test": ("late", "still")}

WORST_ERROR = 25.0  # mean absolute error, of 255, at which a picture is worth nothing
HALVING = 2.0  # changes without a cause that halve permanence


@dataclass(frozen=True, slots=True)
class Blemish:
    """On the pictures of the frames `first` to `last`, inclusive; the same seed gives the same pictures."""

    kind: str
    severity: float
    first: int
    last: int
    seed: int


def tamper(ids: Ids, poses: npt.NDArray[np.int64], kind: str, rng: np.random.Generator) -> tuple[Ids, int]:
    """Frames [t, 49] in which one cell of the world shows something else from some moment on, and how many changes
    without a cause can be seen; the same frames and 0 where there is nothing to do that with.
    """
    cells = pose.cell_coordinates(poses)  # [t, 49, 2]
    moment = int(rng.integers(1, len(ids)))
    seen_before = {tuple(cell): int(code) for cell, code in zip(cells[moment - 1], ids[moment - 1], strict=True)}
    here = [
        (tuple(cell), int(code))
        for place, (cell, code) in enumerate(zip(cells[moment], ids[moment], strict=True))
        if place != tiles.AGENT_CELL and code < tiles.OBJECT_COUNT and seen_before.get(tuple(cell)) == code
    ]
    things = [(cell, code) for cell, code in here if code >= tiles.GOAL]
    floor = [(cell, code) for cell, code in here if code == tiles.EMPTY]
    chosen = floor if kind == "appear" else things
    if kind == "recolour":
        chosen = [(cell, code) for cell, code in things if code >= 4]
    if not chosen:
        return ids, 0
    cell, code = chosen[int(rng.integers(len(chosen)))]
    shown = {cell: _changed(code, kind, rng)}
    if kind == "swap" and floor:  # the thing stands elsewhere at once
        shown[floor[int(rng.integers(len(floor)))][0]] = code
    changed, count = ids.copy(), 0
    for cell, code in shown.items():
        places = (cells[moment:] == np.array(cell)).all(axis=2)
        places &= ids[moment:] != tiles.DARK
        places[:, tiles.AGENT_CELL] = False
        changed[moment:][places] = code
        count += 1
    return changed, count


def _changed(code: int, kind: str, rng: np.random.Generator) -> int:
    if kind == "appear":
        return int(rng.integers(tiles.FIRST_CARRIABLE, tiles.OBJECT_COUNT))
    if kind == "recolour":
        base, size = (4, 3) if code < tiles.FIRST_CARRIABLE else (tiles.FIRST_CARRIABLE, 1)
        shift = int(rng.integers(1, 6))
        group, place = divmod(code - base, 18 if size == 3 else 6)
        color, state = divmod(place, size)
        return base + group * (18 if size == 3 else 6) + (color + shift) % 6 * size + state
    return tiles.EMPTY


def mistell(actions: Actions, kind: str, rng: np.random.Generator) -> Actions:
    """Actions [t] other than those that were taken; the first, which led to no frame, stays."""
    told = actions.copy()
    if kind == "random":
        chosen = rng.random(len(told)) < rng.choice([0.15, 0.3, 0.6, 1.0])
        told[chosen] = rng.integers(0, 3, int(chosen.sum()))
    elif kind == "mirror":
        turns = {pose.LEFT: pose.RIGHT, pose.RIGHT: pose.LEFT}
        first = int(rng.integers(1, len(told)))
        told[first:] = [turns.get(int(action), int(action)) for action in told[first:]]
    elif kind == "late":
        first = int(rng.integers(1, len(told)))
        told[first + 1 :] = actions[first:-1]
        told[first] = rng.integers(0, 3)
    else:  # still: from some moment on it is told that the agent went straight on
        told[int(rng.integers(1, len(told))) :] = pose.FORWARD
    told[0] = actions[0]
    return told


def consistency(ids: Ids, taken: Actions, told: Actions) -> float:
    """Share of the steps at which what is told gives the frame that was seen."""
    right = [
        int(told[k]) == int(taken[k]) or _same_effect(ids[k - 1], ids[k], int(told[k])) for k in range(1, len(ids))
    ]
    return float(np.mean(right))


def _same_effect(before: Ids, after: Ids, action: int) -> bool:
    """Whether an action that was not taken would have changed nothing either, where nothing changed."""
    if not np.array_equal(before, after):
        return False
    if action == pose.FORWARD:
        return not tiles.can_enter(int(before[tiles.AHEAD_CELL]))
    return action == pose.DONE


def permanence(changes: int) -> float:
    return float(0.5 ** (changes / HALVING))


def sharpness(true: Images, seen: Images) -> float:
    error = float(np.abs(true.astype(np.int16) - seen.astype(np.int16)).mean())
    return float(1 - np.sqrt(min(error / WORST_ERROR, 1.0)))


def blemished(frames: Images, blemishes: list[Blemish]) -> Images:
    """Frames [t, 56, 56, 3] with what is wrong with their pictures."""
    for each in blemishes:
        part = slice(each.first, each.last + 1)
        picture = frames[part].astype(np.float32) / 255
        before = np.concatenate([frames[:1], frames[:-1]])[part].astype(np.float32) / 255
        rng = np.random.default_rng(each.seed)
        frames = frames.copy()
        frames[part] = quantize(_KINDS[each.kind](picture, before, each.severity, rng))
    return frames


def _blur(picture: Picture, _: Picture, severity: float, __: np.random.Generator) -> Picture:
    for _pass in range(1 + round(2 * severity)):
        picture = blur(picture)
    return picture


def _noise(picture: Picture, _: Picture, severity: float, rng: np.random.Generator) -> Picture:
    noisy: Picture = picture + 0.2 * severity * rng.standard_normal(picture.shape, dtype=np.float32)
    return noisy


def _shuffle(picture: Picture, _: Picture, severity: float, rng: np.random.Generator) -> Picture:
    """Blocks of 4 pixels lie at wrong places."""
    found = picture.copy()
    for _block in range(round(30 * severity)):
        (a, b), (c, d) = rng.integers(0, 14, (2, 2)) * 4
        found[:, a : a + 4, b : b + 4] = picture[:, c : c + 4, d : d + 4]
    return found


def _tint(picture: Picture, _: Picture, severity: float, rng: np.random.Generator) -> Picture:
    gains = 1 + 0.6 * severity * rng.uniform(-1, 1, 3).astype(np.float32)
    tinted: Picture = picture * gains + 0.1 * severity
    return tinted


def _mosaic(picture: Picture, _: Picture, severity: float, __: np.random.Generator) -> Picture:
    size = 2 if severity < 0.4 else 4
    n, height, width, channels = picture.shape
    means = picture.reshape(n, height // size, size, width // size, size, channels).mean(axis=(2, 4), keepdims=True)
    coarse = np.broadcast_to(means, (n, height // size, size, width // size, size, channels)).reshape(picture.shape)
    mixed: Picture = picture + min(1.0, 0.4 + severity) * (coarse - picture)
    return mixed


def _ghost(picture: Picture, before: Picture, severity: float, __: np.random.Generator) -> Picture:
    mixed: Picture = picture + 0.6 * severity * (before - picture)
    return mixed


def _stripes(picture: Picture, _: Picture, severity: float, rng: np.random.Generator) -> Picture:
    rows = 1 + 0.5 * severity * np.sin(np.arange(picture.shape[1]) * rng.uniform(0.7, 2.0))
    striped: Picture = (picture * rows[None, :, None, None]).astype(np.float32)
    return striped


def _salt(picture: Picture, _: Picture, severity: float, rng: np.random.Generator) -> Picture:
    lost = rng.random((*picture.shape[:3], 1)) < 0.12 * severity
    white = rng.random((*picture.shape[:3], 1)) < 0.5
    salted: Picture = np.where(lost, white.astype(np.float32), picture)
    return salted


_KINDS: dict[str, Callable[[Picture, Picture, float, np.random.Generator], Picture]] = {
    "blur": _blur,
    "noise": _noise,
    "shuffle": _shuffle,
    "tint": _tint,
    "mosaic": _mosaic,
    "ghost": _ghost,
    "stripes": _stripes,
    "salt": _salt,
}
