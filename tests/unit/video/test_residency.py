"""Sessions that are spilled and brought back: the same frames as if they had never left, and no block lost.

The fixture counts every block, claim and thread at the end of each test.
"""

import asyncio
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worldtree_runtime.testing import TinyWorld
from worldtree_video import snapshot as snapshots
from worldtree_video.catalog import Served
from worldtree_video.cost import CostModel
from worldtree_video.domain import Action, KvPolicy, PolicyKind, Storage
from worldtree_video.errors import SessionClosed
from worldtree_video.recipe import Recipe
from worldtree_video.sessions import Session

Serve = Callable[..., Served]
BIG_BLOCKS = TinyWorld(tokens=1024)  # 16 blocks a MiB in fp32
SINK = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)
RETRIEVE = KvPolicy(PolicyKind.RETRIEVE, 4, 1, recent_chunks=1, bank_chunks=3)


def turns(count: int) -> list[Action]:
    return [Action(number % 3) for number in range(count)]


async def opened(served: Served, *, policy: KvPolicy = SINK, seed: int = 7, chunks: int = 0) -> Session:
    session = await served.worlds.create(Recipe(served.starts["dusk"], seed, 2, policy), ttl_s=600)
    if chunks:
        await served.worlds.step(session.name, turns(chunks))
    return session


async def spill(served: Served, *sessions: Session) -> None:
    """As the engine's thread does when a pool is short, the sessions that were left alone longest first."""
    worlds = served.worlds

    def errand() -> None:
        while any(not session.spilled for session in sessions):
            count = worlds.residency.spilled_count
            worlds.residency.spill_idle(sessions[0].branch.table.pool)
            assert worlds.residency.spilled_count > count, "nobody could be spilled"

    await asyncio.wrap_future(worlds.engine.between_ticks(errand))


def counts(served: Served) -> tuple[int, int]:
    """How often a session was loaded, and made again from its start."""
    return served.worlds.residency.loaded_count, served.worlds.residency.recomputed_count


def frames_of(chunks: list[Any]) -> list[bytes]:
    return [chunk.frames for chunk in chunks]


# ---- the promise


@pytest.mark.parametrize("storage", list(Storage), ids=lambda storage: storage.value)
@pytest.mark.parametrize("policy", [SINK, RETRIEVE], ids=["sink_window", "retrieve"])
async def test_ten_times_the_sessions_that_a_pool_holds_show_what_they_would_in_a_large_one(
    serve: Serve, policy: KvPolicy, storage: Storage
) -> None:
    policy = dataclasses.replace(policy, storage=storage)
    tiny = dataclasses.replace(BIG_BLOCKS, pose=policy.compares)
    served = serve(tiny)
    pool = served.worlds.engine.pools[storage]
    session_count = 10 * pool.block_count // (policy.window_chunks + policy.bank_chunks)
    dice = random.Random(5)
    names = [(await opened(served, policy=policy, seed=seed)).name for seed in range(session_count)]
    shown: list[list[bytes]] = [[] for _ in names]
    taken: list[list[Action]] = [[] for _ in names]
    for _ in range(session_count):
        numbers = dice.sample(range(session_count), 2)
        actions = [[Action(dice.randrange(3)) for _ in range(dice.randrange(1, 4))] for _ in numbers]
        made = await asyncio.gather(
            *(served.worlds.step(names[number], each) for number, each in zip(numbers, actions, strict=True))
        )
        for number, each, chunks in zip(numbers, actions, made, strict=True):
            taken[number] += each
            shown[number] += frames_of(chunks)
    served.worlds.engine.check_integrity()
    served.worlds.residency.tiers.check_integrity()
    assert served.worlds.residency.spilled_count > session_count, "hardly anybody was spilled"
    large = serve(tiny, pool_mib=64, fp16_pool_mib=64, int8_pool_mib=64, host_mib=0, prefix_cache=False)
    for seed, (actions_taken, frames) in enumerate(zip(taken, shown, strict=True)):
        session = await opened(large, policy=policy, seed=seed)
        assert not actions_taken or frames_of(await large.worlds.step(session.name, actions_taken)) == frames, seed
        large.worlds.delete(session.name)
    assert large.worlds.residency.spilled_count == 0


