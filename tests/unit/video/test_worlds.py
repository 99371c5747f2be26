"""Worlds under cancellation, deletion and want: a failed call leaves its session as it was, and no block behind.

The fixture counts every block, claim and thread at the end of each test.
"""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import pytest
from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.testing import TinyWorld
from worldtree_video import snapshot as snapshots
from worldtree_video.catalog import Served
from worldtree_video.domain import Action, KvPolicy, PolicyKind, Storage
from worldtree_video.errors import (
    ChunkIndexMismatch,
    KvCacheFull,
    KvWindowFull,
    NotFinite,
    OutOfRange,
    SessionBusy,
    SessionClosed,
    SessionNotFound,
    SnapshotCorrupt,
    TooManySessions,
)
from worldtree_video.live import LivePlay
from worldtree_video.play import Played
from worldtree_video.recipe import Recipe
from worldtree_video.worlds import Worlds

Serve = Callable[..., Served]
SINK = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)
SLOW = TinyWorld(work=12)  # a tick takes some milliseconds
SMALL = TinyWorld(tokens=1024)  # 16 blocks a MiB
POISON = Action(3)
DELAYS_S = [0.0, 0.0005, 0.002, 0.005, 0.011, 0.023]


def turns(count: int) -> list[Action]:
    return [Action(number % 3) for number in range(count)]


def recipe(served: Served, *, start: str = "dusk", policy: KvPolicy = SINK, seed: int = 7) -> Recipe:
    return Recipe(served.starts[start], seed, 2, policy)


async def opened(served: Served, *, chunks: int = 0, **options: Any) -> str:
    session = await served.worlds.create(recipe(served, **options), ttl_s=60)
    if chunks:
        await served.worlds.step(session.name, turns(chunks))
    return session.name


def in_use(worlds: Worlds, name: str) -> None:
    """Keeps a session from being spilled, as a call on it would."""
    worlds.get(name).readers.add(lambda error: None)


def standing(worlds: Worlds, name: str) -> tuple[bytes, int, bytes, list[int]]:
    branch = worlds.get(name).branch
    return branch.key, branch.chunk_index, worlds.shown(worlds.get(name)), list(branch.table.blocks.values())


async def cancelled(call: Coroutine[Any, Any, Any], delay_s: float) -> bool:
    """Runs a call and cancels it after a while; whether it had not ended before."""
    task = asyncio.create_task(call)
    await asyncio.sleep(delay_s)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def consume(stream: AsyncIterator[object]) -> list[object]:
    return [item async for item in stream]


async def play(worlds: Worlds, name: str, actions: list[Action], *, drop_after: int | None = None) -> list[bytes]:
    frames = []
    async with LivePlay.open(worlds, name, fps=0, lookahead_chunks=2, repeat=False) as live:
        live.act(actions)
        live.finish()
        async for item in live.chunks:
            assert isinstance(item, Played)
            frames.append(item.chunk.frames)
            live.taken()
            if len(frames) == drop_after:
                break
    return frames


async def rollout(worlds: Worlds, name: str, *, chunks: int = 4) -> int:
    sequences = [[(action, 7) for action in turns(chunks)], [(Action(2), 7)] * chunks]
    async with worlds.rollout(name, sequences) as stream:
        return len([node async for node in stream.nodes])


# ---- the same world, whatever way it was reached


async def test_all_ways_to_a_chunk_give_the_same_pixels(serve: Serve) -> None:
    served = serve()
    worlds = served.worlds
    stepped = [chunk.frames for chunk in await worlds.step(await opened(served), turns(20))]
    assert await play(worlds, await opened(served), turns(20)) == stepped
    async with aclosing(worlds.generate(recipe(served), turns(20))) as clip:
        assert [chunk.frames async for chunk in clip] == stepped
    async with worlds.rollout(await opened(served), [[(action, 7) for action in turns(20)]]) as stream:
        assert [chunk.frames async for _, chunk in stream.nodes] == stepped


