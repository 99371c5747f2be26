"""What is true of a rollout follows from the simulator; what is done to it changes what it should, and only that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.minigrid import pose, tiles
from training.reward import flaws, goals
from training.reward.data import MARGIN, Candidate, Group, make_group, read, save, true_rewards
from training.reward.errands import FACE, OPEN, PICKUP, REACH, Errand, errands_of
from training.reward.rollouts import Player, Start, play
from training.reward.rubric import CATEGORIES, CATEGORY_NAMES, DIMENSION_NAMES, UNITS

ROOM = Start("MiniGrid-Empty-Random-6x6-v0", 3, ())


class Script(Player):
    """Does what it is told to."""

    def __init__(self, *actions: int) -> None:
        super().__init__(np.random.default_rng(0), None, slips=0.0, style="wander")
        self.actions = list(actions)

    def action(self, world: object) -> int:
        return self.actions.pop(0)


def played(start: Start, errand: Errand | None, *actions: int) -> dict[str, float]:
    return play(start, Script(*actions), errand, len(actions)).truth


def goal_of(start: Start) -> Errand:
    world = start.world()
    width, height = world.size
    (cell,) = [(x, y) for x in range(width) for y in range(height) if world.code(x, y) == tiles.GOAL]
    return Errand(REACH, cell, tiles.GOAL)


def test_a_plan_gets_there_and_makes_all_the_progress_there_is() -> None:
    errand = goal_of(ROOM)
    plan = errand.plan(ROOM.world())
    assert plan
    truth = played(ROOM, errand, *plan)
    assert (truth["progress"], truth["efficiency"], truth["collision"]) == (1.0, 1.0, 1.0)
    half = played(ROOM, errand, *plan[: len(plan) // 2])
    assert half["progress"] == pytest.approx(0.5 + 0.5 * (len(plan) // 2) / len(plan))
    idle = played(ROOM, errand, *[pose.DONE] * 4)
    assert (idle["progress"], idle["efficiency"]) == (0.5, 0.0)


def test_what_is_done_after_the_errand_is_no_detour() -> None:
    errand = goal_of(ROOM)
    plan = errand.plan(ROOM.world())
    assert plan
    assert played(ROOM, errand, *plan, pose.DONE, pose.DONE)["efficiency"] == 1.0
    assert played(ROOM, errand, pose.LEFT, pose.RIGHT, *plan)["efficiency"] == pytest.approx(1 - 1 / (len(plan) + 2))


def test_walking_into_walls_is_counted() -> None:
    wall = played(ROOM, None, *[pose.FORWARD] * 8)
    assert wall["collision"] == 0.0
    assert played(ROOM, None, pose.LEFT, pose.LEFT)["collision"] == 1.0
    assert np.isnan(wall["progress"])


def test_lava_is_as_near_as_it_came() -> None:
    start = Start("MiniGrid-LavaGapS7-v0", 4, ())
    world = start.world()
    seen = np.flatnonzero(world.frame_ids() == tiles.LAVA)
    assert seen.size
    rows, columns = np.divmod(seen, tiles.VIEW_CELLS)
    nearest = int(np.maximum(6 - rows, np.abs(columns - 3)).min())
    assert played(start, None, pose.DONE)["hazard"] == pytest.approx(min(nearest, 3) / 3)
    # Through the lava: a plan that may.
    errand = goal_of(start)
    plan = errand.plan(world, through_lava=True)
    assert plan
    through = play(start, Script(*plan), errand, len(plan))
    if len(plan) < len(errand.plan(world) or []):
        assert through.truth["hazard"] == 0.0


def test_the_right_thing_taken_is_handled_and_another_is_not() -> None:
    for seed in range(40):
        start = Start("MiniGrid-Fetch-8x8-N3-v0", seed, ())
        errands = [each for each in errands_of(start.world(), "manipulation") if each.kind == PICKUP]
        plans = [(each, each.plan(start.world())) for each in errands]
        good = [(each, plan) for each, plan in plans if plan]
        if len(good) >= 2:
            break
    (wanted, plan), (other, wrong) = good[:2]
    assert played(start, wanted, *(plan or []))["handling"] == 1.0
    assert played(start, wanted, *(wrong or []))["handling"] == 0.0
    assert played(start, wanted, pose.DONE)["handling"] == 0.5
    assert wanted.thing != other.thing


def test_an_errand_means_one_thing_that_is_in_view_and_not_done() -> None:
    start = Start("MiniGrid-GoToDoor-8x8-v0", 1, ())
    world = start.world()
    for errand in errands_of(world, "navigation"):
        assert errand.kind in (FACE, REACH)
        assert not errand.is_done(world)
    doors = [each for each in errands_of(world, "manipulation") if each.kind == OPEN]
    assert all(each.thing.split()[1] == "door" for each in doors)


@pytest.fixture(scope="module")
def walk() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, actions and poses of a walk in a room full of things."""
    start = Start("MiniGrid-PutNear-8x8-N3-v0", 2, ())
    rng = np.random.default_rng(1)
    rollout = play(start, Player(rng, None, slips=0.0, style="wander"), None, 10)
    return rollout.ids, rollout.actions, rollout.poses


