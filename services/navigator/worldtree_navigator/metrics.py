"""Every metric of the navigator service, each declared once (names: DESIGN section 13)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worldtree_navigator.domain import Ending, Spent

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

    def answered(self, ending: Ending, spent: Spent) -> None:
        self.ended.labels(ending.name.lower()).inc()
        self.spent(spent)

    def spent(self, spent: Spent) -> None:
        self.chunks.labels("made").inc(spent.made)
        self.chunks.labels("known").inc(spent.known)
        self.seconds.labels("video").observe(spent.imagine_s)
        self.seconds.labels("reward").observe(spent.score_s)
