"""Numbers as characters: bars, sparklines, sizes and times."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

NARROW_COLUMNS = 60  # below it bars and sparklines make room for their numbers
WIDE_COLUMNS = 110  # from here on it is also told who shares with whom
EIGHTHS = "▁▂▃▄▅▆▇█"
SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
# Of a bar's parts: their glyphs differ too, for terminals (and eyes) that have no colours.
Part = tuple[int, str, str]  # how much of it, glyph, style


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is of a terminal. `rows` None: as many as it takes."""

    columns: int
    rows: int | None = None

    @property
    def narrow(self) -> bool:
        return self.columns < NARROW_COLUMNS

    @property
    def wide(self) -> bool:
        return self.columns >= WIDE_COLUMNS


def bar(parts: Sequence[Part], *, total: int, columns: int, rest: str = "·") -> Text:
    """Parts of a whole side by side, in `columns` cells. A part that is there at all has a cell while any is left."""
    text = Text(no_wrap=True)
    left = columns
    seen = 0
    begin = 0
    for amount, glyph, style in parts:
        seen += amount
        end = round(columns * min(seen / total, 1.0)) if total else 0
        cells = min(max(end - begin, 1 if amount else 0), left)
        text.append(glyph * cells, style)
        begin += cells
        left -= cells
    return text.append(rest * left, "dim")


def sparkline(values: Sequence[float], *, highest: float) -> str:
    """One character a value, from nothing (a space) to `highest` (a full block)."""
    cells = []
    for value in values:
        share = min(value / highest, 1.0) if highest > 0 else 0.0
        # What is there is seen: the lowest block for however little.
        cells.append(" " if value <= 0 else EIGHTHS[max(round(share * len(EIGHTHS)), 1) - 1])
    return "".join(cells)


def size_text(size_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    unit = 0
    while size_bytes >= 1024 and unit < len(SIZES) - 1:
        size_bytes /= 1024
        unit += 1
    return f"{size_bytes:.0f} {SIZES[unit]}" if unit == 0 or size_bytes >= 100 else f"{size_bytes:.3g} {SIZES[unit]}"


def time_text(seconds: float) -> str:
    """Two units at most: 42 s, 3 min 05 s, 2 h 07 min, 4 d 03 h."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02} h"
