"""A Redis Cluster's client, which learns who has which keys beside the calls, with time of its own."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

# of one node, while its like are asked where what is: a cold client has to connect, shake hands and read long answers,
# which takes longer than a call may. Calls end by a timeout of their own, that is as long or shorter
NODE_TIMEOUT_S = 2.0

_PAUSE_S = 1.0  # between two looks for what has changed, as each has all connections made anew


class ClusterClient(RedisCluster):
    """The library's own learns within whichever call needs it, and begins anew when that call runs out of time: one
    whose calls may take little would never know its cluster, nor hear that a replica took over from a node that hangs.

    Whether it knows it is in a name of the library's that is not public: where that is gone, the library's own does.
    """

    _learning: asyncio.Task[None] | None = None
    _looked_s = float("-inf")

    async def initialize(
        self,
        additional_startup_nodes_info: list[tuple[str, int]] | None = None,  # noqa: ARG002 - the library gives none
        last_failed_node_name: str | None = None,
    ) -> "ClusterClient":
        """Returns when the cluster is known. Whoever does not wait so long takes nothing from the next."""
        if not hasattr(self, "_initialize"):
            await super().initialize()
        elif self._initialize:
            await asyncio.shield(self._learn(last_failed_node_name))
        return self

    def look_again(self) -> None:
        """Who has what may have changed, as somebody does not answer. Calls go on with what was known."""
        if not getattr(self, "_initialize", True) and time.monotonic() - self._looked_s >= _PAUSE_S:
            self._looked_s = time.monotonic()
            self._learn(None)

    async def end(self) -> None:
        """Closes for good; `aclose` is what the library does to begin anew."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning])
        await self.aclose()
        for nodes in ("nodes_cache", "startup_nodes"):  # those of one that never knew its cluster too
            with suppress(RedisError, OSError):
                await self.nodes_manager.aclose(nodes)

    def _learn(self, failed: str | None) -> "asyncio.Task[None]":
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._learned(failed), name="learn a redis cluster")
            self._learning.add_done_callback(_took)
        return self._learning

    async def _learned(self, failed: str | None) -> None:
        await self.nodes_manager.initialize(last_failed_node_name=failed)
        if not self.commands_parser.commands:
            await self._learn_commands()
        self._initialize = False

    async def _learn_commands(self) -> None:
        """From any node; the first may be the one that hangs."""
        error: Any = None
        for node in self.get_primaries():
            try:
                return await self.commands_parser.initialize(node)
            except (RedisError, OSError) as failure:
                error = failure
        raise RedisClusterException(f"no node says which commands it knows: {error}") from error


def _took(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()  # it is raised to those who wait; where none does, the next call tries again
