"""A small net that tells places by their pictures; its features measure how alike two pictures look.

`python -m training.doom.judge` trains it on real frames alone, in minutes. It stands in for LPIPS and FVD, whose nets
were trained on photographs that we do not ship.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from training.doom import place, train_place
from training.doom.data import DEFAULT_FOLDER

DEFAULT_CHECKPOINT = Path("out/training/doom/judge.pt")
BATCH = 64
Floats = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
app = typer.Typer(add_completion=False)


class Judge(nn.Module):
    """Frames [N, 3, 64, 80] in -1..1 -> x, y, cos, sin [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, 32, 5, stride=2, padding=2),
                nn.Conv2d(32, 48, 3, stride=2, padding=1),
                nn.Conv2d(48, 64, 3, stride=2, padding=1),
                nn.Conv2d(64, 96, 3, stride=2, padding=1),
            ]
        )
        self.hidden = nn.Linear(96 * 20, 128)
        self.last = nn.Linear(128, 4)

    def features(self, x: Tensor) -> list[Tensor]:
        """What each layer sees."""
        seen = []
        for layer in self.layers:
            x = F.silu(layer(x))
            seen.append(x)
        return seen

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(F.silu(self.hidden(self.features(x)[-1].flatten(1))))
        return answer


def load_judge(checkpoint: Path) -> Judge:
    model = Judge()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model.eval().requires_grad_(False)


def to_judge(frames: UInt8) -> Tensor:
    """uint8 [N, 64, 80, 3] -> what `Judge` takes."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def distances(judge: Judge, one: UInt8, other: UInt8) -> Floats:
    """LPIPS-like distance of frames [N, 64, 80, 3], pair by pair: [N].

    Squared distance of features of unit length, averaged over places and summed over layers.
    """
    total = np.zeros(len(one))
    for first in range(0, len(one), 256):
        rows = slice(first, first + 256)
        pairs = zip(judge.features(to_judge(one[rows])), judge.features(to_judge(other[rows])), strict=True)
        for a, b in pairs:
            apart = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
            total[rows] += apart.double().numpy()
    return total


def descriptions(judge: Judge, chunks: UInt8) -> Floats:
    """What a chunk [N, F, 64, 80, 3] looks like and how it moves: the last layer's mean, and its change, [N, 192]."""
    count, frames = chunks.shape[:2]
    pooled = []
    for first in range(0, count, 64):
        flat = chunks[first : first + 64].reshape(-1, *chunks.shape[2:])
        pooled.append(judge.features(to_judge(flat))[-1].mean((2, 3)).double().numpy())
    each = np.concatenate(pooled).reshape(count, frames, -1)
    return np.concatenate([each.mean(1), each[:, -1] - each[:, 0]], axis=1)


def frechet(one: Floats, other: Floats) -> float:
    """Frechet distance of two Gaussians fitted to descriptions [N, d]: what FVD is on other features."""
    apart = one.mean(0) - other.mean(0)
    a, b = np.cov(one.T), np.cov(other.T)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    return float(apart @ apart + np.trace(a) + np.trace(b) - 2 * cross)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="what data.py made")] = DEFAULT_FOLDER,
    checkpoint: Annotated[Path, typer.Option(help="saved at the end; kept when there")] = DEFAULT_CHECKPOINT,
    steps: int = 600,
    seed: int = 0,
) -> None:
    """Trains the judge, and prints how well it finds held-out places, in map units."""
    if checkpoint.exists():
        typer.echo(f"{checkpoint} is there")
        return
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    frames = np.load(data / "frames.npy", mmap_mode="r")
    poses = place.beliefs(torch.from_numpy(np.load(data / "poses.npy")))
    train = len(poses) - train_place.HELD_OUT
    model = Judge()
    adam = torch.optim.AdamW(model.parameters(), weight_decay=0.01)

    def errors(walk: npt.NDArray[np.int64]) -> Tensor:
        chunk, frame = rng.integers(poses.shape[1], size=len(walk)), rng.integers(poses.shape[2], size=len(walk))
        where = poses[walk, chunk, frame]
        turn = where[:, 2:] * (2 * torch.pi)
        answer = model(to_judge(frames[walk, chunk, frame]))
        target = torch.cat([where[:, :2] / 3, turn.cos(), turn.sin()], dim=-1)
        apart: Tensor = answer - target
        return apart

    for step in range(steps):
        loss = errors(rng.integers(train, size=BATCH)).abs().mean()
        train_place.optimise(model, loss, adam, train_place.rate(step, steps), 2e-3)
        if (step + 1) % 100 == 0:
            with torch.no_grad():
                apart = errors(rng.integers(train, len(poses), size=256))[:, :2].norm(dim=1).median()
            typer.echo(json.dumps({"step": step + 1, "loss": loss.item(), "p50": 3 * place.UNIT * apart.item()}))
    torch.save(model.state_dict(), checkpoint)


if __name__ == "__main__":
    app()
