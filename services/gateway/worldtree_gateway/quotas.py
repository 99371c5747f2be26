"""What each key may use: calls and frames by the second, streams at a time.

Frames are what a GPU is paid for: a chunk costs its frames times the function evaluations of each. How many a call
makes is known when it has made them, so a call is let in while its key owes no more than the burst, and what it made is
owed then. A play, which may go on for hours, owes each chunk as it passes, and waits where that is too fast.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worldtree_runtime.call_notes import note_cost

from worldtree_gateway.buckets import Buckets, Refusal, Use
from worldtree_gateway.errors import QuotaExceeded, StreamQuotaExceeded
from worldtree_gateway.identity import current_caller
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.rate import Rate

CALLS, FRAMES = "calls", "frames"
_PACE_MAX_S = 10.0  # that a play may stand still; one that owes more ends
_SETTLE_S = 0.2  # what is owed is told at most so often


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key. None: no limit. `streams`: calls of two streams at a time, through one gateway."""

    calls: Rate | None = None
    frames: Rate | None = None
    streams: int | None = None


class Quotas:
    """Holds callers to `limits`. `run` tells what is owed, for as long as the gateway serves."""

    def __init__(self, buckets: Buckets, limits: Limits, metrics: GatewayMetrics) -> None:
        self._buckets, self._limits, self._metrics = buckets, limits, metrics
        self._streams: Counter[str] = Counter()  # by key
        self._owed: defaultdict[str, float] = defaultdict(float)  # frames, by key, that nobody was told of yet
        self._wait_until_s: dict[str, float] = {}  # by key, by time.monotonic()
        self._owing = asyncio.Event()

    async def admit(self) -> None:
        """Lets one more call of the current caller in. Raises QuotaExceeded."""
        caller, limits = current_caller(), self._limits
        if limits.calls is None and limits.frames is None:
            return
        uses = [Use(caller.key_id, CALLS, limits.calls, 1)] if limits.calls is not None else []
        if limits.frames is not None:
            uses.append(Use(caller.key_id, FRAMES, limits.frames, 0))
        refusal = await self._buckets.use(uses)
        if refusal is not None:
            self._refused(refusal)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Around one call of two streams. Raises StreamQuotaExceeded."""
        key, limit = current_caller().key_id, self._limits.streams
        if limit is not None and self._streams[key] >= limit:
            self._metrics.limited.labels("streams").inc()
            raise StreamQuotaExceeded(key, limit)
        self._streams[key] += 1
        try:
            yield
        finally:
            self._streams[key] -= 1
            if not self._streams[key]:
                del self._streams[key]

    def owe(self, frames: float) -> None:
        """The current caller's call has made so many, each counted once for each of its function evaluations."""
        if frames <= 0:
            return
        self._metrics.charged_frames.inc(frames)
        note_cost(frames)
        if self._limits.frames is not None:
            self._owed[current_caller().key_id] += frames
            self._owing.set()

    async def pace(self) -> None:
        """Waits for as long as the current caller is ahead of its rate. Raises QuotaExceeded where that is too long."""
        key = current_caller().key_id
        until_s = self._wait_until_s.get(key)
        if until_s is None:
            return
        wait_s, rate = until_s - time.monotonic(), self._limits.frames
        if wait_s > _PACE_MAX_S and rate is not None:
            self._refused(Refusal(Use(key, FRAMES, rate, 0), wait_s))
        await asyncio.sleep(wait_s)

    async def run(self) -> None:
        """Tells what is owed, again and again."""
        while True:
            await self._owing.wait()
            self._owing.clear()
            await self._settle()
            await asyncio.sleep(_SETTLE_S)

    async def close(self) -> None:
        """What is owed and was not told yet is told."""
        if self._owed:
            await self._settle()
        await self._buckets.close()

    async def _settle(self) -> None:
        rate = self._limits.frames
        assert rate is not None, "nobody owes where there is no limit"
        now_s = time.monotonic()
        self._wait_until_s = {key: until_s for key, until_s in self._wait_until_s.items() if until_s > now_s}
        for key, frames in list(self._owed.items()):
            refusal = await self._buckets.use([Use(key, FRAMES, rate, frames)], owed=True)
            self._owed[key] -= frames  # not before: what was broken off is told at the next turn, or at the end
            if not self._owed[key]:
                del self._owed[key]
            if refusal is not None:
                self._wait_until_s[key] = time.monotonic() + refusal.wait_s

    def _refused(self, refusal: Refusal) -> None:
        use = refusal.use
        self._metrics.limited.labels(use.name).inc()
        raise QuotaExceeded(use.owner, use.name, per_s=use.rate.per_s, burst=use.rate.burst, wait_s=refusal.wait_s)
