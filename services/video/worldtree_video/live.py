"""A play as a coroutine sees it: controls in, chunks out, on a session that nobody else may move meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from worldtree_video.branch import Branch
from worldtree_video.domain import Action, Chunk, Record
from worldtree_video.errors import Draining, OutOfRange, PlayDiverged, PlayGap
from worldtree_video.growth import grow
from worldtree_video.introspection import PlayRecord
from worldtree_video.mailbox import Mailbox
from worldtree_video.play import Play
from worldtree_video.sequence import Planned
from worldtree_video.sessions import Claim, Session
from worldtree_video.worlds import Worlds


class LivePlay:
    """One Play call. A control takes effect at the next chunk not yet started.

    `chunks` brings each Played, between them whatever its owner puts there, and ends when the play is over.
    """

    def __init__(self, worlds: Worlds, session: Session, play: Play, chunks: Mailbox[object]) -> None:
        self.session = session
        self.chunks = chunks
        self._worlds = worlds
        self._engine = worlds.engine
        self._play = play
        self.draining = False

    @property
    def chunk_index(self) -> int:
        return self.session.branch.chunk_index

    def record(self) -> PlayRecord:
        """How it keeps its time."""
        with self._engine.lock:
            return self._play.record(self._engine.clock())

    def now(self) -> float:
        """The clock of `Played.control_arrival_s`."""
        return self._engine.clock()

    def act(self, actions: Sequence[Action], *, replace: bool = False) -> None:
        """Queues actions. Raises OutOfRange when too many wait."""
        with self._engine.lock:
            waiting = 0 if replace else self._play.queued_count
            limit = self._worlds.settings.max_queued_actions
            if waiting + len(actions) > limit:
                raise OutOfRange("act.actions", waiting + len(actions), 1, limit)
            play, now = self._play, self._engine.clock()
            delay_s = self._engine.scheduler.start_delay_s(play.paced, now) if play.paced and play.fresh else 0.0
            play.act(actions, now, replace=replace, delay_s=delay_s)
            if play.outdated(replace=replace) and self._engine.scheduler.can_remake(play, now):
                play.remake()
                self._engine.scheduler.restart(play, now)
            self._engine.wake(self._play)

    def taken(self) -> None:
        """A chunk has left: there is room to make another."""
        with self._engine.lock:
            self._play.taken()
            self._engine.wake(self._play)

    def pause(self) -> None:
        """Stops after the chunk in flight."""
        with self._engine.lock:
            self._play.pause()

    def resume(self) -> None:
        """Goes on."""
        with self._engine.lock:
            self._play.resume(self._engine.clock())
            self._engine.wake(self._play)

    async def rewind(self, chunk_count: int, *, tell: Callable[[bytes], None] = lambda _: None) -> bytes:
        """Goes back, forgets what was queued, and returns the newest chunk's pixels there.

        `tell` gets them before the next chunk can be made, to say so between the chunks where it happened.
        """
        with self._engine.lock:
            self.session.check_live()
            self._play.held = True
            self._engine.scheduler.restart(self._play, self._engine.clock())
        try:
            branch = await self._worlds.rewound(self.session, chunk_count)
            with self._engine.lock:
                self._moved(branch)
                self._play.cleared()
                frames = self._worlds.shown(self.session)
                tell(frames)
                return frames
        finally:
            with self._engine.lock:
                self._play.held = False
                self._engine.wake(self._play)

    async def align(self, chunk_index: int, delivered: Sequence[Record]) -> None:
        """Brings the session to where the reader of a play that broke off stands, before the first chunk is made.

        `delivered`: the last chunks that the reader has, oldest first; their keys say what they must come to. A journal
        that had yet to learn of a rewind has chunks that the reader went back over: they are made anew, from where both
        part. Raises PlayGap when the session ends before they begin, PlayDiverged when it comes to something else.
        """
        session, first, length = self.session, chunk_index - len(delivered), self.chunk_index
        if first > length:
            raise PlayGap(length, chunk_index, len(delivered))
        with self._engine.lock:
            generated = session.branch.records[session.branch.start_count :]
        shared = (
            record.chunk_index + 1
            for record in reversed(delivered)
            if record.chunk_index < length and generated[record.chunk_index].key == record.key
        )
        parting = next(shared, first)  # where none is shared, the last key tells whether what lies before them is
        missing = [record for record in delivered if record.chunk_index >= parting]
        chunks: list[Chunk] = []
        if parting < length:
            branch = await self._worlds.rewound(session, length - parting)
        else:
            branch = self._worlds.fork_branch(session)
        try:
            steps = [Planned(record.action, None, record.nfe) for record in missing if record.action]
            chunks = await grow(self._engine, branch, steps, tenant=session.tenant)
            if delivered and delivered[-1].key != branch.key:
                raise PlayDiverged(chunk_index)
        except BaseException:
            self._worlds.close(branch)
            raise
        self._moved(branch)
        self._worlds.protection.sync(session, chunks)

    def sent(self, chunk: Chunk) -> None:
        """A chunk is about to leave: the journal may have it."""
        self._worlds.protection.sent(self.session, chunk)

    async def rewound(self) -> None:
        """The reader is told next that the session went back, and all that it was sent before has been sent.

        Not before the journal knows: whoever adopted it then would go on from where the reader no longer is.
        """
        self._worlds.protection.sync(self.session)
        await self.settled(behind=0)

    async def forked(self, children: Sequence[str]) -> None:
        """The reader is told next of these children: they are in the journal by then, if that answers."""
        await self._worlds.protection.told(*children)

    async def settled(self, *, behind: int) -> None:
        """Waits until the journal is at most so many chunks behind. Raises SessionMoved."""
        await self._worlds.protection.settled(self.session, behind=behind)

    def drain(self) -> None:
        """Ends after the chunk in flight, for another replica to go on."""
        with self._engine.lock:
            self.draining = True
            self._play.leave()

    def fail(self, error: Exception) -> None:
        """Ends at once, the chunk in flight forgotten: no chunk is made that its reader will not see."""
        with self._engine.lock:
            self._engine.cancel(self._play)
            self._play.fail(error)

    def _moved(self, branch: Branch) -> None:
        with self._engine.lock:
            self._worlds.swap(self.session, branch)
            self._play.branch = branch

    def finish(self) -> None:
        """No control will come any more."""
        with self._engine.lock:
            self._play.finish()

    def stop(self) -> None:
        """Ends after the chunk in flight."""
        with self._engine.lock:
            self._play.stop()

    @staticmethod
    @asynccontextmanager
    async def open(
        worlds: Worlds,
        name: str,
        *,
        fps: float,
        lookahead_chunks: int,
        repeat: bool,
        degrade: bool = False,
        tenant: str = "anonymous",
        admitted: bool = False,
        resumes: bool = False,
    ) -> "AsyncIterator[LivePlay]":
        """Claims a session and plays it until the context is left. `fps` 0: as fast as it goes.

        `degrade`: make chunks with fewer evaluations rather than late. Raises FpsUnavailable when it cannot be held
        at its fps beside the plays that are running; not for one that was `admitted` where it broke off.
        `resumes`: where it breaks off here, its session keeps for a moment what it was promised.
        """
        session = worlds.get(name)
        mailbox: Mailbox[object] = Mailbox()
        engine = worlds.engine
        bringing: Mailbox[Chunk] = Mailbox()
        opening = Claim("Play", bringing.close)
        async with worlds.claim(session, opening):
            await worlds.complete(session, bringing)
            if worlds.draining:
                raise Draining  # it was asked to end before it could be heard
            package = worlds.model.package
            period_s = package.frames_per_chunk / fps if fps else 0.0
            play = Play(
                session.branch,
                period_s=period_s,
                lookahead_chunks=lookahead_chunks,
                repeat=repeat,
                sink=mailbox,
                now=engine.clock(),
                frames_per_chunk=package.frames_per_chunk,
                degrade_to=tuple(package.sampler.schedules) if degrade else (),
                tenant=tenant,
                admitted=admitted,
                session=name,
            )
            live = LivePlay(worlds, session, play, mailbox)
            # It grows the session's own branch: when that is closed under it, no chunk may be added any more.
            opening.close, opening.drain, opening.record = live.fail, live.drain, live.record
            engine.submit(play)
            drop = engine.cancel
            try:
                yield live
            except (asyncio.CancelledError, GeneratorExit):  # it was not read to its end
                drop = engine.break_off if resumes else engine.cancel
                raise
            finally:
                drop(play)
                # What was made ahead and not sent is part of the session all the same.
                worlds.protection.sync(session)
