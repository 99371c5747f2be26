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
from training.doom.autoencoder import COLUMNS, LATENT_SHAPE, ROWS

UNIT = 100.0
MIDDLE = (640.0, -288.0)
REACH = (4.75, 4.1)  # units; the map lies within plus or minus these
BELIEF = 7
SLIP = 0.04  # standard deviation that a way adds to the place, for each unit of it
CAUTION = 2.0  # the localiser is surer of walks that it was trained on: its deviations are multiplied by this
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
    """Where a chunk was seen from: latents -> poses, and how sure it is. Many walls differ, some look alike."""

    def __init__(self, width: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.first = nn.Conv2d(LATENT_SHAPE[-1], width, 1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, 16, 1)
        self.hidden = nn.Linear(16 * ROWS * COLUMNS, hidden)
        self.more = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 6)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, 8, 10, 96] -> x, y, cos, sin of the last frame, and the deviations of place and heading: [B, 6]."""
        h = F.silu(self.first(latents.permute(0, 3, 1, 2)))
        h = h + F.silu(self.second(h))
        h = F.silu(self.third(h)).flatten(1)[:, None].expand(-1, 1 if self.training else EQUAL_ROWS, -1)
        h = F.gelu(self.hidden(h), approximate="tanh")
        h = h + F.gelu(self.more(h), approximate="tanh")
        place, heading, sure = torch.split(self.last(h)[:, 0], [2, 2, 2], dim=-1)
        return torch.cat([3 * place, heading, 0.005 + F.softplus(sure)], dim=-1)


def corrected(moved: Tensor, before: Tensor, there: Tensor, located: Tensor) -> tuple[Tensor, Tensor]:
    """Poses [B, FRAMES, 3] and belief [B, BELIEF] of a chunk that has been seen.

    moved: where the odometer has it, from the belief `before` [B, BELIEF], where `there` [B] says that there is one;
    located [B, 6]: where the localiser has it. A first chunk is where it looks to be, and stands still.
    """
    turns = torch.atan2(located[:, 3:4], located[:, 2:3]) / (2 * torch.pi)
    way = (moved[:, -1, :2] - before[:, :2]).square().sum(-1, keepdim=True)
    place_doubt = before[:, 5:6].square() + SLIP**2 * way
    turn_doubt = before[:, 6:7].square()
    place_look = (CAUTION * located[:, 4:5]).square()
    turn_look = (CAUTION * located[:, 5:6] / (2 * torch.pi)).square()
    known = there[:, None]
    one = torch.ones_like(place_doubt)
    place_gain = torch.where(known, place_doubt / (place_doubt + place_look), one)
    turn_gain = torch.where(known, turn_doubt / (turn_doubt + turn_look), one)
    from_here = torch.where(known, moved[:, -1], torch.zeros_like(moved[:, -1]))
    off = turns - from_here[:, 2:]
    off = off - (off + 0.5).floor()  # the short way round
    shift = torch.cat([place_gain * (located[:, :2] - from_here[:, :2]), turn_gain * off], dim=-1)
    still = from_here[:, None].expand(-1, world.FRAMES, -1)
    poses = torch.where(known[..., None], moved, still) + shift[:, None]
    doubt = torch.cat([place_gain * place_look, turn_gain * turn_look], dim=-1).sqrt()  # = (1 - gain) * doubt before
    return poses, torch.cat([last_belief(poses), doubt], dim=-1)
