"""Blocks as bytes: what comes back is what went in, and nothing else comes back."""

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from worldtree_runtime.errors import Kind
from worldtree_video.errors import BlockCorrupt
from worldtree_video.stored_block import Spec, StoredBlock, decode, encode

KEY = bytes(range(32))
DIGEST = "d" * 64
PIXELS = (2, 8, 8, 3)
SPECS: dict[str, dict[str, tuple[Any, tuple[int, ...]]]] = {
    "fp32": {"kv": (np.float32, (2, 2, 2, 4, 8))},
    "fp16": {"kv": (np.float16, (2, 2, 2, 4, 8))},
    "int8": {"kv": (np.int8, (2, 2, 2, 4, 8)), "scale": (np.float32, (2, 2, 2, 8)), "state": (np.float32, (2, 4))},
}


def make(spec: Spec, seed: int = 0) -> StoredBlock:
    rng = np.random.default_rng(seed)
    tensors = {name: (rng.standard_normal(shape) * 20).astype(dtype) for name, (dtype, shape) in spec.items()}
    return StoredBlock(tensors, rng.integers(0, 256, PIXELS, np.uint8))


def read(data: bytes, storage: str = "fp32", **other: Any) -> StoredBlock:
    expected: dict[str, Any] = {
        "key": KEY,
        "storage": storage,
        "digest": DIGEST,
        "spec": SPECS[storage],
        "pixels_shape": PIXELS,
    }
    return decode(data, **{**expected, **other})


@pytest.mark.parametrize("storage", SPECS)
def test_a_block_comes_back_byte_for_byte(storage: str) -> None:
    block = make(SPECS[storage])
    found = read(encode(block, key=KEY, storage=storage, digest=DIGEST), storage)
    assert found.tensors.keys() == block.tensors.keys()
    for name, tensor in block.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].tobytes() == tensor.tobytes()
    assert found.pixels.tobytes() == block.pixels.tobytes()
    assert found.nbytes == block.nbytes == sum(t.nbytes for t in block.tensors.values()) + block.pixels.nbytes


def test_an_array_that_is_a_view_is_stored_by_its_values() -> None:
    block = make(SPECS["fp32"])
    view = replace(block, pixels=block.pixels[:, ::-1])
    assert (read(encode(view, key=KEY, storage="fp32", digest=DIGEST)).pixels == block.pixels[:, ::-1]).all()


def test_no_single_bit_can_be_flipped() -> None:
    data = encode(make(SPECS["int8"]), key=KEY, storage="int8", digest=DIGEST)
    header_bits = 8 * (8 + int.from_bytes(data[:8], "little"))
    for bit in [*range(header_bits), *range(header_bits, len(data) * 8, 97)]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BlockCorrupt):
            read(bytes(flipped), "int8")


def test_a_block_cut_short_or_too_long_is_refused() -> None:
    data = encode(make(SPECS["fp16"]), key=KEY, storage="fp16", digest=DIGEST)
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(data), 53), len(data) - 1]:
        with pytest.raises(BlockCorrupt):
            read(data[:length], "fp16")
    with pytest.raises(BlockCorrupt):
        read(data + b"\0", "fp16")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"key": bytes(32)}, "key"),
        ({"digest": "e" * 64}, "digest"),
        ({"storage": "fp16"}, "storage"),
        ({"spec": {"kv": (np.float16, (2, 2, 2, 4, 8))}}, "kv must be float16"),
        ({"spec": {"kv": (np.float32, (2, 2, 2, 8, 4))}}, "kv must be float32"),
        ({"spec": SPECS["int8"]}, "tensors"),
        ({"spec": {}}, "tensors"),
        ({"pixels_shape": (2, 8, 8, 4)}, "pixels must be"),
    ],
)
def test_a_whole_block_of_another_world_model_or_format_is_refused(other: dict[str, Any], named: str) -> None:
    data = encode(make(SPECS["fp32"]), key=KEY, storage="fp32", digest=DIGEST)
    with pytest.raises(BlockCorrupt, match=named) as caught:
        read(data, **other)
    assert caught.value.kind is Kind.DATA_LOSS


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("storage", "name"), [("fp32", "kv"), ("fp16", "kv"), ("int8", "scale")])
def test_numbers_that_are_not_finite_are_refused(storage: str, name: str, number: float) -> None:
    block = make(SPECS[storage])
    block.tensors[name].flat[3] = number
    data = encode(block, key=KEY, storage=storage, digest=DIGEST)
    with pytest.raises(BlockCorrupt, match=f"{name} holds a NaN"):
        read(data, storage)


def header_only(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        header_only([]),
        header_only({"__metadata__": None}),
        header_only({"__metadata__": {"checksum": 1}}),
        save({"kv": np.zeros(3, np.float32)}),
        save({"kv": np.zeros(3, np.float32)}, {"format": "x"}),
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 40_000) + b"[" * 40_000,
    ],
)
def test_bytes_of_anything_else_are_refused(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        read(data)
