"""Action sequences drawn at random, all different."""

import random
from collections.abc import Sequence

REPEAT = 0.4  # a default
_TRIES = 50  # draws for each sequence that is still missing


def sample(
    actions: Sequence[int], count: int, horizon: int, *, seed: int, repeat: float = REPEAT
) -> list[tuple[int, ...]]:
    """At most `count` sequences of `horizon` actions each: fewer where there are no more, or hardly any.

    `repeat`: the chance that an action is that of before. Of the seed alone: asked again, the same.
    """
    rng = random.Random(seed)  # noqa: S311 - draws, no secrets
    found: dict[tuple[int, ...], None] = {}
    for _ in range(_TRIES * count):
        if len(found) == min(count, len(actions) ** horizon):
            break
        drawn = [rng.choice(actions)]
        while len(drawn) < horizon:
            drawn.append(drawn[-1] if rng.random() < repeat else rng.choice(actions))
        found.setdefault(tuple(drawn))
    return list(found)
