"""Snapshots: what goes in comes out, and whatever a stranger sends is refused as corrupt and nothing else."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video import snapshot as snapshots
from worldtree_video.domain import SEED_MAX, Action, KvPolicy, Origin, PolicyKind, Storage
from worldtree_video.errors import SnapshotCorrupt
from worldtree_video.formats import block_spec
from worldtree_video.snapshot import Snapshot, check, decode, encode

PACKAGE = VideoPackage.model_validate(TinyWorld().manifest())
CONTINUOUS = VideoPackage.model_validate(TinyWorld(action_size=2).manifest())
WALKING = VideoPackage.model_validate(TinyWorld(pose=True).manifest())


def make(
    *, steps: int = 3, start: int = 2, package: VideoPackage = PACKAGE, storage: Storage = Storage.FP32
) -> Snapshot:
    action = Action((0.25, -1.0)) if package is CONTINUOUS else Action(1)
    policy = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1, storage)
    positions = tuple(policy.visible(start + steps))
    rng = np.random.default_rng(steps)
    return Snapshot(
        model=package.name,
        version=package.version,
        digest="d" * 64,
        fingerprint="onnxruntime/cpu",
        seed=7,
        nfe=2,
        policy=policy,
        origin=Origin(tuple(bytes([n]) * package.chunk_bytes for n in range(start)), (action,) * (start - 1), "dusk"),
        steps=((action, 7, 2),) * steps,
        state_hash="ab" * 32,
        positions=positions,
        blocks={
            name: (20 * rng.normal(size=(len(positions), *form.shape))).astype(form.dtype)
            for name, form in block_spec(package.kv, storage).items()
        },
        pixels=rng.integers(0, 256, (len(positions), *package.chunk_shape), np.uint8),
    )


def same(a: Snapshot, b: Snapshot) -> bool:
    fields = [field.name for field in dataclasses.fields(Snapshot) if field.name not in ("blocks", "pixels")]
    return (
        all(getattr(a, name) == getattr(b, name) for name in fields)
        and a.blocks.keys() == b.blocks.keys()
        and all(np.array_equal(rows, b.blocks[name]) for name, rows in a.blocks.items())
        and all(rows.dtype == b.blocks[name].dtype for name, rows in a.blocks.items())
        and np.array_equal(a.pixels, b.pixels)
    )


@given(
    steps=st.lists(
        st.tuples(
            st.one_of(
                st.builds(Action, st.integers(0, 3)),
                st.builds(Action, st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=3).map(tuple)),
            ),
            st.integers(0, SEED_MAX),
            st.integers(1, 4),
        ),
        max_size=12,
    ),
    window=st.integers(2, 6),
    name=st.text(st.characters(codec="utf-8"), max_size=5),
    seed=st.integers(0, SEED_MAX),
)
def test_what_goes_in_comes_out(steps: list[tuple[Action, int, int]], window: int, name: str, seed: int) -> None:
    policy = KvPolicy(PolicyKind.SINK_WINDOW, window, 1)
    positions = tuple(policy.visible(1 + len(steps)))
    saved = dataclasses.replace(
        make(),
        seed=seed,
        policy=policy,
        origin=Origin((b"\0" * PACKAGE.chunk_bytes,), (), name),
        steps=tuple(steps),
        positions=positions,
        blocks={"kv": np.zeros((len(positions), *PACKAGE.kv.block_shape), np.float32)},
        pixels=np.zeros((len(positions), *PACKAGE.chunk_shape), np.uint8),
    )
    assert same(decode(encode(saved)), saved)


@pytest.mark.parametrize("storage", list(Storage), ids=lambda storage: storage.value)
@pytest.mark.parametrize("package", [PACKAGE, CONTINUOUS, WALKING], ids=["discrete", "continuous", "with-state"])
def test_what_a_package_made_passes_its_check(package: VideoPackage, storage: Storage) -> None:
    saved = make(package=package, storage=storage)
    found = decode(encode(saved))
    assert same(found, saved)
    check(found, package, max_bank_chunks=256)
    assert same(dataclasses.replace(saved, **stacked(found)), saved)


def stacked(saved: Snapshot) -> dict[str, Any]:
    blocks, pixels = snapshots.stack(saved.stored_blocks())
    return {"blocks": blocks, "pixels": pixels}


RETRIEVE = KvPolicy(PolicyKind.RETRIEVE, 4, 1, Storage.INT8, recent_chunks=2, bank_chunks=7)


def retrieving(positions: tuple[int, ...]) -> Snapshot:
    saved = make(steps=9, storage=Storage.INT8)
    rows = [place % 4 for place in range(len(positions))]
    blocks = {name: tensor[rows] for name, tensor in saved.blocks.items()}
    return dataclasses.replace(saved, policy=RETRIEVE, positions=positions, blocks=blocks, pixels=saved.pixels[rows])


def test_a_snapshot_of_a_retrieving_session_carries_its_policy_and_its_bank() -> None:
    saved = retrieving((0, 2, 3, 5, 8, 9, 10))
    found = decode(encode(saved))
    assert same(found, saved)
    assert found.policy == RETRIEVE
    check(found, PACKAGE, max_bank_chunks=256)


@pytest.mark.parametrize("positions", [(), (0, 9), (0, 10, 10), (9, 8, 10), (-1, 10), (0, 11)])
def test_a_bank_that_no_history_of_its_length_has_is_corrupt(positions: tuple[int, ...]) -> None:
    with pytest.raises(SnapshotCorrupt, match="not those that a history of 11 chunks shows"):
        decode(encode(retrieving(positions)))


def test_a_snapshot_from_before_there_were_formats_is_one_in_fp32() -> None:
    old = forged(lambda recipe: {**recipe, "policy": ["sink_window", 4, 1]}, format_name="worldtree.snapshot.1")
    assert same(decode(old), make())
    check(decode(old), PACKAGE, max_bank_chunks=256)


def test_a_snapshot_that_was_cut_short_anywhere_is_corrupt() -> None:
    data = encode(make())
    for length in [*range(64), *range(64, len(data), 97), len(data) - 1]:
        with pytest.raises(SnapshotCorrupt):
            decode(data[:length])


@settings(max_examples=300)
@given(st.data())
def test_a_snapshot_with_a_flipped_byte_is_corrupt_or_as_it_was(data: st.DataObject) -> None:
    saved = make(steps=1, start=1)
    raw = bytearray(encode(saved))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(raw))
    except SnapshotCorrupt:
        return
    assert same(found, saved)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_corrupt_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(data)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "worldtree.snapshot.1"},
        {"format": "worldtree.snapshot.2"},
        {"format": "pt"},
        {"format": "worldtree.snapshot.9", "recipe": "{}"},
    ],
)
def test_a_safetensors_file_of_someone_else_is_corrupt(metadata: dict[str, str] | None) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(save({"blocks": np.zeros(3, np.float32)}, metadata))


def forged(
    change: Any = None,
    tensors: dict[str, Any] | None = None,
    text: str | None = None,
    format_name: str = "worldtree.snapshot.2",
) -> bytes:
    """A snapshot with a right checksum and a recipe of a stranger's making."""
    saved = make()
    start = np.stack([np.frombuffer(chunk, np.uint8) for chunk in saved.origin.chunks])
    block = "block.kv" if format_name.endswith("2") else "blocks"
    arrays = {block: saved.blocks["kv"], "pixels": saved.pixels, "start": start, **(tensors or {})}
    if text is None:
        header = encode(saved)
        metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
        recipe = json.loads(metadata["recipe"])
        text = json.dumps(change(recipe) if change else recipe)
    checksum = snapshots._checksum(text, arrays)
    return bytes(save(arrays, {"format": format_name, "recipe": text, "checksum": checksum}))


