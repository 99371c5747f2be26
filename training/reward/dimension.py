"""One more dimension for a judge that is served: an expert learnt on its frozen trunk, written as one file beside the
others. `python -m training.reward.dimension outlook --package models/judge/1`.

The trunk is run as it is served, so that nothing of the judge's own training is needed, and nothing else changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
import typer
from torch import Tensor, nn
from worldtree_runtime.reward_package import CARD_KEY, EXPERTS, ExpertCard

from training.minigrid import tiles
from training.reward.batches import clips, said, word_ids
from training.reward.calibration import knots_of, noisy_ratings
from training.reward.data import DEFAULT_FOLDER, PAIRS, SIZE, Candidate, Group, load
from training.reward.graphs import write_expert
from training.reward.measure import CLEAR
from training.reward.model import Expert, JudgeConfig, Opinion
from training.reward.served import DEFAULT_PACKAGE, Bench, dimension_means, evidence_of
from training.reward.train import chance_of, pair_loss

GROUPS, STEPS, RATE, TOGETHER = 3000, 600, 3e-3, 64
_CHECKED = 20  # groups
_LEFT, _RIGHT = (list(side) for side in zip(*PAIRS, strict=True))
Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NewDimension:
    """`truth`: of a candidate, 0 (worst) to 1."""

    description: str
    truth: Callable[[Candidate], float]


def _lit(ids: npt.NDArray[np.uint8]) -> float:
    return float((ids != tiles.DARK).mean())


def _outlook(candidate: Candidate) -> float:
    return float(np.clip(0.5 + _lit(candidate.ids[-1]) - _lit(candidate.ids[0]), 0, 1))


NEW = {
    "outlook": NewDimension(
        "by how much more of the world is in view at the end than at the start, 0.5: by nothing", _outlook
    ),
}


@dataclass(frozen=True)
class Seen:
    """What the trunk makes of groups of one length, and the truth."""

    features: Tensor  # [groups * SIZE, t, features]
    dense: Tensor  # [groups * SIZE, t, dense]
    truth: Float  # [groups, SIZE]


def look(package: Path, groups: list[Group], dimension: NewDimension) -> list[Seen]:
    """Groups by their lengths, as the package's trunk sees them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    trunk = ort.InferenceSession(str(package / "trunk.onnx"), options, providers=["CPUExecutionProvider"])
    shapes = {each.name: each.shape[1:] for each in trunk.get_inputs()}
    found = []
    for length in sorted({len(group.candidates[0].ids) for group in groups}):
        own = [group for group in groups if len(group.candidates[0].ids) == length]
        parts: list[tuple[Float, Float]] = []
        for first in range(0, len(own), TOGETHER):
            chosen = own[first : first + TOGETHER]
            frames, actions = (each.numpy() for each in clips(chosen))
            words = word_ids([group.goal for group in chosen]).repeat_interleave(SIZE, dim=0).numpy()
            before, memory = (np.zeros((len(words), *shapes[name]), np.float32) for name in ("before", "memory"))
            steps = []
            for step in range(length):
                given = {"frames": frames[:, step], "actions": actions[:, step], "words": words}
                before, memory, features, dense = trunk.run(
                    ["here", "memory_after", "features", "dense"], {**given, "before": before, "memory": memory}
                )
                steps.append((features, dense))
            parts.append((np.stack([each[0] for each in steps], 1), np.stack([each[1] for each in steps], 1)))
        truth = np.array([[dimension.truth(each) for each in group.candidates] for group in own], np.float32)
        found.append(Seen(*(torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)), truth))
    return found


def opinions(expert: Expert, seen: Seen) -> Opinion:
    """[groups, SIZE] each."""
    return Opinion(*(each.unflatten(0, (-1, SIZE)) for each in expert(seen.features, seen.dense)))


