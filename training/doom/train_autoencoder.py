"""Trains the decoder's convolutional part; resumes by itself. `python -m training.doom.train_autoencoder --help`.

The linear part, and so the latents, stay what latents.py fitted: the world model may be trained before it or after.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from training.doom.autoencoder import Autoencoder
from training.doom.data import DEFAULT_FOLDER
from training.doom.latents import DEFAULT_CHECKPOINT
from training.learner import keep_freed_memory, save_checkpoint

NOISE = 0.3  # most noise that the decoder is shown, in standard deviations of the latents: the world model errs too
app = typer.Typer(add_completion=False)


def loss_of(model: Autoencoder, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Pixels and their edges; frames [N, 64, 80, 3] in -1..1."""
    with torch.no_grad():
        z = model.encode(frames)
    level = NOISE * torch.rand((len(z), 1, 1), generator=generator) ** 2
    apart = model.decode(z + level * torch.randn(z.shape, generator=generator)) - frames
    edges = (apart[:, 1:] - apart[:, :-1]).abs().mean() + (apart[:, :, 1:] - apart[:, :, :-1]).abs().mean()
    pixel = apart.abs().mean()
    psnr = 10 * torch.log10(4 / apart.detach().square().mean((1, 2, 3))).mean()
    return pixel + 0.5 * edges, {"pixel": pixel.item(), "psnr": psnr.item()}


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="what data.py made")] = DEFAULT_FOLDER,
    checkpoint: Annotated[Path, typer.Option(help="what latents.py fitted; saved there")] = DEFAULT_CHECKPOINT,
    steps: Annotated[int, typer.Option(help="in all, resumed ones included")] = 600,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
) -> None:
    """Trains until the steps are done."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(seed)
    state = torch.load(checkpoint, weights_only=True)
    model = Autoencoder()
    model.load_state_dict(state["model"])
    adam = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    done: int = state.get("steps", 0)
    if "adam" in state:
        adam.load_state_dict(state["adam"])
    frames = np.load(data / "frames.npy", mmap_mode="r").reshape(-1, 64, 80, 3)
    rng = np.random.default_rng([seed, done])
    generator = torch.Generator().manual_seed(seed + done)
    reported, totals, began = time.monotonic(), dict[str, float](), done
    for step in range(done, steps):
        chosen = np.sort(rng.integers(len(frames), size=batch))
        loss, figures = loss_of(model, torch.from_numpy(frames[chosen]).float() / 127.5 - 1, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * min(1.0, max(0.01, (1 - step / steps) / 0.7))
        adam.step()
        adam.zero_grad(set_to_none=True)
        totals = {name: totals.get(name, 0.0) + value for name, value in figures.items()}
        if (step + 1) % 100 == 0 or step + 1 == steps:
            each_s = (time.monotonic() - reported) / (step + 1 - began)
            left = {"left_s": round(each_s * (steps - step - 1))}
            print(
                json.dumps({"step": step + 1, **left, **{n: v / (step + 1 - began) for n, v in totals.items()}}),
                flush=True,
            )
            reported, totals, began = time.monotonic(), {}, step + 1
            state = {"model": model.state_dict(), "adam": adam.state_dict(), "steps": step + 1}
            save_checkpoint(state, checkpoint)


if __name__ == "__main__":
    app()
