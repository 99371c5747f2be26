"""Makes the demonstrations: `python -m training.navigator.data`.

Each step holds what was in view, what was remembered, and what was done. Bursts of random actions lead astray now and
then, and the demonstrator finds back (as in DART: Laskey et al., "Noise Injection for Robust Imitation Learning"); only
what the demonstrator does is learnt from.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from worldtree_navigator.memory import Memory

from training.minigrid import pose
from training.minigrid.data import FIRST_SEED
from training.navigator.expert import SIZE, ground, next_actions
from training.navigator.missions import ENVIRONMENTS, mission_of, said, tokenize, world_of

DEFAULT_FOLDER = Path("out/training/navigator")
SPLIT_OFFSET = 40_000_000  # of seeds, from those of other recipes
MAP = 21  # cells of what is remembered around the walker
HORIZON = 6  # actions of a chunk, and frames
_MOST_STEPS = 100
_BURST = (0.0, 0.03, 0.1, 0.25)  # chance a step that one begins, by character


@dataclass(frozen=True)
class Episode:
    """n steps of one episode: what was there before each action, and the action."""

    env_id: str
    words: npt.NDArray[np.int64]
    views: npt.NDArray[np.uint8]  # [n + 1, 49]; the last: after the last action
    maps: npt.NDArray[np.uint8]  # [n, MAP * MAP]
    actions: npt.NDArray[np.uint8]  # [n]
    shown: npt.NDArray[np.bool_]  # [n]: the demonstrator's own, not led astray


def record(env_id: str, seed: int) -> Episode | None:
    """Of the seed alone; None where the mission is none of ours."""
    found = world_of(env_id, seed % (1 << 31))
    if found is None:
        return None
    world, text = found
    mission = mission_of(text)
    assert mission is not None
    rng = np.random.default_rng([seed, 11])
    words = tokenize(said(text, rng))
    burst = float(rng.choice(_BURST))
    memory = Memory(ground(), SIZE)
    views, maps, actions, shown = [world.frame_ids()], [], [], []
    astray = 0
    memory.see(views[0])
    while len(actions) < _MOST_STEPS and not mission.is_done(world):
        if astray == 0 and rng.random() < burst:
            astray = int(rng.integers(1, 5))
        if astray:
            action = int(rng.choice((pose.LEFT, pose.RIGHT, pose.FORWARD, pose.TOGGLE), p=(0.3, 0.3, 0.35, 0.05)))
        else:
            action = next_actions(memory, mission)[0]
        maps.append(memory.around(MAP).reshape(-1))
        actions.append(action)
        shown.append(not astray)
        astray = max(0, astray - 1)
        world.step(action)
        memory.act(action)
        views.append(world.frame_ids())
        memory.see(views[-1])
    if not any(shown):
        return None
    return Episode(env_id, words, np.stack(views), np.stack(maps), np.array(actions, np.uint8), np.array(shown))


def of_seed(seed: int) -> Episode | None:
    """One of an environment that the seed draws, by the environments' weights."""
    weights = np.array(list(ENVIRONMENTS.values()))
    return record(str(np.random.default_rng([seed, 7]).choice(list(ENVIRONMENTS), p=weights / weights.sum())), seed)


@dataclass(frozen=True)
class Demonstrations:
    """All episodes, one after the other. Each is followed by HORIZON views like its last, and by as many DONE."""

    views: npt.NDArray[np.uint8]  # [rows, 49]
    maps: npt.NDArray[np.uint8]  # [rows, MAP * MAP]; zeros where nothing is to be learnt
    actions: npt.NDArray[np.uint8]  # [rows]
    words: npt.NDArray[np.uint8]  # [episodes, MAX_WORDS]
    episode: npt.NDArray[np.int32]  # [rows]
    environment: npt.NDArray[np.uint8]  # [episodes], in the order of ENVIRONMENTS
    starts: npt.NDArray[np.int32]  # [samples]: rows that HORIZON of the demonstrator's own actions follow

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        part.replace(path)

    @staticmethod
    def load(split: str, folder: Path = DEFAULT_FOLDER) -> Demonstrations:
        with np.load(folder / f"{split}.npz") as stored:
            return Demonstrations(**{name: stored[name] for name in Demonstrations.__dataclass_fields__})


def pack(episodes: list[Episode]) -> Demonstrations:
    names = list(ENVIRONMENTS)
    views, maps, actions, numbers, starts = [], [], [], [], []
    row = 0
    for number, each in enumerate(episodes):
        count = len(each.actions)
        # What follows an end is nothing, for ever.
        own = np.concatenate([each.actions, np.full(HORIZON, pose.DONE, np.uint8)])
        learnt = np.concatenate([each.shown, np.ones(HORIZON, np.bool_)])
        views.append(np.concatenate([each.views, np.repeat(each.views[-1:], HORIZON - 1, axis=0)]))
        maps.append(np.concatenate([each.maps, np.zeros((HORIZON, MAP * MAP), np.uint8)]))
        actions.append(own)
        numbers.append(np.full(len(own), number, np.int32))
        starts += [row + k for k in range(count) if learnt[k : k + HORIZON].all()]
        row += len(own)
    return Demonstrations(
        views=np.concatenate(views),
        maps=np.concatenate(maps),
        actions=np.concatenate(actions),
        words=np.stack([each.words for each in episodes]).astype(np.uint8),
        episode=np.concatenate(numbers),
        environment=np.array([names.index(each.env_id) for each in episodes], np.uint8),
        starts=np.array(starts, np.int32),
    )


def record_all(folder: Path, *, episodes: int, held: int, workers: int = 1, force: bool = False) -> None:
    """Demonstrations to train on and to validate on, where they are missing."""
    for split, count in (("validation", held), ("train", episodes)):
        path = folder / f"{split}.npz"
        if path.exists() and not force:
            typer.echo(f"{path} is there; --force makes it again")
            continue
        started, done = time.monotonic(), []
        seeds = range(FIRST_SEED[split] + SPLIT_OFFSET, FIRST_SEED[split] + SPLIT_OFFSET + count)
        with ProcessPoolExecutor(workers) as pool:
            for k, episode in enumerate(pool.map(of_seed, seeds, chunksize=50), start=1):
                done.append(episode)
                if k % 1000 == 0:
                    rate = k / (time.monotonic() - started)
                    typer.echo(f"{split}: {k}/{count} episodes, {(count - k) / rate:.0f} s left")
        packed = pack([each for each in done if each is not None])
        packed.save(path)
        typer.echo(f"{path}: {len(packed.environment)} episodes, {len(packed.starts)} chunks to learn from")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="where the data goes")] = DEFAULT_FOLDER,
    episodes: Annotated[int, typer.Option(help="how many to train on")] = 30_000,
    held: Annotated[int, typer.Option(help="how many to validate on")] = 1_000,
    workers: Annotated[int, typer.Option(help="processes that record")] = 1,
    force: Annotated[bool, typer.Option(help="make them again if they are there")] = False,
) -> None:
    """Records the demonstrations."""
    record_all(folder, episodes=episodes, held=held, workers=workers, force=force)


if __name__ == "__main__":
    app()
