"""Live play over the wire: controls in, chunks out, and nothing left when the client is gone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld

P = pb.PlayRequest
SLOW = TinyWorld(work=12)


def turns(count: int) -> list[pb.Action]:
    return [pb.Action(id=number % 3) for number in range(count)]


def act(*ids: int, replace: bool = False) -> pb.PlayRequest:
    return P(act=P.Act(actions=[pb.Action(id=number) for number in ids], replace=replace))


PAUSE, RESUME, STOP = P(pause=P.Pause()), P(resume=P.Resume()), P(stop=P.Stop())


class Playing:
    """One Play call, step by step."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.session = pb.Session()

    async def send(self, *requests: pb.PlayRequest) -> None:
        for request in requests:
            await self.call.write(request)

    async def next(self, timeout_s: float = 5.0) -> pb.PlayResponse:
        message = await asyncio.wait_for(self.call.read(), timeout_s)
        assert message is not grpc.aio.EOF, "the play has ended"
        return message

    async def chunk(self) -> pb.PlayResponse.Played:
        message = await self.next()
        assert message.WhichOneof("event") == "played", message.WhichOneof("event")
        return message.played

    async def chunks(self, count: int) -> list[pb.PlayResponse.Played]:
        return [await self.chunk() for _ in range(count)]

    async def event(self, kind: str) -> Any:
        """The next event of a kind, chunks before it let pass."""
        while True:
            message = await self.next()
            if message.WhichOneof("event") == kind:
                return getattr(message, kind)
            assert message.WhichOneof("event") == "played", f"{message.WhichOneof('event')} before {kind}"

    async def rest(self) -> list[pb.PlayResponse]:
        messages = []
        while (message := await asyncio.wait_for(self.call.read(), 10)) is not grpc.aio.EOF:
            messages.append(message)
        return messages


@asynccontextmanager
async def playing(video: Any, session: str, *actions: int, **fields: Any) -> AsyncIterator[Playing]:
    play = Playing(video.stub.Play())
    begin = P.Begin(actions=[pb.Action(id=number) for number in actions], **fields)
    await play.send(P(session=session, begin=begin))
    first = await play.next()
    assert first.WhichOneof("event") == "begun"
    play.session = first.begun.session
    try:
        yield play
    finally:
        play.call.cancel()


async def index(video: Any, session: str) -> int:
    return int((await video.get(session)).session.chunk_index)


async def test_a_play_is_the_same_world_as_its_steps_and_half_closing_drains_it(video: Any) -> None:
    name, twin = await video.create(), await video.create()
    stepped = (await video.stub.Step(pb.StepRequest(session=twin, actions=turns(10)))).chunks
    async with playing(video, name, *[action.id for action in turns(4)]) as play:
        assert (play.session.session, play.session.state) == (name, pb.Session.STATE_BUSY)
        await play.send(*[act(action.id) for action in turns(10)[4:]])
        await play.call.done_writing()
        messages = await play.rest()
    played = [message.played for message in messages]
    assert [item.chunk.frames for item in played] == [chunk.frames for chunk in stepped]
    assert [item.chunk.state_hash for item in played] == [chunk.state_hash for chunk in stepped]
    assert [item.chunk.index for item in played] == list(range(10))
    assert played[-1].queued_count == 0
    assert all(item.HasField("control_latency") for item in played)
    assert await play.call.code() is grpc.StatusCode.OK
    session = (await video.get(name)).session
    assert (session.chunk_index, session.state) == (10, pb.Session.STATE_IDLE)


async def test_the_target_fps_is_kept(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 1, fps=50, lookahead_chunks=1, idle=P.IDLE_REPEAT) as play:
        await play.chunk()
        begun = time.monotonic()
        played = await play.chunks(25)
        took_s = time.monotonic() - begun
    # What a busy machine made late is said, and moved the clock.
    late_s = sum(item.late_duration.ToTimedelta().total_seconds() for item in played)
    assert 0.4 < took_s < 0.9 + late_s


async def test_the_look_ahead_is_made_at_once(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, *[0] * 12, fps=4, lookahead_chunks=6) as play:
        begun = time.monotonic()
        await play.chunks(6)
        assert time.monotonic() - begun < 1.0  # one by one they would take 1.25 s
        await play.chunk()
        await play.chunk()
        assert time.monotonic() - begun > 0.4


