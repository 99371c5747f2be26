"""What can be done with worlds, as coroutines: the one face that the transport, the tests and the benchmarks use."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from collections.abc import Sequence as Seq
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from worldtree_runtime.errors import InvalidRequest, NotFound

from worldtree_video import snapshot as snapshots
from worldtree_video.branch import Branch
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, Chunk, Known, Priority, Storage, root_key
from worldtree_video.engine import Engine
from worldtree_video.errors import (
    ChunkIndexMismatch,
    Draining,
    KvCacheFull,
    OutOfRange,
    SessionClosed,
    SessionMoved,
    SnapshotCorrupt,
    TooManySessions,
)
from worldtree_video.growth import grow
from worldtree_video.journal import Adopted
from worldtree_video.kv_cache import BlockTable
from worldtree_video.mailbox import Mailbox
from worldtree_video.protection import Protection
from worldtree_video.recipe import Recipe, steps_of, write_history
from worldtree_video.residency import Residency
from worldtree_video.rollout import Edge, Rollout, TrieNode, build_trie, count_nodes
from worldtree_video.scribe import Scribe
from worldtree_video.sequence import Planned, Sequence
from worldtree_video.sessions import Claim, Session
from worldtree_video.snapshot import Snapshot
from worldtree_video.tiers import Tiers

Item = TypeVar("Item")
ANONYMOUS = "anonymous"


class Worlds:
    """The sessions of one model. A failed or cancelled call leaves its session as it was, and no block behind."""

    def __init__(
        self,
        engine: Engine,
        settings: VideoSettings,
        tiers: Tiers,
        scribe: Scribe | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.model = engine.model
        self.residency = Residency(engine, tiers)
        self.protection = Protection(engine, self.residency, scribe, checkpoint_chunks=settings.checkpoint_chunks)
        self.draining = False
        self._clock = clock

    async def create(self, recipe: Recipe, *, ttl_s: float, tenant: str = ANONYMOUS) -> Session:
        """Commits the start's chunks and opens a session on them."""
        self._admit(1, recipe.policy.storage)
        branch = self._blank(recipe)
        try:
            await grow(self.engine, branch, [], tenant=tenant)
            with self.engine.lock:
                self._admit(1, recipe.policy.storage)
                session = self._add(branch, ttl_s=ttl_s, tenant=tenant)
        except BaseException:
            self._close(branch)
            raise
        self.protection.opened(session)
        await self.protection.settled(session)
        return session

    def now(self) -> float:
        """Seconds of the wall clock, by which leases are kept."""
        return self._clock()

    def get(self, name: str) -> Session:
        """A live session. Raises SessionNotFound."""
        with self.engine.lock:
            try:
                return self.engine.sessions.get(name, self._clock())
            except NotFound:
                if self.draining:
                    raise Draining from None
                raise

    def live(self) -> list[Session]:
        """Live sessions, oldest first."""
        with self.engine.lock:
            return list(self.engine.sessions)

    def delete(self, name: str) -> int:
        """Closes a session; returns how many blocks became free."""
        with self.engine.lock:
            return self._remove(self.get(name))

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
                self._remove(session)
            return len(expired)

    def lost(self, name: str, owner: str) -> None:
        """Another replica has adopted a session: it ends here, and what runs on it says where it went."""
        with self.engine.lock:
            if name in self.engine.sessions:
                session = self.engine.sessions.peek(name)
                session.moved_to = owner
                self.protection.forget(session)
                self.engine.sessions.remove(session, SessionMoved(name, owner))

    async def drain(self) -> None:
        """Lets each call end with the chunk or the steps it is at, and gives every session up to other replicas."""
        self.draining = True
        with self.engine.lock:
            for session in self.engine.sessions:
                if session.claim and session.claim.drain:
                    session.claim.drain()
                for close in list(session.readers):
                    close(Draining())
            claims = [session.claim for session in self.engine.sessions if session.claim]
        await asyncio.gather(*(claim.ended.wait() for claim in claims))
        await asyncio.gather(*(self._release(session) for session in self.live()))

    async def last_frames(self, session: Session) -> bytes:
        """Pixels of a session's newest chunk."""
        shown = self.shown(session)
        if shown:
            return shown
        async with self._using(session):
            return self.shown(session)

    def shown(self, session: Session) -> bytes:
        """The same, empty where they have yet to be brought back."""
        with self.engine.lock:
            branch, table = session.branch, session.branch.table
            here = len(table) - 1 in table.blocks
            return self.model.frames(table.pool.storage, table.last) if here else branch.shown

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
            if request_id and session.unanswered == request_id:
                return await self._answer_again(session, mailbox)
            await self.complete(session, mailbox)
            branch = self._fork_branch(session.branch)
            try:
                planned = [Planned(action) for action in actions]
                chunks = await grow(self.engine, branch, planned, mailbox=mailbox, tenant=session.tenant)
            except BaseException:
                self._close(branch)
                raise
            self.swap(session, branch)
            # Without a request_id nobody can ask for it again.
            session.last_step = (request_id, chunks if request_id else [])
            self.protection.sync(session, chunks, request_id=request_id)
            await self.protection.settled(session)
            return chunks

    async def rewind(self, name: str, chunk_count: int, *, expected_chunk_index: int | None = None) -> Session:
        """Goes back. Integer work within the reserve; further back the history is made again, bit for bit."""
        session = self.get(name)
        mailbox: Mailbox[Chunk] = Mailbox()
        async with self.claim(session, Claim("Rewind", mailbox.close)):
            if expected_chunk_index is not None and expected_chunk_index != session.branch.chunk_index:
                raise ChunkIndexMismatch(expected_chunk_index, session.branch.chunk_index)
            self.swap(session, await self.rewound(session, chunk_count, mailbox))
            self.protection.sync(session)
            await self.protection.settled(session)
        return session

    async def rewound(self, session: Session, chunk_count: int, mailbox: "Mailbox[Chunk] | None" = None) -> Branch:
        """A fork of a session's branch, some chunks back, with all the blocks that it needs."""
        branch = session.branch
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
        try:
            replay, _ = await self.residency.complete(target, session.known, mailbox=mailbox)
            return replay
        finally:
            self._close(target)

    def fork(self, name: str, *, seeds: Seq[int | None], ttl_s: float) -> list[Session]:
        """Children of a session where it stands (its last committed chunk), one for each seed (None: the parent's)."""
        with self.engine.lock:
            session = self.get(name)
            self._admit(len(seeds), session.branch.table.pool.storage)
            children = [
                self._add(session.branch.fork(seed=seed), ttl_s=ttl_s, tenant=session.tenant, parent=session)
                for seed in seeds
            ]
        self.protection.forked(session, children)
        return children

    @asynccontextmanager
    async def rollout(self, name: str, sequences: Seq[Seq[Edge]]) -> "AsyncIterator[RolloutStream]":
        """Futures of a session, as a trie; the session does not move. Leaving the context gives back every block."""
        roots = build_trie(sequences)
        mailbox: Mailbox[tuple[TrieNode, Chunk]] = Mailbox()
        engine = self.engine
        session = self.get(name)
        async with self._using(session):
            with engine.lock:
                rollout = Rollout(
                    session.branch,
                    roots,
                    width=engine.scheduler.max_batch,
                    ahead_chunks=self.settings.max_untaken_chunks,
                    sink=mailbox,
                    spawn=engine.submit,
                    drop=engine.cancel,
                    tenant=session.tenant,
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

    async def generate(self, recipe: Recipe, actions: Seq[Action], *, tenant: str = ANONYMOUS) -> AsyncGenerator[Chunk]:
        """A clip, chunk by chunk, on a branch that is gone afterwards."""
        self._admit(0, recipe.policy.storage)
        branch = self._blank(recipe)
        mailbox: Mailbox[Chunk] = Mailbox()
        sequence = Sequence(
            branch,
            [Planned(action) for action in actions],
            priority=Priority.BULK,
            sink=mailbox,
            ahead_chunks=self.settings.max_untaken_chunks,
            tenant=tenant,
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
        session = self.get(name)
        async with self._using(session):
            branch = self._fork_branch(session.branch)  # holds the blocks, and stays where it is under a play
        try:
            positions, blocks = await self.residency.read(branch)
            stacked, pixels = snapshots.stack(blocks)
            saved = Snapshot(
                model=self.model.package.name,
                version=self.model.package.version,
                digest=self.model.stored.digest,
                fingerprint=session.fingerprint,
                seed=branch.seed,
                nfe=branch.nfe,
                policy=branch.table.policy,
                origin=branch.origin,
                steps=tuple(steps_of(branch)),
                state_hash=branch.key.hex(),
                positions=tuple(positions),
                blocks=stacked,
                pixels=pixels,
            )
            return await asyncio.to_thread(snapshots.encode, saved), saved.state_hash
        finally:
            self._close(branch)

    async def restore(
        self, saved: Snapshot, *, ttl_s: float, tenant: str = ANONYMOUS, trusted: bool = False
    ) -> tuple[Session, bool]:
        """A new session from a snapshot of this model, and whether its frames will be bit-identical.

        `trusted`: it was written by one of us, so others may share its blocks; a client's bytes may say anything.
        """
        storage = saved.policy.storage
        snapshots.check(saved, self.model.package)
        if storage not in self.engine.pools:
            offered = ", ".join(each.value for each in self.engine.pools)
            raise InvalidRequest("snapshot", f"its blocks are stored as {storage.value}; offered here: {offered}")
        self._admit(1, storage)
        identical = saved.fingerprint == self.model.fingerprint
        branch = self._blank(Recipe(saved.origin, saved.seed, saved.nfe, saved.policy), saved.fingerprint)
        try:
            write_history(branch, saved.steps)
            if branch.key.hex() != saved.state_hash:
                raise SnapshotCorrupt("its history does not lead to its state hash")
            with self.engine.lock:
                branch.table.stand_at(len(branch.records))
                branch.table.trusted = trusted and identical
                branch.salt = b"" if trusted else secrets.token_bytes(16)
            await self.residency.fill(branch, dict(zip(saved.positions, saved.stored_blocks(), strict=True)))
            with self.engine.lock:
                self._admit(1, storage)  # others may have been restored meanwhile
                session = self._add(branch, ttl_s=ttl_s, tenant=tenant, fingerprint=saved.fingerprint)
        except BaseException:
            self._close(branch)
            raise
        self.protection.opened(session)
        await self.protection.settled(session)
        return session, identical

    def adopt(self, adopted: Adopted, recipe: Recipe) -> Session:
        """A session that the journal gives this replica, under its own name; its blocks come at its first use.

        Raises ValueError for a history that this model cannot have.
        """
        head, history = adopted.head, adopted.history
        if recipe.policy.storage not in self.engine.pools:
            raise ValueError(f"blocks stored as {recipe.policy.storage.value} are not offered here")
        branch = self._blank(recipe, head.fingerprint)
        try:
            write_history(branch, ((Action(step.action), step.seed, step.nfe) for step in history.steps))
            with self.engine.lock:
                branch.table.stand_at(len(branch.records))
                branch.table.trusted = head.fingerprint == self.model.fingerprint
                branch.shown = history.frames[-1] if history.frames else b""
                session = self.engine.sessions.add(
                    branch,
                    ttl_s=head.ttl_s,
                    now_s=self._clock(),
                    parent=head.parent,
                    tenant=head.tenant,
                    fingerprint=head.fingerprint,
                    name=head.session,
                )
        except BaseException:
            self._close(branch)
            raise
        session.created_s = head.created_s
        frames = {history.frames_first + place: pixels for place, pixels in enumerate(history.frames)}
        session.known = Known(frames, history.snapshot_length)
        session.unanswered, session.unanswered_count = history.request_id, history.request_chunk_count
        self.protection.adopted(session, adopted)
        return session

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

    async def complete(self, session: Session, mailbox: "Mailbox[Chunk] | None" = None) -> None:
        """Brings back the blocks of a session that was spilled or adopted. Raises KvCacheFull, SessionClosed."""
        async with session.completing:  # two who come at once do it once
            branch = session.branch
            with self.engine.lock:
                if branch.table.complete:
                    return
            replay, _ = await self.residency.complete(branch, session.known, mailbox=mailbox)
            with self.engine.lock:
                if session.branch is not branch:
                    replay.close()  # a rewind took it elsewhere meanwhile, with all its blocks
                    return
                unanswered = session.unanswered
                self.swap(session, replay)
                session.unanswered = unanswered

    @asynccontextmanager
    async def _using(self, session: Session) -> AsyncIterator[None]:
        """Keeps a session from being spilled or expired while it is looked at, its blocks all here."""

        def close(error: Exception) -> None:
            del error  # what it is looked at for has a sink of its own

        with self.engine.lock:
            session.readers.add(close)
        try:
            await self.complete(session)
            yield
        finally:
            with self.engine.lock:
                session.readers.discard(close)
                session.touch(self._clock())

    async def _answer_again(self, session: Session, mailbox: Mailbox[Chunk]) -> list[Chunk]:
        """The chunks of the last step, which this replica knows from the journal only, made again for its retry."""
        at_most = len(session.branch.records) - session.unanswered_count
        branch, made = await self.residency.complete(session.branch, session.known, at_most=at_most, mailbox=mailbox)
        chunks = made[len(made) - session.unanswered_count :]
        session.last_step = (session.unanswered, chunks)
        self.swap(session, branch)
        return chunks

    async def _release(self, session: Session) -> None:
        await self.protection.release(session)
        with self.engine.lock:
            if session.name in self.engine.sessions:
                self.engine.sessions.remove(session, Draining())

    def _add(
        self,
        branch: Branch,
        *,
        ttl_s: float,
        tenant: str,
        parent: Session | None = None,
        fingerprint: str | None = None,
    ) -> Session:
        session = self.engine.sessions.add(
            branch,
            ttl_s=ttl_s,
            now_s=self._clock(),
            tenant=tenant,
            parent=parent.name if parent else "",
            fingerprint=fingerprint or (parent.fingerprint if parent else self.model.fingerprint),
        )
        session.known = parent.known if parent else None
        return session

    def _remove(self, session: Session) -> int:
        self.protection.closed(session)
        return self.engine.sessions.remove(session)

    def _blank(self, recipe: Recipe, fingerprint: str | None = None) -> Branch:
        pool = self.engine.pools[recipe.policy.storage]
        root = root_key(self.model.stored.digest, fingerprint or self.model.fingerprint, recipe.policy)
        with self.engine.lock:
            table = BlockTable(pool, recipe.policy, reserve_chunks=self.settings.reserve_chunks)
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
            session.known = None  # its blocks are here now
            session.unanswered = ""

    def _close(self, branch: Branch) -> None:
        with self.engine.lock:
            branch.close()

    def _admit(self, session_count: int, storage: Storage) -> None:
        """Refuses before the pool is dry, so that the sessions that are held can go on."""
        if self.draining:
            raise Draining
        limit = self.settings.max_sessions
        if len(self.engine.sessions) + session_count > limit:
            raise TooManySessions(len(self.engine.sessions), limit)
        headroom = self.settings.headroom_blocks
        if not self.engine.has_room(headroom, storage):
            raise KvCacheFull(self.engine.pools[storage].block_count, headroom_blocks=headroom)


@dataclass(frozen=True, slots=True)
class RolloutStream:
    """The nodes of a rollout as they are made, and how many there will be."""

    nodes: AsyncIterator[tuple[TrieNode, Chunk]]
    node_count: int
    chunk_count: int
