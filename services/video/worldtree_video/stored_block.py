"""One block outside the pool: its keys and values as the pool holds them, its pixels, and both as bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worldtree_video.errors import BlockCorrupt

Spec: TypeAlias = Mapping[str, tuple[DTypeLike, tuple[int, ...]]]

_FORMAT = "worldtree.block.1"
_PIXELS = "pixels"
# All that reading JSON of a stranger can raise: wrong kinds, huge numbers, bottomless nesting.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlock:
    """One committed chunk outside the pool. Whoever holds one never writes to its arrays.

    `tensors`: by the names of the pool's format (fp32 and fp16: kv; int8: kv, scale, state), each with the shape of one
    block. `pixels` [frames_per_chunk, height, width, 3] uint8.
    """

    tensors: dict[str, NDArray[Any]]
    pixels: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, eq=False)
class BlockFormat:
    """What every block of one model in one storage format looks like.

    `spec`: dtype and shape of each tensor of one block; `pixels_shape` of one chunk.
    """

    digest: str
    storage: str
    spec: Spec
    pixels_shape: tuple[int, ...]

    def encode(self, key: bytes, block: StoredBlock) -> bytes:
        return encode(block, key=key, storage=self.storage, digest=self.digest)

    def decode(self, key: bytes, data: bytes) -> StoredBlock:
        """Raises BlockCorrupt."""
        return decode(
            data,
            key=key,
            storage=self.storage,
            digest=self.digest,
            spec=self.spec,
            pixels_shape=self.pixels_shape,
        )


def encode(block: StoredBlock, *, key: bytes, storage: str, digest: str) -> bytes:
    """The block as a safetensors file that names its record key, format and model digest."""
    assert _PIXELS not in block.tensors, f"a tensor of a block cannot be called {_PIXELS}"
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in block.tensors.items()}
    tensors[_PIXELS] = np.ascontiguousarray(block.pixels)
    metadata = {"format": _FORMAT, "key": key.hex(), "digest": digest, "storage": storage}
    return bytes(save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)}))


def decode(
    data: bytes, *, key: bytes, storage: str, digest: str, spec: Spec, pixels_shape: tuple[int, ...]
) -> StoredBlock:
    """Reads a block's bytes; trusts nothing that it has not checked.

    Raises BlockCorrupt for all but the whole, finite block of this key, model and format, with these dtypes and shapes:
    it will run in batches with other sessions' blocks, where one bad number would spoil more than its own.
    """
    try:
        tensors = load(data)
        header_bytes = int.from_bytes(data[:8], "little")
        metadata = dict(json.loads(data[8 : 8 + header_bytes])["__metadata__"])
        checksum = metadata.pop("checksum")
        # flat text or nothing: the sum is over what is compared below
        if not all(isinstance(value, str) for value in metadata.values()):
            raise BlockCorrupt("its metadata is not all text")
        found = _checksum(metadata, tensors)
    except (SafetensorError, *_MALFORMED) as error:
        raise BlockCorrupt("it is no whole block file") from error
    if checksum != found:
        raise BlockCorrupt("its checksum does not match")
    for name, expected in (("format", _FORMAT), ("key", key.hex()), ("digest", digest), ("storage", storage)):
        if metadata.get(name) != expected:
            raise BlockCorrupt(f"its {name} is {str(metadata.get(name))[:80]!r}, not {expected!r}")
    wanted: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {**spec, _PIXELS: (np.uint8, pixels_shape)}
    if tensors.keys() != wanted.keys():
        raise BlockCorrupt(f"its tensors are {sorted(tensors)[:8]}, not {sorted(wanted)}")
    for name, (dtype, shape) in wanted.items():
        tensor = tensors[name]
        if tensor.dtype != np.dtype(dtype) or tensor.shape != tuple(shape):
            raise BlockCorrupt(
                f"{name} must be {np.dtype(dtype)} {tuple(shape)}, got {tensor.dtype} {tensor.shape[:8]}"
            )
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise BlockCorrupt(f"{name} holds a NaN or an infinity")
    pixels = tensors.pop(_PIXELS)
    return StoredBlock(tensors, pixels)


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