async def test_a_play_repeats_its_last_action_where_it_was_asked_to(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 0, 2, fps=100, idle=P.IDLE_REPEAT) as play:
        chunks = await play.chunks(6)
        assert [item.chunk.action.id for item in chunks] == [0, 2, 2, 2, 2, 2]
        assert [item.HasField("control_latency") for item in chunks] == [True, True, False, False, False, False]


@pytest.mark.parametrize("idle", [P.IDLE_UNSPECIFIED, P.IDLE_WAIT])
async def test_a_play_waits_for_its_next_action_and_is_not_late_for_it(video: Any, idle: int) -> None:
    name = await video.create()
    async with playing(video, name, 0, fps=20, idle=idle) as play:
        await play.chunk()
        await asyncio.sleep(0.3)
        assert await index(video, name) == 1
        await play.send(act(1))
        late = (await play.chunk()).late_duration
        assert late.ToMilliseconds() == 0


async def test_a_control_takes_effect_at_the_next_chunk_not_yet_started(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 0, fps=20, lookahead_chunks=1, idle=P.IDLE_REPEAT) as play:
        await play.chunks(3)
        await play.send(act(2, replace=True))
        following = [item.chunk.action.id for item in await play.chunks(4)]
        assert following in ([2, 2, 2, 2], [0, 2, 2, 2])


async def test_replacing_forgets_what_was_queued(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, *[0] * 50, fps=20, lookahead_chunks=1) as play:
        await play.chunk()
        await play.send(act(2, 1, replace=True))
        await play.call.done_writing()
        rest = [message.played.chunk.action.id for message in await play.rest()]
        assert rest[-2:] == [2, 1]
        assert len(rest) <= 5


async def test_a_pause_holds_the_chunks_and_resume_lets_them_go_on(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 0, fps=100, lookahead_chunks=1, idle=P.IDLE_REPEAT) as play:
        await play.chunks(3)
        await play.send(PAUSE)
        paused = await play.event("paused")
        await asyncio.sleep(0.2)
        standing = await index(video, name)
        assert standing <= paused.chunk_index + 1  # the chunk in flight
        await play.send(RESUME)
        resumed = await play.event("resumed")
        assert resumed.chunk_index == standing
        assert (await play.chunks(2))[-1].chunk.index >= standing


async def test_a_pause_before_the_first_chunk_holds_it(start_video: Any) -> None:
    """Other sessions' ticks keep the engine busy, so the pause comes between the waking and the tick."""
    video = await start_video(SLOW, max_batch=1)
    name, other = await video.create(), await video.create()
    steps = asyncio.ensure_future(_step(video, other, 20))
    async with playing(video, name) as play:
        await play.send(PAUSE, act(1))
        await play.event("paused")
        await asyncio.sleep(0.1)
        assert await index(video, name) == 0
        await play.send(RESUME)
        await play.event("resumed")
        assert (await play.chunk()).chunk.index == 0
    await steps


