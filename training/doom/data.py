"""Records the training data: frames, actions and poses of walks. `python -m training.doom.data --help`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from training.doom import world
from training.doom.explore import Explorer

# Episode k of a split is made from seeds FIRST_SEED[split] + k * ATTEMPTS onwards alone, so that splits are disjoint.
FIRST_SEED = {"train": 0, "validation": 500_000_000, "test": 1_000_000_000, "starts": 1_500_000_000}
ATTEMPTS = 50
DEFAULT_FOLDER = Path("out/training/doom/train")


@dataclass(frozen=True, slots=True)
class Walk:
    """One walk of n chunks."""

    frames: npt.NDArray[np.uint8]  # [n, FRAMES, 64, 80, 3]
    actions: npt.NDArray[np.uint8]  # [n]; the action that led to the chunk, NONE for the first
    poses: npt.NDArray[np.float32]  # [n, FRAMES, 3] x and y in map units, degrees


def record(game: world.World, split: str, index: int, *, chunks: int) -> Walk:
    """Walk number `index` of a split; one that finds the armour, which ends a game, is begun anew elsewhere."""
    for attempt in range(ATTEMPTS):
        seed = FIRST_SEED[split] + index * ATTEMPTS + attempt
        explorer = Explorer(np.random.default_rng(seed))
        actions, steps, moved = [world.NONE], [game.reset(seed)], 0.0
        while len(steps) < chunks:
            action = explorer.act(moved)
            step = game.step(action)
            if step is None:
                break
            moved = float(np.hypot(*(step[1][-1, :2] - steps[-1][1][-1, :2])))
            actions.append(action)
            steps.append(step)
        else:
            frames, poses = (np.stack(part) for part in zip(*steps, strict=True))
            return Walk(frames, np.array(actions, np.uint8), poses)
    raise RuntimeError(f"{ATTEMPTS} walks from seed {FIRST_SEED[split] + index * ATTEMPTS} all found the armour")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="where frames.npy, actions.npy and poses.npy go")] = DEFAULT_FOLDER,
    split: Annotated[str, typer.Option(help=", ".join(FIRST_SEED))] = "train",
    walks: Annotated[int, typer.Option(help="how many")] = 1200,
    chunks: Annotated[int, typer.Option(help="of a walk, its first included")] = 32,
    force: Annotated[bool, typer.Option(help="make it again if it is there")] = False,
) -> None:
    """Records walks."""
    if (folder / "poses.npy").exists() and not force:
        typer.echo(f"{folder} is there; --force makes it again")
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = (walks, chunks, world.FRAMES, world.HEIGHT, world.WIDTH, 3)
    frames = np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, shape)
    actions = np.zeros((walks, chunks), np.uint8)
    poses = np.zeros((walks, chunks, world.FRAMES, 3), np.float32)
    started, game = time.monotonic(), world.World()
    for k in range(walks):
        walk = record(game, split, k, chunks=chunks)
        frames[k], actions[k], poses[k] = walk.frames, walk.actions, walk.poses
        if (k + 1) % 50 == 0:
            rate = (k + 1) / (time.monotonic() - started)
            typer.echo(f"{k + 1}/{walks} walks, {rate * chunks * 4:.0f} frames/s, {(walks - k - 1) / rate:.0f} s left")
    frames.flush()
    np.save(folder / "actions.npy", actions)
    np.save(folder / "poses.npy", poses)
    game.close()


if __name__ == "__main__":
    app()
