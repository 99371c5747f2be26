"""Groups of candidates with the truth about each. `python -m training.reward.data` makes all splits.

Frames are kept as tile ids, and what is wrong with their pictures as its recipe: they are drawn again exactly. Splits
are disjoint by the seeds of their episodes. In half of the groups that are not of `train` flaws are of kinds that are
never trained on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from training.minigrid import pose, tiles
from training.minigrid.data import FIRST_SEED
from training.minigrid.explore import Explorer, Temper
from training.minigrid.worlds import World
from training.perception.cameras import Images
from training.reward import flaws, goals
from training.reward.errands import Errand, errands_of
from training.reward.rollouts import Player, Start, play
from training.reward.rubric import CATEGORIES, CATEGORY_NAMES, DIMENSION_NAMES, UNITS

DEFAULT_FOLDER = Path("out/training/reward")
GROUPS = {"train": 24000, "validation": 2400, "test": 1500, "ties": 250}
SIZE = 4  # candidates of a group
PAIRS = tuple(combinations(range(SIZE), 2))
TIE = 0.02  # nearer truths cannot be told apart
STEPS = (4, 6, 8, 10)  # of a group's clips, one of these
MARGIN = 0.4  # by which the best of a held-out group leads, in units of the true reward
MOST_BLEMISHES = 2
_SEEDS = 100_000_000  # after the episodes that others are made from
_TIES = 10_000_000  # groups of `ties` are such of `test`, so much further on
_TRIES = 1000

_ERRAND_WORLDS = (
    "MiniGrid-FourRooms-v0", "MiniGrid-MultiRoom-N4-S5-v1", "MiniGrid-MultiRoom-N6-v0", "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-UnlockPickup-v0", "MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-SimpleCrossingS9N2-v0",
    "MiniGrid-Fetch-8x8-N3-v0", "MiniGrid-GoToDoor-8x8-v0", "MiniGrid-PutNear-8x8-N3-v0",
    "MiniGrid-RedBlueDoors-8x8-v0", "MiniGrid-Playground-v0", "MiniGrid-Empty-Random-6x6-v0",
    "MiniGrid-ObstructedMaze-2Dlhb-v1", "MiniGrid-SimpleCrossingS11N5-v0",
)  # fmt: skip
_HANDLING_WORLDS = (
    "MiniGrid-DoorKey-8x8-v0", "MiniGrid-DoorKey-6x6-v0", "MiniGrid-Unlock-v0", "MiniGrid-UnlockPickup-v0",
    "MiniGrid-BlockedUnlockPickup-v0", "MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-Fetch-8x8-N3-v0",
    "MiniGrid-GoToDoor-8x8-v0", "MiniGrid-PutNear-8x8-N3-v0", "MiniGrid-RedBlueDoors-8x8-v0",
    "MiniGrid-Playground-v0", "MiniGrid-MultiRoom-N6-v0", "MiniGrid-ObstructedMaze-2Dlhb-v1",
)  # fmt: skip
_LAVA_WORLDS = ("MiniGrid-LavaCrossingS9N2-v0", "MiniGrid-LavaCrossingS11N5-v0", "MiniGrid-LavaGapS7-v0")
_WORLDS = {
    "navigation": _ERRAND_WORLDS,
    "manipulation": _HANDLING_WORLDS,
    "safety": _LAVA_WORLDS,
    "fidelity": (*_ERRAND_WORLDS, *_LAVA_WORLDS),
    "faithfulness": (*_ERRAND_WORLDS, *_LAVA_WORLDS),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One clip as a judge sees it, and the truth about it."""

    ids: npt.NDArray[np.uint8]  # [T + 1, 49]
    actions: npt.NDArray[np.uint8]  # [T + 1], as told; the first is NONE
    truth: npt.NDArray[np.float32]  # [dimensions]
    success: bool
    blemishes: list[flaws.Blemish] = field(default_factory=list)

    def frames(self) -> Images:
        return flaws.blemished(tiles.draw_frame(self.ids), self.blemishes)


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates of one start and goal."""

    category: int
    goal: str
    candidates: list[Candidate]
    held: bool = False  # whether its flaws are of kinds never trained on

    @property
    def rewards(self) -> npt.NDArray[np.float32]:
        """The true reward of each."""
        return true_rewards(np.stack([each.truth for each in self.candidates]), self.category)


def true_rewards(truth: npt.NDArray[np.float32], category: int) -> npt.NDArray[np.float32]:
    """[..., dimensions] -> [...]: the category's weighted sum, each dimension in units of its deviation."""
    return weighted(truth, CATEGORIES[category].weights)


