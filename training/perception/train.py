"""Trains a base, six experts and four strangers. `python -m training.perception.train --seed 0`.

What is finished is kept in out/training/perception/seed-N and found again there: a run cut short goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from training.learner import keep_freed_memory, save_checkpoint
from training.perception import experts, strangers
from training.perception.base import train_base
from training.perception.data import DEFAULT_FOLDER, load
from training.perception.experts import Lesson, TaskVector, fine_tune, fit_head, lesson_of
from training.perception.model import Backbone
from training.perception.places import folder_of
from training.perception.tasks import TASK_NAMES

app = typer.Typer(add_completion=False)


def _expert(base: Backbone, lesson: Lesson, seed: int, rate: float, path: Path, say: Callable[[str], None]) -> None:
    if path.exists():
        return
    started = time.monotonic()
    head = fit_head(base, lesson, seed)
    task_vector = fine_tune(base, head, lesson, seed, rate=rate)
    save_checkpoint({"head": head.state_dict(), "task_vector": task_vector}, path)
    length = float(sum(value.square().sum() for value in task_vector.values())) ** 0.5
    size = float(sum(value.square().sum() for value in base.parameters())) ** 0.5
    say(f"{lesson.name}, seed {seed}: moved by {length / size:.3f} of the base, {time.monotonic() - started:.0f} s")


def read_expert(path: Path) -> tuple[nn.Linear, TaskVector]:
    """Head and task vector of one expert."""
    state = torch.load(path, weights_only=True)
    classes, width = state["head"]["weight"].shape
    head = nn.Linear(width, classes).requires_grad_(False)
    head.load_state_dict(state["head"])
    return head, state["task_vector"]


def read_base(seed: int, folder: Path = DEFAULT_FOLDER) -> Backbone:
    """The base that `main` left."""
    backbone = Backbone().eval().requires_grad_(False)
    backbone.load_state_dict(torch.load(folder_of(seed, folder) / "base.pt", weights_only=True))
    return backbone


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="of the base and of all experts")] = 0,
    folder: Annotated[Path, typer.Option(help="where recorded frames and results lie")] = DEFAULT_FOLDER,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
) -> None:
    """Trains whatever of one seed is missing."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    domains, home = load("train", folder), folder_of(seed, folder)
    if not (home / "base.pt").exists():
        base = train_base(domains, seed, home / "base-checkpoint.pt", say=typer.echo)
        save_checkpoint(base.state_dict(), home / "base.pt")
    base = read_base(seed, folder)
    for index, name in enumerate(TASK_NAMES):
        path = home / "experts" / f"{name}.pt"
        _expert(base, lesson_of(domains, name), 100 * seed + index, experts.RATE, path, typer.echo)
    for index, lesson in enumerate(strangers.strangers(domains)):
        path = home / "strangers" / f"{lesson.name}.pt"
        _expert(base, lesson, 100 * seed + 50 + index, strangers.RATE, path, typer.echo)


if __name__ == "__main__":
    app()
