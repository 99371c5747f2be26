"""An OTLP collector on loopback that keeps the spans it is told."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1 import trace_pb2

_KINDS = {
    trace_pb2.Span.SPAN_KIND_SERVER: "server",
    trace_pb2.Span.SPAN_KIND_CLIENT: "client",
    trace_pb2.Span.SPAN_KIND_INTERNAL: "internal",
}


class Told:
    """A span as a collector reads it. Ids are hex; `parent` and `links` are span ids, `links` by trace id."""

    def __init__(self, span: trace_pb2.Span, service: str) -> None:
        self.service = service
        self.name = span.name
        self.kind = _KINDS[span.kind]
        self.trace_id, self.span_id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.attributes = _plain(span.attributes)
        self.events = [(event.name, _plain(event.attributes)) for event in span.events]
        self.links = {link.trace_id.hex(): link.span_id.hex() for link in span.links}
        self.failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
        self.description = span.status.message
        self.begin_ns, self.end_ns = span.start_time_unix_nano, span.end_time_unix_nano

    def __repr__(self) -> str:
        return f"{self.service} {self.kind} {self.name} {self.trace_id[:6]}/{self.span_id[:4]} under {self.parent[:4]}"


class Collector(TraceServiceServicer):  # type: ignore[misc]
    """`async with Collector() as collector`; `collector.endpoint` is for the setting."""

    def __init__(self) -> None:
        self.spans: list[Told] = []
        self.resources: dict[str, dict[str, Any]] = {}  # by service

    async def __aenter__(self) -> "Collector":
        self._server = grpc.aio.server()
        add_TraceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        for of_resource in request.resource_spans:
            resource = _plain(of_resource.resource.attributes)
            service = str(resource["service.name"])
            self.resources[service] = resource
            for of_scope in of_resource.scope_spans:
                self.spans.extend(Told(span, service) for span in of_scope.spans)
        return pb.ExportTraceServiceResponse()

    def named(self, name: str, *, service: str | None = None, kind: str | None = None) -> list[Told]:
        """Those whose name ends so, in the order of their beginnings."""
        found = [
            span
            for span in self.spans
            if span.name.endswith(name) and service in (None, span.service) and kind in (None, span.kind)
        ]
        return sorted(found, key=lambda span: span.begin_ns)

    def one(self, name: str, *, service: str | None = None, kind: str | None = None) -> Told:
        found = self.named(name, service=service, kind=kind)
        assert len(found) == 1, f"{found} of {self.spans}"
        return found[0]

    async def until(self, holds: Callable[["Collector"], object], timeout_s: float = 10.0) -> None:
        """Returns when it has been told enough."""
        ends_s = time.monotonic() + timeout_s
        while not holds(self):
            assert time.monotonic() < ends_s, f"only {self.spans}"
            await asyncio.sleep(0.02)


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
