"""`worldtree rollout`: imagine futures, tabulate and picture them."""

import random
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from worldtree.cli.actions_text import ACTIONS_HELP, parse_actions
from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, out, print_json
from worldtree.cli.generate import NfeOption, SeedOption, chunk_progress
from worldtree.errors import InvalidRequest
from worldtree.types import ModelInfo
from worldtree.world import World


def rollout(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION.")] = "minigrid",
    sequence: Annotated[
        list[str] | None, typer.Option("--sequence", "-s", help=f"A future; may be repeated. {ACTIONS_HELP}")
    ] = None,
    random_count: Annotated[int, typer.Option("--random", help="Add so many random futures.", min=0, max=256)] = 0,
    horizon: Annotated[int, typer.Option(help="Actions in each random future.", min=1, max=256)] = 6,
    session: Annotated[
        str | None, typer.Option(help="Imagine from this live session.", show_default="a new world from --start")
    ] = None,
    start: StartOption = None,
    prompt: PromptOption = None,
    seed: SeedOption = 0,
    nfe: NfeOption = 0,
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a contact sheet there (.png).", show_default=False)
    ] = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Imagine several futures at once; shared beginnings are generated once, and the world does not move."""
    sequences: list[list[Any]] = [
        parse_actions(text, field=f"sequence {index}") for index, text in enumerate(sequence or [])
    ]
    if to is not None and to.suffix.lower() != ".png":
        raise InvalidRequest(f"a contact sheet is a .png, got {to.name!r}", field="out")
    with connect(context, address) as client:
        world = client.session(session) if session else None
        info = client.model(world.model if world else model)
        sequences += random_sequences(info, count=random_count, horizon=horizon, seed=seed)
        if not sequences:
            raise InvalidRequest("no future to imagine", field="sequence", remedy="give --sequence or --random")
        if world is not None:
            report = _imagine(world, sequences, to)
        else:
            start, prompt = beginning(info, start, prompt)
            with client.world(info, start=start, prompt=prompt, seed=seed, nfe=nfe) as world:
                tell_warnings(world.warnings)
                report = _imagine(world, sequences, to)
    if as_json:
        print_json(report)
        return
    table = Table("#", "actions", "chunks", "state hash")
    for row in report["rollouts"]:
        table.add_row(
            str(row["index"]), " ".join(map(str, row["actions"])), str(len(row["actions"])), row["state_hash"][:16]
        )
    out.print(table)
    out.print(
        f"{report['chunk_count']} chunks in {len(sequences)} futures, {report['node_count']} generated, "
        f"{report['elapsed_s']:.2f} s"
    )
    if to is not None:
        err.print(f"wrote {to}")


def random_sequences(info: ModelInfo, *, count: int, horizon: int, seed: int) -> list[list[Any]]:
    """Random futures of a discrete model or of a continuous one; the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311 - dice, not secrets
    if info.continuous is not None:
        box = info.continuous
        return [
            [tuple(dice.uniform(box.low, box.high) for _ in range(box.size)) for _ in range(horizon)]
            for _ in range(count)
        ]
    return [[dice.choice(info.actions) for _ in range(horizon)] for _ in range(count)]


def _imagine(world: World, sequences: list[list[Any]], to: Path | None) -> dict[str, Any]:
    node_count = 0
    begin_s = time.perf_counter()
    with chunk_progress() as bar:
        task = bar.add_task("imagining", total=None)

        def advance(done: int, total: int) -> None:
            nonlocal node_count
            node_count = total
            bar.update(task, completed=done, total=total)

        rollouts = world.rollout(sequences, detail="none" if to is None else "all", progress=advance)
    elapsed_s = time.perf_counter() - begin_s
    if to is not None:
        from worldtree.cli.pictures.ink import save_picture
        from worldtree.cli.pictures.sheet import draw_sheet

        save_picture(draw_sheet(world.last_frame, rollouts), to)
    return {
        "session": world.id,
        "node_count": node_count,
        "chunk_count": sum(len(rollout.actions) for rollout in rollouts),
        "elapsed_s": round(elapsed_s, 4),
        "rollouts": [
            {"index": index, "actions": rollout.actions, "state_hash": rollout.state_hash}
            for index, rollout in enumerate(rollouts)
        ],
    }
