"""Where the walker is: the belief that rides in a block, how an action moves it, and how pictures tell it.

A belief is x, y (units of 100 map units, about one chunk of walking, from the map's middle), the heading in turns
(counter-clockwise from east, 0 to 1), the way of the last frame, dx and dy, and how sure it is: standard deviations of
the place (units) and of the heading (turns). The simulator's poses are used in training alone: in service a belief is
read from the first frames, moved by the actions, and corrected by what later frames look like (a Kalman filter).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.doom import world
from training.doom.autoencoder import CHANNELS, COLUMNS, ROWS

UNIT = 100.0
MIDDLE = (640.0, -288.0)
REACH = (4.75, 4.1)  # units; the map lies within plus or minus these
BELIEF = 7
SLIP = 0.04  # standard deviation that a way adds to the place, for each unit of it
CELL = 0.5  # units, of the grid that the localiser answers on
GRID = (20, 18)  # cells along x and y
BEARINGS = 36  # headings that it tells apart
NEAR = 2.5  # cells or headings: what is farther from the likeliest, or from the belief, is another place
LEAST = (0.08, 0.008)  # units and turns: looks that follow each other err alike, so no look counts as surer than this
TURN_A_FRAME = world.TURN_DEGREES * world.TICS / 360
# onnxruntime rounds a matrix product of one row, and the elements left over after the last full vector register in cos
# and sin, in another way: what belongs to a whole chunk is computed as this many equal rows, for any batch's same bits.
EQUAL_ROWS = 8
FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # radians per unit


def beliefs(poses: Tensor) -> Tensor:
    """The simulator's poses [..., 3] of consecutive frames (last axis but one) -> x, y, turns [..., 3] in our units."""
    middle = torch.tensor(MIDDLE)
    return torch.cat([(poses[..., :2] - middle) / UNIT, poses[..., 2:] / 360], dim=-1)


def waves(x: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """cos and sin of each number at each frequency: [..., n] -> [..., n * 2 * len(frequencies)]."""
    phase = (x[..., None] * torch.tensor(frequencies)).flatten(-2)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def turning(action: Tensor) -> Tensor:
    """Turns a frame, counter-clockwise, of actions int64 [B]: -TURN_A_FRAME, 0 or TURN_A_FRAME."""
    left = (action == world.LEFT) | (action == world.FORWARD_LEFT)
    right = (action == world.RIGHT) | (action == world.FORWARD_RIGHT)
    return torch.where(left, TURN_A_FRAME, 0.0) - torch.where(right, TURN_A_FRAME, 0.0)


class Odometer(nn.Module):
    """The next four poses from a belief and an action. It has learnt the map's walls by walking into them."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        inputs = 2 + 2 * 2 * len(FREQUENCIES) + 2 * 2 + 2 + 2
        self.action = nn.Embedding(world.NONE + 1, width)
        self.first = nn.Linear(inputs, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.last = nn.Linear(width, 2 * world.FRAMES)

    def forward(self, belief: Tensor, action: Tensor) -> Tensor:
        """belief [B, 5 or more], action int64 [B] -> x, y, turns [B, FRAMES, 3]."""
        rows = belief[:, None, :5].expand(-1, 1 if self.training else EQUAL_ROWS, -1)
        place, turns, way = torch.split(rows, [2, 1, 2], dim=-1)
        after = turns + world.FRAMES * turning(action)[:, None, None]
        angles = waves(torch.cat([turns, after], dim=-1), (2 * torch.pi,))
        ahead = torch.cat([(turns * 2 * torch.pi).cos(), (turns * 2 * torch.pi).sin()], dim=-1)
        along = (way * ahead).sum(-1, keepdim=True)
        across = way[..., :1] * ahead[..., 1:] - way[..., 1:] * ahead[..., :1]
        h = torch.cat([place, waves(place, FREQUENCIES), angles, way * 4, along * 4, across * 4], dim=-1)
        h = F.gelu(self.first(h) + self.action(action)[:, None], approximate="tanh")
        h = h + F.gelu(self.second(h), approximate="tanh")
        h = h + F.gelu(self.third(h), approximate="tanh")
        moved = 0.25 * self.last(h)[:, 0].reshape(-1, world.FRAMES, 2)  # a frame's way is up to about 0.25
        steps = torch.arange(1, world.FRAMES + 1, dtype=torch.float32)
        heading = belief[:, 2:3] + turning(action)[:, None] * steps
        # Sums written out: the exporter's cumulative sum is not one kernel on every device.
        x = torch.stack([moved[:, : k + 1].sum(1) for k in range(world.FRAMES)], dim=1) + belief[:, None, :2]
        return torch.cat([x, heading[..., None]], dim=-1)


def last_belief(poses: Tensor) -> Tensor:
    """x, y, turns, dx, dy [B, 5] after a chunk of poses [B, FRAMES, 3]; turns are brought back into 0..1."""
    here = poses[:, -1]
    way = here[:, :2] - poses[:, -2, :2]
    return torch.cat([here[:, :2], here[:, 2:] - here[:, 2:].floor(), way], dim=-1)


class Localiser(nn.Module):
    """Where a frame was seen from: latents -> how likely each cell of the map and each heading is."""

    weight: Tensor

    def __init__(self, width: int = 64, hidden: int = 384) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(CHANNELS))  # of the latents: what weighs more in pixels tells more
        self.first = nn.Conv2d(CHANNELS, width, 1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, 16, 1)
        self.hidden = nn.Linear(16 * ROWS * COLUMNS, hidden)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(hidden, GRID[0] * GRID[1] + BEARINGS)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 8, 10, 24] -> logits of places [B, GRID[0] * GRID[1]], x first, and of headings [B, BEARINGS]."""
        h = F.silu(self.first((latents * self.weight).permute(0, 3, 1, 2)))
        h = h + F.silu(self.second(h))
        h = F.silu(self.third(h)).flatten(1)[:, None].expand(-1, 1 if self.training else EQUAL_ROWS, -1)
        h = self.drop(F.gelu(self.hidden(h), approximate="tanh"))
        places, bearings = torch.split(self.last(h)[:, 0], [GRID[0] * GRID[1], BEARINGS], dim=-1)
        return places, bearings


def cells() -> Tensor:
    """The middles of the grid's cells, x and y in units: [GRID[0] * GRID[1], 2]."""
    x, y = ((torch.arange(size) - (size - 1) / 2) * CELL for size in GRID)
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1).reshape(-1, 2)


