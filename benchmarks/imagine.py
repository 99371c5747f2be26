"""What finding the best of many futures costs, and what dropping some on the way loses.

Each episode is a moment of a held-out MiniGrid world with something to do in view, and 64 candidates of 8 actions of
players good and bad (`training.reward.downstream`). The navigator imagines them by successive halving, as a client asks
for it: through a gateway, with the video, the reward and the navigator service as processes of their own. Then it leads
all 64 to their ends, for comparison. Both picks, and one at random, are done in the real simulator.

- Chunks: made or known, against the distinct chunks of all candidates to their ends.
- Return: the goal's dimensions as the simulator knows them, 0 to 1 each, weighted as the category does.
- End to end: a call's wall clock against the time that the engine spent in ticks for it.
- Scoring: steps a second that a Rank of all candidates scores against chunks a second that the engine makes.
"""

import asyncio
import logging
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import worldtree.aio
from report import Bar, Row, median, publish
from rich.progress import Progress
from serving import service_process

ROOT = Path(__file__).parents[1]
CANDIDATES, HORIZON = 64, 8
MODEL = "minigrid"
POOL_MIB = 512


def episodes(count: int) -> list[Any]:
    sys.path.insert(0, str(ROOT))  # the recipes are no installed package
    from training.reward import downstream

    logging.getLogger().setLevel(logging.ERROR)
    return downstream.episodes(count)


class Replay:
    """A player who does what was planned."""

    def __init__(self, actions: Sequence[int]) -> None:
        self._left = list(actions)

    def action(self, world: Any) -> int:
        del world
        return self._left.pop(0)


def true_return(episode: Any, actions: Sequence[int]) -> float:
    """Of actions done in the simulator, 0 to 1."""
    from training.reward.rollouts import play
    from training.reward.rubric import CATEGORIES

    rollout = play(episode.start, Replay(actions), episode.errand, len(actions))  # type: ignore[arg-type]
    (weights,) = (each.weights for each in CATEGORIES if each.name == episode.category)
    return float(sum(weight * rollout.truth[name] for name, weight in weights.items()))


