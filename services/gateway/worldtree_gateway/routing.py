"""Which backend answers a call."""

import asyncio
import logging
from collections.abc import Sequence

from worldtree_gateway import session_id
from worldtree_gateway.backends import Backend
from worldtree_gateway.domain import Affinity, Method
from worldtree_gateway.errors import BackendDown, NoBackend, SessionNotFound

_log = logging.getLogger(__name__)


class Router:
    """The backends of one service.

    A session's id names its home; a call without a session goes to the backend with the fewest calls under way.
    """

    def __init__(self, section: str, backends: Sequence[Backend], *, retry_after_s: float) -> None:
        self.section = section
        self.backends = tuple(backends)
        self._retry_after_s = retry_after_s
        self._homes: dict[str, Backend] = {}
        self._changed = asyncio.Event()
        self._turn = 0  # where the search for the least loaded begins, so that equals take turns

    @property
    def ready(self) -> bool:
        return any(backend.usable for backend in self.backends)

    def pick(self, method: Method, request: bytes) -> Backend:
        """Raises SessionNotFound, BackendDown or NoBackend."""
        if method.affinity is not Affinity.ANY:
            name = session_id.first_string(request)
            if name is not None:
                if method.affinity is Affinity.HOME:
                    return self._home(name)
                preferred = self._homes.get(session_id.home(name) or "")
                if preferred is not None and preferred.connected:
                    return preferred
        return self._least_loaded()

    def down(self, backend: Backend | None) -> BackendDown:
        """What a caller is told whose call lost its backend. None: it was one of several."""
        replica = None if backend is None else backend.replica
        return BackendDown(self.section, replica=replica, retry_after_s=self._retry_after_s)

    async def watch(self) -> None:
        """Follows all backends until cancelled."""
        async with asyncio.TaskGroup() as group:
            for backend in self.backends:
                group.create_task(backend.watch(self._update_homes), name=f"watch {backend.address}")

    async def wait_ready(self) -> None:
        """Returns once a backend takes calls."""
        while not self.ready:
            await self._changed.wait()

    async def close(self) -> None:
        for backend in self.backends:
            await backend.close()

    def _home(self, session: str) -> Backend:
        replica = session_id.home(session)
        backend = self._homes.get(replica) if replica is not None else None
        if backend is None:
            if replica is not None and any(each.replica is None and not each.connected for each in self.backends):
                # one backend hasn't said who it is yet: it may be the home
                raise BackendDown(self.section, replica=replica, retry_after_s=self._retry_after_s)
            raise SessionNotFound(session)
        if not backend.connected:
            raise self.down(backend)
        return backend

    def _least_loaded(self) -> Backend:
        count = len(self.backends)
        best: Backend | None = None
        for step in range(count):
            backend = self.backends[(self._turn + step) % count]
            if not backend.connected or backend.conflicting:
                continue
            # where all say they are full, one of them shall say so itself: it knows for how long
            if best is None or (not backend.taking, backend.in_flight) < (not best.taking, best.in_flight):
                best = backend
        if best is None:
            raise NoBackend(self.section, backend_count=count, retry_after_s=self._retry_after_s)
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