def headings() -> Tensor:
    """The headings that the localiser tells apart, in turns: [BEARINGS]."""
    return torch.arange(BEARINGS) / BEARINGS


def short(turns: Tensor) -> Tensor:
    """The short way round: -0.5 to 0.5."""
    return turns - (turns + 0.5).floor()


def moments(weights: Tensor, offsets: Tensor, reach: float, least: float) -> tuple[Tensor, Tensor]:
    """Mean offset [B, d] and mean square deviation [B, 1], at least `least` squared, of what lies within reach.

    weights [B, n] sum to one; offsets [B, d, n] from where one looks. The less weight lies within reach, the less can
    be said: the deviation is divided by it.
    """
    near = torch.where(offsets.abs().amax(1) <= reach, weights, torch.zeros((), dtype=weights.dtype))
    # Sums over the last axis of equal rows: onnxruntime adds in another order where there is one row alone.
    rows = near[:, None].expand(-1, EQUAL_ROWS, -1)
    mass = rows.sum(-1, keepdim=True)  # [B, rows, 1]
    share = rows / (mass + 1e-9)
    means, spread = [], torch.zeros_like(mass)
    for axis in range(offsets.shape[1]):
        along = offsets[:, axis : axis + 1]
        mean = (share * along).sum(-1, keepdim=True)
        spread = spread + (share * (along - mean).square()).sum(-1, keepdim=True)
        means.append(mean[:, 0])
    return torch.cat(means, dim=-1), ((spread + least**2) / (mass.square() + 1e-4))[:, 0]


def corrected(moved: Tensor, before: Tensor, there: Tensor, places: Tensor, bearings: Tensor) -> tuple[Tensor, Tensor]:
    """Poses [B, FRAMES, 3] and belief [B, BELIEF] of a chunk that has been seen.

    moved: where the odometer has it, from the belief `before` [B, BELIEF], where `there` [B] says that there is one;
    places and bearings: what the localiser says of its last frame. A first chunk is where it looks to be, and stands.
    """
    known = there[:, None]
    grid, circle = cells(), headings()
    likely = grid[places.argmax(-1)]
    ahead = circle[bearings.argmax(-1)][:, None]
    here = torch.where(known, moved[:, -1], torch.cat([likely, ahead], dim=-1))  # from where one looks
    shift, place_look = moments(torch.softmax(places, dim=-1), grid.T - here[:, :2, None], NEAR * CELL, LEAST[0])
    off = short(circle - here[:, 2:])[:, None]
    turn, turn_look = moments(torch.softmax(bearings, dim=-1), off, NEAR / BEARINGS, LEAST[1])
    step = (moved[:, -1, :2] - before[:, :2]).square()
    way = step[:, :1] + step[:, 1:]
    place_doubt = before[:, 5:6].square() + SLIP**2 * way
    turn_doubt = before[:, 6:7].square()
    one = torch.ones_like(place_doubt)
    place_gain = torch.where(known, place_doubt / (place_doubt + place_look), one)
    turn_gain = torch.where(known, turn_doubt / (turn_doubt + turn_look), one)
    poses = torch.where(known[..., None], moved, here[:, None].expand(-1, world.FRAMES, -1))
    poses = poses + torch.cat([place_gain * shift, turn_gain * turn], dim=-1)[:, None]
    doubt = torch.cat([place_gain * place_look, turn_gain * turn_look], dim=-1).sqrt()  # = (1 - gain) * doubt before
    return poses, torch.cat([last_belief(poses), doubt], dim=-1)
