"""Whether the judge sees that generated frames drifted: pairs of one clip as the world model imagined it and as the
simulator shows it, where the model shows a thing as what it is not. The judge never saw a generated frame.

What may be invented is no mistake: only cells that follow from what was seen are held to the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from worldtree_reward.domain import Question

from training.minigrid import pose, tiles
from training.minigrid.data import FIRST_SEED
from training.minigrid.determined import determined_cells
from training.minigrid.package import Histories, Package, none_actions
from training.minigrid.rolling import START_COUNT
from training.reward.data import Candidate, start_of
from training.reward.rollouts import Player, Rollout, Start, play
from training.reward.rubric import DIMENSION_NAMES
from training.reward.served import Bench

WORLD = Path("models/minigrid/1")
STEPS, TOGETHER, NFE = 10, 8, 1  # of a clip; clips of a start; evaluations a chunk: what drifts most
STARTS = 300
_SEEDS = 30_000_000  # after those of the other held-out splits
GOAL = "which pictures are drawn best"

Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Past:
    """The frames up to a start, the start's own among them."""

    ids: Ids  # [START_COUNT, 49]
    poses: npt.NDArray[np.int64]  # [START_COUNT, 3]
    actions: npt.NDArray[np.uint8]  # [START_COUNT]

    @staticmethod
    def of(start: Start) -> Past:
        first = 1 - START_COUNT
        world = Start(start.env_id, start.seed, start.actions[:first]).world()
        ids, poses, actions = [world.frame_ids()], [world.pose], [pose.NONE]
        for action in start.actions[first:]:
            world.step(action)
            ids.append(world.frame_ids())
            poses.append(world.pose)
            actions.append(action)
        return Past(np.stack(ids), np.array(poses), np.array(actions, np.uint8))


def dream(package: Package, past: Past, actions: npt.NDArray[np.uint8], *, seed: int) -> npt.NDArray[np.uint8]:
    """Sequences of actions [n, t] imagined from one past -> frames [n, t, height, width, 3]."""
    count = len(actions)
    history = Histories(package, count, seed=seed)
    for k, frame in enumerate(tiles.draw_frame(past.ids)):
        led = none_actions(count) if k == 0 else np.full(count, past.actions[k], np.int64)
        history.observe(np.repeat(frame[None], count, axis=0), led)
    levels, kind = package.schedule(NFE), package.manifest["sampler"]["kind"]
    return np.stack([history.step(each.astype(np.int64), levels=levels, kind=kind) for each in actions.T], axis=1)


def mistakes(past: Past, rollout: Rollout, dreamt: Ids, window: int) -> int:
    """Cells of the world that a dream [t, 49] shows as what they are not."""
    determined, _ = determined_cells(
        np.concatenate([past.ids, rollout.ids[1:]]),
        np.concatenate([past.poses, rollout.poses[1:]]),
        np.concatenate([past.actions, rollout.actions[1:]]),
        start_count=START_COUNT,
        window=window,
    )
    wrong = determined[START_COUNT:] & (dreamt != rollout.ids[1:])
    return len({tuple(cell) for cell in pose.cell_coordinates(rollout.poses[1:])[wrong].tolist()})


@dataclass(frozen=True)
class Shown(Candidate):
    """A clip as somebody else shows it; None: as it is."""

    shown: npt.NDArray[np.uint8] | None = None

    def frames(self) -> npt.NDArray[np.uint8]:
        return super().frames() if self.shown is None else self.shown


def measure_drift(bench: Bench, starts: int = STARTS) -> dict[str, float]:
    """Of clips whose imagination shows something as what it is not: the share in which the judge finds it less
    permanent, and less good as a picture, than what the simulator shows.
    """
    package = Package(WORLD, block_count=TOGETHER * 16)
    rng = np.random.default_rng([FIRST_SEED["test"], _SEEDS])
    nothing = np.zeros(len(DIMENSION_NAMES), np.float32)
    pairs: list[Candidate] = []
    clip_count = 0
    for number in range(starts):
        start, _ = start_of("test", "fidelity", rng)
        if len(start.actions) < START_COUNT - 1:
            continue
        past = Past.of(start)
        rollouts = [play(start, Player(rng, None, slips=0.0, style="wander"), None, STEPS) for _ in range(TOGETHER)]
        frames = dream(package, past, np.stack([each.actions[1:] for each in rollouts]), seed=number)
        ids, _ = tiles.nearest_tile(frames)
        clip_count += len(rollouts)
        for rollout, own, shown in zip(rollouts, ids.astype(np.uint8), frames, strict=True):
            if mistakes(past, rollout, own, package.window):
                known = (rollout.ids, rollout.actions, nothing, False)
                drifted = np.concatenate([tiles.draw_frame(rollout.ids[:1]), shown])
                pairs += [Candidate(*known), Shown(*known, shown=drifted)]
    evidence = bench.evidence([(each, GOAL) for each in pairs])
    place = DIMENSION_NAMES.index("permanence")
    permanence = np.array([each.dimensions[place].mean for each in evidence]).reshape(-1, 2)
    rewards = np.array([bench.judged(each, Question(GOAL, "fidelity")).reward.mean for each in evidence]).reshape(-1, 2)
    return {
        "pairs": float(len(permanence)),
        "of clips": float(clip_count),
        "permanence in order": float((permanence[:, 0] > permanence[:, 1]).mean()),
        "reward in order": float((rewards[:, 0] > rewards[:, 1]).mean()),
    }
