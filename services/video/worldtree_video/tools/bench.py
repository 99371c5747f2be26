"""What a package costs here: a tick by its size, a commit, a chunk by its evaluations, and the memory of a session."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.video_package import VideoPackage

from worldtree_video import formats
from worldtree_video.codec import Codec
from worldtree_video.domain import Storage
from worldtree_video.model import VideoModel
from worldtree_video.scene import SceneModel

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Tick:
    """One run of the denoiser over a full window."""

    batch: int
    tick_ms: float
    member_ms: float


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """A chunk with so many evaluations. `fps`: of one session alone; `total_fps`: of all, at the best batch."""

    nfe: int
    chunk_ms: float
    fps: float
    total_fps: float
    realtime_sessions: int


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Blocks of one format. A session holds a full window of its own and the block being made; sharing costs less.

    `frames_bytes`: of the pixels that are kept, in host memory, beside each block.
    """

    storage: str
    block_bytes: int
    frames_bytes: int
    session_bytes: int
    sessions_per_gib: int


@dataclass(frozen=True, slots=True)
class Bench:
    """Times in milliseconds, medians. `commit_ms`: with decode and encode, where there are any. `scene_ms`: of a first
    chunk drawn from words.
    """

    package: str
    digest: str
    backend: str
    fps_wanted: float
    frames_per_chunk: int
    ticks: tuple[Tick, ...]
    best_batch: int
    commit_ms: float
    encode_ms: float | None
    decode_ms: float | None
    scene_ms: float | None
    chunks: tuple[ChunkCost, ...]
    blocks: tuple[BlockCost, ...]


def bench(folder: Path, *, threads: int = 1, repeats: int = 15, device: str = "cpu") -> Bench:
    """Times a package. Raises PackageError for a broken one."""
    folder = folder.resolve()
    stored = ModelRepository(folder.parent.parent, VideoPackage).read(folder)
    package = stored.package
    block_count = max(package.kv.window, 16)  # a full window, and a batch's own
    model = VideoModel(stored, block_counts={Storage.FP32: block_count}, device=device, threads=threads)
    cost = model.measure(repeats=repeats)
    codec = Codec(stored, device=device, threads=threads)
    latents = np.zeros((1, *package.sample_shape), np.float32)
    pixels = np.zeros((1, *package.chunk_shape), np.uint8)
    scene = SceneModel(stored, package.prompt, codec, device=device, threads=threads) if package.prompt else None
    no_words = [0] * package.prompt.tokens if package.prompt else []
    best = cost.best_batch
    chunks = []
    for nfe in sorted(package.sampler.schedules):
        chunk_s = nfe * cost.seconds[1] + cost.commit_s
        total_fps = package.frames_per_chunk / (nfe * cost.seconds[best] / best + cost.commit_s)
        sessions = int(total_fps / package.frame.fps)
        chunks.append(ChunkCost(nfe, 1e3 * chunk_s, package.frames_per_chunk / chunk_s, total_fps, sessions))
    return Bench(
        package=f"{stored.name}/{stored.version}",
        digest=stored.digest,
        backend=model.fingerprint,
        fps_wanted=package.frame.fps,
        frames_per_chunk=package.frames_per_chunk,
        ticks=tuple(Tick(n, 1e3 * seconds, 1e3 * seconds / n) for n, seconds in cost.seconds.items()),
        best_batch=best,
        commit_ms=1e3 * cost.commit_s,
        encode_ms=_ms(lambda: codec.encode(pixels), repeats) if package.latent else None,
        decode_ms=_ms(lambda: codec.decode(latents), repeats) if package.latent else None,
        scene_ms=_ms(lambda: asyncio.run(scene.draw(no_words, 0)), repeats) if scene else None,
        chunks=tuple(chunks),
        blocks=tuple(_block_cost(package, storage) for storage in Storage),
    )


def _block_cost(package: VideoPackage, storage: Storage) -> BlockCost:
    block_bytes = formats.block_bytes(package.kv, storage)
    session_bytes = (package.kv.window + 1) * (block_bytes + package.chunk_bytes)
    return BlockCost(storage.value, block_bytes, package.chunk_bytes, session_bytes, _GIB // session_bytes)


def _ms(run: Callable[[], object], repeats: int) -> float:
    samples = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        samples.append(time.perf_counter() - begun)
    return 1e3 * sorted(samples)[repeats // 2]