async def test_other_seeds_policies_and_starts_are_other_worlds(serve: Serve) -> None:
    served = serve()
    variants = [{}, {"seed": 8}, {"policy": KvPolicy(PolicyKind.SLIDING, 4)}, {"start": "dawn"}]
    frames = [(await served.worlds.step(await opened(served, **variant), turns(9)))[-1].frames for variant in variants]
    assert len(set(frames)) == 4


# ---- cancellation


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_cancelled_create_leaves_nothing(serve: Serve, delay_s: float) -> None:
    served = serve(SLOW)
    if await cancelled(served.worlds.create(recipe(served), ttl_s=60), delay_s):
        assert served.worlds.live() == []


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_cancelled_step_leaves_its_session_where_it_stood(serve: Serve, delay_s: float) -> None:
    served = serve(SLOW)
    name = await opened(served, chunks=3)
    before = standing(served.worlds, name)
    assert await cancelled(served.worlds.step(name, turns(20)), delay_s)
    assert standing(served.worlds, name) == before
    assert len(await served.worlds.step(name, turns(1))) == 1


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_cancelled_replay_leaves_its_session_where_it_stood(serve: Serve, delay_s: float) -> None:
    served = serve(SLOW, reserve_chunks=0, prefix_cache=False)
    name = await opened(served, chunks=12)
    before = standing(served.worlds, name)
    assert await cancelled(served.worlds.rewind(name, 2), delay_s)
    assert standing(served.worlds, name) == before
    assert len(await served.worlds.step(name, turns(1))) == 1


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_cancelled_rollout_clip_save_or_play_leaves_nothing(serve: Serve, delay_s: float) -> None:
    served = serve(SLOW)
    worlds = served.worlds
    name = await opened(served, chunks=3)
    before = standing(worlds, name)
    await cancelled(rollout(worlds, name, chunks=12), delay_s)
    await cancelled(consume(worlds.generate(recipe(served), turns(12))), delay_s)
    await cancelled(served.archive.save(name), delay_s / 10)
    assert standing(worlds, name) == before
    await cancelled(play(worlds, name, turns(12)), delay_s)
    assert worlds.get(name).claim is None
    index = standing(worlds, name)[1]
    assert (await worlds.step(name, turns(1)))[0].record.chunk_index == index


@pytest.mark.parametrize("delay_s", [0.0, 0.0005, 0.002])
async def test_a_cancelled_restore_leaves_nothing(serve: Serve, delay_s: float) -> None:
    served = serve(SLOW)
    data, _ = await served.archive.save(await opened(served, chunks=5))
    saved = snapshots.decode(data)
    busy = asyncio.create_task(served.worlds.step(served.worlds.live()[0].name, turns(6)))
    await asyncio.sleep(0.001)  # its errand waits for the tick of the step
    count = len(served.worlds.live())
    if await cancelled(served.archive.restore(saved, ttl_s=60), delay_s):
        assert len(served.worlds.live()) == count
    await busy


async def test_a_reader_that_goes_away_in_the_middle_leaves_nothing(serve: Serve) -> None:
    served = serve(SLOW)
    worlds = served.worlds
    name = await opened(served)
    async with aclosing(worlds.generate(recipe(served), turns(50))) as clip:
        await anext(clip)
    async with worlds.rollout(name, [[(action, 7) for action in turns(50)]]) as stream:
        await anext(stream.nodes)
    assert len(await play(worlds, name, turns(50), drop_after=2)) == 2
    assert worlds.get(name).claim is None


# ---- deletion


@pytest.mark.parametrize("delay_s", DELAYS_S)
@pytest.mark.parametrize("call", ["step", "play", "replay", "rollout"])
async def test_a_session_that_is_closed_under_a_call_ends_it(serve: Serve, call: str, delay_s: float) -> None:
    served = serve(SLOW, reserve_chunks=0, prefix_cache=False)
    worlds = served.worlds
    name = await opened(served, chunks=8)
    running = asyncio.create_task(
        {
            "step": lambda: worlds.step(name, turns(30)),
            "play": lambda: play(worlds, name, turns(30)),
            "replay": lambda: worlds.rewind(name, 3),
            "rollout": lambda: rollout(worlds, name, chunks=30),
        }[call]()  # type: ignore[no-untyped-call]
    )
    await asyncio.sleep(delay_s)
    if delay_s == 0:
        await asyncio.sleep(0)
    worlds.delete(name)
    with pytest.raises((SessionClosed, SessionNotFound)):
        await running
    with pytest.raises(SessionNotFound):
        worlds.get(name)


