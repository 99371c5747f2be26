"""Who walks while data is recorded: sticky, curious, bumps into walls now and then, turns right round now and then."""

from __future__ import annotations

import numpy as np

from training.doom import world

WHOLE_TURN = round(360 / (world.TURN_DEGREES * world.TICS * world.FRAMES))  # chunks
BLOCKED_UNITS = 25.0  # a chunk of walking that gets less far has met a wall; a free one gets about 100


class Explorer:
    """Draws actions; `act` is told how far the last chunk went."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._plan: list[int] = []
        self._last = world.WAIT

    def act(self, moved_units: float) -> int:
        """The next chunk's action."""
        rng = self._rng
        walking = self._last in (world.FORWARD, world.FORWARD_LEFT, world.FORWARD_RIGHT)
        if walking and moved_units < BLOCKED_UNITS and rng.random() < 0.8:
            turn = int(rng.choice((world.LEFT, world.RIGHT)))
            self._plan = [turn] * int(rng.integers(1, 7)) + [world.FORWARD] * int(rng.integers(1, 4))
        elif not self._plan:
            self._plan = self._draw()
        self._last = self._plan.pop(0)
        return self._last

    def _draw(self) -> list[int]:
        rng = self._rng
        turn = int(rng.choice((world.LEFT, world.RIGHT)))
        kind = rng.random()
        if kind < 0.44:
            return [world.FORWARD] * int(rng.integers(1, 6))
        if kind < 0.60:
            return [int(rng.choice((world.FORWARD_LEFT, world.FORWARD_RIGHT)))] * int(rng.integers(1, 3))
        if kind < 0.78:
            return [turn] * int(rng.integers(1, 5))
        if kind < 0.84:
            return [turn] * WHOLE_TURN
        if kind < 0.90:
            return [world.BACK] * int(rng.integers(1, 4))
        if kind < 0.93:
            return [world.WAIT] * int(rng.integers(1, 3))
        return [world.SHOOT] * int(rng.integers(1, 4))
