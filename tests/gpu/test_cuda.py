"""The same engine with its pool on a GPU: the same frames within a tolerance, and a commit that stays on the device."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from prometheus_client import CollectorRegistry
from worldtree_video.catalog import load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.metrics import VideoMetrics
from worldtree_video.worlds import Recipe

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu and a GPU"
)
MODELS = str(Path(__file__).parents[2] / "models")
ACTIONS = [Action(value) for value in (2, 0, 2, 1, 1, 2, 5, 2)] * 4


async def frames_on(device: str) -> np.ndarray:
    settings = VideoSettings(models=MODELS, pool_mib=256, device=device, max_batch=8)
    catalog = load_catalog(settings, VideoMetrics(CollectorRegistry()))
    catalog.start()
    try:
        served = next(iter(catalog.newest()))
        policy = KvPolicy(PolicyKind.SINK_WINDOW, served.package.kv.window, 1)
        session = await served.worlds.create(Recipe(served.starts["four-rooms"], 7, 2, policy), ttl_s=600)
        chunks = await served.worlds.step(session.name, ACTIONS)
        served.worlds.delete(session.name)
        served.worlds.engine.check_integrity()
        assert served.worlds.engine.pool.held_count == 0
        return np.stack([np.frombuffer(chunk.frames, np.uint8) for chunk in chunks])
    finally:
        catalog.stop()


async def test_a_gpu_gives_the_frames_of_the_cpu_within_rounding():
    cpu, cuda = await frames_on("cpu"), await frames_on("cuda")
    assert np.abs(cpu.astype(int) - cuda.astype(int)).mean() < 1.0
