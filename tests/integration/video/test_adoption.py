"""Sessions that come to a replica: after its own SIGKILL from a folder, or from another's journal in a real Valkey."""

import asyncio
import dataclasses
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from video_process import video_process
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld
from worldtree_video import snapshot as snapshots

StartVideo = Callable[..., Awaitable[Any]]
MODEL = common.ModelRef(name="tiny")
RETRIEVE = pb.KvPolicy(kind=pb.KvPolicy.KIND_RETRIEVE, window_chunks=4, sink_chunks=1, recent_chunks=1, bank_chunks=3)


def turns(count: int, *, by: int = 0) -> list[pb.Action]:
    return [pb.Action(id=(number + by) % 3) for number in range(count)]


async def create(stub: Any, *, seed: int = 7, kv: pb.KvPolicy | None = None) -> str:
    request = pb.CreateSessionRequest(model=MODEL, origin=pb.Origin(start="dusk"), seed=seed, kv=kv)
    return str((await stub.CreateSession(request)).session.session)


async def step(stub: Any, session: str, count: int, *, by: int = 0, **options: Any) -> list[Any]:
    """(frames, state hash) of each chunk."""
    metadata = options.pop("metadata", None)
    request = pb.StepRequest(session=session, actions=turns(count, by=by), **options)
    answer = await stub.Step(request, metadata=metadata)
    return [(chunk.frames.tensor.data, chunk.state_hash) for chunk in answer.chunks]


async def play(stub: Any, session: str, *messages: pb.PlayRequest, **begin: Any) -> list[pb.PlayResponse]:
    call = stub.Play()
    await call.write(pb.PlayRequest(session=session, begin=pb.PlayRequest.Begin(**begin)))
    for message in messages:
        await call.write(message)
    await call.done_writing()
    return [message async for message in call]


async def read_to_its_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


# ---- one replica and a folder, killed


def child(models: Path, folder: Path, **flags: Any) -> Any:
    """A served child process and a stub of it; killed at the end."""
    known = {"models": models, "replica": "video-a", "journal_folder": folder, "max_batch": 4, "headroom_blocks": 2}
    return video_process(**known, **flags)


@pytest.mark.timeout(120)
async def test_a_replica_that_is_killed_and_started_again_goes_on_with_each_of_its_sessions(
    tmp_path: Path, start_video: StartVideo
) -> None:
    TinyWorld(pose=True).write(tmp_path / "models")
    apart = (await start_video(models=tmp_path / "models", prefix_cache=False)).stub
    folder = tmp_path / "journal"
    policies: list[pb.KvPolicy | None] = [
        None,
        RETRIEVE,
        pb.KvPolicy(storage=pb.KvPolicy.STORAGE_INT8),
        pb.KvPolicy(storage=pb.KvPolicy.STORAGE_FP16),
    ]
    retried = "9a6b3d0e-8d0f-4bb3-9a1e-0d5f4c3b2a19"

    async def past(stub: Any) -> list[str]:
        names = [await create(stub, seed=seed, kv=kv) for seed, kv in enumerate(policies)]
        for place, name in enumerate(names):
            await step(stub, name, 5 + 9 * place)
        await stub.Rewind(pb.RewindRequest(session=names[0], chunk_count=2))
        await play(stub, names[0], actions=turns(3, by=1))
        forked = await stub.Fork(pb.ForkRequest(session=names[1], count=1))
        return [*names, forked.sessions[0].session]

    async with child(tmp_path / "models", folder, checkpoint_chunks=4) as (stub, process):
        names = await past(stub)
        answered = await step(stub, names[2], 3, request_id=retried)
        standing = [(await stub.Get(pb.GetRequest(session=name))) for name in names]
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with child(tmp_path / "models", folder, checkpoint_chunks=4) as (stub, _):
        while len((await stub.List(pb.ListRequest())).sessions) < len(names):  # noqa: ASYNC110 - taken up behind us
            await asyncio.sleep(0.02)
        # The step whose answer may not have come moves nothing, and shows what it showed.
        assert await step(stub, names[2], 3, request_id=retried) == answered
        for name, before in zip(names, standing, strict=True):
            after = await stub.Get(pb.GetRequest(session=name))
            assert after.last_frame == before.last_frame
            for field in ("chunk_index", "state_hash", "seed", "kv", "parent", "create_time", "start_frame_count"):
                assert getattr(after.session, field) == getattr(before.session, field), field
            assert after.session.journaled
        twins = await past(apart)
        await step(apart, twins[2], 3)
        for name, twin in zip(names, twins, strict=True):
            assert await step(stub, name, 4, by=2) == await step(apart, twin, 4, by=2)
        for name in names:
            await stub.Delete(pb.DeleteRequest(session=name))
        tiers = (await stub.Introspect(pb.IntrospectRequest())).models[0].tiers
        assert all(tier.held_block_count == 0 for tier in tiers if tier.name == "pool")
    async with child(tmp_path / "models", folder) as (stub, _):
        for name in names:  # deleted is deleted
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Get(pb.GetRequest(session=name))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# ---- two replicas and a Valkey


