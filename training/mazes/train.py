"""Trains the maze transformer by one objective. `python -m training.mazes.train --objective mlm_u`.

Both objectives get the same mazes in the same order, the same optimisers and the same time, which is counted in minutes
of the processor, so that a neighbour's work counts for neither. A run cut short goes on from its checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from training.learner import Learner, adam, growing, keep_freed_memory, others, save_checkpoint
from training.mazes.batches import batch_of, steps_of
from training.mazes.decoding import mlm_u_paths, next_token_exact
from training.mazes.mazes import Maze, draw_batch, draw_set
from training.mazes.model import HIDDEN, MazeModel, mlm_u_loss, next_token_loss
from training.optim import Muon

Objective = Literal["mlm_u", "next_token"]
OBJECTIVES: tuple[Objective, ...] = ("mlm_u", "next_token")
DEFAULT_FOLDER = Path("out/training/mazes")
MINUTES = 18.0
CELLS_A_STEP = 2048
MATRIX_RATE, RATE = 0.02, 2e-3
MEASURED_SIDES = (7, 8, 9, 10)
MEASURED = 64  # mazes a size
_WARM = 100  # steps
_MEASURE_EVERY_S = 60.0


def place_of(objective: Objective, folder: Path = DEFAULT_FOLDER) -> Path:
    """The trained model, with its learning curve."""
    return folder / f"{objective}.pt"


def learner_of(seed: int) -> Learner[MazeModel]:
    torch.manual_seed(seed)
    model = MazeModel()
    matrices = [p for name, p in model.layers.named_parameters() if p.ndim == 2 and not name.endswith("apart")]
    optimizers = [Muon(matrices, MATRIX_RATE), adam(others(model, matrices), RATE)]
    return Learner(model, optimizers, weight=growing(0.99))


def loss_of(model: MazeModel, mazes: list[Maze], objective: Objective, rng: np.random.Generator) -> Tensor:
    given = batch_of(mazes)
    if objective == "next_token":
        steps = steps_of(mazes)
        logits = model.follow(given.open_sides, given.marks, steps.path, steps.entered)
        return next_token_loss(logits, steps.targets)
    rates = rng.random((len(mazes), 1, 1))
    hidden = torch.from_numpy(rng.random(given.labels.shape) < rates)
    hidden[:, 0, 0] |= ~hidden.flatten(1).any(1)  # a maze with nothing to predict teaches nothing
    told = given.labels.masked_fill(hidden, HIDDEN)
    return mlm_u_loss(model(given.open_sides, given.marks, told), given.labels, hidden)


def exact_match(model: MazeModel, objective: Objective) -> float:
    """Share of validation mazes of MEASURED_SIDES whose path is found exactly."""
    right: list[bool] = []
    for side in MEASURED_SIDES:
        mazes = draw_set("validation", side, side, MEASURED)
        if objective == "next_token":
            right += next_token_exact(model, mazes).tolist()
        else:
            right += [tuple(path) == maze.path for path, maze in zip(mlm_u_paths(model, mazes), mazes, strict=True)]
    return float(np.mean(right))


def train(
    objective: Objective, folder: Path, minutes: float, seed: int, say: Callable[[str], None] = lambda _: None
) -> None:
    """Learns for so long; what was learnt goes into the folder."""
    place = place_of(objective, folder)
    if place.exists():
        return
    learner = learner_of(seed)
    part, seconds, curve = place.with_suffix(".checkpoint"), 0.0, [(0.0, 0.0)]
    if part.exists():
        state = torch.load(part, weights_only=True)
        learner.load(state["learner"])
        seconds, curve = state["seconds"], [(float(at), float(share)) for at, share in state["curve"]]
    due, losses = seconds + _MEASURE_EVERY_S, []
    while seconds < 60 * minutes:
        began, step = time.process_time(), learner.step_count
        mazes = draw_batch("train", step, CELLS_A_STEP)
        loss = loss_of(learner.model, mazes, objective, np.random.default_rng([seed, 1, step]))
        left = 1 - seconds / (60 * minutes)
        learner.step(loss, min(1.0, (step + 1) / _WARM) * (0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left))))
        losses.append(float(loss.detach()))
        seconds += time.process_time() - began
        if seconds >= due or seconds >= 60 * minutes:
            due = seconds + _MEASURE_EVERY_S
            curve.append((seconds / 60, exact_match(learner.averaged(), objective)))
            save_checkpoint({"learner": learner.state(), "seconds": seconds, "curve": curve}, part)
            told = f"loss {np.mean(losses[-100:]):.4f}, exact {curve[-1][1]:.3f}"
            say(f"{objective}: {curve[-1][0]:.1f} of {minutes:g} minutes, step {learner.step_count}, {told}")
    found = {"model": learner.averaged().state_dict(), "curve": curve, "steps": learner.step_count}
    save_checkpoint(found, place)
    part.unlink(missing_ok=True)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    objective: Annotated[str, typer.Option(help=f"one of {', '.join(OBJECTIVES)}")] = "mlm_u",
    minutes: Annotated[float, typer.Option(help="of the processor, measuring not counted")] = MINUTES,
    seed: Annotated[int, typer.Option(help="of weights and of what is hidden")] = 0,
    folder: Annotated[Path, typer.Option(help="where results lie")] = DEFAULT_FOLDER,
) -> None:
    """Trains one model, if it is missing, on one thread."""
    chosen: Objective | None = next((each for each in OBJECTIVES if each == objective), None)
    if chosen is None:
        raise typer.BadParameter(f"must be one of {', '.join(OBJECTIVES)}, got {objective!r}", param_hint="--objective")
    torch.set_num_threads(1)
    keep_freed_memory()
    train(chosen, folder, minutes, seed, typer.echo)


if __name__ == "__main__":
    app()
