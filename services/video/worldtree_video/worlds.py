"""What can be done with worlds, as coroutines: the one face that the transport, the tests and the benchmarks use."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from collections.abc import Sequence as Seq
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from worldtree_runtime.errors import InvalidRequest, NotFound

from worldtree_video.branch import Branch
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, Chunk, Priority, Storage, root_key
from worldtree_video.engine import Engine
from worldtree_video.errors import (
    ChunkIndexMismatch,
    Draining,
    KvCacheFull,
    OutOfRange,
    QueueFull,
    SessionClosed,
    SessionMoved,
    TooManySessions,
)
from worldtree_video.growth import grow
from worldtree_video.kv_cache import BlockTable
from worldtree_video.mailbox import Mailbox
from worldtree_video.protection import Protection
from worldtree_video.recipe import Recipe
from worldtree_video.residency import Residency
from worldtree_video.rollout import Edge, Rollout, TrieNode, build_trie, count_nodes
from worldtree_video.scribe import Scribe
from worldtree_video.sequence import Planned, Sequence
from worldtree_video.sessions import Claim, Session, Unanswered
from worldtree_video.tiers import Tiers

Item = TypeVar("Item")
ANONYMOUS = "anonymous"
_DEADLINE_PART = 0.75  # of what is left until a deadline: an estimate is none, and the answer has a way to go


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
        self._clips: dict[Sequence, int] = {}  # those in the making: how many blocks each may come to hold
        self._clock = clock

    async def create(
        self, recipe: Recipe, *, ttl_s: float, tenant: str = ANONYMOUS, left_s: float | None = None
    ) -> Session:
        """Commits the start's chunks and opens a session on them. `left_s`: until nobody waits for it any more."""
        self.admit(1, recipe.policy.storage)
        self._check_wait(0, len(recipe.origin.chunks), left_s)
        branch = self.blank(recipe)
        try:
            await grow(self.engine, branch, [], tenant=tenant)
            with self.engine.lock:
                self.admit(1, recipe.policy.storage)
                session = self.add(branch, ttl_s=ttl_s, tenant=tenant)
        except BaseException:
            self.close(branch)
            raise
        await self.protect(session)
        return session

    async def protect(self, session: Session) -> None:
        """Writes a new session's journal. Cancelled, nobody knows its name: it is closed again."""
        self.protection.opened(session)
        try:
            await self.protection.settled(session)
        except BaseException:
            with self.engine.lock:
                if not session.ended:
                    self._remove(session)
            raise

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
            self.engine.sessions.touch(session, self._clock(), ttl_s)
            return session

    def expire(self) -> int:
        """Closes the sessions whose lease has ended; returns how many."""
        with self.engine.lock:
            expired = self.engine.sessions.expired(self._clock())
            for session in expired:
                self._remove(session)
            return len(expired)

    def lost(self, name: str, owner: str) -> None:
        """Another replica has adopted a session: it ends here, and what runs on it says where it went.

        `owner` empty: nobody has it, it was closed or given up elsewhere.
        """
        with self.engine.lock:
            if name in self.engine.sessions:
                session = self.engine.sessions.peek(name)
                self.protection.forget(session)
                self.engine.sessions.remove(session, SessionMoved(name, owner) if owner else SessionClosed(name))

    async def last_frames(self, session: Session) -> bytes:
        """Pixels of a session's newest chunk."""
        shown = self.shown(session)
        if shown:
            return shown
        async with self.using(session):
            return self.shown(session)

    def shown(self, session: Session) -> bytes:
        """The same, empty where they have yet to be brought back."""
        with self.engine.lock:
            branch, table = session.branch, session.branch.table
            here = len(table) - 1 in table.blocks
            return self.model.frames(table.pool.storage, table.last) if here else branch.shown

    async def step(
        self, name: str, actions: Seq[Action], *, request_id: str = "", left_s: float | None = None
    ) -> list[Chunk]:
        """One chunk for each action. All or nothing: until the last is made, the session stands where it stood.

        `left_s`: until nobody waits for the answer any more. Raises QueueFull where it would come later.
        """
        session = self.get(name)
        while request_id and session.claim and session.claim.request_id == request_id:
            # A retry that overtook its first try: that one's answer, or its cancellation, is on its way.
            await session.claim.ended.wait()
        if request_id and session.last_step[0] == request_id:
            return session.last_step[1]
        mailbox: Mailbox[Chunk] = Mailbox()
        async with self.claim(session, Claim("Step", mailbox.close, request_id)):
            if request_id and session.unanswered and session.unanswered.request_id == request_id:
                return await self._answer_again(session, session.unanswered, mailbox)
            self._check_wait(len(actions) * session.branch.nfe, len(actions), left_s)
            await self.complete(session, mailbox)
            branch = self.fork_branch(session)
            try:
                planned = [Planned(action) for action in actions]
                chunks = await grow(self.engine, branch, planned, mailbox=mailbox, tenant=session.tenant)
            except BaseException:
                self.close(branch)
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
            self.close(target)

    def fork(self, name: str, *, seeds: Seq[int | None], ttl_s: float) -> list[Session]:
        """Children of a session where it stands (its last committed chunk), one for each seed (None: the parent's)."""
        with self.engine.lock:
            session = self.get(name)
            self.admit(len(seeds), session.branch.table.pool.storage)
            children = [
                self.add(session.branch.fork(seed=seed), ttl_s=ttl_s, tenant=session.tenant, parent=session)
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
        async with self.using(session):
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
        policy = recipe.policy
        most = min(policy.window_chunks + policy.bank_chunks, len(recipe.origin.chunks) + len(actions)) + 1
        self.admit(0, policy.storage, block_count=most)
        branch = self.blank(recipe)
        branch.table.reserve_chunks = 0  # it never goes back
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

        self._clips[sequence] = most
        try:
            self.engine.submit(sequence)
            async for chunk in self._taken_one_by_one(mailbox, taken):
                if not chunk.record.given:
                    yield chunk
        finally:
            del self._clips[sequence]
            self.engine.cancel(sequence)
            self.close(branch)

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
        """Brings back the blocks of a session that was spilled or adopted. Raises KvCacheFull, and what ended it."""
        async with session.completing:  # two who come at once do it once
            branch = session.branch
            with self.engine.lock:
                session.check_live()
                if branch.table.complete:
                    return
            replay, _ = await self.residency.complete(branch, session.known, mailbox=mailbox)
            with self.engine.lock:
                if not session.ended and session.branch is not branch:
                    replay.close()  # a rewind took it elsewhere meanwhile, with all its blocks
                    return
                unanswered = session.unanswered
                self.swap(session, replay)
                session.unanswered = unanswered

    @asynccontextmanager
    async def using(self, session: Session) -> AsyncIterator[None]:
        """Keeps a session from being spilled or expired while it is looked at, its blocks all here."""
        mailbox: Mailbox[Chunk] = Mailbox()  # closing it ends the bringing back; what comes then has a sink of its own
        with self.engine.lock:
            session.check_live()
            session.readers.add(mailbox.close)
        try:
            await self.complete(session, mailbox)
            yield
        finally:
            with self.engine.lock:
                session.readers.discard(mailbox.close)
                self.engine.sessions.touch(session, self._clock())

    async def _answer_again(self, session: Session, step: Unanswered, mailbox: Mailbox[Chunk]) -> list[Chunk]:
        """The chunks of a step that this replica knows from the journal only, made again for its retry."""
        branch = session.branch
        replay, made = await self.residency.complete(branch, session.known, at_most=step.first, mailbox=mailbox)
        first = step.first - branch.start_count
        chunks = [chunk for chunk in made if first <= chunk.record.chunk_index < first + step.count]
        self.swap(session, replay)
        session.last_step = (step.request_id, chunks)
        return chunks

    def add(
        self,
        branch: Branch,
        *,
        ttl_s: float,
        tenant: str,
        parent: Session | None = None,
        fingerprint: str | None = None,
    ) -> Session:
        """Opens a session on a branch. Under the engine's lock, after `admit`."""
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
        self.engine.scheduler.promises.forget(session.name)
        return self.engine.sessions.remove(session)

    def blank(self, recipe: Recipe, fingerprint: str | None = None) -> Branch:
        """A branch without a chunk. `fingerprint`: of the backend that its keys name, ours unless told otherwise."""
        pool = self.engine.pools[recipe.policy.storage]
        root = root_key(self.model.stored.digest, fingerprint or self.model.fingerprint, recipe.policy)
        with self.engine.lock:
            table = BlockTable(pool, recipe.policy, reserve_chunks=self.settings.reserve_chunks)
        return Branch(recipe.origin, root, recipe.seed, recipe.nfe, table)

    def fork_branch(self, session: Session) -> Branch:
        """A branch that stands where a session does. Raises what ended it."""
        with self.engine.lock:
            session.check_live()
            return session.branch.fork()

    def swap(self, session: Session, branch: Branch) -> None:
        """Puts a new branch in a session's place, or closes it and raises what ended the session."""
        with self.engine.lock:
            if session.ended:
                branch.close()
                raise session.ended
            session.branch.close()
            session.branch = branch
            session.known = None  # its blocks are here now
            session.unanswered = None
            self.engine.sessions.touch(session, self._clock())

    def _check_wait(self, evaluations: int, commits: int, left_s: float | None) -> None:
        """Refuses what would come too late. What is made for nobody is made instead of what others wait for: under
        more load than there is room for, all would come too late then.
        """
        ahead_s, own_s = self.engine.step_wait_s(evaluations, commits)
        if not ahead_s:
            return  # with nobody before it, it is as early as it can be
        if ahead_s > self.settings.queue_s:
            raise QueueFull(ahead_s, self.settings.queue_s)
        if left_s is not None and ahead_s + own_s > _DEADLINE_PART * left_s:
            raise QueueFull(ahead_s + own_s, _DEADLINE_PART * left_s)

    def close(self, branch: Branch) -> None:
        """Gives back a branch that no session has."""
        with self.engine.lock:
            branch.close()

    def offers(self, storage: Storage) -> bool:
        """Whether there is a pool of this format."""
        return storage in self.engine.pools

    def _promised_count(self, storage: Storage) -> int:
        """Blocks that the clips in the making do not hold yet, and may come to."""
        pool = self.engine.pools[storage]
        with self.engine.lock:
            clips = [(clip.branch.table, most) for clip, most in self._clips.items() if not clip.over]
            return sum(max(0, most - len(table.blocks)) for table, most in clips if table.pool is pool)

    def admit(self, session_count: int, storage: Storage, *, block_count: int = 0) -> None:
        """Refuses before the pool is dry, so that the sessions that are held and the clips in the making can go on.

        `block_count`: what will be held from now on and can't be spilled.
        """
        if self.draining:
            raise Draining
        limit = self.settings.max_sessions
        if len(self.engine.sessions) + session_count > limit:
            raise TooManySessions(len(self.engine.sessions), limit)
        headroom = self.settings.headroom_blocks
        if not self.engine.has_room(headroom + self._promised_count(storage) + block_count, storage):
            raise KvCacheFull(self.engine.pools[storage].block_count, headroom_blocks=headroom)


@dataclass(frozen=True, slots=True)
class RolloutStream:
    """The nodes of a rollout as they are made, and how many there will be."""

    nodes: AsyncIterator[tuple[TrieNode, Chunk]]
    node_count: int
    chunk_count: int
