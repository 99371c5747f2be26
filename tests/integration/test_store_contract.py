"""What every store promises, each against the real thing: memory, folders through fsspec, a Redis server."""

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from worldtree_runtime.stores import FolderStore, MemoryStore, RedisStore, Store, StoreUnavailable
from worldtree_runtime.stores.redis_store import READ_KEY_COUNT_MAX, WRITE_BYTES_MAX


@pytest.fixture(params=["memory", "folder", "fsspec", "redis", "cluster"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store
    match request.param:
        case "memory":
            opened = MemoryStore()
        case "folder":
            opened = FolderStore(str(tmp_path / "store"))
        case "fsspec":
            opened = FolderStore(f"memory://{secrets.token_hex(8)}")
        case _:
            shape = "valkey" if request.param == "redis" else "cluster"
            opened = RedisStore(request.getfixturevalue(shape).url, timeout_s=10.0)
    yield opened
    await opened.close()


async def test_a_value_comes_back_byte_for_byte_until_it_is_deleted(store: Store) -> None:
    value = bytes(range(256)) * 1000
    assert await store.get("k") is None
    await store.set("k", value, 60)
    assert await store.get("k") == value
    await store.set("k", b"", 60)
    assert await store.get("k") == b""
    await store.delete("k")
    await store.delete("k")
    assert await store.get("k") is None


async def test_any_text_is_a_key_and_two_keys_are_two_values(store: Store) -> None:
    keys = ["../../etc/passwd", "a/b", "a", "A", "*?[x]", "", "ü\n\0", "k" * 5000]
    await store.set_many({key: key.encode() for key in keys}, 60)
    assert await store.get_many(keys) == [key.encode() for key in keys]


async def test_a_value_expires_at_its_own_time(store: Store) -> None:
    await store.set("short", b"1", 0.05)
    await store.set("long", b"2", 60)
    await asyncio.sleep(0.15)
    assert await store.get_many(["short", "long"]) == [None, b"2"]
    assert await store.set_if_absent("short", b"3", 60)
    assert await store.get("short") == b"3"


async def test_many_are_read_in_their_order_with_nothing_for_what_is_not_there(store: Store) -> None:
    count = 3 * READ_KEY_COUNT_MAX + 1
    await store.set_many({f"k{i}": b"%d" % i for i in range(0, count, 2)}, 60)
    found = await store.get_many([f"k{i}" for i in reversed(range(count))])
    assert found == [b"%d" % i if i % 2 == 0 else None for i in reversed(range(count))]
    assert await store.get_many(["k2", "k2", "k1"]) == [b"2", b"2", None]
    assert await store.get_many([]) == []
    await store.set_many({}, 60)


async def test_many_large_values_are_set_whatever_they_weigh_together(store: Store) -> None:
    values = {f"k{i}": bytes([i]) * (WRITE_BYTES_MAX // 3) for i in range(8)} | {"one": bytes(2 * WRITE_BYTES_MAX)}
    await store.set_many(values, 60)
    assert await store.get_many(list(values)) == list(values.values())


async def test_of_many_that_set_if_absent_exactly_one_wins(store: Store) -> None:
    won = await asyncio.gather(*(store.set_if_absent("k", b"%d" % i, 60) for i in range(20)))
    assert sum(won) == 1
    assert await store.get("k") == b"%d" % won.index(True)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
async def test_a_ttl_that_is_no_time_is_refused_and_nothing_set(store: Store, ttl_s: float) -> None:
    for call in (
        store.set("k", b"1", ttl_s),
        store.set_many({"k": b"1"}, ttl_s),
        store.set_if_absent("k", b"1", ttl_s),
    ):
        with pytest.raises(ValueError, match="ttl_s must be more than 0"):
            await call
    assert await store.get("k") is None


# What only a folder has to prove.


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def test_a_folder_keeps_its_values_over_a_restart(tmp_path: Path) -> None:
    await FolderStore(str(tmp_path)).set("k", b"v", 60)
    assert await FolderStore(tmp_path.as_uri()).get("k") == b"v"


async def test_a_folder_sweeps_out_what_expired_and_then_what_is_oldest(tmp_path: Path) -> None:
    clock = Clock()
    store = FolderStore(str(tmp_path), max_bytes=100_000, clock=clock)
    await store.set("brief", bytes(5_000), 10)
    for i in range(50):
        clock.now_s += 1
        await store.set(f"k{i}", bytes(5_000), 3600)
    assert file_bytes(tmp_path) <= 100_000
    found = await store.get_many([f"k{i}" for i in range(50)])
    held = [value is not None for value in found]
    assert held == sorted(held), "an older value was kept in the place of a newer one"
    assert 14 <= sum(held) <= 20
    clock.now_s += 3601
    await store.set("last", b"v", 60)
    assert file_bytes(tmp_path) < 1_000


async def test_a_value_larger_than_the_folder_may_be_replaces_the_old_one_by_nothing(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path), max_bytes=1_000)
    await store.set("k", b"old", 60)
    await store.set("k", bytes(2_000), 60)
    assert await store.get("k") is None


async def test_a_file_cut_short_or_foreign_is_no_value(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    await store.set("k", bytes(1_000), 60)
    (file,) = (tmp_path / "values").rglob("*/*")
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:20], b"", whole + b"x", b"x" + whole[1:]):
        file.write_bytes(data)
        assert await store.get("k") is None
    assert await store.set_if_absent("k", b"v", 60)
    assert await store.get("k") == b"v"


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = FolderStore(str(tmp_path / "file"))
    with pytest.raises(StoreUnavailable, match="the folder"):
        await store.set("k", b"v", 60)


def test_a_folder_of_no_known_kind_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="nosuchkind"):
        FolderStore("nosuchkind://bucket/folder")


KEEP_WRITING = """
import asyncio, sys
from worldtree_runtime.stores import FolderStore

async def write():
    store = FolderStore(sys.argv[1], max_bytes=3_000_000)
    while True:
        await store.set_many({f"k{i}": sys.argv[2].encode() * 100_000 for i in range(8)}, 60)

asyncio.run(write())
"""

SET_IF_ABSENT = """
import asyncio, sys
from worldtree_runtime.stores import FolderStore

async def race():
    store = FolderStore(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    print(*[i for i in range(200) if await store.set_if_absent(f"k{i}", sys.argv[2].encode(), 60)])

asyncio.run(race())
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def test_readers_find_whole_values_while_processes_write_and_are_killed(tmp_path: Path) -> None:
    writers = [start(KEEP_WRITING, str(tmp_path), letter) for letter in "ab"]
    store = FolderStore(str(tmp_path), max_bytes=3_000_000)
    seen: dict[bytes, int] = {}
    try:
        ends_s = time.monotonic() + 60
        while (len(seen) < 2 or sum(seen.values()) < 400) and time.monotonic() < ends_s:
            for value in await store.get_many([f"k{i}" for i in range(8)]):
                if value is not None:
                    assert value == value[:1] * 100_000
                    seen[value[:1]] = seen.get(value[:1], 0) + 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert seen.keys() == {b"a", b"b"}
    for value in await store.get_many([f"k{i}" for i in range(8)]):
        assert value in (b"a" * 100_000, b"b" * 100_000)


async def test_of_many_processes_exactly_one_sets_each_value_that_had_expired(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    await store.set_many({f"k{i}": b"old" for i in range(200)}, 0.001)
    processes = [start(SET_IF_ABSENT, str(tmp_path), name) for name in "abc"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = {name: process.communicate(timeout=60)[0].split() for name, process in zip("abc", processes, strict=True)}
    assert sorted(int(i) for each in won.values() for i in each) == list(range(200))
    for name, each in won.items():
        assert await store.get_many([f"k{i}" for i in each]) == [name.encode()] * len(each)
