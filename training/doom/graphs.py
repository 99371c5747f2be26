"""The graphs of the package around the trained parts: `denoise` and `commit`.

Layout of a block, [layers, 2, heads, 81, head_dim] with layers = the model's memory layers: rows 0..79 are the chunk's
keys and values. Row 80 is never attended: in layer 0's keys, head 0, it holds the belief of `place` at the chunk's end,
absolute on the map, so that slots need not be consecutive. All else in row 80 is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.doom import place
from training.doom.autoencoder import CHANNELS
from training.doom.model import PATCH, TOKENS, Past, WorldModel

BLOCK_TOKENS = TOKENS + 1
HOME = (0.0,) * place.BELIEF  # the belief of a session without a start


class Parts(nn.Module):
    """All that was trained for the two graphs."""

    def __init__(self, model: WorldModel, odometer: place.Odometer, localiser: place.Localiser) -> None:
        super().__init__()
        self.model, self.odometer, self.localiser = model, odometer, localiser
        self.register_buffer("home", torch.tensor(HOME))

    def belief(self, pool: Tensor, table: Tensor, key_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """The latest block's belief [B, BELIEF], and whether there is one [B] bool."""
        last = (position - 1).clamp(min=0)[:, None]
        block = torch.gather(table, 1, last)[:, 0]
        there = torch.gather(key_mask, 1, last)[:, 0] & (position > 0)
        # Whole blocks are gathered first, or the graph slices the pool.
        belief = pool[block][:, 0, 0, 0, TOKENS, : place.BELIEF]
        assert isinstance(self.home, Tensor)
        return torch.where(there[:, None], belief, self.home), there


class Denoise(nn.Module):
    """x0 of noisy chunks given the blocks in their tables."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(
        self, x: Tensor, t: Tensor, action: Tensor, position: Tensor, pool: Tensor, table: Tensor, key_mask: Tensor
    ) -> Tensor:
        model = self.parts.model
        config = model.config
        belief, _ = self.parts.belief(pool, table, key_mask, position)
        seen, guess = model.see(self.parts.odometer(belief, action))
        gathered = pool[table]  # [B, W, L, 2, H, 81, hd]
        # A masked slot may hold anything, NaN too: it is replaced, not multiplied, before it meets arithmetic.
        shown = key_mask[:, :, None, None, None, None, None]
        gathered = torch.where(shown, gathered, torch.zeros((), dtype=pool.dtype))
        batch, window = table.shape
        ages = (position[:, None] - torch.arange(window)[None]).clamp(1, config.window) - 1  # [B, W]
        context, biases = [], []
        for memory in range(len(config.memory_layers)):
            parts = []
            for part in range(2):
                rows = gathered[:, :, memory, part, :, :TOKENS].transpose(1, 2)  # [B, H, W, 80, hd]
                parts.append(rows.reshape(batch, config.heads, window * TOKENS, config.head_dim))
            context.append((parts[0], parts[1]))
            by_age = model.age_bias[memory].T[ages].transpose(1, 2)  # [B, H, W]
            bias = torch.where(key_mask[:, None], by_age, torch.full((), -1e9))[:, :, :, None].expand(
                -1, -1, -1, TOKENS
            )
            biases.append(bias.reshape(batch, config.heads, 1, window * TOKENS))
        x0 = model.denoise(x.reshape(batch, TOKENS, PATCH), t, seen, guess, action, Past(context, biases))
        return x0.reshape(x.shape)


class Commit(nn.Module):
    """The pool with the blocks of finished chunks written at their slots."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(
        self, x0: Tensor, action: Tensor, position: Tensor, pool: Tensor, table: Tensor, key_mask: Tensor, slot: Tensor
    ) -> Tensor:
        model = self.parts.model
        belief, there = self.parts.belief(pool, table, key_mask, position)
        moved = self.parts.odometer(belief, action)
        poses, after = place.corrected(moved, belief, there, *self.parts.localiser(x0[..., -CHANNELS:]))
        blocks = []
        cached = model.encode(x0.reshape(x0.shape[0], TOKENS, PATCH), model.see(poses)[0], action)
        for memory, (keys, values) in enumerate(cached):
            spare = torch.zeros_like(keys[:, :, :1])  # [B, H, 1, hd]
            row = spare
            if memory == 0:
                first = torch.cat([after[:, None, None], spare[:, :1, :, place.BELIEF :]], dim=-1)
                row = torch.cat([first, spare[:, 1:]], dim=1)
            blocks.append(torch.stack([torch.cat([keys, row], dim=2), torch.cat([values, spare], dim=2)], dim=1))
        block = torch.stack(blocks, dim=1)  # [B, L, 2, H, 81, hd]
        return torch.index_put(pool, (slot,), block)
