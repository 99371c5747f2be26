"""The package as the video service serves it: what storage formats and KV policies cost in quality and in bytes.

Sessions are held by the service's own engine in this process, with one block format and one policy, 8 real frames each:

- *determined accuracy* at depths 1 and 8: as in `training.minigrid.evaluate`.
- *loop closure after 30 chunks*: an about-turn, a walk of 13 steps, drawn in the simulator so that no step is blocked,
  an about-turn and the walk back: 30 actions that end where they began. Share of the last generated frame's cells that
  equal the last real frame's. What they show was last seen 15 or more chunks before it comes into view again. The
  loops are those from FIRST_LOOP on: by earlier ones, what `retrieve` compares was chosen.
- *bytes of a session*: the blocks that it holds after those 30 chunks, in its format, pixels apart.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from worldtree_video.catalog import Served, load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind, Storage
from worldtree_video.metrics import VideoMetrics
from worldtree_video.recipe import Recipe

from training.minigrid import pose, tiles
from training.minigrid.data import FIRST_SEED, Episode, pick_environment
from training.minigrid.determined import determined_cells
from training.minigrid.explore import Explorer, Temper
from training.minigrid.worlds import World

START_COUNT = 8
WALK_STEPS = 13
FIRST_LOOP = 64
DEPTHS = (1, 8)
POLICIES = (PolicyKind.SLIDING, PolicyKind.SINK_WINDOW, PolicyKind.RETRIEVE)
_POOL_MIB = 512
_BATCH = 8  # sessions that are made at a time: the engine runs them together
_PIECE = 16  # loops of one setting that are kept together

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Loop:
    """Eight real frames, and a walk from the last of them that ends where it began. `number`: of its split."""

    number: int
    ids: UInt8  # [START_COUNT, 49]
    actions: npt.NDArray[np.int64]  # [START_COUNT]; the action that led to the frame, NONE for the first
    walk: list[int]


class Pieces:
    """What was measured so far, by name and kept in a file, so that a run that is cut short goes on where it was."""

    def __init__(self, file: Path | None, settings: dict[str, Any]) -> None:
        self._file = file
        self._settings = settings
        self._found: dict[str, Any] = {}
        if file is not None and file.exists():
            document = json.loads(file.read_text())
            if document["settings"] != settings:
                raise ValueError(f"{file} holds figures of {document['settings']}, not of {settings}")
            self._found = document["pieces"]

    async def get(self, name: str, measure: Callable[[], Awaitable[list[float]]]) -> list[float]:
        """The numbers of a piece, measured only where they are not known yet."""
        if name not in self._found:
            self._found[name] = await measure()
            if self._file is not None:
                document = {"settings": self._settings, "pieces": self._found}
                unfinished = self._file.with_suffix(".part")  # whole, or not there
                unfinished.write_text(json.dumps(document) + "\n")
                unfinished.replace(self._file)
        found: list[float] = self._found[name]
        return found


def policy_of(kind: PolicyKind, storage: Storage, window: int) -> KvPolicy:
    """A policy as the service fills it in for a client that asks for its kind only."""
    if kind is PolicyKind.SLIDING:
        return KvPolicy(kind, window, storage=storage)
    if kind is PolicyKind.SINK_WINDOW:
        return KvPolicy(kind, window, 1, storage)
    return KvPolicy(kind, window, 1, storage, recent_chunks=window // 2, bank_chunks=64)


def record_loop(split: str, number: int) -> Loop:
    """A loop in the environment of its seed; checked against the simulator."""
    seed = FIRST_SEED[split] + number
    rng = np.random.default_rng([seed, 30])
    world = World(pick_environment(seed), seed % (1 << 31))
    explorer = Explorer(rng, Temper.lively())
    ids = np.zeros((START_COUNT, tiles.CELL_COUNT), np.uint8)
    actions = np.full(START_COUNT, pose.NONE, np.int64)
    for k in range(START_COUNT):
        if k > 0:
            actions[k] = explorer.action(world)
            world.step(int(actions[k]))
        ids[k] = world.frame_ids()
    about = [pose.LEFT, pose.LEFT]
    for action in about:
        world.step(action)
    out: list[int] = []
    for _ in range(WALK_STEPS):
        free = tiles.can_enter(world.ahead)
        turn = int(rng.choice([pose.LEFT, pose.RIGHT]))
        out.append(pose.FORWARD if free and rng.random() < 0.75 else turn)
        world.step(out[-1])
    mirrored = {pose.LEFT: pose.RIGHT, pose.RIGHT: pose.LEFT, pose.FORWARD: pose.FORWARD}
    back = [*about, *(mirrored[action] for action in reversed(out))]
    for action in back:
        world.step(action)
    assert np.array_equal(world.frame_ids(), ids[-1]), f"the walk of seed {seed} does not end where it began"
    return Loop(number, ids, actions, [*about, *out, *back])


@asynccontextmanager
async def serve(repository: Path, name: str) -> AsyncIterator[Served]:
    """The package's engine in this process. Nothing is shared, so that each session costs what it costs alone."""
    settings = VideoSettings(
        models=str(repository),
        pool_mib=_POOL_MIB,
        fp16_pool_mib=_POOL_MIB // 2,
        int8_pool_mib=_POOL_MIB // 2,
        reserve_chunks=0,
        prefix_cache=False,
    )
    catalog = load_catalog(settings, VideoMetrics(CollectorRegistry()))
    catalog.start()
    try:
        yield next(served for served in catalog.newest() if served.stored.name == name)
    finally:
        catalog.stop()


