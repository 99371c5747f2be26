"""Pictures and films of frames. Pillow and PyAV come with the extra `media` and load on first use."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from worldtree.errors import InvalidRequest, MissingExtra
from worldtree.types import Frames

FILM_CODECS = ("libx264", "mpeg4")  # the first that this build of PyAV has
MAX_FPS = 1000
GAP_PX = 2  # between the images of a contact sheet


def decode_png(data: bytes) -> Frames:
    """One image, [height, width, 3]."""
    with pillow("reading PNG frames").open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def save_frames(frames: Frames, path: str | Path, *, fps: float = 10.0, scale: int = 1) -> Path:
    """Writes frames [frames, height, width, 3] as .mp4, .gif or .png (a contact sheet), by the suffix."""
    if scale < 1:
        raise InvalidRequest(f"scale must be 1 or more, got {scale}", field="scale")
    if not 0 < fps <= MAX_FPS:  # a NaN fails both comparisons
        raise InvalidRequest(f"fps must be above 0 to {MAX_FPS}, got {fps}", field="fps")
    path = Path(path)
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix.lower()](enlarge(frames, scale), path, fps)
    return path


def check_suffix(path: Path) -> None:
    """Raises InvalidRequest for a path that save_frames has no format for."""
    if path.suffix.lower() not in WRITERS:
        raise InvalidRequest(f"path must end in {', '.join(WRITERS)}, got {path.name!r}", field="path")


def enlarge(frames: Frames, scale: int) -> Frames:
    """Each pixel becomes a square: worlds of a few dozen pixels stay crisp."""
    return frames if scale == 1 else frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def save_film(frames: Sequence[Frames] | Frames, path: Path, fps: float) -> None:
    """An H.264 film (MPEG-4 where this PyAV has no H.264) that browsers and phones play."""
    av = _av()
    height, width = frames[0].shape[:2]
    # yuv420p halves the colour planes: both sides must be even.
    height, width = height + height % 2, width + width % 2
    with av.open(str(path), "w") as film:
        stream = film.add_stream(_film_codec(av), rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}
        for pixels in frames:
            padded = np.zeros((height, width, 3), np.uint8)
            padded[: pixels.shape[0], : pixels.shape[1]] = pixels
            film.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        film.mux(stream.encode())


def save_gif(frames: Frames, path: Path, fps: float) -> None:
    image_type = pillow("writing .gif")
    images = [image_type.fromarray(pixels) for pixels in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, optimize=False)


def save_sheet(frames: Frames, path: Path, fps: float) -> None:
    """All images on one sheet, in reading order. `fps` does not matter to a still."""
    del fps
    image_type = pillow("writing .png")
    count, height, width = frames.shape[:3]
    columns = ceil(sqrt(count * height / width))
    rows = ceil(count / columns)
    sheet = np.full((rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for index, pixels in enumerate(frames):
        top, left = index // columns * (height + GAP_PX), index % columns * (width + GAP_PX)
        sheet[top : top + height, left : left + width] = pixels
    image_type.fromarray(sheet).save(path)


WRITERS: Mapping[str, Callable[[Frames, Path, float], None]] = {
    ".mp4": save_film,
    ".gif": save_gif,
    ".png": save_sheet,
}


def pillow(purpose: str) -> Any:
    """Pillow's Image module, or MissingExtra."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", extra="media", purpose=purpose) from error
    return Image


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="media", purpose="writing .mp4") from error
    return av


def _film_codec(av: Any) -> str:
    for name in FILM_CODECS:
        if name in av.codecs_available:
            return name
    raise MissingExtra("av", extra="media", purpose=f"writing .mp4 (with one of {', '.join(FILM_CODECS)})")
