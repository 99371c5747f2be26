"""A video backend without a model: its frames are hashes of what was asked. It counts its calls and can be told to
fail, hang or talk at length by an action's instruction. Run as a script, it is a process that a test may kill.
"""

import argparse
import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2_grpc
from worldtree_runtime.errors import Aborted, Exhausted, NotFound, Unavailable
from worldtree_runtime.server import start_server
from worldtree_runtime.settings import ServiceSettings

SERVICE = "worldtree.video.v1.VideoGenerator"


def frames_of(*parts: object, byte_count: int = 64) -> common_pb2.Frames:
    """Deterministic pixels."""
    seed = hashlib.sha256(repr(parts).encode()).digest()
    data = (seed * (byte_count // len(seed) + 1))[:byte_count]
    tensor = common_pb2.Tensor(dtype=common_pb2.Tensor.D_TYPE_UINT8, shape=(1, 1, byte_count, 1), data=data)
    return common_pb2.Frames(tensor=tensor)


class EchoBackend(video_generator_pb2_grpc.VideoGeneratorServicer):
    """`hold` keeps each "hold" back until it is set. `digest` is its model's; assigning it is a new version.

    `cost_of_chunk`: function evaluations of its one frame. While it is `loading` it refuses everything,
    and while it is `hanging` it answers nothing that comes without a session. `full`: why it opens no session.
    """

    def __init__(self, replica: str = "a", *, port: int = 0, drain_timeout_s: float = 0.0) -> None:
        self.replica = replica
        self.cost_of_chunk = 2
        self.loading = self.hanging = False
        self.full = ""
        self.digest = "d" * 64
        self.calls: Counter[str] = Counter()
        self.begun: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.cancelled: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.ended_requests = 0
        self.deadlines_s: list[float | None] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.hold = asyncio.Event()
        self.session_count = 0
        self._settings = ServiceSettings(replica=replica, port=port, metrics_port=0, drain_timeout_s=drain_timeout_s)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "EchoBackend":
        starting = start_server(
            self._settings, service="video", register=self.register, held=lambda: self.session_count
        )
        self.running = await self._stack.enter_async_context(starting)
        self.address = self.running.address
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        video_generator_pb2_grpc.add_VideoGeneratorServicer_to_server(self, server)
        raw = {"Upload": grpc.stream_unary_rpc_method_handler(self._upload)}  # a method that no proto here knows
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, raw),))
        return [SERVICE]

    def _note(self, name: str, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        if "worldtree-rehome" in metadata:
            raise NotFound("session", str(metadata["worldtree-rehome"]))  # it has no journal to take a session from
        self.calls[name] += 1
        self.begun[name].set()
        self.deadlines_s.append(context.time_remaining())
        self.metadata.append(metadata)
        if self.loading:
            raise Unavailable("MODEL_LOADING", "the model is loading", retry_after_s=7)

    async def _obey(self, name: str, action: pb.Action, context: Any) -> None:
        try:
            match action.instruction.split(":"):
                case ["hold"]:
                    await self.hold.wait()
                case ["sleep", seconds]:
                    await asyncio.sleep(float(seconds))
                case ["busy"]:
                    raise Aborted("SESSION_BUSY", "another Step runs", session="s", step=3)
                case ["full"]:
                    raise Exhausted("POOL_FULL", "0 of 9 blocks are free", retry_after_s=1.5, subject="pool", free=0)
                case ["bug"]:
                    raise RuntimeError("a bug")
                case ["spent", frames]:
                    context.set_trailing_metadata((("worldtree-cost", frames),))
                    raise Aborted("SESSION_BUSY", "another Step runs", session="s", step=3)
                case ["down"]:
                    raise Unavailable("MODEL_LOADING", "the model is loading", retry_after_s=7)
                case ["plain"]:
                    await context.abort(grpc.StatusCode.DATA_LOSS, "plain text only", (("extra-bin", b"\x00\xff"),))
        except asyncio.CancelledError:
            self.cancelled[name] += 1
            raise

    async def _hang(self, name: str) -> None:
        try:
            while self.hanging:  # noqa: ASYNC110 - tests assign it
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled[name] += 1
            raise
        if self.loading:
            raise Unavailable("MODEL_LOADING", "the model is loading", retry_after_s=7)

    def _model(self) -> pb.Model:
        return pb.Model(ref=common_pb2.ModelRef(name="echo", version="1", digest=self.digest), nfe_default=2)

    def _check_model(self, ref: common_pb2.ModelRef) -> None:
        if ref.name != "echo" or ref.digest not in ("", self.digest):
            raise NotFound("model", ref.name, known=["echo"])

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        self._note("ListModels", context)
        await context.send_initial_metadata((("worldtree-replica", self.replica),))
        return pb.ListModelsResponse(models=[self._model()])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self._note("GetModel", context)
        await self._hang("GetModel")
        self._check_model(request.model)
        return pb.GetModelResponse(model=self._model())

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.CreateSessionResponse:
        self._note("CreateSession", context)
        await self._hang("CreateSession")
        if self.full:
            raise Exhausted(self.full, "there is no room", retry_after_s=1.5)
        self.session_count += 1
        return pb.CreateSessionResponse(session=pb.Session(session=f"s{self.session_count}.{self.replica}"))

    async def Restore(self, request: pb.RestoreRequest, context: Any) -> pb.RestoreResponse:
        self._note("Restore", context)
        return pb.RestoreResponse(session=pb.Session(session=f"r.{self.replica}"))

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:
        self._note("Get", context)
        return pb.GetResponse(session=pb.Session(session=request.session, start=self.replica))

    async def Step(self, request: pb.StepRequest, context: Any) -> pb.StepResponse:
        self._note("Step", context)
        for action in request.actions:
            await self._obey("Step", action, context)
        await context.send_initial_metadata(
            (("worldtree-replica", self.replica), ("x-head", "1"), ("x-head-bin", b"\x00\x01"))
        )
        cost = sum(int(each.instruction[5:]) for each in request.actions if each.instruction.startswith("cost:"))
        context.set_trailing_metadata((("x-tail", "2"), ("x-tail-bin", b"\xff\x00"), ("worldtree-cost", str(cost))))
        chunks = [
            pb.Chunk(index=index, action=action, frames=frames_of(request.session, index, action))
            for index, action in enumerate(request.actions)
        ]
        return pb.StepResponse(chunks=chunks, chunk_index=len(chunks))

    async def Rollout(self, request: pb.RolloutRequest, context: Any) -> AsyncIterator[pb.RolloutResponse]:
        self._note("Rollout", context)
        for index, sequence in enumerate(request.sequences):
            for action in sequence.actions:
                await self._obey("Rollout", action, context)
                yield pb.RolloutResponse(chunk=pb.Chunk(action=action, frames=frames_of(action)), sequences=[index])
                self.written["Rollout"] += 1
        context.set_trailing_metadata((("x-tail", "3"),))

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        self._note("Generate", context)
        self._check_model(request.model)
        if request.origin.start == "nowhere":
            raise NotFound("start", request.origin.start, known=["here"])
        yield pb.GenerateResponse(start_frames=frames_of("start", request.seed), chunk_count=len(request.actions))
        for index, action in enumerate(request.actions):
            await self._obey("Generate", action, context)
            kind, _, size = action.instruction.partition(":")
            frames = frames_of(self.digest, request.seed, index, action, byte_count=int(size) if kind == "size" else 64)
            timing = common_pb2.Timing(nfe=self.cost_of_chunk)
            yield pb.GenerateResponse(chunk=pb.Chunk(index=index, action=action, frames=frames, timing=timing))
            self.written["Generate"] += 1
        context.set_trailing_metadata((("worldtree-cost", str(len(request.actions) * self.cost_of_chunk)),))

    async def Play(self, requests: AsyncIterator[pb.PlayRequest], context: Any) -> AsyncIterator[pb.PlayResponse]:
        self._note("Play", context)
        try:
            async for request in requests:
                if request.HasField("begin"):
                    yield pb.PlayResponse(begun=pb.PlayResponse.Begun(session=pb.Session(session=request.session)))
                for action in (*request.begin.actions, *request.act.actions):
                    await self._obey("Play", action, context)
                    timing = common_pb2.Timing(nfe=self.cost_of_chunk)
                    chunk = pb.Chunk(action=action, frames=frames_of(action), timing=timing)
                    yield pb.PlayResponse(played=pb.PlayResponse.Played(chunk=chunk))
                    self.written["Play"] += 1
            self.ended_requests += 1
        finally:
            self.closed["Play"] += 1

    async def _upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self._note("Upload", context)
        try:
            total = b"".join([request async for request in requests])
            # grpc.aio ends the requests of a cancelled call as if they were complete; the cancellation comes later
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.cancelled["Upload"] += 1
            raise
        self.ended_requests += 1
        return hashlib.sha256(total).digest()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replica", required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    async with EchoBackend(arguments.replica, port=arguments.port) as backend:
        print(backend.address, flush=True)
        await backend.running.wait_closed()


if __name__ == "__main__":
    asyncio.run(_main())
