"""Where the blocks of idle sessions are, and how a branch gets back those that it lacks.

A branch is *complete* when every block that it needs is in the pool. One that is not (its session was spilled, it went
back past its reserve, its replica died) is completed by whichever is estimated to be quicker:

    load       its blocks are found in the pool, in host memory or in the store, and written back
    recompute  its chunks are made again from the last place whose blocks are found, or from its start; where their
               pixels are known (journaled), only the commits are run

Tiers only save time: what they lost, or what they hold and cannot be trusted, is made again, bit for bit.
"""

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from worldtree_video.branch import Branch
from worldtree_video.domain import Chunk, Known, Record
from worldtree_video.engine import Engine
from worldtree_video.errors import KvCacheFull, PolicyBroken, SnapshotCorrupt
from worldtree_video.growth import grow
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.mailbox import Mailbox
from worldtree_video.policies import resolve
from worldtree_video.sequence import Planned
from worldtree_video.sessions import Session
from worldtree_video.stored_block import BlockFormat, StoredBlock
from worldtree_video.tiers import Tiers

log = logging.getLogger(__name__)

_EWMA_SHARE = 0.2  # weight of the newest measurement
_LOOK_BACK_CHUNKS = 4096


class _Base(NamedTuple):
    """A place to begin from: the first `length` records, whose blocks are found; and the estimate from there."""

    estimate_s: float
    length: int


