"""Whether the judge's choice succeeds: the best of N futures, done in the real simulator.

Futures are action sequences of players good and bad from held-out starts, each with an errand that is in view. The
judge sees each future as the video service imagines it, or as the simulator shows it; what is chosen is then played in
the simulator, and succeeds when the errand is done at the end (and no lava was stepped into, where the goal says so).
The curve shows success against N, over random subsets, also where it bends. `python -m training.reward.downstream`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table
from worldtree_reward.domain import Question

from training.minigrid import tiles
from training.minigrid.data import FIRST_SEED
from training.minigrid.rolling import START_COUNT
from training.reward import goals
from training.reward.data import DEFAULT_FOLDER, start_of
from training.reward.drift import Past, Shown
from training.reward.errands import Errand
from training.reward.rollouts import Player, Rollout, Start, play
from training.reward.rubric import DIMENSION_NAMES
from training.reward.served import DEFAULT_PACKAGE, Bench

SPLIT_OFFSET = 20_000_000  # after the groups of `test` and `ties`
FUTURES = 64
STEPS = 10
COUNTS = (1, 2, 4, 8, 16, 32, 64)
_SUBSETS = 40  # of each size, per episode
_CATEGORIES = ("navigation", "manipulation", "safety")
PICTURE = Path("docs/judge-best-of-n.png")
Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """A start with its errand, and what became of each future."""

    category: str
    goal: str
    start: Start
    errand: Errand
    past: npt.NDArray[np.uint8]  # [START_COUNT, 49]: the frames that a world is given
    between: tuple[int, ...]  # the actions between those
    futures: list[Rollout]
    success: npt.NDArray[np.bool_]  # [futures]


def make_episode(index: int) -> Episode | None:
    """Of the seed alone; None where there is nothing to do, or where everybody or nobody does it."""
    rng = np.random.default_rng([FIRST_SEED["test"], SPLIT_OFFSET, index])
    category = _CATEGORIES[index % len(_CATEGORIES)]
    start, errand = start_of("test", category, rng)
    if errand is None or len(start.actions) < START_COUNT - 1:
        return None
    futures = [play(start, _player(rng, errand), errand, STEPS) for _ in range(FUTURES)]
    safe = np.array([each.truth["hazard"] > 0 for each in futures])
    success = np.array([each.success for each in futures]) & (safe if category == "safety" else True)
    if not 1 <= success.sum() <= FUTURES // 2:
        return None
    past = Past.of(start).ids
    goal = goals.sentence(category, errand.kind, errand.thing, rng, held=True)
    return Episode(category, goal, start, errand, past, start.actions[-(START_COUNT - 1) :], futures, success)


def _player(rng: np.random.Generator, errand: Errand) -> Player:
    style = str(rng.choice(("wander", "done", "short", "lava"), p=(0.6, 0.2, 0.12, 0.08)))
    return Player(rng, errand, slips=float(rng.choice([0.1, 0.3, 0.6])), style=style)


def episodes(count: int) -> list[Episode]:
    found: list[Episode] = []
    index = 0
    while len(found) < count:
        episode = make_episode(index)
        if episode is not None:
            found.append(episode)
        index += 1
    return found


def rewards(bench: Bench, episode: Episode, shown: npt.NDArray[np.uint8] | None) -> Float:
    """Of each future. `shown`: the frames after the start, [futures, STEPS, ...]; None: the simulator's."""
    nothing = np.zeros(len(DIMENSION_NAMES), np.float32)
    first = tiles.draw_frame(episode.past[-1:])
    clips = [
        Shown(
            future.ids,
            future.actions,
            nothing,
            False,
            shown=None if shown is None else np.concatenate([first, shown[index]]),
        )
        for index, future in enumerate(episode.futures)
    ]
    evidence = bench.evidence([(clip, episode.goal) for clip in clips])
    return np.array([bench.judged(each, Question(episode.goal)).reward.mean for each in evidence], np.float32)


