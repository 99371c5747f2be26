"""What each unary call and each one-way stream promises."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld


def turns(count: int) -> list[pb.Action]:
    return [pb.Action(id=number % 3) for number in range(count)]


def pixels(chunks: Any) -> list[bytes]:
    return [chunk.frames.tensor.data for chunk in chunks]


async def stepped(video: Any, name: str, actions: list[pb.Action], **fields: Any) -> list[bytes]:
    return pixels((await video.stub.Step(pb.StepRequest(session=name, actions=actions, **fields))).chunks)


async def test_models_are_listed_newest_version_first_and_described(video: Any) -> None:
    (model,) = (await video.stub.ListModels(pb.ListModelsRequest())).models
    assert (await video.stub.GetModel(pb.GetModelRequest(model=model.ref))).model == model
    assert (model.ref.name, model.window_chunks, list(model.nfe_choices)) == ("tiny", 4, [1, 2])


async def test_a_replica_names_itself_to_the_gateway(start_video: Any) -> None:
    video = await start_video(replica="video-seven")
    call = video.stub.ListModels(pb.ListModelsRequest())
    await call
    assert dict(await call.initial_metadata())["worldtree-replica"] == "video-seven"
    assert (await video.create()).endswith(".video-seven")


async def test_a_new_session_says_all_about_itself_and_shows_its_start(video: Any) -> None:
    answer = await video.stub.CreateSession(
        pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"), seed=11, nfe=1)
    )
    session = answer.session
    assert list(answer.frames.tensor.shape) == [3, 4, 6, 3]
    assert (session.chunk_index, session.start_frame_count, session.seed, session.nfe) == (0, 3, 11, 1)
    assert session.kv == pb.KvPolicy(
        kind=pb.KvPolicy.KIND_SINK_WINDOW, window_chunks=4, sink_chunks=1, storage=pb.KvPolicy.STORAGE_FP32
    )
    assert (session.state, session.start, session.parent) == (pb.Session.STATE_IDLE, "dusk", "")
    assert (session.block_count, session.shared_block_count, len(session.state_hash)) == (3, 0, 64)
    assert 595 < session.expire_time.seconds - session.create_time.seconds < 605
    got = await video.stub.Get(pb.GetRequest(session=session.session))
    assert got.last_frame.tensor.data == answer.frames.tensor.data[-72:]


async def cost_of(call: Any) -> int:
    return int(dict(await call.trailing_metadata())["worldtree-cost"])


async def test_what_frames_cost_is_told_in_the_trailers(video: Any) -> None:
    name = await video.create(nfe=2)
    per_chunk = (await video.stub.GetModel(pb.GetModelRequest(model=video.model))).model.frames_per_chunk
    step = video.stub.Step(pb.StepRequest(session=name, actions=turns(3)))
    await step
    assert await cost_of(step) == 3 * 2 * per_chunk
    sequences = [pb.ActionSequence(actions=turns(2)), pb.ActionSequence(actions=turns(3))]
    rollout = video.stub.Rollout(pb.RolloutRequest(session=name, sequences=sequences))
    made = [node async for node in rollout]
    assert await cost_of(rollout) == len(made) * 2 * per_chunk, "what two futures share is made once"
    origin = pb.Origin(start="dusk")
    clip = video.stub.Generate(pb.GenerateRequest(model=video.model, origin=origin, actions=turns(4), nfe=1))
    async for _ in clip:
        pass
    assert await cost_of(clip) == 4 * per_chunk


async def test_a_world_begins_at_the_clients_own_frames(video: Any) -> None:
    """Sent back, a start's frames make the same world as its name."""
    first = await video.stub.CreateSession(
        pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"), seed=7)
    )
    origin = pb.Origin(frames=first.frames, actions=[pb.Action(name="left"), pb.Action(name="stay")])
    second = await video.stub.CreateSession(pb.CreateSessionRequest(model=video.model, origin=origin, seed=7))
    assert second.session.state_hash == first.session.state_hash
    assert second.session.start == ""
    one, two = [await stepped(video, answer.session.session, turns(6)) for answer in (first, second)]
    assert one == two


