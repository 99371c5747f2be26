"""The named starts: a look round in different rooms, from fixed seeds, as PNG strips."""

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

# More walls tell better where this is. With the first chunk they fill the window, which is the most a start may bring.
LOOK = (world.LEFT, world.RIGHT, world.WAIT)


def write_starts(folder: Path) -> list[dict[str, object]]:
    """Writes `starts/*.png` into a package folder and returns the manifest's entries."""
    (folder / "starts").mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    game = world.World()
    for start in STARTS:
        frames = list(game.reset(FIRST_SEED["starts"] + start.index)[0])
        for action in LOOK:
            step = game.step(action)
            assert step is not None
            frames += list(step[0])
        file = f"starts/{start.name}.png"
        Image.fromarray(np.concatenate(frames, axis=1)).save(folder / file, optimize=True)
        entries.append(
            {
                "name": start.name,
                "file": file,
                "actions": [world.ACTION_NAMES[action] for action in LOOK],
                "description": start.description,
            }
        )
    game.close()
    return entries
