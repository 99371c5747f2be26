"""The services that this one asks: their channels, and their errors as our own."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from grpc_status import rpc_status
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.reward.v1.reward_scorer_pb2_grpc import RewardScorerStub
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.messages import CHARGED_KEY, COST_KEY, SCRATCH_KEY, TENANT_KEY, from_seconds
from worldtree_runtime.status import from_status, kind_of
from worldtree_runtime.tracing import trace_metadata

from worldtree_navigator.bills import charge
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.errors import PeerDown

Metadata = tuple[tuple[str, str], ...]
Stub: TypeAlias = Any  # grpc's stubs are typed for sync channels

# A caller who passes on what it is told, so that a call is one call in all logs, and for one tenant.
_SILENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_DELETION_S = 1.0
_SCRATCH = ((SCRATCH_KEY, "1"),)
_PASSED = frozenset({TENANT_KEY, "authorization"})


def passed_metadata(context: Any) -> Metadata:
    """What a caller said beside its message, for those who are asked on its behalf: in the trace of its call."""
    theirs = tuple((key, value) for key, value in context.invocation_metadata() or () if key in _PASSED)
    theirs = (*theirs, *trace_metadata())
    request_id = current_request_id()
    return (*theirs, (REQUEST_ID_KEY, request_id)) if request_id is not None else theirs


class Peers:
    """Channels to the video and the reward service, for as long as this process lives. Close it."""

    def __init__(self, settings: NavigatorSettings) -> None:
        options = (
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        )
        self.settings = settings
        self._channels = [grpc.aio.insecure_channel(to, options=options) for to in (settings.video, settings.reward)]
        self._video: Stub = VideoGeneratorStub(self._channels[0])
        self._reward: Stub = RewardScorerStub(self._channels[1])
        self._deletions: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Lets forks be deleted that are still on their way, then hangs up."""
        await asyncio.gather(*self._deletions, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    @asynccontextmanager
    async def fork(self, session: str, metadata: Metadata) -> AsyncIterator[video_pb.Session]:
        """A fork of a session, deleted at the end however the block is left. Its lease ends it if this process dies."""
        request = video_pb.ForkRequest(session=session, count=1, ttl=self._lease)

        async def fork() -> video_pb.Session:
            answer = await self._asked(
                "video", self._video.Fork, request, (*metadata, *_SCRATCH), self.settings.video_timeout_s
            )
            made: video_pb.Session = answer.sessions[0]
            return made

        async with self._lent(fork(), metadata) as made:
            yield made

    @asynccontextmanager
    async def created(
        self,
        world: common.ModelRef,
        frames: common.Frames,
        actions: Sequence[video_pb.Action],
        metadata: Metadata,
    ) -> AsyncIterator[video_pb.Session]:
        """A session that begins with `frames` and the actions between them, deleted as `fork` is."""
        origin = video_pb.Origin(frames=frames, actions=actions)
        request = video_pb.CreateSessionRequest(model=world, origin=origin, ttl=self._lease)

        async def create() -> video_pb.Session:
            timeout_s = self.settings.video_timeout_s
            answer = await self._asked("video", self._video.CreateSession, request, (*metadata, *_SCRATCH), timeout_s)
            made: video_pb.Session = answer.session
            return made

        async with self._lent(create(), metadata) as made:
            yield made

    async def step(self, session: str, actions: Sequence[video_pb.Action], metadata: Metadata) -> None:
        request = video_pb.StepRequest(session=session, actions=actions)
        await self._asked("video", self._video.Step, request, metadata, self.settings.video_timeout_s)

    @property
    def _lease(self) -> Duration:
        return from_seconds(self.settings.fork_ttl_s)

    @asynccontextmanager
    async def _lent(
        self, making: Coroutine[Any, Any, video_pb.Session], metadata: Metadata
    ) -> AsyncIterator[video_pb.Session]:
        made = asyncio.ensure_future(making)
        try:
            # Shielded: of a session whose answer nobody awaits, nobody would know the name.
            yield await asyncio.shield(made)
        finally:
            deletion = asyncio.create_task(self._delete(made, metadata))
            self._deletions.add(deletion)
            deletion.add_done_callback(self._deletions.discard)
            # Not for ever: the answer that waits behind this may be that the video service has gone.
            await asyncio.wait({deletion}, timeout=_DELETION_S)

    async def _delete(self, made: "asyncio.Future[video_pb.Session]", metadata: Metadata) -> None:
        try:
            request = video_pb.DeleteRequest(session=(await made).session)
            await self._asked("video", self._video.Delete, request, metadata, self.settings.video_timeout_s)
        except WorldtreeError:
            return  # there is none, or its lease will end it

    async def model(self, ref: common.ModelRef, metadata: Metadata) -> video_pb.Model:
        request = video_pb.GetModelRequest(model=ref)
        answer = await self._asked("video", self._video.GetModel, request, metadata, self.settings.video_timeout_s)
        found: video_pb.Model = answer.model
        return found

    async def last_frame(self, session: str, metadata: Metadata) -> common.Frames:
        request = video_pb.GetRequest(session=session)
        answer = await self._asked("video", self._video.Get, request, metadata, self.settings.video_timeout_s)
        found: common.Frames = answer.last_frame
        return found

    async def rollout(
        self,
        session: str,
        sequences: Sequence[video_pb.ActionSequence],
        metadata: Metadata,
        *,
        frames_from_depth: int,
    ) -> AsyncGenerator[video_pb.RolloutResponse]:
        """The nodes of a rollout. Each has its time to come; leaving the iterator ends the call."""
        request = video_pb.RolloutRequest(session=session, sequences=sequences, frames_from_depth=frames_from_depth)
        call = self._video.Rollout(request, metadata=metadata)
        timeout_s = self.settings.video_timeout_s
        evaluations, frames, told = 0, 1, None
        try:
            while True:
                try:
                    async with asyncio.timeout(timeout_s):
                        node = await call.read()
                except TimeoutError as error:
                    raise PeerDown("video", f"the video service made no chunk within {timeout_s:g} s") from error
                except grpc.aio.AioRpcError as error:
                    told = _cost_in(error.trailing_metadata())
                    raise self.told("video", error) from error
                if node is grpc.aio.EOF:
                    told = _cost_in(await call.trailing_metadata())
                    return
                evaluations += node.chunk.timing.nfe
                frames = max((frames, *node.chunk.frames.tensor.shape[:1]))
                yield node
        finally:
            if told is None and evaluations and CHARGED_KEY not in dict(await call.initial_metadata()):
                told = evaluations * frames  # one that is left has no trailers
            charge(told or 0)
            call.cancel()

    async def rubrics(self, ref: common.ModelRef, metadata: Metadata) -> reward_pb.ListRubricsResponse:
        request = reward_pb.ListRubricsRequest(model=ref)
        timeout_s = self.settings.reward_timeout_s
        answer: reward_pb.ListRubricsResponse = await self._asked(
            "reward", self._reward.ListRubrics, request, metadata, timeout_s
        )
        return answer

    @asynccontextmanager
    async def score_tree(self, metadata: Metadata) -> AsyncIterator["TreeCall"]:
        """A tree of clips to be scored, for as long as the block lasts."""
        call = self._reward.ScoreTree(metadata=metadata)
        try:
            yield TreeCall(call, self)
        finally:
            call.cancel()

    async def _asked(self, service: str, call: Any, request: Any, metadata: Metadata, timeout_s: float) -> Any:
        try:
            return await call(request, metadata=metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self.told(service, error) from error

    def told(self, service: str, error: grpc.aio.AioRpcError) -> Exception:
        """What a service of ours said, or that nobody of ours said anything. A bug of theirs stays a bug."""
        status = rpc_status.from_call(error)
        known = None if status is None else from_status(status)
        if known is not None:
            return known
        address = self.settings.video if service == "video" else self.settings.reward
        code, said = error.code(), error.details() or error.code().name
        if code in _SILENT:
            return PeerDown(service, f"the {service} service at {address} does not answer: {said}")
        kind = kind_of(code.value[0])
        if kind is None:
            return error
        return WorldtreeError(
            kind, f"{service.upper()}_{code.name}", f"the {service} service at {address} says: {said}"
        )


def _cost_in(trailers: Any) -> int | None:
    """What a call has cost that nobody has charged its caller yet. None: nothing is said of it."""
    said = dict(trailers or ())
    if CHARGED_KEY in said:
        return 0
    cost = said.get(COST_KEY)
    return int(cost) if isinstance(cost, str) and cost.isdecimal() else None


class TreeCall:
    """An open ScoreTree. Each message is answered before the next is sent."""

    def __init__(self, call: Any, peers: Peers) -> None:
        self._call, self._peers = call, peers

    async def ask(self, request: reward_pb.ScoreTreeRequest) -> reward_pb.ScoreTreeResponse:
        """Raises PeerDown, or what the reward service raised."""
        timeout_s = self._peers.settings.reward_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                # A write that fails says nothing of why: the read does.
                with suppress(grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
                    await self._call.write(request)
                answer = await self._call.read()
        except TimeoutError as error:
            raise PeerDown("reward", f"the reward service scored nothing within {timeout_s:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise self._peers.told("reward", error) from error
        if answer is grpc.aio.EOF:
            raise PeerDown("reward", "the reward service ended the scoring")
        found: reward_pb.ScoreTreeResponse = answer
        return found
