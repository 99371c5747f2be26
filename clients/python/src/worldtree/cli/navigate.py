"""`worldtree navigate`: a robot in a simulator, steered by the navigator; how often it gets there, and a film."""

from pathlib import Path
from threading import Event
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, out, print_json
from worldtree.cli.question import WeightOption, parse_weights
from worldtree.episodes import Episode, Tally, play_episode, play_episodes
from worldtree.media import save_frames
from worldtree.navigator_types import ActionChunk
from worldtree.simulator import Simulator
from worldtree.types import Frames

_SIDE_PX = 224  # of each picture of a film
_FILMED = 8  # episodes of a film at most
_GAP_PX = 8


def navigate(
    context: typer.Context,
    env: Annotated[str, typer.Option("--env", help="MiniGrid or BabyAI environment.")] = "BabyAI-GoToLocal-v0",
    planner: Annotated[str, typer.Option(help="Who plans; `worldtree models` lists them.")] = "joint",
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=1)] = 20,
    chunk: Annotated[int, typer.Option(help="Actions to execute before the robot looks again.", min=1, max=64)] = 2,
    goal: Annotated[str, typer.Option(help="In place of the environment's mission.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first episode; the others follow.", min=0)] = 1_000_000_000,
    robots: Annotated[int, typer.Option(help="Robots at a time.", min=1, max=256)] = 4,
    chunks: Annotated[int, typer.Option(help="Chunks that mpc may imagine for one plan.", show_default="no end")] = 0,
    budget: Annotated[
        float | None, typer.Option(help="Seconds that mpc may take for one plan.", show_default="as long as it takes")
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option("--action", "-a", help="mpc plans with this action; may be repeated.", show_default="all"),
    ] = None,
    weight: WeightOption = None,
    record: Annotated[
        Path | None,
        typer.Option(help=f"Film the first {_FILMED} episodes (.mp4, .gif): grid, view, what was expected of it."),
    ] = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sends robots through a simulator, in closed loop, and says how often they get to where they were sent."""
    if record is not None and record.suffix not in {".mp4", ".gif"}:
        raise typer.BadParameter(f"must be a .mp4 or .gif file, got {record}", param_hint="--record")
    film = Film(set(range(seed, seed + min(episodes, _FILMED)))) if record is not None else None
    with connect(context, address) as client:

        def play(own: int, stop: Event) -> Episode:
            return play_episode(
                client,
                env,
                own,
                planner=planner,
                chunk_length=chunk,
                frames=film is not None and own in film.seeds,
                goal=goal or None,
                chunks=chunks,
                budget=budget,
                actions=action,
                weights=parse_weights(weight or []),
                on_step=None if film is None else film.shoot(own),
                stop=stop,
            )

        done: list[Episode] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("navigating", total=episodes)
            for episode in play_episodes(play, range(seed, seed + episodes), at_once=robots):
                done.append(episode)
                reached = sum(each.outcome.success for each in done)
                bar.update(task, advance=1, description=f"{reached} of {len(done)} got there")
    tally = Tally.of(done)
    if as_json:
        print_json({"env": env, "planner": planner, **_figures(tally)})
    else:
        out.print(_table(env, planner, tally))
    if record is not None and film is not None:
        save_frames(film.frames(), record, fps=4.0)
        out.print(f"filmed in {record}")


class Film:
    """Pictures of some episodes, one after the other, each in the order it was played."""

    def __init__(self, seeds: set[int]) -> None:
        self.seeds = seeds
        self._shots: dict[int, list[Frames]] = {seed: [] for seed in sorted(seeds)}

    def shoot(self, seed: int) -> Any:
        """What to call before each action of an episode; None where it is not filmed."""
        if seed not in self.seeds:
            return None

        def on_step(simulator: Simulator, chunk: ActionChunk, place: int) -> None:
            expected = simulator.frame() * 0 if chunk.frames is None else chunk.frames[place]
            self._shots[seed].append(_beside(simulator.picture(), simulator.frame(), expected))

        return on_step

    def frames(self) -> Frames:
        """[frames, height, width, 3]."""
        return np.stack([shot for shots in self._shots.values() for shot in shots])


def _beside(*pictures: Frames) -> Frames:
    gap = np.full((_SIDE_PX, _GAP_PX, 3), 255, np.uint8)
    parts: list[Frames] = []
    for picture in pictures:
        side = Image.fromarray(picture).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.NEAREST)
        parts += [np.asarray(side, np.uint8), gap]
    return np.concatenate(parts[:-1], axis=1)


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "episodes": tally.count,
        "success": tally.success,
        "success_interval": list(tally.success_interval),
        "spl": tally.spl,
        "spl_margin": tally.spl_margin,
        "falls": tally.falls,
        "collisions": tally.collisions,
        "steps": tally.steps,
        "decisions": tally.decisions,
        "imagined_chunks": tally.imagined,
        "latency_p50_ms": 1e3 * tally.latency_p50_s,
        "latency_p99_ms": 1e3 * tally.latency_p99_s,
    }


def _table(env: str, planner: str, tally: Tally) -> Table:
    table = Table(title=f"{planner} in {env}, {tally.count} episodes")
    low, high = tally.success_interval
    row = {
        "success (95%)": f"{tally.success:.2f} ({low:.2f}-{high:.2f})",
        "SPL": f"{tally.spl:.2f} ± {tally.spl_margin:.2f}",
        "falls": f"{tally.falls:.2f}",
        "collisions": f"{tally.collisions:.1f}",
        "steps": f"{tally.steps:.1f}",
        "decisions": f"{tally.decisions:.1f}",
        "chunks imagined": f"{tally.imagined:.0f}",
        "p50 ms": f"{1e3 * tally.latency_p50_s:.0f}",
        "p99 ms": f"{1e3 * tally.latency_p99_s:.0f}",
    }
    for name in row:
        table.add_column(name, justify="right")
    table.add_row(*row.values())
    return table
