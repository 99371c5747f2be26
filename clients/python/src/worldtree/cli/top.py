"""`worldtree top`: what the replicas are doing, live."""

import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from worldtree.cli.board import Reading, page, trouble
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import UNLIMITED_COLUMNS, out, print_json
from worldtree.cli.gauges import Room
from worldtree.cli.stack import ending_on_sigterm
from worldtree.cli.terminal import Keys
from worldtree.client import Client
from worldtree.errors import WorldtreeError

LEAST_TIMEOUT_S = 2.0
SVG_COLUMNS = 140
PIPE_COLUMNS = 160  # of a page that goes into a file or a pipe


def top(
    context: typer.Context,
    replica: Annotated[
        str | None, typer.Option(help="Only this one.", show_default="all that the server names")
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1, max=3600)] = 1.0,
    sessions: Annotated[int, typer.Option(help="Sessions of a model at most.", min=1, max=10_000)] = 100,
    once: Annotated[bool, typer.Option("--once", help="Look once, print it and end.")] = False,
    svg: Annotated[
        Path | None, typer.Option(help="Look once, write a picture there (.svg) and end.", show_default=False)
    ] = None,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; without --once, a line each interval.")] = False,
) -> None:
    """Show what the replicas are doing, live: blocks by tier, ticks, plays and their deadlines, sessions.

    q or Ctrl-C ends it. While the server is away it keeps trying.
    """
    with connect(context, address) as client:
        watch = Watch(client, replica=replica, session_limit=sessions, interval_s=interval)
        if svg is not None:
            save_svg(watch.look(), svg)
        elif once and as_json:
            print_json(watch.look())
        elif once:
            print_page(watch.look(), title=watch.title)
        else:
            # Being told to end is how it ends well.
            with _ends_quietly(), ending_on_sigterm():
                if as_json or not out.is_terminal:
                    print_each(watch, as_json=as_json)
                else:
                    show(watch)


class Watch:
    """Looks at the replicas again and again."""

    def __init__(
        self, client: Client, *, interval_s: float, replica: str | None = None, session_limit: int = 100
    ) -> None:
        self.interval_s = interval_s
        self._client = client
        self._replica = replica
        self._session_limit = session_limit
        # A look at one that does not answer must not hold up the others for long.
        self._timeout_s = max(interval_s, LEAST_TIMEOUT_S)

    @property
    def title(self) -> str:
        return f"worldtree top · {self._client.address}"

    def look(self) -> list[Reading]:
        """One reading a replica. Raises WorldtreeError where none of them says anything."""
        names = [self._replica] if self._replica else self._client.replicas(timeout=self._timeout_s)
        readings = [self._read(name, alone=len(names) == 1) for name in names]
        if all(reading.status is None for reading in readings):
            raise next(reading.error for reading in readings if reading.error is not None)
        return readings

    def _read(self, name: str, *, alone: bool) -> Reading:
        # One that is alone and was not asked for by its name is whichever answers: it may have just been restarted.
        asked = None if alone and self._replica is None else name
        try:
            status = self._client.introspect(asked, session_limit=self._session_limit, timeout=self._timeout_s)
        except WorldtreeError as error:
            return Reading(name, error=error)
        return Reading(status.replica, status)


def show(watch: Watch) -> None:
    """The live page, until a key or a signal ends it."""
    quitting = threading.Event()

    def press(key: str) -> None:
        if key in ("q", "escape"):
            quitting.set()

    # Without keys (a pipe on stdin) Ctrl-C is there still.
    keys: AbstractContextManager[object] = Keys(press) if Keys.possible() else nullcontext()
    with keys, Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            try:
                shown = page(watch.look(), title=f"{watch.title} · q quits", room=_room(live=True))
            except WorldtreeError as error:
                shown = trouble(error, title=watch.title, interval_s=watch.interval_s)
            live.update(shown, refresh=True)
            if quitting.wait(watch.interval_s):
                return


def print_each(watch: Watch, *, as_json: bool) -> None:
    """A page, or a line of JSON, each interval: for pipes and files."""
    pause = threading.Event()
    while True:
        try:
            readings = watch.look()
        except WorldtreeError as error:
            if as_json:
                print_json([Reading("", error=error)], indent=None)
            else:
                out.print(trouble(error, title=watch.title, interval_s=watch.interval_s))
        else:
            if as_json:
                print_json(readings, indent=None)
            else:
                print_page(readings, title=watch.title)
        pause.wait(watch.interval_s)


def print_page(readings: list[Reading], *, title: str) -> None:
    """The whole page once, however many rows it has."""
    room = _room(live=False)
    out.print(page(readings, title=title, room=room), width=room.columns)


def save_svg(readings: list[Reading], path: Path) -> None:
    """The page as a picture of a terminal."""
    console = Console(
        record=True, file=StringIO(), width=SVG_COLUMNS, force_terminal=True, color_system="truecolor", highlight=False
    )
    console.print(page(readings, title="worldtree top", room=Room(SVG_COLUMNS)))
    # The id else depends on the content: a picture that is taken again should differ in its figures only.
    picture = console.export_svg(title="worldtree top", unique_id="top")
    # Rich would have it load fonts from somebody's server; the reader's own monospace will do.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


def _room(*, live: bool) -> Room:
    columns = out.size.width
    if columns >= UNLIMITED_COLUMNS:
        columns = PIPE_COLUMNS
    return Room(columns, out.size.height if live else None)


@contextmanager
def _ends_quietly() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise typer.Exit(0) from None
