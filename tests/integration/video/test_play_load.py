"""Plays against their load over the wire: refused when they cannot be held, degraded before they are late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld

P = pb.PlayRequest
SLOW = TinyWorld(work=12)


@asynccontextmanager
async def playing(video: Any, session: str, metadata: Any = None, **fields: Any) -> AsyncIterator[Any]:
    """A play that repeats one action; it has begun."""
    call = video.stub.Play(metadata=metadata)
    begin = P.Begin(actions=[pb.Action(id=1)], idle=P.IDLE_REPEAT, lookahead_chunks=1, **fields)
    await call.write(P(session=session, begin=begin))
    first = await call.read()
    assert first is not grpc.aio.EOF, await call.code()
    assert first.WhichOneof("event") == "begun"
    try:
        yield call
    finally:
        call.cancel()


async def chunk(call: Any) -> pb.PlayResponse.Played:
    message = await asyncio.wait_for(call.read(), 10)
    assert message is not grpc.aio.EOF, await call.code()
    return message.played


def fps_of_share(video: Any, share: float) -> float:
    """The target that takes so much of the engine's time, by what it knows now. It learns no more from here on: a
    machine that has less to do would have room for another play.
    """
    with video.engine.lock:
        video.engine.scheduler.cost.observe = lambda **_: None
        return share / float(video.engine.scheduler.cost.chunk_s(2))


async def test_a_play_that_cannot_be_held_is_refused_with_the_fps_that_could_be(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1, play_load_max=1.0)
    one, two = await video.create(chunks=20, nfe=2), await video.create(chunks=20, nfe=2)
    fps = fps_of_share(video, 0.6)
    async with playing(video, one, fps=fps) as play:
        await chunk(play)
        assert video.engine.play_load > 0.3
        call = video.stub.Play()
        await call.write(P(session=two, begin=P.Begin(fps=fps)))
        refusal = await video.refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "FPS_UNAVAILABLE")
        assert "RetryInfo" in refusal.details
        metadata = refusal.details["ErrorInfo"].metadata
        assert float(metadata["fps"]) == pytest.approx(fps, rel=0.01)
        assert 0 < float(metadata["fps_possible"]) < fps
        assert metadata["fps_possible"] in refusal.message
        assert (await video.get(two)).session.state == pb.Session.STATE_IDLE
    # However it ends, its share is free again: this one was cancelled.
    await video.until(lambda: video.engine.play_load == 0.0)
    async with playing(video, two, fps=fps) as play:
        await chunk(play)


async def test_what_a_play_that_broke_off_was_promised_is_kept_for_its_session_and_for_nobody_else(
    start_video: Any,
) -> None:
    video = await start_video(SLOW, max_batch=1, play_load_max=1.0)
    one, two = await video.create(chunks=20, nfe=2), await video.create(chunks=20, nfe=2)
    fps = fps_of_share(video, 0.6)
    resumes = (("worldtree-resumes", "1"),)
    video.engine.scheduler.promises.kept_s = 600.0  # however busy the machine
    async with playing(video, one, resumes, fps=fps) as play:
        stands = (await chunk(play)).chunk.index + 1
    await video.until(lambda: not video.engine.sessions.busy_count)  # its gateway is gone
    other = video.stub.Play()
    await other.write(P(session=two, begin=P.Begin(fps=fps)))
    assert (await video.refused(other)).reason == "FPS_UNAVAILABLE"
    again = video.stub.Play(metadata=resumes)
    where = P.Continue(chunk_index=stands)
    await again.write(P(session=one, begin=P.Begin(fps=fps, resume_from=where)))
    assert (await again.read()).WhichOneof("event") == "resumed"
    again.cancel()
    await video.until(lambda: not video.engine.sessions.busy_count)
    await video.stub.Delete(pb.DeleteRequest(session=one))
    async with playing(video, two, fps=fps):
        pass  # nobody can go on with it


async def test_a_play_that_goes_on_after_its_replicas_death_is_not_refused_what_it_was_promised(
    start_video: Any,
) -> None:
    video = await start_video(SLOW, max_batch=1, play_load_max=1.0)
    one, two, three = [await video.create(chunks=20, nfe=2) for _ in range(3)]
    fps = fps_of_share(video, 0.6)
    async with playing(video, one, fps=fps) as play:
        await chunk(play)
        where = P.Continue(chunk_index=(await video.get(two)).session.chunk_index)
        begin = P(session=two, begin=P.Begin(fps=fps, resume_from=where))
        call = video.stub.Play()
        await call.write(begin)
        assert (await video.refused(call)).reason == "FPS_UNAVAILABLE", "anybody may say where it stood"
        call = video.stub.Play(metadata=(("worldtree-admitted", "1"),))  # which a gateway lets no client say
        await call.write(begin)
        assert (await call.read()).WhichOneof("event") == "resumed"
        assert video.engine.play_load > 1.0
        refused = video.stub.Play()
        await refused.write(P(session=three, begin=P.Begin(fps=fps)))
        assert (await video.refused(refused)).reason == "FPS_UNAVAILABLE", "it counts all the same"
        call.cancel()


async def test_a_play_faster_than_a_chunk_can_be_made_is_refused(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1, play_load_max=1.0)
    name = await video.create(chunks=20, nfe=2)
    call = video.stub.Play()
    await call.write(P(session=name, begin=P.Begin(fps=min(240.0, fps_of_share(video, 3.0)))))
    refusal = await video.refused(call)
    assert refusal.reason == "FPS_UNAVAILABLE"
    assert float(refusal.details["ErrorInfo"].metadata["fps_possible"]) > 0


@pytest.mark.parametrize(
    "tiny",
    [SLOW, replace(SLOW, cache_quality=True), replace(SLOW, latent=True, cache_quality=True)],
    ids=["plain", "told-quality", "latent"],
)
async def test_a_degraded_chunk_says_so_and_its_history_is_made_again_bit_for_bit(
    start_video: Any, tiny: TinyWorld
) -> None:
    video = await start_video(tiny, max_batch=1, play_load_max=1.0, reserve_chunks=0, prefix_cache=False)
    name = await video.create(nfe=2)
    async with playing(video, name, fps=5, degrade=P.DEGRADE_NFE) as play:
        first = await chunk(play)
        with video.engine.lock:  # what it would learn if the machine were slow for a while
            for _ in range(200):
                video.engine.scheduler.cost.observe(denoised_count=1, denoise_s=0.12, committed_count=1, commit_s=0.02)
        played = [first, *[await chunk(play) for _ in range(4)]]
        await play.write(P(stop=P.Stop()))
        while (message := await asyncio.wait_for(play.read(), 10)) is not grpc.aio.EOF:
            played.append(message.played)
    nfes = [item.chunk.timing.nfe for item in played]
    assert nfes[0] == 2
    assert 1 in nfes
    place = nfes.index(1)
    back = len(played) - 1 - place
    answer = await video.get(name)
    if back:
        await video.stub.Step(pb.StepRequest(session=name, actions=[pb.Action(id=0)] * 8))  # the start leaves the pool
        answer = await video.stub.Rewind(pb.RewindRequest(session=name, chunk_count=8 + back))
    assert answer.session.state_hash == played[place].chunk.state_hash
    assert answer.last_frame == played[place].chunk.frames  # one frame a chunk
    metric = video.engine._metrics.degraded_chunks.labels(video.model.name)
    assert metric._value.get() == nfes.count(1)


async def test_a_control_that_comes_while_a_repetition_is_made_is_in_that_chunk(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1, prefix_cache=False)
    name, other = await video.create(nfe=2), await video.create(nfe=2)
    engine, played, taken_up = video.engine, [], 0
    async with playing(video, name, fps=fps_of_share(video, 0.15)) as play:
        for attempt in range(40):
            played.append(await chunk(play))
            await video.until(lambda: engine.pool.in_flight_count == 1)
            making = (await video.get(name)).session.chunk_index
            await play.write(P(act=P.Act(actions=[pb.Action(id=attempt % 2)], replace=True)))
            played.append(await chunk(play))
            # It may have been made before the control came: then the one after it uses that.
            used = played[-1].HasField("control_latency")
            taken_up += used and played[-1].chunk.index == making
            if not used:
                played.append(await chunk(play))
            assert played[-1].chunk.action.id == attempt % 2
            assert played[-1].done_action_count == attempt + 2
            if taken_up == 3:
                break
        await play.write(P(stop=P.Stop()))
        while (message := await asyncio.wait_for(play.read(), 10)) is not grpc.aio.EOF:
            played.append(message.played)
    assert taken_up == 3
    assert [item.chunk.index for item in played] == list(range(len(played)))
    actions = [item.chunk.action for item in played]
    replayed = await video.stub.Step(pb.StepRequest(session=other, actions=actions))
    assert [item.state_hash for item in replayed.chunks] == [item.chunk.state_hash for item in played]
    assert [item.frames for item in replayed.chunks] == [item.chunk.frames for item in played]


async def test_an_unknown_degrade_is_refused(video: Any) -> None:
    name = await video.create()
    call = video.stub.Play()
    await call.write(P(session=name, begin=P.Begin(degrade=9)))
    refusal = await video.refused(call)
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "begin.degrade")