async def test_steps_one_by_one_all_at_once_and_as_a_clip_are_the_same_frames(start_video: Any) -> None:
    video = await start_video(TinyWorld(frames_per_chunk=2, sampler="euler"))
    name, twin = await video.create(), await video.create()
    singly = list(itertools.chain.from_iterable([await stepped(video, name, [action]) for action in turns(12)]))
    assert await stepped(video, twin, turns(12)) == singly
    request = pb.GenerateRequest(model=video.model, origin=pb.Origin(start="dusk"), seed=7, actions=turns(12))
    pieces = [piece async for piece in video.stub.Generate(request)]
    assert pieces[0].WhichOneof("piece") == "start_frames"
    assert list(pieces[0].start_frames.tensor.shape) == [6, 4, 6, 3]
    assert pixels(piece.chunk for piece in pieces[1:]) == singly
    assert [piece.chunk.index for piece in pieces[1:]] == list(range(12))
    assert {piece.chunk_count for piece in pieces} == {12}


async def test_a_chunk_says_what_made_it_and_where_its_time_went(video: Any) -> None:
    answer = await video.stub.Step(pb.StepRequest(session=await video.create(), actions=turns(2)))
    (first, second), timing = answer.chunks, answer.chunks[1].timing
    assert (first.index, second.index, second.action.id, answer.chunk_index) == (0, 1, 1, 2)
    assert (timing.tick_count, timing.nfe, timing.mean_batch_size) == (2, 2, 1)
    assert timing.denoise_duration.nanos > 0
    assert timing.commit_duration.nanos > 0
    assert first.state_hash != second.state_hash


async def test_a_repeated_step_gets_its_first_answer_and_moves_nothing(video: Any) -> None:
    name = await video.create()
    request = pb.StepRequest(session=name, actions=turns(3), request_id="step-1")
    assert await video.stub.Step(request) == await video.stub.Step(request)
    assert (await video.get(name)).session.chunk_index == 3


async def test_a_retry_that_overtakes_its_first_try_waits_for_it(start_video: Any) -> None:
    video = await start_video(TinyWorld(work=200))
    session = await video.create()
    request = pb.StepRequest(session=session, actions=turns(4), request_id="once")
    first, second = await asyncio.gather(video.stub.Step(request), video.stub.Step(request))
    assert first == second
    assert (await video.get(session)).session.chunk_index == 4


async def test_repeats_of_create_fork_and_restore_get_their_first_answer_even_at_once(video: Any) -> None:
    create = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dawn"), request_id="create-1")
    answers = await asyncio.gather(*(video.stub.CreateSession(create) for _ in range(3)))
    (name,) = {answer.session.session for answer in answers}
    fork = pb.ForkRequest(session=name, count=2, request_id="fork-1")
    forks = await asyncio.gather(*(video.stub.Fork(fork) for _ in range(3)))
    assert len({tuple(session.session for session in answer.sessions) for answer in forks}) == 1
    saved = await video.stub.Save(pb.SaveRequest(session=name))
    restore = pb.RestoreRequest(snapshot=saved.snapshot, request_id="restore-1")
    restored = await asyncio.gather(*(video.stub.Restore(restore) for _ in range(3)))
    assert len({answer.session.session for answer in restored}) == 1
    assert len((await video.stub.List(pb.ListRequest())).sessions) == 1 + 2 + 1


async def test_one_request_id_on_two_sessions_forks_both(video: Any) -> None:
    names = [await video.create(), await video.create()]
    parents = [
        (await video.stub.Fork(pb.ForkRequest(session=name, request_id="same"))).sessions[0].parent for name in names
    ]
    assert parents == names


async def test_a_repeat_after_its_session_was_closed_is_told_so(video: Any) -> None:
    create = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dawn"), request_id="create-1")
    name = (await video.stub.CreateSession(create)).session.session
    saved = await video.stub.Save(pb.SaveRequest(session=name))
    restore = pb.RestoreRequest(snapshot=saved.snapshot, request_id="restore-1")
    twin = (await video.stub.Restore(restore)).session.session
    for closed in (name, twin):
        await video.stub.Delete(pb.DeleteRequest(session=closed))
    for call in (video.stub.CreateSession(create), video.stub.Restore(restore)):
        assert (await video.refused(call)).reason == "SESSION_NOT_FOUND"