async def test_no_chunk_is_added_to_a_closed_session_while_its_play_has_not_heard_of_it_yet(serve: Serve) -> None:
    served = serve(SLOW)
    name = await opened(served)
    async with LivePlay.open(served.worlds, name, fps=0, lookahead_chunks=8, repeat=True) as live:
        live.act(turns(1))
        await anext(live.chunks)
        served.worlds.delete(name)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is busy with others, the engine is not
        served.worlds.engine.check_integrity()
        with pytest.raises(SessionClosed):
            await consume(live.chunks)


async def test_a_session_that_is_closed_under_a_save_is_saved(serve: Serve) -> None:
    served = serve(SLOW)
    name = await opened(served, chunks=3)
    key = served.worlds.get(name).branch.key.hex()
    saving = asyncio.create_task(served.archive.save(name))
    await asyncio.sleep(0)
    served.worlds.delete(name)
    data, state_hash = await saving
    assert state_hash == key
    session, identical = await served.archive.restore(snapshots.decode(data), ttl_s=60)
    assert identical
    assert session.branch.key.hex() == key


@pytest.mark.parametrize("delay_s", DELAYS_S)
async def test_a_session_that_is_closed_while_its_play_goes_back_loses_no_block(serve: Serve, delay_s: float) -> None:
    served = serve(SLOW, reserve_chunks=0, prefix_cache=False)
    worlds = served.worlds
    name = await opened(served, chunks=10)
    with suppress(SessionClosed):
        async with LivePlay.open(worlds, name, fps=0, lookahead_chunks=2, repeat=True) as live:
            live.act(turns(1))
            await anext(live.chunks)
            going_back = asyncio.create_task(live.rewind(4))
            await asyncio.sleep(delay_s)
            worlds.delete(name)
            with pytest.raises(SessionClosed):
                await going_back
            await consume(live.chunks)


async def test_closing_a_parent_leaves_its_children(serve: Serve) -> None:
    served = serve()
    name = await opened(served, chunks=6)
    (child,) = served.worlds.fork(name, seeds=[None], ttl_s=60)
    twin = await opened(served, chunks=6)
    assert served.worlds.delete(name) == 0 or child.branch.table.complete
    (ours,) = await served.worlds.step(child.name, turns(1))
    (theirs,) = await served.worlds.step(twin, turns(1))
    assert ours.frames == theirs.frames


# ---- want


async def test_a_step_that_finds_the_pool_dry_leaves_its_session_and_its_neighbours(serve: Serve) -> None:
    served = serve(SMALL, reserve_chunks=0, prefix_cache=False)
    worlds = served.worlds
    first, second = await opened(served, start="dawn"), await opened(served, start="dawn")
    pool = worlds.engine.pool
    taken = [pool.allocate() for _ in range(pool.free_count - 3)]
    in_use(worlds, second)  # else it would be spilled for the other
    before = standing(worlds, first), standing(worlds, second)
    with pytest.raises(KvCacheFull):
        await worlds.step(first, turns(12))
    assert (standing(worlds, first), standing(worlds, second)) == before
    worlds.get(second).readers.clear()
    for block in taken:
        assert block is not None
        pool.abandon(block)
    assert len(await worlds.step(first, turns(3))) == 3


async def test_a_play_that_finds_the_pool_dry_ends_and_keeps_what_was_shown(serve: Serve) -> None:
    served = serve(SMALL, reserve_chunks=0)
    worlds = served.worlds
    name = await opened(served, start="dawn")
    pool = worlds.engine.pool
    taken = [pool.allocate() for _ in range(pool.free_count - 2)]
    with pytest.raises(KvCacheFull):
        await play(worlds, name, turns(9))
    assert standing(worlds, name)[1] == 2
    for block in taken:
        assert block is not None
        pool.abandon(block)
    assert (await worlds.step(name, turns(1)))[0].record.chunk_index == 2


