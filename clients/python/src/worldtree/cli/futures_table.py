"""Judged futures as a table, best first, as JSON, and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from worldtree.cli.console import err
from worldtree.errors import InvalidRequest
from worldtree.navigator_types import Future
from worldtree.reward_types import Judgement
from worldtree.world import World

SHOWN = 12  # futures in a table or picture


def futures_table(futures: Sequence[Future]) -> Table:
    dimensions = next((list(each.judgement.dimensions) for each in futures if each.judgement), [])
    table = Table("rank", "#", "reward", *dimensions, "actions")
    for each in futures[:SHOWN]:
        actions = Text(" ".join(map(str, each.actions[: each.chunk_count])))
        # What was not imagined any more.
        actions.append(" ".join(["", *map(str, each.actions[each.chunk_count :])]), style="dim")
        table.add_row(str(each.rank), str(each.index), *_scores(each.judgement, dimensions), actions)
    if len(futures) > SHOWN:
        table.caption = f"the best {SHOWN} of {len(futures)}"
    return table


def _scores(judgement: Judgement | None, dimensions: Sequence[str]) -> list[str | Text]:
    if judgement is None:
        return ["-"] * (1 + len(dimensions))
    spread = "" if math.isinf(judgement.uncertainty) else f" ±{judgement.uncertainty:.2f}"
    scores = (
        Text(f"{judgement[name]:.2f}", style="bold" if judgement.dimensions[name].counts else "dim")
        for name in dimensions
    )
    return [f"{judgement.reward:.2f}{spread}", *scores]


def futures_json(futures: Sequence[Future]) -> list[dict[str, Any]]:
    return [
        {"rank": each.rank, "index": each.index, "actions": each.actions, "chunk_count": each.chunk_count}
        | (_judgement_json(each.judgement) if each.judgement else {})
        for each in futures
    ]


def _judgement_json(judgement: Judgement) -> dict[str, Any]:
    return {
        "reward": judgement.reward,
        # JSON knows no infinity
        "uncertainty": None if math.isinf(judgement.uncertainty) else judgement.uncertainty,
        "category": judgement.category,
        "category_probability": judgement.category_probability,
        "dimensions": {name: score.score for name, score in judgement.dimensions.items()},
        "notes": judgement.notes,
    }


def check_png(to: Path | None, what: str) -> None:
    """Before anything is imagined. Raises InvalidRequest."""
    if to is not None and to.suffix.lower() != ".png":
        raise InvalidRequest(f"a picture of {what} is a .png, got {to.name!r}", field="out")


def draw_to(to: Path, world: World, futures: Sequence[Future], *, goal: str) -> None:
    """`futures` hold their frames, and go on from where the world stands."""
    # Only whoever draws has Pillow.
    from worldtree.cli.pictures.futures import draw_futures
    from worldtree.cli.pictures.ink import save_picture

    save_picture(draw_futures(world.last_frame, futures, goal=goal), to)
    err.print(f"wrote {to}")