class Pair:
    """Two replicas of one deployment, in this process."""

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b
        self.rehome = (("worldtree-rehome", "video-a"),)

    async def empty(self) -> None:
        """Every session deleted where it lives, every block of both free."""
        for video in (self.a, self.b):
            for session in list(video.engine.sessions):
                try:
                    await video.stub.Delete(pb.DeleteRequest(session=session.name))
                except grpc.aio.AioRpcError:
                    assert session.ended, "only one that was lost at this very moment cannot be deleted"
            # A checkpoint under way holds its blocks a moment longer than their session.
            await video.until(lambda: not any(pool.held_count for pool in video.engine.pools.values()))  # noqa: B023
            video.engine.check_integrity()


@pytest.fixture
async def pair(valkey: Any, start_video: StartVideo, tmp_path: Path) -> Pair:
    TinyWorld(pose=True).write(tmp_path / "models")
    a, b = [
        await start_video(
            models=tmp_path / "models", redis_url=valkey.url, replica=replica, checkpoint_chunks=4, prefix_cache=False
        )
        for replica in ("video-a", "video-b")
    ]
    return Pair(a, b)


async def test_a_session_is_adopted_from_a_dead_replica_only_when_the_gateway_says_that_it_is_dead(pair: Pair) -> None:
    name, twin = [await pair.a.create(chunks=7) for _ in range(2)]
    refusal = await pair.b.refused(pair.b.stub.Get(pb.GetRequest(session=name)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_MOVED")
    assert refusal.details["ErrorInfo"].metadata["replica"] == "video-a"
    wrong = pair.b.stub.Get(pb.GetRequest(session=name), metadata=(("worldtree-rehome", "video-c"),))
    assert (await pair.b.refused(wrong)).reason == "SESSION_MOVED"
    assert name not in pair.b.engine.sessions
    on = await step(pair.a.stub, twin, 4)
    before = await pair.a.get(name)
    after = await pair.b.stub.Get(pb.GetRequest(session=name), metadata=pair.rehome)
    assert after.last_frame == before.last_frame
    assert after.session.state_hash == before.session.state_hash
    assert after.session.create_time == before.session.create_time
    assert await step(pair.b.stub, name, 4) == on
    # The old owner learns it from its next write, and says who has it.
    held = pair.a.engine.pool.held_count
    refusal = await pair.a.refused(pair.a.stub.Step(pb.StepRequest(session=name, actions=turns(1))))
    assert (refusal.reason, refusal.details["ErrorInfo"].metadata["replica"]) == ("SESSION_MOVED", "video-b")
    assert name not in pair.a.engine.sessions
    assert pair.a.engine.pool.held_count < held
    refusal = await pair.a.refused(pair.a.stub.Get(pb.GetRequest(session=name)))
    assert (refusal.reason, refusal.details["ErrorInfo"].metadata["replica"]) == ("SESSION_MOVED", "video-b")
    await pair.empty()


async def test_two_that_ask_at_once_adopt_once_whatever_they_know_of_the_dead(pair: Pair) -> None:
    name = await pair.a.create(chunks=7)
    calls = [
        pair.b.stub.Get(pb.GetRequest(session=name), metadata=metadata) for metadata in (None, *[pair.rehome] * 4, None)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, pb.GetResponse) for answer in answers[1:5])
    assert name in pair.b.engine.sessions
    pair.b.engine.check_integrity()
    await pair.empty()


async def test_a_session_goes_to_another_replica_and_comes_back(pair: Pair) -> None:
    name, twin = [await pair.a.create(chunks=7) for _ in range(2)]
    await step(pair.b.stub, name, 3, metadata=pair.rehome)
    back = (("worldtree-rehome", "video-b"),)
    # It is here still: it has not been told. Its write is refused, and the next call brings the session home.
    await pair.a.refused(pair.a.stub.Step(pb.StepRequest(session=name, actions=turns(1))))
    made = await step(pair.a.stub, name, 5, by=3, metadata=back)
    assert made == (await step(pair.a.stub, twin, 8))[3:]
    await pair.empty()


async def test_a_replica_that_is_fenced_while_it_plays_tells_its_reader_where_the_session_went(pair: Pair) -> None:
    name = await pair.a.create(chunks=2)
    call = pair.a.stub.Play()
    await call.write(pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin(actions=turns(2))))
    seen = [await call.read() for _ in range(3)]
    assert [message.WhichOneof("event") for message in seen][1:] == ["played", "played"]
    await pair.b.stub.Get(pb.GetRequest(session=name), metadata=pair.rehome)
    await call.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=turns(4))))
    with pytest.raises(grpc.aio.AioRpcError, match="owned by replica video-b") as caught:
        await read_to_its_end(call)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert name not in pair.a.engine.sessions
    await pair.empty()


