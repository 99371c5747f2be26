"""The same engine with its pools on a GPU: the same frames within a tolerance, and no block crosses to the host."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from prometheus_client import CollectorRegistry
from worldtree_runtime.inference import open_session
from worldtree_runtime.model_repository import ModelRepository, StoredPackage
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video import formats
from worldtree_video.block_store import BlockStore
from worldtree_video.catalog import Served, load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind, Storage
from worldtree_video.metrics import VideoMetrics
from worldtree_video.recipe import Recipe
from worldtree_video.stored_block import StoredBlock

needs_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu and a GPU"
)
every_format = pytest.mark.parametrize("storage", list(Storage), ids=lambda storage: storage.value)
MODELS = Path(__file__).parents[2] / "models"
ACTIONS = [Action(value) for value in (2, 0, 2, 1, 1, 2, 5, 2)] * 4


@asynccontextmanager
async def served_on(device: str, *, max_batch: int = 8) -> AsyncIterator[Served]:
    settings = VideoSettings(models=str(MODELS), pool_mib=256, device=device, max_batch=max_batch, prefix_cache=False)
    catalog = load_catalog(settings, VideoMetrics(CollectorRegistry()))
    catalog.start()
    try:
        yield next(iter(catalog.newest()))
    finally:
        catalog.stop()


async def frames_on(device: str, storage: Storage) -> np.ndarray:
    async with served_on(device) as served:
        policy = KvPolicy(PolicyKind.SINK_WINDOW, served.package.kv.window, 1, storage)
        session = await served.worlds.create(Recipe(served.starts["four-rooms"], 7, 2, policy), ttl_s=600)
        chunks = await served.worlds.step(session.name, ACTIONS)
        served.worlds.delete(session.name)
        served.worlds.engine.check_integrity()
        assert served.worlds.engine.pools[storage].held_count == 0
        return np.stack([np.frombuffer(chunk.frames, np.uint8) for chunk in chunks])


@needs_gpu
@every_format
async def test_a_gpu_gives_the_frames_of_the_cpu_within_rounding(storage: Storage) -> None:
    cpu, cuda = await frames_on("cpu", storage), await frames_on("cuda", storage)
    assert np.abs(cpu.astype(int) - cuda.astype(int)).mean() < 1.0


@needs_gpu
@every_format
def test_blocks_go_to_a_gpu_and_come_back_as_they_were(tmp_path: Path, storage: Storage) -> None:
    TinyWorld(pose=True).write(tmp_path)
    (stored,) = ModelRepository(tmp_path, VideoPackage).scan()
    store = BlockStore(stored, storage, block_count=16, device="cuda")
    before = store.addresses()
    rng = np.random.default_rng(0)
    blocks = [
        StoredBlock(
            {name: rng.integers(-99, 99, form.shape).astype(form.dtype) for name, form in store.spec.items()},
            rng.integers(0, 256, stored.package.chunk_shape, np.uint8),
        )
        for _ in range(3)
    ]
    store.write([9, 2, 15], blocks)
    for found, block in zip(store.read([9, 2, 15]), blocks, strict=True):
        assert all(found.tensors[name].tobytes() == rows.tobytes() for name, rows in block.tensors.items())
        assert found.pixels.tobytes() == block.pixels.tobytes()
    assert not any(rows.any() for rows in store.read([0])[0].tensors.values())
    assert store.addresses() == before


def graphs_of(stored: StoredPackage, storage: Storage) -> Iterator[tuple[Path, bytes | None]]:
    """Every graph that runs over a pool: its file, and its bytes where it is not the file's own."""
    kv, folder, files = stored.package.kv, stored.folder, stored.package.files
    for file, rewrite in ((files.denoise, formats.denoise_graph), (files.commit, formats.commit_graph)):
        path = folder / file
        yield path, None if storage is Storage.FP32 else rewrite(path, kv, storage)
    for graph in (formats.read_graph, formats.write_graph, formats.summary_graph):
        yield folder / graph.__name__, graph(kv, storage)


def pool_names(stored: StoredPackage, storage: Storage) -> set[str]:
    own = {formats.stored(name) for name in formats.block_spec(stored.package.kv, storage)}
    return own | {"pool"} if storage is Storage.FP32 else own


@needs_gpu
@every_format
def test_no_graph_copies_a_pool_between_device_and_host(tmp_path: Path, storage: Storage) -> None:
    """As ONNX Runtime will run them: it says where it copies by Memcpy nodes, and none may take a pool."""
    (stored,) = ModelRepository(MODELS, VideoPackage).scan()
    for number, (path, graph) in enumerate(graphs_of(stored, storage)):
        file = tmp_path / f"{number}.onnx"
        open_session(path, graph=graph, device="cuda", optimized=file)
        nodes = onnx.load(str(file), load_external_data=False).graph.node
        copied = {name for node in nodes if node.op_type.startswith("Memcpy") for name in node.input}
        assert not copied & pool_names(stored, storage), path


def profile_of(session: ort.InferenceSession) -> list[dict[str, Any]]:
    """What each node that ran said of itself: op_name, provider, output_size in bytes."""
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event["args"] for event in events if event["name"].endswith("_kernel_time")]


@needs_gpu
@every_format
async def test_in_the_steady_state_pools_stay_where_they_are_and_run_on_the_gpu(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile of real ticks: CUDA reads and writes the pools; indices cross, and never a part of a block."""
    profiled: list[ort.InferenceSession] = []
    plain = ort.InferenceSession

    def session(model: Any, options: ort.SessionOptions, **more: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"profile-{len(profiled)}")
        profiled.append(plain(model, options, **more))
        return profiled[-1]

    monkeypatch.setattr("worldtree_runtime.inference.ort.InferenceSession", session)
    async with served_on("cuda", max_batch=1) as served:  # indices of a large batch are as large as a part of a block
        store = served.worlds.model._stores[storage]
        before = store.addresses()
        assert {value.device_name() for value in store._tensors.values()} == {"cuda"}
        policy = KvPolicy(PolicyKind.SLIDING, served.package.kv.window, storage=storage)
        opened = await served.worlds.create(Recipe(served.starts["four-rooms"], 7, 2, policy), ttl_s=600)
        await served.worlds.step(opened.name, ACTIONS)
        assert store.addresses() == before
        served.worlds.delete(opened.name)
        events = [event for graph in (store.denoise, store.commit) for event in profile_of(graph)]
    kv = served.package.kv
    assert all("output_size" in event for event in events)
    # Smaller than one head of one layer of one block in any format: indices, masks and shapes.
    least_bytes = store.block_bytes // (kv.layers * 2 * kv.heads)
    moved = [int(event["output_size"]) for event in events if event["op_name"].startswith("Memcpy")]
    assert max(moved, default=0) < least_bytes
    on_pools = [event for event in events if event["op_name"] in ("Gather", "GatherND", "ScatterND")]
    large = [event for event in on_pools if int(event["output_size"]) >= least_bytes]
    assert {event["op_name"] for event in large} >= {"ScatterND"}
    assert {event["provider"] for event in large} == {"CUDAExecutionProvider"}
