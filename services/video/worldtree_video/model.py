"""Batches of pending chunks in, pixels out; the KV pools between, one for each storage format."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from worldtree_runtime.inference import TensorSpec, check_signature, fingerprint
from worldtree_runtime.video_package import DiscreteActions, StoredVideo, VideoPackage

from worldtree_video import noise
from worldtree_video.block_store import BlockStore
from worldtree_video.codec import Codec, to_uint8
from worldtree_video.domain import Action, Made, Storage, Summary
from worldtree_video.errors import NotFinite
from worldtree_video.formats import BlockSpec
from worldtree_video.kv_cache import Seen
from worldtree_video.sampler import next_sample
from worldtree_video.scheduler import PendingChunk
from worldtree_video.stored_block import StoredBlock

Array = NDArray[np.float32]

# The denoiser is timed at these sizes when max_batch is not set: past some size a CPU loses what batching gained.
BATCH_CANDIDATES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class TickCost:
    """Seconds of one run of the denoiser, nearly all of a tick, at each batch size that was timed.

    `commit_s`: seconds of one run of the commit, for each chunk in it.
    """

    seconds: dict[int, float]
    commit_s: float = 0.0

    @property
    def best_batch(self) -> int:
        """The size with the most members a second. A larger one must win by 3%: it also makes everybody wait."""
        best = 1
        for size in sorted(self.seconds):
            if size / self.seconds[size] > 1.03 * best / self.seconds[best]:
                best = size
        return best


class VideoModel:
    """A package's graphs over a pool in each storage format offered.

    Every method but `frames` and those that tell sizes belongs to the engine's thread. Members of a batch are run
    together where their blocks are stored alike.
    """

    def __init__(
        self,
        stored: StoredVideo,
        *,
        block_counts: Mapping[Storage, int],
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.stored = stored
        self.package: VideoPackage = stored.package
        self.block_counts = dict(block_counts)
        self.device = device
        self.fingerprint = fingerprint(device, threads)
        own = BlockStore(stored, Storage.FP32, block_count=block_counts[Storage.FP32], device=device, threads=threads)
        # The package's own graphs first: a mistake in them is told as theirs, not as one of a rewritten graph.
        self._check_graphs(own)
        self.codec = Codec(stored, device=device, threads=threads)
        self._stores = {Storage.FP32: own} | {
            storage: BlockStore(stored, storage, block_count=count, device=device, threads=threads)
            for storage, count in block_counts.items()
            if storage is not Storage.FP32
        }
        self._latents: dict[PendingChunk, Array] = {}  # x of each unfinished chunk

    def block_spec(self, storage: Storage) -> BlockSpec:
        """Type and shape of each tensor that holds a block."""
        return self._stores[storage].spec

    def block_bytes(self, storage: Storage) -> int:
        """Bytes of a block."""
        return self._stores[storage].block_bytes

    def denoise(self, members: Sequence[PendingChunk]) -> None:
        """One evaluation for each member; those whose answer is not finite get an error and no other is touched."""
        for store, group in self._by_store(members):
            started = time.perf_counter()
            x = np.stack([self._latent(member) for member in group])  # [batch, *sample_shape]
            levels = np.array([self._levels(member)[member.step] for member in group], np.float32)
            table, inputs = self._conditions(group, store)
            clean = store.run_denoise({**inputs, "x": x, "t": levels}, table)
            elapsed = time.perf_counter() - started
            for member, noisy, x0 in zip(group, x, clean, strict=True):
                self._advance(member, noisy, x0)
                member.timing.denoise_s += elapsed
                member.timing.tick_count += 1
                member.timing.batch_size_sum += len(group)

    def commit(self, members: Sequence[PendingChunk]) -> dict[PendingChunk, Made]:
        """Writes each member's block and returns what became of it. Blocks of one batch never depend on one another.

        One whose picture is not finite gets an error, no block, and no other is touched.
        """
        chunks = {}
        for store, group in self._by_store(members):
            started = time.perf_counter()
            pixels = self._pixels(group)
            group = [member for member in group if member.error is None]
            if not group:
                continue
            shown = np.stack([pixels[member] for member in group])  # [batch, frames, h, w, 3]
            slots = np.array([member.block_id for member in group], np.int64)
            table, inputs = self._conditions(group, store)
            store.run_commit({**inputs, "x0": self.codec.encode(shown), "slot": slots}, table, shown)
            asked = [member for member in group if member.run.branch.table.policy.compares]
            summaries = dict(zip(asked, store.summaries([member.block_id for member in asked]), strict=True))
            elapsed = time.perf_counter() - started
            for member in group:
                self._latents.pop(member, None)
                member.timing.commit_s += elapsed
                chunks[member] = Made(pixels[member].tobytes(), summaries.get(member))
        return chunks

    def forget(self, pending: PendingChunk) -> None:
        """Drops what is held of an unfinished chunk."""
        self._latents.pop(pending, None)

    def frames(self, storage: Storage, block_id: int) -> bytes:
        """Pixels of a committed chunk. Any thread, while the block is held."""
        return self._stores[storage].frames(block_id)

    def read(self, storage: Storage, block_ids: Sequence[int]) -> list[StoredBlock]:
        """Copies of blocks."""
        return self._stores[storage].read(block_ids)

    def write(self, storage: Storage, block_ids: Sequence[int], blocks: Sequence[StoredBlock]) -> None:
        """Puts copies back, into blocks that were allocated for them; they must fit `block_spec`."""
        self._stores[storage].write(block_ids, blocks)

    def summary(self, storage: Storage, block_id: int) -> Summary:
        """The summary of a block, the same as the one that came with its chunk (`domain.Made`)."""
        return self._stores[storage].summaries([block_id])[0]

    def measure(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        repeats: int = 3,
        max_batch: int = BATCH_CANDIDATES[-1],
        storage: Storage = Storage.FP32,
    ) -> TickCost:
        """Times the graphs at several batch sizes over a full window, in blocks that nobody holds yet."""
        store, window = self._stores[storage], self.package.kv.window
        context = tuple(Seen(block_id, 1) for block_id in range(min(window, store.block_count)))

        def timed(run: Callable[[], object]) -> float:
            samples = []
            for _ in range(repeats):
                begun = clock()
                run()
                samples.append(clock() - begun)
            return sorted(samples)[repeats // 2]

        def denoise(size: int) -> None:
            x = np.zeros((size, *self.package.sample_shape), np.float32)
            table, inputs = self._arrays([None] * size, [context] * size, store)
            store.run_denoise({**inputs, "x": x, "t": np.ones(size, np.float32)}, table)

        def commit() -> None:
            samples = np.zeros((1, *self.package.sample_shape), np.float32)
            pixels = to_uint8(self.codec.decode(samples))
            table, inputs = self._arrays([None], [()], store)
            x0 = self.codec.encode(pixels)
            store.run_commit({**inputs, "x0": x0, "slot": np.zeros(1, np.int64)}, table, pixels)

        sizes = [size for size in BATCH_CANDIDATES if size <= min(max_batch, store.block_count)]
        seconds = {size: timed(lambda size=size: denoise(size)) for size in sizes}  # type: ignore[misc]
        return TickCost(seconds, timed(commit))

    def _by_store(self, members: Sequence[PendingChunk]) -> Iterator[tuple[BlockStore, list[PendingChunk]]]:
        for storage, store in self._stores.items():
            if group := [member for member in members if member.storage is storage]:
                yield store, group

    def _advance(self, member: PendingChunk, noisy: Array, x0: Array) -> None:
        if not np.isfinite(x0).all():
            member.error = NotFinite(member.record.chunk_index)
            return
        levels = self._levels(member)
        member.step += 1
        if member.denoised:
            self._latents[member] = x0.copy()
            return
        fresh = self._noise(member) if self.package.sampler.kind == "renoise" else None
        level, following = levels[member.step - 1], levels[member.step]
        self._latents[member] = next_sample(noisy, x0, level=level, following=following, fresh=fresh)

    def _latent(self, member: PendingChunk) -> Array:
        if member.step == 0:
            return self._noise(member)
        return self._latents[member]

    def _noise(self, member: PendingChunk) -> Array:
        record = member.record
        return noise.draw(record.seed, record.chunk_index, member.step, self.package.sample_shape)

    def _pixels(self, members: Sequence[PendingChunk]) -> dict[PendingChunk, NDArray[np.uint8]]:
        """What each member's client will see."""
        shape = self.package.chunk_shape
        pixels = {
            member: np.frombuffer(member.given, np.uint8).reshape(shape)
            for member in members
            if member.given is not None
        }
        if made := [member for member in members if member.given is None]:
            decoded = self.codec.decode(np.stack([self._latents[member] for member in made]))
            for member, frames in zip(made, decoded, strict=True):
                if np.isfinite(frames).all():
                    pixels[member] = to_uint8(frames)
                else:
                    member.error = NotFinite(member.record.chunk_index)
        return pixels

    def _levels(self, member: PendingChunk) -> tuple[float, ...]:
        return self.package.sampler.schedules[member.record.nfe]

    def _conditions(
        self, members: Sequence[PendingChunk], store: BlockStore
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        actions = [member.record.action for member in members]
        return self._arrays(actions, [member.context for member in members], store)

    def _arrays(
        self, actions: Sequence[Action | None], contexts: Sequence[tuple[Seen, ...]], store: BlockStore
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """The block table, and the other inputs that both graphs take."""
        window = self.package.kv.window
        # Always padded to one window: a different padding changes the last bits of a result.
        table = np.full((len(contexts), window), store.blank, np.int64)  # [batch, window]
        mask = np.zeros((len(contexts), window), np.bool_)  # [batch, window]
        quality = np.zeros((len(contexts), window), np.float32)  # [batch, window]
        for row, context in enumerate(contexts):
            table[row, : len(context)] = [seen.block_id for seen in context]
            mask[row, : len(context)] = True
            quality[row, : len(context)] = [seen.nfe for seen in context]
        position = np.array([len(context) for context in contexts], np.int64)
        inputs = {"action": self._action_array(actions), "position": position, "key_mask": mask}
        return table, {**inputs, "cache_quality": quality} if self.package.cache_quality else inputs

    def _action_array(self, actions: Sequence[Action | None]) -> NDArray[np.int64] | Array:
        space = self.package.action
        if isinstance(space, DiscreteActions):
            none = len(space.names)  # the id that means "no action": a start frame with nothing before it
            return np.array([none if action is None else action.value for action in actions], np.int64)
        blank = (0.0,) * space.size
        return np.array([blank if action is None else action.value for action in actions], np.float32)

    def _check_graphs(self, own: BlockStore) -> None:
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
        if package.cache_quality:
            shared.append(TensorSpec("cache_quality", "float", (None, kv.window)))
        chunk = (None, *package.sample_shape)
        folder, files = self.stored.folder, package.files
        check_signature(
            folder / files.denoise,
            own.denoise,
            [TensorSpec("x", "float", chunk), TensorSpec("t", "float", (None,)), *shared],
            [TensorSpec("x0", "float", chunk)],
        )
        check_signature(
            folder / files.commit,
            own.commit,
            [TensorSpec("x0", "float", chunk), TensorSpec("slot", "int64", (None,)), *shared],
            [TensorSpec("pool_out", "float", (None, *kv.block_shape))],
        )