@pytest.mark.parametrize("free", range(1, 7))
async def test_a_rollout_that_finds_the_pool_dry_gives_everything_back(serve: Serve, free: int) -> None:
    served = serve(SMALL, reserve_chunks=0)
    worlds = served.worlds
    name = await opened(served)
    before = standing(worlds, name)
    pool = worlds.engine.pool
    taken = [pool.allocate() for _ in range(pool.free_count - free)]
    sequences = [[(Action(first), 7), *[(Action(second), 7)] * 5] for first in range(3) for second in range(3)]
    with pytest.raises(KvCacheFull):
        async with worlds.rollout(name, sequences) as stream:
            await consume(stream.nodes)
    assert pool.free_count == free
    assert standing(worlds, name) == before
    for block in taken:
        assert block is not None
        pool.abandon(block)
    async with worlds.rollout(name, sequences[:2]) as stream:
        assert len(await consume(stream.nodes)) == stream.node_count


async def test_no_session_is_admitted_into_the_headroom(serve: Serve) -> None:
    served = serve(SMALL, reserve_chunks=0, headroom_blocks=8, prefix_cache=False)
    worlds = served.worlds
    names = [await opened(served) for _ in range(2)]
    for name in names:
        in_use(worlds, name)  # else they would be spilled for a new one
    await worlds.step(names[0], turns(3))
    (third,) = worlds.fork(names[0], seeds=[8], ttl_s=60)
    in_use(worlds, third.name)
    await worlds.step(third.name, turns(2))
    assert worlds.engine.pool.free_count < 8
    with pytest.raises(KvCacheFull, match="fewer than 8 of the 16 blocks"):
        await opened(served)
    with pytest.raises(KvCacheFull):
        worlds.fork(names[0], seeds=[None], ttl_s=60)
    with pytest.raises(KvCacheFull):
        await consume(worlds.generate(recipe(served), turns(1)))
    assert len(worlds.live()) == 3
    for session in worlds.live():
        session.readers.clear()
    worlds.delete(names[0])
    worlds.delete(names[1])
    await opened(served)


async def test_the_limit_of_sessions_holds_among_creates_that_run_together(serve: Serve) -> None:
    served = serve(SLOW, max_sessions=2)
    outcomes = await asyncio.gather(*(opened(served) for _ in range(4)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, TooManySessions)]
    assert len(refused) == 2
    assert refused[0].metadata["limit"] == "2"
    (name, _) = [outcome for outcome in outcomes if isinstance(outcome, str)]
    with pytest.raises(TooManySessions):
        served.worlds.fork(name, seeds=[None], ttl_s=60)
    assert len(served.worlds.live()) == 2


async def test_the_limit_of_sessions_holds_among_restores_that_run_together(serve: Serve) -> None:
    served = serve(SLOW, max_sessions=2)
    worlds = served.worlds
    name = await opened(served, chunks=2)
    saved = snapshots.decode((await served.archive.save(name))[0])
    outcomes = await asyncio.gather(
        *(served.archive.restore(saved, ttl_s=60) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(outcome, TooManySessions) for outcome in outcomes) == 3
    assert len(worlds.live()) == 2


async def test_a_restore_takes_back_the_reserves_of_others_before_it_is_refused(serve: Serve) -> None:
    served = serve(SMALL, reserve_chunks=16, headroom_blocks=0)
    worlds = served.worlds
    saved = snapshots.decode((await served.archive.save(await opened(served, chunks=12)))[0])
    pool = worlds.engine.pool
    taken = [pool.allocate() for _ in range(pool.free_count)]
    restored, _ = await served.archive.restore(saved, ttl_s=60)
    assert restored.branch.key.hex() == saved.state_hash
    for block in taken:
        assert block is not None
        pool.abandon(block)


async def test_a_full_policy_fills_its_window_and_stays_there(serve: Serve) -> None:
    served = serve()
    name = await opened(served, policy=KvPolicy(PolicyKind.FULL, 4), start="dawn")
    await served.worlds.step(name, turns(2))
    before = standing(served.worlds, name)
    with pytest.raises(KvWindowFull, match="at most 4 chunks"):
        await served.worlds.step(name, turns(2))
    assert standing(served.worlds, name) == before
    await served.worlds.step(name, turns(1))
    with pytest.raises(KvWindowFull):
        await play(served.worlds, name, turns(1))
    await served.worlds.rewind(name, 2)
    await served.worlds.step(name, turns(2))


@pytest.mark.parametrize("tiny", [TinyWorld(), TinyWorld(action_size=2)], ids=["discrete", "continuous"])
async def test_a_poisoned_step_fails_alone_and_its_session_goes_on_as_if_nothing_was(
    serve: Serve, tiny: TinyWorld
) -> None:
    served = serve(tiny)
    worlds = served.worlds
    poison, good = (Action((0.95, 0.0)), Action((0.5, 0.5))) if tiny.action_size else (POISON, Action(1))
    names = [await opened(served) for _ in range(4)]
    expected = (await worlds.step(names[3], [good] * 6))[-1].frames
    before = standing(worlds, names[0])
    outcomes = await asyncio.gather(
        worlds.step(names[0], [good, good, poison, good]),
        worlds.step(names[1], [good] * 6),
        worlds.step(names[2], [good] * 6),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], NotFinite)
    assert outcomes[0].metadata == {"chunk_index": "2"}
    assert standing(worlds, names[0]) == before
    for outcome in outcomes[1:]:
        assert not isinstance(outcome, BaseException)
        assert outcome[-1].frames == expected
    assert (await worlds.step(names[0], [good] * 6))[-1].frames == expected


