"""One replica behind the gateway: its channel, who it says it is, and whether it takes calls."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from worldtree_runtime.messages import HELD_KEY, LOAD_KEY, REPLICA_KEY
from worldtree_runtime.tracing import Span, current_span

from worldtree_gateway.domain import Method, Service
from worldtree_gateway.load import Load
from worldtree_gateway.outliers import Standing
from worldtree_gateway.verdicts import is_sick

_HEALTH_CHECK = Method("/grpc.health.v1.Health/Check", client_streaming=False, server_streaming=False)
_HEALTH_WATCH = Method("/grpc.health.v1.Health/Watch", client_streaming=False, server_streaming=True)
_CALLABLE_COUNT_MAX = 256  # methods we don't know come from strangers

_SERVING = health_pb2.HealthCheckResponse.SERVING

_log = logging.getLogger(__name__)


class Backend:
    """Knows its state from one health stream that stays open: its end is the news that the backend is gone.

    `replica` stays known while the backend is down, so that its sessions are told to wait. `taking` is what it says of
    itself: false while it drains, when its own sessions may still end but no new call should come. `tried`: it has
    answered, or was given time to.
    """

    def __init__(
        self,
        service: Service,
        address: str,
        *,
        max_message_bytes: int,
        probe_timeout_s: float,
        probe_interval_s: float,
        standing: Standing,
        ramp_s: float = 0.0,
    ) -> None:
        self.service = service
        self.standing = standing
        self._load = Load(ramp_s=ramp_s)
        self.address = address
        self.replica: str | None = None
        self.tried = False
        self.connected = False
        self.taking = False
        self.leaving = False  # set by the router: it is not listed any more
        self.conflicting = False  # set by the router: another backend has the same name
        self.in_flight = 0
        self._probe_timeout_s = probe_timeout_s
        self._probe_interval_s = probe_interval_s
        self._callables: dict[str, Any] = {}
        self._channel = grpc.aio.insecure_channel(
            address,
            options=(
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # a proxy that repeats calls on its own would hide what happened, and holds their bytes until then
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.use_local_subchannel_pool", 1),
                # a machine that vanished says nothing; our servers allow a probe each 5 s
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
            ),
        )

    @property
    def name(self) -> str:
        """Its replica's, or its address where it has not said that name: only those of the video service do."""
        return self.replica or self.address

    @property
    def usable(self) -> bool:
        return self.connected and self.taking and not self.leaving and not self.conflicting

    @property
    def away(self) -> bool:
        return self.standing.away

    @property
    def load(self) -> int:
        """Calls under way there, ours and those of others."""
        return self._load.calls(self.in_flight)

    @property
    def pressure(self) -> float:
        """How little it needs another call; 0: it has nothing to do."""
        return self._load.pressure(self.in_flight)

    @property
    def held(self) -> int:
        """Sessions that it has, as far as is known here."""
        return self._load.held

    @property
    def share(self) -> float:
        """Of the calls that it is to have once it has been here for a while."""
        return self._load.share

    def opened(self) -> None:
        """A session is to be opened there."""
        self._load.opened()

    def told(self, trailers: Iterable[tuple[str, Any]] | None) -> None:
        """One of its calls has ended with these, and still counts as under way here."""
        for key, value in trailers or ():
            if key not in (LOAD_KEY, HELD_KEY) or not (isinstance(value, str) and value.isascii() and value.isdigit()):
                continue
            if key == LOAD_KEY:
                self._load.told(int(value[:9]), ours=self.in_flight)
            else:
                self._load.held = int(value[:9])

    def callable(self, method: Method) -> Any:
        """The multi-callable of `method` that takes and gives raw bytes."""
        found = self._callables.get(method.path)
        if found is None:
            kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
            found = getattr(self._channel, "_".join(kind))(method.path)
            if len(self._callables) < _CALLABLE_COUNT_MAX:
                self._callables[method.path] = found
        return found

    def span(self, method: Method) -> Span | None:
        """Of one call to it; None where the call that it is made for is not traced. `serving` ends it."""
        span = current_span()
        if span is None:
            return None
        host, _, port = self.address.rpartition(":")
        attributes: dict[str, str | int] = {"server.address": host, "server.port": int(port)}
        if self.replica is not None:
            attributes["worldtree.replica"] = self.replica
        return span.child(method.path.removeprefix("/"), attributes)

    @contextmanager
    def serving(self, span: Span | None = None) -> Iterator[None]:
        """Around a call to it: counts it while it is under way, and how it ends for its standing and its span."""
        code, said = grpc.StatusCode.CANCELLED, ""  # unless it ends otherwise, it is given up
        self.in_flight += 1
        try:
            yield
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), error.details() or ""
            self.told(error.trailing_metadata())
            sick = is_sick(error)
            if sick is False:
                self.standing.succeeded()
            elif sick and self.standing.failed():
                _log.warning("backend fails call after call: no new ones for a while", extra=self._fields())
            raise
        else:
            code = grpc.StatusCode.OK
            self.standing.succeeded()
        finally:
            self.in_flight -= 1
            if span is not None:
                span.end(code.name, {}, description=said)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Connects, and connects again, for ever; tells `changed` each time that something did."""
        told: str | None = None
        while True:
            try:
                await self._connect()
                changed()
                await self._follow_health(changed)
                reason = "it closed the connection"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except DecodeError:
                reason = "what it answers is not grpc.health.v1"
            if self.connected or reason != told:  # not one line a try while it stays down
                _log.warning("backend does not answer, trying on", extra={**self._fields(), "reason": reason})
            told = reason
            if self.connected or not self.tried:
                self.tried = True
                self.connected = self.taking = False
                changed()
            await asyncio.sleep(self._probe_interval_s)

    async def close(self) -> None:
        await self._channel.close()

    async def _connect(self) -> None:
        probe = self.service.methods[self.service.probe] if self.service.probe else _HEALTH_CHECK
        call = self.callable(probe)(b"", timeout=self._probe_timeout_s, wait_for_ready=True)
        await call
        for key, value in (*(await call.initial_metadata()), *(await call.trailing_metadata())):
            if key == REPLICA_KEY:
                self.replica = value if isinstance(value, str) else value.decode()
        if not self.connected:
            self._load.came()
        self.standing.cleared()  # what failed with the connection before is not held against this one
        self.tried = self.connected = True

    async def _follow_health(self, changed: Callable[[], None]) -> None:
        """Returns or raises AioRpcError when the backend is gone."""
        while True:
            watch = self.callable(_HEALTH_WATCH)(b"")
            try:
                async for answer in watch:
                    self._take(answer, changed)
                    if not self.taking:
                        break
                else:
                    return
            finally:
                watch.cancel()
            # an open stream would hold up the backend's drain, so from here on ask now and then
            while not self.taking:
                await asyncio.sleep(self._probe_interval_s)
                self._take(await self.callable(_HEALTH_CHECK)(b"", timeout=self._probe_timeout_s), changed)

    def _take(self, answer: bytes, changed: Callable[[], None]) -> None:
        taking = health_pb2.HealthCheckResponse.FromString(answer).status == _SERVING
        if taking != self.taking:
            self.taking = taking
            _log.info("backend takes calls" if taking else "backend takes no new calls", extra=self._fields())
            changed()

    def _fields(self) -> dict[str, object]:
        return {"service": self.service.section, "backend": self.address, "replica": self.replica}