async def test_a_deleted_session_does_not_come_back_while_the_journal_is_being_told(valkey: Any, pair: Pair) -> None:
    name = await pair.a.create(chunks=2)
    valkey.pause(300)
    # Its journal is at a write, so that the end of it waits behind that.
    stepping = asyncio.ensure_future(step(pair.a.stub, name, 1))
    await pair.a.until(lambda: pair.a.engine.sessions.peek(name).branch.chunk_index == 3)
    deleting = pair.a.stub.Delete(pb.DeleteRequest(session=name))
    await pair.a.until(lambda: name not in pair.a.engine.sessions)
    refusal = await pair.a.refused(pair.a.stub.Get(pb.GetRequest(session=name)))
    assert refusal.reason == "SESSION_NOT_FOUND"
    await asyncio.gather(deleting, stepping, return_exceptions=True)
    assert (await pair.a.refused(pair.a.stub.Get(pb.GetRequest(session=name)))).reason == "SESSION_NOT_FOUND"
    assert name not in pair.a.engine.sessions


async def test_a_child_of_an_adopted_session_that_was_never_completed_goes_on_as_it_would(pair: Pair) -> None:
    name, twin = [await pair.a.create(chunks=7) for _ in range(2)]
    forked = await pair.b.stub.Fork(pb.ForkRequest(session=name, count=1), metadata=pair.rehome)
    child_name = forked.sessions[0].session
    assert pair.b.engine.pool.held_count == 0
    on = await step(pair.a.stub, twin, 3)
    assert await step(pair.b.stub, child_name, 3) == on
    assert await step(pair.b.stub, name, 3) == on
    await pair.empty()


async def test_an_adopted_session_that_was_never_completed_goes_back(pair: Pair) -> None:
    name, twin = [await pair.a.create(chunks=19) for _ in range(2)]
    await pair.a.stub.Rewind(pb.RewindRequest(session=twin, chunk_count=17))
    request = pb.RewindRequest(session=name, chunk_count=17)
    rewound = await pair.b.stub.Rewind(request, metadata=pair.rehome)
    assert rewound.last_frame == (await pair.a.get(twin)).last_frame
    assert await step(pair.b.stub, name, 3) == await step(pair.a.stub, twin, 3)
    await pair.empty()


async def test_a_step_is_answered_again_after_a_look_and_after_a_play_came_first(pair: Pair) -> None:
    name = await pair.a.create(chunks=6)
    answered = await step(pair.a.stub, name, 3, request_id="once")
    await pair.b.stub.Get(pb.GetRequest(session=name), metadata=pair.rehome)
    played = await play(pair.b.stub, name, actions=turns(2))
    assert [message.played.chunk.index for message in played[1:]] == [9, 10]
    before = await pair.b.get(name)
    assert await step(pair.b.stub, name, 3, request_id="once") == answered
    assert await pair.b.get(name) == before
    assert await step(pair.b.stub, name, 3, request_id="once") == answered
    await pair.empty()


async def test_frames_of_a_forged_world_are_not_taken_for_those_of_its_history(pair: Pair) -> None:
    """A client's bytes may hold any block; whoever adopts the session from the journal makes it again honestly."""
    honest = await pair.a.create(chunks=5)
    archive = next(iter(pair.a.catalog)).archive
    data, _ = await archive.save(honest)
    saved = snapshots.decode(data)
    blocks = {tensor: rows + 0.25 for tensor, rows in saved.blocks.items()}
    forger, _ = await archive.restore(dataclasses.replace(saved, blocks=blocks), ttl_s=60)
    lie = await step(pair.a.stub, forger.name, 4)
    adopted = await step(pair.b.stub, forger.name, 2, metadata=pair.rehome)
    truth = await step(pair.a.stub, honest, 4)
    assert lie != truth
    assert adopted == await step(pair.a.stub, honest, 2)
    rewound = await pair.b.stub.Rewind(pb.RewindRequest(session=forger.name, chunk_count=2))
    assert rewound.last_frame.tensor.data == truth[-1][0]
    await pair.empty()


