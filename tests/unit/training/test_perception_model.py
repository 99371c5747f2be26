"""The network, its graph, and what fine-tuning and the map of preferences do to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="the train extra")
from torch import nn  # noqa: E402

from training.minigrid.data import record  # noqa: E402
from training.perception.data import Domain, domains  # noqa: E402
from training.perception.experts import Lesson, fine_tune, lesson_of  # noqa: E402
from training.perception.graph import Predictor, export_graph, weights_to_inputs  # noqa: E402
from training.perception.model import Backbone, CoarseReader, ModelConfig  # noqa: E402
from training.perception.preference import Merger, draw_preference, learn_map  # noqa: E402
from training.perception.tasks import TASK_NAMES, TASKS, coarse_map  # noqa: E402


def _network(seed: int) -> Backbone:
    """Untrained, but no two parameters alike, as after training: norms do not stay ones and zeros."""
    torch.manual_seed(seed)
    backbone = Backbone().eval().requires_grad_(False)
    for value in backbone.parameters():
        value.add_(0.02 * torch.randn_like(value))
    return backbone


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> Backbone:
    return _network(0)


@pytest.fixture(scope="module")
def worlds() -> dict[str, Domain]:
    """A few frames of each task's environments."""
    frames = {
        task.name: np.concatenate([record(name, seed, length=20).ids for name in task.environments for seed in (1, 2)])
        for task in TASKS
    }
    return domains(frames)


def heads_of(base: Backbone) -> dict[str, nn.Linear]:
    torch.manual_seed(1)
    return {task.name: nn.Linear(128, len(task.classes)).requires_grad_(False) for task in TASKS}


def test_each_parameter_lies_in_one_layer(base: Backbone) -> None:
    named = [name for names in base.layers().values() for name in names]
    assert sorted(named) == sorted(name for name, _ in base.named_parameters())
    assert sum(value.numel() for value in base.parameters()) < 3_000_000
    assert not list(base.buffers())


def test_the_graph_with_weights_as_inputs_answers_as_torch_does(base: Backbone, tmp_path: Path) -> None:
    heads, file = heads_of(base), tmp_path / "predict.onnx"
    export_graph(base, heads, file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == list(TASK_NAMES)
    images = np.random.default_rng(0).integers(0, 256, (5, 56, 56, 3), dtype=np.uint8)
    moved = _network(6)  # not the weights it was exported with
    feeds = {name: value.numpy() for name, value in moved.named_parameters()}
    assert {each.name for each in session.get_inputs()} == {"images", *feeds}
    answers = session.run(list(TASK_NAMES), {"images": images, **feeds})
    wanted = Predictor(moved, heads)(torch.from_numpy(images))
    for answer, want in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer, want.numpy(), atol=2e-4)


def test_a_parameter_that_the_graph_lacks_is_named() -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    with pytest.raises(KeyError, match="gone"):
        weights_to_inputs(onnx.helper.make_model(graph), ["backbone.gone"])


def test_the_base_learns_its_coarse_map(worlds: dict[str, Domain]) -> None:
    torch.manual_seed(2)
    backbone, reader = Backbone(), CoarseReader(ModelConfig())
    domain = worlds["front_object"]
    images, _ = domain.batch(16, np.random.default_rng(0))
    rows = domain.balanced(16, np.random.default_rng(0))
    optimizer = torch.optim.Adam([*backbone.parameters(), *reader.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = reader.loss(backbone, torch.from_numpy(images), torch.from_numpy(coarse_map(domain.ids[rows])))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_an_expert_learns_its_lesson_with_its_head_frozen(base: Backbone, worlds: dict[str, Domain]) -> None:
    domain = worlds["free_ahead"]
    images, labels = domain.batch(32, np.random.default_rng(3))
    lesson = Lesson("fixed", len(domain.task.classes), lambda _count, _rng: (images, labels))
    torch.manual_seed(4)
    head = nn.Linear(128, len(domain.task.classes)).requires_grad_(False)
    before = head.weight.clone()
    vector = fine_tune(base, head, lesson, 0, steps=25)
    assert torch.equal(head.weight, before)
    moved = Backbone().requires_grad_(False)
    moved.load_state_dict({name: value + vector[name] for name, value in base.named_parameters()})
    loss = [
        nn.functional.cross_entropy(head(each(torch.from_numpy(images))), torch.from_numpy(labels)).item()
        for each in (base, moved)
    ]
    assert loss[1] < loss[0]


def test_the_same_seed_gives_the_same_expert(base: Backbone, worlds: dict[str, Domain]) -> None:
    lesson = lesson_of(worlds, "danger")
    head = heads_of(base)["danger"]
    first, second = (fine_tune(base, head, lesson, 7, steps=3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(first) == {name for name, _ in base.named_parameters()}


def test_an_anchor_keeps_the_summaries_of_other_cameras(base: Backbone, worlds: dict[str, Domain]) -> None:
    lesson = lesson_of(worlds, "carried")
    assert lesson.elsewhere is not None
    free = Lesson(lesson.name, lesson.class_count, lesson.batch)
    head = heads_of(base)["carried"]
    images = torch.from_numpy(lesson.elsewhere(32, np.random.default_rng(9)))
    drift = []
    for each in (lesson, free):
        vector = fine_tune(base, head, each, 0, steps=25)
        moved = Backbone().requires_grad_(False)
        moved.load_state_dict({name: value + vector[name] for name, value in base.named_parameters()})
        drift.append((moved(images) - base(images)).square().mean().item())
    assert drift[0] < drift[1]


def test_preferences_that_are_drawn_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_preference(step, rng) for step in range(18)])
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0)
    assert (drawn.max(axis=1) == 1.0).sum() == len(TASK_NAMES)


def test_the_map_of_preferences_comes_nearer_to_the_experts(base: Backbone, worlds: dict[str, Domain]) -> None:
    rng = torch.Generator().manual_seed(5)
    vectors = {
        task: {n: 0.05 * torch.randn(v.shape, generator=rng) for n, v in base.named_parameters()} for task in TASK_NAMES
    }
    merger = Merger(base, heads_of(base), vectors, worlds)
    corners = learn_map(merger, 0, say=lambda _line: None, steps=6)
    assert corners.shape == (len(TASK_NAMES), merger.layer_count, len(TASK_NAMES))
    own = torch.eye(len(TASK_NAMES))[0].expand(merger.layer_count, -1)
    with torch.no_grad():
        losses = merger.losses(own, torch.arange(16))
    assert losses[0] < 1e-6  # a task's expert agrees with itself
    assert losses[1:].min() > 1e-4
