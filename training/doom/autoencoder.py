"""The autoencoder: a frame, 64 x 80 x 3, is 8 x 10 x 24 latents; the frames of a chunk lie side by side in channels.

The encoder is linear: the first 24 principal components of 8 x 8 patches, whitened. The decoder is their transpose plus
what a convolutional net makes of the latents of patches around, taken in the components' orthogonal complement alone.
So encode(decode(z)) = z by construction, but for clipping and rounding: frames that are decoded, shown and encoded
again, as the engine does with each chunk, do not drift.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.doom.world import FRAMES, HEIGHT, WIDTH

SIDE = 8
PIXELS = SIDE * SIDE * 3
ROWS, COLUMNS, CHANNELS = HEIGHT // SIDE, WIDTH // SIDE, 24
LATENT_SHAPE = (ROWS, COLUMNS, FRAMES * CHANNELS)


def to_patches(frames: Tensor) -> Tensor:
    """[N, 64, 80, 3] -> [N, 80, 192]."""
    x = frames.reshape(-1, ROWS, SIDE, COLUMNS, SIDE, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, ROWS * COLUMNS, PIXELS)


def to_frames(patches: Tensor) -> Tensor:
    """[N, 80, 192] -> [N, 64, 80, 3]."""
    x = patches.reshape(-1, ROWS, COLUMNS, SIDE, SIDE, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, HEIGHT, WIDTH, 3)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.two.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.two(F.silu(self.one(F.silu(x))))
        return result


class Autoencoder(nn.Module):
    """`encode` and `decode` single frames in -1..1."""

    mean: Tensor
    basis: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(PIXELS))
        self.register_buffer("basis", torch.zeros(PIXELS, CHANNELS))  # orthonormal columns
        self.register_buffer("spread", torch.ones(CHANNELS))  # standard deviation along each
        self.enter = nn.Conv2d(CHANNELS, 96, 3, padding=1)
        self.coarse = nn.Sequential(Residual(96), Residual(96))
        self.rise = nn.Conv2d(96, 192, 1)
        self.fine = nn.Sequential(Residual(48), Residual(48), nn.SiLU())
        self.leave = nn.Conv2d(48, 48, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def fit(self, frames: Tensor) -> None:
        """Principal components of the patches of frames [N, 64, 80, 3] in -1..1."""
        patches = to_patches(frames).reshape(-1, PIXELS).double()
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        first = values.argsort(descending=True)[:CHANNELS]
        basis = vectors[:, first]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # one of two signs, whatever the solver's
        self.mean.copy_(patches.mean(0))
        self.basis.copy_(basis)
        self.spread.copy_(values[first].sqrt())

    def encode(self, frames: Tensor) -> Tensor:
        """[N, 64, 80, 3] -> [N, 80, 24]."""
        return (to_patches(frames) - self.mean) @ (self.basis / self.spread)

    def decode(self, latents: Tensor) -> Tensor:
        """[N, 80, 24] -> [N, 64, 80, 3]."""
        plain = (latents * self.spread) @ self.basis.T + self.mean
        x = latents.reshape(-1, ROWS, COLUMNS, CHANNELS).permute(0, 3, 1, 2)
        x = F.pixel_shuffle(self.rise(self.coarse(self.enter(x))), 2)
        x = F.pixel_shuffle(self.leave(self.fine(x)), 4)  # [N, 3, 64, 80]
        detail = to_patches(x.permute(0, 2, 3, 1))
        return to_frames(plain + detail - (detail @ self.basis) @ self.basis.T)


class Encode(nn.Module):
    """encode.onnx: frames [B, 4, 64, 80, 3] in -1..1 -> latents [B, 8, 10, 96]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        z = self.autoencoder.encode(frames.reshape(-1, HEIGHT, WIDTH, 3))
        return z.reshape(-1, FRAMES, ROWS, COLUMNS, CHANNELS).permute(0, 2, 3, 1, 4).reshape(-1, *LATENT_SHAPE)


class Decode(nn.Module):
    """decode.onnx: latents [B, 8, 10, 96] -> frames [B, 4, 64, 80, 3], -1..1 but for overshoot."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        z = latents.reshape(-1, ROWS, COLUMNS, FRAMES, CHANNELS).permute(0, 3, 1, 2, 4)
        x = self.autoencoder.decode(z.reshape(-1, ROWS * COLUMNS, CHANNELS))
        return x.reshape(-1, FRAMES, HEIGHT, WIDTH, 3)


def load_autoencoder(checkpoint: Path) -> Autoencoder:
    model = Autoencoder()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return model.eval().requires_grad_(False)