async def test_a_fork_shares_all_blocks_and_goes_its_own_way(video: Any) -> None:
    name = await video.create(chunks=5)
    parent = (await video.get(name)).session
    free = video.engine.pool.free_count
    answer = await video.stub.Fork(pb.ForkRequest(session=name, count=3, seeds=[7, 8, 9]))
    assert video.engine.pool.free_count == free
    for child, seed in zip(answer.sessions, (7, 8, 9), strict=True):
        assert (child.parent, child.seed, child.chunk_index) == (name, seed, 5)
        assert child.state_hash == parent.state_hash
        assert child.shared_block_count == child.block_count == parent.block_count
    frames = [await stepped(video, child.session, turns(1)) for child in answer.sessions]
    assert frames[0] == await stepped(video, name, turns(1))
    assert len({tuple(frame) for frame in frames}) == 3


@pytest.mark.parametrize("back", [1, 6, 20])
async def test_a_rewind_shows_the_frame_it_leads_to_and_the_way_from_there_is_the_same(
    start_video: Any, back: int
) -> None:
    video = await start_video(reserve_chunks=3)
    name = await video.create()
    frames = await stepped(video, name, turns(20))
    answer = await video.stub.Rewind(pb.RewindRequest(session=name, chunk_count=back, expected_chunk_index=20))
    assert answer.session.chunk_index == 20 - back
    assert answer.session.state == pb.Session.STATE_IDLE
    got = await video.get(name)
    assert answer.last_frame == got.last_frame
    if back < 20:
        assert answer.last_frame.tensor.data == frames[19 - back]
    assert await stepped(video, name, turns(20)[20 - back :]) == frames[20 - back :]


@pytest.mark.parametrize("by", ["id", "bytes"])
async def test_a_saved_session_is_restored_by_id_or_by_its_bytes(video: Any, by: str) -> None:
    name = await video.create(chunks=9)
    standing = await video.get(name)
    saved = await video.stub.Save(pb.SaveRequest(session=name, include_data=by == "bytes"))
    assert saved.state_hash == standing.session.state_hash
    assert saved.size_bytes > 0
    assert len(saved.data) == (saved.size_bytes if by == "bytes" else 0)
    assert 86_390 < saved.expire_time.seconds - standing.session.create_time.seconds < 86_410
    expected = await stepped(video, name, turns(4))
    await video.stub.Delete(pb.DeleteRequest(session=name))
    request = pb.RestoreRequest(data=saved.data) if by == "bytes" else pb.RestoreRequest(snapshot=saved.snapshot)
    answer = await video.stub.Restore(request)
    assert answer.bit_identical
    assert answer.last_frame == standing.last_frame
    assert (answer.session.chunk_index, answer.session.state_hash) == (9, saved.state_hash)
    assert await stepped(video, answer.session.session, turns(4)) == expected


async def test_a_snapshot_is_forgotten_after_its_time(video: Any) -> None:
    name = await video.create()
    saved = await video.stub.Save(pb.SaveRequest(session=name, ttl=Duration(nanos=50_000_000)))
    await asyncio.sleep(0.1)
    refusal = await video.refused(video.stub.Restore(pb.RestoreRequest(snapshot=saved.snapshot)))
    assert refusal.reason == "SNAPSHOT_NOT_FOUND"


async def test_a_snapshot_of_another_model_is_not_restored(start_video: Any) -> None:
    video = await start_video()
    data = (await video.stub.Save(pb.SaveRequest(session=await video.create(), include_data=True))).data
    other = await start_video(TinyWorld(sampler="euler"))
    refusal = await other.refused(other.stub.Restore(pb.RestoreRequest(data=data)))
    assert refusal.reason == "MODEL_NOT_FOUND"
    flipped = bytearray(data)
    flipped[-1] ^= 1
    assert (
        await video.refused(video.stub.Restore(pb.RestoreRequest(data=bytes(flipped))))
    ).reason == "SNAPSHOT_CORRUPT"


async def test_a_rollout_sends_each_distinct_prefix_once_and_moves_nothing(video: Any) -> None:
    name = await video.create(chunks=2)
    before = await video.get(name)
    sequences = [[0, 1, 2], [0, 1, 1], [0, 1], [2, 2, 2, 2], [0, 1, 2]]
    request = pb.RolloutRequest(
        session=name,
        sequences=[pb.ActionSequence(actions=[pb.Action(id=action) for action in actions]) for actions in sequences],
    )
    nodes = [node async for node in video.stub.Rollout(request)]
    prefixes = {tuple(actions[:length]) for actions in sequences for length in range(1, len(actions) + 1)}
    assert len(nodes) == len(prefixes) == nodes[0].node_count
    assert nodes[0].chunk_count == sum(map(len, sequences))
    assert await video.get(name) == before
    for index, actions in enumerate(sequences):
        twin = (await video.stub.Fork(pb.ForkRequest(session=name))).sessions[0].session
        own = [node.chunk for node in nodes if index in node.sequences]
        assert [chunk.index for chunk in own] == list(range(2, 2 + len(actions)))
        assert pixels(own) == await stepped(video, twin, [pb.Action(id=action) for action in actions])
        assert own[-1].state_hash == (await video.get(twin)).session.state_hash


