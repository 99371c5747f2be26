"""The world model: a block-causal diffusion transformer over latents, lit by a learnt memory of the map.

Ideas and their sources:
- x-prediction flow matching with a noise level of its own per chunk (Diffusion Forcing, Chen et al. 2024);
- teacher forcing with a clean stream (what `commit` writes) and a noisy stream (what `denoise` answers);
- the map is static, so what is seen is a function of the ray: each column of a frame is told its ray (place, bearing,
  distance from the middle, as in light field networks, Sitzmann et al. 2021), and feature grids (Instant NGP, Mueller
  et al. 2022) with an MLP, which know the map by heart, say what stands there. Turning right round, or coming back
  after minutes, then needs no context at all;
- context (the pistol, the puffs of its shots, what the start looked like) enters by attention in the memory layers.

A block's keys and values depend on its own chunk and its belief (`place`) alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.doom import world
from training.doom.autoencoder import CHANNELS, COLUMNS, LATENT_SHAPE, ROWS
from training.doom.place import EQUAL_ROWS, REACH, waves
from training.minigrid.model import Layer, rms_norm

TOKENS = ROWS * COLUMNS
PATCH = LATENT_SHAPE[-1]
SEEN = 32  # features of what is seen through one patch of one frame
PLACE_WAVES = (0.35, 0.7, 1.4, 2.8, 5.6, 11.2)  # radians per unit of 100 map units
BEARING_WAVES = (1.0, 2.0, 4.0, 8.0)  # per radian


@dataclass(frozen=True, slots=True)
class ModelConfig:
    width: int = 128
    heads: int = 4
    layers: int = 4
    memory_layers: tuple[int, ...] = (0, 2)
    condition_width: int = 64
    mlp_ratio: int = 3
    window: int = 4
    map_width: int = 384
    map_layers: int = 2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Grid(nn.Module):
    """A table of features over a box, read in between its knots (multilinear). Learns by heart faster than an MLP."""

    def __init__(self, shape: tuple[int, ...], features: int, *, wrap: tuple[bool, ...]) -> None:
        super().__init__()
        self.shape, self.wrap = shape, wrap
        self.table = nn.Parameter(torch.randn(math.prod(shape), features) * 0.1)

    def forward(self, at: Tensor) -> Tensor:
        """at [..., axes] in 0..1 along each axis -> [..., features]. Outside, the edge holds, or it wraps."""
        corners: list[tuple[Tensor, Tensor | None]] = [(torch.zeros((), dtype=torch.int64), None)]
        for axis, (size, wraps) in enumerate(zip(self.shape, self.wrap, strict=True)):
            along = at[..., axis]
            position = (along - along.floor()) * size if wraps else along.clamp(0, 1) * (size - 1)
            low = position.floor()
            part = position - low
            # A NaN is some knot: it spoils its own member by its weights.
            index = low.to(torch.int64).clamp(0, size if wraps else size - 1)
            if wraps:
                ends = (torch.remainder(index, size), torch.remainder(index + 1, size))
            else:
                ends = (index, (index + 1).clamp(max=size - 1))
            corners = [
                (flat * size + end, weight if held is None else held * weight)
                for flat, held in corners
                for end, weight in zip(ends, (1 - part, part), strict=True)
            ]
        total = torch.zeros(())
        for flat, held in corners:
            assert held is not None
            total = total + self.table[flat] * held[..., None]
        return total


class MapMemory(nn.Module):
    """What stands along the rays of frames. Knows the map by heart; `guess` are the latents that it expects."""

    bearings: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        middle = (torch.arange(COLUMNS) - (COLUMNS - 1) / 2) / (COLUMNS / 2)
        self.register_buffer("bearings", -torch.atan(middle) / (2 * torch.pi))  # [10] turns; 90 degrees are in view
        self.place_grid = Grid((64, 64), 16, wrap=(False, False))
        self.ray_grid = Grid((192, 96), 16, wrap=(True, False))
        self.view_grid = Grid((40, 24, 24), 8, wrap=(True, False, False))
        features = 4 * 2 * len(PLACE_WAVES) + 2 * len(BEARING_WAVES) + 4 + 16 + 16 + 8
        d = config.map_width
        self.column = nn.Parameter(torch.randn(COLUMNS, d) * 0.3)
        self.enter = nn.Linear(features, d)
        self.up = nn.ModuleList([nn.Linear(d, d) for _ in range(config.map_layers)])
        self.down = nn.ModuleList([nn.Linear(d, d, bias=False) for _ in range(config.map_layers)])
        for down in self.down:
            assert isinstance(down, nn.Linear)
            nn.init.zeros_(down.weight)
        self.rows = nn.Linear(d, ROWS * SEEN)
        self.guess = nn.Linear(SEEN, CHANNELS)

    def forward(self, poses: Tensor) -> Tensor:
        """x, y, turns of frames [N, F, 3] -> what is seen of each: [N, F, 80, SEEN]."""
        place = poses[..., None, :2].expand(-1, -1, COLUMNS, -1)  # [N, F, 10, 2]
        turns = (poses[..., 2:] + self.bearings)[..., None]  # [N, F, 10, 1]
        bearing = turns * (2 * torch.pi)
        cos, sin = bearing.cos(), bearing.sin()
        x, y = place[..., :1], place[..., 1:]
        along, across = x * cos + y * sin, x * sin - y * cos  # of the ray: where on it, and how far from the middle
        spot = torch.cat([x, y, along, across], dim=-1)
        reach = math.hypot(*REACH)
        box = torch.cat([x / (2 * REACH[0]), y / (2 * REACH[1])], dim=-1) + 0.5
        features = torch.cat(
            [
                waves(spot, PLACE_WAVES),
                waves(bearing, BEARING_WAVES),
                spot / 5,
                4 * self.place_grid(box),
                4 * self.ray_grid(torch.cat([turns, across / (2 * reach) + 0.5], dim=-1)),
                4 * self.view_grid(torch.cat([turns, box], dim=-1)),
            ],
            dim=-1,
        )
        h = self.enter(features) + self.column
        for up, down in zip(self.up, self.down, strict=True):
            h = h + down(F.gelu(up(rms_norm(h)), approximate="tanh"))
        rows = F.silu(self.rows(rms_norm(h))).reshape(*poses.shape[:2], COLUMNS, ROWS, SEEN)
        return rows.transpose(2, 3).reshape(*poses.shape[:2], TOKENS, SEEN)


def of_chunks(frames: Tensor) -> Tensor:
    """What belongs to frames, side by side in channels: [N, F, 80, c] -> [N, 80, F * c]."""
    return frames.transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True)
class Past:
    """What the noisy chunks of one batch may attend to."""

    context: list[tuple[Tensor, Tensor]]  # per memory layer: keys, values [M, H, window * 80, hd]
    biases: list[Tensor]  # per memory layer [M, H, 1, window * 80]


class WorldModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, c = config.width, config.condition_width
        self.map = MapMemory(config)
        self.patch = nn.Linear(PATCH, d)
        self.lit = nn.Linear(world.FRAMES * (SEEN + CHANNELS), d, bias=False)
        self.cell = nn.Parameter(torch.randn(TOKENS, d) * 0.5)
        self.action = nn.Embedding(world.NONE + 1, d)
        nn.init.normal_(self.action.weight, std=0.5)
        self.noise_in = nn.Linear(16, c)
        self.noise_out = nn.Linear(c, c)
        self.action_condition = nn.Embedding(world.NONE + 1, c)
        self.clean_condition = nn.Parameter(torch.randn(1, c))
        self.stack = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        slopes = torch.tensor([0.1, 0.3, 0.6, 1.0, 0.2, 0.4, 0.8, 1.5])[: config.heads]
        ages = torch.arange(config.window).float()
        self.age_bias = nn.Parameter(-slopes[None, :, None] * ages.repeat(len(config.memory_layers), 1, 1))
        self.head = nn.Linear(d, PATCH)
        nn.init.zeros_(self.head.weight)

    def see(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """What chunks at poses [N, FRAMES, 3] may expect: tokens [N, 80, width] and latents [N, 80, 96]."""
        seen = self.map(poses)
        guess = self.map.guess(seen)
        tokens: Tensor = self.lit(of_chunks(torch.cat([seen, guess], dim=-1)))
        return tokens, of_chunks(guess)

    def encode(self, x0: Tensor, seen: Tensor, action: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What clean chunks leave in the cache: keys and values of the memory layers, [N, H, 80, hd].

        x0 [N, 80, 96]; seen [N, 80, width], tokens of `see`; action int64 [N], which led to the chunk.
        """
        x = self.patch(x0) + self.cell + seen
        condition = self.clean_condition[:, None] + self.action_condition(action)[:, None].expand(-1, EQUAL_ROWS, -1)
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
            x = layer.finish(x, torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v, mod)
        return cached

    def denoise(self, x: Tensor, t: Tensor, seen: Tensor, guess: Tensor, action: Tensor, past: Past) -> Tensor:
        """x0 [N, 80, 96] of noisy chunks: x [N, 80, 96]; t [N]; seen and guess as `see` tells; action int64 [N]."""
        tokens = self.patch(x * (1 - 0.5 * t[:, None, None])) + self.cell + seen + self.action(action)[:, None]
        steps = torch.arange(1, 9, device=x.device) * torch.pi
        phases = steps * t[:, None, None].expand(-1, EQUAL_ROWS, 1)
        features = torch.cat([phases.cos(), phases.sin()], dim=-1)
        condition = self.noise_out(F.silu(self.noise_in(features))) + self.action_condition(action)[:, None]
        for index, layer in enumerate(self.stack):
            assert isinstance(layer, Layer)
            mod = layer.modulate(condition)
            q, k, v = layer.heads_of(tokens, mod)
            own = q @ k.transpose(-1, -2)
            if index in self.config.memory_layers:
                memory = self.config.memory_layers.index(index)
                keys, values = past.context[memory]
                cached = q @ keys.transpose(-1, -2) + past.biases[memory]
                weights = torch.softmax(torch.cat([cached, own], dim=-1), dim=-1)
                on_past, on_own = torch.split(weights, [weights.shape[-1] - TOKENS, TOKENS], dim=-1)
                attended = on_past @ values + on_own @ v
            else:
                attended = torch.softmax(own, dim=-1) @ v
            tokens = layer.finish(tokens, attended, mod)
        x0: Tensor = self.head(rms_norm(tokens)) + guess
        return x0


