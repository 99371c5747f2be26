"""The two graphs of the package, `denoise` and `commit`, around one trained model.

Layout of a block, [layers, 2, heads, 50, head_dim] with layers = the model's memory layers: rows 0..48 are the 49
cells' keys (before rotation) and values. Row 49 is never attended: in layer 0's keys, head 0, it holds the block's
state (x, y, dir, can_move_ahead), small exact integers, absolute since the session's first frame, so that slots need
not be consecutive. All else in row 49 is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.minigrid import pose, tiles
from training.minigrid.model import CELLS, Past, WorldModel

TOKENS = CELLS + 1
STATE_SIZE = 4


def to_patches(x: Tensor) -> Tensor:
    """[B, 1, 56, 56, 3] -> [B, 49, 192]."""
    side, px = tiles.VIEW_CELLS, tiles.TILE_PX
    x = x.reshape(x.shape[0], side, px, side, px, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], CELLS, px * px * 3)


def to_frames(patches: Tensor) -> Tensor:
    """[B, 49, 192] -> [B, 1, 56, 56, 3]."""
    side, px = tiles.VIEW_CELLS, tiles.TILE_PX
    x = patches.reshape(patches.shape[0], side, side, px, px, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], 1, side * px, side * px, 3)


def next_pose(state: Tensor, action: Tensor) -> Tensor:
    """Pose [B, 3] after `action` [B] from the state [B, 4] of the block before; equals `pose.step_pose`."""
    x, y, heading, can_move = state.unbind(-1)
    turn = torch.where(action == pose.LEFT, 3.0, torch.where(action == pose.RIGHT, 1.0, 0.0))
    moves = torch.where((action == pose.FORWARD) & (can_move > 0.5), 1.0, 0.0)
    dx = torch.where(heading == 0, 1.0, torch.where(heading == 2, -1.0, 0.0))
    dy = torch.where(heading == 1, 1.0, torch.where(heading == 3, -1.0, 0.0))
    turned = heading + turn
    return torch.stack([x + moves * dx, y + moves * dy, torch.where(turned > 3.5, turned - 4, turned)], dim=-1)


def latest_state(gathered: Tensor, position: Tensor) -> Tensor:
    """State [B, 4] of slot position-1 of `gathered` [B, W, L, 2, H, 50, hd]; zeros when there is no context."""
    states = gathered[:, :, 0, 0, 0, CELLS, :STATE_SIZE]  # [B, W, 4]
    last = (position - 1).clamp(min=0)
    index = last[:, None, None].expand(-1, 1, STATE_SIZE)
    state = torch.gather(states, 1, index)[:, 0]
    return torch.where((position > 0)[:, None], state, torch.zeros_like(state))


def past_of(
    model: WorldModel,
    pool: Tensor,
    table: Tensor,
    key_mask: Tensor,
    position: Tensor,
    action: Tensor,
    quality: Tensor,
) -> Past:
    """What chunks after `action` [B] see: the blocks of `table` [B, W], made with `quality` [B, W] evaluations."""
    config = model.config
    gathered = pool[table]  # [B, W, L, 2, H, 50, hd]
    # A masked slot may hold anything, NaN too: it is replaced, not multiplied, before it meets arithmetic.
    gathered = torch.where(key_mask[:, :, None, None, None, None, None], gathered, torch.zeros((), dtype=pool.dtype))
    here = next_pose(latest_state(gathered, position), action)  # [B, 3]
    heading = here[:, 2].to(torch.int64)
    own_cos, own_sin = (angles[heading] for angles in model.angles(model.offsets))  # [B, 49, pairs]
    states = gathered[:, :, 0, 0, 0, CELLS, :STATE_SIZE]  # [B, W, 4]
    # Coordinates relative to the agent keep the angles small however far it has walked.
    shift = states[..., :2] - here[:, None, :2]
    cells = shift[:, :, None] + model.offsets[states[..., 2].to(torch.int64)]  # [B, W, 49, 2]
    cos, sin = (part[:, None] for part in model.angles(cells))  # [B, 1, W, 49, pairs]
    batch, window = table.shape
    context = []
    for memory in range(len(config.memory_layers)):
        mark_key, mark_value, _ = model.quality_marks(memory, quality)
        keys = gathered[:, :, memory, 0, :, :CELLS] + mark_key[:, :, :, None]  # [B, W, H, 49, hd]
        values = gathered[:, :, memory, 1, :, :CELLS] + mark_value[:, :, :, None]
        turned = _rotate(keys.transpose(1, 2), cos, sin).reshape(batch, config.heads, window * CELLS, config.head_dim)
        seen = values.transpose(1, 2).reshape(batch, config.heads, window * CELLS, config.head_dim)
        context.append((turned, seen))
    return Past(heading, context, biases_of(model, key_mask, position, quality), (own_cos, own_sin))


def biases_of(model: WorldModel, key_mask: Tensor, position: Tensor, quality: Tensor) -> list[Tensor]:
    """What each memory layer adds to the logits of cached keys: by age, by quality, and -1e9 where masked."""
    batch, window = key_mask.shape
    config = model.config
    ages = (position[:, None] - torch.arange(window)[None]).clamp(1, config.window) - 1  # [B, W]
    biases = []
    for memory in range(len(config.memory_layers)):
        mark = model.quality_marks(memory, quality)[2]
        by_slot = (model.age_bias[memory].T[ages] + mark).transpose(1, 2)  # [B, H, W]
        bias = torch.where(key_mask[:, None], by_slot, torch.full((), -1e9))
        bias = bias[:, :, :, None].expand(-1, -1, -1, CELLS)
        biases.append(bias.reshape(batch, config.heads, 1, window * CELLS))
    return biases


class Denoise(nn.Module):
    """x0 of noisy chunks given the blocks in their tables."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        action: Tensor,
        position: Tensor,
        pool: Tensor,
        table: Tensor,
        key_mask: Tensor,
        cache_quality: Tensor,
    ) -> Tensor:
        past = past_of(self.model, pool, table, key_mask, position, action, cache_quality)
        return to_frames(self.model.mix(self.model.denoise(to_patches(x), t, action, past)))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`model.rotate` with slices, which export to simpler graphs than split."""
    pairs = cos.shape[-1]
    a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


class Commit(nn.Module):
    """Writes the blocks of clean chunks into the pool."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def block(
        self, x0: Tensor, action: Tensor, position: Tensor, pool: Tensor, table: Tensor, key_mask: Tensor
    ) -> Tensor:
        """Blocks [B, L, 2, H, 50, hd] of the chunks x0 [B, 1, 56, 56, 3] that `action` [B] led to."""
        model = self.model
        last = (position - 1).clamp(min=0)[:, None]
        block_id = torch.gather(table, 1, last)[:, 0]
        seen = torch.gather(key_mask, 1, last)[:, 0] & (position > 0)
        # Of the context only the latest state is read; whole blocks are gathered first, or the graph slices the pool.
        state = pool[block_id][:, 0, 0, 0, CELLS, :STATE_SIZE]
        state = torch.where(seen[:, None], state, torch.zeros((), dtype=x0.dtype))
        here = next_pose(state, action)
        patches = to_patches(x0)
        can_move = torch.where(model.move_logit(patches) > 0, 1.0, 0.0)
        blocks = []
        for memory, (keys, values) in enumerate(model.encode(patches, here[:, 2].to(torch.int64))):
            spare = torch.zeros_like(keys[:, :, :1])  # [B, H, 1, hd]
            row = spare
            if memory == 0:
                packed = torch.cat([here, can_move[:, None]], dim=-1)[:, None, None]  # [B, 1, 1, 4]
                first = torch.cat([packed, spare[:, :1, :, STATE_SIZE:]], dim=-1)
                row = torch.cat([first, spare[:, 1:]], dim=1)
            blocks.append(torch.stack([torch.cat([keys, row], dim=2), torch.cat([values, spare], dim=2)], dim=1))
        return torch.stack(blocks, dim=1)

    def forward(
        self,
        x0: Tensor,
        action: Tensor,
        position: Tensor,
        pool: Tensor,
        table: Tensor,
        key_mask: Tensor,
        slot: Tensor,
        cache_quality: Tensor,  # noqa: ARG002  (a block depends on its own frame alone: the reader marks it)
    ) -> Tensor:
        return torch.index_put(pool, (slot,), self.block(x0, action, position, pool, table, key_mask))