async def test_a_poisoned_branch_of_a_rollout_ends_it_and_no_block_stays(serve: Serve) -> None:
    served = serve()
    name = await opened(served)
    before = standing(served.worlds, name)
    sequences = [[(Action(1), 7)] * 4, [(Action(1), 7), (POISON, 7)], [(Action(2), 7)] * 4]
    with pytest.raises(NotFinite):
        async with served.worlds.rollout(name, sequences) as stream:
            await consume(stream.nodes)
    assert standing(served.worlds, name) == before


# ---- one call at a time, once


async def test_two_calls_that_would_move_a_session_do_not_meet(serve: Serve) -> None:
    served = serve(SLOW)
    worlds = served.worlds
    name = await opened(served, chunks=2)
    first = asyncio.create_task(worlds.step(name, turns(4)))
    await asyncio.sleep(0.002)
    for call in (worlds.step(name, turns(1)), worlds.rewind(name, 1), play(worlds, name, turns(1))):
        with pytest.raises(SessionBusy, match="busy with a Step"):
            await call
    assert len(worlds.fork(name, seeds=[None], ttl_s=60)) == 1  # where it stands: before the step
    assert await rollout(worlds, name, chunks=2) == 4
    assert len(await first) == 4
    assert standing(worlds, name)[1] == 6


async def test_a_repeated_step_moves_nothing_while_it_is_the_last(serve: Serve) -> None:
    served = serve()
    worlds = served.worlds
    name = await opened(served)
    first = await worlds.step(name, turns(3), request_id="a")
    assert await worlds.step(name, turns(3), request_id="a") is first
    assert standing(worlds, name)[1] == 3
    await worlds.step(name, turns(1), request_id="b")
    assert (await worlds.step(name, turns(1), request_id="a"))[0].record.chunk_index == 4


async def test_a_step_without_a_request_id_keeps_no_frames_for_a_repeat(serve: Serve) -> None:
    served = serve()
    name = await opened(served)
    await served.worlds.step(name, turns(3), request_id="a")
    await served.worlds.step(name, turns(3))
    assert served.worlds.get(name).last_step == ("", [])


async def test_a_closed_session_keeps_no_frames_for_a_repeat(serve: Serve) -> None:
    served = serve()
    session = served.worlds.get(await opened(served))
    await served.worlds.step(session.name, turns(3), request_id="a")
    served.worlds.delete(session.name)
    assert session.last_step == ("", [])


async def test_a_failed_step_is_not_remembered(serve: Serve) -> None:
    served = serve()
    name = await opened(served)
    with pytest.raises(NotFinite):
        await served.worlds.step(name, [POISON], request_id="a")
    assert len(await served.worlds.step(name, turns(1), request_id="a")) == 1


