"""The merged experts on a GPU: the weights are made on one, and answer as on a CPU within rounding."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from prometheus_client import CollectorRegistry
from worldtree_multitask.catalog import load_catalog
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.domain import Recipe
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.served import Served

MODELS = Path(__file__).parents[2] / "models"
TOLERANCE = 1e-3

needs_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu and a GPU"
)
# On a machine without a GPU the same lines run on its CPU: what they ask of the service is there.
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


@asynccontextmanager
async def served_on(device: str) -> AsyncIterator[Served]:
    catalog = load_catalog(MultitaskSettings(models=str(MODELS), device=device), MultitaskMetrics(CollectorRegistry()))
    catalog.start()
    try:
        yield next(iter(catalog))
    finally:
        catalog.stop()


async def answers_on(device: str, weights: list[float], count: int) -> dict[str, np.ndarray]:
    async with served_on(device) as served:
        scoring = served.contents.image_sets[served.package.scoring]
        images = scoring.images[served.package.task_names[0]][:count]
        recipe = served.resolve(Recipe("preference", {"weights": weights}), immediate=True)
        answer = await served.engine.predict(await served.blends.get(recipe), images, served.package.task_names)
        served.engine.check_integrity()
        return dict(answer.probabilities)


@devices
@pytest.mark.parametrize("count", [1, 7])
async def test_a_preference_is_answered_as_on_a_cpu(device: str, count: int) -> None:
    weights = [0.4, 0.2, 0.1, 0.1, 0.1, 0.1]
    found, expected = await answers_on(device, weights, count), await answers_on("cpu", weights, count)
    assert found.keys() == expected.keys()
    for task, probabilities in found.items():
        assert probabilities.shape[0] == count
        np.testing.assert_allclose(probabilities, expected[task], atol=TOLERANCE)


@devices
async def test_merges_one_after_another_have_weights_of_their_own(device: str) -> None:
    async with served_on(device) as served:
        names = served.package.task_names
        images = served.contents.image_sets[served.package.scoring].images[names[0]][:4]

        async def ask(task: int) -> np.ndarray:
            weights = [float(each == task) for each in range(len(names))]
            blend = await served.blends.get(served.resolve(Recipe("preference", {"weights": weights}), immediate=True))
            return (await served.engine.predict(blend, images, names)).probabilities[names[0]]

        first = await ask(0)
        other = await ask(1)
        assert not np.array_equal(first, other)
        np.testing.assert_array_equal(await ask(0), first)
