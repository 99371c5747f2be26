"""ScaLearn: scales of experts for one task, learned on labels."""

from dataclasses import replace

import numpy as np
import pytest
from worldtree_multitask.merging import Cancelled, Context, Merged, Step, method
from worldtree_multitask.merging.testing import TASKS, small_study


def _learn(context: Context, **parameters: object) -> Merged:
    study, found = small_study(), method("scalearn")
    assert found is not None
    return found.merge(study.base, study.task_vectors, context, found.parameters(**parameters))


@pytest.mark.parametrize("target", TASKS)
def test_scales_make_a_task_as_good_as_its_expert(target: str) -> None:
    study, index = small_study(), TASKS.index(target)
    merged = _learn(study.context(labelled=True), target=target)
    assert merged.coefficients is not None
    weights = study.network.layout.combine(study.base, study.task_vectors, merged.coefficients)
    expert = study.scores(study.base + study.task_vectors[index])[index]
    assert study.scores(weights)[index] >= expert - 0.02
    assert f"held-out images of {target}" in merged.notes[0]


def test_a_target_needs_no_expert_of_its_own() -> None:
    study = small_study()
    merged = _learn(study.context(labelled=True), target="waves", experts=("spots", "stripes"))
    assert merged.coefficients is not None
    np.testing.assert_array_equal(merged.coefficients[:, 2], 0)
    assert merged.coefficients[:, :2].any()
    layout, average = study.network.layout, np.array([[0.5, 0.5, 0]] * 2, np.float32)
    start = study.scores(layout.combine(study.base, study.task_vectors, average))[2]
    assert study.scores(layout.combine(study.base, study.task_vectors, merged.coefficients))[2] > start


def test_where_no_expert_helps_the_merge_is_the_base() -> None:
    study, found = small_study(), method("scalearn")
    assert found is not None
    context = study.context(labelled=True)
    broken = np.zeros_like(study.task_vectors) + np.where(np.arange(study.base.size) % 2, 3.0, -3.0).astype(np.float32)
    merged = found.merge(study.base, broken, context, found.parameters(target="spots", start=2.0, steps=1))
    assert merged.coefficients is not None
    np.testing.assert_array_equal(merged.coefficients, 0)


def test_labels_without_meaning_are_not_learned_by_heart() -> None:
    study = small_study()
    context = study.context(labelled=True)
    noise = np.random.default_rng(0).integers(0, 4, len(context.labels["spots"]))
    told: list[Step] = []
    _learn(replace(context, labels={"spots": noise}, tell=told.append), target="spots", steps=100)
    assert max(step.done for step in told) < 100


def test_a_cancelled_merge_stops_at_once() -> None:
    def tell(step: Step) -> None:
        if step.done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        _learn(replace(small_study().context(labelled=True), tell=tell), target="spots")


def test_what_is_not_accepted_is_named() -> None:
    study = small_study()
    context = study.context(labelled=True)
    with pytest.raises(ValueError, match=r"target must be a task with labelled images, one of \[\], got 'spots'"):
        _learn(study.context(), target="spots")
    with pytest.raises(ValueError, match="labels of spots must be 48, one an image, got 3"):
        _learn(replace(context, labels={"spots": np.zeros(3, np.int64)}), target="spots")
    with pytest.raises(ValueError, match="labels of spots must be 0 to 3, got 7 to 7"):
        _learn(replace(context, labels={"spots": np.full(48, 7, np.int64)}), target="spots")
    few = replace(context, images={"spots": context.images["spots"][:2]}, labels={"spots": np.zeros(2, np.int64)})
    with pytest.raises(ValueError, match="images of spots must be 3 or more, a third is held out, got 2"):
        _learn(few, target="spots")