# ---- going back


@pytest.mark.parametrize("reserve_chunks", [0, 3, 16])
@pytest.mark.parametrize("back", [1, 2, 5, 11, 12])
async def test_going_back_any_way_leads_to_where_the_session_was(serve: Serve, reserve_chunks: int, back: int) -> None:
    served = serve(reserve_chunks=reserve_chunks)
    worlds = served.worlds
    name, twin = await opened(served, chunks=12), await opened(served, chunks=12 - back)
    session = await worlds.rewind(name, back)
    expected = standing(worlds, twin)
    assert standing(worlds, name)[:3] == expected[:3]
    assert session.branch.table.complete
    (ours,), (theirs,) = await worlds.step(name, turns(1)), await worlds.step(twin, turns(1))
    assert ours.frames == theirs.frames


@pytest.mark.parametrize("chunk_count", [0, -1, 4, 2**62])
async def test_going_back_past_the_start_is_refused_with_the_limit(serve: Serve, chunk_count: int) -> None:
    served = serve()
    name = await opened(served, chunks=3)
    before = standing(served.worlds, name)
    with pytest.raises(OutOfRange, match=f"chunk_count must be 1 to 3, got {chunk_count}"):
        await served.worlds.rewind(name, chunk_count)
    assert standing(served.worlds, name) == before
    assert served.worlds.get(name).claim is None


async def test_a_session_at_its_start_cannot_go_back_at_all(serve: Serve) -> None:
    served = serve()
    with pytest.raises(InvalidRequest, match="chunk_count is 0, but the session stands at its start"):
        await served.worlds.rewind(await opened(served), 0)


async def test_a_repeated_rewind_is_refused_by_the_index_it_expects(serve: Serve) -> None:
    served = serve()
    name = await opened(served, chunks=6)
    await served.worlds.rewind(name, 2, expected_chunk_index=6)
    with pytest.raises(ChunkIndexMismatch, match="expected_chunk_index is 6, the session stands at 4"):
        await served.worlds.rewind(name, 2, expected_chunk_index=6)


# ---- leases


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_idle_sessions_end_with_their_lease_and_busy_ones_do_not(serve: Serve) -> None:
    served = serve(SLOW)
    clock = Clock()
    worlds = Worlds(served.worlds.engine, served.worlds.settings, served.worlds.residency.tiers, clock=clock)
    served = dataclasses.replace(served, worlds=worlds)
    idle, stepping, imagining = [await opened(served, chunks=1) for _ in range(3)]
    step = asyncio.create_task(worlds.step(stepping, turns(4)))
    dream = asyncio.create_task(rollout(worlds, imagining))
    await asyncio.sleep(0.002)
    clock.now += 61
    assert worlds.expire() == 1
    assert {session.name for session in worlds.live()} == {stepping, imagining}
    await asyncio.gather(step, dream)
    assert worlds.expire() == 0  # the lease counts from the call's end
    clock.now += 61
    assert worlds.expire() == 2
    with pytest.raises(SessionNotFound):
        worlds.keep_alive(idle, None)


async def test_a_lease_can_be_made_longer(serve: Serve) -> None:
    served = serve()
    clock = Clock()
    worlds = Worlds(served.worlds.engine, served.worlds.settings, served.worlds.residency.tiers, clock=clock)
    name = await opened(dataclasses.replace(served, worlds=worlds))
    assert worlds.keep_alive(name, 500.0).expires_s == 1500
    clock.now += 499
    assert worlds.expire() == 0
    clock.now += 1
    assert worlds.expire() == 1


# ---- snapshots


async def test_a_restored_session_goes_on_bit_for_bit(serve: Serve) -> None:
    served = serve()
    worlds = served.worlds
    name = await opened(served, chunks=13)
    data, state_hash = await served.archive.save(name)
    session, identical = await served.archive.restore(snapshots.decode(data), ttl_s=60)
    assert identical
    assert session.branch.key.hex() == state_hash
    ours, theirs = await worlds.step(name, turns(6)), await worlds.step(session.name, turns(6))
    assert [chunk.frames for chunk in ours] == [chunk.frames for chunk in theirs]
    await worlds.rewind(session.name, 12)  # past what was saved: made again
    assert session.branch.chunk_index == 7


