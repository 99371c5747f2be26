"""How much of what in distillation: what `distill` does and the card says."""

from __future__ import annotations

SESSIONS = 16  # in lockstep; an update is one frame of each
CHUNKS = 4  # frames of a rollout, an update each
ROLLOUTS = {"pairs": 25, "dmd": 36, "sc-dmd": 36, "salt": 36}
UPDATES = {stage: count * CHUNKS for stage, count in ROLLOUTS.items()}
