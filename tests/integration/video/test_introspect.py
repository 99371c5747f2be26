"""What operators see of a replica, asked over gRPC while it works."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from worldtree.common.v1 import common_pb2 as common
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
    assert fp32.capacity_bytes == pool.block_count * video.engine.model.block_bytes(pool.storage)
    assert {name for name, _ in tiers} == {"pool", "host"}
    assert sum(tick.step_count for tick in model.ticks) > 0
    assert model.prefix_hit_count == 0
    again = await video.create(chunks=3)
    assert (await looked(video)).prefix_hit_count == 6  # its start and its steps were made before
    assert len((await looked(video, session_limit=2)).sessions) == 2
    for name in (first, child.session, other, again):
        await video.stub.Delete(pb.DeleteRequest(session=name))
    assert not (await looked(video)).sessions


@pytest.mark.parametrize("storage", [pb.KvPolicy.STORAGE_FP32, pb.KvPolicy.STORAGE_INT8])
async def test_it_shows_the_copies_of_each_model_below_the_pool_in_bytes(
    start_video: Any, tmp_path: Path, storage: Any
) -> None:
    repository = tmp_path / "two"
    for name in ("tiny", "wide"):
        TinyWorld(name=name).write(repository)
    video = await start_video(models=repository, tier_url=str(tmp_path / "store"), host_mib=2)
    request = pb.CreateSessionRequest(
        model=common.ModelRef(name="tiny"), origin=pb.Origin(start="dusk"), kv=pb.KvPolicy(storage=storage)
    )
    session = (await video.stub.CreateSession(request)).session.session
    await video.stub.Step(pb.StepRequest(session=session, actions=turns(3)))
    served = next(each for each in video.catalog if each.package.name == "tiny")
    engine, tiers = served.worlds.engine, served.worlds.residency.tiers
    pool = engine.sessions.peek(session).branch.table.pool
    await asyncio.wrap_future(engine.between_ticks(lambda: served.worlds.residency.spill_idle(pool)))

    async def below() -> dict[tuple[str, str], pb.IntrospectResponse.Tier]:
        models = (await video.stub.Introspect(pb.IntrospectRequest())).models
        return {(model.model.name, tier.name): tier for model in models for tier in model.tiers if tier.name != "pool"}

    (block,) = {held.nbytes for held in tiers.host._held.values()}
    shown = await below()
    host = shown["tiny", "host"]
    assert host.cached_block_count == len(tiers.host) > 0
    # A copy has the pool's bytes and its pixels: how many fit depends on the format, so it is told in bytes.
    assert block > served.worlds.model.block_bytes(pool.storage)
    assert (host.used_bytes, host.capacity_bytes) == (host.cached_block_count * block, 2 << 20)
    assert (host.capacity_block_count, host.held_block_count) == (0, 0)
    other = shown["wide", "host"]
    assert (other.cached_block_count, other.used_bytes, other.capacity_bytes) == (0, 0, 2 << 20)
    assert shown["tiny", "folder"].cached_block_count == 0
    blocks = {key: held.block for key, held in tiers.host._held.items()}
    await tiers.save(served.worlds.residency.form(pool), blocks)
    shown = await below()
    store = shown["tiny", "folder"]
    assert (store.cached_block_count, store.used_bytes) == (len(blocks), len(blocks) * block)
    assert (store.capacity_block_count, store.held_block_count, store.capacity_bytes) == (0, 0, 0)
    assert shown["wide", "folder"].cached_block_count == 0
    tiers.check_integrity()


async def test_a_tier_that_was_switched_off_is_not_shown(start_video: Any) -> None:
    video = await start_video(host_mib=0)
    assert {tier.name for tier in (await looked(video)).tiers} == {"pool"}


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
