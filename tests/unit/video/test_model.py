"""The tensors, on a tiny world: each member of a batch for itself, whatever the others are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.settings import SettingsError
from worldtree_runtime.testing import TinyWorld
from worldtree_video import noise
from worldtree_video.branch import Branch
from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind, Storage
from worldtree_video.errors import NotFinite
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.model import TickCost, VideoModel
from worldtree_video.scheduler import PendingChunk

BLOCK_COUNT = 24
POLICY = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)


class Bench:
    """A model and a pool, without a scheduler."""

    def __init__(self, folder: Path, tiny: TinyWorld) -> None:
        self.tiny = tiny
        tiny.write(folder)
        (stored,) = ModelRepository(folder).scan()
        self.model = VideoModel(stored, block_count=BLOCK_COUNT)
        self.pool = BlockPool(BLOCK_COUNT)
        self.branches: dict[int, Branch] = {}

    def branch(self, *, seed: int = 7, nfe: int = 2) -> Branch:
        start = bytes(range(72)) * self.tiny.frames_per_chunk
        branch = Branch(Origin((start,), ()), b"root", seed, nfe, BlockTable(self.pool, POLICY))
        self.make([self.pending(branch)])
        return branch

    def pending(self, branch: Branch, action: Action | None = None) -> PendingChunk:
        record = branch.next_record(action) if action else branch.given_record()
        given = None if action else branch.origin.chunks[len(branch.records)]
        block = self.pool.allocate()
        assert block is not None
        member = PendingChunk(None, record, self.pool, block, branch.table.context(), given, 0.0)  # type: ignore[arg-type]
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
                self.pool.abandon(member.block_id)
                self.model.forget(member)
        return [chunks[member].frames if member in chunks else None for member in members]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    return lambda tiny=None: Bench(tmp_path / "models", tiny or TinyWorld())


WORLDS = [TinyWorld(), TinyWorld(sampler="euler"), TinyWorld(frames_per_chunk=2), TinyWorld(action_size=2)]


def steer(tiny: TinyWorld, number: int) -> Action:
    return Action((number / 4, -number / 4)) if tiny.action_size else Action(number)


@pytest.mark.parametrize("tiny", WORLDS, ids=lambda tiny: f"{tiny.sampler}-{tiny.frames_per_chunk}-{tiny.action_size}")
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


def test_a_nan_in_a_block_that_somebody_holds_reaches_nobody_else(bench: Callable[..., Bench]) -> None:
    table = bench()
    poisoned = [table.pool.allocate() for _ in range(BLOCK_COUNT // 2)]
    expected = table.make([table.pending(table.branch(), Action(1))])[0]
    nan = np.full((len(poisoned), *table.tiny.block_shape), np.nan, np.float32)
    pixels = np.zeros((len(poisoned), *table.model.package.chunk_shape), np.uint8)
    table.model.write_blocks(Storage.FP32, [block for block in poisoned if block is not None], nan, pixels)
    assert table.make([table.pending(table.branch(), Action(1))])[0] == expected


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
    made, _ = table.model.read_blocks(Storage.FP32, [branch.table.last])
    again = table.pending(branch, Action(1))
    again.given, again.step, again.context = pixels, 2, branch.table.context()[:-1]
    table.model.commit([again])
    given, shown = table.model.read_blocks(Storage.FP32, [again.block_id])
    assert np.array_equal(made, given)
    assert shown.tobytes() == pixels
    table.pool.abandon(again.block_id)


def test_blocks_that_were_read_can_be_put_back_elsewhere(bench: Callable[..., Bench]) -> None:
    table = bench()
    branch = table.branch()
    table.make([table.pending(branch, Action(1))])
    blocks, pixels = table.model.read_blocks(Storage.FP32, branch.table.context())
    expected = table.make([table.pending(branch, Action(2))])[0]
    twin = Branch(branch.origin, b"root", 7, 2, BlockTable(table.pool, POLICY), records=branch.records[:2])
    fresh = twin.table.restore(2)
    assert fresh is not None
    table.model.write_blocks(Storage.FP32, fresh, blocks, pixels)
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
    cost = bench().model.measure(repeats=1)
    assert list(cost.seconds) == [1, 2, 4, 8, 16]
    assert all(seconds > 0 for seconds in cost.seconds.values())


def load(folder: Path) -> VideoModel:
    (stored,) = ModelRepository(folder).scan()
    return VideoModel(stored, block_count=BLOCK_COUNT)


@pytest.mark.parametrize(
    ("declared", "exported", "file", "field", "said"),
    [
        (TinyWorld(window=5), TinyWorld(), "denoise.onnx", "input table", "(None, 5)"),
        (TinyWorld(tokens=4), TinyWorld(), "denoise.onnx", "input pool", "(None, 1, 2, 2, 4, 4)"),
        (TinyWorld(width_px=7), TinyWorld(), "denoise.onnx", "input x", "(None, 1, 4, 7, 3)"),
        (TinyWorld(action_size=2), TinyWorld(), "denoise.onnx", "input action", "tensor(float)"),
        (TinyWorld(), TinyWorld(action_size=2), "denoise.onnx", "input action", "tensor(int64)"),
        (TinyWorld(action_size=3), TinyWorld(action_size=2), "denoise.onnx", "input action", "(None, 3)"),
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
