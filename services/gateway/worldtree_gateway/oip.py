"""The Open Inference Protocol v2 over gRPC (KServe, Triton): `inference.GRPCInferenceService`, on the gateway's port.

So what speaks to Triton speaks to the worlds, networks and judges behind the gateway as it is. docs/oip.md tells what
each model takes and gives.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.rpc import code_pb2  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import Unavailable, Unimplemented, WorldtreeError
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.status import is_known, to_status

from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.identity import current_caller
from worldtree_gateway.json_thread import JsonThread
from worldtree_gateway.metadata import Context, clean
from worldtree_gateway.oip_calls import Asker, Calls
from worldtree_gateway.oip_catalog import Catalog
from worldtree_gateway.oip_infer import Inference
from worldtree_gateway.oip_models import Model
from worldtree_gateway.oip_requests import FINAL
from worldtree_gateway.oip_sequences import Sequences
from worldtree_gateway.oip_sessions import Sessions
from worldtree_gateway.oip_statistics import Statistics
from worldtree_gateway.oip_steering import Steering
from worldtree_gateway.oip_stream import InferStream
from worldtree_gateway.oip_walks import Walks
from worldtree_gateway.shares import to_shares

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

SERVICE_NAME = "inference.GRPCInferenceService"
EXTENSIONS = (
    "classification",
    "sequence",
    "sequence(string_id)",
    "model_repository",
    "model_configuration",
    "statistics",
    "parameters",
)
_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_STATUS_OF_ERRORS = "triton_grpc_error"  # a caller's metadata: an error ends the stream, with its status
_REAP_S = 0.5
_DRAIN_S = 5.0  # what calls under way get, at most
_CLOSE_SHARE, _CLOSE_MIN_S = 0.9, 1.0  # of a gateway's drain: all of the end here, so that its server ends in time too
_LEASE_S = 60.0  # of a sequence's session, beyond what a sequence may wait: it is deleted before

_log = logging.getLogger(__name__)


class InferenceEndpoint:
    """`handlers` belong to the server; they answer UNAVAILABLE until `serving` has been entered, and after it.

    `sections`: the services that there are. `ready`: whether each of them has a backend.
    """

    def __init__(self, settings: GatewaySettings, sections: Sequence[str], *, ready: Callable[[], bool]) -> None:
        self._settings = settings
        self._sections = tuple(sections)
        self._ready = ready
        self._sequences = Sequences(limit=settings.oip_sequences, idle_s=settings.oip_sequence_idle_s)
        self._statistics = Statistics()
        self._served: _Served | None = None
        self._streams: set[InferStream[pb.ModelInferRequest, pb.ModelStreamInferResponse]] = set()
        self._running_count = 0
        self._idle = asyncio.Event()

    @property
    def sequence_count(self) -> int:
        """Sequences that are open, each with a session of its own."""
        return len(self._sequences)

    @property
    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(SERVICE_NAME, dict(self._handlers()))

    @asynccontextmanager
    async def serving(self, target: str) -> AsyncIterator[None]:
        """`target`: the gateway's gRPC server. At the end streams end with what they have under way, and the sessions
        of all sequences are given back.
        """
        options = (
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.max_send_message_length", self._settings.max_message_bytes),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
        )
        async with AsyncExitStack() as stack:
            channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(2)]
            for channel in channels:
                await stack.enter_async_context(channel)
            calls = Calls(*channels)
            thread = JsonThread()
            stack.callback(thread.close)
            catalog = Catalog(
                calls, self._sections, hold_s=self._settings.digest_ttl_s, timeout_s=self._settings.probe_timeout_s
            )
            sessions = Sessions(calls)
            walks = Walks(
                calls,
                sessions,
                lease_s=self._settings.oip_sequence_idle_s + _LEASE_S,
                message_bytes=self._settings.max_message_bytes,
                chosen_for=to_shares(self._settings.canary),
            )
            steering = Steering(
                calls, timeout_s=self._settings.openpi_timeout_s, limit=self._settings.max_connection_streams
            )
            inference = Inference(calls, catalog, self._sequences, walks, steering, self._statistics, thread)
            reaping = asyncio.create_task(_reap(inference), name="give up idle sequences")
            self._served = _Served(catalog, inference)
            try:
                yield
            finally:
                self._served = None
                reaping.cancel()
                await asyncio.wait([reaping])
                within_s = max(_CLOSE_MIN_S, _CLOSE_SHARE * self._settings.drain_timeout_s)
                ends_s = time.monotonic() + within_s
                await self._drain(min(_DRAIN_S, within_s / 2) if self._settings.drain_timeout_s else 0.0)
                await _close(inference, sessions, ends_s - time.monotonic())
                await catalog.close()

    def _handlers(self) -> Iterator[tuple[str, Handler]]:
        answers: dict[str, Callable[[Any, Context], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "ModelInfer": self._model_infer,
        }
        for method in _SERVICE.methods:
            decode = message_factory.GetMessageClass(method.input_type).FromString
            encode = message_factory.GetMessageClass(method.output_type).SerializeToString
            if method.client_streaming:
                yield method.name, grpc.stream_stream_rpc_method_handler(self._model_stream_infer, decode, encode)
            else:
                answer = answers.get(method.name) or _refusal(method.name)
                yield method.name, grpc.unary_unary_rpc_method_handler(answer, decode, encode)

    async def _server_live(self, request: Any, context: Context) -> Any:  # noqa: ARG002
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:  # noqa: ARG002
        return pb.ServerReadyResponse(ready=self._served is not None and self._ready())

    async def _model_ready(self, request: Any, context: Context) -> Any:
        try:
            await self._serving_now().catalog.find(request.name, request.version, Asker.of(context))
        except WorldtreeError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(self, request: Any, context: Context) -> Any:  # noqa: ARG002
        return pb.ServerMetadataResponse(name="worldtree", version=version("worldtree-server"), extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        model = await self._serving_now().catalog.find(request.name, request.version, Asker.of(context))
        return model.metadata()

    async def _model_config(self, request: Any, context: Context) -> Any:
        model = await self._serving_now().catalog.find(request.name, request.version, Asker.of(context))
        return pb.ModelConfigResponse(config=model.config(idle_s=self._sequences.idle_s))

    async def _model_statistics(self, request: Any, context: Context) -> Any:
        catalog, asker = self._serving_now().catalog, Asker.of(context)
        models: list[Model]
        if request.name:
            models = [await catalog.find(request.name, request.version, asker)]
        else:
            models = [each for listed in (await catalog.listed(asker)).values() for each in listed.models]
        return self._statistics.response(models)

    async def _repository_index(self, request: Any, context: Context) -> Any:
        response = pb.RepositoryIndexResponse()
        for listed in (await self._serving_now().catalog.listed(Asker.of(context))).values():
            for each in listed.models:
                if not (request.ready and listed.reason):
                    state = "UNAVAILABLE" if listed.reason else "READY"
                    response.models.add(name=each.name, version=each.version, state=state, reason=listed.reason)
        return response

    async def _model_infer(self, request: pb.ModelInferRequest, context: Context) -> Any:
        with self._running():
            served = self._serving_now()
            asker = Asker.of(context)
            try:
                answers = served.inference.answers(
                    request, asker, owner=current_caller().tenant, call=context, stream=False
                )
                (answer,) = [each async for each in answers]  # to its end, where it is counted
                return answer
            except grpc.aio.AioRpcError as error:
                trailers = clean(error.trailing_metadata() or ())
                await context.abort(error.code(), error.details() or "", trailers)

    async def _model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        inference = self._serving_now().inference
        asker = Asker.of(context)
        owner = current_caller().tenant
        strict = (_STATUS_OF_ERRORS, "true") in (context.invocation_metadata() or ())

        async def answer(request: pb.ModelInferRequest) -> AsyncGenerator[pb.ModelStreamInferResponse]:
            try:
                async with aclosing(
                    inference.answers(request, asker, owner=owner, call=context, stream=True)
                ) as answers:
                    async for response in answers:
                        yield pb.ModelStreamInferResponse(infer_response=response)
            except Exception as error:
                if strict:
                    raise
                yield _failure(request, error)

        stream = InferStream(
            answer,
            limit=self._settings.oip_stream_requests,
            limit_bytes=self._settings.max_message_bytes,
            size_of=pb.ModelInferRequest.ByteSize,
        )
        self._streams.add(stream)
        try:
            with self._running():
                async with aclosing(stream.responses(requests)) as responses:
                    async for response in responses:
                        yield response
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", clean(error.trailing_metadata() or ()))
        finally:
            self._streams.discard(stream)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """A call that has to end before sessions are given back at a stop."""
        self._running_count += 1
        try:
            yield
        finally:
            self._running_count -= 1
            if not self._running_count:
                self._idle.set()

    async def _drain(self, within_s: float) -> None:
        for stream in self._streams:
            stream.drain()
        try:
            async with asyncio.timeout(within_s):
                while self._running_count:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            _log.warning("%d calls still infer; their server ends them", self._running_count)

    def _serving_now(self) -> "_Served":
        if self._served is None:
            raise Unavailable("NOT_SERVING", "the gateway starts, or is about to stop", retry_after_s=1.0)
        return self._served


class _Served:
    """What there is while the endpoint serves."""

    def __init__(self, catalog: Catalog, inference: Inference) -> None:
        self.catalog = catalog
        self.inference = inference


async def _close(inference: Inference, sessions: Sessions, within_s: float) -> None:
    """Gives back what sequences hold."""
    try:
        async with asyncio.timeout(within_s):
            await inference.give_up_all()
            await sessions.close()
    except TimeoutError:
        _log.warning("not all sessions of sequences could be deleted; their leases will end them")


async def _reap(inference: Inference) -> None:
    while True:
        await asyncio.sleep(_REAP_S)
        try:
            await inference.give_up_idle()
        except Exception:
            _log.exception("idle sequences could not be given up")


def _refusal(name: str) -> Callable[[Any, Context], Awaitable[Any]]:
    """For what Triton offers, and this server does not."""

    async def refuse(request: Any, context: Context) -> Any:  # noqa: ARG001
        if "SharedMemory" in name:
            raise Unimplemented("SHARED_MEMORY", f"{name}: this server reads and writes no shared memory; send tensors")
        if name.startswith("RepositoryModel"):
            raise Unimplemented(
                "REPOSITORY_CONTROL",
                f"{name}: models are loaded and let go as their packages come to the repository and leave it",
            )
        raise Unimplemented("METHOD_NOT_OFFERED", f"{name} is not offered here; /metrics and the log are elsewhere")

    return refuse


def _failure(request: pb.ModelInferRequest, error: Exception) -> pb.ModelStreamInferResponse:
    """Why there is no answer, in a message: the stream goes on."""
    if isinstance(error, grpc.aio.AioRpcError):
        text = f"{error.code().name}: {error.details()}"
    else:
        if not is_known(error):
            _log.error("a request of a stream failed by a bug", exc_info=error, extra={"model": request.model_name})
        status = to_status(error, request_id=current_request_id() or "")
        text = f"{code_pb2.Code.Name(status.code)}: {status.message}"
    response = pb.ModelStreamInferResponse(error_message=text)
    told = response.infer_response
    told.id, told.model_name, told.model_version = request.id, request.model_name, request.model_version
    told.parameters[FINAL].bool_param = True
    return response
