"""The only file with tensors: batches of pending chunks in, pixels out; the KV pool between."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from worldtree_runtime.inference import TensorSpec, check_signature, fingerprint, open_session
from worldtree_runtime.model_package import DiscreteActions, VideoPackage
from worldtree_runtime.model_repository import StoredPackage

from worldtree_video import noise
from worldtree_video.domain import Action, Made, Storage
from worldtree_video.errors import NotFinite
from worldtree_video.scheduler import PendingChunk

Array = NDArray[np.float32]

# The denoiser is timed at these sizes when max_batch is not set: past some size a CPU loses what batching gained.
_BATCH_CANDIDATES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class TickCost:
    """Seconds of one run of the denoiser, nearly all of a tick, at each batch size that was timed."""

    seconds: dict[int, float]

    @property
    def best_batch(self) -> int:
        """The size with the most members a second. A larger one must win by 3%: it also makes everybody wait."""
        best = 1
        for size in sorted(self.seconds):
            if size / self.seconds[size] > 1.03 * best / self.seconds[best]:
                best = size
        return best


class VideoModel:
    """A package's graphs and the pool they share. Every method but `frames` belongs to the engine's thread.

    The pool [blocks, layers, 2, heads, tokens, head_dim] is one OrtValue on the device. `denoise` gathers from it by
    block table inside the graph; `commit` writes it in place, because its output is bound to its own input (an unbound
    ScatterND copies the pool: 1 s at 2 GB).
    """

    def __init__(self, stored: StoredPackage, *, block_count: int, device: str = "cpu", threads: int = 1) -> None:
        self.stored = stored
        self.package: VideoPackage = stored.package
        self.block_count = block_count
        self.device = device
        self.fingerprint = fingerprint(device, threads)
        files = self.package.files
        self._denoise = open_session(stored.folder / files.denoise, device=device, threads=threads)
        self._commit = open_session(stored.folder / files.commit, device=device, threads=threads)
        self._check_graphs()
        # One block more than is handed out, always zero, fills up short tables: a NaN in a block that somebody holds
        # would get past a mask (0 x NaN is NaN) into every session whose padding pointed there.
        self._blank = block_count
        pool_shape = (block_count + 1, *self.package.kv.block_shape)
        pool = np.zeros(pool_shape, np.float32)  # [blocks, layers, 2, heads, tokens, head_dim]
        self._pool = ort.OrtValue.ortvalue_from_numpy(pool, device, 0)
        # On the CPU the OrtValue shares the array's memory; on a GPU nothing of the pool stays on the host.
        self._host_pool = pool if device == "cpu" else None
        self._frames = np.zeros((block_count, *self.package.chunk_shape), np.uint8)  # [blocks, frames, h, w, 3]
        self._latents: dict[PendingChunk, Array] = {}  # x of each unfinished chunk

    def denoise(self, members: Sequence[PendingChunk]) -> None:
        """One evaluation for each member; those whose answer is not finite get an error and no other is touched."""
        if not members:
            return
        started = time.perf_counter()
        x = np.stack([self._latent(member) for member in members])  # [batch, frames, h, w, 3]
        levels = np.array([self._levels(member)[member.step] for member in members], np.float32)
        binding = self._bind(self._denoise, members, {"x": x, "t": levels})
        binding.bind_output("x0", "cpu")
        self._denoise.run_with_iobinding(binding)
        clean: Array = binding.get_outputs()[0].numpy()
        elapsed = time.perf_counter() - started
        for member, noisy, x0 in zip(members, x, clean, strict=True):
            self._advance(member, noisy, x0)
            member.timing.denoise_s += elapsed
            member.timing.tick_count += 1
            member.timing.batch_size_sum += len(members)

    def commit(self, members: Sequence[PendingChunk]) -> dict[PendingChunk, Made]:
        """Writes each member's block and returns what became of it. Blocks of one batch never depend on one another."""
        if not members:
            return {}
        started = time.perf_counter()
        pixels = np.stack([self._pixels(member) for member in members])
        # The context holds what the client was shown, rounding included: so a replay from its frames is exact.
        slots = np.array([member.block_id for member in members], np.int64)
        binding = self._bind(self._commit, members, {"x0": _to_float(pixels), "slot": slots})
        binding.bind_ortvalue_output("pool_out", self._pool)
        self._commit.run_with_iobinding(binding)
        elapsed = time.perf_counter() - started
        chunks = {}
        for member, image in zip(members, pixels, strict=True):
            self._frames[member.block_id] = image
            self._latents.pop(member, None)
            member.timing.commit_s += elapsed
            chunks[member] = Made(image.tobytes())
        return chunks

    def forget(self, pending: PendingChunk) -> None:
        """Drops what is held of an unfinished chunk."""
        self._latents.pop(pending, None)

    def frames(self, storage: Storage, block_id: int) -> bytes:
        """Pixels of a committed chunk. Any thread, while the block is held."""
        self._check_storage(storage)
        return bytes(self._frames[block_id])

    def read_blocks(self, storage: Storage, block_ids: Sequence[int]) -> tuple[Array, NDArray[np.uint8]]:
        """Copies of blocks [n, layers, 2, heads, tokens, head_dim] and their pixels [n, frames, h, w, 3]."""
        self._check_storage(storage)
        pool = self._pool.numpy() if self._host_pool is None else self._host_pool
        index = list(block_ids)
        return pool[index], self._frames[index]

    def write_blocks(
        self, storage: Storage, block_ids: Sequence[int], blocks: Array, pixels: NDArray[np.uint8]
    ) -> None:
        """Puts copies back, into blocks that were allocated for them."""
        self._check_storage(storage)
        index = list(block_ids)
        if self._host_pool is None:
            pool = self._pool.numpy()
            pool[index] = blocks
            self._pool.update_inplace(pool)
        else:
            self._host_pool[index] = blocks
        self._frames[index] = pixels

    def measure(self, clock: Callable[[], float] = time.perf_counter, *, repeats: int = 3) -> TickCost:
        """Times the denoiser at several batch sizes over a full window, in blocks that nobody holds yet."""
        kv = self.package.kv
        seconds = {}
        for size in _BATCH_CANDIDATES:
            if size > self.block_count:
                break
            x = np.zeros((size, *self.package.chunk_shape), np.float32)
            context = [tuple(range(min(kv.window, self.block_count)))] * size
            actions = [None] * size
            samples = []
            for _ in range(repeats):
                begun = clock()
                binding = self._bind_arrays(self._denoise, actions, context, {"x": x, "t": np.ones(size, np.float32)})
                binding.bind_output("x0", "cpu")
                self._denoise.run_with_iobinding(binding)
                samples.append(clock() - begun)
            seconds[size] = sorted(samples)[repeats // 2]
        return TickCost(seconds)

    def _check_storage(self, storage: Storage) -> None:
        if storage is not Storage.FP32:
            raise ValueError(f"storage must be fp32, got {storage.value}")

    def _advance(self, member: PendingChunk, noisy: Array, x0: Array) -> None:
        if not np.isfinite(x0).all():
            member.error = NotFinite(member.record.chunk_index)
            return
        levels = self._levels(member)
        member.step += 1
        if member.denoised:
            self._latents[member] = x0.copy()
            return
        following = np.float32(levels[member.step])
        if self.package.sampler.kind == "renoise":
            direction = self._noise(member)
        else:
            direction = _noise_in(noisy, x0, np.float32(levels[member.step - 1]))
        self._latents[member] = (np.float32(1) - following) * x0 + following * direction

    def _latent(self, member: PendingChunk) -> Array:
        if member.step == 0:
            return self._noise(member)
        return self._latents[member]

    def _noise(self, member: PendingChunk) -> Array:
        record = member.record
        return noise.draw(record.seed, record.chunk_index, member.step, self.package.chunk_shape)

    def _pixels(self, member: PendingChunk) -> NDArray[np.uint8]:
        if member.given is not None:
            return np.frombuffer(member.given, np.uint8).reshape(self.package.chunk_shape)
        return _to_uint8(self._latents[member])

    def _levels(self, member: PendingChunk) -> tuple[float, ...]:
        return self.package.sampler.schedules[member.record.nfe]

    def _bind(
        self, session: ort.InferenceSession, members: Sequence[PendingChunk], arrays: Mapping[str, NDArray[Any]]
    ) -> ort.IOBinding:
        actions = [member.record.action for member in members]
        return self._bind_arrays(session, actions, [member.context for member in members], arrays)

    def _bind_arrays(
        self,
        session: ort.InferenceSession,
        actions: Sequence[Action | None],
        contexts: Sequence[tuple[int, ...]],
        arrays: Mapping[str, NDArray[Any]],
    ) -> ort.IOBinding:
        window = self.package.kv.window
        # Always padded to one window: a different padding changes the last bits of a result.
        table = np.full((len(contexts), window), self._blank, np.int64)  # [batch, window]
        mask = np.zeros((len(contexts), window), np.bool_)  # [batch, window]
        for row, context in enumerate(contexts):
            table[row, : len(context)] = context
            mask[row, : len(context)] = True
        inputs = {
            **arrays,
            "action": self._action_array(actions),
            "position": np.array([len(context) for context in contexts], np.int64),
            "table": table,
            "key_mask": mask,
        }
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        binding.bind_ortvalue_input("pool", self._pool)
        return binding

    def _action_array(self, actions: Sequence[Action | None]) -> NDArray[np.int64] | Array:
        space = self.package.action
        if isinstance(space, DiscreteActions):
            none = len(space.names)  # the id that means "no action": a start frame with nothing before it
            return np.array([none if action is None else action.value for action in actions], np.int64)
        blank = (0.0,) * space.size
        return np.array([blank if action is None else action.value for action in actions], np.float32)

    def _check_graphs(self) -> None:
        package, kv = self.package, self.package.kv
        pool = TensorSpec("pool", "float", (None, *kv.block_shape))
        shared = [
            TensorSpec("action", "int64", (None,))
            if isinstance(package.action, DiscreteActions)
            else TensorSpec("action", "float", (None, package.action.size)),
            TensorSpec("position", "int64", (None,)),
            pool,
            TensorSpec("table", "int64", (None, kv.window)),
            TensorSpec("key_mask", "bool", (None, kv.window)),
        ]
        chunk = (None, *package.chunk_shape)
        folder, files = self.stored.folder, package.files
        check_signature(
            folder / files.denoise,
            self._denoise,
            [TensorSpec("x", "float", chunk), TensorSpec("t", "float", (None,)), *shared],
            [TensorSpec("x0", "float", chunk)],
        )
        check_signature(
            folder / files.commit,
            self._commit,
            [TensorSpec("x0", "float", chunk), TensorSpec("slot", "int64", (None,)), *shared],
            [TensorSpec("pool_out", "float", (None, *kv.block_shape))],
        )


def _noise_in(noisy: Array, x0: Array, level: np.float32) -> Array:
    """The noise that takes x0 to `noisy` at this level: x = (1 - t) x0 + t noise."""
    return np.divide(noisy - (np.float32(1) - level) * x0, level, dtype=np.float32)


def _to_float(pixels: NDArray[np.uint8]) -> Array:
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _to_uint8(x: Array) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.clip(np.rint((x + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8)
    return pixels
