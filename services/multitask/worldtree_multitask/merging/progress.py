"""What a long method tells while it works, and where it learns that nobody wants the merge any more."""

from collections.abc import Callable

from worldtree_multitask.merging.method import Step


class Progress:
    """The last step, told again after each pass of the network, so that a cancelled merge stops within one pass."""

    def __init__(self, tell: Callable[[Step], None], phase: str, total: int) -> None:
        self._tell = tell
        self._step = Step(phase, 0, total)

    def step(self, done: int, objective: float = float("nan")) -> None:
        """Raises Cancelled when nobody wants the merge any more."""
        self._step = Step(self._step.phase, done, self._step.total, objective)
        self._tell(self._step)

    def phase(self, phase: str, total: int) -> None:
        """Another part of the work begins."""
        self._step = Step(phase, 0, total)
        self._tell(self._step)

    def beat(self) -> None:
        """Nothing new, still at work. Raises as `step` does."""
        self._tell(self._step)