@pytest.mark.parametrize(
    ("detail", "with_frames"),
    [
        (pb.RolloutRequest.DETAIL_UNSPECIFIED, 5),
        (pb.RolloutRequest.DETAIL_ALL, 5),
        (pb.RolloutRequest.DETAIL_LAST, 3),
        (pb.RolloutRequest.DETAIL_NONE, 0),
    ],
)
async def test_a_rollout_brings_the_frames_that_were_asked_for(video: Any, detail: int, with_frames: int) -> None:
    sequences = [pb.ActionSequence(actions=turns(3)), pb.ActionSequence(actions=turns(1), seed=9)]
    sequences.append(pb.ActionSequence(actions=[pb.Action(id=2)]))
    request = pb.RolloutRequest(session=await video.create(), sequences=sequences, detail=detail)
    nodes = [node async for node in video.stub.Rollout(request)]
    assert len(nodes) == 5
    assert sum(node.chunk.HasField("frames") for node in nodes) == with_frames
    assert all(len(node.chunk.state_hash) == 64 for node in nodes)


@pytest.mark.parametrize(("first", "depths"), [(0, [0, 1, 2]), (1, [1, 2]), (3, [])])
async def test_frames_that_the_caller_has_already_are_not_sent_again(video: Any, first: int, depths: list[int]) -> None:
    sequences = [pb.ActionSequence(actions=turns(3))]
    request = pb.RolloutRequest(session=await video.create(), sequences=sequences, frames_from_depth=first)
    nodes = [node async for node in video.stub.Rollout(request)]
    assert [node.depth for node in nodes] == [0, 1, 2]
    assert [node.depth for node in nodes if node.chunk.HasField("frames")] == depths


