"""Tiers that lose or spoil what they hold, in a real Valkey and a real folder: the frames stay what they are."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import valkey as valkey_client
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld
from worldtree_video.domain import Storage

BIG_BLOCKS = TinyWorld(tokens=1024)  # 16 blocks a MiB
STORAGES = {
    Storage.FP32: pb.KvPolicy.STORAGE_FP32,
    Storage.FP16: pb.KvPolicy.STORAGE_FP16,
    Storage.INT8: pb.KvPolicy.STORAGE_INT8,
}
StartVideo = Callable[..., Awaitable[Any]]


def turns(count: int) -> list[pb.Action]:
    return [pb.Action(id=number % 3) for number in range(count)]


async def frames(video: Any, session: str, count: int) -> list[bytes]:
    answer = await video.stub.Step(pb.StepRequest(session=session, actions=turns(count)))
    return [chunk.frames.tensor.data for chunk in answer.chunks]


async def seeded(video: Any, seed: int) -> str:
    request = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"), seed=seed)
    name = str((await video.stub.CreateSession(request)).session.session)
    await frames(video, name, 1 + seed % 4)
    return name


async def spill(video: Any, storage: Storage = Storage.FP32) -> None:
    """Moves all sessions to the store, as the engine's thread would one by one, and waits until they lie there."""
    engine, residency = video.engine, next(iter(video.catalog)).worlds.residency

    def errand() -> None:
        while any(engine.sessions.holding(engine.pools[storage])):
            residency.spill_idle(engine.pools[storage])

    await asyncio.wrap_future(engine.between_ticks(errand))
    await video.until(lambda: residency.tiers.leaving_count == 0)


def blocks_in(valkey: Any, folder: Path | None) -> list[Any]:
    if folder:
        return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    with valkey_client.Valkey.from_url(valkey.url) as client:
        return list(client.scan_iter("worldtree:block:*"))


def spoil(valkey: Any, folder: Path | None, how: str) -> int:
    """Loses or damages each block; returns how many there were."""
    names = blocks_in(valkey, folder)

    def spoilt(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    with valkey_client.Valkey.from_url(valkey.url) as client:
        for name in names:
            if folder:
                name.unlink() if how == "lost" else name.write_bytes(spoilt(name.read_bytes()))
            elif how == "lost":
                client.delete(name)
            else:
                client.set(name, spoilt(client.get(name)), keepttl=True)
    return len(names)


@pytest.mark.parametrize("storage", list(Storage), ids=lambda storage: storage.value)
@pytest.mark.parametrize("place", ["valkey", "folder"])
@pytest.mark.parametrize("how", ["kept", "lost", "spoilt"])
async def test_a_store_that_lost_or_spoilt_a_sessions_blocks_costs_time_and_no_frame(
    valkey: Any, start_video: StartVideo, tmp_path: Path, place: str, how: str, storage: Storage
) -> None:
    folder = tmp_path / "blocks" if place == "folder" else None
    store = {"tier_url": str(folder)} if folder else {"redis_url": valkey.url}
    video = await start_video(host_mib=0, prefix_cache=False, **store)
    residency = next(iter(video.catalog)).worlds.residency
    kv = pb.KvPolicy(storage=STORAGES[storage])
    name, twin = [await video.create(chunks=9, kv=kv) for _ in range(2)]
    on = await frames(video, twin, 4)
    await video.stub.Delete(pb.DeleteRequest(session=twin))
    await spill(video, storage)
    assert (await video.stub.Get(pb.GetRequest(session=name))).session.state == pb.Session.STATE_SPILLED
    if how != "kept":
        assert spoil(valkey, folder, how) >= 4
    assert await frames(video, name, 4) == on
    assert (residency.loaded_count, residency.recomputed_count) == ((1, 0) if how == "kept" else (0, 1))
    await video.stub.Delete(pb.DeleteRequest(session=name))
    video.engine.check_integrity()
    assert all(pool.held_count == 0 for pool in video.engine.pools.values())


async def test_ten_times_the_sessions_that_pool_and_host_memory_hold_go_on_over_the_wire(
    valkey: Any, start_video: StartVideo
) -> None:
    video = await start_video(BIG_BLOCKS, host_mib=1, redis_url=valkey.url, prefix_cache=False, reserve_chunks=2)
    apart = await start_video(BIG_BLOCKS, pool_mib=64, prefix_cache=False)
    count = 10 * video.engine.pool.block_count // 4
    names = [await seeded(video, number) for number in range(count)]
    for number in (0, count - 1, count // 2, 1, 2, 3):
        twin = await seeded(apart, number)
        assert await frames(video, names[number], 3) == await frames(apart, twin, 3)
        await apart.stub.Delete(pb.DeleteRequest(session=twin))
    assert len(blocks_in(valkey, None)) > video.engine.pool.block_count
    residency = next(iter(video.catalog)).worlds.residency
    assert residency.loaded_count >= 1
    assert residency.loaded_count + residency.recomputed_count >= 4
    for name in names:
        await video.stub.Delete(pb.DeleteRequest(session=name))
    assert video.engine.pool.held_count == 0


async def test_a_spilled_session_of_a_store_that_is_down_is_made_again(valkey: Any, start_video: StartVideo) -> None:
    video = await start_video(host_mib=0, prefix_cache=False, redis_url=valkey.url)
    name, twin = [await video.create(chunks=9) for _ in range(2)]
    on = await frames(video, twin, 2)
    await spill(video)
    valkey.kill()
    assert await frames(video, name, 2) == on


async def test_a_world_is_shared_after_its_maker_was_deleted(start_video: StartVideo) -> None:
    video = await start_video()
    maker = await video.create()
    made = await video.stub.Step(pb.StepRequest(session=maker, actions=turns(3)))
    await video.stub.Delete(pb.DeleteRequest(session=maker))
    other = await video.create()
    again = await video.stub.Step(pb.StepRequest(session=other, actions=turns(3)))
    assert [chunk.timing.tick_count for chunk in made.chunks] == [2, 2, 2]
    assert [chunk.timing.tick_count for chunk in again.chunks] == [0, 0, 0]
    assert [chunk.frames for chunk in again.chunks] == [chunk.frames for chunk in made.chunks]


async def test_a_snapshot_that_one_replica_kept_is_restored_by_another_by_its_id(
    valkey: Any, start_video: StartVideo, tmp_path: Path
) -> None:
    TinyWorld().write(tmp_path / "shared")
    here, there = [
        await start_video(models=tmp_path / "shared", redis_url=valkey.url, replica=replica)
        for replica in ("video-a", "video-b")
    ]
    name = await here.create(chunks=7)
    saved = await here.stub.Save(pb.SaveRequest(session=name))
    restored = await there.stub.Restore(pb.RestoreRequest(snapshot=saved.snapshot))
    assert restored.bit_identical
    assert restored.session.state_hash == saved.state_hash
    assert restored.session.session.endswith(".video-b")
    assert await frames(there, restored.session.session, 3) == await frames(here, name, 3)
