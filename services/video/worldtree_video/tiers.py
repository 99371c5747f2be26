"""Where blocks go that the pool has no room for: host memory first, then a store that outlives the process.

A tier is a cache by record key. Losing what it holds costs time and never a world: a history's records make every
block again, bit for bit.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Self

from worldtree_runtime.stores import Store, StoreUnavailable

from worldtree_video.errors import BlockCorrupt
from worldtree_video.host_tier import HeldBlock, HostTier, Shares
from worldtree_video.metrics import VideoMetrics
from worldtree_video.stored_block import BlockFormat, StoredBlock

log = logging.getLogger(__name__)

_WRITE_BLOCK_COUNT = 16  # blocks of one write in the background
_KNOWN_COUNT_MAX = 1 << 16  # keys remembered as stored, so that what many sessions share is written once
_EWMA_SHARE = 0.2  # weight of the newest measurement


class _Stored(NamedTuple):
    """A block that was written to the store or read from it here, and when that is no longer relied on."""

    digest: str
    nbytes: int
    until_s: float


class Tiers:
    """Host memory and, below it, a store. An async context: a task writes to the store while it is open.

    `put` and the counts may be used from any thread, so that an engine's thread can make room at once; the rest belongs
    to the event loop of the context.

    Blocks that leave the host tier wait for that task in at most `queue_bytes`; when the store is slow or down, the
    oldest of them are dropped and counted. Every array handed in is held as it is: nobody writes to it afterwards.
    """

    def __init__(
        self,
        host: HostTier,
        store: Store | None,
        metrics: VideoMetrics,
        *,
        store_name: str = "",
        ttl_s: float = 86_400.0,
        queue_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self._store = store
        self.store_name = store_name
        self.metrics = metrics
        self._ttl_s = ttl_s
        self._queue_bytes = queue_bytes
        self._clock = clock
        # between the tiers, oldest first; also what is being written, so that no block is out of sight
        self._leaving: OrderedDict[bytes, HeldBlock] = OrderedDict()
        self._leaving_bytes = 0
        self._known: OrderedDict[bytes, _Stored] = OrderedDict()  # those to be doubted first come first
        self._shares = Shares()  # of these
        self._seconds: dict[tuple[str, str, str], float] = {}  # (tier, digest, storage) -> seconds of one block
        self._lock = threading.Lock()  # of the host tier and of what is leaving it
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.Task[None] | None = None

    @property
    def store_shares(self) -> Shares:
        """What each model has in the store, as far as this process wrote it or read it lately. For the event loop."""
        while self._known and next(iter(self._known.values())).until_s <= self._clock():
            self._forget(next(iter(self._known)))
        return self._shares

    @property
    def has_store(self) -> bool:
        """Whether there is anything below host memory."""
        return self._store is not None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._store is not None:
            self._writer = asyncio.create_task(self._write_behind(self._store))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the writing; blocks that still wait for it are forgotten. `save` is for those that must not be."""
        if self._writer:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        with self._lock:
            self._leaving.clear()
            self._leaving_bytes = 0

    @property
    def leaving_count(self) -> int:
        """Blocks on their way from the host tier to the store."""
        return len(self._leaving)

    def put(self, form: BlockFormat, blocks: Mapping[bytes, StoredBlock]) -> None:
        """Takes blocks that leave a pool."""
        with self._lock:
            for key, block in blocks.items():
                self._hold(key, HeldBlock(form, block))

    async def save(self, form: BlockFormat, blocks: Mapping[bytes, StoredBlock]) -> set[bytes]:
        """Puts blocks in the store and waits for it; returns the keys that are there now (none: no store, or down)."""
        if self._store is None:
            return set()
        held = {key: HeldBlock(form, block) for key, block in blocks.items()}
        return await self._write(self._store, held)

    async def get(self, form: BlockFormat, keys: Sequence[bytes]) -> dict[bytes, StoredBlock]:
        """Those of the blocks that are found: in the host tier, else with one read of the store, which refills it."""
        found: dict[bytes, StoredBlock] = {}
        started_s = self._clock()
        with self._lock:
            for key in dict.fromkeys(keys):
                held = self.host.get(key) or self._leaving.get(key)
                if held is not None and (held.form.digest, held.form.storage) == (form.digest, form.storage):
                    found[key] = held.block
        self._measure("host", form, self._clock() - started_s, len(found))
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing and self._store is not None:
            started_s = self._clock()
            read = await self._read(self._store, form, missing)
            self._measure("store", form, self._clock() - started_s, len(read))
            for key in missing:
                if key in read:
                    self._remember(key, HeldBlock(form, read[key]))
                else:
                    self._forget(key)  # it has lost it
            self.put(form, read)
            found.update(read)
        return found

    def drop(self, digest: str) -> None:
        """Forgets what host memory holds of one model, which is served no more. The store keeps what it has."""
        with self._lock:
            self.host.drop(digest)
        self._seconds = {name: seconds for name, seconds in self._seconds.items() if name[1] != digest}

    def doubt(self) -> None:
        """The store may have lost what it held: what is handed in from now on is written, known or not."""
        self._known.clear()
        self._shares.clear()

    def held_count(self, keys: Iterable[bytes]) -> int:
        """How many of these are in host memory; cheap, and nothing is touched."""
        with self._lock:
            return sum(1 for key in keys if key in self.host or key in self._leaving)

    def stored_count(self, keys: Iterable[bytes]) -> int:
        """How many of these this process believes to be in the store; cheap, and a belief only."""
        return sum(1 for key in keys if self._is_known(key))

    def estimate_s(self, form: BlockFormat, host_count: int, store_count: int) -> float:
        """Seconds that `get` will take for so many blocks of each tier, by what it took lately.

        A tier that was never read counts as free, so that it is tried. Writing to the pool comes on top.
        """
        return sum(
            count * self._seconds.get((tier, form.digest, form.storage), 0.0)
            for tier, count in (("host", host_count), ("store", store_count))
        )

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        self.host.check_integrity()
        counted = sum(held.nbytes for held in self._leaving.values())
        assert counted == self._leaving_bytes, f"counted {counted} bytes on their way, booked {self._leaving_bytes}"
        assert self._leaving_bytes <= self._queue_bytes, f"{self._leaving_bytes} bytes of {self._queue_bytes}"
        self._shares.check_integrity((stored.digest, stored.nbytes) for stored in self._known.values())

    def _hold(self, key: bytes, held: HeldBlock) -> None:
        for left_key, left in self.host.put(key, held):
            if self._writer is None:
                self.metrics.tier_dropped.labels("host").inc()
            elif not self._is_known(left_key) and left_key not in self._leaving:
                self._leaving[left_key] = left
                self._leaving_bytes += left.nbytes
        while self._leaving_bytes > self._queue_bytes:
            self._drop(next(iter(self._leaving)))
            self.metrics.tier_dropped.labels("store").inc()
        if self._leaving and self._loop:
            # A loop that is closed has no writer any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    def _drop(self, key: bytes) -> None:
        held = self._leaving.pop(key, None)
        if held is not None:
            self._leaving_bytes -= held.nbytes

    async def _write_behind(self, store: Store) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._leaving:
                with self._lock:
                    held = {key: self._leaving[key] for key in list(self._leaving)[:_WRITE_BLOCK_COUNT]}
                try:
                    written = await self._write(store, held)
                except Exception:  # a bug here must not end the writing: the queue would fill and drop for ever
                    log.exception("blocks could not be written")
                    written = set()
                with self._lock:
                    for key in held:
                        self._drop(key)
                if len(written) < len(held):
                    self.metrics.tier_dropped.labels("store").inc(len(held) - len(written))
                    await asyncio.sleep(0.5)  # it is down: what comes meanwhile waits, and the oldest is dropped

    async def _write(self, store: Store, held: Mapping[bytes, HeldBlock]) -> set[bytes]:
        new = {key: each for key, each in held.items() if not self._is_known(key)}
        if new:
            items = await asyncio.to_thread(
                lambda: {_name(each.form, key): each.form.encode(key, each.block) for key, each in new.items()}
            )
            try:
                await store.set_many(items, self._ttl_s)
            except StoreUnavailable:
                self._unavailable()
                return set()
            for key, each in new.items():
                self._remember(key, each)
        return set(held)

    async def _read(self, store: Store, form: BlockFormat, keys: Sequence[bytes]) -> dict[bytes, StoredBlock]:
        try:
            values = await store.get_many([_name(form, key) for key in keys])
        except StoreUnavailable:
            self._unavailable()
            return {}
        present = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
        read, refused = await asyncio.to_thread(_decode, form, present)
        for key, problem in refused.items():
            log.warning("the block %s was refused: %s", key.hex(), problem)
            self.metrics.tier_refused.labels("store").inc()
            self._forget(key)
            try:
                await store.delete(_name(form, key))
            except StoreUnavailable:
                self._unavailable()
        return read

    def _unavailable(self) -> None:
        self.metrics.tier_unavailable.labels("store").inc()
        self.doubt()  # it may come back empty

    def _remember(self, key: bytes, held: HeldBlock) -> None:
        old = self._known.get(key)
        if old:
            self._shares.remove(old.digest, old.nbytes)
        self._known[key] = _Stored(held.form.digest, held.nbytes, self._clock() + self._ttl_s / 2)
        self._known.move_to_end(key)
        self._shares.add(held.form.digest, held.nbytes)
        if len(self._known) > _KNOWN_COUNT_MAX:
            self._forget(next(iter(self._known)))

    def _forget(self, key: bytes) -> None:
        stored = self._known.pop(key, None)
        if stored:
            self._shares.remove(stored.digest, stored.nbytes)

    def _is_known(self, key: bytes) -> bool:
        stored = self._known.get(key)
        return stored is not None and stored.until_s > self._clock()

    def _measure(self, tier: str, form: BlockFormat, seconds: float, block_count: int) -> None:
        if block_count:
            name = (tier, form.digest, form.storage)
            each_s = seconds / block_count
            old_s = self._seconds.get(name, each_s)
            self._seconds[name] = old_s + _EWMA_SHARE * (each_s - old_s)


def _name(form: BlockFormat, key: bytes) -> str:
    return f"worldtree:block:{form.digest[:16]}:{form.storage}:{key.hex()}"


def _decode(
    form: BlockFormat, present: Sequence[tuple[bytes, bytes]]
) -> tuple[dict[bytes, StoredBlock], dict[bytes, str]]:
    """Blocks, and why the others are none."""
    read, refused = {}, {}
    for key, data in present:
        try:
            read[key] = form.decode(key, data)
        except BlockCorrupt as error:
            refused[key] = error.message
    return read, refused
