"""RPCs as JSON over HTTP, for whoever has no gRPC: POST /v1/SECTION/METHOD with the request as JSON.

JSON is that of Protocol Buffers. A unary RPC answers with its response; a server stream with a line for each message,
`{"result": ...}`, as it comes. What fails is a google.rpc.Status; in the middle of a stream, on a last line
`{"error": ...}`. What the trailers say of cost and cache is in headers, after a stream in HTTP's own trailers.
"""

import difflib
import json
import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from worldtree_runtime.errors import InvalidRequest, NotFound, Unimplemented, WorldtreeError
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.status import to_status

from worldtree_gateway.domain import Service
from worldtree_gateway.http_calls import http_status, metadata_of
from worldtree_gateway.http_door import HttpDoor
from worldtree_gateway.http_server import HttpRequest, HttpResponse
from worldtree_gateway.json_thread import JsonThread
from worldtree_gateway.relay import receive
from worldtree_gateway.verdicts import status_of

PREFIX = "/v1/"
_OURS = "worldtree-"  # how the names of metadata begin that callers may want
_JSON = "application/json"
_LINES = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class _Rpc:
    path: str
    descriptor: MethodDescriptor

    @property
    def request_class(self) -> type[Message]:
        return message_factory.GetMessageClass(self.descriptor.input_type)

    def plain(self, response: bytes) -> dict[str, Any]:
        """A response as JSON has it, also what is 0 or empty."""
        message = message_factory.GetMessageClass(self.descriptor.output_type).FromString(response)
        return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


class Transcoder:
    """`channel`: to the gateway's own gRPC server. `body_bytes`: of one request. `timeout_s`: for one unary call."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        services: Sequence[Service],
        door: HttpDoor,
        thread: JsonThread,
        *,
        body_bytes: int,
        timeout_s: float,
    ) -> None:
        self._channel: Any = channel  # of bytes both ways, which its types do not know
        self._door, self._thread = door, thread
        self._body_bytes = body_bytes
        self._timeout_s = timeout_s
        self._rpcs = {
            f"{PREFIX}{service.section}/{method.name}": _Rpc(f"/{service.full_name}/{method.name}", method)
            for service in services
            for method in service.descriptor.methods
        }

    async def admit(self, request: HttpRequest) -> int | HttpResponse:
        """How many bytes the body may have, of a head whose RPC and whose caller are known; else what is wrong."""
        try:
            rpc = self._rpc(request.path)
            if request.method != "POST":
                wrong = Unimplemented("NOT_POST", f"{request.path[:200]} takes POST, got {request.method[:20]}")
                return _refused(to_status(wrong, request_id=""), 405, {"Allow": "POST"})
            await self._door.admit(request, rpc.path)
            _check_encoding(request)
        except WorldtreeError as error:
            return _refused(to_status(error, request_id=""))
        return self._body_bytes

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Of a request that was admitted. Whatever is wrong is told as a google.rpc.Status, with the HTTP status that
        fits.
        """
        try:
            rpc, metadata = self._rpc(request.path), metadata_of(request)
            message = await self._thread.run(_read, request.body, rpc.request_class)
            if rpc.descriptor.server_streaming:
                return await self._stream(rpc, message, metadata)
            return await self._unary(rpc, message, metadata)
        except grpc.aio.AioRpcError as error:
            return _refused(status_of(error), headers=_told(error.initial_metadata(), error.trailing_metadata()))
        except WorldtreeError as error:
            return _refused(to_status(error, request_id=""))

    def _rpc(self, path: str) -> _Rpc:
        rpc = self._rpcs.get(path.rstrip("/"))
        if rpc is None:
            close = difflib.get_close_matches(path, self._rpcs, n=3)
            raise NotFound("RPC", path[:200], known=close or sorted({each.rpartition("/")[0] for each in self._rpcs}))
        if rpc.descriptor.client_streaming:
            raise Unimplemented("STREAM_BOTH_WAYS", f"{rpc.path} is a stream of requests, which goes by gRPC only")
        return rpc

    async def _unary(self, rpc: _Rpc, message: bytes, metadata: Any) -> HttpResponse:
        call = self._channel.unary_unary(rpc.path)(message, metadata=metadata, timeout=self._timeout_s)
        body = _json(rpc.plain(await call))
        headers = _told(await call.initial_metadata(), await call.trailing_metadata())
        return HttpResponse(200, (body,), {"Content-Type": _JSON, **headers})

    async def _stream(self, rpc: _Rpc, message: bytes, metadata: Any) -> HttpResponse:
        """Its status is known with its first message."""
        call = self._channel.unary_stream(rpc.path)(message, metadata=metadata)
        first, trailers = await receive(call), dict[str, str]()

        async def lines() -> AsyncGenerator[bytes, None]:
            response = first
            try:
                while response is not None:
                    yield _json({"result": rpc.plain(response)}) + b"\n"
                    response = await receive(call)
                trailers.update(_told(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                yield _json({"error": _plain_status(status_of(error))}) + b"\n"
                trailers.update(_told(error.trailing_metadata()))
            finally:
                call.cancel()

        headers = {"Content-Type": _LINES, **_told(await call.initial_metadata())}
        return HttpResponse(200, headers=headers, stream=lines(), trailers=trailers)


def _check_encoding(request: HttpRequest) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise InvalidRequest("headers[content-encoding]", f"Content-Encoding must be identity, got {encoding[:40]}")


def _read(body: bytes, kind: type[Message]) -> bytes:
    try:
        return json_format.Parse(body.strip() or b"{}", kind()).SerializeToString()
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        expected = f"the body must be a {kind.DESCRIPTOR.full_name} as JSON: {' '.join(str(error).split())[:300]}"
        raise InvalidRequest("body", expected, reason="NOT_JSON") from error


def _told(*metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Of what the server says beside its messages, what callers may want, as headers."""
    return {
        name: value
        for each in metadata
        for name, value in each or ()
        if isinstance(value, str) and (name.startswith(_OURS) or name == REQUEST_ID_KEY)
    }


def _plain_status(status: Any) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(status)
    except (TypeError, json_format.SerializeToJsonError):  # details of a kind that no proto here knows
        return {"code": status.code, "message": status.message}


def _refused(status: Any, http: int | None = None, headers: dict[str, str] | None = None) -> HttpResponse:
    told = {"Content-Type": _JSON, **(headers or {})}
    retry = error_details_pb2.RetryInfo()
    if any(detail.Unpack(retry) for detail in status.details):
        told["Retry-After"] = str(math.ceil(retry.retry_delay.ToMilliseconds() / 1000))
    return HttpResponse(http or http_status(status.code), (_json(_plain_status(status)),), told)


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