async def test_sessions_are_listed_in_pages_oldest_first_whatever_closes_meanwhile(video: Any) -> None:
    names = [await video.create() for _ in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = await video.stub.List(pb.ListRequest(page_size=2, page_token=token))
        seen += [session.session for session in page.sessions]
        if names[0] in seen and len(seen) == 2:
            await video.stub.Delete(pb.DeleteRequest(session=names[1]))  # the one that the token names
        token = page.next_page_token
        if not token:
            break
    assert seen == names
    rest = await video.stub.List(pb.ListRequest())
    assert [session.session for session in rest.sessions] == [names[0], *names[2:]]
    assert rest.next_page_token == ""


async def test_a_lease_ends_and_keeping_alive_moves_its_end(video: Any) -> None:
    short = Duration(nanos=300_000_000)
    gone, kept = await video.create(ttl=short), await video.create(ttl=short)
    answer = await video.stub.KeepAlive(pb.KeepAliveRequest(session=kept, ttl=Duration(seconds=60)))
    renewed = await video.stub.KeepAlive(pb.KeepAliveRequest(session=kept))
    assert renewed.expire_time.ToMilliseconds() >= answer.expire_time.ToMilliseconds()

    async def is_gone() -> bool:
        listed = (await video.stub.List(pb.ListRequest())).sessions
        return [session.session for session in listed] == [kept]

    await video.until(is_gone)
    assert (await video.refused(video.stub.Get(pb.GetRequest(session=gone)))).reason == "SESSION_NOT_FOUND"


async def test_closing_a_session_says_how_many_blocks_came_free(video: Any) -> None:
    name = await video.create(chunks=3)
    child = (await video.stub.Fork(pb.ForkRequest(session=name))).sessions[0].session
    assert (await video.stub.Delete(pb.DeleteRequest(session=name))).freed_block_count == 0
    freed = (await video.stub.Delete(pb.DeleteRequest(session=child))).freed_block_count
    assert freed == 6
    assert video.engine.pool.free_count == video.engine.pool.block_count


async def test_readiness_follows_the_pool(start_video: Any) -> None:
    video = await start_video(TinyWorld(tokens=1024), headroom_blocks=9, reserve_chunks=0)
    health = health_pb2_grpc.HealthStub(video.channel)

    async def is_serving() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest(service="worldtree.video.v1.VideoGenerator"))
        assert await readyz(video) == (200 if answer.status == health_pb2.HealthCheckResponse.SERVING else 503)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    assert await is_serving()
    first = await video.create(chunks=3)
    video.engine.sessions.peek(first).readers.add(print)  # in use: it cannot be spilled
    second = await video.create(chunks=3, start="dawn")
    assert await is_serving()  # this one can be
    video.engine.sessions.peek(second).readers.add(print)
    await stepped(video, second, turns(1))
    assert not await is_serving()
    for call in (
        video.stub.CreateSession(pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dawn"))),
        video.stub.Fork(pb.ForkRequest(session=first)),
    ):
        refusal = await video.refused(call)
        assert refusal.reason == "KV_CACHE_FULL"
        assert refusal.details["RetryInfo"].retry_delay.seconds == 1
        assert "fewer than 9 of the 16 blocks" in refusal.message
    assert len(await stepped(video, first, turns(2))) == 2  # those that are open go on
    video.engine.sessions.peek(first).readers.clear()
    video.engine.sessions.peek(second).readers.clear()
    await video.stub.Delete(pb.DeleteRequest(session=second))
    assert await is_serving()


async def test_the_limit_of_sessions_is_told_with_its_numbers(start_video: Any) -> None:
    video = await start_video(max_sessions=2)
    name = await video.create()
    refusal = await video.refused(video.stub.Fork(pb.ForkRequest(session=name, count=2)))
    assert refusal.reason == "SESSION_LIMIT"
    assert refusal.details["ErrorInfo"].metadata["limit"] == "2"
    assert len((await video.stub.List(pb.ListRequest())).sessions) == 1


async def readyz(video: Any) -> int:
    status, _ = await fetch(video, "/readyz")
    return status


async def fetch(video: Any, path: str) -> tuple[int, str]:
    host, _, port = video.server.metrics_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return int(text.split(" ", 2)[1]), text


async def test_the_metrics_tell_ticks_chunks_blocks_and_sessions(video: Any) -> None:
    name = await video.create(chunks=3)
    await video.stub.Fork(pb.ForkRequest(session=name))
    play = video.stub.Play(iter([pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin(actions=turns(2)))]))
    assert len([message async for message in play]) == 3

    async def are_told() -> bool:
        _, text = await fetch(video, "/metrics")
        return all(
            line in text
            for line in (
                'worldtree_rpc_seconds_count{code="OK",method="worldtree.video.v1.VideoGenerator/Play",service="video"}',
                "worldtree_rpc_in_flight",
                'worldtree_tick_seconds_count{model="tiny"}',
                'worldtree_tick_batch_size_count{model="tiny"}',
                'worldtree_chunk_seconds_count{model="tiny",phase="queue"}',
                'worldtree_chunk_seconds_count{model="tiny",phase="denoise"}',
                'worldtree_chunk_seconds_count{model="tiny",phase="commit"} 8.0',
                "worldtree_control_latency_seconds_count 2.0",
                "worldtree_deadline_missed_total 0.0",
                'worldtree_kv_blocks{model="tiny",state="free",tier="pool"}',
                'worldtree_kv_blocks{model="tiny",state="held",tier="pool"}',
                'worldtree_kv_blocks{model="tiny",state="in_flight",tier="pool"} 0.0',
                'worldtree_kv_shared_blocks{model="tiny"} 6.0',
                'worldtree_sessions{model="tiny",state="idle"} 2.0',
                'worldtree_sessions{model="tiny",state="busy"} 0.0',
            )
        )

    await video.until(are_told)


