"""Distils the teacher into a student of one and two evaluations. `python -m training.minigrid.distill --help`.

Four stages, each a checkpoint that is resumed when there; a fixed seed gives the same weights, cut short or not:
- `pairs`: where the three methods begin (see `training.minigrid.matching`);
- `dmd`: distribution matching, each frame after true frames;
- `sc-dmd`: and self-consistency;
- `salt`: and the student's own frames, of mixed evaluations, in the cache, which says so (`cache_quality`), with
  features aligned to those from a cache of frames that the teacher has improved.

Blocks are written by the teacher's own `commit` throughout, so that whatever these models make can stand in one cache.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch import Tensor

from training.learner import Learner, adam, keep_freed_memory, matrices_of, others, save_checkpoint
from training.minigrid import matching, pose
from training.minigrid.data import DEFAULT_PATH
from training.minigrid.model import WorldModel
from training.minigrid.recipe import CHUNKS, ROLLOUTS, SESSIONS
from training.minigrid.rollout import Crops, Sessions, gaps, open_sessions, seeds
from training.minigrid.states import FOLDER, TEACHER, load_state, save_state
from training.optim import Muon

Method = Literal["pairs", "dmd", "sc-dmd", "salt"]
OUT = Path("out/training/minigrid")
LR: dict[str, tuple[float, float]] = {"pairs": (0.004, 6e-4), "critic": (0.004, 5e-4), "student": (0.003, 4e-4)}
START_MIN, START_MAX = 2, 8
IMPROVED_LEVEL, IMPROVED_QUALITY = 0.35, 4
KEPT = ("dmd", "sc-dmd")  # compared with the shipped student, which is in its package
CONSISTENCY_WEIGHT, ALIGNMENT_WEIGHT = 0.5, 1.0
app = typer.Typer(add_completion=False)


def learner(model: WorldModel, *, lr: tuple[float, float]) -> Learner[WorldModel]:
    """A student or a critic that begins as `model`; `lr` of Muon and of AdamW."""
    matrices = matrices_of(model.requires_grad_(True).stack)
    optimizers = (Muon(matrices, lr=lr[0]), adam(others(model, matrices), lr[1]))
    return Learner(model, optimizers, weight=lambda _: 0.02)


@dataclass(slots=True)
class Distillation:
    """One stage: the frozen teacher, the student and its critic."""

    method: Method
    teacher: WorldModel
    student: Learner[WorldModel]
    critic: Learner[WorldModel]

    def rollout(
        self,
        ids: Tensor,
        actions: Tensor,
        new: Tensor,
        start_count: int,
        factor: float,
        generator: torch.Generator,
    ) -> dict[str, list[float]]:
        """An update for each frame after the start of crops [B, T, 49]; what was measured, an entry each."""
        sessions = open_sessions(self.teacher, ids, actions, start_count)
        better = sessions.copy() if self.method == "salt" else None
        measured: dict[str, list[float]] = {}
        for k in range(start_count, ids.shape[1]):
            action, true = actions[:, k], self.teacher.codebook[ids[:, k]]
            if self.method == "pairs":
                logits, stats = self._pair_update(sessions, action, new[:, k], factor, generator)
            else:
                logits, stats = self._match_update(sessions, better, action, factor, generator)
            if better is None:
                sessions.observe(true, action, quality=0)
            else:
                made = self.teacher.mix(logits)
                improved = self._improve(better, made, action, generator)
                sessions.observe(made, action, quality=int(stats["nfe"]))
                better.observe(improved, action, quality=IMPROVED_QUALITY)
            if new[:, k].any():
                sure = logits[new[:, k]].softmax(-1).amax(-1) > 0.98
                stats[f"sure_new_{stats['nfe']:.0f}"] = sure.float().mean().item()
            for name, value in stats.items():
                measured.setdefault(name, []).append(value)
        return measured

    def _pair_update(
        self, sessions: Sessions, action: Tensor, new: Tensor, factor: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Logits of the answers at once, and what was measured."""
        model = self.student.model
        keep = gaps(len(action), model.config.window, generator)
        pasts = sessions.pasts((model, self.teacher), action, keep)
        loss, first, ids = matching.pair_loss(model, self.teacher, action, pasts, generator)
        self.student.step(loss, factor)
        agree = (first.argmax(-1) == ids)[new].float().mean().item() if new.any() else 1.0
        return first, {"nfe": 1.0, "loss": loss.item(), "agree_new": agree}

    def _match_update(
        self, sessions: Sessions, better: Sessions | None, action: Tensor, factor: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Logits of the student's last answers, and what was measured: of that, `nfe` is how many it gave."""
        student, critic = self.student.model, self.critic.model
        keep = gaps(len(action), student.config.window, generator)
        past, *pasts = sessions.pasts((student, self.teacher, critic), action, keep)
        x, t = torch.randn((len(action), *self._shape), generator=generator), torch.ones(len(action))
        nfe = 1 + int(torch.randint(2, (), generator=generator))
        if nfe == 2:
            with torch.no_grad():
                x0 = student.mix(student.denoise(x, t, action, past))
            t = matching.levels(len(action), 0.35, 0.7, generator)
            x = matching.renoise(x0, t, torch.randn(x.shape, generator=generator))
        features, heard = student.features(x, t, action, past)
        logits = student.head(features) + heard
        loss, apart = matching.matching_loss(logits, self.teacher, critic, action, pasts, generator)
        stats = {"nfe": float(nfe), f"apart_{nfe}": apart}
        if self.method != "dmd":
            extra = matching.consistency_loss(student, logits, x, t, action, past, generator)
            loss, stats["consistency"] = loss + CONSISTENCY_WEIGHT * extra, extra.item()
        if better is not None:
            with torch.no_grad():
                high, _ = student.features(x, t, action, better.pasts((student,), action, keep)[0])
            same = (sessions.places() == better.places()).all(-1).float()
            extra = matching.alignment_loss(features, high, same)
            loss, stats["alignment"] = loss + ALIGNMENT_WEIGHT * extra, extra.item()
        self.student.step(loss, factor)
        answer = logits.detach()
        miss = matching.critic_loss(critic, answer.softmax(-1), action, pasts[1], generator)
        self.critic.step(miss, factor)
        return answer, {**stats, "critic": miss.item()}

    @torch.no_grad()
    def _improve(self, better: Sessions, made: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """The same frames after one more evaluation, the teacher's: what they show stays, blends are decided."""
        t = torch.full((len(made),), IMPROVED_LEVEL)
        x = matching.renoise(made, t, torch.randn(made.shape, generator=generator))
        keep = torch.ones(len(made), self.teacher.config.window, dtype=torch.bool)
        return self.teacher.mix(self.teacher.denoise(x, t, action, better.pasts((self.teacher,), action, keep)[0]))

    @property
    def _shape(self) -> tuple[int, int]:
        return self.teacher.cell.shape[0], self.teacher.codebook.shape[1]


def run(method: Method, data: Path, folder: Path, seed: int, steps: int, *, of: int | None = None) -> WorldModel:
    """Trains a stage for its first `steps` rollouts `of` so many, from where its checkpoint stands.

    The averaged student.
    """
    of = of or steps
    begin = TEACHER if method == "pairs" else folder / "pairs.npz"
    job = Distillation(
        method,
        load_state(TEACHER),
        learner(load_state(begin), lr=LR["pairs" if method == "pairs" else "student"]),
        learner(load_state(TEACHER), lr=LR["critic"]),
    )
    for name, p in job.critic.model.named_parameters():
        p.requires_grad_("quality" not in name)  # a score is the frame's, however the cache was made
    checkpoint = folder / f"{method}.pt"
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        job.student.load(state["student"])
        job.critic.load(state["critic"])
        done = state["step"]
    crops = Crops(data, length=START_MAX + CHUNKS)
    started = saved = time.monotonic()
    totals: dict[str, list[float]] = {}
    for step in range(done, steps):
        rng, generator = seeds(2 * seed + (method != "pairs"), step)  # all three methods see the same
        start_count = int(rng.integers(START_MIN, START_MAX + 1))
        ids, actions, new = crops.draw(rng, SESSIONS, new_from=START_MAX, window=job.teacher.config.window)
        first = START_MAX - start_count
        factor = min(1.0, (step + 1) / 8) * min(1.0, max(0.05, 1.6 * (1 - step / of)))
        actions[:, first] = pose.NONE
        crop = (ids[:, first:], actions[:, first:], new[:, first:])
        for name, values in job.rollout(*crop, start_count, factor, generator).items():
            totals.setdefault(name, []).extend(values)
        now = time.monotonic()
        if step + 1 == steps or now - saved > 60:
            state = {"student": job.student.state(), "critic": job.critic.state(), "step": step + 1}
            save_checkpoint(state, checkpoint)
            saved = now
        if (step + 1) % 2 == 0 or step + 1 == steps:
            means = {name: round(sum(v) / len(v), 4) for name, v in totals.items()}
            left = (now - started) / (step + 1 - done) * (steps - step - 1)
            typer.echo(json.dumps({"method": method, "step": step + 1, "left_s": round(left), **means}))
            totals = {}
    return job.student.averaged()


@app.command()
def main(
    method: Annotated[str, typer.Option(help="pairs, dmd, sc-dmd or salt")],
    data: Annotated[Path, typer.Option(help="what data.py made")] = DEFAULT_PATH,
    folder: Annotated[Path, typer.Option(help="checkpoints, resumed when there")] = OUT,
    seed: int = 0,
    steps: Annotated[int, typer.Option(help="rollouts; 0: as many as were chosen for the method")] = 0,
) -> None:
    """Runs one method, and `pairs` before it where that has not been run."""
    if method not in ROLLOUTS:
        raise typer.BadParameter(f"method must be one of {', '.join(ROLLOUTS)}, got {method!r}")
    torch.set_num_threads(1)
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    if method != "pairs" and not (folder / "pairs.npz").exists():
        save_state(run("pairs", data, folder, seed, ROLLOUTS["pairs"]), folder / "pairs.npz")
    student = run(method, data, folder, seed, steps or ROLLOUTS[method])  # type: ignore[arg-type]
    target = (FOLDER if method in KEPT else folder) / f"{method}.npz"
    save_state(student, target)
    typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    app()
