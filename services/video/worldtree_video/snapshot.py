"""A session as bytes: a safetensors file with the blocks in view, and the recipe of its history as metadata."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from worldtree_runtime.video_package import VideoPackage

from worldtree_video.domain import SEED_MAX, Action, KvPolicy, Origin, PolicyKind, Storage
from worldtree_video.errors import SnapshotCorrupt
from worldtree_video.formats import block_spec
from worldtree_video.stored_block import StoredBlock

Tensors: TypeAlias = dict[str, NDArray[Any]]

_FORMAT = "worldtree.snapshot.2"
_FP32_ONLY = "worldtree.snapshot.1"  # before there were storage formats: one tensor `blocks`, a policy of three numbers
_BLOCK = "block."  # before the name of a stored tensor
# All that reading nested JSON of a stranger can raise: wrong kinds, huge numbers, bottomless nesting.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that another replica needs to go on with a session.

    `steps`: (action, seed, nfe) of each generated chunk. `positions`: places in the history of the blocks that come
    with it, those that the policy may show from here on.
    `blocks`: each stored tensor of the policy's format (`formats.block_spec`), [n, ...]. `pixels` [n, frames, height,
    width, 3] uint8. `trusted`: whether its maker knew where the blocks came from; true of the bytes that we kept only.
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
    blocks: dict[str, NDArray[Any]]
    pixels: NDArray[np.uint8]
    trusted: bool = False

    def stored_blocks(self) -> list[StoredBlock]:
        """The blocks in view, one by one."""
        return [
            StoredBlock({name: rows[place] for name, rows in self.blocks.items()}, self.pixels[place])
            for place in range(len(self.positions))
        ]


def stack(blocks: Sequence[StoredBlock]) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
    """`blocks` and `pixels` of a snapshot, from one block or more of one format."""
    tensors = {name: np.stack([block.tensors[name] for block in blocks]) for name in blocks[0].tensors}
    return tensors, np.stack([block.pixels for block in blocks])


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot's bytes."""
    start = np.stack([np.frombuffer(chunk, np.uint8) for chunk in snapshot.origin.chunks])  # [chunks, bytes]
    tensors: Tensors = {_BLOCK + name: rows for name, rows in snapshot.blocks.items()}
    tensors |= {"pixels": snapshot.pixels, "start": start}
    recipe = {
        "model": snapshot.model,
        "version": snapshot.version,
        "digest": snapshot.digest,
        "fingerprint": snapshot.fingerprint,
        "seed": snapshot.seed,
        "nfe": snapshot.nfe,
        "policy": _policy_fields(snapshot.policy),
        "start_name": snapshot.origin.name,
        "start_actions": [action.value for action in snapshot.origin.actions],
        "steps": [[action.value, seed, nfe] for action, seed, nfe in snapshot.steps],
        "state_hash": snapshot.state_hash,
        "positions": list(snapshot.positions),
        "trusted": snapshot.trusted,
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
        found_format = metadata["format"]
        if found_format not in (_FORMAT, _FP32_ONLY):
            raise SnapshotCorrupt(f"its format is {str(found_format)[:40]!r}, not {_FORMAT!r}")
        text, checksum = metadata["recipe"], metadata["checksum"]
        found = _checksum(text, tensors)
        pixels, start = tensors.pop("pixels"), tensors.pop("start")
        if found_format == _FP32_ONLY:
            tensors = {_BLOCK + "kv": tensors["blocks"]}
        blocks = {name.removeprefix(_BLOCK): rows for name, rows in tensors.items() if name.startswith(_BLOCK)}
    except (SafetensorError, *_MALFORMED) as error:
        raise SnapshotCorrupt("it is no whole snapshot file") from error
    if checksum != found:
        raise SnapshotCorrupt("its checksum does not match")
    for name, tensor, axes in (("pixels", pixels, 5), ("start", start, 2)):
        if tensor.dtype != np.uint8 or tensor.ndim != axes:
            raise SnapshotCorrupt(f"{name} must be uint8 of {axes} axes, got {tensor.dtype} of {tensor.ndim}")
    if not blocks or any(rows.ndim != 6 for rows in blocks.values()):
        raise SnapshotCorrupt("its blocks must be tensors of 6 axes")
    try:
        recipe = json.loads(text)
        snapshot = Snapshot(
            model=str(recipe["model"]),
            version=str(recipe["version"]),
            digest=str(recipe["digest"]),
            fingerprint=str(recipe["fingerprint"]),
            seed=int(recipe["seed"]),
            nfe=int(recipe["nfe"]),
            policy=_policy(recipe["policy"]),
            origin=Origin(
                tuple(row.tobytes() for row in start), _actions(recipe["start_actions"]), str(recipe["start_name"])
            ),
            steps=tuple((_action(value), int(seed), int(nfe)) for value, seed, nfe in recipe["steps"]),
            state_hash=str(recipe["state_hash"]),
            positions=tuple(int(position) for position in recipe["positions"]),
            blocks=blocks,
            pixels=pixels,
            trusted=recipe.get("trusted") is True,
        )
    except _MALFORMED as error:
        raise SnapshotCorrupt(f"its recipe cannot be read: {str(error)[:200]}") from error
    length = _chunk_count(snapshot)
    counts = {len(snapshot.positions), len(pixels), *(len(rows) for rows in blocks.values())}
    if not _positions_fit(snapshot, length) or len(counts) != 1:
        raise SnapshotCorrupt(f"its {len(pixels)} blocks are not those that a history of {length} chunks shows")
    return snapshot


def check(snapshot: Snapshot, package: VideoPackage, *, max_bank_chunks: int) -> None:
    """Raises SnapshotCorrupt where a package could not have made it: a checksum keeps out accidents, not people.

    What gets past here runs in batches with other sessions, so one bad number would end their calls too.
    """
    storage = snapshot.policy.storage
    spec = block_spec(package.kv, storage)
    if snapshot.blocks.keys() != spec.keys():
        raise SnapshotCorrupt(f"its blocks are of {sorted(snapshot.blocks)[:8]}, those in {storage.value} of {[*spec]}")
    for name, form in spec.items():
        rows = snapshot.blocks[name]
        if rows.dtype != form.dtype or rows.shape[1:] != form.shape:
            raise SnapshotCorrupt(
                f"its blocks are {name} {rows.dtype} {rows.shape[1:]}, the model's are {form.dtype} {form.shape}"
            )
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise SnapshotCorrupt("its blocks hold a NaN or an infinity")
    if snapshot.pixels.shape[1:] != package.chunk_shape:
        raise SnapshotCorrupt(f"its chunks are {snapshot.pixels.shape[1:]}, the model's are {package.chunk_shape}")
    if snapshot.policy.window_chunks > package.kv.window:
        raise SnapshotCorrupt(f"its window is {snapshot.policy.window_chunks} chunks, the model's {package.kv.window}")
    if snapshot.policy.bank_chunks > max_bank_chunks:
        bank = str(snapshot.policy.bank_chunks)[:40]
        raise SnapshotCorrupt(f"its bank is {bank} chunks, at most {max_bank_chunks} are kept here")
    if snapshot.policy.kind is PolicyKind.FULL and len(snapshot.positions) < _chunk_count(snapshot):
        raise SnapshotCorrupt(f"policy full holds at most {snapshot.policy.window_chunks} chunks")
    if any(len(chunk) != package.chunk_bytes for chunk in snapshot.origin.chunks):
        raise SnapshotCorrupt(f"a chunk of its start is not of {package.chunk_bytes} bytes")
    for seed in {snapshot.seed, *(seed for _, seed, _ in snapshot.steps)}:
        if not 0 <= seed <= SEED_MAX:
            raise SnapshotCorrupt(f"seed must be 0 to {SEED_MAX}, got {str(seed)[:40]}")
    for nfe in {snapshot.nfe, *(nfe for _, _, nfe in snapshot.steps)}:
        if nfe not in package.sampler.schedules:
            raise SnapshotCorrupt(f"nfe must be one of {sorted(package.sampler.schedules)}, got {str(nfe)[:40]}")
    for action in (*snapshot.origin.actions, *(action for action, _, _ in snapshot.steps)):
        if not package.action.accepts(action.value):
            raise SnapshotCorrupt(f"{str(action.value)[:40]} is no action of model {package.name}")


def _chunk_count(snapshot: Snapshot) -> int:
    return len(snapshot.origin.chunks) + len(snapshot.steps)


def _positions_fit(snapshot: Snapshot, length: int) -> bool:
    policy, positions = snapshot.policy, snapshot.positions
    if not policy.compares:
        return positions == tuple(policy.visible(length))
    # Which ones it may show follows from more than the length; whoever restores it knows, and misses none.
    ascending = all(one < other for one, other in pairwise(positions))
    return ascending and bool(positions) and positions[0] >= 0 and positions[-1] == length - 1


def _policy_fields(policy: KvPolicy) -> dict[str, int | str]:
    values = {field.name: getattr(policy, field.name) for field in fields(policy)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def _policy(raw: Any) -> KvPolicy:
    if isinstance(raw, list):  # of a snapshot from before there were storage formats
        kind, window_chunks, sink_chunks = raw
        return KvPolicy(PolicyKind(kind), int(window_chunks), int(sink_chunks))
    known: dict[str, Any] = {"kind": PolicyKind(raw["kind"]), "storage": Storage(raw["storage"])}
    # The rest are counts, and the name of a plug-in.
    rest: dict[str, Any] = {
        name: value if name == "plugin" else int(value) for name, value in raw.items() if name not in known
    }
    return KvPolicy(**known, **rest)


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