# ---- a lease


async def test_an_adopted_sessions_lease_is_what_the_journal_knows_and_a_while_to_come_back(pair: Pair) -> None:
    name = await pair.a.create(ttl=Duration(seconds=3000))
    journal_end_s = pair.a.engine.sessions.peek(name).expires_s
    await pair.b.stub.Get(pb.GetRequest(session=name), metadata=pair.rehome)
    session = pair.b.engine.sessions.peek(name)
    assert session.expires_s >= journal_end_s - 1
    assert session.ttl_s == 3000
    await pair.empty()


async def test_a_session_whose_lease_ended_while_its_replica_was_away_waits_a_minute_for_its_client(
    tmp_path: Path, start_video: StartVideo
) -> None:
    TinyWorld().write(tmp_path / "models")
    folder = tmp_path / "journal"
    async with child(tmp_path / "models", folder) as (stub, process):
        request = pb.CreateSessionRequest(model=MODEL, origin=pb.Origin(start="dusk"), ttl=Duration(seconds=1))
        short = (await stub.CreateSession(request)).session.session
        request.ttl.seconds = 500
        long = (await stub.CreateSession(request)).session
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await asyncio.sleep(1.2)
    video = await start_video(models=tmp_path / "models", journal_folder=str(folder), replica="video-a")
    await video.until(lambda: long.session in video.engine.sessions)
    assert abs(video.engine.sessions.peek(long.session).expires_s - long.expire_time.ToNanoseconds() / 1e9) < 0.01
    now_s = next(iter(video.catalog)).worlds.now()
    if short in video.engine.sessions:
        assert video.engine.sessions.peek(short).expires_s <= now_s + 1.1  # its own lease is shorter than a minute


# ---- resume_from


def delivered(chunks: list[Any], first: int) -> list[pb.PlayRequest.Continue.Delivered]:
    return [
        pb.PlayRequest.Continue.Delivered(
            index=first + place, action=chunk.action, nfe=chunk.timing.nfe, state_hash=chunk.state_hash
        )
        for place, chunk in enumerate(chunks)
    ]


async def chunks_of(stub: Any, session: str, count: int, *, by: int = 0) -> list[Any]:
    return list((await stub.Step(pb.StepRequest(session=session, actions=turns(count, by=by)))).chunks)


@pytest.mark.parametrize("ahead", [0, 3, 12], ids=["level", "ahead", "ahead_of_the_reserve"])
async def test_a_play_goes_on_where_its_reader_stands_in_a_session_that_is_there_or_ahead(
    pair: Pair, ahead: int
) -> None:
    name, twin = [await pair.a.create(chunks=2) for _ in range(2)]
    seen = await chunks_of(pair.a.stub, name, 4)
    await chunks_of(pair.a.stub, twin, 4)
    if ahead:
        await step(pair.a.stub, name, ahead, by=1)
    resume = pb.PlayRequest.Continue(chunk_index=6, delivered=delivered(seen, 2))
    call = pair.b.stub.Play(metadata=pair.rehome)
    await call.write(
        pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin(actions=turns(5, by=2), resume_from=resume))
    )
    messages = [await call.read() for _ in range(6)]
    assert messages[0].resumed.chunk_index == 6
    assert messages[0].resumed.bit_identical
    shown = [(message.played.chunk.frames.tensor.data, message.played.chunk.state_hash) for message in messages[1:]]
    assert shown == await step(pair.a.stub, twin, 5, by=2)
    # While it plays, the journal knows the way that was taken and not the one that was left, one chunk behind at most.
    refusal = await pair.a.refused(pair.a.stub.Step(pb.StepRequest(session=name, actions=turns(1))))
    assert refusal.reason == "SESSION_MOVED"
    home = (("worldtree-rehome", "video-b"),)
    there = await pair.a.stub.Get(pb.GetRequest(session=name), metadata=home)
    assert there.session.state_hash in (shown[-1][1], shown[-2][1])
    call.cancel()
    await pair.b.until(pair.b.is_quiet)
    await pair.empty()


async def test_a_play_whose_session_is_behind_makes_again_what_its_reader_has(pair: Pair) -> None:
    name, twin = [await pair.a.create(chunks=2) for _ in range(2)]
    seen = await chunks_of(pair.a.stub, twin, 3)
    resume = pb.PlayRequest.Continue(chunk_index=5, delivered=delivered(seen, 2))
    call = pair.b.stub.Play(metadata=pair.rehome)
    await call.write(pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin(actions=turns(2), resume_from=resume)))
    await call.done_writing()
    messages = [message async for message in call]
    assert messages[0].resumed.chunk_index == 5
    shown = [(message.played.chunk.frames.tensor.data, message.played.chunk.state_hash) for message in messages[1:]]
    assert shown == await step(pair.a.stub, twin, 2)
    await pair.empty()


