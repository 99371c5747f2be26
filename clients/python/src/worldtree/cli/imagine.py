"""`worldtree imagine`: the best of many futures, without imagining them all to their ends."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from worldtree.cli.actions_text import ACTIONS_HELP, parse_actions
from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out, print_json
from worldtree.cli.futures_table import check_png, draw_to, futures_json, futures_table
from worldtree.cli.generate import NfeOption, SeedOption, chunk_progress
from worldtree.cli.question import CategoryOption, GoalOption, JudgeOption, WeightOption, parse_weights, verdict
from worldtree.client import Client
from worldtree.navigator_types import Imagination
from worldtree.world import World


def imagine(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION of the world.")] = "minigrid",
    goal: GoalOption = "",
    candidates: Annotated[int, typer.Option("--candidates", "-n", help="Random futures.", min=1, max=256)] = 32,
    horizon: Annotated[int, typer.Option(help="Actions in each random future.", min=1, max=256)] = 8,
    action: Annotated[
        list[str] | None,
        typer.Option("--action", "-a", help="Draw from this action; may be repeated.", show_default="all"),
    ] = None,
    sequence: Annotated[
        list[str] | None,
        typer.Option("--sequence", "-s", help=f"A future, in place of random ones; may be repeated. {ACTIONS_HELP}"),
    ] = None,
    keep: Annotated[int, typer.Option(help="Futures to show.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds to cut the horizon into.", show_default="4")] = 0,
    halving: Annotated[float, typer.Option(help="By how much fewer futures there are after a round.")] = 2.0,
    chunks: Annotated[int, typer.Option(help="Chunks to make at most.", show_default="all that it takes")] = 0,
    budget: Annotated[
        float | None, typer.Option(help="Seconds to imagine in.", show_default="as long as it takes")
    ] = None,
    stop_at: Annotated[
        float, typer.Option(help="End when the first is the best with this chance, 0.5 to 1.", show_default="never")
    ] = 0.0,
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
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Imagine many futures round by round, drop what falls behind, and show the best. The world does not move.

    Examples: `worldtree imagine --goal "go to the goal" --start lava-gap -o futures.png`,
    `worldtree imagine -g "pick up the key" -n 128 --horizon 12 -a left -a right -a forward -a pickup --budget 5`.
    """
    sequences = [parse_actions(text, field=f"sequence {index}") for index, text in enumerate(sequence or [])]
    check_png(to, "futures")
    asked: dict[str, Any] = {
        "candidates": sequences or candidates,
        "horizon": horizon,
        "actions": action,
        "keep": keep,
        "rounds": rounds,
        "halving": halving,
        "chunks": chunks,
        "budget": budget,
        "stop_at": stop_at,
        "goal": goal,
        "category": category,
        "weights": parse_weights(weight or []),
        "judge": judge,
        "seed": seed,
        "frames": to is not None,
    }
    with connect(context, address) as client:
        if session:
            world = client.session(session)
            found = _imagined(client, world, asked)
        else:
            info = client.model(model)
            start, prompt = beginning(info, start, prompt)
            with client.world(info, start=start, prompt=prompt, seed=seed, nfe=nfe) as world:
                tell_warnings(world.warnings)
                found = _imagined(client, world, asked)
    if as_json:
        print_json(_report(found))
    else:
        out.print(futures_table(found))
        tell_warnings(found.notes)
        if found.best.judgement is not None:
            out.print(verdict(found.best.judgement))
        out.print(_spent(found))
    if to is not None:
        draw_to(to, world, found.futures, goal=goal)


def _imagined(client: Client, world: World, asked: dict[str, Any]) -> Imagination:
    with chunk_progress() as bar:
        task = bar.add_task("imagining", total=None)

        def show(standing: Imagination) -> None:
            left = f"imagining, {standing.alive_count} of {standing.candidate_count} futures left"
            bar.update(task, description=left, completed=standing.round, total=standing.round_count)

        return client.navigator.imagine(world, on_round=show, **asked)


def _spent(found: Imagination) -> Text:
    spent = found.spent
    known = f", {spent.known_chunk_count} known before" if spent.known_chunk_count else ""
    return Text(
        f"{found.ending} after round {found.round} of {found.round_count}: {spent.chunk_count} chunks made{known}; all "
        f"{found.candidate_count} futures have {spent.full_chunk_count}, {spent.full_node_count} of them different. "
        f"{spent.total_s:.1f} s: {spent.imagine_s:.1f} for chunks, {spent.score_s:.1f} for {spent.clip_count} scores"
    )


def _report(found: Imagination) -> dict[str, Any]:
    spent = found.spent
    return {
        "futures": futures_json(found),
        "ending": found.ending,
        "round": found.round,
        "round_count": found.round_count,
        "candidate_count": found.candidate_count,
        "chunk_count": spent.chunk_count,
        "known_chunk_count": spent.known_chunk_count,
        "full_node_count": spent.full_node_count,
        "full_chunk_count": spent.full_chunk_count,
        "clip_count": spent.clip_count,
        "imagine_s": spent.imagine_s,
        "score_s": spent.score_s,
        "total_s": spent.total_s,
        "notes": found.notes,
    }
