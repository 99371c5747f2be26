"""Who is opening sessions right now, by tenant and in the order in which they came: of all gateways, or of this one."""

from importlib import resources
from typing import Protocol

from worldtree_runtime.stores import RedisConnection, StoreUnavailable

from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.metrics import GatewayMetrics

_SCRIPT = resources.files("worldtree_gateway").joinpath("opening.lua").read_text()
_LIFE_S = 60.0  # nobody waits longer for a gateway that died while it was opening one


class Openings(Protocol):
    """`who` is unique, and stays in its place until it leaves."""

    async def before(self, tenant: str, who: str, count: int) -> int: ...
    async def leave(self, tenant: str, who: str, count: int) -> None: ...


class LocalOpenings:
    """Of this process alone."""

    def __init__(self) -> None:
        self._tenants: dict[str, dict[str, int]] = {}

    async def before(self, tenant: str, who: str, count: int) -> int:
        """How many sessions those are opening who came earlier."""
        opening = self._tenants.setdefault(tenant, {})
        opening.setdefault(who, count)
        before = 0
        for each, wanted in opening.items():
            if each == who:
                break
            before += wanted
        return before

    async def leave(self, tenant: str, who: str, count: int) -> None:  # noqa: ARG002 - which Redis is told
        opening = self._tenants.get(tenant, {})
        opening.pop(who, None)
        if not opening:
            self._tenants.pop(tenant, None)


class SharedOpenings:
    """Of all gateways that share a Redis. While that is away, each knows its own."""

    def __init__(self, redis: RedisConnection, breaker: CircuitBreaker, metrics: GatewayMetrics) -> None:
        self._redis, self._breaker, self._metrics = redis, breaker, metrics
        self._script = redis.redis.register_script(_SCRIPT)
        self._local = LocalOpenings()

    async def before(self, tenant: str, who: str, count: int) -> int:
        """As LocalOpenings."""
        here = await self._local.before(tenant, who, count)
        shared = await self._run("before", tenant, who, count)
        return here if shared is None else shared

    async def leave(self, tenant: str, who: str, count: int) -> None:
        await self._local.leave(tenant, who, count)
        await self._run("leave", tenant, who, count)

    async def _run(self, what: str, tenant: str, who: str, count: int) -> int | None:
        if not self._breaker.allows():
            return None
        keys = [f"worldtree:opening:{{{tenant}}}"]
        arguments: list[str | int] = [what, f"{who}:{count}", round(1000 * _LIFE_S)]
        try:
            before = int(await self._redis.call(lambda: self._script(keys=keys, args=arguments)))
        except StoreUnavailable as error:
            self._metrics.limit_store_errors.labels(error.fault).inc()
            self._breaker.failed(error)
            return None
        self._breaker.succeeded()
        return before
