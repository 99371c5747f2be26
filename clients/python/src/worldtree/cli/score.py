"""`worldtree score`: imagine futures and say which is best for a goal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from worldtree.cli.actions_text import ACTIONS_HELP, parse_actions
from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out, print_json
from worldtree.cli.futures_table import SHOWN, check_png, draw_to, futures_json, futures_table
from worldtree.cli.generate import NfeOption, SeedOption, chunk_progress
from worldtree.cli.question import CategoryOption, GoalOption, JudgeOption, WeightOption, parse_weights, verdict
from worldtree.cli.rollout import random_sequences
from worldtree.client import Client
from worldtree.errors import InvalidRequest
from worldtree.navigator_types import Future
from worldtree.world import World


def score(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION of the world.")] = "minigrid",
    goal: GoalOption = "",
    sequence: Annotated[
        list[str] | None, typer.Option("--sequence", "-s", help=f"A future; may be repeated. {ACTIONS_HELP}")
    ] = None,
    random_count: Annotated[int, typer.Option("--random", help="Add so many random futures.", min=0, max=256)] = 0,
    horizon: Annotated[int, typer.Option(help="Actions in each random future.", min=1, max=256)] = 8,
    weight: WeightOption = None,
    category: CategoryOption = None,
    session: Annotated[
        str | None, typer.Option(help="Imagine from this live session.", show_default="a new world from --start")
    ] = None,
    start: StartOption = None,
    prompt: PromptOption = None,
    seed: SeedOption = 0,
    nfe: NfeOption = 0,
    judge: JudgeOption = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Draw the futures there, best first (.png).", show_default=False),
    ] = None,
    rubrics: Annotated[bool, typer.Option("--rubrics", help="Say what the judge looks at, and end.")] = False,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Imagine futures of a world and put them in order, best first for a goal. The world does not move.

    All are imagined to their ends; `worldtree imagine` drops on the way what falls behind. Examples:
    `worldtree score --goal "go to the goal" --start lava-gap --random 16 -o futures.png`,
    `worldtree score -g "follow the actions" -s forward*4 -s left,forward*3`.
    """
    sequences: list[list[Any]] = [
        parse_actions(text, field=f"sequence {index}") for index, text in enumerate(sequence or [])
    ]
    weights = parse_weights(weight or [])
    check_png(to, "futures")
    with connect(context, address) as client:
        if rubrics:
            _tell_rubrics(client, judge, as_json=as_json)
            return
        world = client.session(session) if session else None
        info = client.model(world.model if world else model)
        sequences += random_sequences(info, count=random_count, horizon=horizon, seed=seed)
        if not sequences:
            raise InvalidRequest("no future to score", field="sequence", remedy="give --sequence or --random")
        asked = {"goal": goal, "category": category, "weights": weights, "judge": judge}
        if world is not None:
            futures = _ranked(client, world, sequences, asked)
        else:
            start, prompt = beginning(info, start, prompt)
            with client.world(info, start=start, prompt=prompt, seed=seed, nfe=nfe) as world:
                tell_warnings(world.warnings)
                futures = _ranked(client, world, sequences, asked)
    if as_json:
        print_json({"ranked": futures_json(futures)})
    else:
        out.print(futures_table(futures))
        best = futures[0].judgement
        assert best is not None, "a ranked future was not judged"
        tell_warnings(best.notes)
        out.print(verdict(best))
    if to is not None:
        draw_to(to, world, futures[:SHOWN], goal=goal)


def _ranked(client: Client, world: World, sequences: list[list[Any]], asked: dict[str, Any]) -> list[Future]:
    with chunk_progress() as bar:
        task = bar.add_task("imagining", total=None)
        made = world.rollout(sequences, progress=lambda done, total: bar.update(task, completed=done, total=total))
        bar.update(task, description="scoring")
        ranking = client.reward.rank(made, before=world.last_frame, **asked)
    return [
        Future(each.index, each.rank, own.actions, len(own.actions), each.judgement, own.frames, own.state_hash)
        for each in ranking
        for own in (made[each.index],)
    ]


def _tell_rubrics(client: Client, judge: str | None, *, as_json: bool) -> None:
    rubrics = client.reward.rubrics(judge)
    if as_json:
        print_json(
            {
                "model": f"{rubrics.name}/{rubrics.version}",
                "categories": {each.name: dict(each.weights) for each in rubrics.categories},
                "dimensions": {each.name: each.description for each in rubrics.dimensions},
            }
        )
        return
    out.print(Text(f"{rubrics.name}/{rubrics.version}: {rubrics.description}"))
    categories = Table("category", "what its goals ask", "what counts", "best of four", "for example")
    for category in rubrics.categories:
        counts = ", ".join(f"{name} {weight:g}" for name, weight in category.weights.items())
        categories.add_row(category.name, category.description, counts, _share(category.best_of_four), category.example)
    dimensions = Table("dimension", "what its score means", "pairs in order")
    for dimension in rubrics.dimensions:
        dimensions.add_row(dimension.name, dimension.description, _share(dimension.pairwise_accuracy))
    out.print(categories, dimensions)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
