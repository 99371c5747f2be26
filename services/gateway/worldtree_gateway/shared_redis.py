"""The Redis of a gateway: two lanes of connections, so that what is large stands in nobody's way."""

from typing import Self

from worldtree_runtime.stores import RedisConnection

from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.config import GatewaySettings


class RedisLane:
    """`reads`: what a request waits for, for so long at most. `writes`: what goes on beside it."""

    def __init__(self, url: str, settings: GatewaySettings) -> None:
        self._all = RedisConnection(url, settings.redis_write_timeout_s)
        self.writes = self._all.within(settings.redis_write_timeout_s)
        self.reads = self._all.within(settings.redis_read_timeout_s)
        self.breaker = CircuitBreaker(failure_count=settings.redis_failure_count, retry_s=settings.redis_retry_s)

    async def close(self) -> None:
        await self._all.close()


class SharedRedis:
    """`small`: limits and what else is a few bytes. `large`: answers and recordings, of which one that does not come in
    time says more of its size than of Redis.
    """

    def __init__(self, url: str, settings: GatewaySettings) -> None:
        self.small, self.large = RedisLane(url, settings), RedisLane(url, settings)

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self | None:
        """None: there is none."""
        return None if settings.redis_url is None else cls(settings.redis_url, settings)

    async def close(self) -> None:
        await self.small.close()
        await self.large.close()
