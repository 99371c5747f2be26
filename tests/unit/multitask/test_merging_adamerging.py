"""AdaMerging on a small network whose experts hurt each other's tasks."""

import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from worldtree_multitask.merging import Cancelled, Context, Merged, Step, method
from worldtree_multitask.merging.adamerging import AdaMergingParameters
from worldtree_multitask.merging.testing import TASKS, Study, small_study


def _learn(context: Context, task_vectors: NDArray[np.float32] | None = None, **parameters: object) -> Merged:
    study, found = small_study(), method("adamerging")
    assert found is not None
    vectors = study.task_vectors if task_vectors is None else task_vectors
    return found.merge(study.base, vectors, context, found.parameters(**parameters))


def _mean_score(study: Study, merged: Merged, task_vectors: NDArray[np.float32] | None = None) -> float:
    assert merged.coefficients is not None
    vectors = study.task_vectors if task_vectors is None else task_vectors
    return float(study.scores(study.network.layout.combine(study.base, vectors, merged.coefficients)).mean())


def _with_constant_expert(study: Study) -> NDArray[np.float32]:
    """One more task vector, truly trained: on images of every task that all bear the same label."""
    weights = study.base
    for _ in range(100):
        pairs = [(task, study.calibration[task]) for task in TASKS]
        gradients = [study.network.gradient(weights, im, np.zeros(len(im), np.int64), task) for task, im in pairs]
        weights = weights - np.float32(0.2) * np.sum(gradients, axis=0)
    return np.concatenate([study.task_vectors, (weights - study.base)[None]])


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_distillation_beats_the_average_in_few_passes(granularity: str) -> None:
    study = small_study()
    average = Merged(coefficients=np.full((2, 3), 1 / 3, np.float32))
    context = study.context()
    merged = _learn(context, granularity=granularity)
    assert _mean_score(study, merged) > _mean_score(study, average) + 0.01
    images = sum(map(len, study.calibration.values()))
    assert context.network.evaluation_count < 60 * images


def test_gradient_and_gauss_newton_find_the_same_merge() -> None:
    newton = _learn(small_study().context(), steps=30)
    adam = _learn(small_study().context(), optimizer="gradient", steps=400)
    assert newton.coefficients is not None
    np.testing.assert_allclose(newton.coefficients, adam.coefficients, atol=0.05)


@pytest.mark.parametrize("objective", ["entropy", "infomax"])
@pytest.mark.parametrize("optimizer", ["gradient", "evolution"])
def test_a_healthy_run_without_labels_beats_the_base_and_is_not_guarded(objective: str, optimizer: str) -> None:
    study = small_study()
    merged = _learn(study.context(), objective=objective, optimizer=optimizer)
    assert not merged.guarded
    assert merged.notes == ()
    assert _mean_score(study, merged) > study.scores(study.base).mean() + 0.05


def test_the_guard_returns_to_before_the_collapse_and_says_so_with_numbers() -> None:
    study = small_study()
    vectors = _with_constant_expert(study)
    context = replace(study.context(), experts=(*TASKS, "constant"))
    merged = _learn(context, vectors, objective="entropy", optimizer="gradient", start=1.0, learning_rate=0.05)
    assert merged.guarded
    assert re.match(r"the guard stopped a collapse: on \w+ the spread of answers fell to 0\.\d\d", merged.notes[0])
    start = Merged(coefficients=np.ones((2, 4), np.float32))
    assert _mean_score(study, merged, vectors) >= _mean_score(study, start, vectors) - 0.02


def test_distillation_does_not_collapse_where_entropy_does() -> None:
    study = small_study()
    vectors = _with_constant_expert(study)
    merged = _learn(replace(study.context(), experts=(*TASKS, "constant")), vectors, start=1.0)
    assert _mean_score(study, merged, vectors) > 0.9


def test_the_order_of_experts_orders_the_coefficients_and_changes_nothing_else() -> None:
    study, order = small_study(), [2, 0, 1]
    plain = _learn(study.context())
    turned = _learn(replace(study.context(), experts=tuple(TASKS[i] for i in order)), study.task_vectors[order])
    assert plain.coefficients is not None
    np.testing.assert_allclose(turned.coefficients, plain.coefficients[:, order], atol=2e-3)


@pytest.mark.parametrize("optimizer", ["gradient", "evolution"])
def test_the_same_seed_gives_the_same_merge(optimizer: str) -> None:
    study = small_study()

    def run(seed: int) -> NDArray[np.float32] | None:
        drawn = _learn(study.context(seed=seed), optimizer=optimizer, steps=5, images_per_task=8)
        return drawn.coefficients

    np.testing.assert_array_equal(run(4), run(4))
    assert not np.array_equal(run(4), run(5))


@pytest.mark.parametrize("optimizer", ["gauss_newton", "gradient", "evolution"])
def test_a_cancelled_merge_stops_within_one_pass(optimizer: str) -> None:
    told: list[Step] = []
    context = small_study().context()

    def tell(step: Step) -> None:
        told.append(step)
        if step.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        _learn(replace(context, tell=tell), optimizer=optimizer)
    assert [step.done for step in told if step.done == 2] == [2]
    assert np.isfinite(told[-1].objective)


def test_every_pass_of_the_network_is_followed_by_a_word() -> None:
    told: list[Step] = []
    context = small_study().context()
    _learn(replace(context, tell=told.append))
    passes = context.network.evaluation_count / len(small_study().calibration[TASKS[0]])
    assert len(told) >= passes


def test_the_optimizer_follows_the_objective_and_the_steps_the_optimizer() -> None:
    default, entropy = AdaMergingParameters(), AdaMergingParameters(objective="entropy")
    assert (default.optimizer, default.steps) == ("gauss_newton", 3)
    assert (entropy.optimizer, entropy.steps) == ("gradient", 60)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"objective": "entropy", "optimizer": "gauss_newton"},
            "optimizer must be gradient or evolution for objective entropy, got gauss_newton",
        ),
        ({"steps": 0}, "steps"),
        ({"start": float("nan")}, "start"),
    ],
)
def test_what_is_not_accepted_is_named(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _learn(small_study().context(), **parameters)


def test_images_of_no_known_task_are_refused() -> None:
    context = small_study().context()
    with pytest.raises(
        ValueError, match=r"images must be of at least one task that has an expert, .* got images of \[\]"
    ):
        _learn(replace(context, images={}))
    with pytest.raises(ValueError, match=r"got images of \['other'\]"):
        _learn(replace(context, images={"other": context.images[TASKS[0]]}))
