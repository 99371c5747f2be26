"""`worldtree plan`: what to do to get nearer to a goal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out, print_json
from worldtree.cli.futures_table import check_png, draw_to, futures_json, futures_table
from worldtree.cli.generate import NfeOption, SeedOption, chunk_progress
from worldtree.cli.question import CategoryOption, GoalOption, JudgeOption, WeightOption, parse_weights, verdict
from worldtree.client import Client
from worldtree.navigator_types import Future, Plan
from worldtree.world import World


def plan(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION of the world.")] = "minigrid",
    goal: GoalOption = "",
    planner: Annotated[str, typer.Option(help="Who plans.")] = "mpc",
    horizon: Annotated[
        int | None, typer.Option(help="Actions to plan; by default as many as suit the planner.", min=1, max=256)
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option("--action", "-a", help="Plan with this action; may be repeated.", show_default="all"),
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", "-n", help="Futures in each iteration.", min=2)] = 32,
    iterations: Annotated[int, typer.Option(help="How often to draw, nearer to the best each time.", min=1)] = 3,
    chunks: Annotated[int, typer.Option(help="Chunks to make at most.", show_default="all that it takes")] = 0,
    budget: Annotated[
        float | None, typer.Option(help="Seconds to imagine in.", show_default="as long as it takes")
    ] = None,
    weight: WeightOption = None,
    category: CategoryOption = None,
    session: Annotated[
        str | None, typer.Option(help="Plan from this live session.", show_default="a new world from --start")
    ] = None,
    start: StartOption = None,
    prompt: PromptOption = None,
    seed: SeedOption = 0,
    nfe: NfeOption = 0,
    judge: JudgeOption = None,
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw what is expected there (.png).", show_default=False)
    ] = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find actions that bring a world nearer to a goal. The world does not move.

    Example: `worldtree plan -g "get to the green goal" --start four-rooms -a left -a right -a forward -o plan.png`.
    """
    check_png(to, "a plan")
    asked: dict[str, Any] = {
        "goal": goal,
        "planner": planner,
        "horizon": horizon,
        "actions": action,
        "candidates": candidates,
        "iterations": iterations,
        "chunks": chunks,
        "budget": budget,
        "weights": parse_weights(weight or []),
        "category": category,
        "judge": judge,
        "seed": seed,
        "frames": to is not None,
    }
    with connect(context, address) as client:
        if session:
            world = client.session(session)
            found = _planned(client, world, asked)
        else:
            info = client.model(model)
            start, prompt = beginning(info, start, prompt)
            with client.world(info, start=start, prompt=prompt, seed=seed, nfe=nfe) as world:
                tell_warnings(world.warnings)
                found = _planned(client, world, asked)
    shown = [Future(0, 1, found.actions, len(found.actions), found.judgement, found.frames, "")]
    spent = found.spent
    if as_json:
        (row,) = futures_json(shown)
        report = {"planner": found.planner, "confidence": found.confidence, "chunk_count": spent.chunk_count}
        print_json({**row, **report, "iteration_count": found.iteration_count, "total_s": spent.total_s})
    else:
        out.print(futures_table(shown))
        tell_warnings(found.notes)
        if found.judgement is not None:
            out.print(verdict(found.judgement))
        out.print(Text(_how(found)))
    if to is not None:
        draw_to(to, world, shown, goal=goal)


def _how(found: Plan) -> str:
    spent = found.spent
    if found.judgement is None:
        return f"{found.planner}: {found.confidence:.0%} sure of each action, {spent.total_s:.1f} s"
    return (
        f"{found.planner}, {found.iteration_count} iterations: better than any other with a chance of "
        f"{found.confidence:.0%} or more; {spent.chunk_count} chunks made, {spent.total_s:.1f} s"
    )


def _planned(client: Client, world: World, asked: dict[str, Any]) -> Plan:
    with chunk_progress() as bar:
        bar.add_task("planning", total=None)
        return client.navigator.plan(world, **asked)
