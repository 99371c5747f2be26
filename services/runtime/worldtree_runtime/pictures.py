"""PNG files as pixels, their size checked before a byte is decompressed."""

import io
import struct
import zlib

from PIL import Image, UnidentifiedImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What Pillow's reader raises on damaged chunks, or may.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_HEADER_BYTES = 24  # signature, then the IHDR chunk's length, name, width and height


class PictureError(ValueError):
    """Not a picture that can be used; the message says why."""


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height that a PNG's header promises. Raises PictureError when it is no PNG."""
    if len(data) < _HEADER_BYTES or not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR":
        raise PictureError(f"must be a PNG file, got {len(data)} other bytes")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def read_png(data: bytes, *, max_pixels: int) -> tuple[int, int, bytes]:
    """Width, height and RGB pixels [height, width, 3] in C order of a PNG. Raises PictureError."""
    width, height = png_size(data)
    if width * height > max_pixels:
        raise PictureError(f"must hold at most {max_pixels} pixels, got {width} x {height}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return width, height, image.convert("RGB").tobytes()
    except (*_UNREADABLE, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise PictureError(f"cannot be decoded: {error}") from error


def split_strip(pixels: bytes, *, width: int, height: int, frame_count: int) -> list[bytes]:
    """Cuts a strip of frames side by side, RGB [height, width, 3], into frames [height, width / frame_count, 3]."""
    if width % frame_count:
        raise PictureError(f"a strip of {frame_count} frames cannot be {width} pixels wide")
    strip = Image.frombytes("RGB", (width, height), pixels)
    step = width // frame_count
    return [strip.crop((left, 0, left + step, height)).tobytes() for left in range(0, width, step)]
