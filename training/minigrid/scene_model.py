"""The scene model: draws a first view from noise and the words of a prompt.

A small diffusion transformer over the 49 tiles of a view, beside the world model and made of its layers. A text
encoder (each word sees the two before it, so that a colour binds to its noun, and then all words) leaves keys and
values that every layer of the denoiser attends to next to the cells. As in the world model the network answers with
logits over the codebook, and the closed-form likelihood of a tile's own pixels is added.

The answer itself is drawn: each cell's tile by the Gumbel trick, with the chance that the logits give it. The drawn
randomness is the input's own: the part of a tile's noise that is orthogonal to all tiles says nothing about them. The
mean over tiles would be the better answer for an ODE, but a scene has no history to hold on to, and renoising a mean
again and again settles on what is likeliest, which is an empty room.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.minigrid import pose, tiles
from training.minigrid.graphs import to_frames, to_patches
from training.minigrid.model import CELLS, CONDITION_ROWS, MIN_NOISE, PATCH, Layer, ModelConfig, rms_norm, rotate
from training.minigrid.vocabulary import TOKENS, WORDS

_DIRECTIONS = 64  # of a tile's noise that are read; TILE_COUNT would do, full vector registers keep bits


@dataclass(frozen=True, slots=True)
class SceneConfig:
    width: int = 96
    heads: int = 4
    layers: int = 5
    condition_width: int = 32
    mlp_ratio: int = 3
    frequencies: tuple[float, ...] = (3.0, 2.1, 1.35, 0.8, 0.4)  # radians per cell, for x and for y

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def layer_config(self) -> ModelConfig:
        return ModelConfig(
            width=self.width, heads=self.heads, condition_width=self.condition_width, mlp_ratio=self.mlp_ratio
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class TextEncoder(nn.Module):
    """Word ids to one vector a word, behind a vector that stands for no word."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.word = nn.Embedding(len(WORDS) + 1, d)
        self.none = nn.Parameter(torch.randn(1, 1, d) * 0.5)
        self.place = nn.Parameter(torch.randn(TOKENS + 1, d) * 0.3)
        self.near = nn.Linear(3 * d, d, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.log_gain = nn.Parameter(torch.full((config.heads,), 1.0))
        nn.init.normal_(self.word.weight, std=0.7)
        nn.init.zeros_(self.out.weight)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [N, T] -> vectors [N, T + 1, d] and which may be attended to, bool [N, T + 1]."""
        count, length = tokens.shape
        words = self.word(tokens)
        known = torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1) > 0
        none = self.none.expand(count, -1, -1)
        x = torch.cat([none, words], dim=1) + self.place
        before = torch.cat([none, none, none, words], dim=1)  # the two words before each
        near = torch.cat([before[:, :-2], before[:, 1:-1], before[:, 2:]], dim=-1)
        x = x + F.gelu(self.near(near), approximate="tanh")
        qkv = self.qkv(rms_norm(x)).reshape(count, length + 1, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scale = self.head_dim**-0.5
        scores = (rms_norm(q) * scale * torch.exp(self.log_gain)[:, None, None]) @ (rms_norm(k) * scale).transpose(
            -1, -2
        )
        weights = torch.softmax(scores + blocked(known), dim=-1)
        attended = (weights @ v).transpose(1, 2).reshape(x.shape)
        return x + self.out(attended), known


def blocked(known: Tensor) -> Tensor:
    """Bias of attention to each key: bool [N, T] -> [N, 1, 1, T]."""
    return torch.where(known, 0.0, -1e9)[:, None, None]


class SceneModel(nn.Module):
    codebook: Tensor
    ego: Tensor
    frequencies: Tensor

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.config = config
        d, c = config.width, config.condition_width
        book = torch.from_numpy(tiles.codebook().reshape(tiles.TILE_COUNT, PATCH).copy()).float() / 127.5 - 1
        self.register_buffer("codebook", book)
        self.register_buffer("ego", torch.from_numpy(pose.view_offsets()[3]).float())  # up is up
        self.register_buffer("frequencies", torch.tensor(config.frequencies))
        self.text = TextEncoder(config)
        self.patch = nn.Linear(PATCH, d)
        self.evidence = nn.Linear(tiles.TILE_COUNT, d, bias=False)
        self.cell = nn.Parameter(torch.randn(CELLS, d) * 0.5)
        self.noise_in = nn.Linear(16, c)
        self.noise_out = nn.Linear(c, c)
        self.stack = nn.ModuleList([Layer(config.layer_config()) for _ in range(config.layers)])
        self.of_text = nn.ModuleList([nn.Linear(d, 2 * d, bias=False) for _ in range(config.layers)])
        self.head = nn.Linear(d, tiles.TILE_COUNT)
        nn.init.zeros_(self.head.weight)

    def log_likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(x_t | tile) up to a constant: [N, 49, PATCH], [N] -> [N, 49, TILE_COUNT]. Zero at t = 1."""
        noise = t.clamp(min=MIN_NOISE)
        signal = (1 - noise)[:, None, None]
        agreement = x @ self.codebook.T - 0.5 * signal * self.codebook.square().sum(-1)
        return signal / noise.square()[:, None, None] * agreement

    def prior(self, x: Tensor, t: Tensor, likelihood: Tensor, tokens: Tensor) -> Tensor:
        """What the network adds to the likelihood: logits [N, 49, TILE_COUNT].

        x [N, 49, PATCH]; t [N]; likelihood of x; tokens int64 [N, T].
        """
        config = self.config
        text, known = self.text(tokens)
        text, mask = rms_norm(text), blocked(known)
        h = self.patch(x) + self.evidence(torch.softmax(likelihood, dim=-1)) + self.cell
        steps = torch.arange(1, 9, device=x.device) * torch.pi
        phases = steps * t[:, None, None].expand(-1, CONDITION_ROWS, 1)
        features = torch.cat([phases.cos(), phases.sin()], dim=-1)
        condition = self.noise_out(F.silu(self.noise_in(features)))
        angle = (self.ego[..., None] * self.frequencies).flatten(-2)
        cos, sin = angle.cos(), angle.sin()
        scale = config.head_dim**-0.5
        for layer, of_text in zip(self.stack, self.of_text, strict=True):
            assert isinstance(layer, Layer)
            mod = layer.modulate(condition)
            q, k, v = layer.heads_of(h, mod)
            pair = of_text(text).reshape(*text.shape[:2], 2, config.heads, config.head_dim).permute(2, 0, 3, 1, 4)
            text_k, text_v = pair.unbind(0)
            on_words = q @ (rms_norm(text_k) * scale).transpose(-1, -2) + mask
            on_cells = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2)
            weights = torch.softmax(torch.cat([on_words, on_cells], dim=-1), dim=-1)
            to_words, to_cells = torch.split(weights, [text.shape[1], CELLS], dim=-1)
            h = layer.finish(h, to_words @ text_v + to_cells @ v, mod)
        logits: Tensor = self.head(rms_norm(h))
        return logits