async def test_a_retrieving_session_knows_what_it_compares_after_it_was_away(serve: Serve) -> None:
    served = serve(TinyWorld(pose=True), prefix_cache=False)
    session = await opened(served, policy=RETRIEVE, chunks=12)
    before, visible = session.branch.table.summaries(), session.branch.table.visible()
    needed = set(session.branch.table.needed())
    await spill(served, session)
    await served.worlds.complete(session)
    assert counts(served) == (1, 0)
    assert session.branch.table.visible() == visible
    assert {place: each for place, each in session.branch.table.summaries().items() if place in needed} == {
        place: each for place, each in before.items() if place in needed
    }
    served.worlds.residency._write_s = 1e6  # and made again
    await spill(served, session)
    await served.worlds.complete(session)
    assert counts(served) == (1, 1)
    assert session.branch.table.visible() == visible


async def test_a_retrieving_session_that_went_back_past_its_reserve_sees_what_it_saw_there(serve: Serve) -> None:
    served = serve(TinyWorld(pose=True), prefix_cache=False, reserve_chunks=0)
    session = await opened(served, policy=RETRIEVE, chunks=6)
    there = session.branch.table.visible()
    went_on = frames_of(await served.worlds.step(session.name, turns(14)))
    await served.worlds.rewind(session.name, 14)
    assert session.branch.table.visible() == there
    assert frames_of(await served.worlds.step(session.name, turns(14))) == went_on


# ---- by which way


async def test_a_session_is_loaded_or_made_again_by_whichever_is_estimated_to_be_quicker(serve: Serve) -> None:
    served = serve(prefix_cache=False)
    worlds = served.worlds
    session = await opened(served, chunks=9)
    expected = await worlds.last_frames(session)
    worlds.engine.scheduler.cost = CostModel({1: 10.0}, commit_s=10.0)
    await spill(served, session)
    await worlds.complete(session)
    assert counts(served) == (1, 0)
    worlds.engine.scheduler.cost = CostModel({1: 1e-9}, commit_s=1e-9)
    worlds.residency._write_s = 1.0
    await spill(served, session)
    await worlds.complete(session)
    assert counts(served) == (1, 1)
    assert await worlds.last_frames(session) == expected


async def test_what_no_tier_holds_is_made_again(serve: Serve) -> None:
    served = serve(host_mib=0, prefix_cache=False)
    session = await opened(served, chunks=9)
    twin = await opened(served, chunks=9)
    on = frames_of(await served.worlds.step(twin.name, turns(3)))
    served.worlds.delete(twin.name)
    await spill(served, session)
    assert frames_of(await served.worlds.step(session.name, turns(3))) == on
    assert counts(served) == (0, 1)


async def test_a_session_whose_blocks_others_hold_is_loaded_without_a_tier(serve: Serve) -> None:
    served = serve(host_mib=0)
    session = await opened(served, chunks=9)
    (child,) = served.worlds.fork(session.name, seeds=[None], ttl_s=600)
    child.readers.add(print)  # in use
    await spill(served, session)
    await served.worlds.complete(session)
    child.readers.discard(print)
    assert counts(served) == (1, 0)
    assert session.branch.table.shared_count() == len(session.branch.table.needed())


async def test_going_back_past_the_reserve_begins_at_the_nearest_place_that_is_found(serve: Serve) -> None:
    served = serve(prefix_cache=False, reserve_chunks=0)
    worlds = served.worlds
    session = await opened(served, chunks=20)
    await spill(served, session)  # so that host memory holds what is needed at chunk 20
    await worlds.step(session.name, turns(20))
    target = session.branch.fork()
    target.rewind(17)
    replay, made = await worlds.residency.complete(target)
    assert [chunk.record.chunk_index for chunk in made] == [20, 21, 22]
    assert replay.key == target.key
    worlds.close(target)
    worlds.close(replay)


