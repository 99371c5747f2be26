"""The named starts: short look-arounds in varied worlds, from fixed seeds, as PNG strips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.minigrid import pose, tiles
from training.minigrid.data import FIRST_SEED
from training.minigrid.worlds import World

LOOK = "left left left left"  # all the way round, back to the first view
WALK = "right right left left forward forward"
SWEEP = "left right right left forward"


@dataclass(frozen=True, slots=True)
class Start:
    name: str
    env_id: str
    actions: tuple[str, ...]
    description: str


def _start(name: str, env_id: str, actions: str, description: str) -> Start:
    return Start(name, env_id, tuple(actions.split()), description)


STARTS = (
    _start(
        "four-rooms", "MiniGrid-FourRooms-v0", LOOK + " forward forward", "Four rooms joined by gaps, a goal in one."
    ),
    _start("multi-room", "MiniGrid-MultiRoom-N6-v0", SWEEP, "A chain of six rooms behind coloured doors."),
    _start("small-rooms", "MiniGrid-MultiRoom-N4-S5-v1", LOOK, "A chain of four small rooms."),
    _start("door-key", "MiniGrid-DoorKey-8x8-v0", LOOK, "A key that opens the locked door to the goal."),
    _start("unlock", "MiniGrid-Unlock-v0", LOOK, "A locked door and its key."),
    _start("unlock-pickup", "MiniGrid-UnlockPickup-v0", LOOK, "A box behind a locked door."),
    _start("blocked-door", "MiniGrid-BlockedUnlockPickup-v0", LOOK, "A ball in front of a locked door."),
    _start("key-corridor", "MiniGrid-KeyCorridorS3R3-v0", LOOK, "A corridor of rooms, a key hidden in one."),
    _start("lava-crossing", "MiniGrid-LavaCrossingS9N2-v0", SWEEP, "Streams of lava with gaps, a goal behind them."),
    _start("lava-gap", "MiniGrid-LavaGapS7-v0", SWEEP, "A wall of lava with one gap."),
    _start("simple-crossing", "MiniGrid-SimpleCrossingS9N2-v0", SWEEP, "Walls with gaps, a goal behind them."),
    _start("fetch", "MiniGrid-Fetch-8x8-N3-v0", LOOK, "Keys and balls in a bright room whose walls are seen through."),
    _start("go-to-door", "MiniGrid-GoToDoor-8x8-v0", LOOK, "Four doors of different colours."),
    _start("put-near", "MiniGrid-PutNear-8x8-N3-v0", LOOK, "Objects to put near each other."),
    _start("red-blue-doors", "MiniGrid-RedBlueDoors-8x8-v0", LOOK, "A red door and a blue door."),
    _start(
        "obstructed-maze", "MiniGrid-ObstructedMaze-2Dlhb-v1", LOOK, "Locked doors, balls in the way, keys in boxes."
    ),
    _start(
        "playground", "MiniGrid-Playground-v0", LOOK + " forward", "Nine rooms with doors and things of all colours."
    ),
    _start("boss-level", "BabyAI-BossLevel-v0", LOOK, "BabyAI's nine rooms, full of things."),
)


def record_start(start: Start, *, candidates: int = 40) -> tuple[np.ndarray, tuple[str, ...]]:
    """Frames [T, 56, 56, 3] of the candidate seed that shows the most different tiles; and the actions between them."""
    best: tuple[int, np.ndarray] | None = None
    for k in range(candidates):
        world = World(start.env_id, FIRST_SEED["starts"] + k)
        world.check()
        ids = [world.frame_ids()]
        for name in start.actions:
            world.step(pose.ACTION_NAMES.index(name))
            ids.append(world.frame_ids())
        strip = np.stack(ids)
        interest = 4 * len(np.unique(strip)) + int((strip != tiles.DARK).mean() * 20)
        if best is None or interest > best[0]:
            best = interest, strip
    assert best is not None
    return tiles.draw_frame(best[1]), start.actions


def write_starts(folder: Path) -> list[dict[str, object]]:
    """Writes `starts/*.png` into a package folder and returns the manifest's entries."""
    (folder / "starts").mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    for start in STARTS:
        frames, actions = record_start(start)
        file = f"starts/{start.name}.png"
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(folder / file, optimize=True)
        entries.append({"name": start.name, "file": file, "actions": list(actions), "description": start.description})
    return entries
