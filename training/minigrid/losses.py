"""The two losses: denoising given true pasts, and doing in one step what the teacher does in many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.minigrid import tiles
from training.minigrid.batches import Batch, cell_weights, choose_frames, noise_levels
from training.minigrid.model import WorldModel, gather_past

TEACHER_LEVELS = (0.8, 0.65, 0.5, 0.35)


def plain_loss(model: WorldModel, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the tiles of noisy frames given clean pasts, and of the gate."""
    clean = model.codebook[batch.ids]
    chosen, frame_weights = choose_frames(batch, generator)
    ids, known = batch.ids.flatten(0, 1)[chosen], batch.known.flatten(0, 1)[chosen]
    target = clean.flatten(0, 1)[chosen]
    t = noise_levels(chosen.shape, generator)
    noise = torch.randn(target.shape, generator=generator)
    noisy = (1 - t[:, None, None]) * target + t[:, None, None] * noise
    # One frame in four loses context frames, so that gaps in the table (sink + window) are in distribution.
    keep = torch.rand(len(chosen), model.config.window, generator=generator) > 0.25
    keep |= torch.rand(len(chosen), 1, generator=generator) > 0.25
    keep[:, -1] = True
    actions = batch.actions.flatten()[chosen]
    logits = model.denoise(noisy, t, actions, gather_past(model, clean, batch.poses, chosen, keep))
    per_cell = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").reshape(ids.shape)
    weights = cell_weights(ids, known) * frame_weights[:, None]
    tile_loss = (per_cell * weights).sum() / weights.sum()
    can_move = batch.can_move.flatten()
    move = model.move_logit(clean.flatten(0, 1))
    move_loss = F.binary_cross_entropy_with_logits(move, can_move)
    with torch.no_grad():
        right = logits.argmax(-1) == ids
        pure = (t == 1)[:, None] & known & (ids != tiles.DARK)
        new = ~known & (ids != tiles.DARK) & (t < 1)[:, None]
        stats = {
            "loss": tile_loss.item(),
            "new_loss": per_cell[new].mean().item(),
            "known_right": right[pure].float().mean().item(),
            "move_right": ((move > 0) == (can_move > 0.5)).float().mean().item(),
        }
    return tile_loss + 0.1 * move_loss, stats


def refine_loss(
    model: WorldModel, teacher: WorldModel, batch: Batch, generator: torch.Generator, *, count: int = 16
) -> tuple[Tensor, dict[str, float]]:
    """Distils the coherence of many steps into few, on frames that show something new.

    The student stands where a sampler of few steps stands: its own first answer, a blend where the frame is open,
    noised again. From there the teacher goes on in steps of its own, each with fresh noise, until all cells agree;
    the student learns to give that answer at once.
    """
    fresh = (~batch.known & (batch.ids != tiles.DARK)).sum(-1).flatten() >= 3
    candidates = torch.nonzero(fresh)[:, 0]
    order = torch.randperm(len(candidates), generator=generator)[:count]
    chosen = candidates[order].sort().values
    clean = model.codebook[batch.ids]
    actions = batch.actions.flatten()[chosen]
    shape = (len(chosen), *clean.shape[2:])

    def fresh_noise() -> Tensor:
        return torch.randn(shape, generator=generator)

    def blend(x0: Tensor, t: Tensor) -> Tensor:
        return (1 - t[:, None, None]) * x0 + t[:, None, None] * fresh_noise()

    past = gather_past(model, clean, batch.poses, chosen)
    with torch.no_grad():
        x0 = model.mix(model.denoise(fresh_noise(), torch.ones(len(chosen)), actions, past))
        if torch.rand((), generator=generator) < 0.3:  # the third of four steps is to be learnt as well
            between = 0.65 + 0.2 * torch.rand(len(chosen), generator=generator)
            x0 = model.mix(model.denoise(blend(x0, between), between, actions, past))
        t = 0.35 + 0.35 * torch.rand(len(chosen), generator=generator)
        start = blend(x0, t)
        teacher_past = gather_past(teacher, clean, batch.poses, chosen)
        answer = teacher.denoise(start, t, actions, teacher_past)
        for level in TEACHER_LEVELS:
            levels = torch.full((len(chosen),), level)
            answer = teacher.denoise(blend(teacher.mix(answer), levels), levels, actions, teacher_past)
        ids = answer.argmax(-1)
    logits = model.denoise(start, t, actions, past)
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    with torch.no_grad():
        sure = (logits.softmax(-1).amax(-1) > 0.98).float().mean().item()
        agree = (logits.argmax(-1) == ids).float().mean().item()
    return loss, {"refine": loss.item(), "agree": agree, "sure": sure}