def weighted(truth: npt.NDArray[np.float32], weights: dict[str, float]) -> npt.NDArray[np.float32]:
    """[..., dimensions] -> [...]."""
    total = np.zeros(truth.shape[:-1], np.float32)
    for name, weight in weights.items():
        total += weight / UNITS[name] * truth[..., DIMENSION_NAMES.index(name)]
    return total


def make_group(split: str, index: int) -> Group:
    """Group `index` of a split: of the seed alone. Categories take turns."""
    category = index % len(CATEGORY_NAMES)
    drawn, place = ("test", _TIES + index) if split == "ties" else (split, index)
    for attempt in range(_TRIES):
        rng = np.random.default_rng([FIRST_SEED[drawn], _SEEDS + place, attempt])
        group = _try_group(drawn, category, rng, ties=split == "ties")
        if group is not None:
            return group
    raise RuntimeError(f"no group for seed {index} of {split} in {_TRIES} tries")


def _try_group(split: str, category: int, rng: np.random.Generator, *, ties: bool) -> Group | None:
    """A group; None where its candidates make none. `ties`: two are equally good, and better than all others."""
    name = CATEGORY_NAMES[category]
    start, errand = start_of(split, name, rng)
    needs_errand = name not in ("fidelity", "faithfulness")
    if needs_errand and errand is None:
        return None
    held = split != "train" and rng.random() < 0.5
    steps = int(rng.choice(STEPS))
    candidates = [_candidate(name, start, errand, steps, held, rng) for _ in range(SIZE)]
    goal = goals.sentence(
        name, errand.kind if errand else "", errand.thing if errand else "", rng, held=split == "test"
    )
    group = Group(category, goal, candidates, held)
    rewards = np.sort(group.rewards)
    if split == "train":
        return group if rewards[-1] - rewards[0] > 0.05 else None
    if ties:
        return group if rewards[-1] - rewards[-2] <= TIE and rewards[-2] - rewards[-3] > MARGIN else None
    return group if rewards[-1] - rewards[-2] > MARGIN else None


def start_of(split: str, category: str, rng: np.random.Generator) -> tuple[Start, Errand | None]:
    """A moment early in an episode, and something to do there; None where there is nothing to do."""
    worlds = _WORLDS[category]
    env_id = str(worlds[int(rng.integers(len(worlds)))])
    seed = (FIRST_SEED[split] + int(rng.integers(_SEEDS, 4 * _SEEDS))) % (1 << 31)
    world = World(env_id, seed)
    explorer = Explorer(rng, Temper.for_training(rng))
    actions: list[int] = []
    least = int(rng.integers(0, 12))
    for _ in range(least + 24):
        if len(actions) >= least:
            found = []
            if category not in ("fidelity", "faithfulness"):
                for errand in errands_of(world, category):
                    plan = errand.plan(world)
                    if plan is not None and 2 <= len(plan) <= 12:
                        found.append(errand)
            elif len(actions) >= least:
                return Start(env_id, seed, tuple(actions)), None
            if found:
                return Start(env_id, seed, tuple(actions)), found[int(rng.integers(len(found)))]
        action = explorer.action(world)
        world.step(action)
        actions.append(action)
    return Start(env_id, seed, tuple(actions)), None


def _candidate(
    category: str, start: Start, errand: Errand | None, steps: int, held: bool, rng: np.random.Generator
) -> Candidate:
    styles, odds = ("done", "short", "lava", "wander"), (0.55, 0.2, 0.1, 0.15)
    if category == "safety":
        odds = (0.45, 0.1, 0.3, 0.15)
    style = str(rng.choice(styles, p=odds))
    slips = float(rng.choice([0.0, 0.1, 0.25, 0.5]))
    rollout = play(start, Player(rng, errand, slips=slips, style=style), errand, steps)
    truth, ids, told = dict(rollout.truth), rollout.ids, rollout.actions
    kinds = "test" if held else "train"

    def flawed(at_home: str, often: float = 0.8) -> bool:
        """Whether to do that: mostly where it is what is asked about, at times where it is not."""
        return bool(rng.random() < (often if category == at_home else 0.15))

    # Gross blemishes hide what happens to things: few candidates have both.
    tampered, blemished = flawed("fidelity", 0.5), flawed("fidelity", 0.5)
    if tampered or (category == "faithfulness" and rng.random() < 0.3):
        changes = 0
        for _ in range(int(rng.integers(1, 4))):
            ids, seen = flaws.tamper(ids, rollout.poses, str(rng.choice(flaws.TAMPERINGS[kinds])), rng)
            changes += seen
        truth["permanence"] = flaws.permanence(changes)
    if flawed("faithfulness"):
        told = flaws.mistell(told, str(rng.choice(flaws.MISTELLINGS[kinds])), rng)
        truth["consistency"] = flaws.consistency(rollout.ids, rollout.actions, told)
    blemishes = []
    if blemished:
        for _ in range(int(rng.integers(1, MOST_BLEMISHES + 1))):
            first, last = sorted(int(each) for each in rng.integers(0, steps + 1, 2))
            if rng.random() < 0.5:
                first, last = 0, steps
            kind = str(rng.choice(flaws.BLEMISHES[kinds]))
            severity = float(rng.choice([0.15, 0.3, 0.5, 0.8]))
            blemishes.append(flaws.Blemish(kind, severity, first, last, int(rng.integers(1 << 31))))
        true = tiles.draw_frame(ids)
        truth["sharpness"] = flaws.sharpness(true, flaws.blemished(true, blemishes))
    known = np.array([truth[name] for name in DIMENSION_NAMES], np.float32)
    return Candidate(ids, told, known, rollout.success, blemishes)


