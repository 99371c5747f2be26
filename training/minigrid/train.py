"""Trains the teacher on a CPU; resumes by itself. `python -m training.minigrid.train --help`.

The moving average ends up in `training/minigrid/weights/teacher.npz`; `training.minigrid.distill` goes on from there.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor

from training.minigrid.batches import batches
from training.minigrid.losses import plain_loss, refine_loss
from training.minigrid.model import ModelConfig, WorldModel
from training.minigrid.optim import Muon
from training.minigrid.states import TEACHER, save_state

DEFAULT_DATA = Path("out/training/minigrid/train.npz")
DEFAULT_CHECKPOINT = Path("out/training/minigrid/model.pt")
app = typer.Typer(add_completion=False)


def keep_freed_memory() -> None:
    """Tells glibc to keep big freed blocks: page faults of fresh activations cost a tenth of the step."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, (1 << 31) - 1)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 64 << 20)  # M_TOP_PAD


class Trainer:
    """Model, moving average and optimisers of one rank; `rank` differs only in the data it sees."""

    def __init__(self, config: ModelConfig, *, lr_muon: float, lr_adam: float, rank: int, ranks: int) -> None:
        self.model = WorldModel(config)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        matrices = [p for name, p in self.model.stack.named_parameters() if p.ndim == 2 and "modulation" not in name]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.model.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices, lr=lr_muon)
        self.adam = torch.optim.AdamW(rest, lr=lr_adam, betas=(0.9, 0.98), weight_decay=0.0)
        self.base_lr = {id(self.muon): lr_muon, id(self.adam): lr_adam}
        self.rank, self.ranks = rank, ranks
        self.step_count = 0
        self.trained_s = 0.0
        self.teacher: WorldModel | None = None  # of the second stage

    def state(self) -> dict[str, Any]:
        return {
            "config": self.model.config.to_dict(),
            "model": self.model.state_dict(),
            "average": self.average,
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step_count": self.step_count,
            "trained_s": self.trained_s,
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step_count, self.trained_s = state["step_count"], state["trained_s"]
        if state.get("teacher") is not None:
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
        self.muon.state.clear()
        self.adam.state.clear()

    def step(self, loss: Tensor, lr_factor: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.ranks > 1:
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            flat /= self.ranks
            for g, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
                g.copy_(part.reshape(g.shape))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = self.base_lr[id(optimizer)] * lr_factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        decay = min(0.998, 1 - 1 / (1 + self.step_count / 10))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 1 - decay)


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
    trainer = Trainer(config, lr_muon=lr_muon, lr_adam=lr_adam, rank=rank, ranks=ranks)
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
            part = checkpoint.with_suffix(".part")
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(trainer.state(), part)
            part.replace(checkpoint)
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