async def test_a_long_history_that_is_nowhere_is_looked_at_once_a_chunk(serve: Serve) -> None:
    served = serve(prefix_cache=False, host_mib=0)
    session = await opened(served, policy=RETRIEVE, chunks=40)
    await spill(served, session)
    tiers, asked = served.worlds.residency.tiers, []
    held_count = tiers.held_count

    def counted(keys: Any) -> int:
        asked.append(1)
        return held_count(keys)

    tiers.held_count = counted  # type: ignore[method-assign]
    with served.worlds.engine.lock:
        assert served.worlds.residency._local_base(session.branch, len(session.branch.records)) == 0
    assert len(asked) <= len(session.branch.records)


# ---- whose turn it is


async def test_only_sessions_with_blocks_are_looked_at_when_room_is_sought(serve: Serve) -> None:
    served = serve()
    engine = served.worlds.engine
    first, second, third = [await opened(served, seed=seed, chunks=2) for seed in range(3)]
    await spill(served, first)
    with engine.lock:
        assert list(engine.sessions.holding(engine.pool)) == [second, third]
    served.worlds.keep_alive(first.name, None)  # touched, and still without a block
    with engine.lock:
        assert list(engine.sessions.holding(engine.pool)) == [second, third]
    await served.worlds.step(first.name, turns(1))
    await served.worlds.step(second.name, turns(1))
    with engine.lock:
        assert list(engine.sessions.holding(engine.pool)) == [third, first, second]


async def test_the_last_frame_of_a_spilled_session_needs_none_of_its_blocks(serve: Serve) -> None:
    served = serve()
    session = await opened(served, chunks=5)
    expected = await served.worlds.last_frames(session)
    await spill(served, session)
    assert await served.worlds.last_frames(session) == expected
    assert session.spilled


async def test_children_of_a_spilled_session_go_on_as_it_would(serve: Serve) -> None:
    served = serve(prefix_cache=False)
    session = await opened(served, chunks=9)
    await spill(served, session)
    children = served.worlds.fork(session.name, seeds=[None, None], ttl_s=600)
    assert all(child.spilled for child in children)
    made = await asyncio.gather(*(served.worlds.step(each.name, turns(3)) for each in (session, *children)))
    assert frames_of(made[0]) == frames_of(made[1]) == frames_of(made[2])


# ---- ended meanwhile


@pytest.mark.parametrize("call", ["step", "look", "save", "rollout"])
async def test_a_session_that_is_deleted_while_it_comes_back_ends_its_call_at_once(serve: Serve, call: str) -> None:
    served = serve(TinyWorld(work=12), host_mib=0, prefix_cache=False)
    worlds = served.worlds
    session = await opened(served, chunks=60)
    await spill(served, session)

    async def look() -> None:
        async with worlds.using(session):
            pass

    async def rollout() -> None:
        async with worlds.rollout(session.name, [[(Action(0), 7)]]):
            pass

    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: worlds.step(session.name, turns(1)),
        "look": look,
        "save": lambda: served.archive.save(session.name),
        "rollout": rollout,
    }
    running = asyncio.create_task(calls[call]())
    tick = worlds.engine.scheduler.tick
    while worlds.engine.scheduler.tick < tick + 3:  # noqa: ASYNC110 - only the engine knows
        await asyncio.sleep(0.001)
    worlds.delete(session.name)
    with pytest.raises(SessionClosed):
        await asyncio.wait_for(running, 5)
    assert worlds.residency.recomputed_count == 0, "it was made again for nobody"


async def test_one_who_waits_for_a_session_to_come_back_learns_that_it_was_deleted(serve: Serve) -> None:
    served = serve(TinyWorld(work=12), host_mib=0, prefix_cache=False)
    session = await opened(served, chunks=30)
    await spill(served, session)
    looking = asyncio.create_task(served.archive.save(session.name))
    await asyncio.sleep(0.005)
    stepping = asyncio.create_task(served.worlds.step(session.name, turns(1)))  # waits for the same
    await asyncio.sleep(0.005)
    served.worlds.delete(session.name)
    ended = await asyncio.gather(looking, stepping, return_exceptions=True)
    assert [type(error) for error in ended] == [SessionClosed, SessionClosed]