def test_a_forged_snapshot_that_changes_nothing_is_a_snapshot() -> None:
    assert same(decode(forged()), make())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        '"text"',
        "{}",
        "[" * 100_000,
        '{"policy": null}',
        '{"policy": [1, 2]}',
        "NaN",
        '{"policy": ["sliding", 1e999, 0]}',
    ],
)
def test_a_recipe_that_is_no_recipe_is_corrupt(text: str) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(forged(text=text))


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"policy": policy}
            for policy in (
                ["forever", 4, 1],
                ["sliding", 0, 0],
                ["sink_window", 4, 4],
                ["sink_window", float("inf"), 1],
                ["sink_window", float("nan"), 1],
                ["sink_window", 10**400, 1],
                ["sink_window", "4" * 5000, 1],
                {},
                {"kind": "sliding", "window_chunks": 4},
                {"kind": "sliding", "window_chunks": 4, "storage": "fp8"},
                {"kind": "sliding", "window_chunks": 4, "storage": "fp32", "colour": 1},
                {"kind": "sliding", "window_chunks": [4], "storage": "fp32"},
                {"kind": ["sliding"], "window_chunks": 4, "storage": "fp32"},
            )
        ),
        {"steps": 3},
        {"steps": [[1, 7]]},
        {"steps": [[1, 7, 2, 9]]},
        {"steps": [[{"id": 1}, 7, 2]] * 3},
        {"steps": [[True, 7, 2]] * 3},
        {"steps": [[[["x"]], 7, 2]] * 3},
        {"steps": [[1, float("inf"), 2]] * 3},
        {"steps": [[1, 7, 2]] * 2},
        {"start_actions": []},
        {"start_actions": None},
        {"start_actions": [1, 1]},
        {"positions": [0, 1, 2, 3]},
        {"positions": []},
        {"positions": {"a": 1}},
        {"seed": None},
        {"nfe": []},
    ],
)
def test_a_recipe_with_a_wrong_field_is_corrupt(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(forged(lambda recipe: {**recipe, **change}))


@pytest.mark.parametrize(
    "tensors",
    [
        {"block.kv": np.zeros((), np.float32)},
        {"block.kv": np.zeros((3, 4), np.float32)},
        {"block.kv": np.zeros((5, 1, 2, 2, 3, 4), np.float32)},
        {"block.scale": np.zeros((), np.float16)},
        {"block.scale": np.zeros((3, 1, 2, 2, 1, 4), np.float16)},
        {"pixels": np.zeros((), np.uint8)},
        {"pixels": np.zeros((5, 1, 4, 6, 3), np.uint8)},
        {"pixels": np.zeros((4, 1, 4, 6, 3), np.int8)},
        {"start": np.zeros((), np.uint8)},
        {"start": np.zeros((0, 72), np.uint8)},
        {"start": np.zeros((2, 2, 36), np.uint8)},
        {"start": np.zeros((3, 72), np.uint8)},
        {"start": np.zeros((2, 72), np.int64)},
    ],
)
def test_tensors_of_another_shape_or_type_are_corrupt(tensors: dict[str, Any]) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(forged(tensors=tensors))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": -1}, "seed must be 0 to 9007199254740991, got -1"),
        ({"seed": 2**53}, "seed must be"),
        ({"seed": 10**60}, "seed must be"),
        ({"nfe": 3}, r"nfe must be one of \[1, 2\], got 3"),
        ({"nfe": 0}, "nfe must be one of"),
        ({"steps": ((Action(1), 7, 9),) * 3}, "nfe must be one of"),
        ({"steps": ((Action(1), 2**70, 2),) * 3}, "seed must be"),
        ({"steps": ((Action(4), 7, 2),) * 3}, "4 is no action of model tiny"),
        ({"steps": ((Action(-1), 7, 2),) * 3}, "is no action"),
        ({"steps": ((Action(2**80), 7, 2),) * 3}, "is no action"),
        ({"steps": ((Action((0.5,)), 7, 2),) * 3}, "is no action"),
        ({"policy": KvPolicy(PolicyKind.SINK_WINDOW, 5, 1)}, "its window is 5 chunks, the model's 4"),
        ({"policy": KvPolicy(PolicyKind.FULL, 4)}, "policy full holds at most 4 chunks"),
        (
            {"policy": KvPolicy(PolicyKind.RETRIEVE, 4, 1, recent_chunks=2, bank_chunks=2**70)},
            f"its bank is {2**70} chunks, at most 256 are kept here",
        ),
        ({"origin": Origin((b"short", b"start"), (Action(0),))}, "not of 72 bytes"),
        ({"blocks": {"kv": np.full((4, 1, 2, 2, 3, 4), np.nan, np.float32)}}, "NaN or an infinity"),
        ({"blocks": {"kv": np.zeros((4, 1, 2, 2, 3, 5), np.float32)}}, "the model's are"),
        ({"blocks": {"kv": np.zeros((4, 1, 2, 2, 3, 4), np.float16)}}, "the model's are float32"),
        ({"blocks": {"kv": np.zeros((4, 1, 2, 2, 3, 4), np.float64)}}, "the model's are float32"),
        ({"blocks": {}}, r"those in fp32 of \['kv'\]"),
        ({"policy": KvPolicy(PolicyKind.SINK_WINDOW, 4, 1, Storage.INT8)}, r"those in int8 of \['kv', 'scale'\]"),
        ({"pixels": np.zeros((4, 1, 4, 5, 3), np.uint8)}, "the model's are"),
    ],
)
def test_what_the_model_could_not_have_made_is_corrupt(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SnapshotCorrupt, match=said):
        check(dataclasses.replace(make(), **change), PACKAGE, max_bank_chunks=256)


@pytest.mark.parametrize("value", [(float("nan"), 0.0), (1e300, 0.0), (1.5, 0.0), (0.0,), 1])
def test_a_vector_outside_the_action_space_is_corrupt(value: Any) -> None:
    saved = dataclasses.replace(make(package=CONTINUOUS), steps=((Action(value), 7, 2),) * 3)
    with pytest.raises(SnapshotCorrupt, match="is no action"):
        check(saved, CONTINUOUS, max_bank_chunks=256)
