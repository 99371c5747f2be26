"""A transformer on the cells of a maze, trained by either of two objectives.

A path is told cell by cell: the side by which it leaves a cell, or that it does not (`labels`). Both objectives share
this, every layer and every parameter.

- `mlm_u` (Nolte et al. 2024, "Transformers Can Navigate Mazes With Multi-Step Prediction"): labels are hidden at a
  rate drawn uniformly from 0 to 1, and all hidden ones are predicted at once from all that is left, forwards and
  backwards, however many steps away. Every cell attends to every cell.
- `next_token`: the path is a sequence; from the maze and the path so far, the next step. Cells of the maze attend to
  one another; those of the path to the maze and to the path before them. All steps of a path are learnt at once
  (teacher forcing).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.mazes.mazes import LARGEST

LABELS = 5  # nowhere, up, right, down, left
HIDDEN = LABELS  # the label that is not told
NO_TARGET = -1


@dataclass(frozen=True, slots=True)
class MazeConfig:
    width: int = 96
    heads: int = 6
    layers: int = 6
    hidden: int = 288


class Layer(nn.Module):
    """Attention by content and by how far apart two cells are, and a perceptron."""

    def __init__(self, config: MazeConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.gain = nn.Parameter(torch.full((config.heads, 1, 1), 3.0))
        # By displacement: rows apart and columns apart, each from 1 - LARGEST to LARGEST - 1.
        self.apart = nn.Parameter(torch.zeros((2 * LARGEST - 1) ** 2, config.heads))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, tokens, width] -> queries, keys, values [batch, heads, tokens, width / heads]."""
        q, k, v = self.qkv(_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return _norm(q) * self.gain, _norm(k), v

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """x: what is added to; bias: [1 or batch, heads, queries, keys]."""
        weights = (q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5 + bias).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(functional.relu(self.up(_norm(x))).square())


class MazeModel(nn.Module):
    """Mazes of up to LARGEST by LARGEST cells, all of a batch of one size."""

    def __init__(self, config: MazeConfig | None = None) -> None:
        super().__init__()
        self.config = config or MazeConfig()
        width = self.config.width
        self.sides = nn.Embedding(16, width)
        self.row = nn.Embedding(LARGEST, width)
        self.column = nn.Embedding(LARGEST, width)
        self.mark = nn.Embedding(4, width)
        self.label = nn.Embedding(LABELS + 1, width)
        for table in (self.sides, self.row, self.column, self.mark, self.label):
            nn.init.normal_(table.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(self.config) for _ in range(self.config.layers))
        self.head = nn.Linear(width, LABELS, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, open_sides: Tensor, marks: Tensor, labels: Tensor) -> Tensor:
        """All [batch, rows, columns] int64 -> [batch, rows, columns, LABELS]: the logits of each cell's label, where
        those that are not HIDDEN are told.
        """
        x = self._read(open_sides, marks) + self.label(labels.flatten(1))
        apart = self._apart(open_sides)
        for layer in self.layers:
            x = layer(x, *layer.project(x), layer.apart[apart].permute(2, 0, 1).unsqueeze(0))
        return self.head(_norm(x)).unflatten(1, open_sides.shape[1:])  # type: ignore[no-any-return]

    def follow(self, open_sides: Tensor, marks: Tensor, path: Tensor, entered: Tensor) -> Tensor:
        """Mazes as in `forward`; path [batch, steps]: cells; entered [batch, steps]: the label of the cell before,
        NOWHERE for the first -> [batch, steps, LABELS]: logits of the label of each, from the path so far.
        """
        read = self._read(open_sides, marks)
        x = read + self.label.weight[HIDDEN]
        tokens = read.gather(1, path.unsqueeze(-1).expand(-1, -1, read.shape[-1])) + self.label(entered)
        apart, cells, steps = self._apart(open_sides), read.shape[1], path.shape[1]
        later = torch.full((steps, steps), float("-inf")).triu(1)
        for layer in self.layers:
            table = layer.apart[apart]  # [cells, cells, heads]
            q, k, v = layer.project(x)
            x = layer(x, q, k, v, table.permute(2, 0, 1).unsqueeze(0))
            to_cells = functional.embedding(path, table.flatten(1)).unflatten(-1, (cells, -1))
            to_path = to_cells.gather(2, path[:, None, :, None].expand(-1, steps, -1, to_cells.shape[-1]))
            bias = torch.cat([to_cells.permute(0, 3, 1, 2), to_path.permute(0, 3, 1, 2) + later], -1)
            own_q, own_k, own_v = layer.project(tokens)
            tokens = layer(tokens, own_q, torch.cat([k, own_k], 2), torch.cat([v, own_v], 2), bias)
        return self.head(_norm(tokens))  # type: ignore[no-any-return]

    def _read(self, open_sides: Tensor, marks: Tensor) -> Tensor:
        rows, columns = open_sides.shape[1:]
        place = self.row.weight[:rows].unsqueeze(1) + self.column.weight[:columns].unsqueeze(0)
        return self.sides(open_sides.flatten(1)) + self.mark(marks.flatten(1)) + place.flatten(0, 1)  # type: ignore[no-any-return]

    def _apart(self, open_sides: Tensor) -> Tensor:
        """[cells, cells]: the displacement of each two, as a row of a layer's table."""
        rows, columns = open_sides.shape[1:]
        row = torch.arange(rows).unsqueeze(1).expand(rows, columns).flatten()
        column = torch.arange(columns).unsqueeze(0).expand(rows, columns).flatten()
        down = row.unsqueeze(0) - row.unsqueeze(1) + LARGEST - 1
        right = column.unsqueeze(0) - column.unsqueeze(1) + LARGEST - 1
        return down * (2 * LARGEST - 1) + right


def mlm_u_loss(logits: Tensor, labels: Tensor, hidden: Tensor) -> Tensor:
    """Mean cross-entropy of the hidden labels."""
    return functional.cross_entropy(logits[hidden], labels[hidden])


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next steps, where there is one (not NO_TARGET)."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
