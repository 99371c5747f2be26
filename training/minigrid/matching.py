"""The losses of few-step distillation.

- `pair_loss`: the teacher's deterministic many-step answer to a noise, learnt as the one-step answer to that noise (the
  regression of DMD, Yin et al. 2024a; the first stage of CausVid and Self Forcing). All three methods begin from it.
- `matching_loss`: distribution matching distillation, DMD (Yin et al. 2024a and b). A critic that is trained on the
  student's own answers knows their score, the teacher knows the true one; the student follows the difference.
- `consistency_loss`: self-consistency (SC-DMD; Salt, Ge et al. 2026). Two consecutive updates compose to the end point
  of one.
- `alignment_loss`: cache-conditioned feature alignment (Salt). What is made from a cache of few evaluations is steered
  towards what is made from a better one.

x0 = softmax(logits) @ codebook is linear in the probabilities, so scores are compared as probabilities: the critic's
mean of x0 is its mean of the student's probabilities, which cross-entropy learns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.minigrid.model import Past, WorldModel

PAIR_STEPS = (1.0, 0.85, 0.7, 0.55, 0.42)
SECOND_STEPS = (1.0, 0.85, 0.7)
NORM_FLOOR = 0.02


def spread(t: Tensor) -> Tensor:
    return t[:, None, None]


def renoise(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x at level t [B] of clean patches [B, 49, PATCH]."""
    return (1 - spread(t)) * x0 + spread(t) * noise


def euler(x: Tensor, x0: Tensor, t: Tensor, after: Tensor) -> Tensor:
    """The deterministic update of x from level t to level `after`, both [B], along the answer x0."""
    ratio = spread(after / t)
    return ratio * x + (1 - ratio) * x0


def levels(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Noise levels [count], even between two."""
    return low + (high - low) * torch.rand(count, generator=generator)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over cells of logits [..., K] against probabilities [..., K]."""
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def teacher_answer(
    teacher: WorldModel, x: Tensor, t: Tensor, action: Tensor, past: Past, steps: Sequence[float]
) -> Tensor:
    """Tile ids [B, 49] at the end of the teacher's deterministic path from x at level t [B], by shares of t."""
    logits = x
    for k, part in enumerate(steps):
        level = part * t
        logits = teacher.denoise(x, level, action, past)
        if k + 1 < len(steps):
            x = euler(x, teacher.mix(logits), level, steps[k + 1] * t)
    return logits.argmax(-1)


def pair_loss(
    student: WorldModel, teacher: WorldModel, action: Tensor, pasts: Sequence[Past], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the answers at pure noise and where a sampler of two evaluations stands next; the first logits and ids.

    Where it stands next is the student's own first answer, noised anew, and the teacher goes on from there. What is
    learnt is a function of what is seen both times: only so can an undecided cell be decided rather than blended.
    `pasts`: the student's and the teacher's.
    """
    shape = (len(action), *teacher.cell.shape[:1], teacher.codebook.shape[1])
    noise, one = torch.randn(shape, generator=generator), torch.ones(len(action))
    ids = teacher_answer(teacher, noise, one, action, pasts[1], PAIR_STEPS)
    first = student.denoise(noise, one, action, pasts[0])
    t = levels(len(action), 0.35, 0.75, generator)
    x = renoise(student.mix(first).detach(), t, torch.randn(shape, generator=generator))
    later = teacher_answer(teacher, x, t, action, pasts[1], SECOND_STEPS)
    second = student.denoise(x, t, action, pasts[0])
    loss = F.cross_entropy(first.flatten(0, 1), ids.flatten()) + F.cross_entropy(second.flatten(0, 1), later.flatten())
    return loss, first.detach(), ids


def matching_loss(
    logits: Tensor,
    teacher: WorldModel,
    critic: WorldModel,
    action: Tensor,
    pasts: Sequence[Past],
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """The loss, and how far the two expectations are apart (mean total variation).

    Its gradient in the student's logits is what the critic expects less what the teacher does, at a renoised level.

    `pasts`: the teacher's and the critic's. Taken in the logits, not in the pixels, the gradient does not vanish where
    the student has decided, so that it can be taught to decide otherwise. As in DMD it is divided, frame by frame, by
    how far the teacher's expectation is from the answer itself.
    """
    with torch.no_grad():
        answer = logits.softmax(-1)
        x0 = answer @ teacher.codebook
        t = levels(len(x0), 0.35, 0.98, generator)
        x = renoise(x0, t, torch.randn(x0.shape, generator=generator))
        real = teacher.denoise(x, t, action, pasts[0]).softmax(-1)
        fake = critic.denoise(x, t, action, pasts[1]).softmax(-1)
        scale = 1 / (NORM_FLOOR + 0.5 * (answer - real).abs().sum(-1).mean(-1))  # [B]
    apart = 0.5 * (fake - real).abs().sum(-1).mean().item()
    per_frame = (logits * (fake - real)).sum(-1).mean(-1)
    return (scale * per_frame).mean(), apart


def critic_loss(
    critic: WorldModel, probabilities: Tensor, action: Tensor, past: Past, generator: torch.Generator
) -> Tensor:
    """The denoising loss of the student's own answers, probabilities [B, 49, K]."""
    x0 = probabilities @ critic.codebook
    t = levels(len(x0), 0.3, 1.0, generator)
    x = renoise(x0, t, torch.randn(x0.shape, generator=generator))
    return soft_cross_entropy(critic.denoise(x, t, action, past), probabilities)


def consistency_loss(
    student: WorldModel, logits: Tensor, x: Tensor, t: Tensor, action: Tensor, past: Past, generator: torch.Generator
) -> Tensor:
    """One update from level t [B] against two, t to b and on: equal end points are equal answers at t and at b.

    With update(x, t -> c) = c/t x + (1 - c/t) x0, the two end points differ by (1 - c/b) times the answers' difference.
    """
    with torch.no_grad():
        after = t * levels(len(x), 0.45, 0.8, generator)
        target = student.denoise(euler(x, student.mix(logits), t, after), after, action, past).softmax(-1)
    return soft_cross_entropy(logits, target)


def alignment_loss(low: Tensor, high: Tensor, where: Tensor) -> Tensor:
    """1 - cosine between features [B, 49, d], over the sessions `where` [B] in which both stand at one place."""
    apart = 1 - F.cosine_similarity(low, high.detach(), dim=-1).mean(-1)
    return (apart * where).sum() / where.sum().clamp(min=1)
