"""Views and their captions, to learn scenes from: drawn from the frames that the world model is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles
from training.minigrid.captions import describe
from training.minigrid.data import Episode
from training.minigrid.vocabulary import COLORS, TOKENS, WORDS, tokenize

MIN_SEEN = 12  # cells; a scene shows more than the wall before one's nose
_LITTLE_WORDS = WORDS.index("there") + 1  # the words up to here carry little


@dataclass(frozen=True, slots=True)
class SceneBatch:
    ids: npt.NDArray[np.int64]  # [N, 49]
    tokens: npt.NDArray[np.int64]  # [N, TOKENS]


def worth_showing(ids: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """How often views [..., 49] are drawn, relative to each other: more where more different things are seen."""
    kinds = np.stack([(ids == code).any(-1) for code in range(tiles.GOAL, tiles.OBJECT_COUNT)]).sum(0)
    seen = (ids != tiles.DARK).sum(-1) >= MIN_SEEN
    return np.where(seen, 1.0 + np.minimum(kinds, 3), 0.0)


def recolored(ids: npt.NDArray[np.integer], order: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The view with every thing of colour k in colour order[k]; what hides what does not depend on colours."""
    states, first = 3, tiles.GOAL + 2  # doors stand by colour, then state; the others by kind, then colour
    table = np.arange(tiles.TILE_COUNT)
    for color, other in enumerate(order):
        doors = first + np.arange(states)
        table[doors + states * color] = doors + states * other
        for block in range(tiles.FIRST_CARRIABLE, tiles.OBJECT_COUNT, len(COLORS)):
            table[block + color] = block + other
            carried = tiles.AGENT + 1 - tiles.FIRST_CARRIABLE
            table[block + carried + color] = block + carried + other
    result: npt.NDArray[np.int64] = table[ids]
    return result


def pick_views(episodes: list[Episode], rng: np.random.Generator) -> tuple[list[str], npt.NDArray[np.int64]]:
    """One view of each episode that has one worth showing: environments, and ids [n, 49]."""
    names, views = [], []
    for episode in episodes:
        weights = worth_showing(episode.ids)
        if weights.sum() > 0:
            names.append(episode.env_id)
            views.append(episode.ids[rng.choice(len(weights), p=weights / weights.sum())])
    return names, np.stack(views).astype(np.int64)


class Views:
    """All frames of a recorded training set."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as data:
            self._ids = data["ids"].reshape(-1, tiles.CELL_COUNT)
            self._env_id = data["env_id"]
            self._length = data["ids"].shape[1]
        self._upto = np.cumsum(worth_showing(self._ids))

    def batch(self, count: int, rng: np.random.Generator, *, unasked: float) -> SceneBatch:
        """`count` views with captions; a share `unasked` of them has none. Half are recoloured at random."""
        chosen = np.searchsorted(self._upto, rng.random(count) * self._upto[-1], side="right")
        ids = np.zeros((count, tiles.CELL_COUNT), np.int64)
        tokens = np.zeros((count, TOKENS), np.int64)
        for row, index in enumerate(chosen):
            ids[row] = self._ids[index]
            if rng.random() < 0.5:
                ids[row] = recolored(ids[row], rng.permutation(len(COLORS)))
            if rng.random() >= unasked:
                caption = describe(str(self._env_id[index // self._length]), ids[row], rng)
                tokens[row] = _telegram(tokenize(caption.text)[0]) if rng.random() < 0.2 else tokenize(caption.text)[0]
        return SceneBatch(ids, tokens)

    def batches(self, count: int, *, seed: int, first: int, unasked: float) -> Iterator[SceneBatch]:
        """Endless; batch k is a function of the seed and of k alone, so that a resumed training sees the same."""
        k = first
        while True:
            yield self.batch(count, np.random.default_rng([seed, k]), unasked=unasked)
            k += 1


def _telegram(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The prompt as someone in a hurry writes it: without its little words."""
    kept = tokens[tokens > _LITTLE_WORDS]
    return np.concatenate([kept, np.zeros(TOKENS - len(kept), np.int64)])
