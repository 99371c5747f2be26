"""Action sequences drawn at random, all different: anywhere, or nearer and nearer to the best."""

import random
from collections.abc import Callable, Sequence

REPEAT = 0.4  # a default
_TRIES = 50  # draws for each sequence that is still missing


def sample(
    actions: Sequence[int], count: int, horizon: int, *, seed: int, repeat: float = REPEAT
) -> list[tuple[int, ...]]:
    """At most `count` sequences of `horizon` actions each: fewer where there are no more, or hardly any.

    `repeat`: the chance that an action is that of before. Of the seed alone: asked again, the same.
    """
    rng = random.Random(seed)  # noqa: S311 - draws, no secrets

    def draw() -> tuple[int, ...]:
        drawn = [rng.choice(actions)]
        while len(drawn) < horizon:
            drawn.append(drawn[-1] if rng.random() < repeat else rng.choice(actions))
        return tuple(drawn)

    return _different(draw, min(count, len(actions) ** horizon))


def _different(draw: Callable[[], tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """`count` draws that differ, fewer where they are hardly to be found."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        found.setdefault(draw())
    return list(found)


class Proposal:
    """Where good sequences are looked for: at each step a distribution over the actions, drawn towards the best (the
    cross-entropy method; Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999).
    """

    def __init__(self, actions: Sequence[int], horizon: int, *, seed: int) -> None:
        self._actions, self._horizon, self._seed = list(actions), horizon, seed
        self._weights: list[list[float]] | None = None  # of each step; None: nothing was learnt yet
        self._draws = 0

    def draw(self, count: int) -> list[tuple[int, ...]]:
        """At most `count` sequences, all different."""
        self._draws += 1
        seed = self._seed * _MAX_DRAWS + self._draws
        if self._weights is None:
            return sample(self._actions, count, self._horizon, seed=seed)
        steps, rng = self._weights, random.Random(seed)  # noqa: S311 - draws, no secrets
        return _different(lambda: tuple(rng.choices(self._actions, weights)[0] for weights in steps), count)

    def learn(self, elites: Sequence[Sequence[int]]) -> None:
        """Draws from nearer to these from now on; nothing becomes impossible."""
        before = self._weights or [[1 / len(self._actions)] * len(self._actions) for _ in range(self._horizon)]
        self._weights = [
            [
                (1 - _RATE) * old + _RATE * sum(elite[step] == action for elite in elites) / len(elites)
                for action, old in zip(self._actions, row, strict=True)
            ]
            for step, row in enumerate(before)
        ]


_RATE = 0.7  # at which what is learnt replaces what was known
_MAX_DRAWS = 1000  # of one proposal
