"""The plays and sessions of a replica as tables, for however wide a terminal is."""

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from worldtree.cli.gauges import Room, time_text
from worldtree.introspection import PlayStatus, SessionStatus

NUMBERS = {"chunk", "chunks", "blocks", "fps", "slack", "missed", "degraded", "lease"}
STATES = {"idle": "", "busy": "green", "spilled": "yellow"}
Cell = str | Text


def plays_table(plays: Sequence[PlayStatus], room: Room) -> Table:
    rows: list[list[Cell]] = [
        [
            play.session,
            f"{play.fps:g}" if play.fps else "free",
            Text(f"{play.slack_s * 1e3:+.0f} ms", "red" if play.slack_s < 0 else "green") if play.fps else "",
            str(play.chunk_count),
            Text(str(play.missed_count), "red" if play.missed_count else ""),
            Text(str(play.degraded_count), "yellow" if play.degraded_count else ""),
        ]
        for play in plays
    ]
    return _table(["play of", "fps", "slack", "chunks", "missed", "degraded"], rows, room)


def sessions_table(sessions: Sequence[SessionStatus], now: datetime, room: Room) -> Table:
    names = ["session", "state", "chunk", "blocks"]
    if not room.narrow:
        names += ["call", "journal", "lease"]
    if room.columns >= 80:
        names += ["tenant"]
    if room.wide:
        names += ["shares with"]
    rows: list[list[Cell]] = []
    for each in sessions:
        info = each.session
        cells: dict[str, Cell] = {
            "session": info.id,
            "state": Text(info.state, STATES.get(info.state, "")),
            "chunk": str(info.chunk_index),
            "blocks": f"{info.block_count}" + (f" ({info.shared_block_count})" if info.shared_block_count else ""),
            "call": each.call or "",
            "journal": _journal(each),
            "lease": time_text((info.expire_time - now).total_seconds()),
            "tenant": each.tenant,
            "shares with": " ".join(f"{_short(other.session)}:{other.block_count}" for other in each.sharing),
        }
        rows.append([cells[name] for name in names])
    return _table(names, rows, room)


def _journal(status: SessionStatus) -> Text:
    if not status.session.journaled:
        return Text("none", "yellow")
    if status.journal_behind_count:
        return Text(f"{status.journal_behind_count} behind", "yellow")
    return Text("written")


def _short(session: str) -> str:
    """Enough of an id to find it in the list."""
    return session[:6].partition(".")[0]


def _table(names: Sequence[str], rows: Sequence[Sequence[Cell]], room: Room) -> Table:
    """Columns as wide as what is in them; those that do not fit are left out, and the last one that does is cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="reverse")
    left = room.columns
    kept = 0
    for index, name in enumerate(names):
        width = max(len(name), *(len(row[index]) for row in rows))
        if left < len(name):
            break
        table.add_column(
            name,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if name in NUMBERS else "left",
            width=min(width, left),
        )
        kept += 1
        left -= width + 2
    for row in rows:
        table.add_row(*row[:kept])
    return table
