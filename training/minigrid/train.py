"""Trains the teacher on a CPU; resumes by itself. `python -m training.minigrid.train --help`.

The moving average ends up in `training/minigrid/weights/teacher.npz`; `training.minigrid.distill` goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer

from training.learner import Learner, adam, growing, keep_freed_memory, matrices_of, others, save_checkpoint
from training.minigrid.batches import batches
from training.minigrid.losses import plain_loss, refine_loss
from training.minigrid.model import ModelConfig, WorldModel
from training.minigrid.states import TEACHER, save_state
from training.optim import Muon

DEFAULT_DATA = Path("out/training/minigrid/train.npz")
DEFAULT_CHECKPOINT = Path("out/training/minigrid/model.pt")
app = typer.Typer(add_completion=False)


class Trainer(Learner[WorldModel]):
    """One rank's learner; ranks differ only in the data that they see."""

    def __init__(self, config: ModelConfig, *, lr_muon: float, lr_adam: float, ranks: int) -> None:
        model = WorldModel(config)
        matrices = matrices_of(model.stack)
        optimizers = (Muon(matrices, lr=lr_muon), adam(others(model, matrices), lr_adam))
        super().__init__(model, optimizers, weight=growing(0.998))
        self.ranks = ranks
        self.trained_s = 0.0
        self.teacher: WorldModel | None = None  # of the second stage

    def state(self) -> dict[str, Any]:
        teacher = None if self.teacher is None else self.teacher.state_dict()
        config = self.model.config.to_dict()
        return {**super().state(), "config": config, "trained_s": self.trained_s, "teacher": teacher}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.trained_s = state["trained_s"]
        if state["teacher"] is not None:
            self.teacher = WorldModel(self.model.config).requires_grad_(False)
            self.teacher.load_state_dict(state["teacher"])

    def begin_refining(self) -> WorldModel:
        """The average so far becomes the teacher and the student's start, once."""
        if self.teacher is None:
            self.use_average()
            self.teacher = WorldModel(self.model.config).requires_grad_(False)
            self.teacher.load_state_dict(self.model.state_dict())
        return self.teacher

    def use_average(self) -> None:
        """Puts the moving average in the model's place and forgets the optimisers' momenta."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.average[name])
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def _gather(self) -> None:
        if self.ranks == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.ranks
        for g, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            g.copy_(part.reshape(g.shape))


def lr_schedule(progress: float) -> float:
    """Flat, then linear to nearly zero over the last 55% of the time."""
    return min(1.0, max(0.02, (1 - progress) / 0.55))


REFINE_LR = 0.25  # of the plain rates, falling linearly


def run(
    rank: int,
    ranks: int,
    data: Path,
    checkpoint: Path,
    minutes: float,
    refine_minutes: float,
    sequences: int,
    length: int,
    seed: int,
    lr_muon: float,
    lr_adam: float,
    config: ModelConfig,
    port: int,
) -> None:
    """One rank of training. The schedule follows the clock, because the machine's speed does not stand still."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(seed)
    if ranks > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(port)
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
    trainer = Trainer(config, lr_muon=lr_muon, lr_adam=lr_adam, ranks=ranks)
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, weights_only=True))
    draw = seed * 1000 + rank * 100_000 + trainer.step_count
    generator = torch.Generator().manual_seed(draw)
    source = batches(data, sequences=sequences, length=length, window=config.window, seed=draw)
    started, before_s = time.monotonic(), trainer.trained_s
    saved = reported = started
    totals: dict[str, list[float]] = {}
    while True:
        clock = torch.tensor(time.monotonic() - started)
        if ranks > 1:
            dist.broadcast(clock, 0)  # all ranks follow one clock
        trainer.trained_s = before_s + clock.item()
        progress = trainer.trained_s / 60 / minutes
        refined = (trainer.trained_s / 60 - minutes) / max(refine_minutes, 1e-6)
        finished = refined >= 1 or (progress >= 1 and refine_minutes == 0)
        now = time.monotonic()
        if rank == 0 and (finished or now - saved > 120):
            save_checkpoint(trainer.state(), checkpoint)
            saved = now
        if finished:
            break
        batch = next(source)
        factor = min(1.0, (trainer.step_count + 1) / 50) * lr_schedule(progress)
        teacher = trainer.begin_refining() if progress >= 1 else None
        loss, stats = plain_loss(trainer.model, batch, generator)
        if teacher is not None:
            extra, more = refine_loss(trainer.model, teacher, batch, generator)
            loss, stats, factor = loss + extra, {**stats, **more}, REFINE_LR * (1 - refined)
        trainer.step(loss, factor)
        for name, value in stats.items():
            if value == value:  # no such cell in the batch gives NaN
                totals.setdefault(name, []).append(value)
        if rank == 0 and time.monotonic() - reported > 30:
            reported = time.monotonic()
            means = {name: round(sum(v) / len(v), 4) for name, v in totals.items()}
            left = minutes + refine_minutes - trainer.trained_s / 60
            line = {
                "step": trainer.step_count,
                "minutes": round(trainer.trained_s / 60, 1),
                "left": round(left, 1),
                **means,
            }
            print(json.dumps(line), flush=True)
            totals = {}
    if rank == 0:
        trainer.use_average()
        save_state(trainer.model, TEACHER)
    if ranks > 1:
        dist.destroy_process_group()


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="what data.py made")] = DEFAULT_DATA,
    checkpoint: Annotated[Path, typer.Option(help="saved every two minutes, resumed when there")] = DEFAULT_CHECKPOINT,
    minutes: Annotated[float, typer.Option(help="of the plain stage, resumed time included")] = 80.0,
    refine_minutes: Annotated[float, typer.Option(help="of the second stage: good frames in few steps")] = 35.0,
    ranks: Annotated[int, typer.Option(help="processes, one thread each")] = 1,
    sequences: Annotated[int, typer.Option(help="sequences a step and rank")] = 4,
    length: Annotated[int, typer.Option(help="frames a sequence")] = 24,
    seed: int = 0,
    lr_muon: float = 0.02,
    lr_adam: float = 2e-3,
    width: int = 128,
    layers: int = 6,
    port: Annotated[int, typer.Option(help="for two ranks or more to meet")] = 29511,
) -> None:
    """Trains until the minutes are over."""
    config = ModelConfig(width=width, layers=layers)
    rest = (ranks, data, checkpoint, minutes, refine_minutes, sequences, length, seed, lr_muon, lr_adam, config, port)
    if ranks == 1:
        run(0, *rest)
    else:
        torch.multiprocessing.spawn(run, args=rest, nprocs=ranks)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    app()
