"""Every metric of the reward service, each declared once (names: DESIGN section 13)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_RUN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class RewardMetrics:
    """What one process of the reward service counts, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.run_seconds = Histogram(
            "worldtree_score_run_seconds",
            "Duration of one run of a judge's networks over a frame of each clip.",
            ["model"],
            registry=registry,
            buckets=_RUN_BUCKETS_S,
        )
        self.batch_size = Histogram(
            "worldtree_score_batch_size", "Clips of a run.", ["model"], registry=registry, buckets=_BATCH_BUCKETS
        )
        self.waiting_frames = Gauge(
            "worldtree_score_waiting_frames", "Frames that wait for their run.", ["model"], registry=registry
        )
        self.clips = Counter(
            "worldtree_score_clips",
            "Judgements given, by the category that judged (unseen: none that the router knows).",
            ["model", "category"],
            registry=registry,
        )
        self.backend_up = Gauge(
            "worldtree_score_backend_up",
            "Whether the server that runs a judge's trunk is there, and runs it; of judges that have one.",
            ["model"],
            registry=registry,
        )
        self.streams = Gauge("worldtree_score_streams", "Clips that are being streamed.", registry=registry)