async def test_a_snapshot_of_another_backend_says_so_and_is_still_restored(serve: Serve) -> None:
    served = serve()
    data, _ = await served.archive.save(await opened(served, chunks=2))
    saved = snapshots.decode(data)
    with pytest.raises(SnapshotCorrupt, match="does not lead to its state hash"):
        await served.archive.restore(dataclasses.replace(saved, fingerprint="elsewhere"), ttl_s=60)
    served.worlds.model.fingerprint = "here"
    session, identical = await served.archive.restore(saved, ttl_s=60)
    assert not identical
    assert len(await served.worlds.step(session.name, turns(2))) == 2


@pytest.mark.parametrize("change", [{"seed": 2**60}, {"nfe": 3}, {"state_hash": "0" * 64}, {"steps": ()}])
async def test_a_forged_snapshot_is_refused_before_it_takes_a_block(serve: Serve, change: dict[str, Any]) -> None:
    served = serve()
    name = await opened(served, chunks=5)
    saved = snapshots.decode((await served.archive.save(name))[0])
    free = served.worlds.engine.pool.free_count
    with pytest.raises(SnapshotCorrupt):
        await served.archive.restore(dataclasses.replace(saved, **change), ttl_s=60)
    assert served.worlds.engine.pool.free_count == free
    assert len(served.worlds.live()) == 1


async def test_a_snapshot_that_finds_no_room_is_refused_and_takes_nothing(serve: Serve) -> None:
    served = serve(SMALL, reserve_chunks=0, headroom_blocks=0, prefix_cache=False)
    worlds = served.worlds
    name = await opened(served, chunks=5)
    saved = snapshots.decode((await served.archive.save(name))[0])
    in_use(worlds, name)
    pool = worlds.engine.pool
    taken = [pool.allocate() for _ in range(pool.free_count - 2)]
    with pytest.raises(KvCacheFull):
        await served.archive.restore(saved, ttl_s=60)
    assert pool.free_count == 2
    worlds.get(name).readers.clear()
    for block in taken:
        assert block is not None
        pool.abandon(block)


async def test_clips_are_refused_before_the_pool_is_dry_and_those_that_began_end(serve: Serve) -> None:
    free = 48  # for clips; all else is headroom, as a full pool of clips takes a minute
    headroom = serve().worlds.engine.pool.block_count - free
    served = serve(headroom_blocks=headroom, prefix_cache=False)
    worlds = served.worlds
    name = await opened(served, chunks=2)
    clip_count = free  # many more than there is room for

    async def clip(seed: int) -> int | str:
        chunks = worlds.generate(recipe(served, seed=seed), turns(12))
        try:
            return len([chunk async for chunk in chunks])
        except KvCacheFull as full:
            return full.reason

    ends = await asyncio.gather(*(clip(seed) for seed in range(clip_count)), worlds.step(name, turns(6)))
    assert len(ends.pop()) == 6
    counts = Counter(ends)
    assert counts.keys() == {12, "KV_CACHE_FULL"}
    assert counts[12] >= free // 6 - 3
    assert not worlds._clips


async def test_a_session_that_cannot_be_read_is_not_spilled_and_ends_nobody(serve: Serve, monkeypatch: Any) -> None:
    served = serve(prefix_cache=False)
    worlds, engine = served.worlds, served.worlds.engine
    bad, good = await opened(served, chunks=3), await opened(served, chunks=3, seed=8)
    blocks = set(worlds.get(bad).branch.table.blocks.values())
    read = engine.model.read

    def broken(storage: Storage, wanted: list[int]) -> Any:
        if blocks.intersection(wanted):
            raise MemoryError("no memory for a copy")
        return read(storage, wanted)

    monkeypatch.setattr(engine.model, "read", broken)
    assert await asyncio.wrap_future(engine.between_ticks(lambda: worlds.residency.spill_idle(engine.pool)))
    assert (worlds.get(bad).spilled, worlds.get(good).spilled) == (False, True)
    assert len(await worlds.step(bad, turns(2))) == 2
