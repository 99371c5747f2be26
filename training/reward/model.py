"""The double-layer judge: a trunk that is stepped frame by frame, a router over categories, an adapter for each
dimension, and an MLP that joins their scores (DMoERM, section 3: the outer sparse and the inner dense mixture).

Everything that depends on the past lies in a state of fixed size, so that a chunk costs a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.minigrid import pose, tiles
from training.perception.model import FeaturesHalf, ModelConfig, Summary, TokensHalf
from training.reward.goals import WORD_COUNT
from training.reward.rubric import CATEGORY_NAMES, DIMENSION_NAMES

MIN_DEVIATION, MAX_DEVIATION = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """Widths."""

    width: int = 48  # of a tile's features
    blocks: int = 3
    summary: int = 128
    memory: int = 128  # of the recurrent unit
    goal: int = 32
    dense: int = 128  # of the layer that experts adapt
    rank: int = 8  # of an adapter
    joint: int = 32  # hidden units of the MLP that joins


class Opinion(NamedTuple):
    """Normal beliefs: two are compared by the chance that one draw is greater (Thurstone, case V)."""

    mean: Tensor
    deviation: Tensor


def _each_alike(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of each number, rounded alike wherever it stands.

    onnxruntime takes logarithms by whole vectors, and what is left over at the end one by one, to other last bits: so
    each number fills a vector of its own.
    """
    return function(x.unsqueeze(-1).expand(*x.shape, _VECTOR))[..., 0]


_VECTOR = 16  # floats of the widest registers


def _opinion(raw: Tensor) -> Opinion:
    """[..., 2] -> two of [...]."""
    deviation = _each_alike(nn.functional.softplus, raw[..., 1]) + MIN_DEVIATION
    return Opinion(raw[..., 0], deviation.clamp(max=MAX_DEVIATION))


