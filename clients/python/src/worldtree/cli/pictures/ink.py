"""Colours, letters and arrows that the pictures share."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from worldtree.media import enlarge
from worldtree.types import Frames

PAPER = (250, 249, 246)
INK = (33, 37, 41)
FAINT = (134, 142, 150)
HAIRLINE = (206, 212, 218)
# One a branch, of even weight on paper and apart for the colour-blind (after Okabe and Ito).
BRANCH_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 148, 108), (180, 90, 145), (170, 130, 0), (86, 130, 180))

Colour = tuple[int, int, int]
FONT_FILES = ("DejaVuSans.ttf", "Arial.ttf", "Helvetica.ttf")


@lru_cache
def font(size_px: int, *, bold: bool = False) -> Any:
    """A sans-serif face of the system, or the one inside Pillow."""
    for name in ("DejaVuSans-Bold.ttf", *FONT_FILES) if bold else FONT_FILES:
        try:
            return ImageFont.truetype(name, size_px)
        except OSError:
            continue
    return ImageFont.load_default(size_px)


def picture_of(pixels: Frames, scale: int) -> Image.Image:
    """One frame [height, width, 3], enlarged without blur."""
    return Image.fromarray(enlarge(pixels, scale))


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with `share` of `other` in it."""
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def fade(image: Image.Image, share: float) -> Image.Image:
    """Towards the paper, for what is no longer or only imagined."""
    return Image.blend(image, Image.new("RGB", image.size, PAPER), share)


def arrow_head(draw: ImageDraw.ImageDraw, tip: tuple[float, float], colour: Colour, size_px: float = 7) -> None:
    """Points right, with its tip at `tip`."""
    x, y = tip
    draw.polygon([(x, y), (x - size_px, y - size_px * 0.6), (x - size_px, y + size_px * 0.6)], fill=colour)


def text_width(text: str, face: Any) -> float:
    return float(face.getlength(text))


def fit(text: str, face: Any, width_px: float) -> str:
    """`text`, cut with an ellipsis where it is wider than there is room."""
    if text_width(text, face) <= width_px:
        return text
    while text and text_width(text + "…", face) > width_px:
        text = text[:-1]
    return text + "…"


def save_picture(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
    return path
