"""All that gateways keep in Redis, where that is a cluster, watched by a sentinel, or behind TLS."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentials import Authority, KeysFile, bearer
from redis.asyncio import Redis
from valkeys import tls_before, valkey_watched
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.stores import RedisConnection


@pytest.fixture(params=["cluster", "sentinel", "tls"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    match request.param:
        case "cluster":
            yield request.getfixturevalue("cluster").url
        case "sentinel":
            with valkey_watched() as watched:
                yield watched.url
        case _:
            authority = Authority(tmp_path)
            plain = request.getfixturevalue("valkey").url
            async with tls_before(plain, authority.issue("server")) as port:
                yield f"rediss://localhost:{port}/0?ssl_ca_certs={authority.path}"


async def test_two_gateways_share_keys_answers_flights_and_limits(
    start_backend: Any, open_gateway: Any, url: str, tmp_path: Path
) -> None:
    backend = await start_backend()
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("acme")
    connection = RedisConnection(url, timeout_s=10.0)
    redis: Redis = connection.redis
    await redis.hset("worldtree:keys", key[3:11], keys.line(key))
    request = pb.GenerateRequest(
        model=common_pb2.ModelRef(name="echo"),
        origin=pb.Origin(start="here"),
        actions=[pb.Action(instruction="sleep:0.05"), pb.Action(id=1)],
        seed=7,
    )

    async def clip(client: Any) -> tuple[list[bytes], str]:
        call = client.stub.Generate(request, metadata=bearer(key))
        messages = [message.SerializeToString(deterministic=True) async for message in call]
        return messages, dict(await call.trailing_metadata())["worldtree-cache"]

    async def calls(client: Any, count: int) -> None:
        for _ in range(count):
            await clip(client)

    async def errors(client: Any, fault: str) -> float:
        names = (f"worldtree_{store}_store_errors_total" for store in ("limit", "cache"))
        return sum([await client.metric(name, fault=fault) for name in names])

    settings = {
        "redis_url": url,
        "redis_read_timeout_s": 10.0,
        "flight_ttl_s": 60.0,
        "keys_redis": True,
        "calls_per_s": 0.001,
        "calls_burst": 8,
        "frames_per_s": 1e6,
    }
    async with open_gateway(backend.address, **settings) as one, open_gateway(backend.address, **settings) as other:
        clips = await asyncio.gather(*(clip(client) for client in [one, other] * 3))
        assert all(messages == clips[0][0] for messages, _ in clips)
        ended_s = asyncio.get_running_loop().time() + 60
        for kind in ("answer", "bucket"):
            while not [name async for name in redis.scan_iter(f"worldtree:{kind}:*")]:
                assert asyncio.get_running_loop().time() < ended_s, kind
                await asyncio.sleep(0.02)
        async with open_gateway(backend.address, **settings) as third:
            messages, said = await clip(third)
            assert messages == clips[0][0]
            late = await errors(third, "timeout")
        late += await errors(one, "timeout") + await errors(other, "timeout")
        if not late:  # a machine that is too busy to answer in ten seconds proves nothing either way
            assert backend.calls["Generate"] == 1
            assert said == "hit"
        for client in (one, other):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls(client, 40)  # more than both may make alone
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for fault in ("unreachable", "denied", "other"):
                assert await errors(client, fault) == 0, fault
    await connection.close()
