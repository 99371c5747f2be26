"""Which backend answers a call."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from worldtree_gateway import session_id
from worldtree_gateway.backends import Backend
from worldtree_gateway.domain import Affinity, Method
from worldtree_gateway.errors import BackendDown, NoBackend, ReplicaNotFound, SessionNotFound
from worldtree_gateway.placements import Placements, chosen

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes. `rehome`: the replica whose session it is, which is gone, so that this one must take it on."""

    backend: Backend
    rehome: str | None = None


class Router:
    """The backends of one service.

    A session's id names its home, and a session that has left it is remembered where it went. A call without a session
    goes to the backend with the fewest calls under way. `avoid` names replicas that have just failed a call.
    """

    def __init__(self, section: str, backends: Sequence[Backend], *, retry_after_s: float, moved_limit: int) -> None:
        self.section = section
        self.backends = tuple(backends)
        self.placements = Placements(moved_limit)
        self.retry_after_s = retry_after_s
        self._homes: dict[str, Backend] = {}
        self._changed = asyncio.Event()
        self._turn = 0  # where the search for the least loaded begins, so that equals take turns

    @property
    def ready(self) -> bool:
        return any(backend.usable for backend in self.backends)

    @property
    def replicas(self) -> list[str]:
        """Whom operators can ask for, sorted: those that are down too, and by its address one that never said its name.

        One that died and is not among them would look like one that was never there.
        """
        return sorted({*self._homes, *self._unheard()})

    def route(self, method: Method, request: bytes, *, avoid: Collection[str] = ()) -> Route:
        """Raises SessionNotFound, ReplicaNotFound, BackendDown or NoBackend."""
        if method.affinity is not Affinity.ANY:
            name = session_id.first_string(request)
            if name is not None:
                match method.affinity:
                    case Affinity.HOME:
                        return self.to(name, self.place(name), avoid=avoid)
                    case Affinity.REPLICA:
                        return Route(self._named(name))
                preferred = self._homes.get(session_id.home(name) or "")
                if preferred is not None and preferred.connected and preferred.replica not in avoid:
                    return Route(preferred)
        return Route(self._least_loaded(avoid))

    def place(self, session: str) -> str:
        """The replica that has a session, as far as is known here. Raises SessionNotFound for what is no id."""
        replica = self.placements.get(session) or session_id.home(session)
        if replica is None:
            raise SessionNotFound(session)
        return replica

    def to(self, session: str, place: str, *, avoid: Collection[str] = ()) -> Route:
        """The way to a session that `place` has: there, or to whom it falls when that one is gone.

        Raises BackendDown when nobody can take it on.
        """
        backend = self._homes.get(place)
        if backend is not None and backend.connected and place not in avoid:
            return Route(backend)
        # It may be one that has yet to say its name: taken for dead, it would lose its sessions, and their plays there.
        unmet = backend is None and not all(each.tried for each in self.backends)
        others = {
            each.replica: each
            for each in self.backends
            if each.usable and each.replica is not None and each.replica != place and each.replica not in avoid
        }
        if unmet or not others:
            raise BackendDown(self.section, replica=place, retry_after_s=self.retry_after_s)
        return Route(others[chosen(session, others)], rehome=place)

    def arrived(self, session: str, route: Route) -> None:
        """A call on `session` was answered there."""
        replica = route.backend.replica
        if replica is None or replica == session_id.home(session):
            self.placements.forget(session)
        else:
            self.placements.put(session, replica)

    def may_come_back(self, replica: str) -> bool:
        """Whether a replica of this name was here, or one is still to say its name."""
        return replica in self._homes or any(each.replica is None for each in self.backends)

    def down(self, backend: Backend | None) -> BackendDown:
        """What a caller is told whose call lost its backend. None: it was one of several."""
        replica = None if backend is None else backend.replica
        return BackendDown(self.section, replica=replica, retry_after_s=self.retry_after_s)

    async def watch(self) -> None:
        """Follows all backends until cancelled."""
        async with asyncio.TaskGroup() as group:
            for backend in self.backends:
                group.create_task(backend.watch(self._update_homes), name=f"watch {backend.address}")

    async def wait_ready(self) -> None:
        """Returns once a backend takes calls."""
        while not self.ready:
            await self._changed.wait()

    async def wait_changed(self, timeout_s: float) -> None:
        """Returns when a backend came, went or changed its mind, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        for backend in self.backends:
            await backend.close()

    def _named(self, replica: str) -> Backend:
        backend = self._homes.get(replica)
        if backend is None and replica not in self._unheard():
            raise ReplicaNotFound(replica, self.replicas)
        if backend is None or not backend.connected:
            raise BackendDown(self.section, replica=replica, retry_after_s=self.retry_after_s)
        return backend

    def _unheard(self) -> list[str]:
        """The addresses of those that have not answered since this gateway started. No replica's name has a colon."""
        return [
            backend.address
            for backend in self.backends
            # It goes into metadata, which is printable ASCII; one bad address must not end every look at the others.
            if backend.replica is None and not backend.connected and backend.address.isascii()
        ]

    def _least_loaded(self, avoid: Collection[str]) -> Backend:
        count = len(self.backends)
        best: Backend | None = None
        for step in range(count):
            backend = self.backends[(self._turn + step) % count]
            if not backend.connected or backend.conflicting or backend.replica in avoid:
                continue
            # where all say they are full, one of them shall say so itself: it knows for how long
            if best is None or (not backend.taking, backend.in_flight) < (not best.taking, best.in_flight):
                best = backend
        if best is None:
            raise NoBackend(self.section, backend_count=count, retry_after_s=self.retry_after_s)
        self._turn = (self._turn + 1) % count
        return best

    def _update_homes(self) -> None:
        # From scratch: a restarted backend may have a new name, and then the sessions of its old one are gone.
        # Connected backends first, so that a replica that moved to another address is found there.
        homes: dict[str, Backend] = {}
        for backend in sorted(self.backends, key=lambda each: not each.connected):
            if backend.replica is None:
                continue
            first = homes.setdefault(backend.replica, backend)
            conflicting = first is not backend and backend.connected
            if conflicting and not backend.conflicting:
                _log.error(
                    "two backends have one name, so the later one gets no calls: give each its own setting `replica`",
                    extra={"replica": backend.replica, "backends": [first.address, backend.address]},
                )
            backend.conflicting = conflicting
        self._homes = homes
        self._changed.set()  # wakes those who wait now; the next change is the next wait
        self._changed.clear()
