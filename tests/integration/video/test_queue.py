"""Steps under more load than there is room for: those that would be answered too late are refused at once."""

import asyncio
import threading
from typing import Any

import grpc
import grpc.aio
import pytest
from refusals import refusal_of
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld

SLOW = TinyWorld(work=12)
LONG, DEPTH = 200, 20


def actions(count: int) -> list[pb.Action]:
    return [pb.Action(id=index % 3) for index in range(count)]


def waits_s(video: Any) -> float:
    """How long one as long as that would wait now."""
    ahead_s: float = video.engine.step_wait_s(LONG, LONG)[0]
    return ahead_s


async def busy_with(video: Any, session: str) -> Any:
    """A step that keeps the engine at work for long."""
    call = video.stub.Step(pb.StepRequest(session=session, actions=actions(LONG)))
    await video.until(lambda: waits_s(video) > 0)
    return call


def hold_ticks(video: Any, until: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tick after this one takes that long. It holds no lock meanwhile, as an errand would."""
    denoise = video.engine.model.denoise

    def slow(*arguments: Any) -> Any:
        until.wait(60)
        return denoise(*arguments)

    monkeypatch.setattr(video.engine.model, "denoise", slow)


async def refused_before(video: Any, session: str, deadline_s: float) -> Any:
    """What a long step with so short a deadline is refused with; on a busy machine that passes before we are asked."""
    for _ in range(100):
        try:
            await video.stub.Step(pb.StepRequest(session=session, actions=actions(LONG)), timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return await refusal_of(error)
    raise AssertionError("the step was not refused")


async def test_a_step_that_would_come_after_its_deadline_is_refused_at_once_and_told_when_to_come_again(
    start_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = await start_video(SLOW, max_batch=1, prefix_cache=False)
    one, two = await video.create(chunks=DEPTH), await video.create(chunks=DEPTH)
    stood = (await video.get(two)).session.chunk_index
    long = await busy_with(video, one)
    held = threading.Event()
    hold_ticks(video, held, monkeypatch)  # what waits goes on waiting until we are done
    try:
        # Half of what waits before it, whatever a chunk takes on this machine.
        refusal = await refused_before(video, two, waits_s(video) / 2)
    finally:
        held.set()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    metadata = refusal.details["ErrorInfo"].metadata
    assert float(metadata["wait_s"]) > float(metadata["limit_s"])
    assert refusal.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() >= 0.1
    long.cancel()
    await video.until(lambda: waits_s(video) == 0)
    assert (await video.get(two)).session.chunk_index == stood
    await video.stub.Step(pb.StepRequest(session=two, actions=actions(1)), timeout=30)
    video.engine.check_integrity()


async def test_a_step_with_time_waits_its_turn(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1, prefix_cache=False)
    one, two = await video.create(chunks=DEPTH), await video.create(chunks=DEPTH)
    long = await busy_with(video, one)
    answer = asyncio.create_task(_answer(video, two))
    await asyncio.sleep(0)
    long.cancel()
    assert (await answer).chunk_index == DEPTH + 1


async def test_nobody_waits_longer_than_the_setting_says(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1, prefix_cache=False, queue_s=1e-6)
    one, two = await video.create(chunks=DEPTH), await video.create(chunks=DEPTH)
    long = await busy_with(video, one)
    refusal = await video.refused(video.stub.Step(pb.StepRequest(session=two, actions=actions(1))))
    assert refusal.reason == "QUEUE_FULL"
    origin = pb.Origin(start="dusk")
    refusal = await video.refused(video.stub.CreateSession(pb.CreateSessionRequest(model=video.model, origin=origin)))
    assert refusal.reason == "QUEUE_FULL"
    long.cancel()


async def test_one_who_comes_alone_is_never_refused_however_short_its_deadline_seems(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=1, prefix_cache=False, queue_s=1e-6)
    session = await video.create(chunks=DEPTH)
    answer = await video.stub.Step(pb.StepRequest(session=session, actions=actions(8)))
    assert answer.chunk_index == DEPTH + 8


async def _answer(video: Any, session: str) -> pb.StepResponse:
    answer: pb.StepResponse = await video.stub.Step(pb.StepRequest(session=session, actions=actions(1)), timeout=120)
    return answer


async def test_a_short_step_beside_a_long_one_finds_its_place(start_video: Any) -> None:
    video = await start_video(SLOW, max_batch=2, prefix_cache=False, queue_s=1e-6)
    one, two = await video.create(chunks=DEPTH), await video.create(chunks=DEPTH)
    long = video.stub.Step(pb.StepRequest(session=one, actions=actions(LONG)))
    await video.until(lambda: video.engine.scheduler.run_count > 0)
    assert (await _answer(video, two)).chunk_index == DEPTH + 1
    long.cancel()
