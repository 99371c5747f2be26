"""A client's frames as pixels: what is wrong with them is told by field, value and limit."""

import math
from collections.abc import Callable

from worldtree.common.v1 import common_pb2 as common

from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.pictures import PictureError, read_png


def read_frames(
    message: common.Frames,
    field: str,
    *,
    height_px: int,
    width_px: int,
    max_pixels: int,
    check_count: Callable[[int], None],
) -> bytes:
    """Pixels uint8 RGB [frames, height, width, 3] in C order. Raises InvalidRequest.

    `check_count` refuses a number of frames, before any of them is decoded. `max_pixels`: of one PNG.
    """
    if message.HasField("tensor") == bool(message.png):
        raise InvalidRequest(field, f"{field} must set exactly one of tensor and png")
    if not message.png:
        return _tensor(message.tensor, f"{field}.tensor", [height_px, width_px, 3], check_count)
    check_count(len(message.png))
    return b"".join(
        _png(data, f"{field}.png[{index}]", height_px, width_px, max_pixels) for index, data in enumerate(message.png)
    )


def _tensor(tensor: common.Tensor, field: str, size: list[int], check_count: Callable[[int], None]) -> bytes:
    if tensor.dtype != common.Tensor.D_TYPE_UINT8:
        value = common.Tensor.DType.DESCRIPTOR.values_by_number.get(tensor.dtype)
        raise InvalidRequest(
            f"{field}.dtype", f"{field}.dtype must be D_TYPE_UINT8, got {value.name if value else tensor.dtype}"
        )
    shape = list(tensor.shape)
    if len(shape) != 4 or shape[1:] != size:
        raise InvalidRequest(
            f"{field}.shape", f"{field}.shape must be [frames, {', '.join(map(str, size))}], got {shape}"
        )
    check_count(shape[0])
    if len(tensor.data) != math.prod(shape):
        raise InvalidRequest(
            f"{field}.data",
            f"{field}.data must hold {math.prod(shape)} bytes for shape {shape}, got {len(tensor.data)}",
        )
    return tensor.data


def _png(data: bytes, field: str, height_px: int, width_px: int, max_pixels: int) -> bytes:
    try:
        width, height, pixels = read_png(data, max_pixels=max_pixels)
    except PictureError as error:
        raise InvalidRequest(field, f"{field} {error}", limit=max_pixels) from error
    if (width, height) != (width_px, height_px):
        raise InvalidRequest(field, f"{field} must be {width_px} x {height_px} pixels, got {width} x {height}")
    return pixels