def gather_past(
    model: WorldModel, clean: Tensor, seen: Tensor, actions: Tensor, chosen: Tensor, keep: Tensor | None = None
) -> Past:
    """Teacher forcing over whole sequences: the `window` clean chunks before each chosen chunk.

    clean [S, T, 80, 96]; seen [S, T, 80, width]; actions int64 [S, T]; chosen int64 [M], indices into S * T; keep bool
    [M, window]: context chunks that may be attended (last is the latest), all when None.
    """
    config = model.config
    sequences, length, window = clean.shape[0], clean.shape[1], config.window
    count, targets = sequences * length, len(chosen)
    cached = model.encode(clean.reshape(count, TOKENS, -1), seen.reshape(count, TOKENS, -1), actions.reshape(count))
    before = (chosen % length)[:, None] - window + torch.arange(window)
    valid = before >= 0
    if keep is not None:
        valid = valid & keep
    source = (chosen[:, None] - window + torch.arange(window)).clamp(min=0).flatten()

    def past(x: Tensor) -> Tensor:
        """[S * T, H, 80, hd] -> [M, H, window * 80, hd], oldest first."""
        rows = x.index_select(0, source).reshape(targets, window, config.heads, TOKENS, config.head_dim)
        return rows.transpose(1, 2).reshape(targets, config.heads, window * TOKENS, config.head_dim)

    blocked = torch.where(valid, 0.0, -1e9)[:, None, :, None].expand(-1, -1, -1, TOKENS)
    biases = []
    for memory in range(len(config.memory_layers)):
        by_slot = model.age_bias[memory].flip(-1)[None, :, :, None]  # the last slot has age 1
        biases.append((blocked + by_slot).reshape(targets, config.heads, 1, window * TOKENS))
    return Past([(past(k), past(v)) for k, v in cached], biases)
