"""A cluster's client where the library has another name for what it knows."""

from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from worldtree_runtime.stores.redis_cluster import ClusterClient


async def test_where_a_name_of_the_library_is_gone_the_library_learns_its_cluster_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[Any] = []

    async def initialize(self: Any) -> Any:
        learned.append(self)
        return self

    monkeypatch.setattr(RedisCluster, "initialize", initialize)
    client = ClusterClient(startup_nodes=[ClusterNode("127.0.0.1", 1)])
    monkeypatch.delattr(client, "_initialize")
    assert await client.initialize() is client
    assert learned == [client]
    client.look_again()
    assert client._learning is None
    monkeypatch.undo()
    await client.end()