async def test_the_metrics_tell_where_a_spilled_session_went_and_how_it_came_back(
    start_video: Any, tmp_path: Path
) -> None:
    video = await start_video(tier_url=str(tmp_path), prefix_cache=False)
    names = [await video.create(chunks=3), await video.create(chunks=3)]
    served = next(iter(video.catalog))
    residency, pool = served.worlds.residency, video.engine.pool

    def spill() -> None:
        while any(video.engine.sessions.holding(pool)):
            residency.spill_idle(pool)

    async def told(*lines: str) -> bool:
        _, text = await fetch(video, "/metrics")
        return all(f"{line}\n" in text for line in lines)

    await asyncio.wrap_future(video.engine.between_ticks(spill))
    copies = len(residency.tiers.host)
    assert copies > 0
    await video.until(
        lambda: told(
            'worldtree_sessions{model="tiny",state="spilled"} 2.0',
            'worldtree_sessions{model="tiny",state="idle"} 0.0',
            'worldtree_sessions{model="tiny",state="busy"} 0.0',
            f'worldtree_kv_blocks{{model="tiny",state="cached",tier="host"}} {copies}.0',
            'worldtree_kv_blocks{model="tiny",state="cached",tier="store"} 0.0',
            'worldtree_spilled_sessions_total{model="tiny"} 2.0',
        )
    )
    blocks = {key: held.block for key, held in residency.tiers.host._held.items()}
    assert len(await residency.tiers.save(residency.form(pool), blocks)) == copies
    residency._write_s = 0.0
    await stepped(video, names[0], turns(1))
    residency._write_s = 1e6  # loading takes for ever, so it is made again
    await stepped(video, names[1], turns(1))
    await video.until(
        lambda: told(
            'worldtree_sessions{model="tiny",state="spilled"} 0.0',
            'worldtree_sessions{model="tiny",state="idle"} 2.0',
            f'worldtree_kv_blocks{{model="tiny",state="cached",tier="store"}} {copies}.0',
            'worldtree_loaded_sessions_total{model="tiny"} 1.0',
            'worldtree_recomputed_sessions_total{model="tiny"} 1.0',
        )
    )


async def test_frames_of_the_shipped_world_come_over_the_wire(start_video: Any) -> None:
    video = await start_video(models=Path(__file__).parents[3] / "models", pool_mib=64)
    model = (await video.stub.GetModel(pb.GetModelRequest(model=common.ModelRef(name="minigrid")))).model
    assert len(model.starts) >= 12
    name = await video.create(start="four-rooms", model=model.ref)
    (frame,) = await stepped(video, name, [pb.Action(name="forward")])
    assert len(frame) == 56 * 56 * 3
    assert len(set(frame)) > 8


async def test_a_clip_and_a_rollout_run_only_so_far_ahead_of_a_reader_who_does_not_read(start_video: Any) -> None:
    # 768 KiB a chunk: what gRPC itself takes in on both sides holds only a few.
    video = await start_video(TinyWorld(height_px=512, width_px=512), max_untaken_chunks=4)
    origin = pb.Origin(start="dawn")
    clip = video.stub.Generate(pb.GenerateRequest(model=video.model, origin=origin, actions=turns(60)))
    session = await video.create(start="dawn")
    sequence = pb.ActionSequence(actions=turns(60))
    rollout = video.stub.Rollout(pb.RolloutRequest(session=session, sequences=[sequence]))
    pieces, nodes = aiter(clip), aiter(rollout)
    await anext(pieces)
    await anext(nodes)

    def tick() -> int:
        return int(video.engine.scheduler.tick)

    async def stands() -> bool:
        before = tick()
        await asyncio.sleep(0.3)
        return tick() == before

    await video.until(stands, timeout_s=20)
    unread = tick()
    assert len([piece async for piece in pieces]) == 60
    assert len([node async for node in nodes]) == 59
    assert tick() - unread >= 40, "most of it was made for a reader who had read one message of each"


async def test_a_step_whose_answer_no_message_could_carry_is_refused_before_the_session_moves(
    start_video: Any,
) -> None:
    video = await start_video(TinyWorld(height_px=64, width_px=64), max_message_bytes=64 * 1024)
    session = await video.create()
    before = await video.get(session)
    refusal = await video.refused(video.stub.Step(pb.StepRequest(session=session, actions=turns(9))))
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "actions")
    assert "1 to 4 actions, got 9" in refusal.message
    assert await video.get(session) == before
    await video.stub.Step(pb.StepRequest(session=session, actions=turns(4)))


async def test_a_snapshot_that_no_store_or_message_could_hold_is_refused(start_video: Any) -> None:
    video = await start_video(TinyWorld(tokens=4096), pool_mib=64, snapshot_store_mib=1)
    refusal = await video.refused(video.stub.Save(pb.SaveRequest(session=await video.create(chunks=4))))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_TOO_LARGE")
    assert "snapshot_store_mib" in refusal.message
