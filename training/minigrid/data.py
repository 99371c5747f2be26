"""Makes the training data: tile ids, actions and poses of lively episodes. `python -m training.minigrid.data`.

Frames are stored as 49 tile ids (uint8) from which the codebook redraws them exactly; a sample of them is compared
with `env.get_frame` while recording. The visible mask is `ids != DARK`, world coordinates follow from the pose.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from training.minigrid import pose, tiles
from training.minigrid.explore import Explorer, Temper
from training.minigrid.worlds import ENVIRONMENTS, World

# Seeds are disjoint by construction: episode k of a split is made from FIRST_SEED[split] + k alone.
FIRST_SEED = {"train": 0, "validation": 500_000_000, "test": 1_000_000_000, "starts": 1_500_000_000}
DEFAULT_PATH = Path("out/training/minigrid/train.npz")


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded trajectory of n frames."""

    env_id: str
    ids: npt.NDArray[np.uint8]  # [n, 49]
    actions: npt.NDArray[np.uint8]  # [n]; the action that led to the frame, NONE for the first
    poses: npt.NDArray[np.int64]  # [n, 3] x, y, dir in the environment's own coordinates
    can_move: npt.NDArray[np.bool_]  # [n]; whether the cell ahead may be entered


def record(env_id: str, seed: int, *, length: int, temper: Temper | None = None, check_rate: float = 0.0) -> Episode:
    """Plays one episode. Goal, lava and the time limit do not end it: the simulator allows going on."""
    rng = np.random.default_rng(seed)
    world = World(env_id, seed % (1 << 31))
    explorer = Explorer(rng, temper or Temper.for_training(rng))
    ids = np.zeros((length, tiles.CELL_COUNT), np.uint8)
    actions = np.zeros(length, np.uint8)
    poses = np.zeros((length, 3), np.int64)
    can_move = np.zeros(length, np.bool_)
    action = pose.NONE
    for k in range(length):
        if k > 0:
            action = explorer.action(world)
            world.step(action)
        ids[k], actions[k], poses[k] = world.frame_ids(), action, world.pose
        can_move[k] = tiles.can_enter(world.ahead)
        if check_rate and rng.random() < check_rate:
            world.check()
    return Episode(env_id, ids, actions, poses, can_move)


def pick_environment(seed: int) -> str:
    """The environment of an episode, by its seed and the weights in `ENVIRONMENTS`."""
    names = list(ENVIRONMENTS)
    weights = np.array([ENVIRONMENTS[name] for name in names])
    return str(np.random.default_rng([seed, 7]).choice(names, p=weights / weights.sum()))


def record_many(split: str, count: int, *, length: int, check_rate: float, lively: bool = False) -> list[Episode]:
    """Episodes 0..count-1 of a split."""
    temper = Temper.lively() if lively else None
    seeds = range(FIRST_SEED[split], FIRST_SEED[split] + count)
    return [record(pick_environment(s), s, length=length, temper=temper, check_rate=check_rate) for s in seeds]


def pack(episodes: list[Episode]) -> dict[str, Any]:
    """Arrays [episode, frame, ...] of episodes of one length."""
    return {
        "ids": np.stack([e.ids for e in episodes]),
        "actions": np.stack([e.actions for e in episodes]),
        "poses": np.stack([e.poses for e in episodes]),
        "can_move": np.stack([e.can_move for e in episodes]),
        "env_id": np.array([e.env_id for e in episodes]),
    }


app = typer.Typer(add_completion=False)


@app.command()
def main(
    path: Annotated[Path, typer.Option(help="where the .npz goes")] = DEFAULT_PATH,
    episodes: Annotated[int, typer.Option(help="how many episodes")] = 12_000,
    length: Annotated[int, typer.Option(help="frames per episode")] = 80,
    check_rate: Annotated[float, typer.Option(help="share of frames compared with env.get_frame")] = 0.005,
    force: Annotated[bool, typer.Option(help="make it again if the file is there")] = False,
) -> None:
    """Records the training set."""
    if path.exists() and not force:
        typer.echo(f"{path} is there; --force makes it again")
        return
    started = time.monotonic()
    done: list[Episode] = []
    for k in range(episodes):
        seed = FIRST_SEED["train"] + k
        done.append(record(pick_environment(seed), seed, length=length, check_rate=check_rate))
        if (k + 1) % 500 == 0:
            rate = (k + 1) / (time.monotonic() - started)
            typer.echo(
                f"{k + 1}/{episodes} episodes, {rate * length:.0f} frames/s, {(episodes - k - 1) / rate:.0f} s left"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **pack(done))
    used = np.bincount(np.concatenate([e.ids.reshape(-1) for e in done]), minlength=tiles.TILE_COUNT)
    typer.echo(f"{path}: {episodes * length} frames; {np.count_nonzero(used)} of {tiles.TILE_COUNT} tiles occur")


if __name__ == "__main__":
    app()
