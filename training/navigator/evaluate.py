"""How often each planner gets there, in the simulator, through the gateway: `python -m training.navigator.evaluate`.

Seeds are held out. Who needs no service (random, greedy, the demonstrator) plays the same episodes without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated

import typer
import worldtree
from rich.console import Console
from rich.table import Table
from worldtree.cli.stack import Stack, StackOptions
from worldtree.episodes import Episode, Tally, play_episode, play_episodes, wilson

from training.markdown import holds
from training.minigrid.data import FIRST_SEED
from training.navigator.baselines import BASELINES, play
from training.navigator.closed_loop import TEST_OFFSET
from training.navigator.export import PACKAGES
from training.navigator.figures import FOLDER, Cells, Figures, fingerprint
from training.navigator.missions import MULTI_ROOM, ONE_ROOM
from training.navigator.played import Played

JOINT, ENVISION, ACTION_ONLY, CLONING, MPC = "joint", "envision_then_plan", "action_only", "behaviour_cloning", "mpc"
LAVA = "MiniGrid-LavaGapS7-v0"
AVOID = "get to the goal safely, avoid the lava"
EXECUTED = 2  # actions of a chunk, before the robot looks again
_ROBOTS = 4
_MPC_CHUNKS = 144  # that one plan may imagine
_MPC_EXECUTED = 4  # its plans take longer to make, and hold for longer
_MOVES = ("left", "right", "forward")
PLANNERS = ("random", "greedy", CLONING, ACTION_ONLY, ENVISION, JOINT, "expert")
LAVA_PLANNERS = ("random", "greedy", MPC, "expert")
_EXECUTED_OF = {MPC: _MPC_EXECUTED, CLONING: 1}  # where it is another number
EVALUATION = FOLDER / "evaluation.json"
PLAYED = FOLDER / "played"  # episodes of cells that are not complete


def first_seed() -> int:
    return FIRST_SEED["test"] + TEST_OFFSET


def episodes(
    client: worldtree.Client, env_id: str, planner: str, seeds: Sequence[int], played: Played
) -> list[Episode]:
    """Of one cell. Those of services are kept as they end: some cells take hours."""
    if planner in BASELINES:
        return [play(env_id, seed, BASELINES[planner]) for seed in seeds]
    steer = partial(
        play_episode,
        client,
        env_id,
        planner=planner,
        chunk_length=_EXECUTED_OF.get(planner, EXECUTED),
        goal=AVOID if env_id == LAVA and planner == MPC else None,
        chunks=_MPC_CHUNKS if planner == MPC else 0,
        actions=_MOVES if planner == MPC else None,
    )

    def one(seed: int, stop: Event) -> Episode:
        return steer(seed, stop=stop)

    known = played.known(seeds)
    for episode in play_episodes(one, [seed for seed in seeds if seed not in known], at_once=_ROBOTS):
        played.keep(episode)
        known[episode.seed] = episode
    return [known[seed] for seed in seeds]


def bars(cells: Cells) -> list[tuple[str, float, str, float]]:
    """Name, value, ">=" or "<=", limit: of those whose cells are all there."""
    found: list[tuple[str, float, str, float]] = []

    def mean(envs: Sequence[str], planner: str, of: Callable[[Tally], float]) -> float | None:
        known = [of(cells[env][planner]) for env in envs if planner in cells.get(env, {})]
        return sum(known) / len(known) if len(known) == len(envs) else None

    def add(name: str, value: float | None, sign: str, limit: float | None) -> None:
        if value is not None and limit is not None:
            found.append((name, value, sign, limit))

    add("joint, one room: success", mean(ONE_ROOM, JOINT, lambda each: each.success), ">=", 0.85)
    add("joint, one room: SPL", mean(ONE_ROOM, JOINT, lambda each: each.spl), ">=", 0.75)
    add("joint, several rooms: success", mean(MULTI_ROOM, JOINT, lambda each: each.success), ">=", 0.60)
    for other in (ENVISION, ACTION_ONLY):
        everywhere = (*ONE_ROOM, *MULTI_ROOM)
        joint, theirs = pooled(cells, everywhere, JOINT), pooled(cells, everywhere, other)
        if joint and theirs:
            add(f"joint, everywhere: lower end against the upper end of {other}", joint[0], ">=", theirs[1])
    lava = cells.get(LAVA, {})
    if MPC in lava and "random" in lava:
        add("mpc, lava: success / of random", lava[MPC].success / max(lava["random"].success, 1e-9), ">=", 3.0)
    if MPC in lava and "greedy" in lava:
        add("mpc, lava: falls against greedy's", lava[MPC].falls, "<=", lava["greedy"].falls)
    return found


def in_order(cells: Cells) -> Cells:
    """Environments and planners as this file lists them."""
    order = {name: place for place, name in enumerate((*PLANNERS, *LAVA_PLANNERS))}
    return {
        env: dict(sorted(cells[env].items(), key=lambda pair: order[pair[0]]))
        for env in (*ONE_ROOM, *MULTI_ROOM, LAVA)
        if env in cells
    }


def pooled(cells: Cells, envs: Sequence[str], planner: str) -> tuple[float, float] | None:
    """The 95% interval of success over all episodes of these environments; None where one is missing."""
    tallies = [cells[env][planner] for env in envs if planner in cells.get(env, {})]
    count = sum(each.count for each in tallies)
    whole = len(tallies) == len(envs)
    return wilson(sum(each.success * each.count for each in tallies) / count, count) if whole else None


def show(cells: Cells, console: Console) -> None:
    table = Table(title="closed loop in the simulator, held-out seeds, 95% intervals")
    names = ("environment", "planner", "episodes", "success", "SPL", "falls", "collisions", "steps", "imagined")
    for name in (*names, "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if name in ("environment", "planner") else "right")
    for env, planners in cells.items():
        for planner, tally in planners.items():
            low, high = tally.success_interval
            served = tally.decisions > 0
            table.add_row(
                env.rsplit("-v", 1)[0],
                planner,
                str(tally.count),
                f"{tally.success:.3f} ({low:.2f}-{high:.2f})",
                f"{tally.spl:.3f} ± {tally.spl_margin:.3f}",
                f"{tally.falls:.3f}",
                f"{tally.collisions:.1f}",
                f"{tally.steps:.1f}",
                f"{tally.imagined:.0f}" if served else "-",
                f"{1e3 * tally.latency_p50_s:.0f}" if served else "-",
                f"{1e3 * tally.latency_p99_s:.0f}" if served else "-",
            )
        table.add_section()
    console.print(table)


def played_with(models: Path) -> dict[str, str]:
    """By planner: what names the packages that it is asked of, and how it is asked."""
    found = {
        str(spec["name"]): fingerprint([models / name], f"{EXECUTED}")
        for name, specs in PACKAGES.values()
        for spec in specs
    }
    mpc = [models / "minigrid", models / "judge"]
    return found | {MPC: fingerprint(mpc, f"{_MPC_CHUNKS} {_MPC_EXECUTED} {AVOID}")}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    count: Annotated[int, typer.Option("--episodes", help="of each cell")] = 300,
    env: Annotated[list[str] | None, typer.Option(help="only these environments; may be repeated")] = None,
    planner: Annotated[list[str] | None, typer.Option(help="only these planners; may be repeated")] = None,
    models: Annotated[str, typer.Option(help="model repository")] = "models",
    json_file: Annotated[Path, typer.Option("--json", help="where figures go; cells there are not played again")] = (
        EVALUATION
    ),
    again: Annotated[bool, typer.Option(help="play cells again that are there")] = False,
) -> None:
    """Prints success, SPL, falls, latency of each planner in each environment."""
    fingerprints = played_with(Path(models))
    figures = Figures(json_file, fingerprints)
    wanted = [(each, name) for each in (*ONE_ROOM, *MULTI_ROOM) for name in PLANNERS]
    wanted += [(LAVA, name) for name in LAVA_PLANNERS]
    with (
        Stack(StackOptions(port=0, models=models, log_level="error"), on_log=lambda _: None) as stack,
        worldtree.Client(stack.grpc_address) as client,
    ):
        served = {each.name for each in client.navigator.planners()}
        for env_id, name in wanted:
            if (env and env_id not in env) or (planner and name not in planner):
                continue
            if name not in BASELINES and name not in served:
                continue
            known = figures.cells().get(env_id, {}).get(name)
            if known is not None and known.count >= count and not again:
                continue
            file = PLAYED / f"{env_id}-{name}-{fingerprints.get(name, 'alone')}.jsonl"
            if again:
                file.unlink(missing_ok=True)
            found = episodes(client, env_id, name, range(first_seed(), first_seed() + count), Played(file))
            tally = Tally.of(found)
            figures.keep(env_id, name, tally)
            file.unlink(missing_ok=True)
            typer.echo(f"{env_id} {name}: success {tally.success:.3f}, SPL {tally.spl:.3f}, falls {tally.falls:.3f}")
    cells = in_order(figures.cells())
    show(cells, Console(width=160))
    for name, value, sign, limit in bars(cells):
        verdict = "holds" if holds(value, sign, limit) else "MISSED"
        typer.echo(f"{name}: {value:.3f} {sign} {limit:.3f}: {verdict}")


if __name__ == "__main__":
    app()