async def imagine(
    served: Served,
    policy: KvPolicy,
    starts: Sequence[tuple[UInt8, npt.NDArray[Any]]],
    futures: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    nfe: int,
) -> tuple[UInt8, float]:
    """Generated frames [session, depth, 56, 56, 3], and the mean bytes of blocks that a session holds at the end.

    A start: tile ids [START_COUNT, 49] and the actions [START_COUNT] that led to each.
    """
    worlds = served.worlds
    block_bytes = worlds.model.block_bytes(policy.storage)
    held: list[int] = []

    async def one(number: int) -> UInt8:
        ids, led = starts[number]
        chunks = tuple(np.ascontiguousarray(tiles.draw_frame(frame)).tobytes() for frame in ids)
        origin = Origin(chunks, tuple(Action(int(action)) for action in led[1:]))
        session = await worlds.create(Recipe(origin, seeds[number], nfe, policy), ttl_s=3600.0)
        made = await worlds.step(session.name, [Action(int(action)) for action in futures[number]])
        held.append(session.branch.table.held_count)
        worlds.delete(session.name)
        shape = served.package.chunk_shape[1:]
        return np.stack([np.frombuffer(chunk.frames, np.uint8).reshape(shape) for chunk in made])

    frames = []
    for first in range(0, len(starts), _BATCH):
        group = range(first, min(first + _BATCH, len(starts)))
        frames += await asyncio.gather(*(one(number) for number in group))
    return np.stack(frames), block_bytes * float(np.mean(held))


async def measure_depths(
    served: Served, policy: KvPolicy, episodes: Sequence[Episode], *, nfe: int
) -> dict[int, float]:
    """Determined accuracy at each of DEPTHS."""
    depth, total = max(DEPTHS), START_COUNT + max(DEPTHS)
    window = served.package.kv.window
    frames, _ = await imagine(
        served,
        policy,
        [(e.ids[:START_COUNT], e.actions[:START_COUNT]) for e in episodes],
        [[int(action) for action in e.actions[START_COUNT:total]] for e in episodes],
        seeds=range(len(episodes)),
        nfe=nfe,
    )
    made, _ = tiles.nearest_tile(frames)  # [episode, depth, 49]
    truth = np.stack([e.ids[START_COUNT:total] for e in episodes])
    masks = [
        determined_cells(e.ids[:total], e.poses[:total], e.actions[:total], start_count=START_COUNT, window=window)[0]
        for e in episodes
    ]
    where = np.stack([mask[START_COUNT:] for mask in masks])
    assert made.shape == (len(episodes), depth, tiles.CELL_COUNT), made.shape
    return {d: float((made == truth)[:, d - 1][where[:, d - 1]].mean()) for d in DEPTHS}


async def close_loops(
    served: Served, policy: KvPolicy, loops: Sequence[Loop], *, nfe: int
) -> tuple[list[float], float]:
    """The share of equal cells at the end of each loop, and the mean bytes of a session there."""
    frames, session_bytes = await imagine(
        served,
        policy,
        [(loop.ids, loop.actions) for loop in loops],
        [loop.walk for loop in loops],
        seeds=[loop.number for loop in loops],
        nfe=nfe,
    )
    last, _ = tiles.nearest_tile(frames[:, -1])
    equal = last == np.stack([loop.ids[-1] for loop in loops])  # [loop, 49]
    return [float(share) for share in equal.mean(axis=1)], session_bytes


async def measure_setting(
    served: Served, policy: KvPolicy, episodes: Sequence[Episode], loops: Sequence[Loop], *, nfe: int, pieces: Pieces
) -> dict[str, Any]:
    """One row of the card's table."""
    setting = f"{policy.storage.value}/{policy.kind.value}"

    async def depths() -> list[float]:
        return list((await measure_depths(served, policy, episodes, nfe=nfe)).values())

    async def closed(group: Sequence[Loop]) -> list[float]:
        found, session_bytes = await close_loops(served, policy, group, nfe=nfe)
        return [*found, session_bytes]

    accuracy = await pieces.get(f"{setting}/episodes/{len(episodes)}", depths)
    shares: list[float] = []
    sizes: list[float] = []
    for first in range(0, len(loops), _PIECE):
        group = loops[first : first + _PIECE]
        name = f"{setting}/loops/{group[0].number}-{group[-1].number}"
        *found, session_bytes = await pieces.get(name, partial(closed, group))
        shares += found
        sizes += [session_bytes] * len(group)
    return {
        "kind": "storage",
        "storage": policy.storage.value,
        "policy": policy.kind.value,
        "nfe": nfe,
        **{f"depth_{d}": value for d, value in zip(DEPTHS, accuracy, strict=True)},
        "episodes": len(episodes),
        "loop_closure": float(np.mean(shares)),
        "loop_shares": shares,
        "first_loop": loops[0].number,
        "session_bytes": float(np.mean(sizes)),
    }


def record_loops(split: str, count: int) -> list[Loop]:
    """The first loops of a split by which nothing was chosen."""
    return [record_loop(split, FIRST_LOOP + k) for k in range(count)]


async def measure(
    repository: Path, name: str, episodes: Sequence[Episode], loops: Sequence[Loop], *, kept: Path | None = None
) -> list[dict[str, Any]]:
    """A row for each storage format and policy. `kept`: a file of the pieces measured so far, and of those to come.

    Raises ValueError where that is of another package.
    """
    rows = []
    async with serve(repository, name) as served:
        nfe = served.package.sampler.default_nfe
        pieces = Pieces(kept, {"files": _digest(served.stored.folder), "nfe": nfe})
        for kind in POLICIES:
            for storage in served.worlds.engine.pools:
                policy = policy_of(kind, storage, served.package.kv.window)
                rows.append(await measure_setting(served, policy, episodes, loops, nfe=nfe, pieces=pieces))
    return rows


def _digest(folder: Path) -> str:
    """Of a package but for its card, which these figures go into."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "MODEL_CARD.md")
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