def learn(seen: list[Seen], noise: float, seed: int, steps: int, say: Callable[[str], None]) -> Expert:
    """From pairs of which a share is labelled wrong."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 23])
    labels = [torch.from_numpy(said(each.truth, noise, rng)) for each in seen]
    expert = Expert(JudgeConfig())
    optimizer = torch.optim.AdamW(expert.parameters(), lr=RATE, weight_decay=0.01)
    shares = np.array([len(each.truth) for each in seen]) / sum(len(each.truth) for each in seen)
    for step in range(steps):
        place = int(rng.choice(len(seen), p=shares))
        rows = torch.from_numpy(rng.integers(0, len(seen[place].truth), TOGETHER))
        flat = (rows.unsqueeze(1) * SIZE + torch.arange(SIZE)).flatten()
        part = Seen(seen[place].features[flat], seen[place].dense[flat], seen[place].truth[rows.numpy()])
        opinion = Opinion(*(each.unsqueeze(-1) for each in opinions(expert, part)))
        loss = pair_loss(opinion, labels[place][rows].unsqueeze(-1), noise)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(expert.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0:
            say(f"{step + 1}/{steps}, loss {float(loss.detach()):.4f}")
    return expert.eval().requires_grad_(False)


def in_order(expert: Expert, seen: list[Seen]) -> float:
    """Share of clearly different pairs that are put in order."""
    right, count = 0, 0
    for each in seen:
        chance = chance_of(Opinion(*(part.unsqueeze(-1) for part in opinions(expert, each))))[..., 0].numpy()
        gap = each.truth[:, _LEFT] - each.truth[:, _RIGHT]
        clear = np.abs(gap) >= CLEAR
        right, count = right + int(((chance > 0.5) == (gap > 0))[clear].sum()), count + int(clear.sum())
    return right / max(count, 1)


def add_dimension(
    name: str,
    package: Path,
    splits: dict[str, list[Group]],
    *,
    noise: float = 0.3,
    seed: int = 0,
    steps: int = STEPS,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Writes the expert's file; the share of held-out pairs that it puts in order. `splits`: train, validation, test.

    Raises ValueError where another dimension's answer changed by a bit.
    """
    dimension = NEW[name]
    (package / EXPERTS / f"{name}.onnx").unlink(missing_ok=True)
    checked = splits["test"][:_CHECKED]
    before = dimension_means(evidence_of(Bench.read(package), checked))
    seen = {split: look(package, groups, dimension) for split, groups in splits.items()}
    say(f"seen by the trunk: {', '.join(f'{len(groups)} of {split}' for split, groups in splits.items())}")
    expert = learn(seen["train"], noise, seed, steps, say)
    found = in_order(expert, seen["test"])
    answers = np.concatenate([opinions(expert, each).mean.numpy().ravel() for each in seen["validation"]])
    truth = np.concatenate([each.truth.ravel() for each in seen["validation"]])
    ratings = noisy_ratings(truth, noise, np.random.default_rng([seed, 29]))
    card = ExpertCard(
        description=dimension.description,
        unit=float(np.concatenate([each.truth.ravel() for each in seen["train"]]).std()),
        knots=tuple(knots_of(answers, ratings, noise)),
        pairwise_accuracy=round(found, 4),
    )
    write_expert(expert, package / EXPERTS / f"{name}.onnx", json.dumps(card.model_dump(mode="json")), CARD_KEY)
    after = dimension_means(evidence_of(Bench.read(package), checked))
    if not np.array_equal(before, after[..., : before.shape[-1]]):
        raise ValueError(f"{package}: another dimension answers otherwise now")
    return found


app = typer.Typer(add_completion=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(NEW)}")] = "outlook",
    package: Annotated[Path, typer.Option(help="package folder that gets one more file")] = DEFAULT_PACKAGE,
    noise: Annotated[float, typer.Option(help="share of the labels that are wrong")] = 0.3,
    seed: Annotated[int, typer.Option(help="of weights, labels and order")] = 0,
    folder: Annotated[Path, typer.Option(help="where the data lies")] = DEFAULT_FOLDER,
) -> None:
    """Teaches a judge one more dimension: a file in its package, in two minutes."""
    torch.set_num_threads(1)
    splits = {split: load(split, folder) for split in ("train", "validation", "test")}
    splits["train"] = splits["train"][:GROUPS]
    found = add_dimension(name, package, splits, noise=noise, seed=seed, say=typer.echo)
    typer.echo(f"{name}: {found:.3f} of held-out pairs in order; every other dimension answers as before, bit for bit")


if __name__ == "__main__":
    app()
