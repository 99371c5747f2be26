"""What goes wrong on the way: errors with their details, retries only where safe, deadlines, dropped iterators."""

import asyncio
import gc
import socket
import threading
import time
from typing import Any

import grpc
import pytest
import worldtree
import worldtree.aio
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2


@pytest.fixture
def client(echo: Any) -> Any:
    with worldtree.Client(echo.address, timeout=10) as opened:
        yield opened


@pytest.fixture
def world(client: worldtree.Client) -> worldtree.World:
    return client.world("echo", start="four-rooms", seed=7)


def status(reason: str, *details: Any) -> status_pb2.Status:
    made = status_pb2.Status(code=1, message=f"the message of {reason}")
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="worldtree", metadata={"limit": "4"}), *details):
        packed = Packed()
        packed.Pack(detail)
        made.details.append(packed)
    return made


BUSY = status("SESSION_BUSY")
BAD = status(
    "INVALID_FIELD",
    error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="actions[1].id", description="0 to 6")]
    ),
)


def test_details_travel_over_the_wire_for_unary_calls(echo: Any, world: worldtree.World) -> None:
    echo.servicer.fail("Step", grpc.StatusCode.INVALID_ARGUMENT, status=BAD)
    with pytest.raises(worldtree.InvalidRequest) as caught:
        world.step("left")
    error = caught.value
    assert (error.field, error.reason, error.metadata) == ("actions[1].id", "INVALID_FIELD", {"limit": "4"})
    assert error.message == "the message of INVALID_FIELD"
    assert error.request_id == "request-of-the-trailer"
    assert world.chunk_index == 0


@pytest.mark.parametrize("method", ["Rollout", "Play", "Generate"])
def test_details_travel_over_the_wire_for_streams(
    echo: Any, client: worldtree.Client, world: worldtree.World, method: str
) -> None:
    echo.servicer.fail(method, grpc.StatusCode.ABORTED, status=BUSY)
    call = next(call for name, call, _ in CALLS if name == method)
    with pytest.raises(worldtree.SessionBusy, match="SESSION_BUSY"):
        call(client, world)


async def test_details_travel_over_the_wire_for_asyncio_too(echo: Any) -> None:
    async with worldtree.aio.Client(echo.address) as client:
        world = await client.world("echo", start="four-rooms")
        for method in ("Step", "Rollout", "Play"):
            echo.servicer.fail(method, grpc.StatusCode.ABORTED, status=BUSY)
        with pytest.raises(worldtree.SessionBusy):
            await world.step("left")
        with pytest.raises(worldtree.SessionBusy):
            await world.rollout([["left"]])
        with pytest.raises(worldtree.SessionBusy):
            async for _ in world.play(["left"], fps=0):
                pass


async def test_a_play_that_is_refused_while_it_writes_keeps_the_server_s_reason(echo: Any) -> None:
    # grpc.aio reports "Internal error from Core" for about every other of these.
    echo.servicer.fail("Play", grpc.StatusCode.ABORTED, status=BUSY)
    async with worldtree.aio.Client(echo.address) as client:
        world = await client.world("echo", start="four-rooms")
        for _ in range(30):
            with pytest.raises(worldtree.SessionBusy):
                async for _ in world.play(["left"] * 3, fps=0):
                    pass


# Each call with the name of its method, and whether a repeat is safe.
CALLS: list[tuple[str, Any, bool]] = [
    ("ListModels", lambda client, world: client.models(), True),
    ("GetModel", lambda client, world: client.model("echo"), True),
    ("CreateSession", lambda client, world: client.world("echo", start="four-rooms"), True),
    ("Get", lambda client, world: client.session(world.id), True),
    ("List", lambda client, world: client.sessions(), True),
    ("Introspect", lambda client, world: client.introspect(), True),
    ("Step", lambda client, world: world.step("left"), True),
    ("Fork", lambda client, world: world.fork(2), True),
    ("Restore", lambda client, world: client.restore("snapshot-0"), True),
    ("KeepAlive", lambda client, world: world.keep_alive(), True),
    ("Delete", lambda client, world: world.close(), True),
    ("Rollout", lambda client, world: world.rollout([["left"]]), True),
    ("Generate", lambda client, world: client.generate("echo", start="four-rooms", actions="left"), True),
    ("Rewind", lambda client, world: world.rewind(1), False),
    ("Save", lambda client, world: world.save(), False),
    ("Play", lambda client, world: list(world.play(["left"], fps=0)), False),
]


@pytest.mark.parametrize(("method", "call", "safe"), CALLS, ids=[call[0] for call in CALLS])
def test_a_server_that_is_away_twice_is_asked_again_only_where_that_is_safe(
    echo: Any, client: worldtree.Client, world: worldtree.World, method: str, call: Any, safe: bool
) -> None:
    world.step("left")
    world.save()
    before = echo.servicer.calls[method]
    echo.servicer.fail(method, grpc.StatusCode.UNAVAILABLE, times=2)
    if safe:
        call(client, world)
        assert echo.servicer.calls[method] - before == 3
    else:
        with pytest.raises(worldtree.Unavailable):
            call(client, world)
        assert echo.servicer.calls[method] - before == 1


