"""Every failure of the reward service: one page. Kinds and details come from the runtime's error family."""

from worldtree_runtime.errors import Exhausted, FailedPrecondition, Unavailable


class TooManyWaiting(Exhausted):
    """More frames wait for a run than the service holds."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(
            "SCORES_FULL",
            f"{waiting} frames wait for their run, {limit} at most may",
            retry_after_s=0.5,
            waiting=str(waiting),
            limit=str(limit),
        )


class TooManyStreams(Exhausted):
    """Enough clips are being streamed."""

    def __init__(self, limit: int) -> None:
        super().__init__("STREAMS_FULL", f"{limit} clips are being streamed", retry_after_s=5.0, limit=str(limit))


class TooManyNodes(Exhausted):
    """The trees that are being scored are as large as may be."""

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(
            "TREES_FULL",
            f"the trees that are being scored would have {count} nodes, {limit} at most may be kept",
            retry_after_s=5.0,
            count=str(count),
            limit=str(limit),
        )


class PoisonedScore(FailedPrecondition):
    """An expert answers with what is no number."""

    def __init__(self, model: str, dimension: str) -> None:
        super().__init__(
            "JUDGE_BROKEN",
            f"judge {model} scores dimension {dimension} with a value that is not finite",
            subject=model,
            dimension=dimension,
        )


class EngineStopped(Unavailable):
    """The service stops, and with it what waits."""

    def __init__(self) -> None:
        super().__init__("SCORING_STOPPED", "the service stops: the clip was not scored", retry_after_s=1.0)
