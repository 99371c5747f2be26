"""Fits the linear part of the autoencoder and encodes the recorded frames once. `python -m training.doom.latents`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from training.doom.autoencoder import LATENT_SHAPE, Autoencoder, Encode
from training.doom.data import DEFAULT_FOLDER

DEFAULT_CHECKPOINT = Path("out/training/doom/autoencoder.pt")
FIT_FRAMES = 2000
app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="what data.py made")] = DEFAULT_FOLDER,
    checkpoint: Annotated[
        Path, typer.Option(help="of the autoencoder; fitted here when not there")
    ] = DEFAULT_CHECKPOINT,
) -> None:
    """Writes float16 latents [walks, chunks, 8, 10, 96]."""
    torch.set_num_threads(1)
    frames = np.load(folder / "frames.npy", mmap_mode="r")
    model = Autoencoder()
    if not checkpoint.exists():
        rng = np.random.default_rng(0)
        walk = np.sort(rng.integers(len(frames), size=FIT_FRAMES))
        chunk = rng.integers(frames.shape[1], size=FIT_FRAMES)
        model.fit(torch.from_numpy(frames[walk, chunk, -1]).float() / 127.5 - 1)
        torch.save({"model": model.state_dict()}, checkpoint)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    encode = Encode(model.eval().requires_grad_(False))
    part = folder / "latents.part.npy"
    latents = np.lib.format.open_memmap(part, "w+", np.float16, (*frames.shape[:2], *LATENT_SHAPE))
    started = time.monotonic()
    for k in range(len(frames)):
        latents[k] = encode(torch.from_numpy(frames[k]).float() / 127.5 - 1).numpy().astype(np.float16)
        if (k + 1) % 100 == 0:
            left = (time.monotonic() - started) / (k + 1) * (len(frames) - k - 1)
            typer.echo(f"{k + 1}/{len(frames)} walks, {left:.0f} s left")
    latents.flush()
    part.replace(folder / "latents.npy")


if __name__ == "__main__":
    app()
