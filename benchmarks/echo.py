"""Servers that answer at once, to measure what stands before them. Run by `gateway.py` as processes of their own.

`plain`: grpc.aio and nothing else, which is the most that a server in Python can do here. `told`: the same with what
every answer of a gateway has: an interceptor, and two trailers. `video`: a backend that the
gateway takes for a replica of the video service; it looks at no request. `bare ADDRESS`: passes on the bytes of unary
calls and does nothing else, which is the most that a gateway made with grpc.aio can do.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.server import start_server
from worldtree_runtime.settings import ServiceSettings

SERVICE = "worldtree.video.v1.VideoGenerator"
REPLICA = "echo"
LARGE_BYTES = 1 << 20
SMALL = pb.KeepAliveResponse().SerializeToString() or b"\x08\x01"
CHUNK = pb.GenerateResponse(chunk_count=1).SerializeToString()
MODEL = pb.Model(ref=common.ModelRef(name="echo", version="1", digest="d" * 64))


def large() -> bytes:
    """A reply of a megabyte, as frames are."""
    tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=(1, 512, 512, 4), data=bytes(LARGE_BYTES))
    return pb.GetResponse(last_frame=common.Frames(tensor=tensor)).SerializeToString()


class Echo:
    """Each method as bytes in and bytes out."""

    def __init__(self) -> None:
        self._large, self._model = large(), pb.GetModelResponse(model=MODEL).SerializeToString()
        self._begun = pb.PlayResponse(
            begun=pb.PlayResponse.Begun(session=pb.Session(session=f"s.{REPLICA}"))
        ).SerializeToString()

    def handlers(self) -> dict[str, Any]:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return {
            "ListModels": unary(self._list),
            "GetModel": unary(self._get_model),
            "KeepAlive": unary(self._keep_alive),
            "Get": unary(self._get),
            "Generate": stream(self._generate),
            "Play": grpc.stream_stream_rpc_method_handler(self._play),
        }

    async def _list(self, _: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("worldtree-replica", REPLICA),))
        return pb.ListModelsResponse(models=[MODEL]).SerializeToString()

    async def _get_model(self, _: bytes, context: Any) -> bytes:  # noqa: ARG002
        return self._model

    async def _keep_alive(self, _: bytes, context: Any) -> bytes:  # noqa: ARG002
        return SMALL

    async def _get(self, _: bytes, context: Any) -> bytes:  # noqa: ARG002
        return self._large

    async def _generate(self, _: bytes, context: Any) -> AsyncIterator[bytes]:  # noqa: ARG002
        yield CHUNK

    async def _play(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:  # noqa: ARG002
        async for _ in requests:
            yield self._begun

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self.handlers()),))
        return [SERVICE]


class Bare(grpc.GenericRpcHandler):
    """Whatever unary method it is."""

    def __init__(self, behind: grpc.aio.Channel) -> None:
        self._behind = behind
        self._handlers: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if method not in self._handlers:
            call: Any = self._behind.unary_unary(method)

            async def forward(request: bytes, context: Any) -> bytes:  # noqa: ARG001
                answer: bytes = await call(request)
                return answer

            self._handlers[method] = grpc.unary_unary_rpc_method_handler(forward)
        return self._handlers[method]


class Told(Echo):
    """Says with its answer whose it is and where it is from."""

    async def _get_model(self, _: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-request-id", "0" * 36), ("worldtree-cache", "hit")))
        return self._model


class Passing(grpc.aio.ServerInterceptor):
    """Does nothing."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return await continuation(handler_call_details)


async def serve_bytes(
    handlers: grpc.GenericRpcHandler, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> None:
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def serve_plain() -> None:
    await serve_bytes(grpc.method_handlers_generic_handler(SERVICE, Echo().handlers()))


async def serve_told() -> None:
    await serve_bytes(grpc.method_handlers_generic_handler(SERVICE, Told().handlers()), [Passing()])


async def serve_bare(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as behind:
        await serve_bytes(Bare(behind))


async def serve_video() -> None:
    settings = ServiceSettings(replica=REPLICA, port=0, metrics_port=0)
    async with start_server(settings, service="video", register=Echo().register) as running:
        print(f"ready grpc={running.address}", flush=True)
        await running.wait_closed()


if __name__ == "__main__":
    kinds: dict[str, Any] = {"plain": serve_plain, "told": serve_told, "video": serve_video, "bare": serve_bare}
    asyncio.run(kinds[sys.argv[1]](*sys.argv[2:]))
