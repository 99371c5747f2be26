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
        self.horizon = horizon
        self._actions = list(actions)
        self._rng = random.Random(seed)  # noqa: S311 - draws, no secrets
        self._weights: list[list[float]] | None = None  # of each step; None: nothing was learnt yet

    def extend(self, sequences: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
        """At most `count` that go one action further than these, all different: all there are where so many may be."""
        found = [(*each, action) for each in sequences for action in self._actions]
        if len(found) <= count:
            return found
        # Drawn without putting back, by weight: Efraimidis and Spirakis, "Weighted random sampling with a reservoir".
        keys = {each: self._rng.random() ** (1 / self._weight(each)) for each in found}
        drawn = set(sorted(found, key=lambda each: keys[each])[-count:])
        return [each for each in found if each in drawn]

    def learn(self, elites: Sequence[Sequence[int]]) -> None:
        """Draws from nearer to these from now on, as far as each goes; nothing becomes impossible."""
        before = self._weights or [[1 / len(self._actions)] * len(self._actions) for _ in range(self.horizon)]
        self._weights = []
        for step, row in enumerate(before):
            done = [elite[step] for elite in elites if len(elite) > step]
            rate = _RATE if done else 0.0
            self._weights.append(
                [
                    (1 - rate) * old + rate * done.count(action) / max(len(done), 1)
                    for action, old in zip(self._actions, row, strict=True)
                ]
            )

    def _weight(self, sequence: tuple[int, ...]) -> float:
        """Of the last action, after those before it."""
        if self._weights is not None:
            return self._weights[len(sequence) - 1][self._actions.index(sequence[-1])]
        same = len(sequence) > 1 and sequence[-1] == sequence[-2]
        return (1 - REPEAT) / len(self._actions) + (REPEAT if same else 0.0)


_RATE = 0.7  # at which what is learnt replaces what was known
