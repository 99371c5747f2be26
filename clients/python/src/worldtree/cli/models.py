"""`worldtree models`: what a server serves; and the tools for those who bring a model (packages.py)."""

from typing import Annotated

import typer
from rich.table import Table

from worldtree.cli import packages
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out, print_json
from worldtree.types import ModelInfo

app = typer.Typer(help="List the served models; or begin, check, time, zip and install a model package.")
app.command()(packages.new)
app.command()(packages.validate)
app.command()(packages.bench)
app.command()(packages.pack)
app.command()(packages.install)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the served models with their actions and starts; or begin, check, time, zip and install a model package.

    `docs/bring-your-own-model.md` walks through it from a PyTorch module to a served world.
    """
    if context.invoked_subcommand is None:
        _list(context, address, as_json=as_json)


@app.command("list")
def list_(context: typer.Context, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the served models with their actions and starts."""
    _list(context, address, as_json=as_json)


def _list(context: typer.Context, address: str | None, *, as_json: bool) -> None:
    with connect(context, address) as client:
        listed = client.models()
    if as_json:
        print_json(listed)
        return
    if not listed:
        out.print("no models: the server's model repository is empty")
    for model in listed:
        out.print(model_table(model))


def model_table(model: ModelInfo) -> Table:
    """A card of the model, for people."""
    table = Table(show_header=False, title=f"{model.name}/{model.version}", title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    actions = ", ".join(model.actions)
    if model.continuous:
        box = model.continuous
        actions = f"vectors of {box.size} in [{box.low:g}, {box.high:g}]"
    for label, value in (
        ("", model.description),
        ("frame", f"{model.width_px} x {model.height_px} px, {model.fps:g} fps, {model.frames_per_chunk} a chunk"),
        ("actions", actions),
        ("starts", _starts(model)),
        ("prompts", _prompts(model)),
        ("nfe", ", ".join(str(nfe) + (" (default)" if nfe == model.nfe_default else "") for nfe in model.nfe_choices)),
        ("window", f"{model.window_chunks} chunks, {model.block_bytes / 1024:.0f} KiB each"),
        ("storage", _storage(model)),
        ("policies", ", ".join(model.policy_plugins)),
        ("licence", model.license),
        ("digest", model.digest[:16]),
    ):
        if value:
            table.add_row(label, value)
    return table


def _storage(model: ModelInfo) -> str:
    return ", ".join(
        f"{each.storage}: {each.block_bytes / 1024:.4g} KiB a block, {each.block_count} blocks"
        for each in model.storage_formats
    )


def _prompts(model: ModelInfo) -> str:
    space = model.prompt_space
    if space is None:
        return ""
    examples = "".join(f"\n{example}" for example in space.examples)
    return f"up to {space.token_limit} of the words {', '.join(space.words)}{examples}"


def _starts(model: ModelInfo) -> str:
    width = max((len(start) for start in model.starts), default=0)
    return "\n".join(f"{start:{width}}  {start.description}".rstrip() for start in model.starts)