def imagined(client: Any, episode: Episode) -> npt.NDArray[np.uint8]:
    """The futures as the video service makes them, [futures, STEPS, height, width, 3]."""
    with client.world("minigrid", frames=tiles.draw_frame(episode.past), actions=list(episode.between)) as world:
        rollouts = world.rollout([[int(action) for action in each.actions[1:]] for each in episode.futures])
    return np.stack([each.frames for each in rollouts])


def curve(scores: list[Float], all_episodes: list[Episode]) -> dict[int, float]:
    """Success by N: of the best of N futures chosen at random, the mean over subsets and episodes."""
    rng = np.random.default_rng(3)
    found = {}
    for count in COUNTS:
        successes = []
        for own, episode in zip(scores, all_episodes, strict=True):
            for _ in range(_SUBSETS):
                chosen = rng.choice(FUTURES, count, replace=False)
                successes.append(episode.success[chosen[int(own[chosen].argmax())]])
        found[count] = float(np.mean(successes))
    return found


def draw(curves: dict[str, dict[int, float]], ceiling: dict[int, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(list(ceiling), list(ceiling.values()), color="grey", linestyle=":", label="if the judge were never wrong")
    for name, values in curves.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(COUNTS), [str(count) for count in COUNTS])
    axes.set_xlabel("futures to choose from")
    axes.set_ylabel("success in the simulator")
    axes.set_title("the best of N, done in the simulator")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(bench: Bench, count: int, client: Any | None, say: Callable[[str], None]) -> dict[str, Any]:
    chosen = episodes(count)
    say(f"{count} episodes of {FUTURES} futures")
    curves = {"futures as the simulator shows them": curve([rewards(bench, each, None) for each in chosen], chosen)}
    say("judged as the simulator shows them")
    if client is not None:
        scores = []
        for number, episode in enumerate(chosen, start=1):
            scores.append(rewards(bench, episode, imagined(client, episode)))
            if number % 10 == 0:
                say(f"{number}/{count} imagined")
        curves["futures as the world model imagines them"] = curve(scores, chosen)
    ceiling = curve([each.success.astype(np.float32) for each in chosen], chosen)
    return {"curves": curves, "ceiling": ceiling, "episodes": count}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    package: Annotated[Path, typer.Option(help="package folder of the judge")] = DEFAULT_PACKAGE,
    count: Annotated[int, typer.Option(help="episodes")] = 90,
    imagine: Annotated[bool, typer.Option(help="also as the video service imagines futures")] = True,
    json_file: Annotated[Path, typer.Option("--json", help="where the figures go")] = DEFAULT_FOLDER
    / "downstream.json",
) -> None:
    """Prints success against N, and draws it."""
    logging.getLogger().setLevel(logging.ERROR)
    bench = Bench.read(package)
    if imagine:
        import worldtree
        from worldtree.cli.stack import Stack, StackOptions

        options = StackOptions(port=0, models="models", log_level="warning")
        with Stack(options, on_log=lambda _: None) as stack, worldtree.Client(stack.grpc_address) as client:
            found = measure(bench, count, client, typer.echo)
    else:
        found = measure(bench, count, None, typer.echo)
    table = Table(title=f"success in the simulator, {count} held-out episodes")
    table.add_column("")
    for number in COUNTS:
        table.add_column(f"best of {number}", justify="right")
    for name, values in (*found["curves"].items(), ("never wrong", found["ceiling"])):
        table.add_row(name, *(f"{values[number]:.3f}" for number in COUNTS))
    Console(width=140).print(table)
    for name, values in found["curves"].items():
        gain = values[16] / values[1]
        verdict = "holds" if gain >= 2 else "MISSED"
        typer.echo(f"best of 16 over a random pick, {name}: x {gain:.2f} (>= 2: {verdict})")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(found, indent=1) + "\n")
    draw(found["curves"], found["ceiling"], PICTURE)


if __name__ == "__main__":
    app()
