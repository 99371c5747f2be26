"""The writes of one session that wait for the journal, in order."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from worldtree_video.journal.entries import Entry, Head, History

JOINED_COUNT_MAX = 64  # chunks of one write


class LineState(Enum):
    """Whether the journal can rebuild a session, all but the writes on their way."""

    PROTECTED = auto()
    WAITING = auto()  # a fork that its parent's line has yet to write: its own writes wait
    ANEW = auto()  # being written in full; what comes meanwhile waits
    UNPROTECTED = auto()  # to be written in full; what comes meanwhile will be part of that


@dataclass(frozen=True, slots=True)
class Dump:
    """A session as it stands, to be written in full."""

    head: Head
    history: History
    lease_end_s: float


@dataclass(slots=True, eq=False)
class Write:
    """One write. An append of chunks says which; a fork names the line that may go on after it."""

    run: Callable[[], Awaitable[None]]
    size_bytes: int = 0
    chunk_count: int = 0
    child: "Line | None" = None


@dataclass(slots=True, eq=False)
class AppendWrite(Write):
    """Chunks `first`, `first + 1`, ... of a session."""

    first: int = 0
    entries: tuple[Entry, ...] = ()
    request_id: str = ""
    lease_end_s: float = 0.0


@dataclass(slots=True, eq=False)
class Line:
    """The queue of one session. The write at the front stays there until it is done.

    `leaving`: how the session will be closed (`ended`) or released, once that was asked. `parting`: the whole of one
    that is released, to be written in full if need be: by then it's no longer here.
    """

    session: str
    model: str
    state: LineState
    writes: deque[Write] = field(default_factory=deque)
    waiting_chunk_count: int = 0
    waiting_bytes: int = 0
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: Callable[[], Awaitable[None]] | None = None
    ended: bool = False
    parting: Dump | None = None

    @property
    def protected(self) -> bool:
        return self.state in (LineState.PROTECTED, LineState.WAITING)

    @property
    def takes_writes(self) -> bool:
        return self.state is not LineState.UNPROTECTED and self.leaving is None

    def push(self, write: Write) -> None:
        self.writes.append(write)
        self._count(write.size_bytes, write.chunk_count)

    def pop(self) -> Write:
        """Takes the write at the front, which is done."""
        write = self.writes.popleft()
        self._count(-write.size_bytes, -write.chunk_count)
        self.changed.set()
        return write

    def clear(self) -> list[Write]:
        """Forgets what waits, and returns it."""
        writes = list(self.writes)
        self.writes.clear()
        self.waiting_chunk_count = self.waiting_bytes = 0
        self.changed.set()
        return writes

    def join(self, first: int, entry: Entry, lease_end_s: float) -> bool:
        """Adds a chunk to the append at the end, where it follows on that. What a request made is never joined."""
        last = self.writes[-1] if len(self.writes) > 1 else None  # the one at the front may be under way
        if (
            not isinstance(last, AppendWrite)
            or last.request_id
            or last.first + len(last.entries) != first
            or len(last.entries) >= JOINED_COUNT_MAX
        ):
            return False
        last.entries = (*last.entries, entry)
        last.lease_end_s = lease_end_s
        last.size_bytes += len(entry.frames)
        last.chunk_count += 1
        self._count(len(entry.frames), 1)
        return True

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        counted_bytes = sum(write.size_bytes for write in self.writes)
        assert counted_bytes == self.waiting_bytes, f"counted {counted_bytes} bytes, booked {self.waiting_bytes}"
        counted = sum(write.chunk_count for write in self.writes)
        assert counted == self.waiting_chunk_count, f"counted {counted} chunks, booked {self.waiting_chunk_count}"
        idle = self.writes and not self.task and self.state is LineState.PROTECTED
        assert not idle, f"nobody writes what waits of session {self.session}"

    def _count(self, size_bytes: int, chunk_count: int) -> None:
        self.waiting_bytes += size_bytes
        self.waiting_chunk_count += chunk_count
