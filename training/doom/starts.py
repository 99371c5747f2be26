"""The named starts: first chunks in different rooms, from fixed seeds, as PNG strips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.doom import world
from training.doom.data import FIRST_SEED


@dataclass(frozen=True, slots=True)
class Start:
    """A place in the map: where seed `index` of the split `starts` begins."""

    name: str
    index: int
    description: str


STARTS = (
    Start("blue-lights", 37, "A bright hall with panels of blue lights."),
    Start("lamps", 30, "Down a corridor between orange lamps."),
    Start("white-room", 55, "The door of a white room."),
    Start("red-hall", 1, "A hall with red walls and the corridor behind it."),
    Start("machines", 52, "Grey machines along the walls."),
    Start("green-room", 51, "Walls of green slime; an armour lies in the dark."),
    Start("crossing", 58, "White panels beside a crossing of corridors."),
    Start("lockers", 73, "A room of grey lockers."),
)


def write_starts(folder: Path) -> list[dict[str, object]]:
    """Writes `starts/*.png` into a package folder and returns the manifest's entries."""
    (folder / "starts").mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    game = world.World()
    for start in STARTS:
        frames, _ = game.reset(FIRST_SEED["starts"] + start.index)
        file = f"starts/{start.name}.png"
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(folder / file, optimize=True)
        entries.append({"name": start.name, "file": file, "actions": [], "description": start.description})
    game.close()
    return entries
