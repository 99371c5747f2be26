"""The REST side of the inference protocol: each request is one to its gRPC side, through the gateway's own server."""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.status import to_status

from worldtree_gateway.http_calls import http_status, metadata_of
from worldtree_gateway.http_door import HttpDoor
from worldtree_gateway.http_server import HttpRequest, HttpResponse
from worldtree_gateway.json_thread import JsonThread
from worldtree_gateway.oip_json import LENGTH_HEADER, plain, read_infer, read_length, read_object, to_json
from worldtree_gateway.oip_requests import JSON_BYTES

_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<what>infer|ready|config|stats))?"
)
_INFER = "/v2/models/*/infer"
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})  # to all, as by gRPC


class Rest:
    """`stub`: of the gRPC side. `json_bytes`: of the JSON of one request or inference answer; `message_bytes`: of a
    request with tensors in binary. `timeout_s`: for one request.
    """

    def __init__(
        self, stub: Any, door: HttpDoor, thread: JsonThread, *, json_bytes: int, message_bytes: int, timeout_s: float
    ) -> None:
        self._stub = stub
        self._door, self._thread = door, thread
        self._json_bytes, self._message_bytes = json_bytes, message_bytes
        self._timeout_s = timeout_s

    async def admit(self, request: HttpRequest) -> int | HttpResponse:
        """How many bytes the body may have, of a head whose place and whose caller are known; else what is wrong."""
        path, _ = _place(request)
        route = self._routes.get(path)
        if route is None:
            return error_response(404, f"nothing is at {request.path[:200]}; see docs/oip.md")
        method, _ = route
        if request.method not in (method, "HEAD" if method == "GET" else method):
            return error_response(405, f"{request.path[:200]} takes {method}, got {request.method[:20]}", Allow=method)
        if path not in _OPEN:
            try:
                await self._door.admit(request, path)
            except WorldtreeError as error:
                return _refusal(error)
        said = request.headers.get(LENGTH_HEADER.lower())
        if path != _INFER or said is None:
            return self._json_bytes
        try:
            length = read_length(said)
        except WorldtreeError as error:
            return _refusal(error)
        if length > self._json_bytes:
            return error_response(413, f"a request must have {self._json_bytes} bytes of JSON at most, got {length}")
        return self._message_bytes

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Of a request that was admitted. Whatever is wrong is told as `{"error": ...}` with the HTTP status that
        fits.
        """
        path, names = _place(request)
        _, answer = self._routes[path]
        try:
            response = await answer(self, request, names)
        except grpc.aio.AioRpcError as error:
            return error_response(http_status(error.code()), error.details() or error.code().name)
        except WorldtreeError as error:
            return _refusal(error)
        return HttpResponse(response.status, (), response.headers) if request.method == "HEAD" else response

    async def _live(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:  # noqa: ARG002
        answer = await self._ask(self._stub.ServerLive, pb.ServerLiveRequest(), request)
        return _state("live", answer.live)

    async def _ready(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:  # noqa: ARG002
        answer = await self._ask(self._stub.ServerReady, pb.ServerReadyRequest(), request)
        return _state("ready", answer.ready)

    async def _model_ready(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:
        answer = await self._ask(self._stub.ModelReady, pb.ModelReadyRequest(**names), request)
        return _state("ready", answer.ready)

    async def _server(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:  # noqa: ARG002
        answer = await self._ask(self._stub.ServerMetadata, pb.ServerMetadataRequest(), request)
        return _json({**plain(answer), "extensions": [*answer.extensions, "binary_tensor_data"]})

    async def _metadata(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:
        answer = await self._ask(self._stub.ModelMetadata, pb.ModelMetadataRequest(**names), request)
        return _json(plain(answer, defaults=True))

    async def _config(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:
        answer = await self._ask(self._stub.ModelConfig, pb.ModelConfigRequest(**names), request)
        return _json({"max_batch_size": 0, **plain(answer.config)})

    async def _statistics(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:
        answer = await self._ask(self._stub.ModelStatistics, pb.ModelStatisticsRequest(**names), request)
        return _json(plain(answer, defaults=True))

    async def _index(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:  # noqa: ARG002
        ready = bool((await self._thread.run(read_object, request.body)).get("ready", False))
        answer = await self._ask(self._stub.RepositoryIndex, pb.RepositoryIndexRequest(ready=ready), request)
        return _json([plain(each) for each in answer.models])

    async def _infer(self, request: HttpRequest, names: Mapping[str, str]) -> HttpResponse:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            return error_response(415, f"Content-Encoding must be identity, got {encoding[:40]}")
        length = request.headers.get(LENGTH_HEADER.lower())
        message, form = await self._thread.run(read_infer, request.body, length)
        message.model_name, message.model_version = names["name"], names["version"]
        if not form.is_binary("frames"):
            message.parameters[JSON_BYTES].int64_param = self._json_bytes  # so that it is refused before it is made
        answer = await self._ask(self._stub.ModelInfer, message, request)
        made = partial(form.body, answer, limit_bytes=self._json_bytes)
        return HttpResponse(200, *await self._thread.work(made, form.json_bytes(answer)))

    async def _ask(self, call: Any, message: Any, request: HttpRequest) -> Any:
        return await call(message, metadata=metadata_of(request), timeout=self._timeout_s)

    _routes: Mapping[str, tuple[str, Callable[["Rest", HttpRequest, Mapping[str, str]], Awaitable[HttpResponse]]]] = {
        "/v2": ("GET", _server),
        "/v2/health/live": ("GET", _live),
        "/v2/health/ready": ("GET", _ready),
        "/v2/models/stats": ("GET", _statistics),
        "/v2/models/*": ("GET", _metadata),
        "/v2/models/*/ready": ("GET", _model_ready),
        "/v2/models/*/config": ("GET", _config),
        "/v2/models/*/stats": ("GET", _statistics),
        _INFER: ("POST", _infer),
        "/v2/repository/index": ("POST", _index),
    }


def _place(request: HttpRequest) -> tuple[str, dict[str, str]]:
    """The path as `_routes` may have it, and the names in it."""
    path = request.path.rstrip("/")
    found = None if path == "/v2/models/stats" else _MODEL.fullmatch(path)
    if found is None:
        return path, {}
    names = {"name": unquote(found["name"]), "version": unquote(found["version"] or "")}
    return f"/v2/models/*/{found['what']}" if found["what"] else "/v2/models/*", names


def _refusal(error: WorldtreeError) -> HttpResponse:
    return error_response(http_status(to_status(error, request_id="").code), error.message)


def _json(document: Any, status: int = 200, **headers: str) -> HttpResponse:
    return HttpResponse(status, (to_json(document),), {"Content-Type": "application/json", **headers})


def _state(name: str, holds: bool) -> HttpResponse:
    return _json({name: holds}, 200 if holds else 503)


def error_response(status: int, message: str, **headers: str) -> HttpResponse:
    """As the protocol tells what is wrong."""
    return _json({"error": message}, status, **headers)
