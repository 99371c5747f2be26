"""Every metric of the multi-task service, each declared once (names: DESIGN section 13)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_RUN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
_MAKE_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class MultitaskMetrics:
    """What one process of the multi-task service counts, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.run_seconds = Histogram(
            "worldtree_predict_run_seconds",
            "Duration of one run of a network.",
            ["model"],
            registry=registry,
            buckets=_RUN_BUCKETS_S,
        )
        self.batch_size = Histogram(
            "worldtree_predict_batch_size", "Images of a run.", ["model"], registry=registry, buckets=_BATCH_BUCKETS
        )
        self.waiting_images = Gauge(
            "worldtree_predict_waiting_images", "Images that wait for their run.", ["model"], registry=registry
        )
        self.weights = Counter(
            "worldtree_merge_weights",
            "Runs by whether the weights of their merge were there (hit) or had to be made (made).",
            ["model", "result"],
            registry=registry,
        )
        self.shelf_bytes = Gauge(
            "worldtree_merge_weights_bytes", "Bytes of made weights.", ["model"], registry=registry
        )
        self.shelf_merges = Gauge(
            "worldtree_merge_weights_live", "Merges whose weights are made.", ["model"], registry=registry
        )
        self.make_seconds = Histogram(
            "worldtree_merge_seconds",
            "Duration of the making of a merge by its method.",
            ["model", "method"],
            registry=registry,
            buckets=_MAKE_BUCKETS_S,
        )
        self.creations = Counter(
            "worldtree_merge_creations",
            "Merges asked for by CreateMerge: made, shared with a caller who asked for the same, cancelled, failed.",
            ["model", "result"],
            registry=registry,
        )
