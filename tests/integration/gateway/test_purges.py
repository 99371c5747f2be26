"""Cached answers that an operator has forgotten, and those of one tenant that another never sees."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import worldtree
from credentials import KeysFile, bearer
from redis.asyncio import Redis
from refusals import refused
from valkeys import slow_before
from worldtree.common.v1 import common_pb2
from worldtree.gateway.v1 import gateway_pb2
from worldtree.gateway.v1.gateway_pb2_grpc import GatewayStub
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.cache import AnswerCache
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.identity import Role
from worldtree_gateway.keys import KeyPattern
from worldtree_gateway.purges import Purged, Purges
from worldtree_runtime.stores import RedisConnection

LOOK_S = 0.05


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


async def clip(client: Any, key: str = "", *, seed: int = 7, control: str = "") -> str:
    """What the gateway says of the cache."""
    request = pb.GenerateRequest(
        model=common_pb2.ModelRef(name="echo"), origin=pb.Origin(start="here"), actions=[pb.Action(id=1)], seed=seed
    )
    metadata = (*(bearer(key) if key else ()), *((("cache-control", control),) if control else ()))
    call = client.stub.Generate(request, metadata=metadata)
    async for _ in call:
        pass
    return str(dict(await call.trailing_metadata())["worldtree-cache"])


async def purge(client: Any, key: str = "", **what: Any) -> gateway_pb2.PurgeCacheResponse:
    request = gateway_pb2.PurgeCacheRequest(**what)
    return await GatewayStub(client.channel).PurgeCache(request, metadata=bearer(key) if key else (), timeout=60)


async def digest_of(client: Any, key: str = "") -> str:
    model = await client.stub.GetModel(
        pb.GetModelRequest(model=common_pb2.ModelRef(name="echo")), metadata=bearer(key) if key else ()
    )
    describe = SERVICES[0].describe
    assert describe is not None
    return describe.digest(model.SerializeToString())


async def test_a_purge_forgets_the_answers_of_all_gateways_and_of_redis(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    settings = {"redis_url": valkey.url, "purge_look_s": LOOK_S, "flight_ttl_s": 0.2, "redis_read_timeout_s": 5.0}
    async with open_gateway(backend.address, **settings) as one, open_gateway(backend.address, **settings) as other:
        for client in (one, other):
            await clip(client)
        assert await clip(other) == "hit"
        await asyncio.sleep(0.3)
        purged = await purge(one, all=True)
        assert purged.all_gateways
        assert purged.local_count >= 1
        assert purged.shared_count >= 1
        await other.until(lambda: other.gateway.cache.byte_count == 0)
        calls = backend.calls["Generate"]
        assert await clip(other) == "miss"
        assert backend.calls["Generate"] == calls + 1
        assert await clip(other) == "hit", "what was made since is kept"


async def test_a_purge_in_a_cluster_finds_the_answers_of_all_nodes(start_backend, open_gateway, cluster) -> None:
    backend = await start_backend()
    settings = {"redis_url": cluster.url, "purge_look_s": LOOK_S, "redis_read_timeout_s": 10.0}
    async with open_gateway(backend.address, **settings) as client:
        for seed in range(12):
            await clip(client, seed=seed)
        found = lambda: [list(node.scan_iter("worldtree:answer:*")) for node in cluster.clients()]  # noqa: E731
        await client.until(lambda: sum(map(len, found())) == 12, timeout_s=30)
        assert all(found()), "each node has some"
        assert (await purge(client, digest=await digest_of(client))).shared_count == 12
        assert sum(map(len, found())) <= 1, "but for what told the digest, which is no answer of the model"
        assert await clip(client, seed=3) == "miss"


async def test_a_purge_finds_little_among_much_whatever_that_takes_as_a_whole(valkey) -> None:
    pattern = KeyPattern.of("acme", None)
    async with Redis.from_url(valkey.url) as redis, slow_before(urlsplit(valkey.url).port, answer_s=0.05) as port:
        pipeline = redis.pipeline(transaction=False)
        for index in range(30_000):
            pipeline.set(f"another:{index}", 1)
        await pipeline.execute()
        await redis.set(f"worldtree:answer:{pattern.glob[:-1].replace('?', '0')}", 1)
        connection = RedisConnection(f"redis://127.0.0.1:{port}/0", timeout_s=1.0)
        assert await Purges(AnswerCache(1), connection, look_s=LOOK_S).purge(pattern) == Purged(0, 1)
        assert await redis.dbsize() == 30_001  # with the purge's own
        await connection.close()


async def test_a_tenants_purge_leaves_those_of_others(start_backend, open_gateway, keys, caplog) -> None:
    caplog.set_level(logging.INFO)
    backend = await start_backend()
    acme, globex, operator = keys.add("acme"), keys.add("globex"), keys.add("ops", Role.OPERATOR)
    async with open_gateway(backend.address, keys_file=keys.path) as client:
        for key in (acme, globex):
            assert await clip(client, key) == "miss"
            assert await clip(client, key) == "hit"
        purged = await purge(client, operator, tenant="acme")
        assert (purged.local_count, purged.shared_count, purged.all_gateways) == (1, 0, False)
        assert (await clip(client, globex), await clip(client, acme)) == ("hit", "miss")
        assert (await purge(client, operator, tenant="acme", digest="another")).local_count == 0
        assert (await purge(client, operator, digest=await digest_of(client, acme))).local_count == 2
        assert (await clip(client, globex), await clip(client, acme)) == ("miss", "miss")
    audited = [record for record in caplog.records if record.name == "worldtree_gateway.audit"]
    assert [record.key for record in audited if record.method.endswith("PurgeCache")] == [operator[3:11]] * 3
    told = next(record for record in caplog.records if record.getMessage() == "cached answers were purged")
    assert (told.tenant, told.digest, told.local_count) == ("acme", "all", 1)


async def test_only_operators_purge_and_they_say_what(start_backend, open_gateway, keys) -> None:
    backend = await start_backend()
    user, operator = keys.add("acme"), keys.add("ops", Role.OPERATOR)
    async with open_gateway(backend.address, keys_file=keys.path) as client:
        for metadata, code in ((user, grpc.StatusCode.PERMISSION_DENIED), ("", grpc.StatusCode.UNAUTHENTICATED)):
            assert (await refused(purge(client, metadata, all=True))).code is code
        for what in ({}, {"all": True, "tenant": "acme"}):
            assert (await refused(purge(client, operator, **what))).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_answer_that_was_under_way_at_a_purge_is_not_kept(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = pb.GenerateRequest(
        model=common_pb2.ModelRef(name="echo"),
        origin=pb.Origin(start="here"),
        actions=[pb.Action(id=1), pb.Action(instruction="sleep:0.5")],
    )
    async with open_gateway(backend.address) as client:
        call = client.stub.Generate(request)
        await call.read()
        await purge(client, all=True)
        while await call.read() is not grpc.aio.EOF:
            pass
        assert client.gateway.cache.byte_count == 0


async def test_nobody_waits_after_a_purge_for_a_call_from_before_it(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = pb.GenerateRequest(
        model=common_pb2.ModelRef(name="echo"),
        origin=pb.Origin(start="here"),
        actions=[pb.Action(id=1), pb.Action(instruction="sleep:30")],
    )
    async with open_gateway(backend.address) as client:
        before = client.stub.Generate(request)
        await before.read()
        await purge(client, all=True)
        after = client.stub.Generate(request)
        await after.read()
        assert backend.calls["Generate"] == 2
        before.cancel()
        after.cancel()


async def test_a_purge_that_redis_does_not_hear_of_says_so(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, redis_url=valkey.url, purge_look_s=LOOK_S) as client:
        await clip(client)
        valkey.kill()
        refusal = await refused(purge(client, all=True))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert client.gateway.cache.byte_count == 0


async def test_one_tenant_sees_anothers_answers_only_where_that_is_declared(start_backend, open_gateway, keys) -> None:
    backend = await start_backend()
    acme, globex, hooli = keys.add("acme"), keys.add("globex"), keys.add("hooli")

    async def seen(**settings: Any) -> list[str]:
        async with open_gateway(backend.address, keys_file=keys.path, **settings) as client:
            return [await clip(client, key) for key in (acme, globex, hooli, acme)]

    assert await seen() == ["miss", "miss", "miss", "hit"]
    assert await seen(cache_shared_tenants={"lab": ["acme", "globex"]}) == ["miss", "hit", "miss", "hit"]
    assert await seen(cache_shared_models=["echo"]) == ["miss", "hit", "hit", "hit"]
    assert await seen(cache_shared_models=["other"]) == ["miss", "miss", "miss", "hit"]


async def test_the_sdk_and_the_command_line_purge(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        address = client.gateway.server.address
        await clip(client)
        async with worldtree.aio.Client(address) as sdk:
            assert await sdk.purge_cache(everything=True) == worldtree.CachePurge(1, 0, all_gateways=False)
            with pytest.raises(worldtree.InvalidRequest):
                await sdk.purge_cache()

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-P", "-m", "worldtree.cli", "cache", "purge", "--address", address, *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=120)

        await clip(client)
        done = await asyncio.to_thread(run, "--tenant", "anonymous")
        assert done.returncode == 0, done.stderr
        assert "purged 1 answers of the gateway" in done.stderr
        assert (await asyncio.to_thread(run)).returncode == 2
