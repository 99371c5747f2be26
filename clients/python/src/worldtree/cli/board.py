"""What `worldtree top` shows: replicas as a page of text, however wide the terminal is."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from worldtree.cli.gauges import Part, Room, bar, size_text, sparkline, time_text
from worldtree.cli.roster import plays_table, sessions_table
from worldtree.errors import WorldtreeError
from worldtree.introspection import ModelStatus, ReplicaStatus, Tier

LEAST_ROWS = 3  # sessions, and plays, that are shown however low the terminal is
BAR_COLUMNS = {False: 16, True: 32}  # by whether the terminal is wide
MARGIN_COLUMNS = 26  # beside a sparkline: its label and its number
MEMBERS = (("play", "play_count", "green"), ("step", "step_count", "cyan"), ("bulk", "bulk_count", "magenta"))


@dataclass(frozen=True, slots=True)
class Reading:
    """What one replica said, or why it said nothing."""

    replica: str
    status: ReplicaStatus | None = None
    error: WorldtreeError | None = None


def page(readings: Sequence[Reading], *, title: str, room: Room) -> Group:
    """The whole page: a line on top, then replica by replica."""
    models = [model for reading in readings if reading.status for model in reading.status.models]
    limit = _table_rows(models, len(readings) + sum(reading.error is not None for reading in readings), room)
    parts: list[RenderableType] = [_line(Text(title, "bold"))]
    for reading in readings:
        parts.append(Rule(_replica_title(reading), align="left", style="dim"))
        if reading.error is not None:
            told = Text(" ".join(str(reading.error).split()), "red")
            # On a page that goes into a file all of it can be read; on a live one it has one row.
            parts.append(told if room.rows is None else _line(told))
        if reading.status is not None:
            for model in reading.status.models:
                parts.extend(_model(model, reading.status.time, room, limit))
            if not reading.status.models:
                parts.append(Text("no models", "dim"))
    return Group(*parts)


def trouble(error: WorldtreeError, *, title: str, interval_s: float) -> Group:
    """The page while nobody answers."""
    return Group(
        _line(Text(title, "bold")),
        Text(" ".join(str(error).split()), "red"),
        Text(f"trying again every {interval_s:g} s; Ctrl-C ends", "dim"),
    )


def _table_rows(models: Sequence[ModelStatus], title_count: int, room: Room) -> int | None:
    """Rows that a table of sessions or plays may have at most, so that all of the page fits. None: all they have."""
    if room.rows is None:
        return None
    wanted = [len(table) for model in models for table in (model.sessions, model.plays) if table]
    gauges = sum(2 + len(model.tiers) + (4 if model.ticks else 1) + bool(model.tenants) for model in models)
    # Each table also has the line of its columns, and the one of what is left out.
    left = room.rows - 1 - title_count - gauges - 2 * len(wanted)
    limit = LEAST_ROWS
    # What short tables leave over is for the long ones.
    while limit < max(wanted, default=0) and sum(min(rows, limit + 1) for rows in wanted) <= left:
        limit += 1
    return limit


def _replica_title(reading: Reading) -> Text:
    status = reading.status
    if status is None:
        return Text(f"{reading.replica} does not answer", "bold red")
    title = Text.assemble((status.replica, "bold"), f" up {time_text(status.uptime_s)}")
    return title.append(" draining", "bold yellow") if status.draining else title


def _model(model: ModelStatus, now: datetime, room: Room, limit: int | None) -> Iterator[RenderableType]:
    yield _line(
        Text.assemble(
            (f"{model.name}/{model.version}", "bold cyan"),
            f"  {_states(model)} · {model.prefix_hit_count} chunks from known blocks",
        )
    )
    gauges = [*map(_tier, model.tiers), _load(model), *_ticks(model, now, room), *_tenants(model)]
    label_columns = max(len(gauge.label) for gauge in gauges)
    for gauge in gauges:
        yield gauge.line(label_columns, room)
    if model.plays:
        shown = len(model.plays) if limit is None else limit
        yield from _cut(plays_table(model.plays[:shown], room), len(model.plays), shown, "plays")
    if model.sessions:
        shown = min(len(model.sessions), len(model.sessions) if limit is None else limit)
        yield from _cut(sessions_table(model.sessions[:shown], now, room), model.session_count, shown, "sessions")


def _states(model: ModelStatus) -> str:
    text = f"{model.session_count} session{'' if model.session_count == 1 else 's'}"
    counts = {
        state: sum(each.session.state == state for each in model.sessions) for state in ("busy", "idle", "spilled")
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if not told:
        return text
    among = "" if len(model.sessions) == model.session_count else f" of {len(model.sessions)} looked at"
    return f"{text} ({told}{among})"


@dataclass(frozen=True, slots=True)
class Gauge:
    """A line: what it is, a picture of it (a bar of parts, or a shape), and its numbers."""

    label: str
    numbers: Text
    parts: tuple[Part, ...] = ()
    total: int = 0
    shape: Text | None = None

    def line(self, label_columns: int, room: Room) -> Text:
        text = Text(f"{self.label:{label_columns}}  ")
        if self.shape is not None and not room.narrow:
            text.append_text(self.shape).append("  ")
        elif self.parts and not room.narrow:
            text.append_text(bar(self.parts, total=self.total, columns=BAR_COLUMNS[room.wide])).append("  ")
        return _line(text.append_text(self.numbers))


def _tier(tier: Tier) -> Gauge:
    return _copies(tier) if tier.storage is None else _pool(tier)


def _copies(tier: Tier) -> Gauge:
    """Below the pools: copies that nobody holds, limited by their bytes."""
    numbers = Text.assemble(("▒", "blue"), f" {tier.cached_block_count} cached")
    limit = f" of {size_text(tier.capacity_bytes)}" if tier.capacity_bytes else ""
    numbers.append(f" · {size_text(tier.used_bytes)}{limit}", "dim")
    return Gauge(
        tier.label, numbers, ((tier.used_bytes, "▒", "blue"),), total=tier.capacity_bytes or max(tier.used_bytes, 1)
    )


def _pool(tier: Tier) -> Gauge:
    numbers = Text()
    if tier.free_block_count is not None:
        numbers.append(f"{tier.free_block_count} of {tier.capacity_block_count} free · ")
    numbers.append("█", "green").append(f" {tier.held_block_count} held")
    if tier.shared_block_count:
        numbers.append(f" ({tier.shared_block_count} shared)")
    if tier.in_flight_block_count:
        numbers.append(" ▓", "yellow").append(f" {tier.in_flight_block_count} in flight")
    numbers.append(" ▒", "blue").append(f" {tier.cached_block_count} cached")
    numbers.append(f" · {size_text(tier.used_bytes)}", "dim")
    parts = (
        (tier.held_block_count, "█", "green"),
        (tier.in_flight_block_count, "▓", "yellow"),
        (tier.cached_block_count, "▒", "blue"),
    )
    return Gauge(
        tier.label,
        numbers,
        parts,
        # Where there is no limit, the bar shows what it is made up of.
        total=tier.capacity_block_count or sum(amount for amount, _, _ in parts),
    )


def _load(model: ModelStatus) -> Gauge:
    share = round(min(max(model.play_load, 0.0), 1.0) * 100)
    plays = f"{len(model.plays)} play{'' if len(model.plays) == 1 else 's'}"
    return Gauge("load", Text(f"{share} % of the engine promised to {plays}"), ((share, "█", "green"),), total=100)


def _ticks(model: ModelStatus, now: datetime, room: Room) -> Iterator[Gauge]:
    ticks = model.ticks
    if not ticks:
        yield Gauge("ticks", Text("none yet", "dim"))
        return
    members = [tick.play_count + tick.step_count + tick.bulk_count for tick in ticks]
    median_s = statistics.median(tick.duration_s for tick in ticks)
    yield Gauge(
        "ticks",
        Text(
            f"{median_s * 1e3:.1f} ms in the median · {statistics.mean(members):.1f} of {model.max_batch_size} members"
            f" · {statistics.mean(tick.commit_count for tick in ticks):.1f} commits"
            f" · the last {time_text((now - ticks[-1].end_time).total_seconds())} ago"
        ),
    )
    # One scale for all three, so that they can be compared.
    highest = max(max(tick.play_count, tick.step_count, tick.bulk_count) for tick in ticks)
    for name, field, style in MEMBERS:
        counts = [int(getattr(tick, field)) for tick in ticks]
        shape = sparkline(counts[-max(room.columns - MARGIN_COLUMNS, 1) :], highest=highest)
        yield Gauge(name, Text(f"{statistics.mean(counts):.1f} a tick"), shape=Text(shape, style))


def _tenants(model: ModelStatus) -> Iterator[Gauge]:
    if model.tenants:
        told = ", ".join(
            f"{each.tenant} {each.chunk_count} chunks" + (f" ({each.waiting_count} waiting)" * bool(each.waiting_count))
            for each in model.tenants
        )
        yield Gauge("bulk of", Text(told))


def _cut(table: Table, count: int, shown: int | None, what: str) -> Iterator[RenderableType]:
    yield table
    if shown is not None and count > shown:
        yield Text(f"and {count - shown} more {what}", "dim")


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