class Services:
    """What is measured: a client of the gateway, and the video service's own clock."""

    def __init__(self, client: worldtree.aio.Client, video_metrics: str) -> None:
        self.client = client
        self._video_metrics = video_metrics

    async def tick_s(self) -> float:
        """Seconds that the engine has spent in ticks."""

        def read() -> str:
            with urllib.request.urlopen(f"http://{self._video_metrics}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(read)
        named = f'worldtree_tick_seconds_sum{{model="{MODEL}"}} '
        return sum(float(line.removeprefix(named)) for line in text.splitlines() if line.startswith(named))


@asynccontextmanager
async def services() -> AsyncIterator[Services]:
    models = ("--models", str(ROOT / "models"))
    async with AsyncExitStack() as stack:
        video = await stack.enter_async_context(
            service_process("worldtree_video", *models, "--pool-mib", str(POOL_MIB))
        )
        reward = await stack.enter_async_context(service_process("worldtree_reward", *models))
        asked = ("--video", video["grpc"], "--reward", reward["grpc"])
        navigator = await stack.enter_async_context(service_process("worldtree_navigator", *asked))
        behind = (*asked, "--navigator", navigator["grpc"])
        gateway = await stack.enter_async_context(service_process("worldtree_gateway", *behind))
        client = await stack.enter_async_context(worldtree.aio.Client(gateway["grpc"]))
        await client.wait_ready()
        yield Services(client, video["metrics"])


async def measured(here: Services, episode: Any, seed: int) -> dict[str, float]:
    """Every figure of one episode."""
    from training.minigrid import tiles

    client = here.client
    past = tiles.draw_frame(episode.past)
    candidates = [[int(action) for action in each.actions[1 : 1 + HORIZON]] for each in episode.futures]
    asked: dict[str, Any] = {"candidates": candidates, "goal": episode.goal, "keep": 1, "frames": False}
    async with await client.world(MODEL, frames=past, actions=list(episode.between), seed=seed) as world:
        ticks_s, began_s = await here.tick_s(), time.perf_counter()
        halved = await client.navigator.imagine(world, **asked)
        whole_s, engine_s = time.perf_counter() - began_s, await here.tick_s() - ticks_s
        full = await client.navigator.imagine(world, **{**asked, "rounds": 1})
        futures = await world.rollout(candidates)
        began_s = time.perf_counter()
        await client.reward.rank(futures, goal=episode.goal, before=world.last_frame, weights={"progress": 1.0 + seed})
        rank_s = time.perf_counter() - began_s
    spent = halved.spent
    picks = [true_return(episode, candidates[each.best.index]) for each in (halved, full)]
    everyone = [true_return(episode, each) for each in candidates]
    return {
        "chunks": spent.chunk_count + spent.known_chunk_count,
        "distinct": spent.full_node_count,
        "halved_return": picks[0],
        "full_return": picks[1],
        "mean_return": float(np.mean(everyone)),
        "best_return": max(everyone),
        "same_pick": float(halved.best.index == full.best.index),
        "whole_s": whole_s,
        "engine_s": engine_s,
        "imagine_s": spent.imagine_s,
        "score_s": spent.score_s,
        "chunk_rate": spent.chunk_count / engine_s,
        "step_rate": CANDIDATES * HORIZON / rank_s,
    }


async def measure(count: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}
    chosen = episodes(count)
    async with services() as here:
        with Progress(transient=True) as progress:
            for seed, episode in enumerate(progress.track(chosen, description="episodes")):
                for name, value in (await measured(here, episode, seed)).items():
                    figures.setdefault(name, []).append(value)
    return figures


def main(
    quick: Annotated[bool, typer.Option(help="A look, in about a minute.")] = False,
    count: Annotated[int, typer.Option(help="Episodes.")] = 60,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Successive halving against leading all to their ends, and what the services cost beside the engine."""
    figures = asyncio.run(measure(6 if quick else count))

    def ratio(above: str, below: str) -> float:
        return float(np.sum(figures[above]) / np.sum(figures[below]))

    def each(above: str, below: str) -> float:
        return median([a / b for a, b in zip(figures[above], figures[below], strict=True)])

    share, kept = ratio("chunks", "distinct"), ratio("halved_return", "full_return")
    end_to_end, scoring = each("whole_s", "engine_s"), each("step_rate", "chunk_rate")
    rows: list[Row] = [
        {"figure": "chunks spent / distinct chunks of all candidates", "value": share},
        {
            "figure": f"chunks spent / {CANDIDATES * HORIZON}",
            "value": float(np.mean(figures["chunks"])) / CANDIDATES / HORIZON,
        },
        {"figure": "true return of the pick", "value": float(np.mean(figures["halved_return"]))},
        {"figure": "true return of the full evaluation's pick", "value": float(np.mean(figures["full_return"]))},
        {"figure": "true return of a random candidate", "value": float(np.mean(figures["mean_return"]))},
        {"figure": "true return of the truly best", "value": float(np.mean(figures["best_return"]))},
        {"figure": "the same pick", "value": float(np.mean(figures["same_pick"]))},
        {"figure": "a call, s", "value": median(figures["whole_s"])},
        {"figure": "of it waiting for chunks, s", "value": median(figures["imagine_s"])},
        {"figure": "of it waiting for scores, s", "value": median(figures["score_s"])},
        {"figure": "the engine in ticks for it, s", "value": median(figures["engine_s"])},
        {"figure": "chunks made a second", "value": median(figures["chunk_rate"])},
        {"figure": "steps scored a second", "value": median(figures["step_rate"])},
    ]
    bars = [
        Bar("chunks spent / distinct chunks of all candidates", share, 0.45, "lower"),
        Bar("true return of the pick / of the full evaluation's pick", kept, 0.95),
        Bar("a call end to end / the engine's own time", end_to_end, 1.2, "lower"),
        Bar("steps scored a second / chunks made a second", scoring, 10.0),
    ]
    settings = {"episodes": len(figures["chunks"]), "candidates": CANDIDATES, "horizon": HORIZON, "pool_mib": POOL_MIB}
    keys = {"share": share, "return_kept": kept, "end_to_end": end_to_end, "scoring": scoring}
    publish("Imagining", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
