"""What can be done with worlds, as coroutines: the one face that the transport, the tests and the benchmarks use."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from worldtree_runtime.errors import InvalidRequest

from worldtree_video import snapshot as snapshots
from worldtree_video.branch import Branch
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, Chunk, KvPolicy, Origin, Priority, root_key
from worldtree_video.engine import Engine
from worldtree_video.errors import (
    ChunkIndexMismatch,
    KvCacheFull,
    OutOfRange,
    SessionClosed,
    SnapshotCorrupt,
    TooManySessions,
)
from worldtree_video.kv_cache import BlockTable
from worldtree_video.mailbox import Mailbox
from worldtree_video.rollout import Edge, Rollout, TrieNode, build_trie, count_nodes
from worldtree_video.sequence import Planned, Sequence
from worldtree_video.sessions import Claim, Session
from worldtree_video.snapshot import Snapshot

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a world is made: all that its frames depend on, but for the actions."""

    origin: Origin
    seed: int
    nfe: int
    policy: KvPolicy


class Worlds:
    """The sessions of one model. A failed or cancelled call leaves its session as it was, and no block behind."""

    def __init__(self, engine: Engine, settings: VideoSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.settings = settings
        self.model = engine.model
        self._clock = clock

    async def create(self, recipe: Recipe, *, ttl_s: float) -> Session:
        """Commits the start's chunks and opens a session on them."""
        self._admit(1)
        branch = self._blank(recipe)
        try:
            await self._run(branch, [], Priority.STEP)
            with self.engine.lock:
                self._admit(1)
                return self.engine.sessions.add(branch, ttl_s=ttl_s, now_s=self._clock())
        except BaseException:
            self._close(branch)
            raise

    def now(self) -> float:
        """Seconds of the wall clock, by which leases are kept."""
        return self._clock()

    def get(self, name: str) -> Session:
        """A live session. Raises SessionNotFound."""
        with self.engine.lock:
            return self.engine.sessions.get(name, self._clock())

    def live(self) -> list[Session]:
        """Live sessions, oldest first."""
        with self.engine.lock:
            return list(self.engine.sessions)

    def delete(self, name: str) -> int:
        """Closes a session; returns how many blocks became free."""
        with self.engine.lock:
            return self.engine.sessions.remove(self.get(name))

    def keep_alive(self, name: str, ttl_s: float | None) -> Session:
        """Renews a lease."""
        with self.engine.lock:
            session = self.get(name)
            session.touch(self._clock(), ttl_s)
            return session

    def expire(self) -> int:
        """Closes the sessions whose lease has ended; returns how many."""
        with self.engine.lock:
            expired = self.engine.sessions.expired(self._clock())
            for session in expired:
                self.engine.sessions.remove(session)
            return len(expired)

    def last_frames(self, branch: Branch) -> bytes:
        """Pixels of a branch's newest chunk."""
        with self.engine.lock:
            return self.model.frames(branch.table.pool.storage, branch.table.last)

    async def step(self, name: str, actions: Seq[Action], *, request_id: str = "") -> list[Chunk]:
        """One chunk for each action. All or nothing: until the last is made, the session stands where it stood."""
        session = self.get(name)
        while request_id and session.claim and session.claim.request_id == request_id:
            # A retry that overtook its first try: that one's answer, or its cancellation, is on its way.
            await session.claim.ended.wait()
        if request_id and session.last_step[0] == request_id:
            return session.last_step[1]
        mailbox: Mailbox[Chunk] = Mailbox()
        async with self.claim(session, Claim("Step", mailbox.close, request_id)):
            branch = self._fork_branch(session.branch)
            try:
                chunks = await self._run(branch, [Planned(action) for action in actions], Priority.STEP, mailbox)
            except BaseException:
                self._close(branch)
                raise
            self.swap(session, branch)
            # Without a request_id nobody can ask for it again.
            session.last_step = (request_id, chunks if request_id else [])
            return chunks

    async def rewind(self, name: str, chunk_count: int, *, expected_chunk_index: int | None = None) -> Session:
        """Goes back. Integer work within the reserve; further back the history is made again, bit for bit."""
        session = self.get(name)
        mailbox: Mailbox[Chunk] = Mailbox()
        async with self.claim(session, Claim("Rewind", mailbox.close)):
            if expected_chunk_index is not None and expected_chunk_index != session.branch.chunk_index:
                raise ChunkIndexMismatch(expected_chunk_index, session.branch.chunk_index)
            self.swap(session, await self.rewound(session.branch, chunk_count, mailbox))
        return session

    async def rewound(self, branch: Branch, chunk_count: int, mailbox: "Mailbox[Chunk] | None" = None) -> Branch:
        """A fork of a branch, some chunks back, with all its blocks in view."""
        with self.engine.lock:
            if branch.chunk_index == 0:
                raise InvalidRequest(
                    "chunk_count",
                    f"chunk_count is {chunk_count}, but the session stands at its start, chunk_index 0",
                    value=chunk_count,
                    limit=0,
                )
            if not 1 <= chunk_count <= branch.chunk_index:
                raise OutOfRange("chunk_count", chunk_count, 1, branch.chunk_index)
            target = branch.fork()
            target.rewind(chunk_count)
            if target.table.complete:
                return target
            replay = target.blank()
        try:
            steps = [Planned(*step) for step in _steps(target)]
            await self._run(replay, steps, Priority.STEP, mailbox)
            assert replay.key == target.key, "a replay led to another world"
        except BaseException:
            self._close(replay)
            raise
        finally:
            self._close(target)
        return replay

    def fork(self, name: str, *, seeds: Seq[int | None], ttl_s: float) -> list[Session]:
        """Children of a session where it stands (its last committed chunk), one for each seed (None: the parent's)."""
        with self.engine.lock:
            session = self.get(name)
            self._admit(len(seeds))
            now_s = self._clock()
            return [
                self.engine.sessions.add(session.branch.fork(seed=seed), ttl_s=ttl_s, now_s=now_s, parent=name)
                for seed in seeds
            ]

    @asynccontextmanager
    async def rollout(self, name: str, sequences: Seq[Seq[Edge]]) -> "AsyncIterator[RolloutStream]":
        """Futures of a session, as a trie; the session does not move. Leaving the context gives back every block."""
        roots = build_trie(sequences)
        mailbox: Mailbox[tuple[TrieNode, Chunk]] = Mailbox()
        engine = self.engine
        with engine.lock:
            session = self.get(name)
            rollout = Rollout(
                session.branch,
                roots,
                width=engine.scheduler.max_batch,
                ahead_chunks=self.settings.max_untaken_chunks,
                sink=mailbox,
                spawn=engine.submit,
                drop=engine.cancel,
            )
            session.readers.add(rollout.fail)
            rollout.begin()
        try:
            nodes = self._taken_one_by_one(mailbox, rollout.taken)
            yield RolloutStream(nodes, count_nodes(roots), sum(map(len, sequences)))
        finally:
            with engine.lock:
                rollout.cancel()
                session.readers.discard(rollout.fail)
                session.touch(self._clock())

    async def generate(self, recipe: Recipe, actions: Seq[Action]) -> AsyncGenerator[Chunk]:
        """A clip, chunk by chunk, on a branch that is gone afterwards."""
        self._admit(0)
        branch = self._blank(recipe)
        mailbox: Mailbox[Chunk] = Mailbox()
        sequence = Sequence(
            branch,
            [Planned(action) for action in actions],
            priority=Priority.BULK,
            sink=mailbox,
            ahead_chunks=self.settings.max_untaken_chunks,
        )

        def taken() -> None:
            sequence.taken()
            self.engine.wake(sequence)

        try:
            self.engine.submit(sequence)
            async for chunk in self._taken_one_by_one(mailbox, taken):
                if not chunk.record.given:
                    yield chunk
        finally:
            self.engine.cancel(sequence)
            self._close(branch)

    async def save(self, name: str) -> tuple[bytes, str]:
        """A session as bytes, and its state hash."""
        with self.engine.lock:
            branch = self.get(name).branch.fork()  # pins the blocks in view
        try:
            positions = branch.table.policy.visible(len(branch.records))
            context = branch.table.context()
            reading = self.engine.between_ticks(lambda: self.model.read(branch.table.pool.storage, context))
            in_view = await asyncio.wrap_future(reading)
            blocks, pixels = snapshots.stack(in_view)
            saved = Snapshot(
                model=self.model.package.name,
                version=self.model.package.version,
                digest=self.model.stored.digest,
                fingerprint=self.model.fingerprint,
                seed=branch.seed,
                nfe=branch.nfe,
                policy=branch.table.policy,
                origin=branch.origin,
                steps=tuple(_steps(branch)),
                state_hash=branch.key.hex(),
                positions=tuple(positions),
                blocks=blocks,
                pixels=pixels,
            )
            return await asyncio.to_thread(snapshots.encode, saved), saved.state_hash
        finally:
            self._close(branch)

    async def restore(self, saved: Snapshot, *, ttl_s: float) -> tuple[Session, bool]:
        """A new session from a snapshot of this model, and whether its frames will be bit-identical."""
        self._admit(1)
        snapshots.check(saved, self.model.package)
        if saved.policy.storage not in self.engine.pools:
            offered = ", ".join(storage.value for storage in self.engine.pools)
            raise InvalidRequest(
                "snapshot", f"its blocks are stored as {saved.policy.storage.value}; offered here: {offered}"
            )
        branch = self._blank(Recipe(saved.origin, saved.seed, saved.nfe, saved.policy), saved.fingerprint)
        try:
            for _ in saved.origin.chunks:
                branch.records.append(branch.given_record())
            for action, seed, nfe in saved.steps:
                branch.records.append(branch.next_record(action, seed=seed, nfe=nfe))
            if branch.key.hex() != saved.state_hash:
                raise SnapshotCorrupt("its history does not lead to its state hash")
            with self.engine.lock:
                pool = branch.table.pool
                self.engine.has_room(len(saved.positions), pool.storage)  # takes back reserves
                block_ids = branch.table.restore(len(branch.records))
                if block_ids is None:
                    raise KvCacheFull(pool.block_count)
            writing = self.engine.between_ticks(
                lambda: self.model.write(pool.storage, block_ids, saved.stored_blocks())
            )
            try:
                await asyncio.wrap_future(writing)
            except asyncio.CancelledError:
                writing.cancel()  # before the blocks are given back: a late write would land in another's chunk
                raise
            with self.engine.lock:
                self._admit(1)  # others may have been restored meanwhile
                session = self.engine.sessions.add(branch, ttl_s=ttl_s, now_s=self._clock())
            return session, saved.fingerprint == self.model.fingerprint
        except BaseException:
            self._close(branch)
            raise

    @asynccontextmanager
    async def claim(self, session: Session, claim: Claim) -> AsyncIterator[None]:
        """Holds a session for one call; the claim's `close` ends that call when the session is deleted under it."""
        with self.engine.lock:
            self.engine.sessions.claim(session, claim)
        try:
            yield
        finally:
            with self.engine.lock:
                self.engine.sessions.release(session, self._clock())
            claim.ended.set()

    async def _taken_one_by_one(self, mailbox: Mailbox[Item], taken: Callable[[], None]) -> AsyncGenerator[Item]:
        """What a mailbox brings; `taken` is told each time that the reader asks for more."""
        async for item in mailbox:
            yield item
            with self.engine.lock:
                taken()

    async def _run(
        self,
        branch: Branch,
        planned: Seq[Planned],
        priority: Priority,
        mailbox: "Mailbox[Chunk] | None" = None,
    ) -> "list[Chunk]":
        """Grows a branch by what its start lacks and by what is planned; returns the generated chunks."""
        mailbox = mailbox or Mailbox()
        sequence = Sequence(branch, planned, priority=priority, sink=mailbox)
        if sequence.over:
            return []
        try:
            self.engine.submit(sequence)
            return [chunk async for chunk in mailbox if not chunk.record.given]
        finally:
            self.engine.cancel(sequence)

    def _blank(self, recipe: Recipe, fingerprint: str | None = None) -> Branch:
        root = root_key(self.model.stored.digest, fingerprint or self.model.fingerprint, recipe.policy)
        with self.engine.lock:
            table = BlockTable(
                self.engine.pools[recipe.policy.storage], recipe.policy, reserve_chunks=self.settings.reserve_chunks
            )
        return Branch(recipe.origin, root, recipe.seed, recipe.nfe, table)

    def _fork_branch(self, branch: Branch) -> Branch:
        with self.engine.lock:
            return branch.fork()

    def swap(self, session: Session, branch: Branch) -> None:
        """Puts a new branch in a session's place, or closes it and raises SessionClosed when the session has gone."""
        with self.engine.lock:
            if session.name not in self.engine.sessions:
                branch.close()
                raise SessionClosed(session.name)
            session.branch.close()
            session.branch = branch

    def _close(self, branch: Branch) -> None:
        with self.engine.lock:
            branch.close()

    def _admit(self, session_count: int) -> None:
        """Refuses before the pool is dry, so that the sessions that are held can go on."""
        limit = self.settings.max_sessions
        if len(self.engine.sessions) + session_count > limit:
            raise TooManySessions(len(self.engine.sessions), limit)
        headroom = self.settings.headroom_blocks
        if not self.engine.has_room(headroom):
            raise KvCacheFull(self.engine.pool.block_count, headroom_blocks=headroom)


@dataclass(frozen=True, slots=True)
class RolloutStream:
    """The nodes of a rollout as they are made, and how many there will be."""

    nodes: AsyncIterator[tuple[TrieNode, Chunk]]
    node_count: int
    chunk_count: int


def _steps(branch: Branch) -> Iterator[tuple[Action, int, int]]:
    """(action, seed, nfe) of each generated chunk."""
    for record in branch.records:
        if not record.given:
            assert record.action is not None, f"chunk {record.chunk_index} was generated without an action"
            yield record.action, record.seed, record.nfe
