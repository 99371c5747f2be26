"""Watches a merge that learns without labels, since being sure and answering everything alike also has low entropy.

Each task's own expert is the witness: how often the merge answers as it does, and whether the answers stay as spread
over the classes as the expert's on the same images. Answers that are sure, spread and wrong show as lost agreement.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldtree_multitask.merging.directions import Theta
from worldtree_multitask.merging.losses import Matrix, entropy, softmax

_SPREAD_LOST = 0.5  # of the best spread seen, capped at the expert's: below, most classes are hardly answered any more
_AGREEMENT_LOST = 0.1  # of the best agreement seen: spread may also fall because answers become right


@dataclass(frozen=True)
class Sight:
    """By task, in order: `agreement`: share of images answered as the expert does. `spread`: entropy of the mean
    answer, over that of the expert's mean answer; 1: as spread as the expert's.
    """

    agreement: NDArray[np.float64]
    spread: NDArray[np.float64]


class Guard:
    """Looks at each step; remembers the theta that agreed best with the experts, all tasks counting the same."""

    def __init__(self, expert_logits: Mapping[str, Matrix]) -> None:
        """Of each task's own expert, on the images whose logits `look` is given."""
        self.tasks = tuple(expert_logits)
        self._answers = [logits.argmax(axis=1) for logits in expert_logits.values()]
        self._spreads = np.array([_spread(logits) for logits in expert_logits.values()])
        self._best_spread = np.zeros(len(self.tasks))
        self._best_agreement = np.zeros(len(self.tasks))
        self._best_mean = -1.0
        self.best: Theta | None = None
        self.warning = ""

    def look(self, theta: Theta, logits: Mapping[str, Matrix]) -> bool:
        """True: it has collapsed, `best` is the theta to return to, and `warning` says so with numbers."""
        sight = self.sight(logits)
        mean = float(sight.agreement.mean())
        if mean > self._best_mean:
            self._best_mean, self.best = mean, theta.copy()
        # A merge that has been flat from its start has nothing to lose: only a fall is a collapse.
        self._best_spread = np.maximum(self._best_spread, np.minimum(sight.spread, 1.0))
        self._best_agreement = np.maximum(self._best_agreement, sight.agreement)
        fallen = (sight.spread < _SPREAD_LOST * self._best_spread) & (
            sight.agreement < self._best_agreement - _AGREEMENT_LOST
        )
        if fallen.any():
            worst = int(np.argmin(np.where(fallen, sight.spread, np.inf)))
            found = (
                f"on {self.tasks[worst]} the spread of answers fell to {sight.spread[worst]:.2f} of the expert's and "
                f"agreement with it from {self._best_agreement[worst]:.2f} to {sight.agreement[worst]:.2f}"
            )
        elif mean < self._best_mean - _AGREEMENT_LOST:
            found = f"mean agreement with the experts fell from {self._best_mean:.2f} to {mean:.2f}"
        else:
            return False
        self.warning = (
            f"the guard stopped a collapse: {found}; the merge is the point before with the best mean agreement, "
            f"{self._best_mean:.2f}"
        )
        return True

    def sight(self, logits: Mapping[str, Matrix]) -> Sight:
        """`logits`: by task, of the same images."""
        pairs = zip(self.tasks, self._answers, strict=True)
        agreement = np.array([float(np.mean(logits[task].argmax(axis=1) == answers)) for task, answers in pairs])
        spread = np.array([_spread(logits[task]) for task in self.tasks])
        return Sight(agreement, spread / np.maximum(self._spreads, 1e-6))


def _spread(logits: Matrix) -> float:
    return float(entropy(softmax(logits).mean(axis=0)))
