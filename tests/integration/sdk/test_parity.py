"""One test body, both clients: what holds for worldtree.Client holds for worldtree.aio.Client, over a real socket."""

import asyncio
import logging
import queue
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import worldtree
import worldtree.aio

SYNC_ONLY = (worldtree.World, worldtree.Client, worldtree.Play)


class Awaited:
    """A synchronous object whose methods are awaited, so that one body serves both."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value
        if name == "play":
            return lambda *given, **named: Awaited(value(*given, **named))

        async def call(*given: Any, **named: Any) -> Any:
            return wrap(await asyncio.to_thread(value, *given, **named))

        return call

    def __aiter__(self) -> "Awaited":
        return self

    async def __anext__(self) -> Any:
        end = object()
        chunk = await asyncio.to_thread(next, self._inner, end)
        if chunk is end:
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> "Awaited":
        await asyncio.to_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *given: Any) -> None:
        await asyncio.to_thread(self._inner.__exit__, *given)


def wrap(value: Any) -> Any:
    if isinstance(value, list):
        return [wrap(item) for item in value]
    return Awaited(value) if isinstance(value, SYNC_ONLY) else value


@pytest.fixture(params=["sync", "asyncio"])
async def client(request: pytest.FixtureRequest, echo: Any) -> AsyncIterator[Any]:
    opened = Awaited(worldtree.Client(echo.address)) if request.param == "sync" else worldtree.aio.Client(echo.address)
    async with opened:
        yield opened


@pytest.fixture
async def world(client: Any) -> Any:
    return await client.world("echo", start="four-rooms", seed=7)


async def test_models_tell_what_can_be_asked(client: Any) -> None:
    (model,) = await client.models()
    assert model == await client.model("echo") == (await client.wait_ready())[0]
    assert model.starts[0] == "four-rooms"
    assert (model.starts[0].name, model.starts[0].description, model.starts[0].frame_count) == (
        "four-rooms", "four rooms", 1,
    )  # fmt: skip
    assert model.actions[2] == "forward"
    assert (model.nfe_choices, model.nfe_default) == ((1, 2, 4), 2)
    assert [(each.storage, each.block_bytes, each.block_count) for each in model.storage_formats] == [
        ("fp32", 1024, 64), ("int8", 288, 227),
    ]  # fmt: skip
    assert model.policy_plugins == ("surprise",)


async def test_steps_concatenate_the_frames_of_their_chunks(world: Any) -> None:
    assert world.start_frames.shape == (1, 8, 8, 3)
    one = await world.step("forward")
    many = await world.step(["left", 2, "right"])
    assert one.shape == (1, 8, 8, 3)
    assert one.dtype == np.uint8
    assert many.shape == (3, 8, 8, 3)
    assert world.chunk_index == 4
    np.testing.assert_array_equal(world.last_frame, many[-1])


async def test_equal_worlds_have_equal_frames_and_hashes(client: Any, world: Any) -> None:
    other = await client.world("echo", start="four-rooms", seed=7)
    np.testing.assert_array_equal(await world.step(["left", "left"]), await other.step(["left", 0]))
    assert world.state_hash == other.state_hash


async def test_a_world_from_frames_carries_the_actions_between_them(client: Any, echo: Any) -> None:
    await client.world(
        "echo", frames=np.zeros((3, 8, 8, 3), np.uint8), actions=["left", 1], kv={"kind": "full"}, ttl=30
    )
    request = echo.servicer.requests["CreateSession"]
    assert list(request.origin.frames.tensor.shape) == [3, 8, 8, 3]
    assert [action.WhichOneof("kind") for action in request.origin.actions] == ["name", "id"]
    assert request.ttl.seconds == 30
    assert request.kv.kind == 3


async def test_a_world_from_a_prompt_brings_what_was_ignored_of_it(client: Any, echo: Any) -> None:
    world = await client.world("echo", prompt="a red dragon", seed=3)
    origin = echo.servicer.requests["CreateSession"].origin
    assert (origin.prompt, origin.start) == ("a red dragon", "")
    assert world.warnings == ("ignores dragon",)
    assert (await world.fork()).warnings == ()
    assert (await client.world("echo", prompt="a red door")).warnings == ()
    clip = await client.generate("echo", prompt="a red dragon", actions=["left"])
    assert clip.warnings == ("ignores dragon",)
    model = await client.model("echo")
    assert model.prompt_space == worldtree.PromptSpace(
        words=("a", "red", "door"), token_limit=4, examples=("a red door",)
    )


async def test_forks_stand_where_their_parent_stands(world: Any) -> None:
    await world.step("left")
    child = await world.fork()
    children = await world.fork(3, seeds=[1, 2, 3])
    assert [child.chunk_index, child.state_hash] == [1, world.state_hash]
    assert [each.seed for each in children] == [1, 2, 3]
    assert len(await world.fork(1)) == 1
    np.testing.assert_array_equal(child.last_frame, world.last_frame)
    np.testing.assert_array_equal(child.start_frames, world.start_frames)
    np.testing.assert_array_equal(await child.step("right"), await world.step("right"))
    with pytest.raises(worldtree.InvalidRequest, match="count"):
        await world.fork(0)


async def test_numbers_may_come_from_numpy(client: Any) -> None:
    world = await client.world("echo", start="four-rooms", seed=np.int64(7), nfe=np.int32(2))
    await world.step(np.array([0, 1]))
    assert [each.seed for each in await world.fork(2, seeds=np.arange(2))] == [0, 1]
    assert [each.seed for each in await world.rollout([["left"], ["left"]], seeds=np.arange(2))] == [0, 1]
    await world.rewind(np.int64(1))
    assert (world.seed, world.chunk_index) == (7, 1)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("nfe", lambda client, world: client.world("echo", start="four-rooms", nfe=2**40)),
        ("nfe", lambda client, world: client.world("echo", start="four-rooms", nfe=2.0)),
        ("timeout", lambda client, world: client.world("echo", start="four-rooms", timeout=0)),
        ("timeout", lambda client, world: world.step("left", timeout=0)),
        ("count", lambda client, world: world.fork(2**40)),
    ],
)
async def test_what_the_wire_cannot_carry_is_refused_by_its_field(
    client: Any, world: Any, field: str, call: Any
) -> None:
    with pytest.raises(worldtree.InvalidRequest, match=field) as refused:
        await call(client, world)
    assert refused.value.field == field


async def test_a_fork_of_a_world_that_someone_else_moved_shows_the_right_frame(client: Any, world: Any) -> None:
    elsewhere = await client.session(world.id)
    await elsewhere.step("left")
    child = await world.fork()
    np.testing.assert_array_equal(child.last_frame, elsewhere.last_frame)
    assert (await world.refresh()).chunk_index == world.chunk_index == 1


async def test_rewind_and_replay(world: Any) -> None:
    frames = await world.step(["left", "right", "forward"])
    np.testing.assert_array_equal(await world.rewind(2), frames[0])
    assert world.chunk_index == 1
    np.testing.assert_array_equal(await world.step(["right", "forward"]), frames[1:])
    with pytest.raises(worldtree.InvalidRequest):
        await world.rewind(9)
    assert world.chunk_index == 3


async def test_rewinding_a_world_that_someone_else_moved_is_refused_until_refreshed(client: Any, world: Any) -> None:
    await world.step(["left", "left"])
    await (await client.session(world.id)).step("left")
    with pytest.raises(worldtree.Aborted):
        await world.rewind(1)
    await world.refresh()
    await world.rewind(1)
    assert world.chunk_index == 2


async def test_rollouts_come_true_and_move_nothing(world: Any) -> None:
    seen: list[tuple[int, int]] = []
    futures = await world.rollout(
        [["left"] * 4, ["left", "right"], "forward"], progress=lambda done, total: seen.append((done, total))
    )
    assert [len(future.frames) for future in futures] == [4, 2, 1]
    assert seen[-1] == (6, 6)
    assert world.chunk_index == 0
    branch = await world.fork()
    np.testing.assert_array_equal(await branch.step(["left", "right"]), futures[1].frames)
    assert branch.state_hash == futures[1].state_hash


async def test_rollout_detail_and_seeds(world: Any) -> None:
    (full,) = await world.rollout([["left", "right"]])
    (last,) = await world.rollout([["left", "right"]], detail="last")
    (none,) = await world.rollout([["left", "right"]], detail="none")
    np.testing.assert_array_equal(last.frames, full.frames[-1:])
    assert none.frames is None
    assert none.state_hash == full.state_hash
    same, other = await world.rollout([["left"], ["left"]], seeds=[None, 8])
    assert (same.seed, other.seed) == (None, 8)
    assert same.state_hash != other.state_hash
    with pytest.raises(worldtree.InvalidRequest, match="seeds"):
        await world.rollout([["left"]], seeds=[1, 2])


async def test_snapshots_by_value_by_id_and_by_bytes(client: Any, world: Any) -> None:
    await world.step("left")
    snapshot = await world.save(include_data=True)
    for form in (snapshot, snapshot.id, snapshot.to_bytes(), worldtree.Snapshot.from_bytes(snapshot.to_bytes())):
        twin = await client.restore(form)
        assert twin.state_hash == world.state_hash
        np.testing.assert_array_equal(twin.last_frame, world.last_frame)
    with pytest.raises(worldtree.FailedPrecondition, match="no bytes"):
        (await world.save()).to_bytes()


async def test_a_snapshot_survives_a_file(client: Any, world: Any, tmp_path: Any) -> None:
    path = (await world.save(include_data=True)).save(tmp_path / "world.safetensors")
    assert (await client.restore(worldtree.Snapshot.load(path))).state_hash == world.state_hash


async def test_a_clip_is_what_a_session_would_show(client: Any, world: Any) -> None:
    seen: list[int] = []
    clip = await client.generate(
        "echo", start="four-rooms", seed=7, actions=["left", 1], progress=lambda done, _: seen.append(done)
    )
    assert clip.actions == ("left", 1)
    np.testing.assert_array_equal(clip.start_frames, world.start_frames)
    np.testing.assert_array_equal(clip.frames, await world.step(["left", "right"]))
    assert seen == [0, 1, 2]


async def test_sessions_page_and_reattach_and_close(client: Any, world: Any, echo: Any) -> None:
    echo.servicer.page_size = 2
    await world.fork(4)
    assert [session.id for session in await client.sessions()] == list(echo.servicer.sessions)
    assert echo.servicer.calls["List"] == 3
    again = await client.session(world.id)
    assert again.start_frames is None
    await world.close()
    await world.close()
    with pytest.raises(worldtree.NotFound):
        await again.step("left")


async def test_leaving_a_world_closes_it(client: Any, echo: Any) -> None:
    async with await client.world("echo", start="four-rooms") as world:
        assert world.id in echo.servicer.sessions
    assert echo.servicer.sessions == {}


async def test_keep_alive(world: Any) -> None:
    assert (await world.keep_alive(ttl=90)).timestamp() == 90


async def test_a_closed_client_says_so(client: Any) -> None:
    await client.models()
    await client.close()
    with pytest.raises(worldtree.FailedPrecondition, match="closed"):
        await client.models()


async def test_play_of_a_list(world: Any) -> None:
    chunks = [chunk async for chunk in world.play(["left", 2, "right"], fps=0)]
    assert [chunk.actions for chunk in chunks] == [("left",), ("forward",), ("right",)]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert chunks[0].frames.shape == (1, 8, 8, 3)
    assert chunks[0].timing.tick_count == 2
    assert chunks[0].control_latency_s == pytest.approx(0.007)
    assert world.chunk_index == 3
    assert world.state_hash == chunks[-1].state_hash


async def test_play_of_one_action_is_a_chunk_as_a_step_of_it_would_be(world: Any) -> None:
    assert [chunk.actions async for chunk in world.play("left", fps=0)] == [("left",)]
    with pytest.raises(worldtree.InvalidRequest, match="actions"):
        [chunk async for chunk in world.play(None)]


async def test_play_of_nothing_ends(world: Any) -> None:
    assert [chunk async for chunk in world.play([], fps=0)] == []


async def test_an_endless_iterable_is_drawn_only_a_little_ahead(world: Any) -> None:
    drawn = 0

    def endless() -> Any:
        nonlocal drawn
        while True:
            drawn += 1
            yield "left"

    seen = 0
    async with world.play(endless(), fps=200, lookahead=2) as play:
        async for _ in play:
            seen += 1
            assert drawn <= seen + 2 * 2 + 1
            if seen == 20:
                break
    await world.step("left")


async def test_abandoning_a_play_cancels_it_on_the_server_and_the_world_goes_on(world: Any, echo: Any) -> None:
    async with world.play(iter(lambda: "left", None), fps=100) as play:
        async for chunk in play:
            if chunk.index == 3:
                break
    assert await asyncio.to_thread(echo.servicer.ended["Play"].wait, 5)
    assert echo.servicer.end_reasons["Play"] == "cancelled"
    # The server may have gone on; the world knows where it stands before it goes back.
    frame = await world.rewind(1)
    assert world.chunk_index == len(echo.servicer.sessions[world.id].hashes) - 1
    np.testing.assert_array_equal(frame, world.last_frame)


async def test_an_error_in_the_program_s_iterable_is_raised_by_the_play(world: Any) -> None:
    def broken() -> Any:
        yield "left"
        raise ZeroDivisionError("policy failed")

    with pytest.raises(ZeroDivisionError, match="policy failed"):
        async for _ in world.play(broken(), fps=0):
            pass
    with pytest.raises(worldtree.InvalidRequest):
        async for _ in world.play(["left", None], fps=0):
            pass
    await world.step("left")


async def test_an_error_in_the_program_s_on_event_ends_the_play(world: Any) -> None:
    def broken(event: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:  # holds the play by its traceback
        async for _ in world.play(["left"] * 40, fps=10, on_event=broken):
            pass
    assert (await world.step("left")).shape == (1, 8, 8, 3)
    assert raised.value is not None


async def test_a_queue_plays_until_none(world: Any) -> None:
    actions: queue.Queue[Any] = queue.Queue()
    actions.put("left")
    seen = []
    async for chunk in world.play(actions, fps=0):
        seen.append(chunk.actions[0])
        actions.put("right" if len(seen) < 3 else None)
    assert seen == ["left", "right", "right"]


async def test_what_is_put_into_a_queue_after_a_play_waits_for_the_next(world: Any) -> None:
    actions: queue.Queue[Any] = queue.Queue()
    actions.put("left")
    async with world.play(actions, fps=0) as play:
        async for _ in play:
            break
    for action in ("right", "forward", None):
        actions.put(action)
    await asyncio.sleep(0.15)
    assert actions.qsize() == 3
    assert [chunk.actions[0] async for chunk in world.play(actions, fps=0)] == ["right", "forward"]


async def test_live_actions_rewind_fork_pause_and_stop(world: Any) -> None:
    live = worldtree.LiveActions()
    events: list[Any] = []

    def on_event(event: Any) -> None:
        events.append(event)
        if isinstance(event, worldtree.Rewound):
            live.fork(2)
        if isinstance(event, worldtree.Forked):
            live.pause()
        if isinstance(event, worldtree.Paused):
            live.resume()
        if isinstance(event, worldtree.Resumed):
            live.put("right")

    live.put(["left", "left", "left"])
    seen = []
    async for chunk in world.play(live, fps=0, on_event=on_event):
        seen.append((chunk.index, chunk.actions[0]))
        if len(seen) == 3:
            live.rewind(2)
        if chunk.actions[0] == "right":
            live.stop()
    assert seen == [(0, "left"), (1, "left"), (2, "left"), (1, "right")]
    assert [type(event).__name__ for event in events] == ["Begun", "Rewound", "Forked", "Paused", "Resumed"]
    rewound, forked = events[1], events[2]
    assert rewound.chunk_index == 1
    assert [child.chunk_index for child in forked.worlds] == [1, 1]
    np.testing.assert_array_equal(forked.worlds[0].last_frame, rewound.last_frame)
    assert world.chunk_index == 2


async def test_a_play_that_is_re_homed_goes_on_and_says_so_beside_its_chunks(
    world: Any, echo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    echo.servicer.rehomed_before = 2
    events: list[Any] = []
    play = world.play(["left"] * 4, fps=0, on_event=events.append)
    assert (play.rehomed_count, play.last_rehoming) == (0, None)
    with caplog.at_level(logging.INFO, logger="worldtree"):
        seen = [chunk.index async for chunk in play]
    assert seen == [0, 1, 2, 3]
    assert play.rehomed_count == 1
    assert play.last_rehoming == worldtree.Resumed(2, rehomed=True, replica="echo-2", bit_identical=True, pause_s=1.25)
    assert events[-1] == play.last_rehoming
    (record,) = caplog.records
    assert record.getMessage() == f"the play of {world.id} goes on from chunk 2 on echo-2 after 1.25 s"


async def test_what_a_play_may_give_up_is_said_at_its_beginning(world: Any, echo: Any) -> None:
    for degrade, sent in ((None, 1), ("nfe", 2)):
        assert len([chunk async for chunk in world.play(["left"], fps=0, degrade=degrade)]) == 1
        assert echo.servicer.requests["Play"].begin.degrade == sent


async def test_a_replica_tells_what_it_is_doing(client: Any, world: Any, echo: Any) -> None:
    await world.step(["left", "left"])
    child = await world.fork()
    await child.step("right")
    status = await client.introspect()
    assert (status.replica, status.draining, status.uptime_s) == ("echo", False, 3700)
    (model,) = status.models
    pool, folder = model.tiers
    assert (pool.storage, pool.held_block_count, pool.shared_block_count, pool.free_block_count) == ("fp32", 4, 3, 53)
    assert (folder.storage, folder.free_block_count) == (None, None)
    assert [each.session.id for each in model.sessions] == [world.id, child.id]
    assert model.sessions[0].sharing == (worldtree.Sharing(child.id, 3),)
    assert (model.sessions[0].call, model.session_count) == (None, 2)
    assert len(model.ticks) == 64
    assert model.ticks[-1].duration_s == 0.004
    assert len((await client.introspect("echo", session_limit=1)).models[0].sessions) == 1


async def test_a_replica_is_asked_for_by_its_name(client: Any, echo: Any) -> None:
    assert await client.replicas() == ["echo"]
    echo.servicer.other_replicas = ["echo-2"]
    assert await client.replicas() == ["echo", "echo-2"]
    assert (await client.introspect("echo-2")).replica == "echo-2"
    with pytest.raises(worldtree.NotFound):
        await client.introspect("echo-3")
    with pytest.raises(worldtree.InvalidRequest, match="session_limit"):
        await client.introspect(session_limit=0)


async def test_that_a_named_replica_is_down_is_told_at_once(client: Any, echo: Any) -> None:
    echo.servicer.other_replicas = ["echo-2"]
    echo.servicer.gone = "echo-2"
    with pytest.raises(worldtree.Unavailable, match="echo-2"):
        await client.introspect("echo-2")
    assert echo.servicer.calls["Introspect"] == 1
    assert await client.replicas() == ["echo", "echo-2"]


async def test_idle_repeat_goes_on_with_the_last_action(world: Any) -> None:
    live = worldtree.LiveActions()
    live.put("left")
    repeated = []
    async for chunk in world.play(live, fps=0, idle="repeat"):
        repeated.append(chunk.control_latency_s is None)
        if len(repeated) == 5:
            live.stop()
            break
    assert repeated == [False, True, True, True, True]


async def test_replace_forgets_what_was_queued(world: Any) -> None:
    live = worldtree.LiveActions()
    live.put(["left"] * 50)
    seen = []
    async for chunk in world.play(live, fps=100):
        seen.append(chunk.actions[0])
        if len(seen) == 1:
            live.replace("right")
        if seen[-1] == "right":
            live.stop()
    assert len(seen) < 20


@pytest.mark.parametrize(
    "wrong", [{"fps": -1}, {"fps": float("nan")}, {"lookahead": 0}, {"idle": "dance"}, {"degrade": "fps"}]
)
async def test_wrong_terms_of_a_play_are_refused_at_once(world: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(worldtree.InvalidRequest, match=next(iter(wrong))):
        world.play(["left"], **wrong)


async def test_a_second_play_on_one_live_actions_is_refused_and_the_first_goes_on(world: Any) -> None:
    live = worldtree.LiveActions()
    live.put("left")
    seen = []
    async for chunk in world.play(live, fps=0):
        seen.append(chunk.actions[0])
        if len(seen) == 2:
            live.close()
            continue
        other = await world.fork()
        with pytest.raises(worldtree.FailedPrecondition, match="already"):
            async for _ in other.play(live, fps=0):
                pass
        live.put("right")
    assert seen == ["left", "right"]


@pytest.mark.parametrize(
    "call",
    [
        lambda world: world.step("left"),
        lambda world: world.rollout([["left"]]),
        lambda world: world.save(),
        lambda world: world.fork(),
        lambda world: world.rewind(1),
    ],
)
async def test_every_call_on_a_closed_session_is_not_found(world: Any, call: Callable[[Any], Any]) -> None:
    await world.close()
    with pytest.raises(worldtree.NotFound):
        await call(world)
