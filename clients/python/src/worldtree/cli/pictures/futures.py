"""Futures as rows, best first, each with its scores beside it."""

from collections.abc import Sequence
from itertools import zip_longest

from PIL import Image, ImageDraw

from worldtree.cli.pictures.ink import BRANCH_COLOURS, FAINT, HAIRLINE, INK, PAPER, fit, font, picture_of
from worldtree.navigator_types import Future
from worldtree.reward_types import Judgement
from worldtree.types import Frames

MARGIN_PX = 24
GAP_PX = 6
CAPTION_PX = 20
HEAD_PX = 34
NAME_PX = 92
BARS_PX = 250
BAR_PX = 9
THUMB_PX = 112


def draw_futures(now: Frames, futures: Sequence[Future], *, goal: str) -> Image.Image:
    """`now` is where the world stands, [height, width, 3]; each future goes on from it, and holds its frames.

    Of a future that fell behind, the actions that were not imagined are written without a picture.
    """
    scale = max(THUMB_PX // max(now.shape[:2]), 1)
    height, width = now.shape[0] * scale, now.shape[1] * scale
    longest = max(len(future.actions) for future in futures)
    names = list(futures[0].judgement.dimensions) if futures[0].judgement else []
    row_px = max(height + CAPTION_PX, len(names) * (BAR_PX + 4)) + 2 * GAP_PX
    left_px = MARGIN_PX + NAME_PX + BARS_PX
    size = (left_px + (longest + 1) * (width + GAP_PX) + MARGIN_PX, 2 * MARGIN_PX + HEAD_PX + len(futures) * row_px)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    title = f"goal: {goal}" if goal else "no goal: how true the pictures are"
    draw.text(
        (MARGIN_PX, MARGIN_PX), fit(title, font(18, bold=True), size[0] - 2 * MARGIN_PX), INK, font(18, bold=True)
    )
    for row, future in enumerate(futures):
        top = MARGIN_PX + HEAD_PX + row * row_px
        draw.text((MARGIN_PX, top + 4), f"{future.rank}.", INK, font(22, bold=True))
        draw.text((MARGIN_PX, top + 34), f"#{future.index}", FAINT, font(13))
        if future.judgement is not None:
            draw.text((MARGIN_PX, top + 52), f"{future.judgement.reward:.2f}", INK, font(15))
            _draw_bars(draw, future.judgement, names, MARGIN_PX + NAME_PX, top)
        frames = [] if future.frames is None else list(future.frames)
        # With several frames a chunk, the last one shows what the action led to.
        per_chunk = max(len(frames) // max(future.chunk_count, 1), 1)
        shown = [now, *frames[per_chunk - 1 :: per_chunk]]
        for column, (caption, frame) in enumerate(zip_longest(["now", *map(str, future.actions)], shown)):
            left = left_px + column * (width + GAP_PX)
            if frame is not None:
                image.paste(picture_of(frame, scale), (left, top))
            middle = (left + width / 2, top + height + 15)
            draw.text(middle, fit(caption, font(13), width), FAINT, font(13), anchor="ms")
    return image


def _draw_bars(draw: ImageDraw.ImageDraw, judgement: Judgement, names: Sequence[str], left: int, top: int) -> None:
    """A bar a dimension, from 0 to 1; those that count are in colour."""
    name_px, full_px = 92, BARS_PX - 150
    for place, name in enumerate(names):
        own, y = judgement.dimensions[name], top + place * (BAR_PX + 4)
        share = min(max(own.score, 0.0), 1.0)
        draw.text((left, y - 2), fit(name, font(11), name_px), INK if own.counts else FAINT, font(11))
        bar = (left + name_px, y, left + name_px + full_px, y + BAR_PX)
        draw.rectangle(bar, outline=HAIRLINE)
        if share > 0:
            colour = BRANCH_COLOURS[0] if own.counts else HAIRLINE
            draw.rectangle((bar[0], y, bar[0] + full_px * share, y + BAR_PX), fill=colour)
        draw.text((bar[2] + 6, y - 2), f"{own.score:.2f}", INK if own.counts else FAINT, font(11))
