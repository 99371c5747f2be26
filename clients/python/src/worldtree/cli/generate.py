"""`worldtree generate`: a clip in one call."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldtree.cli.actions_text import ACTIONS_HELP, parse_actions
from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, out, print_json
from worldtree.media import check_suffix

SeedOption = Annotated[int, typer.Option(help="Seed of the world's noise.", min=0)]
NfeOption = Annotated[int, typer.Option(help="Function evaluations a chunk; 0 is the model's default.", min=0)]


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION.")] = "minigrid",
    start: StartOption = None,
    prompt: PromptOption = None,
    actions: Annotated[str, typer.Option(help=ACTIONS_HELP)] = "forward*8",
    seed: SeedOption = 0,
    nfe: NfeOption = 0,
    to: Annotated[Path, typer.Option("--out", "-o", help="Where to: .mp4, .gif or .png.")] = Path("clip.mp4"),
    fps: Annotated[
        float | None, typer.Option(help="Frames a second of the film.", show_default="the model's", min=0.001)
    ] = None,
    scale: Annotated[int, typer.Option(help="Enlarge each pixel to a square of this side.", min=1, max=64)] = 6,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Generate a clip and write it as a film, an animation or a contact sheet."""
    wanted = parse_actions(actions)
    check_suffix(to)
    with connect(context, address) as client:
        info = client.model(model)
        start, prompt = beginning(info, start, prompt)
        begin_s = time.perf_counter()
        with chunk_progress() as bar:
            task = bar.add_task(f"generating {info.name}", total=len(wanted))
            clip = client.generate(
                info,
                start=start,
                prompt=prompt,
                actions=wanted,
                seed=seed,
                nfe=nfe,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        elapsed_s = time.perf_counter() - begin_s
    tell_warnings(clip.warnings)
    path = clip.save(to, fps=fps or info.fps, scale=scale)
    if as_json:
        print_json(
            {
                "path": str(path),
                "model": f"{info.name}/{info.version}",
                "digest": info.digest,
                "start": start,
                "prompt": prompt,
                "warnings": clip.warnings,
                "seed": seed,
                "chunk_count": len(clip.chunks),
                "frame_count": len(clip.frames),
                "elapsed_s": round(elapsed_s, 4),
                "state_hash": clip.state_hash,
            }
        )
        return
    out.print(f"{path}: {len(clip.frames)} frames of {info.name} from {start or repr(prompt)} in {elapsed_s:.2f} s")


def chunk_progress() -> Progress:
    """A bar on stderr, gone when done; nothing where stderr is no terminal, not even the line it would stand on."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
