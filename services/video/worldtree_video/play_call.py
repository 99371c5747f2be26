"""The Play call at the gRPC edge: its terms checked, controls applied as they come, chunks and events streamed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.call_notes import note_cost
from worldtree_runtime.errors import DeadlineExceeded, InvalidRequest
from worldtree_runtime.tracing import current_span

from worldtree_video import convert, replies
from worldtree_video.adoption import Adoption
from worldtree_video.caller import Caller
from worldtree_video.catalog import Served
from worldtree_video.chunk_spans import ChunkSpans
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action
from worldtree_video.errors import Draining, OutOfRange
from worldtree_video.live import LivePlay
from worldtree_video.metrics import VideoMetrics
from worldtree_video.play import Played

# Reads that end with their calls: somebody has to hold the tasks until then.
_reading: "set[asyncio.Task[None]]" = set()
_LOOKAHEAD_DEFAULT, _LOOKAHEAD_MAX, _FPS_MAX = 2, 64, 240


class PlayCall:
    """One call. What it promises stands in the proto."""

    def __init__(self, adoption: Adoption, settings: VideoSettings, metrics: VideoMetrics) -> None:
        self._adoption = adoption
        self._settings = settings
        self._metrics = metrics
        self._controlling = False
        self._over = False

    async def answer(self, requests: AsyncIterator[pb.PlayRequest], caller: Caller) -> AsyncGenerator[pb.PlayResponse]:
        """Plays until the controls, the session or the reader end. Closing the generator ends the play at once."""
        first = await self._first(requests)
        begin = first.begin
        served = await self._adoption.find(first.session, caller)
        actions = self._actions(begin.actions, served, "begin.actions", least=0)
        if begin.idle not in pb.PlayRequest.Idle.values():
            raise OutOfRange("begin.idle", begin.idle, 0, max(pb.PlayRequest.Idle.values()))
        if begin.degrade not in pb.PlayRequest.Degrade.values():
            raise OutOfRange("begin.degrade", begin.degrade, 0, max(pb.PlayRequest.Degrade.values()))
        if not 0 <= begin.fps <= _FPS_MAX:  # a NaN fails both comparisons
            raise OutOfRange("begin.fps", begin.fps, 0, _FPS_MAX)
        lookahead = begin.lookahead_chunks or _LOOKAHEAD_DEFAULT
        if not 1 <= lookahead <= _LOOKAHEAD_MAX:
            raise OutOfRange("begin.lookahead_chunks", lookahead, 1, _LOOKAHEAD_MAX)
        async with LivePlay.open(
            served.worlds,
            first.session,
            fps=begin.fps,
            lookahead_chunks=lookahead,
            repeat=begin.idle == pb.PlayRequest.IDLE_REPEAT,
            degrade=begin.degrade == pb.PlayRequest.DEGRADE_NFE,
            tenant=caller.tenant,
            admitted=caller.admitted,
            resumes=caller.resumes,
        ) as play:
            yield await self._opening(play, begin, served)
            if actions:
                play.act(actions)
            steering = asyncio.create_task(self._steer(play, served, first.session, requests))
            try:
                async for message in self._played(play, served, self._spans(play, served, caller)):
                    yield message
            finally:
                await self._end(steering)

    async def _end(self, steering: "asyncio.Task[None]") -> None:
        """No control has an effect any more.

        A read in flight is left to end with the call, in a moment: cancelled, gRPC's core would never give back what
        it holds (90 bytes and more for each play that ends before its client has).
        """
        self._over = True
        if self._controlling:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)
        else:
            _reading.add(steering)
            steering.add_done_callback(_reading.discard)

    async def _played(self, play: LivePlay, served: Served, spans: ChunkSpans | None) -> AsyncIterator[pb.PlayResponse]:
        """Chunks and events in their order, until the play is over or nothing has happened for too long."""
        while True:
            try:
                async with self._idle_limit():
                    item = await anext(play.chunks)
            except StopAsyncIteration:
                if play.draining:
                    raise Draining from None
                return
            if isinstance(item, pb.PlayResponse):
                if item.HasField("rewound"):
                    await play.rewound()
                elif item.HasField("forked"):
                    await play.forked([each.session for each in item.forked.sessions])
                yield item
                continue
            assert isinstance(item, Played), f"a play brought {item!r}"
            # The journal is at most one chunk behind what the reader has seen.
            play.sent(item.chunk)
            await play.settled(behind=1)
            encode_s = play.now()
            message = replies.from_played(item, served.package, encode_s)
            self._observe_played(item, message, served, None if spans is None else spans.next())
            send_s, taken = play.now(), False
            try:
                yield message
                taken = True
            finally:
                if spans is not None:
                    spans.tell(item, encode_s=encode_s, send_s=send_s, end_s=play.now(), taken=taken)
            play.taken()

    @asynccontextmanager
    async def _idle_limit(self) -> AsyncIterator[None]:
        limit_s = self._settings.play_idle_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(
                "PLAY_IDLE", f"no control and no chunk for {limit_s:g} s", limit_s=f"{limit_s:g}"
            ) from error

    async def _opening(self, play: LivePlay, begin: pb.PlayRequest.Begin, served: Served) -> pb.PlayResponse:
        """Begun; or Resumed, once the session stands where the reader of a play that broke off does."""
        if not begin.HasField("resume_from"):
            return pb.PlayResponse(begun=pb.PlayResponse.Begun(session=replies.from_session(play.session, served)))
        chunk_index, delivered = convert.to_standing(begin.resume_from, served.package)
        await play.align(chunk_index, delivered)
        return pb.PlayResponse(
            resumed=pb.PlayResponse.Resumed(
                chunk_index=play.chunk_index,
                rehomed=True,
                replica=self._settings.replica,
                bit_identical=play.session.fingerprint == served.worlds.model.fingerprint,
            )
        )

    async def _steer(
        self, play: LivePlay, served: Served, session: str, requests: AsyncIterator[pb.PlayRequest]
    ) -> None:
        """Applies controls as they come; the first bad one ends the play."""
        try:
            async for request in requests:
                if self._over:
                    return
                if request.session not in ("", session):
                    raise InvalidRequest("session", f"session must stay {session} within a play, got {request.session}")
                self._controlling = True
                try:
                    event = await self._control(play, served, request)
                finally:
                    self._controlling = False
                if event:
                    play.chunks.put(event)
            play.finish()
        except Exception as error:  # the play's reader raises it, where the interceptor gives it a status
            play.fail(error)

    async def _control(self, play: LivePlay, served: Served, request: pb.PlayRequest) -> pb.PlayResponse | None:
        match request.WhichOneof("control"):
            case "act":
                play.act(self._actions(request.act.actions, served, "act.actions"), replace=request.act.replace)
            case "pause":
                play.pause()
                return pb.PlayResponse(paused=pb.PlayResponse.Paused(chunk_index=play.chunk_index))
            case "resume":
                play.resume()
                return pb.PlayResponse(resumed=pb.PlayResponse.Resumed(chunk_index=play.chunk_index))
            case "rewind":

                def tell(frames: bytes) -> None:
                    last_frame = replies.from_last_frame(frames, served.package)
                    rewound = pb.PlayResponse.Rewound(chunk_index=play.chunk_index, last_frame=last_frame)
                    play.chunks.put(pb.PlayResponse(rewound=rewound))

                await play.rewind(request.rewind.chunk_count, tell=tell)
            case "fork":
                seeds = convert.to_fork_seeds(pb.ForkRequest(count=request.fork.count), self._settings)
                with served.worlds.engine.lock:  # or a chunk may be made before the reader is told where it forked
                    children = served.worlds.fork(play.session.name, seeds=seeds, ttl_s=self._settings.session_ttl_s)
                    sessions = [replies.from_session(child, served) for child in children]
                    play.chunks.put(pb.PlayResponse(forked=pb.PlayResponse.Forked(sessions=sessions)))
            case "stop":
                play.stop()
            case "begin":
                raise InvalidRequest("begin", "begin belongs into the first message of a play only")
            case _:
                raise InvalidRequest("control", "a message of a play must set a control")
        return None

    async def _first(self, requests: AsyncIterator[pb.PlayRequest]) -> pb.PlayRequest:
        try:
            async with self._idle_limit():
                first = await anext(aiter(requests))
        except StopAsyncIteration:
            raise InvalidRequest("begin", "a play must begin with a message that sets session and begin") from None
        if not first.session:
            raise InvalidRequest("session", "the first message of a play must name its session")
        if not first.HasField("begin"):
            raise InvalidRequest(
                "begin", f"the first message of a play must set begin, got {first.WhichOneof('control')}"
            )
        return first

    @staticmethod
    def _spans(play: LivePlay, served: Served, caller: Caller) -> ChunkSpans | None:
        span = current_span()
        if span is None:
            return None
        return ChunkSpans(span, session=play.session.name, model=served.stored.name, tenant=caller.tenant)

    def _observe_played(self, played: Played, message: pb.PlayResponse, served: Served, trace_id: str | None) -> None:
        exemplar = None if trace_id is None else {"trace_id": trace_id}
        note_cost(played.chunk.record.nfe * served.package.frames_per_chunk)
        if played.late_s:
            self._metrics.deadline_missed.inc(exemplar=exemplar)
        if played.degraded:
            self._metrics.degraded_chunks.labels(served.stored.name).inc()
        if message.played.HasField("control_latency"):
            latency = message.played.control_latency
            self._metrics.control_latency_seconds.observe(latency.seconds + latency.nanos / 1e9, exemplar)

    def _actions(self, messages: Sequence[pb.Action], served: Served, field: str, *, least: int = 1) -> list[Action]:
        limit = self._settings.max_step_actions
        return convert.to_actions(messages, served.package, field, limit=limit, least=least)
