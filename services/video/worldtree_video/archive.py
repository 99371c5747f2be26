"""Sessions that leave and come: saved and restored, given up by a replica that stops, adopted by the next."""

import asyncio
from contextlib import suppress

from worldtree_runtime.errors import InvalidRequest

from worldtree_video import snapshot as snapshots
from worldtree_video.domain import Action, Known
from worldtree_video.errors import Draining, SnapshotCorrupt
from worldtree_video.journal import Adopted
from worldtree_video.recipe import Recipe, steps_of, write_history
from worldtree_video.sessions import Session, Unanswered
from worldtree_video.snapshot import Snapshot
from worldtree_video.worlds import ANONYMOUS, Worlds

_RELEASED_AT_ONCE = 8  # sessions whose blocks are read and written at the same time
_ADOPTED_LEASE_S = 60.0  # what a client has at least, after a replica's death, to come back in


class Archive:
    """What outlives a session's place. For the worlds of one model; a failed or cancelled call leaves nothing."""

    def __init__(self, worlds: Worlds) -> None:
        self._worlds = worlds
        self._engine = worlds.engine
        self._model = worlds.model

    async def save(self, name: str) -> tuple[bytes, str]:
        """A session as bytes, and its state hash."""
        session = self._worlds.get(name)
        async with self._worlds.using(session):
            with self._engine.lock:
                branch = session.branch.fork()  # holds the blocks, and stays where it is under a play
        try:
            positions, blocks = await self._worlds.residency.read(branch)
            stacked, pixels = snapshots.stack(blocks)
            saved = Snapshot(
                model=self._model.package.name,
                version=self._model.package.version,
                digest=self._model.stored.digest,
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
                trusted=branch.trusted,
            )
            return await asyncio.to_thread(snapshots.encode, saved), saved.state_hash
        finally:
            self._worlds.close(branch)

    async def restore(
        self, saved: Snapshot, *, ttl_s: float, tenant: str = ANONYMOUS, ours: bool = False
    ) -> tuple[Session, bool]:
        """A new session from a snapshot of this model, and whether its frames will be bit-identical.

        `ours`: one of us kept it, so that others may share its blocks if its maker could; a client's bytes may say
        anything, also of themselves.
        """
        storage, worlds = saved.policy.storage, self._worlds
        snapshots.check(saved, self._model.package, max_bank_chunks=worlds.settings.max_bank_chunks)
        if not worlds.offers(storage):
            offered = ", ".join(each.value for each in self._engine.pools)
            raise InvalidRequest("snapshot", f"its blocks are stored as {storage.value}; offered here: {offered}")
        worlds.admit(1, storage)
        identical = saved.fingerprint == self._model.fingerprint
        branch = worlds.blank(Recipe(saved.origin, saved.seed, saved.nfe, saved.policy), saved.fingerprint)
        try:
            await asyncio.to_thread(write_history, branch, saved.steps)  # it may be as long as a message
            if branch.key.hex() != saved.state_hash:
                raise SnapshotCorrupt("its history does not lead to its state hash")
            with self._engine.lock:
                branch.table.stand_at(len(branch.records))
                branch.table.trusted = ours and saved.trusted and identical
            await worlds.residency.fill(branch, dict(zip(saved.positions, saved.stored_blocks(), strict=True)))
            with self._engine.lock:
                worlds.admit(1, storage)  # others may have been restored meanwhile
                session = worlds.add(branch, ttl_s=ttl_s, tenant=tenant, fingerprint=saved.fingerprint)
        except BaseException:
            worlds.close(branch)
            raise
        await worlds.protect(session)
        return session, identical

    def adopt(self, adopted: Adopted, recipe: Recipe) -> Session:
        """A session that the journal gives this replica, under its own name; its blocks come at its first use.

        Its lease is what the journal knows of it, and long enough for its client to come back. Raises ValueError for a
        history that this model cannot have.
        """
        head, history = adopted.head, adopted.history
        branch = self._worlds.blank(recipe, head.fingerprint)
        try:
            write_history(branch, ((Action(step.action), step.seed, step.nfe) for step in history.steps))
            now_s = self._worlds.now()
            with self._engine.lock:
                branch.table.stand_at(len(branch.records))
                branch.table.trusted = head.fingerprint == self._model.fingerprint
                given = b"" if history.steps else recipe.origin.chunks[-1]
                branch.shown = history.frames[-1] if history.frames else given
                session = self._engine.sessions.add(
                    branch,
                    ttl_s=head.ttl_s,
                    now_s=now_s,
                    parent=head.parent,
                    tenant=head.tenant,
                    fingerprint=head.fingerprint,
                    name=head.session,
                )
        except BaseException:
            self._worlds.close(branch)
            raise
        session.created_s = head.created_s
        session.expires_s = max(adopted.lease_end_s, now_s + min(head.ttl_s, _ADOPTED_LEASE_S))
        frames = {history.frames_first + place: pixels for place, pixels in enumerate(history.frames)}
        session.known = Known(frames, history.snapshot_length)
        if history.request_id:
            first = len(branch.records) - history.request_chunk_count
            session.unanswered = Unanswered(history.request_id, first, history.request_chunk_count)
        self._worlds.protection.adopted(session, adopted)
        return session

    async def drain(self, wait_s: float) -> None:
        """Lets each call end with the chunk or the steps it is at, and gives every session up to other replicas.

        A call that has not ended after `wait_s` ends with its session.
        """
        self._worlds.draining = True
        with self._engine.lock:
            sessions = list(self._engine.sessions)
            for session in sessions:
                if session.claim and session.claim.drain:
                    session.claim.drain()
                for close in list(session.readers):
                    close(Draining())
        places = asyncio.Semaphore(_RELEASED_AT_ONCE)
        await asyncio.gather(*(self._give_up(session, wait_s, places) for session in sessions))

    async def _give_up(self, session: Session, wait_s: float, places: asyncio.Semaphore) -> None:
        if session.claim:
            with suppress(TimeoutError):
                await asyncio.wait_for(session.claim.ended.wait(), wait_s)
        async with places:
            await self._worlds.protection.release(session)
        with self._engine.lock:
            if not session.ended:
                self._engine.sessions.remove(session, Draining())
