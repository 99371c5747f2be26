"""When each operation is meant to start: decided before the first is sent, whatever the server does then."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from worldtree_loadtest.scenario import Phase, Scenario


@dataclass(frozen=True, slots=True)
class Plateau:
    """A time with one rate: a phase, or a part of one that climbs."""

    name: str
    phase: str
    begin_s: float
    end_s: float
    rate_per_s: float
    measured: bool
    climbs: bool

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """An operation is meant to start so many seconds after the first."""

    at_s: float
    plateau: int


def plateaus(scenario: Scenario) -> list[Plateau]:
    """All times with one rate, in their order."""
    found: list[Plateau] = []
    begin_s = 0.0
    for phase in scenario.phases:
        for index, rate in enumerate(_rates(phase)):
            end_s = begin_s + phase.seconds / phase.plateaus
            name = phase.name if phase.plateaus == 1 else f"{phase.name} {index + 1}"
            found.append(Plateau(name, phase.name, begin_s, end_s, rate, phase.measured, phase.plateaus > 1))
            begin_s = end_s
    return found


def arrivals(scenario: Scenario) -> Iterator[Arrival]:
    """Every arrival, in order of time: evenly spaced within a plateau, or at random moments of the same mean."""
    chance = random.Random(scenario.seed)  # noqa: S311 - a load, not a secret
    for index, plateau in enumerate(plateaus(scenario)):
        at_s = plateau.begin_s
        while True:
            if scenario.poisson:
                at_s += chance.expovariate(plateau.rate_per_s)
            if at_s >= plateau.end_s - 1e-9:
                break
            yield Arrival(at_s, index)
            if not scenario.poisson:
                at_s += 1 / plateau.rate_per_s


def turns(weights: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, for ever: each as often as its weight says, as evenly as can be, so that a short run has all.

    Smooth weighted round robin: each gains its weight, the richest goes and pays for all.
    """
    credit, total = [0.0] * len(weights), sum(weights)
    while True:
        for index, weight in enumerate(weights):
            credit[index] += weight
        chosen = max(range(len(weights)), key=credit.__getitem__)
        credit[chosen] -= total
        yield chosen


def _rates(phase: Phase) -> list[float]:
    if phase.to_rate_per_s is None:
        return [phase.rate_per_s]
    step = (phase.to_rate_per_s - phase.rate_per_s) / (phase.plateaus - 1)
    return [phase.rate_per_s + index * step for index in range(phase.plateaus)]
