"""Groups judged by a package as it is served: the service's own networks and its own arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from worldtree_reward.domain import Evidence, Judgement, Question
from worldtree_reward.goal import read_goal
from worldtree_reward.judge import Judge, Track
from worldtree_reward.judging import judgement, route_of
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.reward_package import RewardPackage

from training.reward.data import Candidate, Group

DEFAULT_PACKAGE = Path("models/judge/1")
_TOGETHER = 64


@dataclass(frozen=True)
class Bench:
    """A package's judge, asked without a server."""

    judge: Judge

    @staticmethod
    def read(folder: Path = DEFAULT_PACKAGE) -> Bench:
        stored = ModelRepository(folder.parent.parent, RewardPackage).read(folder)
        return Bench(Judge(stored))

    def evidence(self, clips: list[tuple[Candidate, str]]) -> list[Evidence]:
        """Of candidates with their goals, whatever their lengths."""
        found: list[Evidence | None] = [None] * len(clips)
        lengths = np.array([len(candidate.ids) for candidate, _ in clips])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            for first in range(0, len(rows), _TOGETHER):
                here = rows[first : first + _TOGETHER]
                tracks = [self._begin(clips[row][1]) for row in here]
                frames = np.stack([clips[row][0].frames() for row in here])
                actions = np.stack([clips[row][0].actions for row in here]).astype(np.int64)
                for step in range(length):
                    self.judge.step(tracks, frames[:, step], actions[:, step])
                for row, each in zip(here, self.judge.evidence(tracks), strict=True):
                    found[row] = each
        return [each for each in found if each is not None]

    def judged(self, evidence: Evidence, question: Question) -> Judgement:
        package = self.judge.package
        route = route_of(self.judge.route(read_goal(question.goal, package.goal).words), question, package)
        return judgement(evidence, question, route, self.judge.dimensions, package)

    def _begin(self, goal: str) -> Track:
        return self.judge.begin(read_goal(goal, self.judge.package.goal).words)


def evidence_of(bench: Bench, groups: list[Group]) -> list[list[Evidence]]:
    """By group and candidate."""
    flat = iter(bench.evidence([(each, group.goal) for group in groups for each in group.candidates]))
    return [[next(flat) for _ in group.candidates] for group in groups]


def dimension_means(evidence: list[list[Evidence]]) -> npt.NDArray[np.float32]:
    """Raw answers of the experts, [groups, candidates, dimensions]."""
    return np.array(
        [[[opinion.mean for opinion in each.dimensions] for each in group] for group in evidence], np.float32
    )
