"""A contact sheet of rollouts: a row a sequence, a column a chunk."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from worldtree.cli.pictures.ink import FAINT, INK, PAPER, fit, font, picture_of
from worldtree.types import Frames, Rollout

MARGIN_PX = 24
GAP_PX = 6
CAPTION_PX = 20
NAME_PX = 56
THUMB_PX = 112


def draw_sheet(now: Frames, rollouts: Sequence[Rollout]) -> Image.Image:
    """`now` is where the world stands, [height, width, 3]; each rollout goes on from it. All need their frames."""
    scale = max(THUMB_PX // max(now.shape[:2]), 1)
    height, width = now.shape[0] * scale, now.shape[1] * scale
    longest = max(len(rollout.actions) for rollout in rollouts)
    row_px = height + CAPTION_PX + GAP_PX
    image = Image.new(
        "RGB",
        (2 * MARGIN_PX + NAME_PX + (longest + 1) * (width + GAP_PX), 2 * MARGIN_PX + len(rollouts) * row_px),
        PAPER,
    )
    draw = ImageDraw.Draw(image)
    for row, rollout in enumerate(rollouts):
        top = MARGIN_PX + row * row_px
        draw.text((MARGIN_PX, top + height / 2), f"#{row}", INK, font(18, bold=True), anchor="lm")
        frames = [] if rollout.frames is None else list(rollout.frames)
        # With several frames a chunk, the last one shows what the action led to.
        frames_per_chunk = max(len(frames) // len(rollout.actions), 1)
        cells = [("now", now)] + [
            (str(action), frame)
            for action, frame in zip(rollout.actions, frames[frames_per_chunk - 1 :: frames_per_chunk], strict=False)
        ]
        for column, (caption, frame) in enumerate(cells):
            left = MARGIN_PX + NAME_PX + column * (width + GAP_PX)
            image.paste(picture_of(frame, scale), (left, top))
            draw.text(
                (left + width / 2, top + height + 15), fit(caption, font(13), width), FAINT, font(13), anchor="ms"
            )
    return image
