"""The world model: a block-causal diffusion transformer over tiles, with attention by world coordinates.

Ideas and their sources:
- attention conditioned on relative pose (GTA, Miyato et al. 2024; PRoPE, Li et al. 2025): in the memory layers a part
  of every query and key is rotated (RoPE) by the integer world coordinates of its cell, so "what was seen at this
  cell" is a content-free pattern; a learned bias by age lets the latest observation win;
- score interpolation (CDCD, Dieleman et al. 2022): the mean of p(x0 | x_t) over a tile is a mixture of the simulator's
  distinct tiles, so x0 = softmax(logits) @ codebook, trained by cross-entropy. The likelihood of the tile's own pixels
  is known in closed form (Gaussian noise) and is added to the logits; the network learns the rest;
- teacher forcing with a clean stream (what `commit` writes) and a noisy stream (what `denoise` answers);
- a cache with a quality (Salt, Ge et al. 2026): what was written from frames of few evaluations is marked as such, by
  learned offsets of its keys and values and a bias. Frames that were given are unmarked.

A block's keys and values depend on its own frame and its pose alone. History enters where the noisy frame attends to
the cached frames, in the memory layers; the other layers attend within the frame.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.minigrid import pose, tiles

PATCH = tiles.TILE_PX * tiles.TILE_PX * 3
CELLS = tiles.CELL_COUNT
# onnxruntime rounds differently where a kernel has another shape to deal with: a matrix product of one row, or the
# elements left over after the last full vector register in cos, exp and the like. So that every batch size gives the
# same bits, what belongs to a whole frame is computed as this many equal rows (and tables are looked up).
CONDITION_ROWS = 8
MIN_NOISE = 0.05  # the closed-form likelihood is evaluated at this noise level or above
# A cached frame's evaluations, from which on it is in the next bucket of cache quality; bucket 0 is given frames. The
# last bucket, of three or more, is nothing that students learn from: its marks stay zero.
QUALITY_BOUNDS = (0.5, 1.5, 2.5)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    width: int = 128
    heads: int = 4
    layers: int = 6
    memory_layers: tuple[int, ...] = (0, 2)
    condition_width: int = 64
    mlp_ratio: int = 3
    window: int = 8
    frequencies: tuple[float, ...] = (3.0, 2.1, 1.35, 0.8, 0.4)  # radians per cell, for x and for y

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first dimensions; the others carry content. x [..., hd]; cos, sin [..., pairs]."""
    pairs = cos.shape[-1]
    a, b, rest = torch.split(x, [pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


class LayerConfig(Protocol):
    """What a layer asks of a model's sizes."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def mlp_ratio(self) -> int: ...
    @property
    def condition_width(self) -> int: ...


class Layer(nn.Module):
    """One transformer layer; attention itself is outside, because the two streams attend to different things.

    x [N, tokens, width]; shared by the world models.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, config.mlp_ratio * d, bias=False)
        self.down = nn.Linear(config.mlp_ratio * d, d, bias=False)
        self.modulation = nn.Linear(config.condition_width, 6 * d)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)
        # Without a gain, unit queries and keys can't make sharp attention.
        self.log_gain = nn.Parameter(torch.full((config.heads,), 2.0))

    def modulate(self, condition: Tensor) -> list[Tensor]:
        """Six vectors [N, 1, d] from [N, rows, c]: scale, shift, gate of attention, then of the MLP."""
        return list(self.modulation(F.silu(condition))[:, :1].chunk(6, dim=-1))

    def heads_of(self, x: Tensor, mod: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit queries (times the gain) and unit keys before rotation, and values: [N, H, tokens, hd] each."""
        h = rms_norm(x) * (1 + mod[0]) + mod[1]
        qkv = self.qkv(h).reshape(*x.shape[:2], 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scale = self.head_dim**-0.5  # rms-normalised vectors have norm sqrt(hd)
        q = rms_norm(q) * (scale * torch.exp(self.log_gain)[:, None, None])
        return q, rms_norm(k) * scale, v

    def finish(self, x: Tensor, attended: Tensor, mod: list[Tensor]) -> Tensor:
        """Output projection and MLP; attended [N, H, tokens, hd]."""
        x = x + (1 + mod[2]) * self.out(attended.transpose(1, 2).reshape(x.shape))
        h = rms_norm(x) * (1 + mod[3]) + mod[4]
        result: Tensor = x + (1 + mod[5]) * self.down(F.gelu(self.up(h), approximate="tanh"))
        return result


@dataclass(frozen=True, slots=True)
class Past:
    """What the noisy frames of one batch may attend to, and where they are."""

    heading: Tensor  # [M] int64
    context: list[tuple[Tensor, Tensor]]  # per memory layer: rotated keys, values [M, H, window * 49, hd]
    biases: list[Tensor]  # per memory layer [M, H, 1, window * 49]
    own_angles: tuple[Tensor, Tensor]  # [M, 49, pairs]


class WorldModel(nn.Module):
    codebook: Tensor
    offsets: Tensor
    ego: Tensor
    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, c = config.width, config.condition_width
        book = torch.from_numpy(tiles.codebook().reshape(tiles.TILE_COUNT, PATCH).copy()).float() / 127.5 - 1
        self.register_buffer("codebook", book)
        self.register_buffer("offsets", torch.from_numpy(pose.view_offsets()).float())  # [dir, 49, 2]
        self.register_buffer("ego", torch.from_numpy(pose.view_offsets()[3]).float())  # up is up
        self.register_buffer("frequencies", torch.tensor(config.frequencies))
        self.patch = nn.Linear(PATCH, d)
        self.patch_up = nn.Linear(PATCH, d)
        self.patch_down = nn.Linear(d, d, bias=False)
        self.evidence = nn.Linear(tiles.TILE_COUNT, d, bias=False)
        self.cell = nn.Parameter(torch.randn(CELLS, d) * 0.5)
        self.action = nn.Embedding(pose.ACTION_COUNT + 1, d)
        nn.init.normal_(self.action.weight, std=0.5)
        self.noise_in = nn.Linear(16, c)
        self.noise_out = nn.Linear(c, c)
        self.action_condition = nn.Embedding(pose.ACTION_COUNT + 1, c)
        self.clean_condition = nn.Parameter(torch.randn(1, c))
        self.stack = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        slopes = torch.tensor([0.1, 0.3, 0.6, 1.0, 0.2, 0.4, 0.8, 1.5])[: config.heads]
        ages = torch.arange(config.window).float()
        self.age_bias = nn.Parameter(-slopes[None, :, None] * ages.repeat(len(config.memory_layers), 1, 1))
        self.head = nn.Linear(d, tiles.TILE_COUNT)
        nn.init.zeros_(self.head.weight)
        # What a draw needs that a mean does not. All zero, and then the model is one without them.
        self.lot_in = nn.Linear(tiles.TILE_COUNT, d, bias=False)
        self.lot_gain = nn.Linear(c, tiles.TILE_COUNT)
        memory, marks = len(config.memory_layers), len(QUALITY_BOUNDS)
        self.quality_key = nn.Parameter(torch.zeros(memory, marks, config.heads, config.head_dim))
        self.quality_value = nn.Parameter(torch.zeros(memory, marks, config.heads, config.head_dim))
        self.quality_bias = nn.Parameter(torch.zeros(memory, marks, config.heads))
        for zeroed in (self.lot_in.weight, self.lot_gain.weight, self.lot_gain.bias):
            nn.init.zeros_(zeroed)
        self.gate_in = nn.Linear(PATCH, 32)
        self.gate_out = nn.Linear(32, 1)

    def angles(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [..., pairs] of world coordinates [..., 2]."""
        angle = (coordinates[..., None] * self.frequencies).flatten(-2)
        return angle.cos(), angle.sin()

    def patch_embedding(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patch(x) + self.patch_down(F.gelu(self.patch_up(x), approximate="tanh")) + self.cell
        return tokens

    def move_logit(self, x0: Tensor) -> Tensor:
        """Can the agent move ahead? Logit [N] from the tile ahead of clean frames [N, 49, PATCH]."""
        nearby = x0[:, tiles.AHEAD_CELL - 7 : tiles.AHEAD_CELL + 1]  # 8 rows for one, see CONDITION_ROWS
        hidden = F.gelu(self.gate_in(nearby), approximate="tanh")
        logit: Tensor = self.gate_out(hidden)[:, -1, 0]
        return logit

    def encode(self, x0: Tensor, heading: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What a clean frame leaves in the cache: unrotated keys and values of the memory layers, [N, H, 49, hd].

        x0 [N, 49, PATCH]; heading int64 [N].
        """
        x = self.patch_embedding(x0)
        cos, sin = (table[heading] for table in self.angles(self.offsets))
        ego_cos, ego_sin = self.angles(self.ego)
        condition = self.clean_condition[:, None]
        cached: list[tuple[Tensor, Tensor]] = []
        for index in range(self.config.memory_layers[-1] + 1):
            layer = self.stack[index]
            assert isinstance(layer, Layer)
            mod = layer.modulate(condition)
            q, k, v = layer.heads_of(x, mod)
            if index in self.config.memory_layers:
                cached.append((k, v))
                if index == self.config.memory_layers[-1]:
                    break
                c, s = cos[:, None], sin[:, None]
            else:
                c, s = ego_cos, ego_sin
            weights = torch.softmax(rotate(q, c, s) @ rotate(k, c, s).transpose(-1, -2), dim=-1)
            x = layer.finish(x, weights @ v, mod)
        return cached

    def log_likelihood(self, agreement: Tensor, t: Tensor) -> Tensor:
        """log p(x_t | tile) up to a constant: x_t @ tiles [N, 49, TILE_COUNT], [N] -> the same. Zero at t = 1."""
        noise = t.clamp(min=MIN_NOISE)
        signal = (1 - noise)[:, None, None]
        return signal / noise.square()[:, None, None] * (agreement - 0.5 * signal * self.codebook.square().sum(-1))

    def features(self, x: Tensor, t: Tensor, action: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """The last layer's tokens [N, 49, d], normalised, and what the noise itself says to the logits.

        x [N, 49, PATCH]; t [N]; action int64 [N]. At t = 1 the likelihood is silent and the best mean ignores x. A
        model that draws in one evaluation reads its lots there: how each cell's noise leans to each tile.
        """
        agreement = x @ self.codebook.T
        likelihood = self.log_likelihood(agreement, t)
        lots = 0.1 * (agreement - agreement.mean(-1, keepdim=True))
        tokens = self.patch_embedding(x) + self.evidence(torch.softmax(likelihood, dim=-1))
        tokens = tokens + self.lot_in(torch.softmax(3 * lots, dim=-1)) + self.action(action)[:, None]
        steps = torch.arange(1, 9, device=x.device) * torch.pi
        phases = steps * t[:, None, None].expand(-1, CONDITION_ROWS, 1)
        features = torch.cat([phases.cos(), phases.sin()], dim=-1)
        condition = self.noise_out(F.silu(self.noise_in(features))) + self.action_condition(action)[:, None]
        ego_cos, ego_sin = self.angles(self.ego)
        cos, sin = past.own_angles[0][:, None], past.own_angles[1][:, None]
        for index, layer in enumerate(self.stack):
            assert isinstance(layer, Layer)
            mod = layer.modulate(condition)
            q, k, v = layer.heads_of(tokens, mod)
            if index in self.config.memory_layers:
                memory = self.config.memory_layers.index(index)
                keys, values = past.context[memory]
                q = rotate(q, cos, sin)
                own = q @ rotate(k, cos, sin).transpose(-1, -2)
                cached = q @ keys.transpose(-1, -2) + past.biases[memory]
                weights = torch.softmax(torch.cat([cached, own], dim=-1), dim=-1)
                on_past, on_own = torch.split(weights, [weights.shape[-1] - CELLS, CELLS], dim=-1)
                attended = on_past @ values + on_own @ v
            else:
                weights = torch.softmax(
                    rotate(q, ego_cos, ego_sin) @ rotate(k, ego_cos, ego_sin).transpose(-1, -2), dim=-1
                )
                attended = weights @ v
            tokens = layer.finish(tokens, attended, mod)
        gain = self.lot_gain(F.silu(condition))[:, :1]
        return rms_norm(tokens), likelihood + gain * lots

    def denoise(self, x: Tensor, t: Tensor, action: Tensor, past: Past) -> Tensor:
        """Logits [N, 49, TILE_COUNT] of the tiles of noisy frames: x [N, 49, PATCH]; t [N]; action int64 [N]."""
        tokens, heard = self.features(x, t, action, past)
        logits: Tensor = self.head(tokens) + heard
        return logits

    def quality_marks(self, memory: int, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets of keys and of values [B, W, H, hd] and biases [B, W, H] for cache_quality [B, W]."""
        bucket = sum(((quality > bound).to(torch.int64) for bound in QUALITY_BOUNDS), torch.zeros_like(quality).long())
        tables = (self.quality_key[memory], self.quality_value[memory], self.quality_bias[memory])
        key, value, bias = (torch.cat([torch.zeros_like(table[:1]), table])[bucket] for table in tables)
        return key, value, bias

    def mix(self, logits: Tensor) -> Tensor:
        """x0 as a mixture of tiles: [..., TILE_COUNT] -> [..., PATCH]."""
        return torch.softmax(logits, dim=-1) @ self.codebook


def gather_past(model: WorldModel, clean: Tensor, poses: Tensor, chosen: Tensor, keep: Tensor | None = None) -> Past:
    """Teacher forcing over whole sequences: the `window` clean frames before each chosen frame.

    clean [S, T, 49, PATCH]; poses int64 [S, T, 3] relative to the first frame; chosen int64 [M], indices into S * T;
    keep bool [M, window]: context frames that may be attended (last is the latest), all when None.
    """
    config = model.config
    sequences, length, window = clean.shape[0], clean.shape[1], config.window
    count, targets = sequences * length, len(chosen)
    heading = poses[..., 2].reshape(count)
    coordinates = poses[..., None, :2].float() + model.offsets[poses[..., 2]]  # [S, T, 49, 2]
    cos, sin = model.angles(coordinates.reshape(count, CELLS, 2))
    cached = model.encode(clean.reshape(count, CELLS, PATCH), heading)

    before = (chosen % length)[:, None] - window + torch.arange(window)  # [M, window], frame index in the sequence
    valid = before >= 0
    if keep is not None:
        valid = valid & keep
    source = (chosen[:, None] - window + torch.arange(window)).clamp(min=0).flatten()

    def past(x: Tensor) -> Tensor:
        """[S * T, H, 49, hd] -> [M, H, window * 49, hd], oldest first."""
        rows = x.index_select(0, source).reshape(targets, window, config.heads, CELLS, config.head_dim)
        return rows.transpose(1, 2).reshape(targets, config.heads, window * CELLS, config.head_dim)

    context = [(past(rotate(k, cos[:, None], sin[:, None])), past(v)) for k, v in cached]
    blocked = torch.where(valid, 0.0, -1e9)[:, None, :, None].expand(-1, -1, -1, CELLS)
    biases = []
    for memory in range(len(config.memory_layers)):
        by_slot = model.age_bias[memory].flip(-1)[None, :, :, None]  # the last slot has age 1
        biases.append((blocked + by_slot).reshape(targets, config.heads, 1, window * CELLS))
    return Past(heading[chosen], context, biases, (cos[chosen], sin[chosen]))
