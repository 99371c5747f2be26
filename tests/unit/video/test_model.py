"""The tensors, on a tiny world: each member of a batch for itself, whatever the others are."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.settings import SettingsError
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video import noise
from worldtree_video.branch import Branch
from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind, Storage
from worldtree_video.errors import NotFinite
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.model import TickCost, VideoModel
from worldtree_video.scheduler import PendingChunk
from worldtree_video.stored_block import StoredBlock

BLOCK_COUNT = 40
POLICY = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)


class Bench:
    """A model and its pools, without a scheduler."""

    def __init__(self, folder: Path, tiny: TinyWorld, storage: Storage) -> None:
        self.tiny = tiny
        self.storage = storage
        tiny.write(folder)
        (stored,) = ModelRepository(folder, VideoPackage).scan()
        self.model = VideoModel(stored, block_counts=dict.fromkeys(Storage, BLOCK_COUNT))
        self.pools = {storage: BlockPool(BLOCK_COUNT, storage) for storage in Storage}
        self.pool = self.pools[storage]
        self.branches: dict[int, Branch] = {}

    def branch(self, *, seed: int = 7, nfe: int = 2, storage: Storage | None = None, white: bool = False) -> Branch:
        start = (b"\xff" * 72 if white else bytes(range(72))) * self.tiny.frames_per_chunk
        table = BlockTable(self.pools[storage or self.storage], POLICY)
        branch = Branch(Origin((start,), ()), b"root", seed, nfe, table)
        self.make([self.pending(branch)])
        return branch

    def pending(self, branch: Branch, action: Action | None = None) -> PendingChunk:
        record = branch.next_record(action) if action else branch.given_record()
        given = None if action else branch.origin.chunks[len(branch.records)]
        pool = branch.table.pool
        block = pool.allocate()
        assert block is not None
        member = PendingChunk(SimpleNamespace(branch=branch), record, pool, block, branch.table.context(), given, 0.0)  # type: ignore[arg-type]
        self.branches[id(member)] = branch
        return member

    def make(self, members: list[PendingChunk]) -> list[bytes | None]:
        """All evaluations and the commits; None for a member that failed."""
        while active := [member for member in members if not member.denoised and member.error is None]:
            self.model.denoise(active)
        chunks = self.model.commit([member for member in members if member.error is None])
        for member in members:
            branch = self.branches.pop(id(member))
            if member in chunks:
                branch.append(member.record, member.block_id)
            else:
                member.pool.abandon(member.block_id)
                self.model.forget(member)
        return [chunks[member].frames if member in chunks else None for member in members]


@pytest.fixture(params=list(Storage), ids=lambda storage: storage.value)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Bench]:
    """Every test that asks for it runs once for each storage format."""
    return lambda tiny=None: Bench(tmp_path / "models", tiny or TinyWorld(), request.param)


WORLDS = [
    TinyWorld(),
    TinyWorld(sampler="euler"),
    TinyWorld(frames_per_chunk=2),
    TinyWorld(action_size=2),
    TinyWorld(frames_per_chunk=2, latent=True),
    TinyWorld(cache_quality=True),
]


def blocks_of(branch: Branch) -> list[int]:
    return [seen.block_id for seen in branch.table.context()]


def same(one: StoredBlock, other: StoredBlock) -> bool:
    """Whether two blocks are equal to the last bit, types included."""
    return one.pixels.tobytes() == other.pixels.tobytes() and {
        name: (rows.dtype, rows.shape, rows.tobytes()) for name, rows in one.tensors.items()
    } == {name: (rows.dtype, rows.shape, rows.tobytes()) for name, rows in other.tensors.items()}


def steer(tiny: TinyWorld, number: int) -> Action:
    return Action((number / 4, -number / 4)) if tiny.action_size else Action(number)


@pytest.mark.parametrize("tiny", WORLDS, ids=range(len(WORLDS)))
def test_a_chunk_is_the_same_alone_and_in_a_batch_of_others(bench: Callable[..., Bench], tiny: TinyWorld) -> None:
    table = bench(tiny)
    alone = table.branch()
    expected = [table.make([table.pending(alone, steer(tiny, number))])[0] for number in (1, 2, 0)]
    together, other, third = table.branch(), table.branch(seed=8), table.branch(nfe=1)
    for number, pixels in zip((1, 2, 0), expected, strict=True):
        members = [table.pending(branch, steer(tiny, number)) for branch in (other, together, third)]
        made = table.make(members)
        assert made[1] == pixels
        assert len({*made}) == 3
    assert pixels is not None
    assert len(pixels) == 72 * tiny.frames_per_chunk


@pytest.mark.parametrize("tiny", [TinyWorld(), TinyWorld(action_size=2)], ids=["discrete", "continuous"])
def test_a_poisoned_member_fails_alone(bench: Callable[..., Bench], tiny: TinyWorld) -> None:
    table = bench(tiny)
    poison = Action((1.0, 0.0)) if tiny.action_size else Action(3)
    expected = table.make([table.pending(table.branch(), steer(tiny, 1))])[0]
    first, bad, last = table.branch(), table.branch(), table.branch()
    members = [
        table.pending(first, steer(tiny, 1)),
        table.pending(bad, poison),
        table.pending(last, steer(tiny, 1)),
    ]
    assert table.make(members) == [expected, None, expected]
    assert isinstance(members[1].error, NotFinite)
    assert members[1].error.metadata == {"chunk_index": "0"}
    assert table.model._latents == {}
    table.pool.check_integrity()


def test_a_member_that_starts_from_nan_keys_fails_alone(bench: Callable[..., Bench]) -> None:
    table = bench()
    alone = [table.branch(seed=seed) for seed in range(7)]
    expected = [table.make([table.pending(branch, Action(1))])[0] for branch in alone]
    poisoned = table.branch(white=True)
    (block,) = table.model.read(table.storage, blocks_of(poisoned))
    assert any(np.isnan(rows.astype(np.float32)).any() for rows in block.tensors.values())
    members = [table.pending(branch, Action(1)) for branch in (*(table.branch(seed=s) for s in range(7)), poisoned)]
    made = table.make(members)
    assert made == [*expected, None]
    assert isinstance(members[-1].error, NotFinite)


def test_members_of_every_format_share_a_tick_and_each_gets_what_it_gets_alone(bench: Callable[..., Bench]) -> None:
    table = bench()
    expected = table.make([table.pending(table.branch(), Action(1))])[0]
    members = [table.pending(table.branch(storage=storage), Action(1)) for storage in (*Storage, *Storage)]
    made = table.make(members)
    assert [made[place] for place, member in enumerate(members) if member.storage is table.storage] == [expected] * 2
    assert {member.timing.mean_batch_size for member in members} == {2.0}


def test_pools_stay_where_they_are(bench: Callable[..., Bench]) -> None:
    table = bench()
    store = table.model._stores[table.storage]
    before = store.addresses()
    branch = table.branch()
    table.make([table.pending(branch, Action(1))])
    table.model.write(table.storage, [BLOCK_COUNT - 1], table.model.read(table.storage, [branch.table.last]))
    assert store.addresses() == before
    # and what was written is there: a graph that wrote elsewhere would leave zeros
    for name, value in store._tensors.items():
        rows = value.numpy()
        assert rows[branch.table.last].any(), name
        assert np.array_equal(rows[branch.table.last], rows[BLOCK_COUNT - 1])
        assert not rows[store.blank].any()


def test_each_block_in_view_is_seen_at_its_place(bench: Callable[..., Bench]) -> None:
    table = bench()
    branch = table.branch()
    table.make([table.pending(branch, Action(1))])
    member = table.pending(branch, Action(2))
    straight = table.make([member])[0]
    branch.rewind(1)
    swapped = table.pending(branch, Action(2))
    swapped.context = swapped.context[::-1]
    assert table.make([swapped])[0] != straight


def test_the_context_holds_what_was_shown_so_given_frames_and_made_ones_are_alike(bench: Callable[..., Bench]) -> None:
    table = bench()
    branch = table.branch()
    pixels = table.make([table.pending(branch, Action(1))])[0]
    assert pixels is not None
    (made,) = table.model.read(table.storage, [branch.table.last])
    again = table.pending(branch, Action(1))
    again.given, again.step, again.context = pixels, 2, branch.table.context()[:-1]
    table.model.commit([again])
    (given,) = table.model.read(table.storage, [again.block_id])
    assert same(made, given)
    assert given.pixels.tobytes() == pixels
    table.pool.abandon(again.block_id)


def test_a_latent_world_commits_what_its_client_saw_and_not_what_it_was_decoded_from(
    bench: Callable[..., Bench],
) -> None:
    table = bench(TinyWorld(latent=True))
    branch = table.branch()
    pixels = table.make([table.pending(branch, Action(1))])[0]
    assert pixels is not None
    picture = np.frombuffer(pixels, np.uint8).reshape(4, 6, 3)
    assert (picture[:, 0::2] == picture[:, 1::2]).all()  # decoded: each column twice
    (made,) = table.model.read(table.storage, [branch.table.last])
    again = table.pending(branch, Action(1))
    again.given, again.context = pixels, branch.table.context()[:-1]
    table.model.commit([again])
    (given,) = table.model.read(table.storage, [again.block_id])
    assert same(made, given)
    table.pool.abandon(again.block_id)
    table.pool.check_integrity()


def test_a_picture_that_cannot_be_decoded_fails_alone_and_writes_no_block(tmp_path: Path) -> None:
    tiny = TinyWorld(latent=True)
    folder = tiny.write(tmp_path / "made")
    decode = tiny.decode_graph()
    # The square root of what is below -0.5 is no number.
    onnx.save(broken_below(decode, -0.5), folder / "decode.onnx")
    (stored,) = ModelRepository(tmp_path / "made", VideoPackage).scan()
    table = Bench(tmp_path / "whole", tiny, Storage.FP32)
    table.model = VideoModel(stored, block_counts={Storage.FP32: BLOCK_COUNT})
    dark, light = table.branch(), table.branch(seed=8)
    members = [table.pending(dark, Action(1)), table.pending(light, Action(1))]
    for member, value in zip(members, (-0.9, 0.2), strict=True):
        member.step = 2
        table.model._latents[member] = np.full(tiny.sample_shape, value, np.float32)
    before = table.model.read(Storage.FP32, [members[0].block_id])[0]
    made = table.make(members)
    assert isinstance(members[0].error, NotFinite)
    assert made[0] is None
    assert made[1] is not None
    assert same(table.model.read(Storage.FP32, [members[0].block_id])[0], before)
    assert table.model._latents == {}
    table.pool.check_integrity()


def broken_below(model: onnx.ModelProto, floor: float) -> onnx.ModelProto:
    """The same graph over the square of the square root of its input above a floor."""
    graph = model.graph
    (name,) = [value.name for value in graph.input]
    for node in graph.node:
        node.input[:] = ["safe" if each == name else each for each in node.input]
    helper = onnx.helper
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(floor, np.float32), "floor"))
    first = [
        helper.make_node("Sub", [name, "floor"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "root"], ["square"]),
        helper.make_node("Add", ["square", "floor"], ["safe"]),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *rest])
    return model


def test_a_context_of_mixed_quality_is_told_chunk_by_chunk(bench: Callable[..., Bench]) -> None:
    """The nfe of each block in view reaches the graph in its own slot, whatever else is in the batch."""
    table = bench(TinyWorld(cache_quality=True))
    branch, other = table.branch(), table.branch(seed=8, nfe=1)
    for nfe in (1, 2, 1, 2):  # the window of 4 slides: sink 0, then three of these
        branch.nfe = nfe
        table.make([table.pending(branch, Action(1)), table.pending(other, Action(1))])
    members = [table.pending(other, Action(1)), table.pending(branch, Action(1))]
    assert [seen.nfe for seen in members[1].context] == [0, 2, 1, 2]
    store = table.model._stores[table.storage]
    _, inputs = table.model._conditions(members, store)
    np.testing.assert_array_equal(inputs["cache_quality"], np.array([[0, 1, 1, 1], [0, 2, 1, 2]], np.float32))
    # And it matters: the same blocks, said to be of another quality, give another picture.
    twin = branch.fork()
    expected = table.make(members)[1]
    member = table.pending(twin, Action(1))
    member.context = tuple(seen._replace(nfe=1) for seen in member.context)
    assert table.make([member])[0] != expected
    table.pool.check_integrity()


def test_blocks_that_were_read_can_be_put_back_elsewhere(bench: Callable[..., Bench]) -> None:
    table = bench()
    branch = table.branch()
    table.make([table.pending(branch, Action(1))])
    blocks = table.model.read(table.storage, blocks_of(branch))
    expected = table.make([table.pending(branch, Action(2))])[0]
    twin = Branch(branch.origin, b"root", 7, 2, BlockTable(table.pool, POLICY), records=branch.records[:2])
    twin.table.stand_at(2)
    refilled = twin.table.refill({0: b"first", 1: b"second"})
    assert refilled is not None
    fresh = list(refilled.values())
    table.model.write(table.storage, fresh, blocks)
    assert all(map(same, table.model.read(table.storage, fresh), blocks))
    assert table.model.frames(table.storage, fresh[0]) == branch.origin.chunks[0]
    assert table.make([table.pending(twin, Action(2))])[0] == expected


def test_renoising_draws_fresh_noise_and_euler_goes_on_with_the_first(bench: Callable[..., Bench]) -> None:
    for sampler, same in (("renoise", False), ("euler", True)):
        table = bench(TinyWorld(name=sampler, sampler=sampler))
        member = table.pending(table.branch(), Action(1))
        table.model.denoise([member])
        latent = table.model._latents[member]
        shape = table.model.package.chunk_shape
        first, second = noise.draw(7, 0, 0, shape), noise.draw(7, 0, 1, shape)
        drawn = first if same else second
        clean = (latent - 0.5 * drawn) / 0.5
        assert np.abs(clean).max() < 1.001  # what is left is a tanh
        shutil.rmtree(table.model.stored.folder.parent.parent)


def test_the_largest_batch_wins_only_where_it_pays() -> None:
    assert TickCost({1: 1.0, 2: 1.5, 4: 2.5, 8: 6.0}).best_batch == 4
    assert TickCost({1: 1.0, 2: 2.0, 4: 4.0}).best_batch == 1
    assert TickCost({1: 1.0, 2: 1.99}).best_batch == 1


def test_a_tick_is_measured_at_every_size_that_the_pool_allows(bench: Callable[..., Bench]) -> None:
    table = bench()
    cost = table.model.measure(repeats=1, storage=table.storage)
    assert list(cost.seconds) == [1, 2, 4, 8, 16]
    assert all(seconds > 0 for seconds in cost.seconds.values())
    assert cost.commit_s > 0
    assert list(table.model.measure(repeats=1, max_batch=3).seconds) == [1, 2]


def load(folder: Path) -> VideoModel:
    (stored,) = ModelRepository(folder, VideoPackage).scan()
    return VideoModel(stored, block_counts={Storage.FP32: BLOCK_COUNT})


@pytest.mark.parametrize(
    ("declared", "exported", "file", "field", "said"),
    [
        (TinyWorld(window=5), TinyWorld(), "denoise.onnx", "input table", "(None, 5)"),
        (TinyWorld(tokens=4), TinyWorld(), "denoise.onnx", "input pool", "(None, 1, 2, 2, 4, 4)"),
        (TinyWorld(width_px=7), TinyWorld(), "denoise.onnx", "input x", "(None, 1, 4, 7, 3)"),
        (TinyWorld(action_size=2), TinyWorld(), "denoise.onnx", "input action", "tensor(float)"),
        (TinyWorld(), TinyWorld(action_size=2), "denoise.onnx", "input action", "tensor(int64)"),
        (TinyWorld(action_size=3), TinyWorld(action_size=2), "denoise.onnx", "input action", "(None, 3)"),
        (TinyWorld(cache_quality=True), TinyWorld(), "denoise.onnx", "input cache_quality", "is missing"),
        (TinyWorld(), TinyWorld(cache_quality=True), "denoise.onnx", "input cache_quality", "is not one of"),
        (TinyWorld(latent=True), TinyWorld(), "denoise.onnx", "input x", "(None, 1, 4, 3, 3)"),
    ],
)
def test_graphs_that_are_not_what_the_package_says_are_refused(
    tmp_path: Path, declared: TinyWorld, exported: TinyWorld, file: str, field: str, said: str
) -> None:
    folder = declared.write(tmp_path)
    onnx.save(exported.denoise_graph(), folder / "denoise.onnx")
    onnx.save(exported.commit_graph(), folder / "commit.onnx")
    with pytest.raises(PackageError) as caught:
        load(tmp_path)
    assert (caught.value.file.name, caught.value.field) == (file, field)
    assert said in caught.value.expected


def test_graphs_that_were_swapped_are_refused(tmp_path: Path) -> None:
    folder = TinyWorld().write(tmp_path)
    shutil.copy(folder / "commit.onnx", folder / "denoise.onnx")
    with pytest.raises(PackageError, match="is not one of"):
        load(tmp_path)


def test_a_graph_for_batches_of_one_is_refused(tmp_path: Path) -> None:
    folder = TinyWorld().write(tmp_path)
    graph = TinyWorld().denoise_graph()
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, folder / "denoise.onnx")
    with pytest.raises(PackageError, match="input x: must have shape"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_a_graph_that_is_no_graph_or_half_of_one_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = TinyWorld().write(tmp_path) / "commit.onnx"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(PackageError, match=r"commit\.onnx: graph: ONNX Runtime cannot load it"):
        load(tmp_path)


def test_a_device_that_is_not_there_is_a_setting_that_cannot_be() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    from worldtree_runtime.inference import open_session

    with pytest.raises(SettingsError, match="device 'cuda' needs CUDAExecutionProvider"):
        open_session(Path("denoise.onnx"), device="cuda")
