"""Closed loop: a robot in a simulator, steered by the navigator, episode after episode."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event

import numpy as np

from worldtree.client import Client
from worldtree.errors import Cancelled, ObservationRefused
from worldtree.navigate import Navigation
from worldtree.navigator_types import ActionChunk
from worldtree.simulator import ACTIONS, Outcome, Simulator
from worldtree.types import Seconds

# Called before each action: the simulator as it stands, the chunk that the action is of, and its place there.
OnStep = Callable[[Simulator, ActionChunk, int], None]
_NORMAL_95 = 1.96
_ATTEMPTS, _PAUSE_S = 4, 0.5  # of a plan that the services could not make


@dataclass(frozen=True, slots=True)
class Episode:
    """What became of one episode. Of each decision: how long the robot waited for it, the part of that in a world
    model, and the chunks that were imagined for it.
    """

    env_id: str
    seed: int
    goal: str
    outcome: Outcome
    latencies_s: tuple[float, ...] = field(repr=False)
    world_model_s: tuple[float, ...] = field(repr=False)
    imagined: tuple[int, ...] = field(repr=False)


def play_episode(
    client: Client,
    env_id: str,
    seed: int,
    *,
    planner: str | None = None,
    chunk_length: int = 0,
    frames: bool = False,
    goal: str | None = None,
    chunks: int = 0,
    budget: Seconds | None = None,
    actions: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    on_step: OnStep | None = None,
    stop: Event | None = None,
) -> Episode:
    """One episode to its end: each chunk is executed, then the robot looks again.

    `goal`: in place of the mission. Raises Cancelled once `stop` is set. The rest as in `client.navigator.navigate`.
    """
    simulator = Simulator(env_id, seed)
    latencies_s, world_model_s, imagined = [], [], []
    executed: list[str] = []
    with client.navigator.navigate(
        goal or simulator.goal,
        planner=planner,
        chunk_length=chunk_length,
        frames=frames,
        seed=seed % (1 << 31),
        chunks=chunks,
        budget=budget,
        actions=actions,
        weights=weights,
    ) as navigation:
        while not simulator.over:
            if stop is not None and stop.is_set():
                raise Cancelled("the episode was broken off")
            began_s = time.monotonic()
            chunk = _observed(navigation, simulator, executed)
            latencies_s.append(time.monotonic() - began_s)
            world_model_s.append(chunk.timing.world_model_s)
            imagined.append(chunk.imagined_chunk_count)
            executed = []
            for place, action in enumerate(chunk.actions):
                if on_step is not None:
                    on_step(simulator, chunk, place)
                simulator.step(ACTIONS.index(str(action)))
                executed.append(str(action))
                if simulator.over:
                    break
    return Episode(
        env_id,
        seed,
        simulator.goal,
        simulator.outcome,
        tuple(latencies_s),
        tuple(world_model_s),
        tuple(imagined),
    )


def _observed(navigation: Navigation, simulator: Simulator, executed: Sequence[str]) -> ActionChunk:
    """A plan that failed in passing is asked for again, a few times."""
    for attempt in range(_ATTEMPTS):
        try:
            return navigation.observe(simulator.frame(), executed if attempt == 0 else ())
        except ObservationRefused as error:
            if error.field or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def play_episodes(play: Callable[[int, Event], Episode], seeds: Sequence[int], *, at_once: int) -> Iterator[Episode]:
    """An episode of each seed, as they end; `at_once` robots at a time. Leaving it ends those that are under way at
    their next decision.
    """
    pool, stop = ThreadPoolExecutor(at_once, thread_name_prefix="robot"), Event()
    under_way = [pool.submit(play, seed, stop) for seed in seeds]
    try:
        for done in as_completed(under_way):
            yield done.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Tally:
    """Figures over episodes, with 95% intervals: Wilson's for rates, the normal one for means. `falls`: into lava, of
    all episodes; `collisions`, `steps`, `decisions`: of one; `imagined`: chunks of futures for one decision.
    """

    count: int
    success: float
    success_interval: tuple[float, float]
    spl: float
    spl_margin: float
    falls: float
    collisions: float
    steps: float
    latency_p50_s: float
    latency_p99_s: float
    decisions: float
    imagined: float

    @staticmethod
    def of(episodes: Sequence[Episode]) -> "Tally":
        """Of one episode or more."""
        outcomes, count = [each.outcome for each in episodes], len(episodes)
        success = float(np.mean([each.success for each in outcomes]))
        spls = np.array([each.spl for each in outcomes])
        flat = [latency for each in episodes for latency in each.latencies_s]
        imagined = [chunks for each in episodes for chunks in each.imagined]
        return Tally(
            count=count,
            success=success,
            success_interval=wilson(success, count),
            spl=float(spls.mean()),
            spl_margin=_NORMAL_95 * float(spls.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0,
            falls=float(np.mean([each.fell for each in outcomes])),
            collisions=float(np.mean([each.collisions for each in outcomes])),
            steps=float(np.mean([each.steps for each in outcomes])),
            latency_p50_s=float(np.percentile(flat, 50)) if flat else math.nan,
            latency_p99_s=float(np.percentile(flat, 99)) if flat else math.nan,
            decisions=len(flat) / count,
            imagined=float(np.mean(imagined)) if imagined else 0.0,
        )


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a rate: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference"."""
    z = _NORMAL_95
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    margin = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return min(share, max(0.0, middle - margin)), max(share, min(1.0, middle + margin))
