"""The engine's thread outlives whatever comes."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from worldtree_runtime.testing import TinyWorld
from worldtree_video.catalog import Catalog, Served
from worldtree_video.domain import Action, KvPolicy, PolicyKind, Priority
from worldtree_video.errors import EngineBroken
from worldtree_video.live import LivePlay
from worldtree_video.mailbox import Mailbox
from worldtree_video.recipe import Recipe
from worldtree_video.sequence import Planned, Sequence

Serve = Callable[..., Served]
SINK = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)


async def opened(served: Served) -> str:
    recipe = Recipe(served.starts["dawn"], 7, 2, SINK)
    return (await served.worlds.create(recipe, ttl_s=60)).name


async def test_a_tick_that_breaks_ends_its_members_and_not_the_thread(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    name = await opened(served)
    branch = served.worlds.get(name).branch.fork()
    mailbox: Mailbox[object] = Mailbox()
    engine = served.worlds.engine
    # No package has a schedule for 99 evaluations, so the model itself raises.
    engine.submit(Sequence(branch, [Planned(Action(1), nfe=99)], priority=Priority.STEP, sink=mailbox))  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        await anext(mailbox)
    assert "a tick failed" in caplog.text
    branch.close()
    assert len(await served.worlds.step(name, [Action(1)])) == 1


async def test_a_bug_of_our_own_ends_who_waits_and_turns_readiness_off(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    name, other = await opened(served), await opened(served)
    engine = served.worlds.engine

    def broken(*_: object) -> None:
        raise AssertionError("7 blocks are lost")

    async with LivePlay.open(served.worlds, other, fps=0, lookahead_chunks=1, repeat=False) as play:
        with monkeypatch.context() as patch:
            patch.setattr(engine.scheduler, "complete", broken)
            with pytest.raises(EngineBroken):
                await asyncio.wait_for(served.worlds.step(name, [Action(1)]), 5)
            with pytest.raises(EngineBroken):
                await asyncio.wait_for(anext(play.chunks), 5)
    assert "7 blocks are lost" in caplog.text
    assert not Catalog([served]).has_room()
    for call in (served.worlds.step(name, [Action(1)]), served.archive.save(name), opened(served)):
        with pytest.raises(EngineBroken):
            await asyncio.wait_for(call, 5)
    engine._thread.join(5)
    # The fixture wants a living thread and no block in flight, as every other test has it.
    for block_id in list(engine.pool._in_flight):
        engine.pool.abandon(block_id)
    engine._thread = threading.Thread(target=time.sleep, args=(0.5,), daemon=True)
    engine._thread.start()


@pytest.mark.parametrize("fps", [1e-30, 1e-9, 5e-324])
async def test_a_play_at_a_tiny_fps_waits_without_ending_the_thread(serve: Serve, fps: float) -> None:
    served = serve()
    name = await opened(served)
    async with LivePlay.open(served.worlds, name, fps=fps, lookahead_chunks=1, repeat=False) as play:
        play.act([Action(1), Action(1), Action(1)])
        await anext(play.chunks)
        play.taken()
        await asyncio.sleep(0.02)
    other = await opened(served)
    assert len(await served.worlds.step(other, [Action(1)])) == 1


async def test_a_stop_that_comes_before_the_first_chunk_is_begun_makes_none(serve: Serve) -> None:
    served = serve(TinyWorld(work=20))
    name, other = await opened(served), await opened(served)
    busy = asyncio.create_task(served.worlds.step(other, [Action(1)] * 8))
    for _ in range(4):
        await asyncio.sleep(0.003)  # somewhere in a tick of the other session
        async with LivePlay.open(served.worlds, name, fps=0, lookahead_chunks=1, repeat=False) as play:
            play.act([Action(1)])
            play.stop()
            items = [item async for item in play.chunks]
        assert len(items) <= 1
    await busy
    assert len(await served.worlds.step(name, [Action(1)])) == 1


async def test_what_is_done_between_ticks_is_done_in_the_engines_thread(serve: Serve) -> None:
    engine = serve().worlds.engine
    assert await asyncio.wrap_future(engine.between_ticks(threading.get_ident)) == engine._thread.ident
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(engine.between_ticks(lambda: 1 // 0))
    assert await asyncio.wrap_future(engine.between_ticks(lambda: 7)) == 7


async def test_an_errand_that_was_cancelled_is_not_run(serve: Serve) -> None:
    engine = serve().worlds.engine
    ran: list[int] = []
    with engine.lock:
        future = engine.between_ticks(lambda: ran.append(1))
        assert future.cancel()
    await asyncio.wrap_future(engine.between_ticks(lambda: None))
    assert ran == []


async def test_errands_that_wait_when_the_engine_stops_are_still_run(serve: Serve) -> None:
    engine = serve().worlds.engine
    with engine.lock:
        futures = [engine.between_ticks(lambda: 7) for _ in range(3)]
        engine._stopping = True
    assert [future.result(timeout=5) for future in futures] == [7, 7, 7]
    engine._thread.join(5)
    assert not engine._thread.is_alive()
    # The fixture wants a living thread, as every other test has one.
    engine._thread = threading.Thread(target=time.sleep, args=(0.5,), daemon=True)
    engine._thread.start()


async def test_a_mailbox_whose_loop_has_closed_swallows_what_comes(serve: Serve) -> None:
    loop = asyncio.new_event_loop()

    async def make() -> Mailbox[int]:
        return Mailbox()

    mailbox = await asyncio.to_thread(loop.run_until_complete, make())
    loop.close()
    mailbox.put(1)
    mailbox.close()


async def test_a_mailbox_gives_items_in_order_then_its_first_end_for_ever() -> None:
    mailbox: Mailbox[int] = Mailbox()
    threading.Thread(target=lambda: [mailbox.put(number) for number in range(3)]).start()
    assert [await anext(mailbox) for _ in range(3)] == [0, 1, 2]
    mailbox.close(ValueError("first"))
    mailbox.close()
    for _ in range(2):
        with pytest.raises(ValueError, match="first"):
            await anext(mailbox)


def test_readiness_counts_what_idle_sessions_could_give_up_and_takes_nothing(serve: Serve) -> None:
    served = serve(TinyWorld(tokens=1024), reserve_chunks=16)
    engine = served.worlds.engine
    assert engine.pool.block_count == 16

    async def fill() -> None:
        name = await opened(served)
        await served.worlds.step(name, [Action(1)] * 12)
        free_count = engine.pool.free_count
        assert free_count < 6
        assert engine.has_room(16)
        session = served.worlds.get(name)
        session.readers.add(print)
        assert engine.has_room(free_count)
        assert not engine.has_room(free_count + 1)
        session.readers.clear()
        assert engine.pool.free_count == free_count

    asyncio.run(fill())
