"""Every failure of the multi-task service: one page. Kinds and details come from the runtime's error family."""

from collections.abc import Sequence

from worldtree_runtime.errors import Aborted, Exhausted, FailedPrecondition, InvalidRequest, NotFound, Unavailable


class MergeNotFound(NotFound):
    """No merge has this name: never made, or deleted."""

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        super().__init__("merge", name, known=known)


class MergeNameTaken(Aborted):
    """The name stands for another merge, or did so until a moment ago."""

    def __init__(self, name: str, digest: str, *, reuse_s: float) -> None:
        super().__init__(
            "MERGE_NAME_TAKEN",
            f"merge name {name} stands for another merge ({digest[:8]}); choose another name, or delete it and wait "
            f"{reuse_s:g} s: predictions by that name may be cached for so long",
            name=name,
            digest=digest,
            reuse_s=f"{reuse_s:g}",
        )


class NotAFront(FailedPrecondition):
    """The merge is no result of a search with several objectives."""

    def __init__(self, name: str, method: str) -> None:
        super().__init__(
            "NOT_A_FRONT",
            f"merge {name} was made by {method}, which has one result; method mm_mo makes a front",
            subject=name,
            method=method,
        )


class NotImmediate(InvalidRequest):
    """A method that takes long cannot be asked for in passing."""

    def __init__(self, method: str, immediate: Sequence[str]) -> None:
        super().__init__(
            "recipe.method",
            f"recipe.method {method} takes long: make the merge by CreateMerge and predict by its name; "
            f"made in passing: {', '.join(immediate)}",
            method=method,
        )


class TooManyWaiting(Exhausted):
    """More images wait for a run than the service holds."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(
            "PREDICTIONS_FULL",
            f"{waiting} images wait for their run, {limit} at most may",
            retry_after_s=0.5,
            waiting=str(waiting),
            limit=str(limit),
        )


class TooManyCreations(Exhausted):
    """Enough merges are being made."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            "CREATIONS_FULL", f"{limit} merges are being made or wait for it", retry_after_s=5.0, limit=str(limit)
        )


class MakingStopped(Unavailable):
    """The service stops, and with it what it was making."""

    def __init__(self) -> None:
        super().__init__("MAKING_STOPPED", "the service stops: the merge was not made", retry_after_s=1.0)


class EngineStopped(Unavailable):
    """The service stops, and with it what waits."""

    def __init__(self) -> None:
        super().__init__("PREDICTING_STOPPED", "the service stops: nothing was predicted", retry_after_s=1.0)


class TooManyMerges(Exhausted):
    """No more names."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            "MERGES_FULL",
            f"{limit} merges have a name, which is the limit: delete some",
            retry_after_s=60.0,
            limit=str(limit),
        )


class PoisonedAnswer(FailedPrecondition):
    """The merge's weights answer with what is no number."""

    def __init__(self, digest: str, task: str) -> None:
        super().__init__(
            "MERGE_BROKEN",
            f"merge {digest[:8]} answers task {task} with values that are not finite",
            subject=digest,
            task=task,
        )
