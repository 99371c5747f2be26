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