@pytest.mark.parametrize("method", ["Step", "Fork", "CreateSession", "Restore"])
def test_an_answer_lost_on_the_way_is_not_work_done_twice(
    echo: Any, client: worldtree.Client, world: worldtree.World, method: str
) -> None:
    call = next(call for name, call, _ in CALLS if name == method)
    world.step("left")
    world.save()
    sessions, chunks = len(echo.servicer.sessions), len(echo.servicer.sessions[world.id].hashes)
    echo.servicer.fail(method, grpc.StatusCode.UNAVAILABLE, times=1, after_work=True)
    call(client, world)
    assert echo.servicer.requests[method].request_id
    made = {"Step": 0, "Fork": 2, "CreateSession": 1, "Restore": 1}[method]
    assert len(echo.servicer.sessions) - sessions == made
    assert len(echo.servicer.sessions[world.id].hashes) - chunks == (1 if method == "Step" else 0)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED]
)
def test_other_errors_are_never_asked_again(echo: Any, client: worldtree.Client, code: grpc.StatusCode) -> None:
    echo.servicer.fail("ListModels", code)
    with pytest.raises(worldtree.WorldtreeError):
        client.models()
    assert echo.servicer.calls["ListModels"] == 1


def test_retry_info_is_waited_for(echo: Any, client: worldtree.Client) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(600)
    echo.servicer.fail("ListModels", grpc.StatusCode.UNAVAILABLE, status=status("DRAINING", retry), times=1)
    begin_s = time.monotonic()
    client.models()
    assert time.monotonic() - begin_s >= 0.6


def test_tries_end_and_the_last_error_is_raised(echo: Any, client: worldtree.Client) -> None:
    echo.servicer.fail("ListModels", grpc.StatusCode.UNAVAILABLE, status=status("DRAINING"))
    with pytest.raises(worldtree.Unavailable, match="DRAINING"):
        client.models()
    assert echo.servicer.calls["ListModels"] == 5


def test_the_deadline_reaches_the_server_and_a_call_may_have_its_own(
    echo: Any, client: worldtree.Client, world: worldtree.World
) -> None:
    client.models()
    world.step("left", timeout=3)
    assert 9 < echo.servicer.time_remaining_s["ListModels"] <= 10.5
    assert 2 < echo.servicer.time_remaining_s["Step"] <= 3.5
    echo.servicer.node_delay_s = 5.0
    with pytest.raises(worldtree.DeadlineExceeded):
        world.rollout([["left"]], timeout=0.2)


def test_the_key_travels_as_a_bearer_token(echo: Any) -> None:
    with worldtree.Client(echo.address, api_key="secret") as client:
        client.models()
    assert echo.servicer.metadata["ListModels"]["authorization"] == "Bearer secret"


def test_nobody_at_the_address_is_unavailable_within_the_timeout() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        begin_s = time.monotonic()
        with worldtree.Client(address, timeout=1.0) as client, pytest.raises(worldtree.Unavailable) as caught:
            client.wait_ready(0.7)
    assert time.monotonic() - begin_s < 3
    assert caught.value.reason == "CONNECTION_FAILED"
    assert "worldtree up" in caught.value.remedy


def test_a_play_that_is_dropped_cancels_its_call(echo: Any, world: worldtree.World) -> None:
    for chunk in world.play(iter(lambda: "left", None), fps=100):
        if chunk.index == 2:
            break
    gc.collect()
    assert echo.servicer.ended["Play"].wait(5)
    assert echo.servicer.end_reasons["Play"] == "cancelled"


async def test_a_dropped_asyncio_play_cancels_its_call(echo: Any) -> None:
    async with worldtree.aio.Client(echo.address) as client:
        world = await client.world("echo", start="four-rooms")
        async for chunk in world.play(iter(lambda: "left", None), fps=100):
            if chunk.index == 2:
                break
        gc.collect()
        assert await asyncio.to_thread(echo.servicer.ended["Play"].wait, 5)
        assert echo.servicer.end_reasons["Play"] == "cancelled"


async def test_a_cancelled_task_cancels_its_rollout_on_the_server(echo: Any) -> None:
    echo.servicer.node_delay_s = 0.05
    async with worldtree.aio.Client(echo.address) as client:
        world = await client.world("echo", start="four-rooms")
        task = asyncio.create_task(world.rollout([["left"] * 200]))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(echo.servicer.ended["Rollout"].wait, 5)
    assert echo.servicer.end_reasons["Rollout"] == "cancelled"


def test_a_progress_that_raises_ends_the_rollout_on_the_server(echo: Any, world: worldtree.World) -> None:
    echo.servicer.node_delay_s = 0.05

    def impatient(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        world.rollout([["left"] * 200], progress=impatient)
    assert echo.servicer.ended["Rollout"].wait(5)
    assert echo.servicer.end_reasons["Rollout"] == "cancelled"


def test_closing_from_another_thread_ends_the_iteration_quietly(world: worldtree.World) -> None:
    play = world.play(worldtree.LiveActions(), fps=0)
    threading.Timer(0.2, play.close).start()
    assert list(play) == []


def test_ctrl_c_while_a_call_begins_keeps_nobody_from_closing(echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC starts a call, and then the thread that serves it: between the two is where the signal comes."""

    def interrupt(state: object) -> None:
        raise KeyboardInterrupt

    began_s = time.monotonic()
    with worldtree.Client(echo.address) as opened:
        monkeypatch.setattr(grpc._channel, "_run_channel_spin_thread", interrupt)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            opened.generate("echo", actions=["left"], start="four-rooms")
    assert time.monotonic() - began_s < 20


def test_no_thread_is_left_behind_by_plays(world: worldtree.World) -> None:
    world.step("left")
    before = threading.active_count()
    for _ in range(5):
        live = worldtree.LiveActions()
        with world.play(live, fps=0) as play:
            live.put("left")
            next(play)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_many_threads_share_one_client(client: worldtree.Client) -> None:
    hashes: list[str] = []

    def walk() -> None:
        world = client.world("echo", start="four-rooms", seed=3)
        world.step(["left"] * 10)
        hashes.append(world.state_hash)

    threads = [threading.Thread(target=walk) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hashes) == 8
    assert len(set(hashes)) == 1
