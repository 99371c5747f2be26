"""A served tiny world, without a transport."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video.catalog import Served, load_model
from worldtree_video.config import VideoSettings
from worldtree_video.metrics import VideoMetrics

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves a tiny world with any setting; every block is counted when the test ends."""
    running: list[Served] = []

    def start(tiny: TinyWorld | None = None, **settings: object) -> Served:
        tiny = tiny or TinyWorld()
        repository = tmp_path / f"models-{len(running)}"
        tiny.write(repository)
        known = VideoSettings(
            models=str(repository),
            **{
                "pool_mib": 1,
                "fp16_pool_mib": 1,
                "int8_pool_mib": 1,
                "max_batch": 4,
                "headroom_blocks": 2,
                **settings,
            },
        )
        (stored,) = ModelRepository(repository, VideoPackage).scan()
        served = load_model(stored, known, VideoMetrics(CollectorRegistry()))
        served.worlds.engine.start()
        running.append(served)
        return served

    yield start
    for served in running:
        engine = served.worlds.engine
        assert engine._thread.is_alive(), "the engine's thread has died"
        engine.stop()
        engine.check_integrity()
        assert engine.pool.in_flight_count == 0
        for session in list(engine.sessions):
            assert session.claim is None, f"{session.name} is still claimed by a {session.claim}"
            assert not session.readers
            engine.sessions.remove(session)
        engine.check_integrity()
        assert engine.pool.free_count == engine.pool.block_count, "blocks are held by no session"
