"""Every metric of the navigator service, each declared once (names: DESIGN section 13)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worldtree_navigator.domain import Ending, Spent

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_DECISION_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
_SECONDS_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


class NavigatorMetrics:
    """What one process of the navigator service counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.imaginings = Gauge("worldtree_imaginings", "Calls of Imagine that run.", registry=registry)
        self.ended = Counter(
            "worldtree_imaginings_ended", "Calls of Imagine that were answered, by how.", ["ending"], registry=registry
        )
        self.chunks = Counter(
            "worldtree_imagined_chunks",
            "Chunks of futures: made, or known already.",
            ["result"],
            registry=registry,
        )
        self.seconds = Histogram(
            "worldtree_imagine_seconds",
            "Time that a call of Imagine waited for the video and for the reward service.",
            ["service"],
            registry=registry,
            buckets=_SECONDS_BUCKETS,
        )

        self.navigations = Gauge("worldtree_navigations", "Robots that are steered.", registry=registry)
        self.observations = Counter(
            "worldtree_observations",
            "Observations of robots: planned, dropped, refused.",
            ["result"],
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "worldtree_decision_seconds",
            "From the arrival of an observation to its chunk of actions.",
            ["planner"],
            registry=registry,
            buckets=_DECISION_BUCKETS,
        )
        self.round_seconds = Histogram(
            "worldtree_policy_round_seconds",
            "One run of a policy's graph.",
            ["model"],
            registry=registry,
            buckets=_DECISION_BUCKETS,
        )
        self.round_batch_size = Histogram(
            "worldtree_policy_batch_size",
            "Robots of one run of a policy's graph.",
            ["model"],
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        self.paths = Counter(
            "worldtree_map_paths",
            "Calls of PlanOnMap that were answered, by what found the path (none: there is no way).",
            ["method"],
            registry=registry,
        )
        self.map_batch_size = Histogram(
            "worldtree_map_batch_size",
            "Maps of one round of a maze model.",
            ["model"],
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )

    def answered(self, ending: Ending, spent: Spent) -> None:
        self.ended.labels(ending.name.lower()).inc()
        self.spent(spent)

    def spent(self, spent: Spent) -> None:
        self.chunks.labels("made").inc(spent.made)
        self.chunks.labels("known").inc(spent.known)
        self.seconds.labels("video").observe(spent.imagine_s)
        self.seconds.labels("reward").observe(spent.score_s)
