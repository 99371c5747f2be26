"""A named merge as bytes: its card, and apart from it the blend, which may be as large as the network."""

from dataclasses import asdict
from typing import Any

import msgpack
import numpy as np

from worldtree_multitask.domain import Blend, Card, Point, Recipe, TaskScore

_FORMAT = 1


def card_bytes(card: Card) -> bytes:
    packed: bytes = msgpack.packb([_FORMAT, asdict(card)])
    return packed


def read_card(data: bytes) -> Card | None:
    """None: written by a version that this one cannot read."""
    values = _unpacked(data)
    if values is None:
        return None
    values["recipe"] = Recipe(**values["recipe"])
    values["scores"] = tuple(TaskScore(**each) for each in values["scores"])
    values["notes"] = tuple(values["notes"])
    values["points"] = tuple(
        Point(each["merge"], tuple(each["objectives"]), tuple(each["preference"]), each["sparsity"])
        for each in values["points"]
    )
    return Card(**values)


def blend_bytes(blend: Blend) -> bytes:
    array = blend.coefficients if blend.coefficients is not None else blend.weights
    assert array is not None, "a blend has coefficients or weights"
    values = {
        "digest": blend.digest,
        "linear": blend.coefficients is not None,
        "shape": list(array.shape),
        "data": np.ascontiguousarray(array, "<f4").tobytes(),
    }
    packed: bytes = msgpack.packb([_FORMAT, values])
    return packed


def read_blend(data: bytes) -> Blend | None:
    """None: written by a version that this one cannot read."""
    values = _unpacked(data)
    if values is None:
        return None
    array = np.frombuffer(values["data"], "<f4").reshape(values["shape"])
    return Blend(values["digest"], array if values["linear"] else None, None if values["linear"] else array)


def _unpacked(data: bytes) -> dict[str, Any] | None:
    try:
        version, values = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        return None
    return values if version == _FORMAT else None
