"""A judge's networks on ONNX Runtime, stepped frame by frame for many clips at once; the trunk may be run elsewhere.

Each dimension's expert is a session of its own: one more file changes no bit of what the others answer.
"""

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from worldtree_runtime.inference import TensorSpec, check_signature, open_session
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.opinion import Opinion
from worldtree_runtime.reward_package import CARD_KEY, EXPERTS, ExpertCard, StoredReward
from worldtree_runtime.triton_graph import Feeds, Trial

from worldtree_reward.domain import Actions, Evidence, Frames

_Floats = NDArray[np.float32]
_GOALS_REMEMBERED = 4096
_TRUNK_ANSWERS = ("here", "memory_after", "features", "dense")


@dataclass(frozen=True)
class Dimension:
    """An expert, and what its file says of it."""

    name: str
    card: ExpertCard
    session: Any


@dataclass(eq=False)
class Track:
    """A clip as far as it was seen: all that the next frame needs of those before."""

    words: NDArray[np.int64]  # [words]
    before: _Floats  # [tiles, width]
    memory: _Floats  # [memory]
    totals: _Floats  # [dimensions, pooled]
    most: _Floats  # [dimensions, pooled]
    means: _Floats  # [dimensions]: the experts' opinions after the last frame
    deviations: _Floats  # [dimensions]
    frame_count: int = 0

    def fork(self) -> "Track":
        """Another that goes on from here. What both know is shared: a step puts new arrays in the place of old ones."""
        return copy(self)


