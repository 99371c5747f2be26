"""Where a world of the command line begins: at a start of its model, or in words."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.text import Text

from worldtree.cli.console import err
from worldtree.errors import InvalidRequest
from worldtree.types import ModelInfo

StartOption = Annotated[str | None, typer.Option(help="A start scene of the model.", show_default="its first")]
PromptOption = Annotated[
    str | None,
    typer.Option(help="The scene in words in place of a start, where the model takes them (worldtree models)."),
]


def beginning(info: ModelInfo, start: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """The start and the prompt to ask for, one of them None. Raises InvalidRequest."""
    if start and prompt:
        raise InvalidRequest("--start and --prompt exclude each other", field="prompt")
    return (None, prompt) if prompt else (start or next(iter(info.starts), None), None)


def tell_warnings(warnings: Iterable[str]) -> None:
    """What the server ignored of a request."""
    for warning in warnings:
        err.print(Text(warning, style="yellow"))
