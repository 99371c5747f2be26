"""Frames of the six domains as tile ids, and draws from them. `python -m training.perception.data` records them.

Train, validation and test are disjoint by the seeds of their episodes, as in `training.minigrid.data`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from training.minigrid.data import FIRST_SEED, record
from training.perception.cameras import CAMERA_OF, CLEAN, Images, draw, shoot
from training.perception.tasks import TASKS, Ids, Labels, Task

DEFAULT_FOLDER = Path("out/training/perception")
EPISODES = {"train": 560, "validation": 120, "test": 240}  # a task
LENGTH = 40
_TASK_SEEDS, _ENVIRONMENT_SEEDS = 10_000_000, 100_000


def record_split(split: str, episodes: int) -> dict[str, Ids]:
    """Frames by task, [frames, 49], of about so many episodes a task, shared out among its environments."""
    logging.getLogger().setLevel(logging.ERROR)
    frames = {}
    for task_index, task in enumerate(TASKS):
        recorded = []
        for index, environment in enumerate(task.environments):
            first = FIRST_SEED[split] + (1 + task_index) * _TASK_SEEDS + index * _ENVIRONMENT_SEEDS
            seeds = range(first, first - (-episodes // len(task.environments)))
            recorded += [record(environment, seed, length=LENGTH, check_rate=0.002).ids for seed in seeds]
        frames[task.name] = np.concatenate(recorded)
    return frames


@dataclass(frozen=True)
class Domain:
    """The frames of one task."""

    task: Task
    ids: Ids
    labels: Labels

    def balanced(self, count: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Rows of `count` frames, as many of each class that occurs, or nearly."""
        classes = np.unique(self.labels)
        wanted = rng.permutation(classes[np.arange(count) % len(classes)])
        rows = np.empty(count, np.int64)
        for each in classes:
            here = wanted == each
            rows[here] = rng.choice(np.flatnonzero(self.labels == each), here.sum())
        return rows

    def batch(self, count: int, rng: np.random.Generator, clean_share: float = 0.0) -> tuple[Images, Labels]:
        """Balanced images of the task's own camera, a share of them clean instead, and their labels."""
        rows = self.balanced(count, rng)
        picture = draw(self.ids[rows])
        images = shoot(picture, CAMERA_OF[self.task.name], rng)
        clean = rng.random(count) < clean_share
        images[clean] = shoot(picture[clean], CLEAN, rng)
        return images, self.labels[rows]


def domains(frames: dict[str, Ids]) -> dict[str, Domain]:
    """By task."""
    return {task.name: Domain(task, frames[task.name], task.answer(frames[task.name])) for task in TASKS}


def load(split: str, folder: Path = DEFAULT_FOLDER) -> dict[str, Domain]:
    """A recorded split; records it where it is missing."""
    path = folder / f"{split}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **record_split(split, EPISODES[split]))  # type: ignore[arg-type]
    with np.load(path) as arrays:
        return domains({name: arrays[name] for name in arrays.files})


app = typer.Typer(add_completion=False)


@app.command()
def main(folder: Annotated[Path, typer.Option(help="where the .npz files go")] = DEFAULT_FOLDER) -> None:
    """Records all splits that are missing."""
    started = time.monotonic()
    for split in EPISODES:
        counts = {name: len(domain.ids) for name, domain in load(split, folder).items()}
        typer.echo(f"{split}: {sum(counts.values())} frames, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    app()
