"""A model in training: its optimisers, its moving average, its checkpoint."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Learner(Generic[Model]):
    """Takes steps; each group of the optimisers at its own rate times one factor.

    `weight` says how much a step counts in the moving average, by the number of steps taken.
    """

    def __init__(
        self, model: Model, optimizers: Sequence[torch.optim.Optimizer], *, weight: Callable[[int], float]
    ) -> None:
        self.model = model
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizers = list(optimizers)
        self.step_count = 0
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._weight = weight

    def step(self, loss: Tensor, factor: float) -> None:
        """One update down the loss, gradients clipped to norm 1."""
        loss.backward()  # type: ignore[no-untyped-call]
        self._gather()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, self._weight(self.step_count))

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on exactly here."""
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step_count": self.step_count,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step_count = state["step_count"]

    def averaged(self) -> Model:
        """A frozen copy with the moving average."""
        return with_average(copy.deepcopy(self.model), self.average)

    def _gather(self) -> None:
        """Where several ranks share a model, their gradients meet here."""


def with_average(model: Model, average: dict[str, Tensor]) -> Model:
    """The model with these parameters, ready for inference."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(average[name])
    return model.eval().requires_grad_(False)


def load_average(checkpoint: Path, build: Callable[[dict[str, Any]], Model]) -> Model:
    """The moving average of a checkpoint; `build` makes a model of the settings that it was made with."""
    state = torch.load(checkpoint, weights_only=True)
    model = build({name: tuple(v) if isinstance(v, list) else v for name, v in state["config"].items()})
    model.load_state_dict(state["model"])
    return with_average(model, state["average"])


def save_checkpoint(state: dict[str, Any], checkpoint: Path) -> None:
    """Whole or not at all."""
    part = checkpoint.with_suffix(".part")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, part)
    part.replace(checkpoint)


def growing(most: float) -> Callable[[int], float]:
    """The weight of a step in an average that is short at first and keeps the share `most` of itself later."""
    return lambda step_count: 1 - min(most, 1 - 1 / (1 + step_count / 10))


def matrices_of(*stacks: nn.Module) -> list[nn.Parameter]:
    """What Muon takes: the matrices of layers, but for those that modulate."""
    named = [pair for stack in stacks for pair in stack.named_parameters()]
    return [p for name, p in named if p.ndim == 2 and "modulation" not in name]


def others(model: nn.Module, taken: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The rest of a model's parameters."""
    chosen = {id(p) for p in taken}
    return [p for p in model.parameters() if id(p) not in chosen]


def adam(parameters: Iterable[Any], lr: float) -> torch.optim.AdamW:
    """AdamW without weight decay, for what is no matrix."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)


def keep_freed_memory() -> None:
    """Tells glibc to keep big freed blocks: page faults of fresh activations cost a tenth of the step."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, (1 << 31) - 1)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 64 << 20)  # M_TOP_PAD