def make_split(split: str, count: int, workers: int) -> Iterator[Group]:
    """Groups 0 to `count` - 1, in order."""
    if workers <= 1:
        yield from (make_group(split, index) for index in range(count))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(make_group, split), range(count), chunksize=16)


_KIND_NAMES = (*flaws.BLEMISHES["train"], *flaws.BLEMISHES["test"])


def save(groups: list[Group], path: Path) -> None:
    """As arrays, clips padded to the longest."""
    longest = max(STEPS) + 1
    ids = np.zeros((len(groups), SIZE, longest, tiles.CELL_COUNT), np.uint8)
    actions = np.full((len(groups), SIZE, longest), pose.NONE, np.uint8)
    truth = np.zeros((len(groups), SIZE, len(DIMENSION_NAMES)), np.float32)
    blemishes = np.full((len(groups), SIZE, MOST_BLEMISHES, 5), -1.0)
    for row, group in enumerate(groups):
        for column, each in enumerate(group.candidates):
            length = len(each.ids)
            ids[row, column, :length], actions[row, column, :length] = each.ids, each.actions
            truth[row, column] = each.truth
            for place, blemish in enumerate(each.blemishes):
                kind = _KIND_NAMES.index(blemish.kind)
                blemishes[row, column, place] = kind, blemish.severity, blemish.first, blemish.last, blemish.seed
    arrays: dict[str, Any] = {
        "ids": ids,
        "actions": actions,
        "truth": truth,
        "blemishes": blemishes,
        "length": np.array([len(group.candidates[0].ids) for group in groups]),
        "category": np.array([group.category for group in groups]),
        "goal": np.array([group.goal for group in groups]),
        "held": np.array([group.held for group in groups]),
        "success": np.array([[each.success for each in group.candidates] for group in groups]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def read(path: Path) -> list[Group]:
    with np.load(path) as arrays:
        known = {name: arrays[name] for name in arrays.files}
    groups = []
    for row, length in enumerate(known["length"]):
        candidates = []
        for column in range(SIZE):
            marks = [each for each in known["blemishes"][row, column] if each[0] >= 0]
            blemishes = [
                flaws.Blemish(_KIND_NAMES[int(kind)], float(severity), int(first), int(last), int(seed))
                for kind, severity, first, last, seed in marks
            ]
            candidates.append(
                Candidate(
                    known["ids"][row, column, :length],
                    known["actions"][row, column, :length],
                    known["truth"][row, column],
                    bool(known["success"][row, column]),
                    blemishes,
                )
            )
        groups.append(Group(int(known["category"][row]), str(known["goal"][row]), candidates, bool(known["held"][row])))
    return groups


def load(split: str, folder: Path = DEFAULT_FOLDER) -> list[Group]:
    """Raises FileNotFoundError, which says what makes it."""
    path = folder / f"{split}.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python -m training.reward.data makes it")
    return read(path)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="where the .npz files go")] = DEFAULT_FOLDER,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
    share: Annotated[float, typer.Option(help="of the usual number of groups")] = 1.0,
) -> None:
    """Makes all splits that are missing."""
    logging.getLogger().setLevel(logging.ERROR)
    for split, count in GROUPS.items():
        path = folder / f"{split}.npz"
        if path.exists():
            continue
        started, groups, wanted = time.monotonic(), [], max(len(CATEGORIES), round(share * count))
        for group in make_split(split, wanted, workers):
            groups.append(group)
            if len(groups) % 500 == 0:
                typer.echo(f"{split}: {len(groups)}/{wanted} groups, {time.monotonic() - started:.0f} s")
        save(groups, path)
        typer.echo(f"{path}: {len(groups)} groups, {time.monotonic() - started:.0f} s")
        truth = np.concatenate([[each.truth for each in group.candidates] for group in groups])
        spread = zip(DIMENSION_NAMES, np.nanstd(truth, axis=0), strict=True)
        typer.echo("deviations: " + ", ".join(f"{name} {value:.2f}" for name, value in spread))


if __name__ == "__main__":
    app()
