"""Every failure of the navigator service: one page. Kinds and details come from the runtime's error family."""

from worldtree_runtime.errors import (
    Aborted,
    DeadlineExceeded,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    Unavailable,
)

RETRY_S = 1.0


class TooManyImaginings(Exhausted):
    """Enough futures are being imagined."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            "IMAGININGS_FULL", f"{limit} calls of Imagine are running", retry_after_s=RETRY_S, limit=str(limit)
        )


class PeerDown(Unavailable):
    """A service that this one needs does not answer. `service`: "video" or "reward"."""

    def __init__(self, service: str, message: str) -> None:
        super().__init__(f"{service.upper()}_UNAVAILABLE", message, retry_after_s=RETRY_S, service=service)
        self.service = service


class BudgetSpent(DeadlineExceeded):
    """Nothing was found for what could be spent."""

    def __init__(self) -> None:
        super().__init__("BUDGET_SPENT", "the budget was spent before any future was judged: give more time or chunks")


class TooManyMaps(Exhausted):
    """Enough maps wait for the maze model."""

    def __init__(self, limit: int) -> None:
        super().__init__("MAPS_FULL", f"{limit} maps wait for the maze model", retry_after_s=RETRY_S, limit=str(limit))


class MapsStopped(Unavailable):
    """The service stops, and with it what waits."""

    def __init__(self) -> None:
        super().__init__("MAPS_STOPPED", "the service stops: no path was looked for", retry_after_s=RETRY_S)


class JudgeMismatch(FailedPrecondition):
    """The judge was made for other worlds."""

    def __init__(self, judge: str, message: str) -> None:
        super().__init__("JUDGE_MISMATCH", message, subject=judge)


class GoalUnseen(InvalidRequest):
    """Nobody could say which future is better."""

    def __init__(self, judge: str) -> None:
        super().__init__(
            "question.goal",
            f"question.goal is of no kind that judge {judge} knows: name a question.category, or question.weights",
            reason="GOAL_UNSEEN",
        )


class TooManyNavigations(Exhausted):
    """Enough robots are steered."""

    def __init__(self, limit: int) -> None:
        super().__init__("NAVIGATIONS_FULL", f"{limit} navigations are open", retry_after_s=RETRY_S, limit=str(limit))


class PolicyStopped(Unavailable):
    """The service is going down."""

    def __init__(self, policy: str) -> None:
        super().__init__("POLICY_STOPPED", f"policy {policy} is going down", retry_after_s=RETRY_S)


class PoisonedPlan(FailedPrecondition):
    """A policy answered with what is no number."""

    def __init__(self, policy: str) -> None:
        super().__init__("POLICY_BROKEN", f"policy {policy} answers with what is no number", subject=policy)


class EpisodeTaken(Aborted):
    """Another stream goes on with the episode."""

    def __init__(self, episode: str) -> None:
        super().__init__("EPISODE_TAKEN", f"another stream goes on with episode {episode[:80]!r}")


class NothingSeen(DeadlineExceeded):
    """A stream that says nothing."""

    def __init__(self, what: str, limit_s: float) -> None:
        super().__init__("STREAM_SILENT", f"no {what} came within {limit_s:g} s")


class Refused(InvalidRequest):
    """An observation that cannot be used, and why in one word."""

    def __init__(self, field: str, reason: str, message: str) -> None:
        super().__init__(field, message, reason=reason)


class RoundFailed(Unavailable):
    """A run of a policy's graph failed, for all who shared it; the next may not."""

    def __init__(self, policy: str) -> None:
        super().__init__("ROUND_FAILED", f"a run of policy {policy} failed; our log says why", retry_after_s=RETRY_S)
