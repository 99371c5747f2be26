"""What methods that learn without labels share: the tasks they learn on, each expert's own answers, and the losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from worldtree_multitask.merging.directions import Mixer, Theta
from worldtree_multitask.merging.exam import Exam
from worldtree_multitask.merging.guard import Guard
from worldtree_multitask.merging.losses import Divergence, Entropy, Loss, Matrix, softmax
from worldtree_multitask.merging.method import Context, Images
from worldtree_multitask.merging.progress import Progress

# entropy: as AdaMerging publishes it. infomax: less the entropy of the mean answer. distill: KL from the answers of
# each task's own expert; the one with a known curvature, and the one that cannot collapse.
Objective: TypeAlias = Literal["entropy", "infomax", "distill"]


@dataclass(frozen=True)
class Lesson:
    """Images by task and the logits of each task's own expert on them, [images, classes]. Same keys, same order."""

    images: Mapping[str, Images]
    expert_logits: Mapping[str, Matrix]
    mixer: Mixer
    context: Context
    progress: Progress

    def exam(
        self, objective: Objective, rows: Mapping[str, slice | np.ndarray[tuple[int], np.dtype[np.int64]]]
    ) -> Exam:
        """On some rows of each task's images."""
        losses: dict[str, Loss] = {}
        for task, logits in self.expert_logits.items():
            if objective == "distill":
                losses[task] = Divergence(softmax(logits[rows[task]]))
            else:
                losses[task] = Entropy(balance=1.0 if objective == "infomax" else 0.0)
        images = {task: known[rows[task]] for task, known in self.images.items()}
        return Exam(self.mixer, self.context.network, images, losses, self.progress)

    def whole(self, objective: Objective) -> Exam:
        """On all images."""
        return self.exam(objective, {task: slice(None) for task in self.images})

    def draws(self, objective: Objective, images_per_task: int) -> Callable[[], Exam]:
        """Another draw of images at each call, without repeats within one; all of a task's images if it has fewer."""

        def draw() -> Exam:
            return self.exam(
                objective,
                {
                    task: np.sort(self.context.rng.permutation(len(known))[:images_per_task])
                    for task, known in self.images.items()
                },
            )

        return draw

    def guard(self) -> Guard:
        return Guard(self.expert_logits)

    def look(self, guard: Guard, theta: Theta) -> bool:
        """Shows theta to the guard on all images: one pass a task. The guard's answer."""
        return guard.look(theta, self.whole("distill").logits(theta))


def lesson(context: Context, mixer: Mixer, progress: Progress) -> Lesson:
    """On every task that has images and an expert of its name, in the order of experts.

    Raises ValueError where there is none: the caller gave no images, or of tasks without experts only.
    """
    tasks = [name for name in context.experts if len(context.images.get(name, ())) > 0]
    if not tasks:
        raise ValueError(
            f"images must be of at least one task that has an expert, {list(context.experts)}, got images of "
            f"{sorted(task for task, images in context.images.items() if len(images) > 0)}"
        )
    expert_logits = {}
    for task in tasks:
        expert = mixer.expert(context.experts.index(task))
        logits = context.network.logits(expert, context.images[task], task)
        if not np.isfinite(logits).all():
            raise ValueError(f"experts must answer their own images with finite logits, {task} does not")
        expert_logits[task] = logits.astype(np.float64)
        progress.beat()
    return Lesson({task: context.images[task] for task in tasks}, expert_logits, mixer, context, progress)