async def test_a_play_whose_journal_had_yet_to_learn_of_a_rewind_goes_on_from_where_they_part(pair: Pair) -> None:
    name, twin, third = [await pair.a.create() for _ in range(3)]
    for session in (name, twin, third):
        seen = await chunks_of(pair.a.stub, session, 8)
    for session in (twin, third):
        await pair.a.stub.Rewind(pb.RewindRequest(session=session, chunk_count=4))
        anew = await chunks_of(pair.a.stub, session, 2, by=2)
    for known in (seen[1:4], []):  # the reader's last chunks begin before they part, or where they do
        given = delivered([*known, *anew], 4 - len(known))
        begin = pb.PlayRequest.Begin(
            actions=turns(2), resume_from=pb.PlayRequest.Continue(chunk_index=6, delivered=given)
        )
        session = name if known else (await pair.a.stub.Fork(pb.ForkRequest(session=twin, count=1))).sessions[0].session
        call = pair.a.stub.Play()
        await call.write(pb.PlayRequest(session=session, begin=begin))
        await call.done_writing()
        messages = [message async for message in call]
        assert messages[0].resumed.chunk_index == 6
        shown = [(message.played.chunk.frames.tensor.data, message.played.chunk.state_hash) for message in messages[1:]]
        if known:
            expected = await step(pair.a.stub, third, 2)
        assert shown == expected
    await pair.empty()


async def test_a_play_that_cannot_be_gone_on_with_moves_nothing(pair: Pair) -> None:
    name, twin = [await pair.a.create(chunks=4) for _ in range(2)]
    seen = await chunks_of(pair.a.stub, twin, 3)
    elsewhere = await chunks_of(pair.a.stub, await pair.a.create(chunks=5), 2, by=1)
    before = await pair.a.get(name)

    async def refused(chunk_index: int, chunks: list[pb.PlayRequest.Continue.Delivered]) -> Any:
        resume = pb.PlayRequest.Continue(chunk_index=chunk_index, delivered=chunks)
        call = pair.a.stub.Play()
        await call.write(pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin(resume_from=resume)))
        await call.done_writing()
        refusal = await pair.a.refused(call)
        assert await pair.a.get(name) == before
        return refusal

    gap = await refused(7, delivered(seen[1:], 5))
    assert (gap.code, gap.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PLAY_GAP")
    assert gap.details["ErrorInfo"].metadata["delivered_count"] == "2"
    ahead, behind = delivered(seen, 4), delivered(elsewhere, 2)
    ahead[-1].state_hash = "00" * 32
    assert (await refused(7, ahead)).reason == "PLAY_DIVERGED"
    assert (await refused(4, behind)).reason == "PLAY_DIVERGED"
    assert (await refused(3, delivered(elsewhere[:1], 2))).reason == "PLAY_DIVERGED"
    bad = delivered(seen, 4)
    bad[1].index = 9
    assert (await refused(7, bad)).field == "begin.resume_from.delivered[1].index"
    bad = delivered(seen, 4)
    bad[2].state_hash = "no hash"
    assert (await refused(7, bad)).field == "begin.resume_from.delivered[2].state_hash"
    assert (await refused(-1, [])).field == "begin.resume_from.chunk_index"
    await pair.empty()


# ---- a journal that is down


async def test_sessions_go_on_while_the_journal_is_down_and_are_protected_again_when_it_is_back(
    valkey: Any, pair: Pair
) -> None:
    name, twin = [await pair.a.create(chunks=6) for _ in range(2)]
    assert (await pair.a.get(name)).session.journaled
    valkey.kill()
    made = await step(pair.a.stub, name, 3)
    assert not (await pair.a.get(name)).session.journaled
    refusal = await pair.b.refused(pair.b.stub.Get(pb.GetRequest(session=name), metadata=pair.rehome))
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    valkey.restart()

    async def journaled() -> bool:
        return bool((await pair.a.get(name)).session.journaled)

    await pair.a.until(journaled, timeout_s=10)
    assert made == await step(pair.a.stub, twin, 3)
    on = await step(pair.a.stub, twin, 2)
    assert await step(pair.b.stub, name, 2, metadata=pair.rehome) == on
    await pair.empty()
