"""How much of what in distillation: what `distill` does and the card says."""

from __future__ import annotations

SESSIONS = 16  # in lockstep; an update is one frame of each
CHUNKS = 6  # frames of a rollout, an update each
ROLLOUTS = {"pairs": 22, "dmd": 24, "sc-dmd": 24, "salt": 24}
UPDATES = {stage: count * CHUNKS for stage, count in ROLLOUTS.items()}
