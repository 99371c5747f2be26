"""Opens what speaks to a Redis, whatever stands behind its URL: a server, sentinels or a cluster."""

from typing import Any, TypeAlias

from redis.asyncio import ConnectionPool, Redis, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from worldtree_runtime.redis_url import RedisUrl
from worldtree_runtime.stores.redis_cluster import NODE_TIMEOUT_S, ClusterClient

# What they have in common: commands, pipelines and scripts, as long as the keys of one script are in one slot.
Client: TypeAlias = "Redis | ClusterClient"


def open_client(url: str, timeout_s: float, *, connections: int) -> Client:
    """Connects at its first use. `connections`: more at a time, to one server, are an error. Raises ValueError for an
    URL that isn't Redis's.
    """
    parsed = RedisUrl.parse(url)
    options: dict[str, Any] = {
        "max_connections": connections,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # once more on a fresh connection, because pooled ones are dead after a restart of Redis; the library's own
        # default waits up to seconds between its tries
        "retry": Retry(NoBackoff(), 1),
        "decode_responses": False,
    }
    if parsed.topology == "server":
        pool = ConnectionPool.from_url(parsed.server, **options, retry_on_error=[RedisConnectionError])
        return Redis.from_pool(pool)
    options |= parse_url(parsed.server)
    del options["host"], options["port"]
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    if parsed.topology == "cluster":
        nodes = [ClusterNode(host, port) for host, port in parsed.nodes]
        options["socket_timeout"] = options["socket_connect_timeout"] = max(timeout_s, NODE_TIMEOUT_S)
        # 0: a slot that has moved is asked for where it is; to begin anew would break off all calls under way
        return ClusterClient(startup_nodes=nodes, reinitialize_steps=0, **options)
    return Redis.from_pool(_SentinelPool(parsed, {**options, "retry_on_error": [RedisConnectionError]}, timeout_s))


class _SentinelPool(SentinelConnectionPool):
    """Connections to whichever server the sentinels say is the primary, and those to the sentinels."""

    def __init__(self, url: RedisUrl, options: dict[str, Any], timeout_s: float) -> None:
        user, password = url.sentinel_login
        asking = {name: value for name, value in options.items() if name == "ssl" or name.startswith("ssl_")}
        # a sentinel that hangs must leave the next one time to answer within the same call
        asking |= {"socket_timeout": timeout_s / 2, "socket_connect_timeout": timeout_s / 2}
        asking |= {"username": user or None, "password": password or None, "retry": Retry(NoBackoff(), 0)}
        self._sentinels = Sentinel(url.nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        super().__init__(url.service, self._sentinels, **options)  # type: ignore[no-untyped-call]

    async def aclose(self) -> None:
        await super().aclose()
        await self._sentinels.aclose()
