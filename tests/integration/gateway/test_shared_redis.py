"""What is large and slow for its size is no reason to think that Redis is away."""

import asyncio
import os
import time
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from valkeys import slow_before
from worldtree_gateway.answers import Answer
from worldtree_gateway.buckets import SharedBuckets, Use
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.rate import Rate
from worldtree_gateway.shared_answers import SharedAnswers
from worldtree_gateway.shared_redis import SharedRedis
from worldtree_runtime.stores import RedisStore


async def test_answers_that_do_not_come_in_time_leave_the_limits_shared(valkey: Any) -> None:
    metrics = GatewayMetrics(CollectorRegistry())
    settings = GatewaySettings(video=["unused:1"], redis_read_timeout_s=0.5, redis_failure_count=2)
    async with slow_before(urlsplit(valkey.url).port, 0.005) as port:  # 1 MiB takes a tenth of a second
        redis = SharedRedis(f"redis://127.0.0.1:{port}/0", settings)
        large = redis.large
        answers = SharedAnswers(
            RedisStore(large.reads), RedisStore(large.writes), large.breaker, metrics, byte_limit=1 << 30
        )
        buckets = SharedBuckets(redis.small.reads, redis.small.breaker, metrics)
        use = [Use("key", "calls", Rate(0.001, 1), 1)]
        assert await buckets.use(use) is None
        now_s, keys = time.time(), (b"a", b"b", b"c")
        for key in keys:
            answers.put_later(key, Answer((os.urandom(8 << 20),), now_s, now_s + 60), current=lambda: True)
        await asyncio.gather(*answers._writing)
        assert await asyncio.gather(*(answers.get(key, alone=True) for key in keys)) == [None] * 3
        assert not answers.up
        assert redis.small.breaker.up
        assert await buckets.use(use) is not None, "this process alone would have let it in"
        await answers.close()
        await redis.close()
