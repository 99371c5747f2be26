"""What futures are asked on the command line: options that several commands have."""

from typing import Annotated

import typer
from rich.text import Text

from worldtree.errors import InvalidRequest
from worldtree.reward_types import Judgement

GoalOption = Annotated[
    str, typer.Option("--goal", "-g", help='What it is for, in words: "go to the red door".', show_default="none")
]
WeightOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        "-w",
        help="DIMENSION=WEIGHT: how much it counts, in place of what the goal's category learnt; may be repeated.",
        show_default=False,
    ),
]
CategoryOption = Annotated[
    str | None, typer.Option(help="Who judges (worldtree score --rubrics lists them).", show_default="by the goal")
]
JudgeOption = Annotated[str | None, typer.Option(help="NAME or NAME/VERSION.", show_default="the only one")]


def parse_weights(texts: list[str]) -> dict[str, float] | None:
    """Raises InvalidRequest."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError
            found[name.strip()] = float(value)
        except ValueError:
            raise InvalidRequest(f"--weight takes DIMENSION=WEIGHT, got {text!r}", field="weight") from None
    return found or None


def verdict(best: Judgement) -> Text:
    """Who judged."""
    if best.category is None:
        return Text("the goal is of no category that the judge knows: it cannot say which is best", style="yellow")
    return Text(f"judged as {best.category} ({best.category_probability:.0%})")
