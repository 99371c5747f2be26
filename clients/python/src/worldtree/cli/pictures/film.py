"""The film of a demo: one to three panels side by side, each with what it shows and what moved it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from worldtree.cli.pictures.ink import FAINT, INK, PAPER, Colour, fade, fit, font, picture_of
from worldtree.types import Frames

PANEL_PX = 336
GAP_PX = 24
TITLE_PX = 64
CAPTION_PX = 64
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """One world at one moment, or in the moments of one chunk."""

    frames: Frames = field(repr=False)  # [height, width, 3] or [frames, height, width, 3]
    name: str
    action: str
    colour: Colour = INK
    faded: bool = False


@dataclass(frozen=True, slots=True)
class Shot:
    """One moment of the film: a title over panels, held for so many frames of the film."""

    title: str
    panels: Sequence[Panel]
    hold: int = 1


class Film:
    """A sequence of shots, rendered at one size."""

    def __init__(self, frame: Frames) -> None:
        height, width = frame.shape[:2]
        self._scale = max(PANEL_PX // max(height, width), 1)
        self._panel = (width * self._scale, height * self._scale)
        self._shots: list[Shot] = []

    @property
    def shot_count(self) -> int:
        return sum(shot.hold for shot in self._shots)

    def add(self, title: str, *panels: Panel, hold: int = 1) -> None:
        self._shots.append(Shot(title, panels, hold))

    def render(self) -> Iterator[Frames]:
        """Each frame of the film, [height, width, 3]."""
        for shot in self._shots:
            # A chunk of many frames moves while it is held; each picture is painted once.
            painted: dict[tuple[int, ...], Frames] = {}
            for tick in range(shot.hold):
                moment = tuple(tick * _count(panel) // shot.hold for panel in shot.panels)
                if moment not in painted:
                    painted[moment] = np.asarray(self._paint(shot, moment))
                yield painted[moment]

    def _paint(self, shot: Shot, moment: Sequence[int]) -> Image.Image:
        panel_width, panel_height = self._panel
        width = COLUMNS * panel_width + (COLUMNS + 1) * GAP_PX
        height = TITLE_PX + panel_height + CAPTION_PX
        image = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        draw = ImageDraw.Draw(image)
        draw.text((GAP_PX, TITLE_PX / 2), shot.title, INK, font(24, bold=True), anchor="lm")
        # One or two panels stand in the middle.
        left = (width - len(shot.panels) * (panel_width + GAP_PX) + GAP_PX) // 2
        for panel, place in zip(shot.panels, moment, strict=True):
            picture = picture_of(panel.frames if panel.frames.ndim == 3 else panel.frames[place], self._scale)
            if panel.faded:
                picture = fade(picture, 0.6)
            draw.rectangle((left - 4, TITLE_PX - 4, left + panel_width + 3, TITLE_PX + panel_height + 3), panel.colour)
            image.paste(picture, (left, TITLE_PX))
            below = TITLE_PX + panel_height + 12
            draw.text(
                (left, below), fit(panel.name, font(18, bold=True), panel_width), panel.colour, font(18, bold=True)
            )
            draw.text((left, below + 24), fit(panel.action, font(16), panel_width), FAINT, font(16))
            left += panel_width + GAP_PX
        return image


def _count(panel: Panel) -> int:
    return 1 if panel.frames.ndim == 3 else len(panel.frames)