@pytest.mark.parametrize("kind", ["vanish", "recolour", "appear", "swap"])
def test_a_thing_is_tampered_with_from_one_moment_on_and_nothing_else_changes(
    kind: str, walk: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, _, poses = walk
    for seed in range(10):
        changed, count = flaws.tamper(ids, poses, kind, np.random.default_rng(seed))
        different = changed != ids
        if not count:
            assert not different.any()
            continue
        cells = pose.cell_coordinates(poses)[different]
        assert 1 <= len(np.unique(cells, axis=0)) <= count <= 2
        first = int(np.flatnonzero(different.any(axis=1))[0])
        assert first >= 1
        assert (ids != changed)[:first].sum() == 0
        assert not different[:, tiles.AGENT_CELL].any()


def test_told_actions_are_right_where_they_are_or_where_nothing_could_have_happened(
    walk: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    ids, actions, _ = walk
    assert flaws.consistency(ids, actions, actions) == 1.0
    for kind in ("random", "mirror", "late", "still"):
        told = flaws.mistell(actions, kind, np.random.default_rng(3))
        assert told[0] == pose.NONE
        assert flaws.consistency(ids, actions, told) >= float((told[1:] == actions[1:]).mean())
    turned = np.array([pose.NONE] + [pose.LEFT] * (len(ids) - 1), np.uint8)
    assert flaws.consistency(ids, actions, turned) == pytest.approx(float((actions[1:] == pose.LEFT).mean()), abs=0.11)


@pytest.mark.parametrize("kind", [*flaws.BLEMISHES["train"], *flaws.BLEMISHES["test"]])
def test_a_blemish_is_the_same_each_time_worse_when_stronger_and_only_where_it_is_meant(
    kind: str, walk: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    true = tiles.draw_frame(walk[0])

    def seen(severity: float) -> np.ndarray:
        return flaws.blemished(true, [flaws.Blemish(kind, severity, 2, 5, 9)])

    faint, gross = seen(0.2), seen(0.8)
    np.testing.assert_array_equal(gross, seen(0.8))
    np.testing.assert_array_equal(gross[:2], true[:2])
    np.testing.assert_array_equal(gross[6:], true[6:])
    assert flaws.sharpness(true, gross) < flaws.sharpness(true, faint) <= 1.0
    assert flaws.sharpness(true, true) == 1.0


def test_flaws_that_are_held_out_are_not_those_that_are_trained_on() -> None:
    for kinds in (flaws.BLEMISHES, flaws.TAMPERINGS, flaws.MISTELLINGS):
        assert not set(kinds["train"]) & set(kinds["test"])
        assert len(kinds["train"]) == len(kinds["test"])


def test_a_group_is_of_its_seed_alone_and_its_best_leads() -> None:
    for index in range(5):
        group = make_group("test", index)
        again = make_group("test", index)
        assert CATEGORY_NAMES[group.category] == CATEGORY_NAMES[index]
        assert group.goal == again.goal
        np.testing.assert_array_equal(group.rewards, again.rewards)
        ordered = np.sort(group.rewards)
        assert ordered[-1] - ordered[-2] > MARGIN
        assert len({len(each.ids) for each in group.candidates}) == 1


def test_a_tie_is_two_that_are_as_good_before_two_that_are_not() -> None:
    group = make_group("ties", 3)
    ordered = np.sort(group.rewards)
    assert ordered[-1] - ordered[-2] <= 0.02 < MARGIN < ordered[-2] - ordered[-3]


def test_groups_are_kept_whole(tmp_path: Path) -> None:

    groups = [make_group("train", index) for index in range(5)]
    path = tmp_path / "groups.npz"
    save(groups, path)
    for group, again in zip(groups, read(path), strict=True):
        assert (again.category, again.goal, again.held) == (group.category, group.goal, group.held)
        for one, other in zip(group.candidates, again.candidates, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.actions, other.actions)
            np.testing.assert_array_equal(one.frames(), other.frames())
            np.testing.assert_array_equal(one.truth, other.truth)


def test_true_rewards_weigh_each_dimension_in_its_own_unit() -> None:
    truth = np.zeros((2, len(DIMENSION_NAMES)), np.float32)
    truth[1, DIMENSION_NAMES.index("progress")] = UNITS["progress"]
    navigation = CATEGORY_NAMES.index("navigation")
    assert true_rewards(truth, navigation).tolist() == pytest.approx([0.0, CATEGORIES[navigation].weights["progress"]])
    # What says nothing of a category does not count in it, even where it is unknown.
    truth[:, DIMENSION_NAMES.index("handling")] = np.nan
    assert not np.isnan(true_rewards(truth, navigation)).any()


def test_goals_are_said_in_words_that_a_judge_knows_and_held_out_ones_are_others() -> None:
    rng = np.random.default_rng(0)
    for category, kinds in goals._SENTENCES.items():
        for kind, sentences in kinds.items():
            assert not set(sentences) & set(goals._HELD[category][kind])
            for _ in range(8):
                said = goals.sentence(category, kind, "purple key", rng, held=True)
                assert 1 not in goals.tokenize(said)
    assert not set(goals.foreign_goals("train")) & set(goals.foreign_goals("test"))
    assert goals.tokenize("Go to the Moon!").tolist()[:4] != goals.tokenize("go to the ball").tolist()[:4]


def test_a_candidate_draws_what_it_was_made_of(walk: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ids, actions, _ = walk
    clean = Candidate(ids, actions, np.ones(len(DIMENSION_NAMES), np.float32), False)
    np.testing.assert_array_equal(clean.frames(), tiles.draw_frame(ids))
    group = Group(0, "go", [clean])
    assert group.rewards.shape == (1,)