async def test_a_session_that_comes_again_under_its_name_is_another(serve: Serve) -> None:
    served = serve()
    worlds, engine = served.worlds, served.worlds.engine
    session = await opened(served, chunks=3)
    grown = worlds.fork_branch(session)
    worlds.lost(session.name, "video-b")
    with engine.lock:
        again = engine.sessions.add(
            worlds.blank(Recipe(served.starts["dusk"], 7, 2, SINK)), ttl_s=60, now_s=worlds.now(), name=session.name
        )
    with pytest.raises(Exception, match="owned by replica video-b"):
        worlds.swap(session, grown)
    with engine.lock:
        engine.sessions.release(session, worlds.now())
        assert session not in engine.sessions.holding(engine.pool)
    assert worlds.get(session.name) is again
    assert engine.pool.held_count == 0


# ---- a stranger's bytes


async def forged(served: Served) -> tuple[snapshots.Snapshot, Session]:
    """A snapshot whose blocks say something else than its history, and the session that it is of."""
    honest = await opened(served, chunks=6)
    saved = snapshots.decode((await served.archive.save(honest.name))[0])
    blocks = {name: np.ascontiguousarray(rows + 0.25) for name, rows in saved.blocks.items()}
    return dataclasses.replace(saved, blocks=blocks, trusted=True), honest


async def test_forged_blocks_come_back_from_host_memory_and_stay_in_their_own_world(serve: Serve) -> None:
    served = serve()
    saved, honest = await forged(served)
    on = frames_of(await served.worlds.step(honest.name, turns(4)))
    served.worlds.delete(honest.name)
    forger, _ = await served.archive.restore(saved, ttl_s=60)
    lie = frames_of(await served.worlds.step(forger.name, [Action(1), *turns(3)]))
    await spill(served, forger)
    assert forger.branch.salt
    again = await opened(served, chunks=6)
    assert frames_of(await served.worlds.step(again.name, turns(4))) == on
    key = again.branch.key
    await spill(served, again)
    await served.worlds.complete(again)
    assert again.branch.key == key
    assert frames_of(await served.worlds.step(forger.name, turns(1))) != lie[:1]
    assert not forger.branch.trusted


async def test_forged_blocks_are_not_washed_by_a_snapshot_that_we_keep(serve: Serve) -> None:
    served = serve(prefix_cache=False)
    saved, _ = await forged(served)
    forger, _ = await served.archive.restore(saved, ttl_s=60)
    kept = snapshots.decode((await served.archive.save(forger.name))[0])
    washed, _ = await served.archive.restore(kept, ttl_s=60, ours=True)
    assert not washed.branch.trusted
    whole, honest = await forged(served)
    kept = snapshots.decode((await served.archive.save(honest.name))[0])
    again, _ = await served.archive.restore(kept, ttl_s=60, ours=True)
    assert again.branch.trusted
    claimed, _ = await served.archive.restore(whole, ttl_s=60)  # it says so itself, and a client brought it
    assert not claimed.branch.trusted


async def test_blocks_made_under_another_machines_keys_are_set_apart(serve: Serve) -> None:
    served = serve(prefix_cache=False)
    session = await opened(served, chunks=6)
    saved = dataclasses.replace(
        snapshots.decode((await served.archive.save(session.name))[0]), fingerprint="elsewhere", state_hash=""
    )
    branch = served.worlds.blank(Recipe(saved.origin, saved.seed, saved.nfe, saved.policy), "elsewhere")
    for _ in saved.origin.chunks:
        branch.records.append(branch.given_record())
    for action, seed, nfe in saved.steps:
        branch.records.append(branch.next_record(action, seed=seed, nfe=nfe))
    saved = dataclasses.replace(saved, state_hash=branch.key.hex())
    served.worlds.close(branch)
    foreign, identical = await served.archive.restore(saved, ttl_s=60, ours=True)
    assert not identical
    await spill(served, session, foreign)
    position = len(foreign.branch.records) - 1
    assert not served.worlds.residency.tiers.held_count([foreign.branch.records[position].key])
    loaded = served.worlds.residency.loaded_count
    await served.worlds.complete(foreign)
    assert served.worlds.residency.loaded_count == loaded + 1
