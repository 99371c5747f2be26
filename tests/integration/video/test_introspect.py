"""What operators see of a replica, asked over gRPC while it works."""

import asyncio
from typing import Any

import grpc
import pytest
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld

P = pb.PlayRequest


def turns(count: int) -> list[pb.Action]:
    return [pb.Action(id=number % 3) for number in range(count)]


async def looked(video: Any, **request: Any) -> pb.IntrospectResponse.ModelStatus:
    answer = await video.stub.Introspect(pb.IntrospectRequest(**request))
    assert answer.replica == video.settings.replica
    assert not answer.draining
    assert answer.uptime_duration.ToTimedelta().total_seconds() > 0
    return answer.models[0]


async def test_it_shows_who_shares_what_and_where_blocks_are(start_video: Any) -> None:
    video = await start_video()
    first = await video.create(chunks=3)
    (child,) = (await video.stub.Fork(pb.ForkRequest(session=first))).sessions
    other = await video.create(chunks=2, start="dawn")
    model = await looked(video)
    by_name = {status.session.session: status for status in model.sessions}
    assert set(by_name) == {first, child.session, other}
    (sharing,) = by_name[first].sharing
    assert (sharing.session, sharing.block_count) == (child.session, by_name[first].session.block_count)
    assert not by_name[other].sharing
    pool = video.engine.pool
    tiers = {(tier.name, tier.storage): tier for tier in model.tiers}
    fp32 = tiers["pool", pb.KvPolicy.STORAGE_FP32]
    assert (fp32.held_block_count, fp32.cached_block_count) == (pool.held_count, pool.cached_count)
    assert fp32.shared_block_count == by_name[first].session.block_count
    assert {name for name, _ in tiers} == {"pool", "host"}
    assert sum(tick.step_count for tick in model.ticks) > 0
    assert model.prefix_hit_count == 0
    again = await video.create(chunks=3)
    assert (await looked(video)).prefix_hit_count == 6  # its start and its steps were made before
    assert len((await looked(video, session_limit=2)).sessions) == 2
    for name in (first, child.session, other, again):
        await video.stub.Delete(pb.DeleteRequest(session=name))
    assert not (await looked(video)).sessions


async def test_it_shows_plays_and_their_clocks_and_the_shares_of_tenants(start_video: Any) -> None:
    video = await start_video(TinyWorld())
    name = await video.create()
    call = video.stub.Play()
    await call.write(P(session=name, begin=P.Begin(fps=20, idle=P.IDLE_REPEAT, actions=turns(1))))
    for _ in range(4):
        await call.read()
    model = await looked(video)
    (play,) = model.plays
    assert (play.session, play.fps) == (name, 20)
    assert play.chunk_count >= 3
    assert -1 < play.slack_duration.ToTimedelta().total_seconds() <= 0.05 * 3
    assert 0 < model.play_load < 1
    assert model.sessions[0].call == "Play"
    assert sum(tick.play_count for tick in model.ticks) >= 3
    sequences = [pb.ActionSequence(actions=turns(4))]
    tenant = (("worldtree-tenant", "acme"),)
    other = (
        await video.stub.CreateSession(
            pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dawn")), metadata=tenant
        )
    ).session.session
    async for _ in video.stub.Rollout(pb.RolloutRequest(session=other, sequences=sequences), metadata=tenant):
        pass
    shares = {share.tenant: share for share in (await looked(video)).tenants}
    assert shares["acme"].chunk_count == 4
    call.cancel()
    await video.until(video.is_quiet)
    model = await looked(video)
    assert not model.plays
    assert model.play_load == 0
    await asyncio.sleep(0)


async def test_another_replica_is_not_here(start_video: Any) -> None:
    video = await start_video()
    assert (await looked(video, replica=video.settings.replica)).session_count == 0
    refusal = await video.refused(video.stub.Introspect(pb.IntrospectRequest(replica="video-elsewhere")))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert video.settings.replica in refusal.message


@pytest.mark.parametrize("limit", [-1, 10_001])
async def test_a_session_limit_out_of_range_is_refused(start_video: Any, limit: int) -> None:
    video = await start_video()
    refusal = await video.refused(video.stub.Introspect(pb.IntrospectRequest(session_limit=limit)))
    assert (refusal.field, refusal.code) == ("session_limit", grpc.StatusCode.INVALID_ARGUMENT)
