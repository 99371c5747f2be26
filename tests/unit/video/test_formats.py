"""Storage formats: what a block costs and loses in each, and which packages' graphs can be rewritten for them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from worldtree_runtime.inference import open_session
from worldtree_runtime.model_package import PackageError, read_package
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import KvSpec, PoseSpec, StoredVideo, VideoPackage
from worldtree_video import formats
from worldtree_video.block_store import BlockStore
from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind, Storage, SummaryKind
from worldtree_video.errors import NotFinite
from worldtree_video.snapshot import decode
from worldtree_video.stored_block import StoredBlock
from worldtree_video.worlds import Recipe

SMALL = [Storage.FP16, Storage.INT8]
MINIGRID = Path(__file__).parents[3] / "models" / "minigrid" / "1"
every_format = pytest.mark.parametrize("storage", list(Storage), ids=lambda storage: storage.value)
small_formats = pytest.mark.parametrize("storage", SMALL, ids=lambda storage: storage.value)


def stored_package(folder: Path, tiny: TinyWorld) -> StoredVideo:
    tiny.write(folder)
    (stored,) = ModelRepository(folder, VideoPackage).scan()
    return stored


def test_a_block_of_the_shipped_world_costs_half_and_about_a_quarter() -> None:
    kv = read_package(MINIGRID / "model.yaml", VideoPackage).kv
    fp32, fp16, int8 = (formats.block_bytes(kv, storage) for storage in Storage)
    assert (fp32, fp16, int8) == (102400, 51200, 25088 + 1024 + 1024)
    assert fp32 / int8 >= 3.6


def test_int8_keeps_state_tokens_apart() -> None:
    kv = KvSpec(layers=2, heads=3, tokens=5, head_dim=4, window=1, state_tokens=2)
    assert formats.block_spec(kv, Storage.INT8) == {
        "kv": ("int8", (2, 2, 3, 3, 4)),
        "scale": ("float16", (2, 2, 3, 1, 4)),
        "state": ("float16", (2, 2, 3, 2, 4)),
    }
    assert "state" not in formats.block_spec(kv.model_copy(update={"state_tokens": 0}), Storage.INT8)


class Scratch:
    """A commit that writes what it is told, to see what a format makes of given numbers."""

    KV = KvSpec(layers=1, heads=2, tokens=5, head_dim=3, window=2, state_tokens=1)

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.storage = storage
        shape = [1, 2, 2, 5, 3]
        index = helper.make_node("Unsqueeze", ["slot", "one"], ["index"])
        write = helper.make_node("ScatterND", ["pool", "index", "block"], ["pool_out"])
        graph = helper.make_graph(
            [index, write],
            "commit",
            [
                helper.make_tensor_value_info("block", onnx.TensorProto.FLOAT, ["batch", *shape]),
                helper.make_tensor_value_info("slot", onnx.TensorProto.INT64, ["batch"]),
                helper.make_tensor_value_info("pool", onnx.TensorProto.FLOAT, ["blocks", *shape]),
            ],
            [helper.make_tensor_value_info("pool_out", onnx.TensorProto.FLOAT, ["blocks", *shape])],
            initializer=[numpy_helper.from_array(np.array([1]), "one")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), folder / "commit.onnx")
        rewritten = formats.commit_graph(folder / "commit.onnx", self.KV, storage)
        self._commit = open_session(folder / "commit.onnx", graph=rewritten)
        self._spec = formats.block_spec(self.KV, storage)

    def store(self, block: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """One block [layers, 2, heads, tokens, head_dim] as it is stored."""
        pools = {formats.stored(name): np.zeros((2, *form.shape), form.dtype) for name, form in self._spec.items()}
        feeds = {**pools, "block": block[None], "slot": np.array([1]), formats.TABLE: np.zeros((1, 2), np.int64)}
        written = self._commit.run([formats.written(name) for name in self._spec], feeds)
        assert not any(rows[0].any() for rows in written)
        return {name: rows[1] for name, rows in zip(self._spec, written, strict=True)}


def test_int8_is_off_by_at_most_half_a_step_of_its_own_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    block = (rng.normal(size=(1, 2, 2, 5, 3)) * 10.0 ** rng.integers(-3, 4, (1, 2, 2, 1, 3))).astype(np.float32)
    rows = Scratch(tmp_path, Storage.INT8).store(block)
    keys, scale = block[..., :4, :], rows["scale"].astype(np.float32)
    assert np.array_equal(rows["state"], block[..., 4:, :].astype(np.float16))
    largest = np.abs(keys).max(axis=-2, keepdims=True)
    assert np.allclose(scale, largest / 127, rtol=1e-3, atol=1e-7)
    assert np.abs(rows["kv"]).max() == 127
    error = np.abs(rows["kv"] * scale - keys)
    assert (error <= 0.5 * scale + 127 * scale * 2.0**-11).all()  # the scale itself is rounded to 11 bits


def test_int8_rounds_half_to_even(tmp_path: Path) -> None:
    block = np.zeros((1, 2, 2, 5, 3), np.float32)
    block[0, 0, 0, :4, 0] = [127, 0.5, 1.5, -2.5]  # the largest makes a step of 1
    assert Scratch(tmp_path, Storage.INT8).store(block)["kv"][0, 0, 0, :, 0].tolist() == [127, 0, 2, -2]


@small_formats
def test_zeros_stay_zeros_and_what_is_too_large_saturates(tmp_path: Path, storage: Storage) -> None:
    scratch = Scratch(tmp_path, storage)
    assert not any(rows.any() for rows in scratch.store(np.zeros((1, 2, 2, 5, 3), np.float32)).values())
    huge = scratch.store(np.full((1, 2, 2, 5, 3), -3e38, np.float32))
    assert all(np.isfinite(rows.astype(np.float32)).all() for rows in huge.values())
    tiny = scratch.store(np.full((1, 2, 2, 5, 3), 1e-30, np.float32))
    assert all(not rows.any() for name, rows in tiny.items() if name != "kv" or storage is Storage.FP16)


@small_formats
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_stays_one_and_spoils_its_channel_only(tmp_path: Path, storage: Storage, bad: float) -> None:
    block = np.ones((1, 2, 2, 5, 3), np.float32)
    block[0, 1, 0, 2, 1] = bad
    rows = Scratch(tmp_path, storage).store(block)
    wide = rows["kv"].astype(np.float32) * rows.get("scale", np.float16(1)).astype(np.float32)
    others = np.delete(wide.reshape(-1, wide.shape[-2], 3), 2, axis=0)  # all but the values of head 0
    assert np.isfinite(others).all()
    if storage is Storage.INT8 or np.isnan(bad):
        assert np.isnan(wide[0, 1, 0, 2, 1])
    assert np.isfinite(wide[0, 1, 0, :, [0, 2]]).all()


@every_format
def test_a_pose_is_read_back_exactly_in_every_format(tmp_path: Path, storage: Storage) -> None:
    store = BlockStore(stored_package(tmp_path, TinyWorld(pose=True)), storage, block_count=8)
    blocks = []
    for x in (0.0, -3.0, 2048.0):
        tensors = {name: np.ones(form.shape, form.dtype) for name, form in store.spec.items()}
        held = tensors["state"] if storage is Storage.INT8 else tensors["kv"]
        held[0, 0, 0, -1, :3] = (x, 2.0, 0.25)
        blocks.append(StoredBlock(tensors, np.zeros((1, 4, 6, 3), np.uint8)))
    store.write([5, 0, 7], blocks)
    found = store.summaries([7, 5, 0])
    assert {summary.kind for summary in found} == {SummaryKind.POSE}
    assert [summary.values for summary in found] == [(2048.0, 2.0, 0.25), (0.0, 2.0, 0.25), (-3.0, 2.0, 0.25)]


def test_a_pose_is_told_in_steps_and_turns_where_it_looks(tmp_path: Path) -> None:
    stored = stored_package(tmp_path, TinyWorld(pose=True))
    pose = PoseSpec(layer=0, part="key", head=0, token=2, step=0.5, turn=4.0, ahead=3.0)
    kv = stored.package.kv.model_copy(update={"pose": pose})
    package = stored.package.model_copy(update={"kv": kv})
    store = BlockStore(StoredVideo(stored.folder, package, stored.digest), Storage.FP32, block_count=4)
    block = np.zeros(package.kv.block_shape, np.float32)
    block[0, 0, 0, 2, :3] = (3.0, -1.0, 1.0)  # it looks along y
    store.write([0], [StoredBlock({"kv": block}, np.zeros((1, 4, 6, 3), np.uint8))])
    assert store.summaries([0])[0].values == (6.0, 1.0, 0.25)


@every_format
def test_without_a_pose_the_mean_of_the_last_layers_keys_is_compared(tmp_path: Path, storage: Storage) -> None:
    store = BlockStore(stored_package(tmp_path, TinyWorld()), storage, block_count=4)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(-9, 9, form.shape).astype(form.dtype)
        if name == "kv"
        else np.full(form.shape, 0.5, form.dtype)
        for name, form in store.spec.items()
    }
    store.write([2], [StoredBlock(tensors, np.zeros((1, 4, 6, 3), np.uint8))])
    wide = tensors["kv"].astype(np.float32) * (np.float32(0.5) if storage is Storage.INT8 else np.float32(1))
    (summary,) = store.summaries([2])
    assert summary.kind is SummaryKind.KEY
    assert np.allclose(summary.values, wide[-1, 0].mean(axis=1).reshape(-1), atol=1e-6)


@every_format
@pytest.mark.parametrize("heads", [1, 2])
def test_a_mean_of_keys_is_the_same_alone_and_among_others(storage: Storage, heads: int) -> None:
    """ONNX Runtime adds up a single block of one head in another order than several."""
    kv = KvSpec(layers=2, heads=heads, tokens=67, head_dim=32, window=4)
    session = open_session(Path("summary"), graph=formats.summary_graph(kv, storage))
    rng = np.random.default_rng(0)
    pool = {
        formats.stored(name): (99 * rng.uniform(-1, 1, (6, *form.shape))).astype(form.dtype)
        for name, form in formats.block_spec(kv, storage).items()
    }
    together = session.run(None, {**pool, "index": np.arange(6)})[0]
    for number, row in enumerate(together):
        (alone,) = session.run(None, {**pool, "index": np.array([number])})[0]
        assert alone.tobytes() == row.tobytes()


@small_formats
def test_the_shipped_world_knows_its_pose_exactly_after_1000_chunks(storage: Storage) -> None:
    stored = StoredVideo(MINIGRID, read_package(MINIGRID / "model.yaml", VideoPackage), "")
    window = stored.package.kv.window
    exact, small = (BlockStore(stored, each, block_count=window + 1) for each in (Storage.FP32, storage))
    pixels = np.zeros((1, *stored.package.chunk_shape), np.uint8)
    rng = np.random.default_rng(0)
    poses = []
    for number in range(1000):
        context = [position % (window + 1) for position in range(max(0, number - window), number)]
        table = np.full((1, window), exact.blank, np.int64)
        table[0, : len(context)] = context
        slot = number % (window + 1)
        inputs = {
            "x0": np.full(pixels.shape, -1, np.float32),
            "slot": np.array([slot]),
            "action": np.array([rng.choice([0, 1, 2, 2, 2, 2]) if number else 7]),
            "position": np.array([len(context)]),
            "key_mask": np.arange(window)[None] < len(context),
        }
        for store in (exact, small):
            store.run_commit(inputs, table, pixels)
        poses.append([store.summaries([slot])[0].values for store in (exact, small)])
    assert all(one == other for one, other in poses)
    assert len({one for one, _ in poses}) > 300


@small_formats
@pytest.mark.parametrize("graph", ["denoise", "commit"])
def test_of_the_shipped_graphs_only_gathers_and_scatters_touch_a_pool(
    tmp_path: Path, storage: Storage, graph: str
) -> None:
    """As ONNX Runtime runs them: a Cast of a whole pool would cost as much as the pool is large, each tick."""
    kv = read_package(MINIGRID / "model.yaml", VideoPackage).kv
    path = MINIGRID / f"{graph}.onnx"
    rewritten = getattr(formats, f"{graph}_graph")(path, kv, storage)
    open_session(path, graph=rewritten, optimized=tmp_path / "optimized.onnx")
    nodes = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph.node
    names = {formats.stored(name) for name in formats.block_spec(kv, storage)}
    touching = {node.op_type for node in nodes if names & set(node.input)}
    assert touching == ({"Gather"} if graph == "denoise" else {"Gather", "ScatterND"})


def spoilt(change: Callable[[Any], None], graph: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        model = onnx.load(str(folder / f"{graph}.onnx"))
        change(model)
        onnx.save(model, folder / f"{graph}.onnx")

    return spoil


def node_of(model: Any, kind: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == kind)


def scattered_by_sum(model: Any) -> None:
    node_of(model, "ScatterND").attribute.append(helper.make_attribute("reduction", "add"))


def read_by_slot(model: Any) -> None:
    node_of(model, "Gather").input[1] = "slot"


def read_whole(model: Any) -> None:
    node = node_of(model, "Sum")
    mean = helper.make_node("ReduceMean", ["pool"], ["whole"], keepdims=0)
    node.input.append("whole")
    model.graph.node.insert(0, mean)


def written_elsewhere(model: Any) -> None:
    scatter = node_of(model, "ScatterND")
    scatter.output[0] = "moved"
    model.graph.node.append(helper.make_node("Neg", ["moved"], ["pool_out"]))


def old_opset(model: Any) -> None:
    model.opset_import[0].version = 17


def gathered_by_head(model: Any) -> None:
    node = node_of(model, "Gather")
    node.attribute[0].i = 1


@small_formats
@pytest.mark.parametrize(
    ("graph", "change", "field", "said"),
    [
        ("commit", scattered_by_sum, "output pool_out", "ScatterND without reduction"),
        ("commit", written_elsewhere, "output pool_out", "it comes from Neg"),
        ("commit", read_by_slot, "node", "must look blocks of pool up by table"),
        ("commit", read_whole, "node", "must read pool by a Gather over its blocks, got ReduceMean"),
        ("denoise", read_whole, "node", "must read pool by a Gather over its blocks, got ReduceMean"),
        ("denoise", gathered_by_head, "node", "must read pool by a Gather"),
        ("denoise", old_opset, "opset", "must be 18 or newer for fp16 and int8 blocks, got 17"),
    ],
)
def test_a_graph_that_cannot_be_rewritten_is_refused_by_what_was_expected(
    tmp_path: Path, storage: Storage, graph: str, change: Callable[[Any], None], field: str, said: str
) -> None:
    folder = TinyWorld().write(tmp_path)
    spoilt(change, graph)(folder)
    kv = VideoPackage.model_validate(TinyWorld().manifest()).kv
    with pytest.raises(PackageError) as caught:
        getattr(formats, f"{graph}_graph")(folder / f"{graph}.onnx", kv, storage)
    assert caught.value.file == folder / f"{graph}.onnx"
    assert caught.value.field.startswith(field)
    assert said in caught.value.expected


def policy(storage: Storage) -> KvPolicy:
    return KvPolicy(PolicyKind.SINK_WINDOW, 4, 1, storage)


@every_format
async def test_a_session_that_starts_from_nan_keys_fails_alone_among_seven_neighbours(
    serve: Callable[..., Any], storage: Storage
) -> None:
    served = serve(max_batch=8, prefix_cache=False)
    worlds = served.worlds
    recipes = [Recipe(served.starts["dawn"], seed, 2, policy(storage)) for seed in range(7)]
    actions = [Action(1), Action(0), Action(2)]
    alone = []
    for recipe in recipes:
        session = await worlds.create(recipe, ttl_s=60)
        alone.append([chunk.frames for chunk in await worlds.step(session.name, actions)])
    white = Origin((b"\xff" * served.package.chunk_bytes,), ())
    sessions = [await worlds.create(recipe, ttl_s=60) for recipe in recipes]
    poisoned = await worlds.create(Recipe(white, 7, 2, policy(storage)), ttl_s=60)
    steps = [worlds.step(session.name, actions) for session in (*sessions[:3], poisoned, *sessions[3:])]
    made = await asyncio.gather(*steps, return_exceptions=True)
    assert isinstance(made.pop(3), NotFinite)
    assert [[chunk.frames for chunk in chunks] for chunks in made] == alone


@every_format
async def test_a_history_made_again_from_its_records_gives_the_same_blocks_and_frames(
    serve: Callable[..., Any], storage: Storage
) -> None:
    served = serve(TinyWorld(pose=True), prefix_cache=False)
    worlds, recipe = served.worlds, Recipe(served.starts["dusk"], 7, 2, policy(storage))
    actions = [Action(number % 3) for number in range(9)]
    first = await worlds.create(recipe, ttl_s=60)
    frames = [chunk.frames for chunk in await worlds.step(first.name, actions)]
    again = await worlds.create(recipe, ttl_s=60)
    assert [(await worlds.step(again.name, [action]))[0].frames for action in actions] == frames
    saved, twin = [decode((await served.archive.save(session.name))[0]) for session in (first, again)]
    assert saved.state_hash == twin.state_hash
    one, other = ({name: rows.tobytes() for name, rows in each.blocks.items()} for each in (saved, twin))
    assert one == other
    assert saved.pixels.tobytes() == twin.pixels.tobytes()
    restored, identical = await served.archive.restore(saved, ttl_s=60)
    assert identical
    on = [(await worlds.step(session.name, [Action(1)]))[0].frames for session in (first, restored)]
    assert on[0] == on[1]


def test_a_format_whose_pool_has_no_size_is_not_offered(serve: Callable[..., Any]) -> None:
    assert list(serve().worlds.engine.pools) == list(Storage)
    engine = serve(fp16_pool_mib=0, int8_pool_mib=1).worlds.engine
    counts = {storage: pool.block_count for storage, pool in engine.pools.items()}
    assert counts == {Storage.FP32: (1 << 20) // 192, Storage.INT8: (1 << 20) // (48 + 32)}
    assert {storage: pool.storage for storage, pool in engine.pools.items()} == {key: key for key in counts}


def test_a_pool_of_a_format_that_holds_no_session_is_refused_by_its_setting(serve: Callable[..., Any]) -> None:
    with pytest.raises(PackageError, match="int8_pool_mib 1 holds 63 blocks of 16416 bytes; a window of 4"):
        serve(TinyWorld(tokens=1024), pool_mib=8, fp16_pool_mib=0, int8_pool_mib=1, headroom_blocks=60)


@every_format
@pytest.mark.parametrize("pose", [True, False], ids=["by-pose", "by-key"])
@pytest.mark.parametrize("host_mib", [8, 0], ids=["loaded", "recomputed"])
async def test_what_is_retrieved_is_the_same_after_spills_and_rewinds(
    serve: Callable[..., Any], storage: Storage, pose: bool, host_mib: int
) -> None:
    """Summaries come with a commit, from a replay, from a batch of loaded blocks: always the same to the last bit."""
    served = serve(TinyWorld(pose=pose, tokens=24), host_mib=host_mib, prefix_cache=False, reserve_chunks=0)
    worlds, engine = served.worlds, served.worlds.engine
    policy = KvPolicy(PolicyKind.RETRIEVE, 4, 1, storage, recent_chunks=1, bank_chunks=6)
    recipe = Recipe(served.starts["dusk"], 7, 2, policy)
    actions = [Action(value) for value in (0, 1, 2, 0, 0, 1, 1, 2, 0, 1, 0, 0, 2, 1, 1, 0, 2, 1)]

    def spill() -> None:
        with engine.lock:
            while engine.spill(engine.pools[storage]):
                pass

    undisturbed = await worlds.create(recipe, ttl_s=600.0)
    expected = [chunk.frames for chunk in await worlds.step(undisturbed.name, actions)]
    session = await worlds.create(recipe, ttl_s=600.0)
    made = [chunk.frames for chunk in await worlds.step(session.name, actions[:9])]
    spill()
    assert session.branch.table.held_count == 0
    made += [chunk.frames for chunk in await worlds.step(session.name, actions[9:13])]
    await worlds.rewind(session.name, 6)  # past what is kept, so it is completed from wherever its blocks are
    spill()
    made[7:] = [chunk.frames for chunk in await worlds.step(session.name, actions[7:])]
    assert made == expected
    assert session.branch.table.summaries() == undisturbed.branch.table.summaries() != {}
    assert session.branch.table.visible() == undisturbed.branch.table.visible()
    assert session.branch.table.visible() != policy_of_the_latest(session.branch.table, policy)


def policy_of_the_latest(table: Any, policy: KvPolicy) -> list[int]:
    """What it would show if it compared nothing."""
    return [0, *range(len(table) - policy.window_chunks + 1, len(table))]
