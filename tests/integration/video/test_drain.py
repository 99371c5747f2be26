"""A replica that stops: calls end with the chunk they are at, and another replica goes on from the checkpoint."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_runtime.stores import StoreUnavailable
from worldtree_runtime.testing import TinyWorld
from worldtree_video.catalog import Catalog, Served
from worldtree_video.config import VideoSettings
from worldtree_video.live import LivePlay
from worldtree_video.serving import serve_video

StartVideo = Callable[..., Awaitable[Any]]
REHOME = (("worldtree-rehome", "video-a"),)


def turns(count: int) -> list[pb.Action]:
    return [pb.Action(id=number % 3) for number in range(count)]


class Leaving:
    """A replica that a test stops, as SIGTERM does."""

    def __init__(self, settings: VideoSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.stub: Any = None
        self.catalog: Catalog | None = None

    async def start(self) -> None:
        self._serving = serve_video(self._settings)
        server, self.catalog = await self._serving.__aenter__()
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        await channel.channel_ready()
        self.stub = VideoGeneratorStub(channel)

    @property
    def served(self) -> Served:
        assert self.catalog
        return next(iter(self.catalog))

    async def stop(self) -> None:
        """Returns when it has stopped; every block of it is free then."""
        engine = self.served.worlds.engine
        await self._serving.__aexit__(None, None, None)
        engine.check_integrity()
        assert [pool.held_count for pool in engine.pools.values()] == [0, 0, 0]
        assert len(engine.sessions) == 0

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def create(self, *, chunks: int = 0, **fields: Any) -> str:
        model = self.served.ref
        request = pb.CreateSessionRequest(model=model, origin=pb.Origin(start="dusk"), **{"seed": 7, **fields})
        name = str((await self.stub.CreateSession(request)).session.session)
        if chunks:
            await self.stub.Step(pb.StepRequest(session=name, actions=turns(chunks)))
        return name


StartPair = Callable[..., Awaitable[tuple[Leaving, Any]]]


@pytest.fixture
async def start_pair(valkey: Any, start_video: StartVideo, tmp_path: Path) -> AsyncIterator[StartPair]:
    """One that will leave and one that stays, over one Valkey."""
    leaving: list[Leaving] = []

    async def start(tiny: TinyWorld | None = None, **settings: Any) -> tuple[Leaving, Any]:
        (tiny or TinyWorld()).write(tmp_path / "models")
        known = {"redis_url": valkey.url, "prefix_cache": False, "drain_timeout_s": 5, **settings}
        stays = await start_video(models=tmp_path / "models", replica="video-b", **known)
        small = {"port": 0, "metrics_port": 0, "pool_mib": 1, "fp16_pool_mib": 1, "int8_pool_mib": 1}
        small |= {"max_batch": 4, "headroom_blocks": 2}
        leaves = Leaving(VideoSettings(models=str(tmp_path / "models"), replica="video-a", **small, **known))
        await leaves.start()
        leaving.append(leaves)
        return leaves, stays

    yield start
    for each in leaving:
        await each.aclose()


def reason(error: grpc.aio.AioRpcError) -> str:
    class Trailers:
        def trailing_metadata(self) -> Any:
            return list(error.trailing_metadata() or ())

        def code(self) -> Any:
            return error.code()

        def details(self) -> Any:
            return error.details()

    status = rpc_status.from_call(Trailers())
    assert status is not None, f"{error.code()} {error.details()}"
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.reason)


async def ended(call: Any) -> tuple[list[Any], str]:
    """What a stream still brings, and the reason of its end (empty: it ended well)."""
    messages: list[Any] = []
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    except grpc.aio.AioRpcError as error:
        return messages, reason(error)
    return messages, ""


async def test_what_a_replica_gives_up_is_loaded_from_its_checkpoint_and_only_committed_after_it(
    start_pair: StartPair,
) -> None:
    leaves, stays = await start_pair(checkpoint_chunks=1000)
    names = [await leaves.create(chunks=9), await leaves.create(chunks=12, seed=8)]
    twin = await stays.create(chunks=9)
    standing = [(await leaves.stub.Get(pb.GetRequest(session=name))).session.state_hash for name in names]
    await leaves.stop()
    residency = next(iter(stays.catalog)).worlds.residency
    tick_count = len(stays.engine.scheduler.ticks)
    for name, state_hash in zip(names, standing, strict=True):
        # Released: whoever is asked may have it, whatever the gateway thinks of the one that left.
        got = await stays.stub.Get(pb.GetRequest(session=name))
        assert got.session.state_hash == state_hash
        await stays.stub.Save(pb.SaveRequest(session=name))
    assert (residency.loaded_count, residency.recomputed_count) == (2, 0)
    assert len(stays.engine.scheduler.ticks) == tick_count, "ticks were run for what lay in the store"
    on = await stays.stub.Step(pb.StepRequest(session=names[0], actions=turns(4)))
    expected = await stays.stub.Step(pb.StepRequest(session=twin, actions=turns(4)))
    assert [chunk.frames for chunk in on.chunks] == [chunk.frames for chunk in expected.chunks]


async def test_plays_end_with_their_chunk_whether_they_run_wait_or_stand_still(start_pair: StartPair) -> None:
    leaves, stays = await start_pair(TinyWorld(work=6), drain_timeout_s=20)
    names = {kind: await leaves.create(chunks=2) for kind in ("running", "waiting", "paused")}
    calls = {}
    for kind, name in names.items():
        calls[kind] = leaves.stub.Play()
        idle = pb.PlayRequest.IDLE_REPEAT if kind != "waiting" else pb.PlayRequest.IDLE_WAIT
        begin = pb.PlayRequest.Begin(fps=40, actions=turns(1), idle=idle)
        await calls[kind].write(pb.PlayRequest(session=name, begin=begin))
        assert (await calls[kind].read()).HasField("begun")
        assert (await calls[kind].read()).HasField("played")
    await calls["paused"].write(pb.PlayRequest(pause=pb.PlayRequest.Pause()))
    while not (await calls["paused"].read()).HasField("paused"):
        pass
    stopping = asyncio.create_task(leaves.stop())
    async with asyncio.timeout(5):
        ends = {kind: await ended(call) for kind, call in calls.items()}
        await stopping
    assert {kind: end for kind, (_, end) in ends.items()} == dict.fromkeys(names, "DRAINING")
    for kind, (messages, _) in ends.items():
        got = await stays.stub.Get(pb.GetRequest(session=names[kind]))
        seen = [message.played.chunk.index for message in messages if message.HasField("played")]
        assert not seen or got.session.chunk_index > seen[-1]


async def test_other_calls_end_as_they_may_and_nothing_new_is_taken_on(start_pair: StartPair) -> None:
    leaves, stays = await start_pair(TinyWorld(work=12))
    stepping, rolling, looked = [await leaves.create(chunks=2) for _ in range(3)]
    step = leaves.stub.Step(pb.StepRequest(session=stepping, actions=turns(40)))
    sequences = [pb.ActionSequence(actions=turns(100)) for _ in range(2)]
    rollout = leaves.stub.Rollout(pb.RolloutRequest(session=rolling, sequences=sequences))
    origin = pb.Origin(start="dusk")
    clip = leaves.stub.Generate(pb.GenerateRequest(model=leaves.served.ref, origin=origin, actions=turns(20)))
    assert (await rollout.read()).HasField("chunk")
    assert (await clip.read()).chunk_count == 20
    stopping = asyncio.create_task(leaves.stop())
    while not leaves.served.worlds.draining:  # noqa: ASYNC110 - nobody else says so
        await asyncio.sleep(0.001)
    for call in (
        leaves.stub.CreateSession(pb.CreateSessionRequest(model=leaves.served.ref, origin=origin)),
        leaves.stub.Get(pb.GetRequest(session=looked)),
        leaves.stub.Fork(pb.ForkRequest(session=stepping)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert reason(caught.value) == "DRAINING"
    assert (await ended(rollout))[1] == "DRAINING"
    assert len((await step).chunks) == 40, "a step is whole or not at all"
    messages, end = await ended(clip)
    assert (len(messages), end) == (20, "")
    await asyncio.wait_for(stopping, 5)
    got = await stays.stub.Get(pb.GetRequest(session=stepping))
    assert got.session.chunk_index == 42


async def test_a_reader_that_does_not_read_keeps_nobody_elses_session_from_being_given_up(
    start_pair: StartPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, stays = await start_pair(drain_timeout_s=1.5)
    stuck, idle = [await leaves.create(chunks=2) for _ in range(2)]
    never = asyncio.Event()

    async def hangs(self: LivePlay, *, behind: int) -> None:
        await never.wait()

    monkeypatch.setattr(LivePlay, "settled", hangs)  # as a reader whose connection is full
    call = leaves.stub.Play()
    await call.write(pb.PlayRequest(session=stuck, begin=pb.PlayRequest.Begin(actions=turns(3))))
    assert (await call.read()).HasField("begun")
    await asyncio.wait_for(leaves.stop(), 6)
    for name in (idle, stuck):
        assert (await stays.stub.Get(pb.GetRequest(session=name))).session.chunk_index >= 2


async def test_a_session_that_arrives_while_its_new_replica_leaves_is_given_up_with_the_others(
    valkey: Any, start_pair: StartPair
) -> None:
    leaves, stays = await start_pair()
    name = await stays.create(chunks=3)
    valkey.pause(150)
    coming = leaves.stub.Get(pb.GetRequest(session=name), metadata=(("worldtree-rehome", "video-b"),))
    await asyncio.sleep(0.05)  # it is asking the journal
    await leaves.stop()
    with suppress(grpc.aio.AioRpcError):
        await coming
    # The first owner is fenced, and nobody has the session: it is for whoever is asked.
    if name in stays.engine.sessions:
        refusal = await stays.refused(stays.stub.Step(pb.StepRequest(session=name, actions=turns(1))))
        assert refusal.reason == "SESSION_CLOSED"
    assert (await stays.stub.Get(pb.GetRequest(session=name))).session.chunk_index == 3
    await stays.stub.Step(pb.StepRequest(session=name, actions=turns(1)))


# ---- what a journal that stalled or was lost must still get


async def lose_the_journal(leaves: Leaving, valkey: Any, names: list[str]) -> None:
    """Its Redis comes back empty; returns when all of these have been written anew."""
    scribe = leaves.served.worlds.protection._scribe
    assert scribe
    valkey.kill()
    valkey.restart()
    while True:
        await scribe.verify()
        with suppress(StoreUnavailable):
            if not await scribe._journal.missing(names):
                return
        await asyncio.sleep(0.05)


async def test_a_journal_that_stalls_while_its_replica_drains_loses_no_session(
    start_pair: StartPair, valkey: Any
) -> None:
    leaves, stays = await start_pair()
    names = [await leaves.create(chunks=count) for count in (5, 2, 3)]
    valkey.pause(1300)  # longer than a call of the journal waits
    await leaves.stop()
    for name, count in zip(names, (5, 2, 3), strict=True):
        got = await stays.stub.Get(pb.GetRequest(session=name), metadata=REHOME)
        assert got.session.chunk_index == count
        again = await stays.stub.Step(pb.StepRequest(session=name, actions=turns(1)))
        assert again.chunks[0].index == count


async def test_a_session_that_is_written_anew_is_answered_for_its_last_request_only_where_it_still_stands_there(
    start_pair: StartPair, valkey: Any
) -> None:
    leaves, stays = await start_pair()
    back, on, stayed = [await leaves.create() for _ in range(3)]
    first = {}
    for name in (back, on, stayed):
        step = pb.StepRequest(session=name, actions=turns(3), request_id=f"r-{name}")
        first[name] = (await leaves.stub.Step(step)).chunks
    await leaves.stub.Rewind(pb.RewindRequest(session=back, chunk_count=2))
    call = leaves.stub.Play()
    await call.write(pb.PlayRequest(session=on, begin=pb.PlayRequest.Begin(actions=turns(2))))
    await call.done_writing()
    assert not (await ended(call))[1]
    await lose_the_journal(leaves, valkey, [back, on, stayed])

    async def adopted(name: str) -> int:
        return int((await stays.stub.Get(pb.GetRequest(session=name), metadata=REHOME)).session.chunk_index)

    assert [await adopted(name) for name in (back, on, stayed)] == [1, 5, 3]
    again = await stays.stub.Step(pb.StepRequest(session=stayed, actions=turns(3), request_id=f"r-{stayed}"))
    assert [(chunk.index, chunk.state_hash) for chunk in again.chunks] == [
        (chunk.index, chunk.state_hash) for chunk in first[stayed]
    ]
    # Not the chunks that a play made last: whoever asks is told where it stands by their indices.
    again = await stays.stub.Step(pb.StepRequest(session=on, actions=turns(3), request_id=f"r-{on}"))
    assert [chunk.index for chunk in again.chunks] == [5, 6, 7]
    await leaves.stop()


async def test_what_an_adopted_session_owes_a_retry_is_in_the_journal_also_when_that_is_written_anew(
    start_pair: StartPair, valkey: Any
) -> None:
    leaves, stays = await start_pair()
    name = await leaves.create()
    step = pb.StepRequest(session=name, actions=turns(2), request_id="r1")
    chunks = (await leaves.stub.Step(step)).chunks
    await stays.stub.Get(pb.GetRequest(session=name), metadata=REHOME)
    worlds = next(iter(stays.catalog)).worlds
    dump = worlds.protection.dump(name)
    assert (dump.history.request_id, dump.history.request_chunk_count) == ("r1", 2)
    again = (await stays.stub.Step(step)).chunks
    assert [chunk.state_hash for chunk in again] == [chunk.state_hash for chunk in chunks]
    dump = worlds.protection.dump(name)
    assert (dump.history.request_id, dump.history.request_chunk_count) == ("r1", 2)
    await leaves.stop()


async def test_children_are_in_the_journal_when_their_fork_is_answered(start_pair: StartPair, valkey: Any) -> None:
    leaves, _ = await start_pair()
    name = await leaves.create(chunks=2)
    scribe = leaves.served.worlds.protection._scribe
    assert scribe
    children = (await leaves.stub.Fork(pb.ForkRequest(session=name, count=64))).sessions
    assert await scribe._journal.missing([child.session for child in children]) == []
    call = leaves.stub.Play()
    await call.write(pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin()))
    await call.write(pb.PlayRequest(fork=pb.PlayRequest.Fork(count=16)))
    while not (message := await call.read()).HasField("forked"):
        pass
    names = [child.session for child in message.forked.sessions]
    assert len(names) == 16
    assert await scribe._journal.missing(names) == []
    call.cancel()
    await leaves.stop()


async def test_a_fork_of_many_waits_for_a_journal_that_does_not_answer_no_longer_than_one_of_one(
    start_pair: StartPair, valkey: Any
) -> None:
    leaves, _ = await start_pair()
    name = await leaves.create(chunks=2)
    valkey.pause(3000)
    async with asyncio.timeout(2.5):  # a child after the other, it would answer when Redis does
        children = (await leaves.stub.Fork(pb.ForkRequest(session=name, count=32))).sessions
    assert len(children) == 32
    protection, worlds = leaves.served.worlds.protection, leaves.served.worlds
    assert not any(protection.protected(worlds.get(child.session)) for child in children)
    await leaves.stop()


async def test_a_reader_is_told_of_a_rewind_when_the_journal_knows_of_it(start_pair: StartPair, valkey: Any) -> None:
    leaves, stays = await start_pair()
    name = await leaves.create(chunks=8)
    call = leaves.stub.Play()
    await call.write(pb.PlayRequest(session=name, begin=pb.PlayRequest.Begin()))
    await call.read()
    valkey.pause(300)  # shorter than a call of the journal waits
    await call.write(pb.PlayRequest(rewind=pb.PlayRequest.Rewind(chunk_count=4)))
    while not (await call.read()).HasField("rewound"):
        pass
    scribe = leaves.served.worlds.protection._scribe
    assert scribe
    line = scribe._writer.get(name)
    assert line
    assert not line.writes
    found = await stays.stub.Get(pb.GetRequest(session=name), metadata=REHOME)
    assert found.session.chunk_index == 4
    call.cancel()
    await leaves.stop()
