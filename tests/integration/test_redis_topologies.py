"""What is kept in Redis, where that is a cluster, a primary that dies under a sentinel's eyes, or behind TLS."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from credentials import Authority, Pair
from valkeys import Watched, slow_before, tls_before, valkey_cluster, valkey_watched
from worldtree_runtime.stores import RedisConnection, RedisStore, StoreUnavailable


@pytest.fixture
def watched() -> AsyncIterator[Watched]:
    with valkey_watched() as found:
        yield found


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


async def until(done: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not await done():
        assert time.monotonic() < ends_s, "it did not come true"
        await asyncio.sleep(0.05)


async def test_the_values_of_a_cluster_lie_on_all_its_nodes(cluster: Any) -> None:
    store = RedisStore(cluster.url, timeout_s=10.0)
    values = {f"k{index}": b"%d" % index for index in range(300)}
    await store.set_many(values, 60)
    assert await store.get_many(list(values)) == list(values.values())
    assert all(client.dbsize() > 50 for client in cluster.clients())
    await store.close()


async def test_more_calls_at_once_than_a_cluster_has_connections_for_wait_their_turn(cluster: Any) -> None:
    store = RedisStore(cluster.url, timeout_s=10.0)
    await asyncio.gather(*(store.set(f"k{index}", b"%d" % index, 60) for index in range(600)))
    assert await asyncio.gather(*(store.get(f"k{index}") for index in range(600))) == [b"%d" % i for i in range(600)]
    calls = [asyncio.create_task(store.get("k1")) for _ in range(300)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert await asyncio.gather(*(store.get("k1") for _ in range(300))) == [b"1"] * 300
    await store.close()


async def test_a_node_of_a_cluster_that_dies_takes_its_own_keys_and_no_others() -> None:
    with valkey_cluster() as cluster:
        store = RedisStore(cluster.url, timeout_s=1.0)
        keys = [f"k{index}" for index in range(30)]
        await store.set_many(dict.fromkeys(keys, b"1"), 60)
        cluster.kill(0)  # which the URL names first

        async def found(key: str) -> bool:
            try:
                return await store.get(key) == b"1"
            except StoreUnavailable:
                return False

        async def most_answer() -> bool:
            return 10 <= sum([await found(key) for key in keys]) < 30

        await until(most_answer)
        await store.close()


async def test_a_replica_that_takes_over_from_a_node_that_hangs_is_found() -> None:
    with valkey_cluster(replica=True) as cluster:
        store = RedisStore(cluster.url, timeout_s=0.5)
        keys = [f"k{index}" for index in range(30)]

        async def have_all() -> bool:
            try:
                return await store.get_many(keys) == [b"1"] * len(keys)
            except StoreUnavailable:
                return False

        async def written() -> bool:
            with suppress(StoreUnavailable):
                await store.set_many(dict.fromkeys(keys, b"1"), 600)
            return await have_all()

        await until(written)
        cluster.wait_replicated()
        cluster.hang(0)
        assert not await have_all()
        await until(have_all)
        await store.close()


async def test_a_cluster_is_learned_though_that_takes_longer_than_a_call_may(cluster: Any) -> None:
    async with slow_before(cluster.ports[0], answer_s=0.2) as port:
        store = RedisStore(f"redis+cluster://127.0.0.1:{port}", timeout_s=0.1)
        with pytest.raises(StoreUnavailable):
            await store.get("k")

        async def answers() -> bool:
            with suppress(StoreUnavailable):
                return await store.get("k") is None
            return False

        await until(answers)
        await store.close()


async def test_a_cluster_that_is_away_is_unavailable() -> None:
    store = RedisStore("redis+cluster://:secret@127.0.0.1:1,127.0.0.1:2", timeout_s=2.0)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1,127\.0\.0\.1:2") as caught:
        await store.get("k")
    assert caught.value.fault == "unreachable"
    assert "secret" not in str(caught.value)
    await store.close()


async def test_a_replica_takes_over_while_calls_go_on(watched: Watched) -> None:
    store = RedisStore(watched.url, timeout_s=1.0)
    await store.set("before", b"1", 600)
    watched.wait_replicated()
    answered, unavailable, stopping = 0, 0, False

    async def caller(name: str) -> None:
        nonlocal answered, unavailable
        while not stopping:
            try:
                await store.set(name, b"2", 600)
                answered += 1
            except StoreUnavailable:
                unavailable += 1
            await asyncio.sleep(0.02)

    callers = [asyncio.create_task(caller(f"caller-{index}")) for index in range(8)]

    async def has_answered(more: int) -> None:
        count = answered

        async def enough() -> bool:
            return answered >= count + more

        await until(enough)

    await has_answered(20)
    watched.kill_primary()

    async def taken_over() -> bool:
        with suppress(StoreUnavailable):
            await store.set("after", b"3", 600)
            return True
        return False

    await until(taken_over)
    await has_answered(80)
    stopping = True
    await asyncio.gather(*callers)  # nothing but StoreUnavailable came out of a call
    assert await store.get_many(["before", "after"]) == [b"1", b"3"]
    with watched.replica() as replica:
        assert replica.get("after") == b"3"
        assert replica.role()[0] == b"master"
    await store.close()


async def test_sentinels_that_do_not_know_the_service_are_unavailable(watched: Watched) -> None:
    store = RedisStore(watched.url.replace("/worldtree/", "/another/"), timeout_s=5.0)
    with pytest.raises(StoreUnavailable) as caught:
        await store.get("k")
    assert caught.value.fault == "unreachable"
    await store.close()


async def test_redis_behind_tls_is_asked_with_the_ca_that_the_url_names(
    valkey: Any, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    (tmp_path / "strange").mkdir()
    stranger = Authority(tmp_path / "strange")
    async with tls_before(valkey.url, pair) as port:
        url = f"rediss://localhost:{port}/0"
        store = RedisStore(f"{url}?ssl_ca_certs={authority.path}", timeout_s=10.0)
        await store.set_many({f"k{index}": b"v" for index in range(40)}, 60)
        assert await store.get("k7") == b"v"
        await store.close()
        for wrong in (url, f"{url}?ssl_ca_certs={stranger.path}", f"redis://localhost:{port}/0"):
            store = RedisStore(wrong, timeout_s=2.0)
            with pytest.raises(StoreUnavailable):
                await store.get("k7")
            await store.close()


async def test_redis_that_asks_for_certificates_is_shown_the_one_that_the_url_names(
    valkey: Any, authority: Authority, pair: Pair
) -> None:
    client = authority.issue("client")
    async with tls_before(valkey.url, pair, client_ca=authority.path) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={authority.path}"
        connection = RedisConnection(f"{url}&ssl_certfile={client.chain}&ssl_keyfile={client.key}", timeout_s=10.0)
        assert await connection.call(lambda: connection.redis.ping())
        await connection.close()
        connection = RedisConnection(url, timeout_s=2.0)
        with pytest.raises(StoreUnavailable):
            await connection.call(lambda: connection.redis.ping())
        await connection.close()