class Judge:
    """One package. `step` is for one thread; everything else for any.

    `trunk` may be replaced by what runs it elsewhere, and is called as a session.
    """

    def __init__(self, stored: StoredReward, *, device: str = "cpu", threads: int = 1) -> None:
        """Raises PackageError when a graph is not what `model.yaml` says, or answers with what is no number."""
        self.package = package = stored.package
        sizes, (height, width) = package.trunk, (package.image.height_px, package.image.width_px)
        words, place = (None, package.goal.max_words), (None, *sizes.tiles)

        def opened(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Any:
            path = stored.folder / name
            session = open_session(path, device=device, threads=threads)
            check_signature(path, session, inputs, outputs)
            return session

        def floats(*names: str, shape: tuple[int | None, ...]) -> list[TensorSpec]:
            return [TensorSpec(name, "float", shape) for name in names]

        self.trunk_inputs = [
            TensorSpec("frames", "uint8", (None, height, width, package.image.channels)),
            TensorSpec("actions", "int64", (None,)),
            TensorSpec("words", "int64", words),
            *floats("before", shape=place),
            *floats("memory", shape=(None, sizes.memory)),
        ]
        self.trunk_outputs = [
            *floats("here", shape=place),
            *floats("memory_after", shape=(None, sizes.memory)),
            *floats("features", shape=(None, sizes.features)),
            *floats("dense", shape=(None, sizes.dense)),
        ]
        self.trunk = opened(package.files.trunk, self.trunk_inputs, self.trunk_outputs)
        categories = len(package.categories)
        self._router = opened(
            package.files.router,
            [TensorSpec("words", "int64", words)],
            floats("probabilities", shape=(None, categories + 1)),
        )
        joined = (None, len(package.dimensions))
        self._joint = opened(
            package.files.joint,
            floats("mean", "deviation", shape=joined),
            floats("whole_mean", "whole_deviation", shape=(None, categories)),
        )
        pooled = floats("total", "most", shape=(None, sizes.pooled)) + floats("dense", shape=(None, sizes.dense))
        inputs = [*floats("features", shape=(None, sizes.features)), *floats("count", shape=(None, 1)), *pooled]
        outputs = [
            *floats("total_after", "most_after", shape=(None, sizes.pooled)),
            *floats("mean", "deviation", shape=(None,)),
        ]

        def expert(name: str) -> Dimension:
            path = stored.folder / EXPERTS / f"{name}.onnx"
            session = open_session(path, device=device, threads=threads)
            card = _card(path, session)
            check_signature(path, session, inputs, outputs)
            return Dimension(name, card, session)

        self.dimensions = tuple(expert(name) for name in _names(stored))
        self._route = lru_cache(_GOALS_REMEMBERED)(self._routed)
        self._check(stored)

    def begin(self, words: NDArray[np.int64]) -> Track:
        """A clip of which nothing was seen yet."""
        sizes, count = self.package.trunk, len(self.dimensions)
        pooled = np.zeros((count, sizes.pooled), np.float32)
        # What experts pool is never negative, so that nothing is less than what came before the first frame.
        return Track(
            words,
            np.zeros(sizes.tiles, np.float32),
            np.zeros(sizes.memory, np.float32),
            pooled,
            pooled,
            np.zeros(count, np.float32),
            np.ones(count, np.float32),
        )

    def step(self, tracks: Sequence[Track], frames: Frames, actions: Actions) -> None:
        """One more frame of each of some clips: frames [n, height, width, 3], actions [n]."""
        n = len(tracks)
        # A product with one row is rounded otherwise than one with more: alone or among others must be the same.
        rows = [*tracks, *tracks] if n == 1 else tracks
        frames, actions = (np.concatenate([frames, frames]), np.repeat(actions, 2)) if n == 1 else (frames, actions)
        here, memory, features, dense = self.trunk.run(_TRUNK_ANSWERS, _trunk_feeds(rows, frames, actions))
        totals, most = np.stack([track.totals for track in rows]), np.stack([track.most for track in rows])
        means, deviations = np.empty((2, len(rows), len(self.dimensions)), np.float32)
        count = np.array([[track.frame_count + 1] for track in rows], np.float32)
        for place, dimension in enumerate(self.dimensions):
            totals[:, place], most[:, place], means[:, place], deviations[:, place] = dimension.session.run(
                ["total_after", "most_after", "mean", "deviation"],
                {
                    "features": features,
                    "dense": dense,
                    "total": np.ascontiguousarray(totals[:, place]),
                    "most": np.ascontiguousarray(most[:, place]),
                    "count": count,
                },
            )
        for row, track in enumerate(tracks):
            # Copies: a track that is kept would keep the whole batch.
            track.before, track.memory = here[row].copy(), memory[row].copy()
            track.totals, track.most = totals[row].copy(), most[row].copy()
            track.means, track.deviations = means[row].copy(), deviations[row].copy()
            track.frame_count += 1

    def evidence(self, tracks: Sequence[Track]) -> list[Evidence]:
        """What is known of clips after their last frame; for the thread that steps."""
        joined = [index for index, each in enumerate(self.dimensions) if each.name in self.package.dimensions]
        rows = [*tracks, *tracks] if len(tracks) == 1 else tracks
        means = np.stack([track.means[joined] for track in rows])
        deviations = np.stack([track.deviations[joined] for track in rows])
        whole_means, whole_deviations = self._joint.run(
            ["whole_mean", "whole_deviation"], {"mean": means, "deviation": deviations}
        )
        return [
            Evidence(
                track.frame_count - 1,
                tuple(Opinion(float(a), float(b)) for a, b in zip(track.means, track.deviations, strict=True)),
                {
                    name: Opinion(float(whole_means[row, place]), float(whole_deviations[row, place]))
                    for place, name in enumerate(self.package.category_names)
                },
            )
            for row, track in enumerate(tracks)
        ]

    def route(self, words: NDArray[np.int64]) -> tuple[float, ...]:
        """Probabilities of the categories, that of none last."""
        return self._route(tuple(int(word) for word in words))

    def _routed(self, words: tuple[int, ...]) -> tuple[float, ...]:
        twice = np.array([words, words], np.int64)
        (probabilities,) = self._router.run(["probabilities"], {"words": twice})
        return tuple(float(each) for each in probabilities[0])

    def trial(self) -> Trial:
        """A run of the trunk, on noise, for whoever is to run it elsewhere."""
        size, rng = self.package.image, np.random.default_rng(1)
        tracks = [self.begin(np.full(self.package.goal.max_words, word, np.int64)) for word in (0, 1)]
        for _ in range(2):  # of a clip that goes on
            frames = rng.integers(0, 256, (2, size.height_px, size.width_px, size.channels), np.uint8)
            feeds = _trunk_feeds(tracks, frames, np.array([0, len(self.package.actions)]))
            self.step(tracks, frames, feeds["actions"])
        return Trial(feeds, dict(zip(_TRUNK_ANSWERS, self.trunk.run(_TRUNK_ANSWERS, feeds), strict=True)))

    def _check(self, stored: StoredReward) -> None:
        """That two steps of noise are judged with numbers."""
        size, rng = self.package.image, np.random.default_rng(0)
        track = self.begin(np.ones(self.package.goal.max_words, np.int64))
        for action in (len(self.package.actions), 0):
            frames = rng.integers(0, 256, (1, size.height_px, size.width_px, size.channels), np.uint8)
            self.step([track], frames, np.array([action]))
        for dimension, mean, deviation in zip(self.dimensions, track.means, track.deviations, strict=True):
            if not (np.isfinite(mean) and np.isfinite(deviation) and deviation > 0):
                path = stored.folder / EXPERTS / f"{dimension.name}.onnx"
                raise PackageError(path, "mean, deviation", f"must be finite, got {mean}, {deviation}")
        route = self.route(track.words)
        if not abs(sum(route) - 1) < 1e-3:
            raise PackageError(stored.folder / self.package.files.router, "probabilities", "must sum to 1")


def _trunk_feeds(tracks: Sequence[Track], frames: Frames, actions: Actions) -> Feeds:
    return {
        "frames": frames,
        "actions": actions,
        "words": np.stack([track.words for track in tracks]),
        "before": np.stack([track.before for track in tracks]),
        "memory": np.stack([track.memory for track in tracks]),
    }


def _names(stored: StoredReward) -> list[str]:
    """Of the experts' files: those that the joint reads first, in its order, then the others by name."""
    known = stored.package.dimensions
    files = {path.stem for path in (stored.folder / EXPERTS).glob("*.onnx")}
    return [*known, *sorted(files.difference(known))]


def _card(path: Path, session: Any) -> ExpertCard:
    written = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    if written is None:
        raise PackageError(path, f"metadata {CARD_KEY}", "is missing: an expert says there what its dimension is")
    try:
        return ExpertCard.model_validate(json.loads(written))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([f"metadata {CARD_KEY}", *map(str, first["loc"])])
        raise PackageError(path, field, first["msg"]) from error
    except ValueError as error:
        raise PackageError(path, f"metadata {CARD_KEY}", f"must be JSON: {error}") from error
