"""How many sessions a tenant may have at a time, on all replicas together: they know, so they are asked."""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc.aio
from google.protobuf.message import DecodeError
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.messages import SCRATCH_KEY, TENANT_KEY

from worldtree_gateway.backends import Backend
from worldtree_gateway.domain import SERVICES, Method
from worldtree_gateway.errors import SessionQuotaExceeded
from worldtree_gateway.identity import current_caller
from worldtree_gateway.metadata import Context
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.openings import Openings
from worldtree_gateway.routing import Router

_LIST: Method = SERVICES[0].methods["/worldtree.video.v1.VideoGenerator/List"]
_PAGE_MAX = 1000
_WAIT_MAX_S = 60.0  # a session may be closed long before its lease ends
_POLL_S = 0.02
_REST_S = 5.0  # of a replica that did not answer: what it said last counts meanwhile, and nobody waits for it
_REPEAT_S = 60.0  # how long after a call an equal one is a repeat of it
_TENANTS_MAX = 10_000

_Ends = dict[str, float]  # when the leases of sessions end


class _Wanted(NamedTuple):
    session_count: int
    request: bytes | None  # a hash of all that is asked; None: it has no request_id, so nothing repeats it


class SessionQuota:
    """Before each call that opens sessions.

    Who comes is counted behind those who came earlier and are still opening theirs, by whichever gateway. A session
    that is made and not yet answered is found at its replica and among those: where that decides, they are waited for.

    Who repeats a call is not counted anew, as its sessions are there. But its replica may have forgotten it, or another
    one be asked: so it is let in only while there are no more sessions than there may be, and gains those of one call.
    """

    def __init__(
        self,
        router: Router,
        openings: Openings,
        limit: int,
        metrics: GatewayMetrics,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._router, self._openings, self._limit, self._metrics = router, openings, limit, metrics
        self._timeout_s, self._clock = timeout_s, clock
        self._said: OrderedDict[tuple[str, str], _Ends] = OrderedDict()  # by address and tenant
        self._rest_until_s: dict[str, float] = {}  # by address
        # when calls were let in, oldest first: by tenant, and by what was asked
        self._let_in: OrderedDict[str, OrderedDict[bytes, float]] = OrderedDict()

    @staticmethod
    def covers(method: Method) -> bool:
        """Whether it opens sessions."""
        return method.opens_session or method.request_class is pb.ForkRequest

    @asynccontextmanager
    async def opening(self, method: Method, request: bytes, context: Context) -> AsyncIterator[None]:
        """Around the call. Raises SessionQuotaExceeded."""
        tenant, wanted = current_caller().tenant, _wanted(method, request)
        repeats = self._was_let_in(tenant, wanted.request)
        # what the navigator forks for the time of a call comes on top: who may have no more may still plan
        limit = 2 * self._limit if _is_scratch(context) else self._limit
        who = secrets.token_hex(8)
        try:
            await self._room(tenant, who, wanted.session_count, 0 if repeats else wanted.session_count, limit)
            if not repeats:
                self._remember(tenant, wanted.request)
            try:
                yield
            except Exception:
                if wanted.request is not None and not repeats and tenant in self._let_in:
                    self._let_in[tenant].pop(wanted.request, None)  # it opened none
                raise
        finally:
            await asyncio.shield(self._openings.leave(tenant, who, wanted.session_count))

    async def _room(self, tenant: str, who: str, count: int, more: int, limit: int) -> None:
        """Returns when there is room for so many `more`. Raises SessionQuotaExceeded. `count`: as those who come later
        count it."""
        while True:
            before = await self._openings.before(tenant, who, count)  # first: who leaves meanwhile is found
            ends = await self._found(tenant)
            if len(ends) + before + more <= limit:
                return
            if len(ends) + more > limit or not before:
                self._metrics.limited.labels("sessions").inc()
                wait_s = min((end_s - self._clock() for end_s in ends.values()), default=1.0)
                raise SessionQuotaExceeded(tenant, limit, len(ends), wait_s=min(max(wait_s, 1.0), _WAIT_MAX_S))
            while True:
                await asyncio.sleep(_POLL_S)
                if await self._openings.before(tenant, who, count) != before:
                    break

    def _was_let_in(self, tenant: str, request: bytes | None) -> bool:
        """Whether an equal call of the tenant was, lately."""
        known = self._let_in.get(tenant)
        let_in_s = None if known is None or request is None else known.get(request)
        return let_in_s is not None and self._clock() - let_in_s < _REPEAT_S

    def _remember(self, tenant: str, request: bytes | None) -> None:
        if request is None:
            return
        known = self._let_in.setdefault(tenant, OrderedDict())
        known[request] = self._clock()
        known.move_to_end(request)
        if len(known) > self._limit:
            known.popitem(last=False)
        self._let_in.move_to_end(tenant)
        if len(self._let_in) > _TENANTS_MAX:
            self._let_in.popitem(last=False)

    async def _found(self, tenant: str) -> _Ends:
        """By their ids: a replica may be known by two addresses."""
        found: _Ends = {}
        for each in await asyncio.gather(*(self._at(backend, tenant) for backend in self._router.backends)):
            found |= each
        return found

    async def _at(self, backend: Backend, tenant: str) -> _Ends:
        """The tenant's sessions there; of one that doesn't answer in time, those of its last answer."""
        if not backend.connected:
            return {}  # they can't be used, and are found where they are taken on
        key, now_s = (backend.address, tenant), self._clock()
        if now_s >= self._rest_until_s.get(backend.address, 0.0):
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._said[key] = await self._listed(backend, tenant)
                self._said.move_to_end(key)
                if len(self._said) > _TENANTS_MAX:
                    self._said.popitem(last=False)
            except (TimeoutError, grpc.aio.AioRpcError, DecodeError):
                self._rest_until_s[backend.address] = now_s + _REST_S
        return {session: end_s for session, end_s in self._said.get(key, {}).items() if end_s > now_s}

    async def _listed(self, backend: Backend, tenant: str) -> _Ends:
        ends: _Ends = {}
        request = pb.ListRequest(page_size=_PAGE_MAX)
        while len(ends) <= 2 * self._limit:
            call = backend.callable(_LIST)(
                request.SerializeToString(), timeout=self._timeout_s, metadata=((TENANT_KEY, tenant),)
            )
            page = pb.ListResponse.FromString(await call)
            ends |= {each.session: each.expire_time.seconds + each.expire_time.nanos / 1e9 for each in page.sessions}
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return ends


def _wanted(method: Method, request: bytes) -> _Wanted:
    message: Any = method.request_class
    try:
        asked = message.FromString(request)
    except DecodeError:
        return _Wanted(1, None)  # the backend says what is wrong with it
    count = max(1, min(asked.count, _PAGE_MAX)) if isinstance(asked, pb.ForkRequest) else 1
    if not asked.request_id:
        return _Wanted(count, None)
    whole = method.path.encode() + b" " + asked.SerializeToString(deterministic=True)
    return _Wanted(count, hashlib.sha256(whole).digest())


def _is_scratch(context: Context) -> bool:
    return any(key == SCRATCH_KEY for key, _ in context.invocation_metadata() or ())
