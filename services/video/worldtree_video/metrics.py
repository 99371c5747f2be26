"""Every metric of the video service, each declared once (names: DESIGN section 13)."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worldtree_video.domain import Storage
from worldtree_video.kv_cache import BlockPool
from worldtree_video.scheduler import Batch, PendingChunk

_TICK_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one version of a model shows. `blocks`: by tier and state. `sessions`: idle, spilled, busy.

    `spilled`: of no call, their blocks outside the pools.
    """

    play_load: float
    blocks: collections.Counter[tuple[str, str]]
    shared_block_count: int
    sessions: collections.Counter[str]


class VideoMetrics:
    """What one process of the video service counts, by model: all its versions together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._told: dict[str, collections.Counter[tuple[str, str]]] = {}  # gauges of blocks that were set, by model
        self.tick_seconds = Histogram(
            "worldtree_tick_seconds",
            "Duration of a tick: one denoiser run and the commits it led to.",
            ["model"],
            registry=registry,
            buckets=_TICK_BUCKETS_S,
        )
        self.tick_batch_size = Histogram(
            "worldtree_tick_batch_size", "Members of a tick.", ["model"], registry=registry, buckets=_BATCH_BUCKETS
        )
        self.chunk_seconds = Histogram(
            "worldtree_chunk_seconds",
            "Where a chunk's time went.",
            ["model", "phase"],
            registry=registry,
            buckets=_TICK_BUCKETS_S,
        )
        self.control_latency_seconds = Histogram(
            "worldtree_control_latency_seconds",
            "From a control's arrival to the sending of the frames it made.",
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        self.deadline_missed = Counter(
            "worldtree_deadline_missed", "Chunks of a Play made after they were due.", registry=registry
        )
        self.engine_seconds = Counter(
            "worldtree_engine_seconds",
            "Time of ticks by the kind of work: play (with a target fps), step, bulk. A member has an equal part.",
            ["model", "work"],
            registry=registry,
        )
        self.play_load = Gauge(
            "worldtree_play_load", "Share of the engine's time that plays are promised.", ["model"], registry=registry
        )
        self.degraded_chunks = Counter(
            "worldtree_degraded_chunks",
            "Chunks of a Play made with fewer function evaluations than its session's.",
            ["model"],
            registry=registry,
        )
        self.kv_blocks = Gauge(
            "worldtree_kv_blocks",
            "KV blocks by tier and state. Tiers: pool, pool-fp16, pool-int8; host and store hold copies (cached), the "
            "store's as far as this process wrote or read them.",
            ["model", "tier", "state"],
            registry=registry,
        )
        self.kv_shared_blocks = Gauge(
            "worldtree_kv_shared_blocks", "KV blocks that more than one branch holds.", ["model"], registry=registry
        )
        self.prefix_hits = Counter(
            "worldtree_prefix_hits",
            "Chunks that were in the pool already, and were shared instead of made.",
            ["model"],
            registry=registry,
        )
        self.tier_refused = Counter(
            "worldtree_tier_refused", "Stored blocks that were corrupt or foreign.", ["tier"], registry=registry
        )
        self.tier_dropped = Counter(
            "worldtree_tier_dropped",
            "Blocks that could not be kept: nothing is below host memory (host), or it was slow or down (store).",
            ["tier"],
            registry=registry,
        )
        self.tier_unavailable = Counter(
            "worldtree_tier_unavailable", "Calls that a tier did not answer.", ["tier"], registry=registry
        )
        self.unprotected_sessions = Gauge(
            "worldtree_unprotected_sessions",
            "Sessions that the journal could not rebuild as they are now.",
            ["model"],
            registry=registry,
        )
        self.sessions = Gauge(
            "worldtree_sessions", "Sessions by state: busy, idle, spilled.", ["model", "state"], registry=registry
        )
        self.spilled_sessions = Counter(
            "worldtree_spilled_sessions",
            "Times that an idle session's blocks left the pool to make room.",
            ["model"],
            registry=registry,
        )
        self.loaded_sessions = Counter(
            "worldtree_loaded_sessions",
            "Times that a session got blocks back that it lacked: found in the pool, in host memory or in the store.",
            ["model"],
            registry=registry,
        )
        self.reloads = Counter(
            "worldtree_model_reloads",
            "Versions of models that were loaded, retired, unloaded or refused while serving.",
            ["model", "result"],
            registry=registry,
        )
        self.recomputed_sessions = Counter(
            "worldtree_recomputed_sessions",
            "Times that a session got blocks back that it lacked by being made again from its start.",
            ["model"],
            registry=registry,
        )

    def observe_tick(self, model: str, batch: Batch, committed: Sequence[PendingChunk], seconds: float) -> None:
        """Counts one tick."""
        for member in batch.members:
            work = member.run.priority.name.lower()
            self.engine_seconds.labels(model, work).inc(seconds / len(batch.members))
        self.tick_seconds.labels(model).observe(seconds)
        self.tick_batch_size.labels(model).observe(len(batch.members))
        for member in committed:
            timing = member.timing
            self.chunk_seconds.labels(model, "queue").observe(timing.queue_s)
            self.chunk_seconds.labels(model, "denoise").observe(timing.denoise_s)
            self.chunk_seconds.labels(model, "commit").observe(timing.commit_s)

    def observe_models(self, readings: Mapping[str, Sequence[Reading]]) -> None:
        """Sets the gauges of every model, from what each of its versions shows; of one that is gone, to 0."""
        for model in self._told:
            self._told[model] = collections.Counter(dict.fromkeys(self._told[model], 0))
        for model in {**self._told, **readings}:
            shown = readings.get(model, ())
            blocks = self._told.setdefault(model, collections.Counter())
            sessions = collections.Counter(idle=0, spilled=0, busy=0)
            for reading in shown:
                blocks.update(reading.blocks)
                sessions.update(reading.sessions)
            for (tier, state), count in blocks.items():
                self.kv_blocks.labels(model, tier, state).set(count)
            for state, count in sessions.items():
                self.sessions.labels(model, state).set(count)
            self.kv_shared_blocks.labels(model).set(sum(reading.shared_block_count for reading in shown))
            # Each version has an engine of its own: together they have promised nobody more than the busiest has.
            self.play_load.labels(model).set(max((reading.play_load for reading in shown), default=0.0))


def block_counts(pools: Iterable[BlockPool]) -> dict[tuple[str, str], int]:
    """Blocks of pools by tier (`pool`, or `pool-fp16` and the like) and state."""
    counts = {}
    for pool in pools:
        tier = "pool" if pool.storage is Storage.FP32 else f"pool-{pool.storage.value}"
        counts[tier, "free"] = pool.free_count - pool.cached_count
        counts[tier, "cached"] = pool.cached_count
        counts[tier, "in_flight"] = pool.in_flight_count
        counts[tier, "held"] = pool.held_count
    return counts
