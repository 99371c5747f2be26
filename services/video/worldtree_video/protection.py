"""Keeps the journals of one model's sessions in step with them, so that they outlive this process.

Whatever moves a session calls `sync` afterwards: it compares what was journaled with what the session is, and hands the
difference to the scribe. Every `checkpoint_chunks` chunks the blocks that the session needs go to the store, so that
whoever adopts it loads them and makes the few chunks after them again.

Of a session whose blocks are not trusted (`BlockTable.trusted`) the journal gets no pixels: whoever adopts it makes all
of it again from its start, which nobody can forge, and trusts what comes out.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from worldtree_runtime.errors import WorldtreeError

from worldtree_video.branch import Branch
from worldtree_video.domain import Chunk, Record
from worldtree_video.engine import Engine
from worldtree_video.errors import Draining
from worldtree_video.journal import Adopted, Entry, Head, History
from worldtree_video.recipe import to_policy_fields, to_step
from worldtree_video.residency import Residency
from worldtree_video.scribe import Dump, Scribe
from worldtree_video.sessions import Session

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Line:
    """What the journal has, or will have when all that waits is written."""

    written: list[Record] = field(default_factory=list)  # of generated chunks
    checkpoint: int = 0
    checkpointing: bool = False
    stored: tuple[int, bytes] | None = None  # a length whose blocks are in the store, and its key: yet to be marked
    lease_end_s: float = 0.0


class Protection:
    """The journals of one model's sessions. For one event loop; with no scribe it does nothing."""

    def __init__(self, engine: Engine, residency: Residency, scribe: Scribe | None, *, checkpoint_chunks: int) -> None:
        self._engine = engine
        self._residency = residency
        self._scribe = scribe
        self._checkpoint_chunks = checkpoint_chunks
        # By identity: a session that was lost may be here a second time, under its old name.
        self._lines: dict[Session, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def protected(self, session: Session) -> bool:
        """Whether the journal can rebuild it, all but what is on its way."""
        return self._scribe is not None and self._scribe.protected(session.name)

    def behind(self, session: Session) -> int:
        """Chunks on their way to the journal."""
        return self._scribe.behind(session.name) if self._scribe else 0

    def opened(self, session: Session) -> None:
        """A session that was created or restored."""
        if self._scribe:
            with self._engine.lock:
                self._lines[session] = self._line(session)
                self._scribe.open(self._dump(session))

    def forked(self, parent: Session, children: Sequence[Session]) -> None:
        """Children of a session, which stand where it stands."""
        if not self._scribe:
            return
        self.sync(parent)
        with self._engine.lock:
            for child in children:
                self._lines[child] = self._line(child)
                self._scribe.fork(parent.name, self._head(child), child.branch.chunk_index, child.expires_s)

    def sync(self, session: Session, chunks: Sequence[Chunk] = (), *, request_id: str = "") -> None:
        """A session has moved: by these chunks, as far as their pixels are at hand."""
        line = self._lines.get(session)
        if self._scribe is None or line is None:
            return
        with self._engine.lock:
            common = self._common(session, line)
            if common < len(line.written):
                self._scribe.rewind(session.name, common)
                del line.written[common:]
                line.checkpoint = min(line.checkpoint, common)
            self._append(session, line, session.branch.chunk_index, chunks, request_id)
        self._checkpoint_if_due(session, line)

    def sent(self, session: Session, chunk: Chunk) -> None:
        """A chunk is about to leave for the reader of a play, who may be behind what the session is by now."""
        line = self._lines.get(session)
        if self._scribe is None or line is None:
            return
        with self._engine.lock:
            branch, length = session.branch, chunk.record.chunk_index + 1
            past = (
                branch.chunk_index < length or branch.records[branch.start_count + length - 1].key != chunk.record.key
            )
            if past or self._common(session, line) < len(line.written):
                return  # the play has gone back, and its reader is yet to be told
            self._append(session, line, length, [chunk])
        self._checkpoint_if_due(session, line)

    async def settled(self, session: Session, *, behind: int = 0) -> None:
        """Waits until the journal is at most so many chunks behind; not for one that does not answer.

        Raises what ended the session meanwhile: SessionMoved when another replica has adopted it. One that was given up
        while this one drains is whole in the journal.
        """
        if self._scribe and session in self._lines:
            await self._scribe.settled(session.name, behind=behind)
        if not isinstance(session.ended, Draining):
            session.check_live()

    def renew(self, margin_s: float) -> None:
        """Tells the journal of leases that have moved by more than a margin since it was last told."""
        if self._scribe is None:
            return
        with self._engine.lock:
            for session in self._engine.sessions:
                line = self._lines.get(session)
                if line and abs(session.expires_s - line.lease_end_s) > margin_s:
                    line.lease_end_s = session.expires_s
                    self._scribe.touch(session.name, session.expires_s)

    def closed(self, session: Session) -> None:
        """A session that has ended: its journal goes."""
        if self._lines.pop(session, None) and self._scribe:
            self._scribe.end(session.name)

    async def told(self, *names: str) -> None:
        """Waits until the journal knows all that was said of sessions: that one was closed, or it would come back after
        a restart; that it was forked, or it would be gone. Not for a journal that does not answer.
        """
        if self._scribe:
            # At once: a journal that does not answer is waited for once, however many they are.
            await asyncio.gather(*(self._scribe.settled(name) for name in names))

    def forget(self, session: Session) -> None:
        """A session that is another replica's now."""
        self._lines.pop(session, None)

    async def release(self, session: Session) -> None:
        """Writes all that there is of a session, its blocks too, and gives it up to whoever adopts it next."""
        if self._scribe is None or session not in self._lines:
            return
        self.sync(session)
        try:
            stored = await self._residency.checkpoint(session)
        except WorldtreeError as error:  # whoever adopts it makes more of it again
            stored = None
            log.warning("no checkpoint of session %s: %s", session.name, error)
        with self._engine.lock:
            if session not in self._lines:
                return  # lost meanwhile
            parting = self._dump(session, checkpoint=stored[0] if stored else 0)
            del self._lines[session]
        if stored:
            self._scribe.snapshot(session.name, stored[0])
        self._scribe.release(session.name, parting)

    def dump(self, name: str) -> Dump | None:
        """A session in full, for the scribe; None: it is not here."""
        with self._engine.lock:
            if name not in self._engine.sessions:
                return None
            session = self._engine.sessions.peek(name)
            if session not in self._lines:
                return None
            self._lines[session] = self._line(session)
            return self._dump(session)

    def adopted(self, session: Session, adopted: Adopted) -> None:
        """A session that the journal has given this replica; it has the history that the journal says."""
        if self._scribe:
            line = self._line(session)
            line.checkpoint = adopted.history.snapshot_length
            line.lease_end_s = adopted.lease_end_s
            self._lines[session] = line
            self._scribe.adopted(adopted.head)

    async def aclose(self) -> None:
        """Ends the checkpoints under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _common(self, session: Session, line: _Line) -> int:
        """How many generated chunks a session shares with what was written of it."""
        branch = session.branch
        records, start = branch.records, branch.start_count
        common = min(len(line.written), branch.chunk_index)
        # Keys are chained: where one agrees, all before it do.
        while common and line.written[common - 1].key != records[start + common - 1].key:
            common -= 1
        return common

    def _append(
        self, session: Session, line: _Line, length: int, chunks: Sequence[Chunk], request_id: str = ""
    ) -> None:
        """Writes what the journal lacks of a session's first `length` generated chunks."""
        assert self._scribe, "there is nobody to write"
        branch, first = session.branch, len(line.written)
        start = branch.start_count
        added = branch.records[start + first : start + length]
        if added:
            pixels = {chunk.record.key: chunk.frames for chunk in chunks if branch.trusted}
            entries = [
                Entry(to_step(record), pixels.get(record.key) or self._frames(branch, start + index))
                for index, record in enumerate(added, first)
            ]
            self._scribe.append(session.name, first, entries, lease_end_s=session.expires_s, request_id=request_id)
            line.written.extend(added)
            line.lease_end_s = session.expires_s
        self._mark(session, line)

    def _checkpoint_if_due(self, session: Session, line: _Line) -> None:
        due = len(line.written) - line.checkpoint >= self._checkpoint_chunks and session.branch.trusted
        if not due or line.checkpointing or line.stored or not self._residency.tiers.has_store:
            return
        if not self.protected(session):
            return
        line.checkpointing = True
        task = asyncio.create_task(self._checkpoint(session, line), name=f"checkpoint {session.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _checkpoint(self, session: Session, line: _Line) -> None:
        try:
            line.stored = await self._residency.checkpoint(session)
            self._mark(session, line)
        except WorldtreeError as error:  # the next chunk tries again; until then the journal goes further back
            log.warning("no checkpoint of session %s: %s", session.name, error)
        finally:
            line.checkpointing = False

    def _mark(self, session: Session, line: _Line) -> None:
        """Tells the journal of a checkpoint once it has come so far itself: a play is ahead of what it has sent."""
        if self._scribe is None or self._lines.get(session) is not line:
            return
        if line.stored is None or len(line.written) < line.stored[0]:
            return
        length, key = line.stored
        line.stored = None
        # Else it went back meanwhile, and on another way.
        if length and line.written[length - 1].key == key:
            self._scribe.snapshot(session.name, length)
            line.checkpoint = length

    def _line(self, session: Session) -> _Line:
        branch = session.branch
        return _Line(written=branch.records[branch.start_count :], lease_end_s=session.expires_s)

    def _dump(self, session: Session, *, checkpoint: int = 0) -> Dump:
        """A session in full. The blocks at the length `checkpoint` are in the store: no earlier pixels are kept."""
        branch = session.branch
        steps = tuple(to_step(record) for record in branch.records if not record.given)
        frames: list[bytes] = []
        for position in range(len(branch.records) - 1, branch.start_count + checkpoint - 1, -1):
            pixels = self._frames(branch, position)
            if not pixels:
                break
            frames.append(pixels)
        request_id, request_chunk_count = self._last_request(session)
        history = History(
            steps,
            tuple(reversed(frames)),
            frames_first=len(steps) - len(frames),
            snapshot_length=checkpoint,
            request_id=request_id,
            request_chunk_count=request_chunk_count,
        )
        return Dump(self._head(session), history, session.expires_s)

    def _last_request(self, session: Session) -> tuple[str, int]:
        """The step that made the last so many chunks, if it is known by whose request; it may be asked for again."""
        branch, (request_id, chunks) = session.branch, session.last_step
        # The session may have gone back since, or a play on: keys are chained, so the last one tells for all of them.
        if request_id and chunks and chunks[-1].record.key == branch.key:
            return request_id, len(chunks)
        unanswered = session.unanswered
        if unanswered and unanswered.first + unanswered.count == len(branch.records):
            return unanswered.request_id, unanswered.count
        return "", 0

    def _head(self, session: Session) -> Head:
        branch, stored = session.branch, self._engine.model.stored
        return Head(
            session=session.name,
            model=stored.name,
            version=stored.version,
            digest=stored.digest,
            fingerprint=session.fingerprint,
            seed=branch.seed,
            nfe=branch.nfe,
            policy=to_policy_fields(branch.table.policy),
            start_name=branch.origin.name,
            start_actions=tuple(action.value for action in branch.origin.actions),
            start_chunks=branch.origin.chunks,
            parent=session.parent,
            tenant=session.tenant,
            created_s=session.created_s,
            ttl_s=session.ttl_s,
        )

    def _frames(self, branch: Branch, position: int) -> bytes:
        """Pixels of a chunk whose block is in the pool; empty: it is not, or is not trusted."""
        block = branch.table.blocks.get(position) if branch.trusted else None
        return b"" if block is None else self._engine.model.frames(branch.table.pool.storage, block)
