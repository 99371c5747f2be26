"""The live sessions of one model: their branches, leases, and who is using them."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worldtree_video.branch import Branch
from worldtree_video.domain import Chunk, Known
from worldtree_video.errors import SessionBusy, SessionClosed, SessionNotFound
from worldtree_video.introspection import PlayRecord
from worldtree_video.kv_cache import BlockPool


@dataclass(slots=True)
class Claim:
    """The one call that may change a session. `close` ends that call with an error when the session goes away."""

    call: str
    close: Callable[[Exception], None]
    request_id: str = ""
    drain: Callable[[], None] | None = None  # lets it end soon with what it is at; None: it ends soon by itself
    record: Callable[[], PlayRecord] | None = None  # of a play: how it keeps its time
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A step that a journal knows and whose answer may never have come: records `first` to `first + count - 1`."""

    request_id: str
    first: int
    count: int


@dataclass(slots=True, eq=False)
class Session:
    """One branch with a name and a lease. Times are seconds of the wall clock."""

    name: str
    branch: Branch
    ttl_s: float
    created_s: float
    expires_s: float
    fingerprint: str  # of the backend that its keys name
    parent: str = ""
    tenant: str = "anonymous"
    claim: Claim | None = None
    # Ends, with an error, each call that looks at the session for a while and does not change it.
    readers: set[Callable[[Exception], None]] = field(default_factory=set)
    # The answer of the last step that brought a request_id, so that its retry moves nothing.
    last_step: tuple[str, list[Chunk]] = field(default=("", []))
    # Of a session adopted from a journal: what that knows of its frames, and the step whose answer may be asked for.
    known: Known | None = None
    unanswered: Unanswered | None = None
    # What ended it. Its name proves nothing: another replica may have had it meanwhile and have given it back.
    ended: Exception | None = None
    completing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def idle(self) -> bool:
        """Whether no call is using it."""
        return not (self.claim or self.readers)

    @property
    def spilled(self) -> bool:
        """Whether its blocks are elsewhere."""
        return not self.branch.table.held_count

    def check_live(self) -> None:
        """Raises what ended it."""
        if self.ended:
            raise self.ended


class Sessions:
    """Sessions by name, oldest first. Every method is called under the engine's lock."""

    def __init__(self, home: str) -> None:
        self.home = home
        self._sessions: dict[str, Session] = {}
        # Those with blocks, by pool, least recently touched first: a search for room never looks at the others.
        self._touched: dict[BlockPool, OrderedDict[Session, None]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    @property
    def busy_count(self) -> int:
        return sum(1 for session in self if session.claim)

    @property
    def spilled_count(self) -> int:
        """Of those that are not busy."""
        return sum(1 for session in self if session.spilled and not session.claim)

    def add(
        self,
        branch: Branch,
        *,
        ttl_s: float,
        now_s: float,
        fingerprint: str = "",
        parent: str = "",
        tenant: str = "anonymous",
        name: str = "",
    ) -> Session:
        """Names a branch: an opaque part, a dot, and the home by which the gateway routes. `name`: it has one."""
        name = name or f"{secrets.token_hex(10)}.{self.home}"
        assert name not in self._sessions, f"session {name} is here already"
        session = Session(name, branch, ttl_s, now_s, now_s + ttl_s, fingerprint, parent, tenant)
        self._sessions[name] = session
        self.touch(session, now_s)
        return session

    def get(self, name: str, now_s: float) -> Session:
        """A live session, its lease renewed. Raises SessionNotFound."""
        session = self._sessions.get(name)
        if session is None:
            raise SessionNotFound(name)
        self.touch(session, now_s)
        return session

    def touch(self, session: Session, now_s: float, ttl_s: float | None = None) -> None:
        """Renews a lease. Harmless for a session that has ended."""
        session.ttl_s = session.ttl_s if ttl_s is None else ttl_s
        session.expires_s = now_s + session.ttl_s
        if not (session.ended or session.spilled):
            order = self._touched.setdefault(session.branch.table.pool, OrderedDict())
            order[session] = None
            order.move_to_end(session)

    def peek(self, name: str) -> Session:
        """A live session, its lease left as it is."""
        return self._sessions[name]

    def claim(self, session: Session, claim: Claim) -> None:
        """Takes a session for one call. Raises SessionBusy when another has it; SessionNotFound when it was closed, and
        what else ended it.
        """
        if session.ended:
            raise SessionNotFound(session.name) if isinstance(session.ended, SessionClosed) else session.ended
        if session.claim:
            raise SessionBusy(session.name, session.claim.call)
        session.claim = claim

    def release(self, session: Session, now_s: float) -> None:
        """Ends a call's claim; the lease counts from now."""
        session.claim = None
        self.touch(session, now_s)

    def remove(self, session: Session, error: Exception | None = None) -> int:
        """Closes a session and what runs on it, with an error; returns how many blocks became free."""
        error = error or SessionClosed(session.name)
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
        self._touched.get(session.branch.table.pool, OrderedDict()).pop(session, None)
        session.ended = session.ended or error
        closes = [session.claim.close] if session.claim else []
        for close in [*closes, *session.readers]:
            close(error)
        # The answer to a repeated CreateSession still names the session for a while: not with all its frames.
        session.last_step = ("", [])
        return session.branch.close()

    def expired(self, now_s: float) -> list[Session]:
        """Idle sessions whose lease has ended. One that a call is using is never among them."""
        return [session for session in self if session.expires_s <= now_s and session.idle]

    def holding(self, pool: BlockPool) -> Iterator[Session]:
        """Sessions with blocks in a pool, the one left alone longest first. None may be touched before the end."""
        yield from self._touched.get(pool, ())

    def set_aside(self, session: Session) -> None:
        """A session was spilled. It comes back when it is touched with blocks of its own again."""
        self._touched[session.branch.table.pool].pop(session, None)
