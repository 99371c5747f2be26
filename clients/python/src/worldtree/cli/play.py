"""`worldtree play`: walk through a world in the terminal."""

import statistics
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer
from rich.live import Live

from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.cockpit import Cockpit, rehomed_text
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out
from worldtree.cli.generate import NfeOption, SeedOption
from worldtree.cli.stack import ending_on_sigterm
from worldtree.cli.terminal import Keys
from worldtree.errors import InvalidRequest

REFRESH_PER_S = 20


class WhenIdle(StrEnum):
    WAIT = "wait"
    REPEAT = "repeat"


class MayGiveUp(StrEnum):
    NOTHING = "none"
    NFE = "nfe"


def play(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION.")] = "minigrid",
    start: StartOption = None,
    prompt: PromptOption = None,
    seed: SeedOption = 0,
    nfe: NfeOption = 0,
    session: Annotated[str | None, typer.Option(help="Play a live session.", show_default="a new world")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second at most.", show_default="the model's, or what can be held")
    ] = None,
    idle: Annotated[
        WhenIdle, typer.Option(help="Without a key: wait for one, or repeat the last action.")
    ] = WhenIdle.WAIT,
    degrade: Annotated[
        MayGiveUp, typer.Option(help="What a chunk may give up to be in time: nothing, or evaluations.")
    ] = MayGiveUp.NOTHING,
    address: AddressOption = None,
) -> None:
    """Walk through a world in the terminal, live.

    Arrow keys or w, a, s, d move; space toggles or shoots, p picks up, x (or D) drops; u rewinds, f forks, tab goes to
    the next branch, o pauses, q quits. Any action also by its id, on the digits.
    """
    with ending_on_sigterm(), ExitStack() as stack:
        client = stack.enter_context(connect(context, address))
        if session and (start or prompt):
            raise InvalidRequest("a live session has begun already: --start and --prompt go without --session")
        reattached = client.session(session) if session else None
        info = client.model(reattached.model if reattached else model)
        start, prompt = beginning(info, start, prompt)
        world = reattached or client.world(info, start=start, prompt=prompt, seed=seed, nfe=nfe)
        cockpit = Cockpit(
            world,
            info,
            fps=fps or info.fps,
            insists=fps is not None,
            idle=idle.value,
            degrade="nfe" if degrade is MayGiveUp.NFE else None,
            size=lambda: (out.size.width, out.size.height),
        )
        try:
            with (
                Keys(cockpit.press),
                Live(get_renderable=cockpit.render, console=out, screen=True, refresh_per_second=REFRESH_PER_S),
            ):
                cockpit.run()
        finally:
            # A session that was there before us stays; our own branches go.
            for branch in cockpit.branches[1 if reattached else 0 :]:
                branch.close()
    tell_warnings(world.warnings)
    _say_goodbye(cockpit)


def _say_goodbye(cockpit: Cockpit) -> None:
    text = f"{cockpit.played_count} chunks played, {len(cockpit.branches)} branches"
    if cockpit.latencies_s:
        text += f", key to frame {statistics.median(cockpit.latencies_s) * 1e3:.0f} ms in the median"
    out.print(text)
    for event in cockpit.rehomings:
        out.print(rehomed_text(event))
