"""An echo server: a real grpc.aio server whose worlds are pure arithmetic, for the SDK's own tests.

A frame is drawn from its session's state hash, so every promise about identity can be checked without a model.
"""

import asyncio
import hashlib
import importlib.util
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry
from worldtree.common.v1 import common_pb2
from worldtree.multitask.v1 import multi_task_pb2_grpc
from worldtree.navigator.v1 import navigator_pb2_grpc
from worldtree.reward.v1 import reward_scorer_pb2_grpc
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2_grpc as pb_grpc
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.map_planning import MapPlanner
from worldtree_navigator.maze_catalog import load_mazes
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.peers import Peers
from worldtree_navigator.policies import Policies, load_policies
from worldtree_navigator.servicer import NavigatorServicer
from worldtree_reward.catalog import load_catalog
from worldtree_reward.config import RewardSettings
from worldtree_reward.metrics import RewardMetrics
from worldtree_reward.servicer import RewardServicer
from worldtree_runtime.testing_judges import TinyJudge


def _load(name: str) -> ModuleType:
    """A module beside this one: `tests` is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_echo_multitask = _load("echo_multitask")

SIDE_PX = 8
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


def frame_of(state_hash: str) -> np.ndarray:
    seed = int(state_hash[:16], 16)
    return np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)


def next_hash(state_hash: str, action: pb.Action, seed: int) -> str:
    return hashlib.sha256(f"{state_hash}{name_of(action)}{seed}".encode()).hexdigest()


def name_of(action: pb.Action) -> str:
    match action.WhichOneof("kind"):
        case "name":
            return action.name
        case "vector":
            return repr(list(action.vector.values))
        case _:
            return ACTIONS[action.id]


def frames_pb(*images: np.ndarray) -> common_pb2.Frames:
    pixels = np.stack(images)
    return common_pb2.Frames(
        tensor=common_pb2.Tensor(dtype=common_pb2.Tensor.D_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes())
    )


@dataclass
class Held:
    id: str
    hashes: list[str]
    seed: int
    nfe: int
    start: str
    kv: pb.KvPolicy
    parent: str = ""
    busy: bool = False
    journaled: bool = True
    rest: pb.Session.State.ValueType = pb.Session.STATE_IDLE

    @property
    def message(self) -> pb.Session:
        message = pb.Session(
            session=self.id,
            model=common_pb2.ModelRef(name="echo", version="1", digest="0" * 64),
            chunk_index=len(self.hashes) - 1,
            start_frame_count=1,
            seed=self.seed,
            nfe=self.nfe,
            kv=self.kv,
            state=pb.Session.STATE_BUSY if self.busy else self.rest,
            parent=self.parent,
            block_count=len(self.hashes),
            state_hash=self.hashes[-1],
            start=self.start,
            journaled=self.journaled,
        )
        message.expire_time.FromSeconds(int(time.time()) + 600)
        return message

    @property
    def last(self) -> common_pb2.Frames:
        return frames_pb(frame_of(self.hashes[-1]))

    def advance(self, action: pb.Action) -> pb.Chunk:
        self.hashes.append(next_hash(self.hashes[-1], action, self.seed))
        return chunk_of(len(self.hashes) - 2, action, self.hashes[-1])


def chunk_of(index: int, action: pb.Action, state_hash: str) -> pb.Chunk:
    chunk = pb.Chunk(index=index, action=action, frames=frames_pb(frame_of(state_hash)), state_hash=state_hash)
    chunk.timing.tick_count = 2
    chunk.timing.nfe = 2
    chunk.timing.denoise_duration.FromMilliseconds(3)
    return chunk


@dataclass
class Fault:
    status: status_pb2.Status | None
    code: grpc.StatusCode
    message: str
    times: int
    after_work: bool = False


class EchoServicer(pb_grpc.VideoGeneratorServicer):
    def __init__(self) -> None:
        self.sessions: dict[str, Held] = {}
        self.calls: Counter[str] = Counter()
        self.requests: dict[str, Any] = {}
        self.metadata: dict[str, dict[str, Any]] = {}
        self.time_remaining_s: dict[str, float | None] = {}
        self.ended: dict[str, threading.Event] = {"Play": threading.Event(), "Rollout": threading.Event()}
        self.end_reasons: dict[str, str] = {}
        self.faults: dict[str, Fault] = {}
        self.answers: dict[str, Any] = {}
        self.snapshots: dict[str, Held] = {}
        self.node_delay_s = 0.0
        self.page_size = 1000
        self.other_replicas: list[str] = []  # what a gateway would name beside this one
        self.fps_possible: float | None = None  # what admission holds possible; None: anything
        self.gone = ""  # of these, the one that does not answer
        self.rehomed_before: int | None = None  # index of the chunk before which a play says that it was re-homed
        self._ids = itertools.count()

    def fail(
        self,
        method: str,
        code: grpc.StatusCode,
        message: str = "broken on purpose",
        *,
        status: status_pb2.Status | None = None,
        times: int = 1000,
        after_work: bool = False,
    ) -> None:
        self.faults[method] = Fault(status, code, message, times, after_work)

    async def enter(self, method: str, request: Any, context: grpc.aio.ServicerContext) -> None:
        self.calls[method] += 1
        self.requests[method] = request
        self.metadata[method] = dict(context.invocation_metadata() or ())
        self.time_remaining_s[method] = context.time_remaining()
        fault = self.faults.get(method)
        if fault is not None and not fault.after_work:
            await self.break_down(method, context)

    async def leave(self, method: str, request: Any, context: grpc.aio.ServicerContext, answer: Any) -> Any:
        """The answer: the first one again for a repeated request_id; a fault may lose it on the way."""
        if request.request_id:
            answer = self.answers.setdefault(request.request_id, answer)
        if method in self.faults and self.faults[method].after_work:
            await self.break_down(method, context)
        return answer

    async def break_down(self, method: str, context: grpc.aio.ServicerContext) -> None:
        fault = self.faults[method]
        if fault.times <= 0:
            return
        fault.times -= 1
        trailers: list[tuple[str, str | bytes]] = [("x-request-id", "request-of-the-trailer")]
        if fault.status is not None:
            trailers.append(("grpc-status-details-bin", fault.status.SerializeToString()))
        context.set_trailing_metadata(tuple(trailers))
        await context.abort(fault.code, fault.message)

    async def held(self, session: str, context: grpc.aio.ServicerContext) -> Held:
        if session not in self.sessions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no session {session}")
        return self.sessions[session]

    def open(self, hashes: list[str], **rest: Any) -> Held:
        held = Held(id=f"s{next(self._ids)}.echo", hashes=hashes, **rest)
        self.sessions[held.id] = held
        return held

    async def ListModels(self, request, context):
        await self.enter("ListModels", request, context)
        return pb.ListModelsResponse(models=[echo_model()])

    async def GetModel(self, request, context):
        await self.enter("GetModel", request, context)
        return pb.GetModelResponse(model=echo_model())

    async def CreateSession(self, request, context):
        await self.enter("CreateSession", request, context)
        if request.request_id in self.answers:
            return self.answers[request.request_id]
        origin = hashlib.sha256(request.origin.SerializeToString() + bytes([request.seed % 256])).hexdigest()
        held = self.open([origin], seed=request.seed, nfe=request.nfe or 2, start=request.origin.start, kv=request.kv)
        return await self.leave(
            "CreateSession",
            request,
            context,
            pb.CreateSessionResponse(
                session=held.message, frames=held.last, warnings=unknown_words(request.origin.prompt)
            ),
        )

    async def Step(self, request, context):
        await self.enter("Step", request, context)
        held = await self.held(request.session, context)
        if request.request_id in self.answers:
            return self.answers[request.request_id]
        if held.busy:
            await context.abort(grpc.StatusCode.ABORTED, "busy")
        answer = pb.StepResponse(chunks=[held.advance(action) for action in request.actions])
        answer.chunk_index = len(held.hashes) - 1
        return await self.leave("Step", request, context, answer)

    async def Fork(self, request, context):
        await self.enter("Fork", request, context)
        held = await self.held(request.session, context)
        if request.request_id in self.answers:
            return self.answers[request.request_id]
        answer = pb.ForkResponse(sessions=self.fork(held, request.count or 1, list(request.seeds)))
        return await self.leave("Fork", request, context, answer)

    def fork(self, held: Held, count: int, seeds: list[int]) -> list[pb.Session]:
        return [
            self.open(
                list(held.hashes),
                seed=seeds[index] if seeds else held.seed,
                nfe=held.nfe,
                start=held.start,
                kv=held.kv,
                parent=held.id,
            ).message
            for index in range(count)
        ]

    async def Rewind(self, request, context):
        await self.enter("Rewind", request, context)
        held = await self.held(request.session, context)
        index = len(held.hashes) - 1
        if request.HasField("expected_chunk_index") and request.expected_chunk_index != index:
            await context.abort(grpc.StatusCode.ABORTED, f"at {index}, not {request.expected_chunk_index}")
        if not 1 <= request.chunk_count <= index:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"chunk_count must be 1 to {index}")
        del held.hashes[-request.chunk_count :]
        return pb.RewindResponse(session=held.message, last_frame=held.last)

    async def Save(self, request, context):
        await self.enter("Save", request, context)
        held = await self.held(request.session, context)
        name = f"snapshot-{len(self.snapshots)}"
        self.snapshots[name] = replace(held, hashes=list(held.hashes))
        data = name.encode()
        return pb.SaveResponse(
            snapshot=name,
            data=data if request.include_data else b"",
            size_bytes=len(data),
            state_hash=held.hashes[-1],
        )

    async def Restore(self, request, context):
        await self.enter("Restore", request, context)
        if request.request_id in self.answers:
            return self.answers[request.request_id]
        saved = self.snapshots.get(request.snapshot or request.data.decode())
        if saved is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such snapshot")
        held = self.open(list(saved.hashes), seed=saved.seed, nfe=saved.nfe, start=saved.start, kv=saved.kv)
        answer = pb.RestoreResponse(session=held.message, last_frame=held.last, bit_identical=True)
        return await self.leave("Restore", request, context, answer)

    async def Get(self, request, context):
        await self.enter("Get", request, context)
        held = await self.held(request.session, context)
        return pb.GetResponse(session=held.message, last_frame=held.last)

    async def List(self, request, context):
        await self.enter("List", request, context)
        ids = list(self.sessions)
        begin = int(request.page_token or 0)
        end = begin + min(self.page_size, request.page_size)
        return pb.ListResponse(
            sessions=[self.sessions[id_].message for id_ in ids[begin:end]],
            next_page_token=str(end) if end < len(ids) else "",
        )

    async def Delete(self, request, context):
        await self.enter("Delete", request, context)
        await self.held(request.session, context)
        del self.sessions[request.session]
        return pb.DeleteResponse(freed_block_count=1)

    async def KeepAlive(self, request, context):
        await self.enter("KeepAlive", request, context)
        await self.held(request.session, context)
        answer = pb.KeepAliveResponse()
        answer.expire_time.FromSeconds(request.ttl.seconds)
        return answer

    async def Introspect(self, request, context):
        await self.enter("Introspect", request, context)
        known = ["echo", *self.other_replicas]
        if self.other_replicas:
            await context.send_initial_metadata((("worldtree-replicas", ",".join(reversed(known))),))
        if request.replica and request.replica == self.gone:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self.gone} is gone")
        if request.replica and request.replica not in known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no replica {request.replica}")
        return self.introspection(request.replica or "echo", request.session_limit or 100)

    def introspection(self, replica: str, session_limit: int) -> pb.IntrospectResponse:
        """The sessions that are held, each chunk a block; they share what their hashes have in common."""
        here = [held for held in self.sessions.values() if held.id.endswith(f".{replica}")]
        blocks = Counter(state_hash for held in here for state_hash in held.hashes)
        model = pb.IntrospectResponse.ModelStatus(
            model=common_pb2.ModelRef(name="echo", version="1", digest="0" * 64),
            tiers=[
                pb.IntrospectResponse.Tier(
                    name="pool",
                    storage=pb.KvPolicy.STORAGE_FP32,
                    capacity_block_count=64,
                    held_block_count=len(blocks),
                    cached_block_count=5,
                    in_flight_block_count=2,
                    shared_block_count=sum(count > 1 for count in blocks.values()),
                    used_bytes=1024 * len(blocks),
                ),
                pb.IntrospectResponse.Tier(name="folder", cached_block_count=9, used_bytes=9 * 1024),
            ],
            session_count=len(here),
            ticks=[
                pb.IntrospectResponse.Tick(play_count=index % 3, step_count=1, bulk_count=8, commit_count=2)
                for index in range(64)
            ],
            tenants=[pb.IntrospectResponse.TenantShare(tenant="anonymous", chunk_count=7, waiting_count=1)],
            prefix_hit_count=3,
            play_load=0.25,
            max_batch_size=16,
        )
        for tick in model.ticks:
            tick.duration.FromMilliseconds(4)
            tick.end_time.GetCurrentTime()
        for held in here[:session_limit]:
            status = model.sessions.add(session=held.message, tenant="anonymous", call="Play" if held.busy else "")
            for other in here:
                common = len(set(other.hashes) & set(held.hashes))
                if other is not held and common:
                    status.sharing.add(session=other.id, block_count=common)
            if held.busy:
                play = model.plays.add(session=held.id, fps=10, chunk_count=9, missed_count=2, degraded_count=1)
                play.slack_duration.FromMilliseconds(-30)
        answer = pb.IntrospectResponse(replica=replica, models=[model], draining=bool(self.other_replicas))
        answer.time.GetCurrentTime()
        answer.uptime_duration.FromSeconds(3700)
        return answer

    async def Rollout(self, request, context):
        await self.enter("Rollout", request, context)
        held = await self.held(request.session, context)
        try:
            for node in self.trie(held, request):
                await asyncio.sleep(self.node_delay_s)
                yield node
            self.end("Rollout", "done")
        except (asyncio.CancelledError, GeneratorExit):  # also: dropped while it was sending
            self.end("Rollout", "cancelled")
            raise

    def trie(self, held: Held, request: pb.RolloutRequest) -> list[pb.RolloutResponse]:
        nodes: dict[tuple[Any, ...], pb.RolloutResponse] = {}
        for index, sequence in enumerate(request.sequences):
            seed = sequence.seed if sequence.HasField("seed") else held.seed
            state_hash = held.hashes[-1]
            for depth, action in enumerate(sequence.actions):
                state_hash = next_hash(state_hash, action, seed)
                key = (seed, *(name_of(action) for action in sequence.actions[: depth + 1]))
                if key not in nodes:
                    chunk = chunk_of(len(held.hashes) - 1 + depth, action, state_hash)
                    nodes[key] = pb.RolloutResponse(chunk=chunk, depth=depth)
                nodes[key].sequences.append(index)
        for node in nodes.values():
            last = any(len(request.sequences[index].actions) == node.depth + 1 for index in node.sequences)
            if request.detail == pb.RolloutRequest.DETAIL_NONE or (
                request.detail == pb.RolloutRequest.DETAIL_LAST and not last
            ):
                node.chunk.ClearField("frames")
            node.node_count = len(nodes)
            node.chunk_count = sum(len(sequence.actions) for sequence in request.sequences)
        # Breadth first: what a batching engine would do, and not the order of the sequences.
        return sorted(nodes.values(), key=lambda node: node.depth)

    async def Generate(self, request, context):
        await self.enter("Generate", request, context)
        origin = hashlib.sha256(request.origin.SerializeToString() + bytes([request.seed % 256])).hexdigest()
        held = Held("", [origin], request.seed, request.nfe or 2, request.origin.start, request.kv)
        count = len(request.actions)
        ignored = unknown_words(request.origin.prompt)
        yield pb.GenerateResponse(start_frames=held.last, chunk_count=count, warnings=ignored)
        for action in request.actions:
            yield pb.GenerateResponse(chunk=held.advance(action), chunk_count=count)

    async def Play(self, request_iterator, context):
        first = await anext(aiter(request_iterator))
        await self.enter("Play", first, context)
        held = await self.held(first.session, context)
        if self.fps_possible is not None and first.begin.fps > self.fps_possible:
            await self.refuse_fps(first.begin.fps, context)
        held.busy = True
        try:
            async for event in EchoPlay(self, held, first.begin).run(request_iterator):
                yield event
            self.end("Play", "done")
        except (asyncio.CancelledError, GeneratorExit):  # also: dropped while it was sending
            self.end("Play", "cancelled")
            raise
        finally:
            held.busy = False

    async def refuse_fps(self, fps: float, context: grpc.aio.ServicerContext) -> None:
        status = status_pb2.Status(code=8, message=f"{fps:g} fps cannot be held now")
        status.details.add().Pack(
            error_details_pb2.ErrorInfo(
                reason="FPS_UNAVAILABLE", domain="worldtree", metadata={"fps_possible": f"{self.fps_possible:g}"}
            )
        )
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, status.message)

    def end(self, method: str, reason: str) -> None:
        self.end_reasons[method] = reason
        self.ended[method].set()


@dataclass
class EchoPlay:
    server: EchoServicer
    held: Held
    begin: pb.PlayRequest.Begin
    queued: deque[pb.Action] = field(default_factory=deque)
    paused: bool = False
    stopped: bool = False
    input_ended: bool = False

    async def run(self, controls: AsyncIterator[pb.PlayRequest]) -> AsyncIterator[pb.PlayResponse]:
        events: deque[pb.PlayResponse] = deque(
            [pb.PlayResponse(begun=pb.PlayResponse.Begun(session=self.held.message))]
        )
        changed = asyncio.Event()
        self.queued.extend(self.begin.actions)
        reader = asyncio.create_task(self.read(controls, events, changed))
        last: pb.Action | None = None
        try:
            while not self.stopped:
                while events:
                    yield events.popleft()
                if self.index == self.server.rehomed_before:
                    self.server.rehomed_before = None
                    yield self.rehomed()
                changed.clear()
                repeat = self.begin.idle == pb.PlayRequest.IDLE_REPEAT and last is not None
                if not self.paused and (self.queued or (repeat and not self.input_ended)):
                    repeated = not self.queued
                    last = last if repeated else self.queued.popleft()
                    played = pb.PlayResponse.Played(chunk=self.held.advance(last), queued_count=len(self.queued))
                    if not repeated:
                        played.control_latency.FromMilliseconds(7)
                    yield pb.PlayResponse(played=played)
                    await asyncio.sleep(1 / self.begin.fps if self.begin.fps else 0)
                elif self.input_ended:
                    break
                elif not events:
                    await changed.wait()
            while events:
                yield events.popleft()
        finally:
            reader.cancel()

    async def read(self, controls, events, changed) -> None:
        async for control in controls:
            match control.WhichOneof("control"):
                case "act":
                    if control.act.replace:
                        self.queued.clear()
                    self.queued.extend(control.act.actions)
                case "pause":
                    self.paused = True
                    events.append(pb.PlayResponse(paused=pb.PlayResponse.Paused(chunk_index=self.index)))
                case "resume":
                    self.paused = False
                    events.append(pb.PlayResponse(resumed=pb.PlayResponse.Resumed(chunk_index=self.index)))
                case "rewind":
                    self.queued.clear()
                    del self.held.hashes[-control.rewind.chunk_count :]
                    events.append(
                        pb.PlayResponse(
                            rewound=pb.PlayResponse.Rewound(chunk_index=self.index, last_frame=self.held.last)
                        )
                    )
                case "fork":
                    children = self.server.fork(self.held, control.fork.count, [])
                    events.append(pb.PlayResponse(forked=pb.PlayResponse.Forked(sessions=children)))
                case "stop":
                    self.stopped = True
            changed.set()
        self.input_ended = True
        changed.set()

    def rehomed(self) -> pb.PlayResponse:
        resumed = pb.PlayResponse.Resumed(chunk_index=self.index, rehomed=True, replica="echo-2", bit_identical=True)
        resumed.pause_duration.FromMilliseconds(1250)
        return pb.PlayResponse(resumed=resumed)

    @property
    def index(self) -> int:
        return len(self.held.hashes) - 1


PROMPT_WORDS = ["a", "red", "door"]


def echo_model() -> pb.Model:
    return pb.Model(
        ref=common_pb2.ModelRef(name="echo", version="1", digest="0" * 64),
        description="arithmetic",
        height_px=SIDE_PX,
        width_px=SIDE_PX,
        fps=10,
        frames_per_chunk=1,
        action_space=pb.ActionSpace(discrete=pb.ActionSpace.Discrete(names=ACTIONS)),
        nfe_choices=[1, 2, 4],
        nfe_default=2,
        window_chunks=8,
        block_bytes=1024,
        starts=[pb.Start(name="four-rooms", description="four rooms", frame_count=1)],
        license="MIT",
        storage_formats=[
            pb.StorageFormat(storage=pb.KvPolicy.STORAGE_FP32, block_bytes=1024, block_count=64),
            pb.StorageFormat(storage=pb.KvPolicy.STORAGE_INT8, block_bytes=288, block_count=227),
        ],
        policy_plugins=["surprise"],
        prompt_supported=True,
        prompt_space=pb.PromptSpace(words=PROMPT_WORDS, token_limit=4, examples=["a red door"]),
    )


def unknown_words(prompt: str) -> list[str]:
    return [f"ignores {word}" for word in prompt.split() if word not in PROMPT_WORDS]


class EchoServer:
    """The servicers on a real socket, on an event loop of its own thread; real services judge clips and imagine."""

    def __init__(self, judges: Path) -> None:
        settings, metrics = RewardSettings(models=str(judges)), RewardMetrics(CollectorRegistry())
        self._judges = load_catalog(settings, metrics)
        self._reward = RewardServicer(self._judges, settings, metrics)
        self.servicer = EchoServicer()
        self.multitask = _echo_multitask.EchoMultiTask()
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> "EchoServer":
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        server = grpc.aio.server()
        pb_grpc.add_VideoGeneratorServicer_to_server(self.servicer, server)
        multi_task_pb2_grpc.add_MultiTaskServicer_to_server(self.multitask, server)
        reward_scorer_pb2_grpc.add_RewardScorerServicer_to_server(self._reward, server)
        self._judges.start()
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        settings = NavigatorSettings(video=self.address, reward=self.address)
        peers = Peers(settings)
        metrics = NavigatorMetrics(CollectorRegistry())
        maps = MapPlanner(load_mazes(settings, metrics))
        maps.start()
        policies = load_policies(settings, metrics)
        policies.start()
        navigator = NavigatorServicer(peers, maps, Policies(policies), settings, metrics)
        navigator_pb2_grpc.add_NavigatorServicer_to_server(navigator, server)
        await server.start()
        self._started.set()
        await self._stop.wait()
        await peers.close()
        await server.stop(0)
        policies.stop()
        maps.stop()
        self._judges.stop()


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a judge of the echo's frames."""
    repository = tmp_path_factory.mktemp("judges")
    TinyJudge(size_px=SIDE_PX, actions=ACTIONS).write(repository)
    return repository


@pytest.fixture
def echo(judges: Path) -> Iterator[EchoServer]:
    with EchoServer(judges) as server:
        yield server
