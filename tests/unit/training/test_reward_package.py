"""The judge that is shipped: it answers as its card says, alone as among others, and another dimension is one file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from worldtree_reward.domain import Question

from training.minigrid import pose
from training.reward.data import Group, make_group
from training.reward.goals import foreign_goals
from training.reward.rubric import CATEGORY_NAMES, DIMENSION_NAMES
from training.reward.served import DEFAULT_PACKAGE, Bench, dimension_means, evidence_of

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / DEFAULT_PACKAGE
GROUPS = 50  # of the held-out split, made again from their seeds


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.read(PACKAGE)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return [make_group("test", index) for index in range(GROUPS)]


def test_it_is_small_and_says_what_it_looks_at(bench: Bench) -> None:
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file()) < 12e6
    package = bench.judge.package
    assert package.category_names == CATEGORY_NAMES
    assert package.dimensions == DIMENSION_NAMES
    assert package.actions == pose.ACTION_NAMES


def test_it_puts_the_best_of_four_first_far_more_often_than_chance(bench: Bench, groups: list[Group]) -> None:
    right = []
    for group, own in zip(groups, evidence_of(bench, groups), strict=True):
        rewards = [bench.judged(each, Question(group.goal)).reward.mean for each in own]
        right.append(int(np.argmax(rewards)) == int(group.rewards.argmax()))
    assert np.mean(right) >= 0.65


def test_a_clip_is_judged_alike_alone_and_among_others_to_the_last_bit(bench: Bench, groups: list[Group]) -> None:
    clips = [(each, group.goal) for group in groups[:10] for each in group.candidates]
    together = bench.evidence(clips)
    for index in (0, 7, 21, 39):
        (alone,) = bench.evidence([clips[index]])
        assert alone == together[index]
    for count in (2, 3, 5):
        assert bench.evidence(clips[:count]) == together[:count]


def test_goals_are_routed_to_their_category_and_foreign_ones_to_none(bench: Bench, groups: list[Group]) -> None:
    (evidence,) = bench.evidence([(groups[0].candidates[0], "")])
    found = [bench.judged(evidence, Question(group.goal)).route for group in groups]
    assert np.mean([route.category == CATEGORY_NAMES[g.category] for route, g in zip(found, groups, strict=True)]) > 0.9
    foreign = [bench.judged(evidence, Question(goal)) for goal in foreign_goals("test")]
    assert np.mean([each.route.unseen for each in foreign]) > 0.8
    assert all(np.isinf(each.reward.deviation) for each in foreign if each.route.unseen)


def test_one_more_expert_changes_no_bit_of_the_others(bench: Bench, groups: list[Group], tmp_path: Path) -> None:
    folder = tmp_path / "judge" / "1"
    shutil.copytree(PACKAGE, folder)
    shutil.copy(folder / "experts/hazard.onnx", folder / "experts/caution.onnx")
    wider = Bench.read(folder)
    assert [each.name for each in wider.judge.dimensions] == [*DIMENSION_NAMES, "caution"]
    some = groups[:5]
    for own, other in zip(evidence_of(bench, some), evidence_of(wider, some), strict=True):
        for before, after in zip(own, other, strict=True):
            assert after.dimensions[:-1] == before.dimensions
            assert after.whole == before.whole
            assert after.dimensions[-1] == before.dimensions[DIMENSION_NAMES.index("hazard")]


def test_weights_of_a_request_decide(bench: Bench, groups: list[Group]) -> None:
    some = [group for group in groups if CATEGORY_NAMES[group.category] == "safety"]
    evidence = evidence_of(bench, some)
    hazard = dimension_means(evidence)[..., DIMENSION_NAMES.index("hazard")]
    for group, own, raw in zip(some, evidence, hazard, strict=True):
        rewards = [bench.judged(each, Question(group.goal, None, {"hazard": 1.0})).reward.mean for each in own]
        assert rewards[int(raw.argmax())] == max(rewards)


def test_a_new_dimension_is_learnt_on_the_frozen_trunk_as_one_file(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the train extra")
    from training.reward.dimension import add_dimension

    folder = tmp_path / "judge" / "1"
    shutil.copytree(PACKAGE, folder)
    splits = {
        split: [make_group(split, index) for index in range(count)]
        for split, count in {"train": 120, "validation": 40, "test": 40}.items()
    }
    found = add_dimension("outlook", folder, splits, noise=0.0, steps=120)
    assert found > 0.7
    files = {path.name: path.read_bytes() for path in (folder / "experts").iterdir()}
    shipped = {path.name: path.read_bytes() for path in (PACKAGE / "experts").iterdir()}
    assert files.pop("outlook.onnx")
    assert files == shipped
    judge = Bench.read(folder).judge
    assert judge.dimensions[-1].name == "outlook"
    assert judge.dimensions[-1].card.pairwise_accuracy == pytest.approx(found, abs=1e-4)


def test_a_dream_is_held_to_the_simulator_only_where_it_follows_from_what_was_seen() -> None:
    from training.reward.data import start_of
    from training.reward.drift import START_COUNT, STEPS, Past, mistakes
    from training.reward.rollouts import Player, play

    rng, found = np.random.default_rng(5), 0
    while found < 5:
        start, _ = start_of("test", "fidelity", rng)
        if len(start.actions) < START_COUNT - 1:
            continue
        found += 1
        past = Past.of(start)
        rollout = play(start, Player(rng, None, slips=0.0, style="wander"), None, STEPS)
        np.testing.assert_array_equal(past.ids[-1], rollout.ids[0])
        assert mistakes(past, rollout, rollout.ids[1:], window=8) == 0
        blank = np.zeros_like(rollout.ids[1:])
        assert mistakes(past, rollout, blank, window=8) > 1
