"""A frame as characters: each cell is an upper half block, two pixels."""

from functools import lru_cache

import numpy as np
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from worldtree.cli.pictures.ink import picture_of
from worldtree.media import enlarge
from worldtree.types import Frames

UPPER_HALF = "▀"


class HalfBlocks:
    """Renders one frame [height, width, 3] within `columns` x `rows` cells, as large as whole pixels allow."""

    def __init__(self, frame: Frames, *, columns: int, rows: int) -> None:
        self.pixels = fit_pixels(frame, columns=columns, rows=rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for upper, lower in zip(self.pixels[0::2], self.pixels[1::2], strict=True):
            cells = np.concatenate([upper, lower], axis=1)  # [width, 6]
            begin = 0
            # One segment for each run of equal cells: a terminal over a slow line gets far fewer bytes.
            for end in (*(np.flatnonzero((cells[1:] != cells[:-1]).any(axis=1)) + 1), len(cells)):
                yield Segment(UPPER_HALF * int(end - begin), _style(*map(int, cells[begin])))
                begin = end
            yield Segment.line()


def fit_pixels(frame: Frames, *, columns: int, rows: int) -> Frames:
    """The frame enlarged by a whole number, or reduced with its shape kept; an even number of pixel rows."""
    height, width = frame.shape[:2]
    room = min(columns / width, 2 * rows / height)
    if room >= 1:
        pixels = enlarge(frame, int(room))
    else:
        size = (max(int(width * room), 1), max(int(height * room), 2))
        # Averaging keeps thin lines and small things visible where dropping pixels would lose them.
        pixels = np.asarray(picture_of(frame, 1).resize(size, resample=4))  # 4: BOX
    if pixels.shape[0] % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    return pixels


@lru_cache(maxsize=4096)
def _style(red: int, green: int, blue: int, below_red: int, below_green: int, below_blue: int) -> Style:
    return Style(color=Color.from_rgb(red, green, blue), bgcolor=Color.from_rgb(below_red, below_green, below_blue))
