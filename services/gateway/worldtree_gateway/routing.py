"""Which backend answers a call."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from worldtree_gateway import balancing, session_id
from worldtree_gateway.backends import Backend
from worldtree_gateway.discovery import Discovery
from worldtree_gateway.domain import Affinity, Method
from worldtree_gateway.errors import BackendDown, NoBackend, ReplicaNotFound, SessionNotFound
from worldtree_gateway.outliers import sound
from worldtree_gateway.placements import Placements, chosen

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes. `rehome`: the replica whose session it is, which is gone, so that this one must take it on."""

    backend: Backend
    rehome: str | None = None


class Router:
    """The backends of one service, as `discovery` finds them; `make` makes one of an address, `forgotten` hears of each
    that is given up.

    One that is found no more gets no new calls, keeps its sessions for as long as it answers, and is then forgotten.
    A session's id names its home, and a session that has left it is remembered where it went. A call that says where a
    world begins goes where others like it have gone, as long as that backend has no more than `start_load_factor` times
    its share to do (0: it doesn't matter where); any other call goes to the backend with the least to do, of those that
    do not fail one after the other. `avoid` names backends that have just failed a call. `placed` hears how each
    session was: start, overflow or spread.
    """

    def __init__(
        self,
        section: str,
        discovery: Discovery,
        make: Callable[[str], Backend],
        forgotten: Callable[[Backend], None] = lambda _: None,
        *,
        placed: Callable[[str], None] = lambda _: None,
        start_load_factor: float = 0.0,
        retry_after_s: float,
        moved_limit: int,
        look_interval_s: float,
    ) -> None:
        self.section = section
        self.backends: tuple[Backend, ...] = tuple(make(address) for address in discovery.fixed)
        self.placements = Placements(moved_limit)
        self.retry_after_s = retry_after_s
        self._discovery, self._make, self._forgotten, self._placed = discovery, make, forgotten, placed
        self._start_load_factor = start_load_factor
        self._look_interval_s = look_interval_s
        self._watching: dict[Backend, asyncio.Task[None]] = {}
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
                if preferred is not None and preferred.connected and preferred.name not in avoid:
                    return Route(preferred)
        backend, how = self._free(method, request, avoid)
        if method.opens_session:
            backend.opened()
            self._placed(how)
        return Route(backend)

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

    def others(self, avoid: Collection[str]) -> bool:
        """Whether there are replicas that take calls, beside these."""
        return any(each.usable and each.name not in avoid for each in self.backends)

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
        """Follows all backends, those that come later too, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._follow(group, self.backends)
            while self._discovery.changes:
                self._take(await self._discovery.addresses(), group)
                await self._forget()
                await asyncio.sleep(self._look_interval_s)

    def _take(self, addresses: Sequence[str], group: asyncio.TaskGroup) -> None:
        known = {backend.address: backend for backend in self.backends}
        for address, backend in known.items():
            if backend.leaving != (address not in addresses):
                backend.leaving = not backend.leaving
                _log.info(
                    "backend is found no more" if backend.leaving else "backend is found again",
                    extra={"service": self.section, "backend": address, "replica": backend.replica},
                )
                self._update_homes()
        new = tuple(self._make(address) for address in addresses if address not in known)
        self.backends += new
        self._follow(group, new)

    def _follow(self, group: asyncio.TaskGroup, backends: Sequence[Backend]) -> None:
        for backend in backends:
            watching = backend.watch(self._update_homes)
            self._watching[backend] = group.create_task(watching, name=f"watch {backend.address}")

    async def _forget(self) -> None:
        """Those that were found no more and are gone."""
        gone = [
            each
            for each in self.backends
            if each.leaving and not each.in_flight and (not each.connected or self._is_known_elsewhere(each))
        ]
        if not gone:
            return
        self.backends = tuple(each for each in self.backends if each not in gone)
        for backend in gone:
            self._watching.pop(backend).cancel()
            self._forgotten(backend)
            await backend.close()
        self._update_homes()

    def _is_known_elsewhere(self, backend: Backend) -> bool:
        """Whether its replica has its calls by another address."""
        return backend.replica is not None and self._homes.get(backend.replica) is not backend

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

    def _free(self, method: Method, request: bytes, avoid: Collection[str]) -> tuple[Backend, str]:
        """Who gets a call that any may answer, and how it was chosen."""
        count = len(self.backends)
        turn = self._turn % max(1, count)
        reachable = [
            each
            for each in (*self.backends[turn:], *self.backends[:turn])
            if each.connected and not each.leaving and not each.conflicting and each.name not in avoid
        ]
        if not reachable:
            raise NoBackend(self.section, backend_count=count, retry_after_s=self.retry_after_s)
        taking = fit = [each for each in reachable if each.taking]
        if any(each.away for each in taking):
            fits = sound([each.standing for each in taking])
            fit = [each for each, is_fit in zip(taking, fits, strict=True) if is_fit]
        # where all say they are full, one of them shall say so itself: it knows for how long
        candidates = fit or taking or reachable
        if method.start_fields is not None and self._start_load_factor and len(candidates) > 1:
            start = balancing.start_of(request, *method.start_fields)
            if start is not None:
                backend, is_first = balancing.by_start(start, candidates, self._start_load_factor)
                return backend, "start" if is_first else "overflow"
        self._turn += 1
        choose = balancing.emptiest if method.opens_session else balancing.least_loaded
        return candidates[0] if len(candidates) == 1 else choose(candidates), "spread"

    def _update_homes(self) -> None:
        # From scratch: a restarted backend may have a new name, and then the sessions of its old one are gone.
        # Connected backends first, so that a replica that moved to another address is found there; and those that are
        # still listed, as one and the same process may be known by an old address too.
        homes: dict[str, Backend] = {}
        for backend in sorted(self.backends, key=lambda each: (not each.connected, each.leaving)):
            if backend.replica is None:
                continue
            first = homes.setdefault(backend.replica, backend)
            conflicting = first is not backend and backend.connected and not backend.leaving
            if conflicting and not backend.conflicting:
                _log.error(
                    "two backends have one name, so the later one gets no calls: give each its own setting `replica`",
                    extra={"replica": backend.replica, "backends": [first.address, backend.address]},
                )
            backend.conflicting = conflicting
        self._homes = homes
        self._changed.set()  # wakes those who wait now; the next change is the next wait
        self._changed.clear()
