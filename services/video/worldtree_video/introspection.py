"""What operators may see of the engine's time: the last ticks, the plays and their clocks, the tenants' shares."""

from dataclasses import dataclass

TICKS_KEPT = 64


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One tick. `end_s`: on the engine's clock. Members by class, and of all of them those that were committed."""

    end_s: float
    seconds: float
    play_count: int
    step_count: int
    bulk_count: int
    commit_count: int


@dataclass(frozen=True, slots=True)
class PlayRecord:
    """A play and its clock. `slack_s`: until its next chunk is due, negative when late; 0.0 without a target fps."""

    fps: float
    slack_s: float
    chunk_count: int
    missed_count: int
    degraded_count: int