def off_codebook(codebook: Tensor) -> Tensor:
    """Orthonormal directions of a tile's pixels that no tile has a part in: [PATCH, _DIRECTIONS]."""
    basis = torch.linalg.svd(codebook.double()).Vh
    directions: Tensor = basis[tiles.TILE_COUNT : tiles.TILE_COUNT + _DIRECTIONS].T.float().contiguous()
    return directions


def impossible_tiles() -> Tensor:
    """bool [49, TILE_COUNT]: the agent is where the view is seen from, and nothing else is."""
    agent = torch.zeros(tiles.TILE_COUNT, dtype=torch.bool)
    agent[tiles.AGENT : tiles.DARK] = True
    impossible = agent.repeat(CELLS, 1)
    impossible[tiles.AGENT_CELL] = ~agent
    return impossible


class Scene(nn.Module):
    """The graph `scene` of the package. `guidance`: how far past the prompt's own logits, from those without it."""

    directions: Tensor
    impossible: Tensor

    def __init__(self, model: SceneModel, guidance: float) -> None:
        super().__init__()
        self.model = model
        self.guidance = guidance
        self.register_buffer("directions", off_codebook(model.codebook))
        self.register_buffer("impossible", impossible_tiles())

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """x0 [B, 1, 56, 56, 3] of noisy views: x [B, 1, 56, 56, 3]; t [B]; tokens int64 [B, T]."""
        model, patches = self.model, to_patches(x)
        likelihood = model.log_likelihood(patches, t)
        asked = model.prior(patches, t, likelihood, tokens)
        free = model.prior(patches, t, likelihood, torch.zeros_like(tokens))
        logits = torch.where(self.impossible, -1e9, free + self.guidance * (asked - free) + likelihood)
        normal = patches @ self.directions / t[:, None, None]  # [B, 49, 64], independent of the tiles
        uniform = (0.5 * (1 + torch.erf(normal * 0.5**0.5))).clamp(1e-6, 1 - 1e-6)
        gumbel = -torch.log(-torch.log(uniform))[..., : tiles.TILE_COUNT]
        return to_frames(model.codebook[(logits + gumbel).argmax(-1)])
