"""A session as bytes: a safetensors file with the blocks in view, and the recipe of its history as metadata."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind
from worldtree_video.errors import SnapshotCorrupt

Tensors: TypeAlias = dict[str, NDArray[np.float32] | NDArray[np.uint8]]

_FORMAT = "worldtree.snapshot.1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that another replica needs to go on with a session.

    `steps`: (action, seed, nfe) of each generated chunk. `positions`: places in the history of the blocks in view.
    `blocks` [n, layers, 2, heads, tokens, head_dim] float32, `pixels` [n, frames, height, width, 3] uint8.
    """

    model: str
    version: str
    digest: str
    fingerprint: str
    seed: int
    nfe: int
    policy: KvPolicy
    origin: Origin
    steps: tuple[tuple[Action, int, int], ...]
    state_hash: str
    positions: tuple[int, ...]
    blocks: NDArray[np.float32]
    pixels: NDArray[np.uint8]


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot's bytes."""
    start = np.stack([np.frombuffer(chunk, np.uint8) for chunk in snapshot.origin.chunks])  # [chunks, bytes]
    tensors: Tensors = {"blocks": snapshot.blocks, "pixels": snapshot.pixels, "start": start}
    recipe = {
        "model": snapshot.model,
        "version": snapshot.version,
        "digest": snapshot.digest,
        "fingerprint": snapshot.fingerprint,
        "seed": snapshot.seed,
        "nfe": snapshot.nfe,
        "policy": [snapshot.policy.kind.value, snapshot.policy.window_chunks, snapshot.policy.sink_chunks],
        "start_name": snapshot.origin.name,
        "start_actions": [action.value for action in snapshot.origin.actions],
        "steps": [[action.value, seed, nfe] for action, seed, nfe in snapshot.steps],
        "state_hash": snapshot.state_hash,
        "positions": list(snapshot.positions),
    }
    text = json.dumps(recipe, separators=(",", ":"))
    metadata = {"format": _FORMAT, "recipe": text, "checksum": _checksum(text, tensors)}
    return bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata))


def decode(data: bytes) -> Snapshot:
    """Reads a snapshot's bytes. Raises SnapshotCorrupt; trusts nothing that it has not checked."""
    try:
        tensors = load(data)
        header_bytes = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_bytes])["__metadata__"]
        if metadata["format"] != _FORMAT:
            raise SnapshotCorrupt(f"its format is {str(metadata['format'])[:40]!r}, not {_FORMAT!r}")
        text, checksum = metadata["recipe"], metadata["checksum"]
        blocks, pixels, start = tensors["blocks"], tensors["pixels"], tensors["start"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotCorrupt("it is no whole snapshot file") from error
    if checksum != _checksum(text, {"blocks": blocks, "pixels": pixels, "start": start}):
        raise SnapshotCorrupt("its checksum does not match")
    try:
        recipe = json.loads(text)
        kind, window_chunks, sink_chunks = recipe["policy"]
        snapshot = Snapshot(
            model=str(recipe["model"]),
            version=str(recipe["version"]),
            digest=str(recipe["digest"]),
            fingerprint=str(recipe["fingerprint"]),
            seed=int(recipe["seed"]),
            nfe=int(recipe["nfe"]),
            policy=KvPolicy(PolicyKind(kind), int(window_chunks), int(sink_chunks)),
            origin=Origin(
                tuple(row.tobytes() for row in start), _actions(recipe["start_actions"]), str(recipe["start_name"])
            ),
            steps=tuple((_action(value), int(seed), int(nfe)) for value, seed, nfe in recipe["steps"]),
            state_hash=str(recipe["state_hash"]),
            positions=tuple(int(position) for position in recipe["positions"]),
            blocks=blocks,
            pixels=pixels,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotCorrupt(f"its recipe cannot be read: {error}") from error
    length = len(snapshot.origin.chunks) + len(snapshot.steps)
    if snapshot.positions != tuple(snapshot.policy.visible(length)) or len(blocks) != len(snapshot.positions):
        raise SnapshotCorrupt(f"it holds {len(blocks)} blocks, a history of {length} chunks shows other ones")
    return snapshot


def _action(value: object) -> Action:
    if isinstance(value, int) and not isinstance(value, bool):
        return Action(value)
    if isinstance(value, list):
        return Action(tuple(float(part) for part in value))
    raise ValueError(f"an action is a number or a list, got {value!r}")


def _actions(values: Sequence[object]) -> tuple[Action, ...]:
    return tuple(_action(value) for value in values)


def _checksum(text: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + str(tensors[name].shape).encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
