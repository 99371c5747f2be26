"""Every failure of the navigator service: one page. Kinds and details come from the runtime's error family."""

from worldtree_runtime.errors import DeadlineExceeded, Exhausted, FailedPrecondition, InvalidRequest, Unavailable

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
