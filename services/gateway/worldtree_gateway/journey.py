"""One call on its way from replica to replica: where to try next, and until when."""

import random
import time
from collections.abc import Callable

import grpc
import grpc.aio
from worldtree_runtime.call_notes import note_session
from worldtree_runtime.tracing import current_span

from worldtree_gateway import session_id
from worldtree_gateway.backends import Backend
from worldtree_gateway.domain import Affinity, Method
from worldtree_gateway.errors import BackendDown, NoBackend, SessionNotFound
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.retry_budget import RetryBudget
from worldtree_gateway.routing import Route, Router
from worldtree_gateway.verdicts import Failure, Verdict, error_info, judge

_HOPS_MAX = 4  # from a replica that says "moved" to the next; more is a circle, or a session that nobody keeps
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0

_GONE = (Verdict.LOST, Verdict.UNREACHED, Verdict.RELEASED)
# the call was refused as a whole, so nothing of it was done
_UNTOUCHED = (Verdict.UNREACHED, Verdict.RELEASED, Verdict.MOVED)


class Journey:
    """Belongs to one call. `kind` is its label in the metrics: unary, stream or play.

    `begin` gives the first route. When the call fails there, `next` gives another or raises what the caller is told,
    as soon as another try is of no use or would be too late: `rehome_timeout_s` after the loss, or at the caller's
    deadline. `arrived` says that a replica has answered, and ends the outage if there was one.

    A call that any replica can answer, and that may have kept one at work, is tried again out of the `budget` of its
    service. One on a session is not counted: it has one place to go, waits between its tries, and would be lost.
    One that opens a session, and whose connection broke, is asked for again where it was: only there its request_id is
    known. It goes elsewhere if nobody is reached there, as a replica that died holds nothing.
    """

    def __init__(
        self,
        router: Router,
        metrics: GatewayMetrics,
        method: Method,
        request: bytes,
        budget: RetryBudget,
        *,
        kind: str,
        rehome_timeout_s: float,
        left_s: float | None,
        resumes: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._metrics = metrics
        self._method = method
        self._request = request
        self._budget = budget
        self._kind = kind
        self._rehome_timeout_s = rehome_timeout_s
        self._clock = clock
        self._deadline_s = None if left_s is None else clock() + left_s
        self._session = session_id.first_string(request) if method.affinity is Affinity.HOME else None
        note_session(self._session)
        self._place: str | None = None  # the replica that has the session, as far as this call has learnt
        self._avoid: set[str] = set()
        self._hop_count = 0
        self._backoff_s = _BACKOFF_FIRST_S
        self._answered = False
        self._adopted = False  # by a replica that was asked to take it on, and has no time for it yet
        self._may_be_open = False  # the session that it asks for, at a replica that didn't get to say so
        self._asks_again = False  # there
        self._resumes = resumes  # until it is answered: what it broke off from may not have ended where it was
        self._lost_s: float | None = None  # since when there is an outage

    @property
    def paused(self) -> bool:
        """Whether the call has no replica that has answered it since it lost one."""
        return self._lost_s is not None

    @property
    def pause_s(self) -> float:
        """How long the call has been without a replica; 0 when it has one."""
        return 0.0 if self._lost_s is None else self._clock() - self._lost_s

    @property
    def left_s(self) -> float:
        """What is left of an outage's bound."""
        assert self._lost_s is not None, "there is no outage"
        ends_s = self._lost_s + self._rehome_timeout_s
        if self._deadline_s is not None:
            ends_s = min(ends_s, self._deadline_s)
        return max(0.0, ends_s - self._clock())

    async def begin(self) -> Route:
        """The first route; waits for one when the session's replica is down. Raises what Router.route raises."""
        if self._session is None:
            self._budget.earn()
            return self._router.route(self._method, self._request)
        self._place = self._router.place(self._session)
        return await self._find(self._session)

    def allows(self, error: grpc.aio.AioRpcError, route: Route, *, repeatable: Callable[[], bool]) -> Failure | None:
        """The failure, where another replica, or another try, may do better. None: the caller must have this error.

        `repeatable` is asked only if the call may have been carried out in part.
        """
        failure = judge(error)
        match failure.verdict:
            case Verdict.LOST if not repeatable():
                return None
            case Verdict.LOST if self._method.opens_session and error_info(error) is None:
                if self._may_be_open or not self._may_repeat():
                    return None
                self._may_be_open = self._asks_again = True
                return failure
            case Verdict.LOST if self._session is None:
                return failure if self._may_repeat() else None
            case verdict if verdict in _UNTOUCHED or verdict is Verdict.LOST:
                return failure
            case Verdict.FULL | Verdict.QUEUED | Verdict.NOT_FOUND if route.rehome is not None:
                return failure
            case Verdict.QUEUED if self._adopted:
                return failure
            case Verdict.BUSY | Verdict.FULL | Verdict.QUEUED if self._goes_on:
                return failure  # a play goes on: what it broke off from may not have ended there, or not given back
            case Verdict.FULL | Verdict.QUEUED if self._has_others(route):
                return failure if self._may_repeat() else None  # it has made nothing
            case _ if (
                error.code() is grpc.StatusCode.UNAVAILABLE
                and self._has_others(route)
                and repeatable()
                and self._may_repeat()
            ):
                return failure
        return None

    @property
    def _goes_on(self) -> bool:
        """Whether it broke off somewhere, and nobody has answered it since."""
        return self._resumes or (self._answered and self._lost_s is not None)

    def _has_others(self, route: Route) -> bool:
        """Whether another replica may answer what this one cannot now."""
        if self._session is not None:
            return False
        others = self._router.others({*self._avoid, route.backend.name})
        return others and self._method.affinity is not Affinity.REPLICA

    def _may_repeat(self) -> bool:
        """Out of the budget."""
        allowed = self._budget.spend()
        self._metrics.retries.labels(self._router.section, "sent" if allowed else "refused").inc()
        return allowed

    async def next(self, failure: Failure, route: Route) -> Route:
        """Where to try again after a failure that `allows` allowed. Raises BackendDown, NoBackend or NotFound."""
        span = current_span()
        if span is not None:
            said = {"worldtree.verdict": failure.verdict.name, "worldtree.replica": route.backend.name}
            span.event("worldtree.retry", said)
        if failure.verdict is Verdict.NOT_FOUND:
            self.ended("not_found")
            assert self._session is not None, "only sessions are taken on"
            raise self._not_found(self._session, route)
        if failure.verdict in (Verdict.LOST, Verdict.UNREACHED):
            self._metrics.upstream_failures.labels(self._router.section).inc()
        if failure.verdict in _GONE or self._answered or self._resumes:
            self._outage()  # a play that loses its session in the middle stands still too
        if self._asks_again:
            self._asks_again = False
            await self._pause()
            return route
        if self._session is None:
            return self._elsewhere(route.backend)
        name = route.backend.replica
        if failure.verdict is Verdict.MOVED:
            self._place = failure.replica
            self._hop_count += 1
            if self._hop_count > _HOPS_MAX:
                self.ended("failed")
                raise self._router.down(None)
        elif failure.verdict is Verdict.QUEUED:
            if route.rehome is not None:  # asked elsewhere, it would be taken from there again
                self._router.arrived(self._session, route)
                self._place, self._adopted = name, True
            await self._pause()
        elif failure.verdict is Verdict.BUSY or (failure.verdict is Verdict.FULL and route.rehome is None):
            await self._pause()
        elif name is not None:
            self._avoid.add(name)
            if route.rehome is None:
                self._place = name
        return await self._find(self._session)

    def arrived(self, route: Route) -> None:
        """The replica of `route` has answered."""
        if self._session is not None:
            self._router.arrived(self._session, route)
            self._place = route.backend.replica
        if self._lost_s is not None:
            pause_s, span = self.pause_s, current_span()
            self._metrics.failover_pause.labels(self._router.section, self._kind).observe(pause_s)
            if span is not None:
                said: dict[str, str | float] = {"worldtree.pause_s": pause_s, "worldtree.replica": route.backend.name}
                span.event("worldtree.failover", said)
        self.ended("ok")
        self._answered = True
        self._resumes = self._adopted = False
        self._avoid.clear()
        self._hop_count = 0
        self._backoff_s = _BACKOFF_FIRST_S

    def ended(self, result: str) -> None:
        """Counts an outage, if there was one, by how it ended: a result of `worldtree_failovers_total`."""
        if self._lost_s is not None:
            self._lost_s = None
            self._metrics.failovers.labels(self._router.section, self._kind, result).inc()

    def expired(self) -> BackendDown:
        """What the caller is told when nobody took the call on in time."""
        self.ended("expired")
        return BackendDown(self._router.section, replica=self._place, retry_after_s=self._router.retry_after_s)

    async def _find(self, session: str) -> Route:
        while True:
            assert self._place is not None, "a session has a place"
            try:
                route = self._router.to(session, self._place, avoid=self._avoid)
            except BackendDown:
                self._outage()
                await self._pause()
                self._avoid.clear()  # who failed may be back
                continue
            if route.rehome is not None:
                self._outage()
            return route

    def _elsewhere(self, failed: Backend) -> Route:
        """A call that any replica can answer does not wait: when all have failed, its caller knows as much as we do."""
        if self._method.affinity is Affinity.REPLICA:
            self.ended("failed")
            raise self._router.down(failed)
        self._avoid.add(failed.name)
        try:
            return self._router.route(self._method, self._request, avoid=self._avoid)
        except NoBackend:
            self.ended("failed")
            raise self._router.down(failed) from None

    def _not_found(self, session: str, route: Route) -> Exception:
        if route.rehome is not None and self._router.may_come_back(route.rehome):
            # no journal has it, but its own replica may
            return BackendDown(self._router.section, replica=route.rehome, retry_after_s=self._router.retry_after_s)
        return SessionNotFound(session)

    def _outage(self) -> None:
        if self._lost_s is None:
            self._lost_s = self._clock()

    async def _pause(self) -> None:
        """Returns after a while, or as soon as a backend changes. Raises when the bound has passed."""
        left_s = self.left_s
        if left_s <= 0:
            raise self.expired()
        # jittered, so that all calls of a dead replica don't come at once
        wait_s = self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311
        self._backoff_s = min(2 * self._backoff_s, _BACKOFF_MAX_S)
        await self._router.wait_changed(min(wait_s, left_s))
