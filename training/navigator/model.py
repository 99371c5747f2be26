"""One transformer that denoises what will be seen and what is done about it together.

Tokens of the past (view, map of what is remembered, words of the goal) look at each other. Tokens of the future (frames
and a chunk of actions, of which some are masked) look at them and at each other, so what is known is gone through once,
however many rounds the future takes (block-wise attention as in Black et al., "pi0: A Vision-Language-Action Flow Model
for General Robot Control", section IV). Masked ones are read off all others: frames off actions, actions off frames.
So one network is a world model (actions known), an inverse model (frames known), a policy (neither known), and any
mixture (AstraNav-World denoises both branches together; here by masking, as in discrete diffusion: Austin et al.,
"Structured Denoising Diffusion Models in Discrete State-Spaces", absorbing states).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.minigrid import pose, tiles
from training.navigator.data import HORIZON, MAP
from training.navigator.missions import MAX_WORDS, WORDS

MASK = tiles.TILE_COUNT  # a cell that is not known yet
ACTION_MASK = pose.ACTION_COUNT
PATCH = 3  # cells a side of a token of the map and of a future frame
SLOTS = PATCH * PATCH
MAP_SIDE = MAP // PATCH
FRAME_SIDE = 3  # tokens a side of a future frame: 9 x 9 cells, of which the last rows and columns are none
FRAME_TOKENS = FRAME_SIDE * FRAME_SIDE
_PADDED = FRAME_SIDE * PATCH


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a policy is made of. `frames`: whether it imagines. `map`: whether it remembers."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 384
    horizon: int = HORIZON
    frames: bool = True
    map: bool = True


SHAPES = {
    "joint": ModelConfig(),
    "action-only": ModelConfig(frames=False),
    "reactive": ModelConfig(frames=False, map=False, horizon=1),
}


def patches(cells: Tensor, side: int) -> Tensor:
    """Cells [..., side * PATCH, side * PATCH] as tokens [..., side * side, SLOTS]."""
    split = cells.unflatten(-1, (side, PATCH)).unflatten(-3, (side, PATCH)).transpose(-3, -2)
    return split.flatten(-4, -3).flatten(-2)


def frame_patches(ids: Tensor) -> Tensor:
    """Frames [..., 49] as tokens [..., FRAME_TOKENS, SLOTS]; cells beyond the frame are unseen ones."""
    view = ids.unflatten(-1, (tiles.VIEW_CELLS, tiles.VIEW_CELLS))
    margin = _PADDED - tiles.VIEW_CELLS
    return patches(F.pad(view, (0, margin, 0, margin), value=tiles.DARK), FRAME_SIDE)


def frame_cells(tokens: Tensor) -> Tensor:
    """What `frame_patches` made back into cells: [..., FRAME_TOKENS, SLOTS, n] -> [..., 49, n]."""
    grid = tokens.unflatten(-2, (PATCH, PATCH)).unflatten(-4, (FRAME_SIDE, FRAME_SIDE)).transpose(-4, -3)
    whole = grid.flatten(-5, -4).flatten(-3, -2)
    return whole[..., : tiles.VIEW_CELLS, : tiles.VIEW_CELLS, :].flatten(-3, -2)


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


KeysValues: TypeAlias = tuple[Tensor, Tensor]  # of a layer's tokens, each [n, heads, tokens, width / heads]


class Layer(nn.Module):
    """Attention, then each token by itself. Logits have a gain a head (see FACTS: QK-norm)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.gain = nn.Parameter(torch.full((config.heads, 1, 1), 2.0))
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, known: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """x [n, tokens, width] -> the same, and what others may look at of it. `known`: what these look at too."""
        q, k, v = self.qkv(rms_norm(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        q, k = rms_norm(q) * self.gain, rms_norm(k)
        own = (k, v)
        if known is not None:
            k, v = torch.cat([known[0], k], dim=2), torch.cat([known[1], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(rms_norm(x)), approximate="tanh"))
        return x, own


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(*shape))


class Policy(nn.Module):
    """Denoises frames and actions that are masked in part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.view, self.view_place = _table(tiles.TILE_COUNT, width), _table(tiles.CELL_COUNT, width)
        self.word, self.word_place = _table(len(WORDS) + 1, width), _table(MAX_WORDS, width)
        self.action, self.action_place = _table(pose.ACTION_COUNT + 1, width), _table(config.horizon, width)
        if config.map or config.frames:
            self.cell = nn.Parameter(0.5 / SLOTS**0.5 * torch.randn(SLOTS, tiles.TILE_COUNT + 1, width))
        if config.map:
            self.map_place = _table(MAP_SIDE**2, width)
        if config.frames:
            self.frame_time, self.frame_place = _table(config.horizon, width), _table(FRAME_TOKENS, width)
            self.frame_head = nn.Linear(width, SLOTS * tiles.TILE_COUNT)
        self.stack = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        self.action_head = nn.Linear(width, pose.ACTION_COUNT)

    def embed_patches(self, tokens: Tensor) -> Tensor:
        """Cells of tokens [n, tokens, SLOTS] -> [n, tokens, width]."""
        offsets = torch.arange(SLOTS, device=tokens.device) * (tiles.TILE_COUNT + 1)
        return F.embedding(tokens + offsets, self.cell.flatten(0, 1)).sum(-2)

    def context(self, view: Tensor, around: Tensor, words: Tensor) -> list[KeysValues]:
        """What is known, looked at once: by layer.

        view int64 [n, 49]; around int64 [n, MAP * MAP], not looked at by a policy without a map; words int64
        [n, MAX_WORDS].
        """
        parts = [self.view[view] + self.view_place, self.word[words] + self.word_place]
        if self.config.map:
            known = self.embed_patches(patches(around.unflatten(-1, (MAP, MAP)), MAP_SIDE))
            parts.append(known + self.map_place)
        x, found = torch.cat(parts, dim=1), []
        for layer in self.stack:
            x, own = layer(x)
            found.append(own)
        return found

    def denoise(self, context: Sequence[KeysValues], actions: Tensor, frames: Tensor | None) -> tuple[Tensor, ...]:
        """Logits of actions [n, horizon, ACTION_COUNT] and of frames' cells [n, horizon, 49, TILE_COUNT].

        actions int64 [n, horizon], masked ones ACTION_MASK; frames int64 [n, horizon, 49], masked cells MASK. A policy
        that does not imagine: of actions only.
        """
        horizon = self.config.horizon
        x = self.action[actions] + self.action_place
        if frames is not None:
            shown = self.embed_patches(frame_patches(frames).flatten(1, 2)).unflatten(1, (horizon, FRAME_TOKENS))
            x = torch.cat([x, (shown + self.frame_time[:, None] + self.frame_place).flatten(1, 2)], dim=1)
        for layer, known in zip(self.stack, context, strict=True):
            x, _ = layer(x, known)
        x = rms_norm(x)
        decided = self.action_head(x[:, :horizon])
        if frames is None:
            return (decided,)
        imagined = self.frame_head(x[:, horizon:]).unflatten(1, (horizon, FRAME_TOKENS))
        return decided, frame_cells(imagined.unflatten(-1, (SLOTS, tiles.TILE_COUNT)))

    def forward(
        self, view: Tensor, around: Tensor, words: Tensor, actions: Tensor, frames: Tensor
    ) -> tuple[Tensor, ...]:
        """Both, for training."""
        return self.denoise(self.context(view, around, words), actions, frames if self.config.frames else None)
