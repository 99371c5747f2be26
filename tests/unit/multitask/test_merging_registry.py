"""What every method keeps, whichever it is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from worldtree_multitask.merging import Needs, method, methods
from worldtree_multitask.merging.testing import TASKS, small_study

_REQUIRED: Mapping[str, dict[str, Any]] = {"expert": {"expert": "spots"}, "scalearn": {"target": "spots"}}
_QUICK: Mapping[str, dict[str, Any]] = {"mm_mo": {"evaluations": 20}}


def test_these_methods_are_built_in() -> None:
    assert {
        "adamerging",
        "average",
        "base",
        "dare",
        "expert",
        "fw_merging",
        "mm_mo",
        "preference",
        "scalearn",
        "task_arithmetic",
        "ties",
    } <= set(methods())
    assert method("no_such_method") is None


@pytest.mark.parametrize("name", methods())
def test_a_method_keeps_the_contract(name: str) -> None:
    study, found = small_study(), method(name)
    assert found is not None
    assert found.name == name
    for field_name, field in found.parameters.model_fields.items():
        assert field.description, f"{name}.{field_name} has no description"
    parameters = found.parameters(**_REQUIRED.get(name, {}), **_QUICK.get(name, {}))
    told: list[object] = []
    context = replace(study.context(labelled=found.needs is Needs.LABELS), tell=told.append)
    kept = study.base.copy(), study.task_vectors.copy()
    merged = found.merge(study.base, study.task_vectors, context, parameters)
    np.testing.assert_array_equal(study.base, kept[0])
    np.testing.assert_array_equal(study.task_vectors, kept[1])
    assert (merged.coefficients is None) != (merged.weights is None)
    if merged.coefficients is not None:
        assert merged.coefficients.dtype == np.float32
        assert merged.coefficients.shape == (2, len(TASKS))
    if merged.weights is not None:
        assert merged.weights.dtype == np.float32
        assert merged.weights.shape == study.base.shape
    assert found.immediate == (found.needs is Needs.NOTHING)
    assert found.immediate or told


@pytest.mark.parametrize("name", ["average", "base", "dare", "expert", "preference", "task_arithmetic", "ties"])
def test_a_merge_of_one_expert_thrice_is_that_expert(name: str) -> None:
    study, found = small_study(), method(name)
    assert found is not None
    alike = np.repeat(study.task_vectors[:1], 3, axis=0)
    settings: dict[str, dict[str, Any]] = {
        "ties": {"density": 1.0},
        "dare": {"drop": 0.0, "scale": 1 / 3},
        "task_arithmetic": {"scale": 1 / 3},
        "preference": {"scale": 1 / 3},
    }
    merged = found.merge(
        study.base, alike, study.context(), found.parameters(**_REQUIRED.get(name, {}), **settings.get(name, {}))
    )
    weights = merged.weights
    if merged.coefficients is not None:
        weights = study.network.layout.combine(study.base, alike, merged.coefficients)
    expected = study.base if name == "base" else study.base + alike[0]
    np.testing.assert_allclose(weights, expected, atol=1e-5)