async def _step(video: Any, session: str, count: int) -> pb.StepResponse:
    return await video.stub.Step(pb.StepRequest(session=session, actions=turns(count)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("reserve_chunks", [0, 16])
async def test_going_back_within_a_play_forgets_the_queue_and_goes_another_way(
    start_video: Any, reserve_chunks: int
) -> None:
    video = await start_video(reserve_chunks=reserve_chunks)
    name, twin = await video.create(chunks=12), await video.create(chunks=12)
    async with playing(video, name, *[0] * 3) as play:
        await play.chunks(3)
        await play.send(P(rewind=P.Rewind(chunk_count=10)))
        rewound = await play.event("rewound")
        assert rewound.chunk_index == 5
        assert list(rewound.last_frame.tensor.shape) == [1, 4, 6, 3]
        await play.send(act(2, 2))
        chunks = [item.chunk for item in await play.chunks(2)]
    assert [chunk.index for chunk in chunks] == [5, 6]
    answer = await video.stub.Rewind(pb.RewindRequest(session=twin, chunk_count=7))
    assert answer.last_frame == rewound.last_frame
    straight = (await video.stub.Step(pb.StepRequest(session=twin, actions=[pb.Action(id=2)] * 2))).chunks
    assert [chunk.frames for chunk in chunks] == [chunk.frames for chunk in straight]


async def test_a_play_forks_its_session_where_it_stands(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 0, 1, 2) as play:
        await play.chunks(3)
        await play.send(P(fork=P.Fork(count=2)))
        forked = await play.event("forked")
        assert [child.chunk_index for child in forked.sessions] == [3, 3]
        assert {child.parent for child in forked.sessions} == {name}
        await play.send(act(1))
        await play.chunk()
    assert await index(video, forked.sessions[0].session) == 3
    assert await index(video, name) == 4


async def test_a_stop_ends_the_play_after_the_chunk_in_flight(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, *[0] * 100, fps=50, lookahead_chunks=1) as play:
        await play.chunks(3)
        await play.send(STOP)
        rest = await play.rest()
        assert len(rest) <= 3
        assert await play.call.code() is grpc.StatusCode.OK
    assert await index(video, name) == 3 + len(rest)
    await _step(video, name, 1)


async def test_stopping_at_once_again_and_again_never_moves_a_session_by_more_than_a_chunk(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1)
    name, other = await video.create(), await video.create()
    steps = asyncio.ensure_future(_step(video, other, 20))
    for _ in range(5):
        before = await index(video, name)
        async with playing(video, name) as play:
            await play.send(act(1, 1, 1), STOP)
            await play.rest()
        await video.until(lambda: _idle(video, name))
        assert await index(video, name) <= before + 1
    await steps


async def _idle(video: Any, session: str) -> bool:
    return bool((await video.get(session)).session.state == pb.Session.STATE_IDLE)


async def test_a_client_that_does_not_read_stops_the_play_and_not_the_service(start_video: Any) -> None:
    video = await start_video(TinyWorld(height_px=200, width_px=200), pool_mib=16)
    name, other = await video.create(), await video.create()
    async with playing(video, name, 1, lookahead_chunks=2, idle=P.IDLE_REPEAT):
        previous = -1
        while (now := await index(video, name)) != previous:
            previous = now
            await asyncio.sleep(0.3)
        assert now < 200  # what the transport buffers, and the look ahead
        await _step(video, other, 3)


async def test_while_a_session_plays_nobody_else_moves_it_and_others_may_look(video: Any) -> None:
    name = await video.create(chunks=2)
    async with playing(video, name):
        for call in (
            video.stub.Step(pb.StepRequest(session=name, actions=turns(1))),
            video.stub.Rewind(pb.RewindRequest(session=name, chunk_count=1)),
            video.stub.Play(iter([P(session=name, begin=P.Begin())])),
        ):
            refusal = await video.refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "SESSION_BUSY")
            assert "busy with a Play" in refusal.message
        assert (await video.get(name)).session.state == pb.Session.STATE_BUSY
        await video.stub.Save(pb.SaveRequest(session=name))
        await video.stub.Fork(pb.ForkRequest(session=name))


async def test_closing_a_session_ends_its_play(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 1, fps=100, idle=P.IDLE_REPEAT) as play:
        await play.chunks(3)
        await video.stub.Delete(pb.DeleteRequest(session=name))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await play.rest()
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert "was closed" in (caught.value.details() or "")


async def test_closing_a_session_again_and_again_in_the_middle_of_its_chunks_loses_no_block(start_video: Any) -> None:
    video = await start_video(SLOW)
    for delay_s in (0.0, 0.003, 0.006, 0.009, 0.012, 0.02):
        name = await video.create()
        async with playing(video, name, 1, idle=P.IDLE_REPEAT):
            await asyncio.sleep(delay_s)
            await video.stub.Delete(pb.DeleteRequest(session=name))
        await video.until(video.is_quiet)
        video.engine.check_integrity()


async def test_too_many_queued_actions_end_the_play_with_the_limit(start_video: Any) -> None:
    video = await start_video(max_queued_actions=10)
    name = await video.create()
    async with playing(video, name, fps=1, lookahead_chunks=1) as play:
        await play.send(act(*[0] * 8), act(*[0] * 8))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await play.rest()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "must be 1 to 10" in (caught.value.details() or "")
    await video.until(lambda: _idle(video, name))


async def test_a_poisoned_chunk_ends_its_play_and_keeps_what_was_shown(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 0, 1, 3, 0) as play:
        await play.chunks(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await play.rest()
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert await index(video, name) == 2
    assert (await _step(video, name, 1)).chunk_index == 3


async def test_a_bad_control_ends_the_play_and_no_chunk_is_made_unseen(video: Any) -> None:
    name = await video.create()
    async with playing(video, name, 1, fps=200, lookahead_chunks=1, idle=P.IDLE_REPEAT) as play:
        await play.chunks(2)
        await play.send(act(9))
        seen = 2
        caught = None
        while caught is None:
            try:
                await play.chunk()
                seen += 1
            except grpc.aio.AioRpcError as error:
                caught = error
        assert "act.actions[0].id" in (caught.details() or "")
    assert await index(video, name) == seen


async def test_a_play_of_which_nothing_is_heard_is_ended(start_video: Any) -> None:
    video = await start_video(play_idle_s=0.2)
    name = await video.create()
    async with playing(video, name) as play:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await play.rest()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no control and no chunk for 0.2 s" in (caught.value.details() or "")
    silent = video.stub.Play()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await silent.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# ---- clients that vanish


@pytest.mark.parametrize("delay_s", [0.0, 0.004, 0.012, 0.04])
async def test_a_client_that_vanishes_from_any_call_leaves_nothing(start_video: Any, delay_s: float) -> None:
    video = await start_video(SLOW, reserve_chunks=0)
    name, stepping, going_back = [await video.create(chunks=8) for _ in range(3)]
    stub = video.stub
    standing = [await video.get(session) for session in (stepping, going_back)]
    sequences = [pb.ActionSequence(actions=turns(30)), pb.ActionSequence(actions=[pb.Action(id=2)] * 30)]
    calls = [
        stub.Step(pb.StepRequest(session=stepping, actions=turns(30))),
        stub.Rewind(pb.RewindRequest(session=going_back, chunk_count=3)),
        stub.Rollout(pb.RolloutRequest(session=stepping, sequences=sequences)),
        stub.Generate(pb.GenerateRequest(model=video.model, origin=pb.Origin(start="dusk"), actions=turns(60))),
        stub.CreateSession(pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"))),
        stub.Play(iter([P(session=name, begin=P.Begin(actions=turns(60)))])),
    ]
    reading = [asyncio.ensure_future(call.read()) for call in (calls[2], calls[3], calls[5])]
    await asyncio.sleep(delay_s)
    for call in calls:
        call.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    await video.until(video.is_quiet)
    video.engine.check_integrity()
    after = [await video.get(session) for session in (stepping, going_back)]
    assert after[0] == standing[0]
    assert after[1].session.chunk_index in (8, 5)
    for session in (name, stepping, going_back):
        await _step(video, session, 1)


async def test_a_client_whose_connection_breaks_in_the_middle_of_a_play_leaves_nothing(start_video: Any) -> None:
    video = await start_video(SLOW)
    name = await video.create()
    async with grpc.aio.insecure_channel(video.server.address) as channel:
        call = type(video.stub)(channel).Play()
        await call.write(P(session=name, begin=P.Begin(actions=turns(100))))
        for _ in range(4):
            await call.read()
    await video.until(lambda: _idle(video, name))
    await video.until(video.is_quiet)
    await _step(video, name, 1)


async def _open(first: pb.PlayRequest, over: asyncio.Event) -> AsyncIterator[pb.PlayRequest]:
    yield first
    await over.wait()


@pytest.mark.parametrize("kind", ["play", "rollout", "generate"])
async def test_a_stream_whose_reader_takes_nothing_ends_and_gives_back_what_it_holds(
    start_video: Any, kind: str
) -> None:
    video = await start_video(unread_s=0.5)
    name = await video.create()
    over = asyncio.Event()
    # The least window that the transport has, so that little is made for nobody.
    options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(video.server.address, options=options) as channel:
        stub = type(video.stub)(channel)
        if kind == "play":
            begin = P(session=name, begin=P.Begin(actions=turns(1), idle=P.IDLE_REPEAT))
            call = stub.Play(_open(begin, over))
        elif kind == "rollout":
            sequences = [pb.ActionSequence(actions=turns(100))]
            call = stub.Rollout(pb.RolloutRequest(session=name, sequences=sequences))
        else:
            origin = pb.Origin(start="dusk")
            call = stub.Generate(pb.GenerateRequest(model=video.model, origin=origin, actions=turns(100)))
        messages = aiter(call)
        for _ in range(3):
            await anext(messages)
        assert not await video.is_quiet()
        await video.until(video.is_quiet)
        video.engine.check_integrity()
        await _step(video, name, 1)
        # What was sent before may still be read, and then why no more comes.
        assert (await video.refused(call)).reason == "UNREAD"
        over.set()


async def test_a_create_whose_client_vanished_is_found_again_by_its_request_id(start_video: Any) -> None:
    video = await start_video(SLOW)
    request = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"), request_id="once")
    first = video.stub.CreateSession(request)
    await asyncio.sleep(0.01)
    first.cancel()
    answer = await video.stub.CreateSession(request)
    (session,) = (await video.stub.List(pb.ListRequest())).sessions
    assert session.session == answer.session.session
