"""PNG files of all kinds, most of them bad."""

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worldtree_runtime.pictures import PictureError, png_size, read_png, split_strip


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def picture(width: int = 6, height: int = 4, mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 40, y * 60, 7) for y in range(height) for x in range(width)])
    return image.convert(mode)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of zeros, small as a file and huge as a picture."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    data = b"".join(packer.compress(row) for _ in range(min(height, 200))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_png_comes_out_as_its_pixels() -> None:
    image = picture()
    assert read_png(png(image), max_pixels=24) == (6, 4, image.tobytes())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "I;16"])
def test_other_kinds_of_png_become_rgb(mode: str) -> None:
    width, height, pixels = read_png(
        png(picture().convert("L") if mode == "I;16" else picture(mode=mode)), max_pixels=24
    )
    assert (width, height, len(pixels)) == (6, 4, 72)


def test_a_picture_of_20000_x_20000_is_refused_from_its_header_without_room_for_its_pixels() -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 100_000
    tracemalloc.start()
    with pytest.raises(PictureError, match="must hold at most 1048576 pixels, got 20000 x 20000"):
        read_png(data, max_pixels=1 << 20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (1, 2**32 - 1), (1 << 20, 2)])
def test_any_size_above_the_limit_is_refused(size: tuple[int, int]) -> None:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    assert png_size(data) == size
    with pytest.raises(PictureError, match="at most"):
        read_png(data, max_pixels=1 << 20)


def test_a_png_that_was_cut_short_anywhere_is_refused() -> None:
    image = picture(16, 16)
    data = png(image)
    for length in range(len(data) - 24):  # what follows are checksums and an empty chunk: every pixel is there
        with pytest.raises(PictureError):
            read_png(data[:length], max_pixels=1 << 20)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"GIF89a" + bytes(64), b"\xff\xd8\xff\xe0" + bytes(64), bytes(100)])
def test_what_is_no_png_is_refused_with_its_size(data: bytes) -> None:
    with pytest.raises(PictureError, match=f"must be a PNG file, got {len(data)} other bytes"):
        read_png(data, max_pixels=100)


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0)])
def test_a_picture_of_no_pixels_is_refused(size: tuple[int, int]) -> None:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(PictureError):
        read_png(data, max_pixels=100)


def test_a_bomb_in_a_text_chunk_is_refused_or_ignored_within_bounds() -> None:
    data = png(picture())
    text = b"Comment\0\0" + zlib.compress(bytes(1 << 26), 9)
    bombed = data[:33] + chunk(b"zTXt", text) + data[33:]
    tracemalloc.start()
    with suppress(PictureError):
        read_png(bombed, max_pixels=24)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 24


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_png_is_refused_or_read_and_nothing_worse(data: st.DataObject) -> None:
    raw = bytearray(png(picture()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(8, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_png(bytes(raw), max_pixels=1 << 10)
    except PictureError:
        return


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [
            b"tRNS",
            b"PLTE",
            b"gAMA",
            b"cHRM",
            b"sRGB",
            b"pHYs",
            b"iCCP",
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"eXIf",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"IHDR",
            b"CgBI",
            b"abcd",
        ]
    ),
    st.binary(max_size=40),
    st.booleans(),
)
def test_a_png_with_a_malformed_chunk_is_refused_or_read_and_nothing_worse(
    name: bytes, content: bytes, before: bool
) -> None:
    data = png(picture())
    place = 33 if before else len(data) - 12
    try:
        read_png(data[:place] + chunk(name, content) + data[place:], max_pixels=1 << 10)
    except PictureError:
        return


def test_a_strip_is_cut_into_its_frames() -> None:
    frames = [picture(5, 4).tobytes(), bytes(60), bytes([255]) * 60]
    strip = Image.new("RGB", (15, 4))
    for index, frame in enumerate(frames):
        strip.paste(Image.frombytes("RGB", (5, 4), frame), (5 * index, 0))
    assert split_strip(strip.tobytes(), width=15, height=4, frame_count=3) == frames


def test_a_strip_that_does_not_divide_is_refused() -> None:
    with pytest.raises(PictureError, match="a strip of 2 frames cannot be 15 pixels wide"):
        split_strip(bytes(180), width=15, height=4, frame_count=2)