class Residency:
    """Spills idle sessions of one model to the tiers, and completes branches."""

    def __init__(self, engine: Engine, tiers: Tiers, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.tiers = tiers
        self.spilled_count = 0
        self.loaded_count = 0
        self.recomputed_count = 0
        self._engine = engine
        self._metrics = tiers.metrics
        self._model = engine.model
        self._clock = clock
        self._write_s = 0.0  # of one block, from here to the pool
        engine.spill = self.spill_idle

    def form(self, pool: BlockPool) -> BlockFormat:
        """What the blocks of a pool look like outside it."""
        storage = pool.storage
        shape = self._model.package.chunk_shape
        return BlockFormat(self.digest, storage.value, self._model.block_spec(storage), shape)

    @property
    def digest(self) -> str:
        """By which the tiers tell this model's blocks from others'."""
        return self._model.stored.digest

    def outside(self) -> dict[tuple[str, str], int]:
        """Blocks outside the pools by tier and state. On the event loop."""
        counts = {("host", "cached"): self.tiers.host.shares.block_count(self.digest)}
        if self.tiers.has_store:
            counts["store", "cached"] = self.tiers.store_shares.block_count(self.digest)
        return counts

    def spill_idle(self, pool: BlockPool) -> bool:
        """Moves idle sessions out of a pool, the one left alone longest first, until a block is free.

        False when no more can be had. In the engine's thread, under its lock, between ticks.
        """
        before, spilled = pool.free_count, []
        for session in self._engine.sessions.holding(pool):
            if session.idle:
                try:
                    self._spill(session)
                except Exception:  # one that cannot be read must not end the engine, which all others need
                    log.exception("session %s cannot be spilled", session.name)
                    continue
                spilled.append(session)
                if pool.free_count > before:
                    break
        for session in spilled:
            self._engine.sessions.set_aside(session)
        return pool.free_count > before

    async def complete(
        self,
        branch: Branch,
        known: Known | None = None,
        *,
        at_most: int | None = None,
        mailbox: "Mailbox[Chunk] | None" = None,
    ) -> tuple[Branch, list[Chunk]]:
        """A branch of the same history with every block that it needs, and the chunks that were made again for it.

        The given branch stays as it is. `at_most`: begin after at most so many records, so that those after them are
        among the chunks. Raises KvCacheFull.
        """
        known = known or Known()
        with self._engine.lock:
            bases = self._bases(branch, known, len(branch.records) if at_most is None else at_most)
        for base in bases:
            replay = await self._based(branch, base.length)
            if replay is None:
                continue  # a tier has lost what it was thought to hold
            try:
                steps = [_planned(record, known) for record in branch.records[base.length :] if not record.given]
                chunks = await grow(self._engine, replay, steps, mailbox=mailbox)
                assert replay.key == branch.key, "a replay led to another world"
                if base.length:
                    self.loaded_count += 1
                    self._metrics.loaded_sessions.labels(self._engine.name).inc()
                else:
                    self.recomputed_count += 1
                    self._metrics.recomputed_sessions.labels(self._engine.name).inc()
                return replay, chunks
            except BaseException:
                self._close(replay)
                raise
        raise AssertionError("from its start a branch can always be made again")

    async def read(self, branch: Branch) -> tuple[list[int], list[StoredBlock]]:
        """The positions that a complete branch needs, and copies of their blocks. Nobody may close it meanwhile."""
        with self._engine.lock:
            table = branch.table
            positions = table.needed()
            blocks = [table.blocks[position] for position in positions]
        reading = self._engine.between_ticks(lambda: self._model.read(table.pool.storage, blocks))
        return positions, await asyncio.wrap_future(reading)

    async def fill(self, branch: Branch, blocks: Mapping[int, StoredBlock]) -> None:
        """Puts blocks by position into a branch that has its records and none of them. Raises KvCacheFull."""
        if not await self._refill(branch, blocks):
            raise SnapshotCorrupt("blocks are missing that its history needs")

    async def checkpoint(self, session: Session) -> tuple[int, bytes] | None:
        """Puts in the store what a session needs as it stands now; its generated chunks and its key then.

        None: not all of it is there, or it must not be (others would take it for what its keys say).
        """
        with self._engine.lock:
            session.check_live()
            pinned = session.branch.fork()
        try:
            if not pinned.trusted or not pinned.table.complete:
                return None
            positions, found = await self.read(pinned)
            keys = [tier_key(pinned, position) for position in positions]
            saved = await self.tiers.save(self.form(pinned.table.pool), dict(zip(keys, found, strict=True)))
            return (pinned.chunk_index, pinned.key) if len(saved) == len(keys) else None
        finally:
            self._close(pinned)

    def _spill(self, session: Session) -> None:
        branch, table = session.branch, session.branch.table
        storage = table.pool.storage
        if not branch.trusted and not branch.salt:
            branch.salt = secrets.token_bytes(16)
        try:
            needed = [position for position in table.needed() if position in table.blocks]
        except PolicyBroken:
            needed = []  # it will fail its own run, not the one that is short of blocks
        keys = {position: tier_key(branch, position) for position in needed}
        new = [position for position in needed if not self.tiers.held_count([keys[position]])]
        if new:
            blocks = self._model.read(storage, [table.blocks[position] for position in new])
            self.tiers.put(self.form(table.pool), {keys[p]: block for p, block in zip(new, blocks, strict=True)})
        if len(table) - 1 in table.blocks:
            branch.shown = self._model.frames(storage, table.last)
        table.spill()
        self.spilled_count += 1
        self._metrics.spilled_sessions.labels(self._engine.name).inc()

    def _bases(self, branch: Branch, known: Known, at_most: int) -> list[_Base]:
        """Where to begin, the quickest first; from the start always goes, and comes last where nothing else does."""
        local = self._local_base(branch, at_most)
        stored = {at_most, branch.start_count + known.checkpoint if known.checkpoint else 0}
        lengths = {local, *(length for length in stored if branch.start_count <= length <= at_most)} - {0}
        bases = [_Base(self._estimate_s(branch, known, length), length) for length in lengths]
        bases.append(_Base(self._estimate_s(branch, known, 0), 0))
        return sorted(base for base in bases if base.estimate_s < math.inf)

    def _local_base(self, branch: Branch, at_most: int) -> int:
        """The greatest length whose blocks are all in the pool or in host memory; 0: there is none."""
        rules, pool = resolve(branch.table.policy), branch.table.pool

        def here(position: int) -> bool:
            return self._in_pool(branch, pool, position) or bool(self.tiers.held_count([tier_key(branch, position)]))

        # Further back there is more to make again than looking for it, under the engine's lock, is worth.
        for length in range(at_most, max(branch.start_count, at_most - _LOOK_BACK_CHUNKS) - 1, -1):
            # The newest is always in view: of a long history, most lengths needn't be looked at further.
            if here(length - 1) and all(map(here, sorted(rules.kept(length), reverse=True))):
                return length
        return 0

    def _in_pool(self, branch: Branch, pool: BlockPool, position: int) -> bool:
        return branch.trusted and pool.find(branch.records[position].key) is not None

    def _estimate_s(self, branch: Branch, known: Known, length: int) -> float:
        """Seconds from a base of so many records: its blocks loaded, the chunks after it made again."""
        table = branch.table
        outside = [
            tier_key(branch, position)
            for position in (resolve(table.policy).kept(length) if length else ())
            if not self._in_pool(branch, table.pool, position)
        ]
        host_count = self.tiers.held_count(outside)
        store_count = len(outside) - host_count
        if store_count and not self.tiers.has_store:
            return math.inf
        load_s = self.tiers.estimate_s(self.form(table.pool), host_count, store_count) + self._write_s * len(outside)
        return load_s + sum(
            self._engine.chunk_s(0 if record.chunk_index in known.frames else record.nfe)
            for record in branch.records[length:]
        )

    async def _based(self, branch: Branch, length: int) -> Branch | None:
        """A branch of the first `length` records with the blocks that it needs; None: they are not all found.

        Raises KvCacheFull.
        """
        with self._engine.lock:
            replay = branch.blank()
            replay.records.extend(branch.records[:length])
            replay.table.stand_at(length)
        if not length:
            return replay
        try:
            if await self._refill(replay, None):
                return replay
        except BaseException:
            self._close(replay)
            raise
        self._close(replay)
        return None

    async def _refill(self, branch: Branch, given: Mapping[int, StoredBlock] | None) -> bool:
        """Brings the blocks that a branch needs into its pool: those known there by key, the others as given, or from
        the tiers; False when one is missing. Raises KvCacheFull.
        """
        table, found = branch.table, dict(given or {})
        with self._engine.lock:
            keys = branch.keys(table.needed())
            outside = [position for position, key in keys.items() if table.pool.find(key) is None]
        if given is None:
            # Before there is room made for them: nobody leaves the pool for blocks that are not found.
            found = await self._fetch(branch, outside)
            if len(found) < len(outside):
                return False
        fresh = await asyncio.wrap_future(self._engine.between_ticks(lambda: self._engine.refilled(table, keys)))
        if fresh is None:
            raise KvCacheFull(table.pool.block_count)
        left = [position for position in fresh if position not in found]  # the pool meanwhile
        if left and given is None:
            found |= await self._fetch(branch, left)
        if not found.keys() >= fresh.keys():
            return False
        blocks = [found[position] for position in fresh]
        await asyncio.wrap_future(self._engine.between_ticks(lambda: self._write(table, fresh, blocks)))
        with self._engine.lock:
            table.publish(keys)
        return True

    async def _fetch(self, branch: Branch, positions: Sequence[int]) -> dict[int, StoredBlock]:
        """Those of a branch's blocks that the tiers have."""
        names = {position: tier_key(branch, position) for position in positions}
        found = await self.tiers.get(self.form(branch.table.pool), list(names.values()))
        return {position: found[name] for position, name in names.items() if name in found}

    def _write(self, table: BlockTable, fresh: Mapping[int, int], blocks: Sequence[StoredBlock]) -> None:
        if not fresh:
            return
        storage = table.pool.storage
        started_s = self._clock()
        self._model.write(storage, list(fresh.values()), blocks)
        if table.policy.compares:
            table.describe({position: self._model.summary(storage, block) for position, block in fresh.items()})
        each_s = (self._clock() - started_s) / len(blocks)
        self._write_s += _EWMA_SHARE * (each_s - self._write_s) if self._write_s else each_s

    def _close(self, branch: Branch) -> None:
        with self._engine.lock:
            branch.close()


def tier_key(branch: Branch, position: int) -> bytes:
    """Where a block lies in the tiers: its record's key, but in a place apart for what a client's bytes led to."""
    key = branch.records[position].key
    return hashlib.sha256(branch.salt + key).digest() if branch.salt else key


def _planned(record: Record, known: Known) -> Planned:
    assert record.action is not None, f"chunk {record.chunk_index} was generated without an action"
    return Planned(record.action, record.seed, record.nfe, known.frames.get(record.chunk_index))