class Goal(nn.Module):
    """Word ids [n, words] -> [n, goal]: the mean of the words, and of the words with their neighbours."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(WORD_COUNT, config.goal)
        self.pairs = nn.Linear(2 * config.goal, config.goal)
        self.out = nn.Linear(2 * config.goal, config.goal)

    def forward(self, goal: Tensor) -> Tensor:
        there = (goal > 0).unsqueeze(-1).float()
        words = self.words(goal) * there
        count = there.sum(1).clamp(min=1.0)
        pairs = torch.relu(self.pairs(torch.cat([words[:, :-1], words[:, 1:]], dim=-1))) * there[:, :-1]
        known: Tensor = self.out(torch.cat([words.sum(1) / count, pairs.sum(1) / count], dim=-1))
        return known


class Cells(nn.Module):
    """uint8 images [n, 56, 56, 3] -> two of [n, 49, width]: which picture of the world's codebook each cell is nearest
    to, and what is left of it then. Told of symbols and leftovers apart, a judge learns both; from pixels it learnt
    nothing of sharpness in a thousand groups.
    """

    codebook: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        book = torch.from_numpy(tiles.codebook().reshape(tiles.TILE_COUNT, -1)).float() / 255
        self.register_buffer("codebook", book, persistent=False)
        self.picture = nn.Embedding(tiles.TILE_COUNT, width)
        self.left = nn.Linear(_LEFTOVERS, width)
        self.place = nn.Parameter(0.1 * torch.randn(tiles.CELL_COUNT, width))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        side, px = tiles.VIEW_CELLS, tiles.TILE_PX
        cells = images.reshape(-1, side, px, side, px, 3).permute(0, 1, 3, 2, 4, 5).float() / 255
        flat = cells.reshape(-1, tiles.CELL_COUNT, 3 * px**2)
        nearest = (flat @ self.codebook.T - 0.5 * self.codebook.square().sum(1)).argmax(-1)
        left = (flat - self.codebook[nearest]).unflatten(-1, (px**2, 3))
        size, drift = left.abs(), left.mean(-2)
        # Roots, as faint errors are many and gross ones few.
        told = torch.cat([(size.mean(-2) + 1e-6).sqrt(), (size.amax(-2) + 1e-6).sqrt(), 4 * drift], dim=-1)
        return self.picture(nearest), self.left(told) + self.place


_RINGS = 3
CHANGES = 6  # numbers that say what changed: ahead, and in how many cells, against three expectations
_LOUD = 4.0  # what is rare and brief must not drown in what is pooled with it
_LEFTOVERS = 9  # by colour: mean error, greatest error, drift


# What may happen to the view, and which of it each action is told to do.
_MOVES = (pose.LEFT, pose.RIGHT, pose.FORWARD, pose.DONE)
_STAY = 3
_MOVE_OF = tuple(_MOVES.index(action) if action in _MOVES else _STAY for action in range(pose.NONE + 1))


def view_shifts() -> Tensor:
    """[moves, 49, 49]: where a cell of the view after a move lay in the view before it. A row of zeros: it was not in
    view.
    """
    shifts = torch.zeros(len(_MOVES), tiles.CELL_COUNT, tiles.CELL_COUNT)
    before = (0, 0, 3)
    cells = [tuple(cell) for cell in pose.cell_coordinates(np.array([before]))[0].tolist()]
    for move, action in enumerate(_MOVES):
        after = pose.step_pose(before, action, can_move=True)
        for row, cell in enumerate(pose.cell_coordinates(np.array([after]))[0].tolist()):
            if tuple(cell) in cells:
                shifts[move, row, cells.index(tuple(cell))] = 1
    return shifts


def _chosen(moves: Tensor) -> Tensor:
    """[n] -> [n, moves], 1 at each own: a graph of any n can take by it, where an index would keep its n."""
    return (moves.unsqueeze(1) == torch.arange(len(_MOVES))).float()


def view_rings() -> Tensor:
    """[rings, 49]: means over the cells at each distance from the agent, diagonals counting as one."""
    row, column = np.divmod(np.arange(tiles.CELL_COUNT), tiles.VIEW_CELLS)
    away = np.maximum(tiles.VIEW_CELLS - 1 - row, np.abs(column - tiles.VIEW_CELLS // 2))
    rings = np.stack([away == ring for ring in range(1, _RINGS + 1)]).astype(np.float32)
    return torch.from_numpy(rings / rings.sum(1, keepdims=True))


class Trunk(nn.Module):
    """What all experts share."""

    shifts: Tensor
    move_of: Tensor
    rings: Tensor

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        sizes = ModelConfig(
            width=config.width, features_hidden=2 * config.width, blocks=config.blocks, summary=config.summary
        )
        self.cells = Cells(config.width)
        self.register_buffer("shifts", view_shifts(), persistent=False)
        self.register_buffer("move_of", torch.tensor(_MOVE_OF), persistent=False)
        self.before = nn.Linear(config.width, config.width, bias=False)
        self.changes = nn.Linear(3, config.width)
        self.here = nn.Linear(config.width, config.width)
        self.action = nn.Embedding(pose.NONE + 1, config.width)
        self.goal = Goal(config)
        self.aim = nn.Linear(config.goal, config.width)
        self.blocks = nn.ModuleList(
            half for _ in range(config.blocks) for half in (TokensHalf(sizes), FeaturesHalf(sizes))
        )
        self.summary = Summary(sizes)
        self.seek = nn.Linear(config.goal, config.width)
        self.wanted = nn.Parameter(0.1 * torch.randn(config.width))
        self.register_buffer("rings", view_rings(), persistent=False)
        self.outline = nn.Linear(tiles.CELL_COUNT + (_RINGS + 1) * config.width, config.summary)
        self.memory = nn.GRUCell(config.summary, config.memory)
        self.dense = nn.Linear(config.summary + config.memory + CHANGES, config.dense)

    def look(
        self, before: Tensor, pictures: Tensor, leftovers: Tensor, actions: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pictures of two frames and what is left of the second [n, cells, width], the action between them [n], goal
        [n, goal] -> [n, summary], and what changed in numbers [n, CHANGES].

        Where each cell comes from after each move is a matter of geometry and not learnt. What differs is told of the
        move that was told, and of the one that explains the frame best: that differs only where a thing changed.
        """
        came = self.shifts @ before.unsqueeze(1)  # [n, moves, cells, width]
        dark = self.cells.picture.weight[tiles.DARK]

        def seen(there: Tensor) -> Tensor:
            return (there - dark).square().mean(-1).clamp(max=1)

        differs = (pictures.unsqueeze(1) - came).square().mean(-1) * seen(pictures).unsqueeze(1) * seen(came)
        differs = differs * self.shifts.sum(-1) * (actions != pose.NONE).float()[:, None, None]  # [n, moves, cells]
        badness = torch.tanh(differs).sum(-1)
        told = self.move_of[actions]
        # A step may be barred.
        barred = (actions == pose.FORWARD) & (badness[:, _STAY] < (_chosen(told) * badness).sum(1))
        as_told, best = _chosen(torch.where(barred, _STAY, told)), _chosen(badness.argmin(1))
        changes = torch.stack(
            [*((one.unsqueeze(-1) * differs).sum(1) for one in (as_told, best)), differs[:, _STAY]], dim=-1
        )
        moved = (as_told[:, :, None, None] * came).sum(1)
        x = self.before(moved) + self.here(pictures) + leftovers + self.changes(changes)
        x = x + (self.action(actions) + self.aim(goal)).unsqueeze(1)
        wanted = torch.tanh((pictures * self.seek(goal).unsqueeze(1)).mean(-1))  # [n, cells]: what the goal names
        x = x + wanted.unsqueeze(-1) * self.wanted
        for block in self.blocks:
            x = block(x)
        # Told straight, as one cell of 49 is easily lost in their mixtures: how many cells changed (what is ahead may),
        # where the wanted thing is, what is around the agent ring by ring, and what it stands on.
        sizes = torch.tanh(2 * changes)
        ahead = sizes[:, tiles.AHEAD_CELL]
        counts = torch.tanh((sizes.sum(1) - ahead - sizes[:, tiles.AGENT_CELL]) / 2)
        around = (self.rings @ pictures).flatten(1)
        outline = self.outline(torch.cat([wanted, around, moved[:, tiles.AGENT_CELL]], dim=-1))
        return torch.relu(self.summary(x) + outline), _LOUD * torch.cat([ahead, counts], dim=-1)

    def clips(self, frames: Tensor, actions: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Frames uint8 [n, t, height, width, 3], actions [n, t], word ids [n, words] -> features [n, t,
        summary + memory + CHANGES], and the layer that experts adapt [n, t, dense].
        """
        n, t = actions.shape
        pictures, leftovers = self.cells(frames.flatten(0, 1))
        here = pictures.unflatten(0, (n, t))
        before = torch.cat([torch.zeros_like(here[:, :1]), here[:, :-1]], dim=1).flatten(0, 1)
        goal = self.goal(words).repeat_interleave(t, dim=0)
        seen, changes = (
            each.unflatten(0, (n, t)) for each in self.look(before, pictures, leftovers, actions.flatten(), goal)
        )
        memory, kept = seen.new_zeros(n, self.config.memory), []
        for step in range(t):
            memory = self.memory(seen[:, step], memory)
            kept.append(memory)
        features = torch.cat([seen, torch.stack(kept, dim=1), changes], dim=-1)
        return features, self.dense(features)


class Expert(nn.Module):
    """One dimension: an adapter of low rank on the trunk's last layer (LoRA), pooled over time, and its opinion."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.summary + config.memory + CHANGES, config.rank, bias=False)
        self.up = nn.Linear(config.rank, config.dense, bias=False)
        nn.init.zeros_(self.up.weight)
        self.out = nn.Linear(3 * (config.dense + CHANGES), 2)

    def steps(self, features: Tensor, dense: Tensor) -> Tensor:
        """[..., features], [..., dense] -> [..., dense + CHANGES], none of them negative.

        What changed passes straight: read through the layers before, it was not found in a thousand groups.
        """
        adapted = torch.relu(dense + self.up(self.down(features)))
        return torch.cat([adapted, features[..., -CHANGES:]], dim=-1)

    def forward(self, features: Tensor, dense: Tensor) -> Opinion:
        """Of whole clips: [n, t, ...] -> [n]."""
        seen = self.steps(features, dense)
        return self.read(seen.mean(1), seen.amax(1), seen[:, -1])

    def read(self, mean: Tensor, most: Tensor, last: Tensor) -> Opinion:
        """Pooled [n, dense + CHANGES] each -> [n]."""
        return _opinion(self.out(torch.cat([mean, most, last], dim=-1)))


class Router(nn.Module):
    """The outer layer: goal -> logits over the categories and `unseen`."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.goal = Goal(config)
        self.out = nn.Linear(config.goal, len(CATEGORY_NAMES) + 1)

    def forward(self, words: Tensor) -> Tensor:
        known: Tensor = self.out(torch.relu(self.goal(words)))
        return known


class Joint(nn.Module):
    """Scores of all dimensions -> the category's opinion of the whole. One small MLP a category, all as one product.

    `spread`: by how much deviations are wider than was learnt, so that chances come true (`calibration`).
    """

    spread: Tensor

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        count, width = len(CATEGORY_NAMES), 2 * len(DIMENSION_NAMES)
        self.inner = nn.Parameter(torch.randn(count, width, config.joint) / width**0.5)
        self.shift = nn.Parameter(torch.zeros(count, config.joint))
        self.outer = nn.Parameter(torch.randn(count, config.joint, 2) / config.joint**0.5)
        self.straight = nn.Parameter(torch.zeros(count, len(DIMENSION_NAMES)))
        self.register_buffer("spread", torch.ones(()), persistent=False)

    def forward(self, scores: Opinion) -> Opinion:
        """[n, dimensions] each -> [n, categories] each."""
        x = torch.cat([scores.mean, _each_alike(torch.log, scores.deviation)], dim=-1)
        hidden = torch.relu(torch.einsum("nd,cdh->nch", x, self.inner) + self.shift)
        raw = torch.einsum("nch,cho->nco", hidden, self.outer)
        plain = torch.einsum("nd,cd->nc", scores.mean, self.straight)
        mean, deviation = _opinion(torch.stack([raw[..., 0] + plain, raw[..., 1]], dim=-1))
        return Opinion(mean, deviation * self.spread)


class Verdict(NamedTuple):
    """Of clips: dimensions [n, dimensions], whole [n, categories]; either may be None."""

    dimensions: Opinion | None
    whole: Opinion


class DoubleLayer(nn.Module):
    """Trunk, one expert a dimension, joint. The router is trained apart, from goals alone."""

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        config = config or JudgeConfig()
        self.trunk = Trunk(config)
        self.experts = nn.ModuleDict({name: Expert(config) for name in DIMENSION_NAMES})
        self.joint = Joint(config)

    def forward(self, frames: Tensor, actions: Tensor, words: Tensor) -> Verdict:
        features, dense = self.trunk.clips(frames, actions, words)
        opinions = [expert(features, dense) for expert in self.experts.values()]
        scores = Opinion(
            torch.stack([each.mean for each in opinions], dim=1),
            torch.stack([each.deviation for each in opinions], dim=1),
        )
        return Verdict(scores, self.joint(scores))


class OneExpert(nn.Module):
    """A baseline: the router, and one expert a category; no dimensions."""

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        config = config or JudgeConfig()
        self.trunk = Trunk(config)
        self.experts = nn.ModuleDict({name: Expert(config) for name in CATEGORY_NAMES})

    def forward(self, frames: Tensor, actions: Tensor, words: Tensor) -> Verdict:
        features, dense = self.trunk.clips(frames, actions, words)
        opinions = [expert(features, dense) for expert in self.experts.values()]
        return Verdict(
            None,
            Opinion(
                torch.stack([each.mean for each in opinions], dim=1),
                torch.stack([each.deviation for each in opinions], dim=1),
            ),
        )


class Dense(nn.Module):
    """Baselines with one answer for all categories: with `hidden` units before it, or a single head without."""

    def __init__(self, config: JudgeConfig | None = None, *, hidden: int = 0) -> None:
        super().__init__()
        config = config or JudgeConfig()
        self.trunk = Trunk(config)
        width = 3 * (config.dense + CHANGES)
        self.head: nn.Module = nn.Linear(width, 2)
        if hidden:
            self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, frames: Tensor, actions: Tensor, words: Tensor) -> Verdict:
        features, dense = self.trunk.clips(frames, actions, words)
        seen = torch.cat([torch.relu(dense), features[..., -CHANGES:]], dim=-1)
        one = _opinion(self.head(torch.cat([seen.mean(1), seen.amax(1), seen[:, -1]], dim=-1)))
        count = len(CATEGORY_NAMES)
        return Verdict(None, Opinion(*(each.unsqueeze(1).expand(-1, count) for each in one)))
