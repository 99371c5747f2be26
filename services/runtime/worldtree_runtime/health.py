"""grpc.health.v1 that follows a live readiness, and whose watchers don't hold up a drain."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from worldtree_runtime.errors import NotFound

SERVICE_NAME = "grpc.health.v1.Health"

_POLL_S = 0.5


class Health:
    """Answers for "" (the whole server) and for each service by name; all flip together.

    SERVING while the service says so (`set_serving`), `ready()` holds and no drain has begun. A drain is final: it
    tells every watcher NOT_SERVING and ends its stream, which would else keep the server from stopping.
    """

    def __init__(self, names: Sequence[str], *, ready: Callable[[], bool]) -> None:
        self._names = frozenset({"", *names})
        self._ready = ready
        self._serving = True
        self._draining = False
        self._changed = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Not by the generated function: what it asks of a servicer depends on grpcio's version (List came late)."""
        handlers: dict[str, Any] = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self.Check,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }
        if hasattr(health_pb2, "HealthListRequest"):
            handlers["List"] = grpc.unary_unary_rpc_method_handler(
                self.List,
                request_deserializer=health_pb2.HealthListRequest.FromString,
                response_serializer=health_pb2.HealthListResponse.SerializeToString,
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def is_serving(self) -> bool:
        return self._serving and not self._draining and self._ready()

    def set_serving(self, serving: bool) -> None:
        self._serving = serving
        self._wake()

    def drain(self) -> None:
        self._draining = True
        self._wake()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: ARG002, N802
        if request.service not in self._names:
            raise NotFound("service", request.service, known=sorted(self._names - {""}))
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._names}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told: int | None = None
        while True:
            changed, draining, status = self._changed, self._draining, self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if draining:
                return
            try:
                # `ready` can change by itself, so it is looked at now and then
                await asyncio.wait_for(changed.wait(), _POLL_S)
            except TimeoutError:
                continue

    def _status(self, service: str) -> int:
        if service not in self._names:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self.is_serving():
            return int(health_pb2.HealthCheckResponse.SERVING)
        return int(health_pb2.HealthCheckResponse.NOT_SERVING)

    def _wake(self) -> None:
        # a fresh event for those who wait from now on; each watcher holds the one it waits for
        self._changed.set()
        self._changed = asyncio.Event()
