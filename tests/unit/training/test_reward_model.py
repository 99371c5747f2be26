"""The judge in training: what its parts see, what its loss wants, and its graphs of one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="the train extra")

from training.minigrid import pose, tiles  # noqa: E402
from training.reward.batches import batch, batches, clips, labels_of, mirrored, word_ids  # noqa: E402
from training.reward.data import PAIRS, SIZE, Group, make_group  # noqa: E402
from training.reward.flaws import consistency  # noqa: E402
from training.reward.goals import MAX_WORDS  # noqa: E402
from training.reward.graphs import write_expert, write_graphs  # noqa: E402
from training.reward.judged import judge  # noqa: E402
from training.reward.model import CHANGES, Cells, Dense, DoubleLayer, OneExpert, Opinion, Router, view_shifts  # noqa: E402
from training.reward.rollouts import Player, Start, play  # noqa: E402
from training.reward.router import _said  # noqa: E402
from training.reward.rubric import CATEGORY_NAMES, DIMENSION_NAMES  # noqa: E402
from training.reward.train import chance_of, loss_of, pair_loss  # noqa: E402


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return [make_group("train", index) for index in range(10)]


@pytest.fixture(scope="module")
def model() -> DoubleLayer:
    """Untrained, but no adapter is nothing any more."""
    torch.manual_seed(0)
    found = DoubleLayer().eval().requires_grad_(False)
    for expert in found.experts.values():
        expert.up.weight.add_(0.1 * torch.randn_like(expert.up.weight))
    return found


def test_a_cell_is_read_as_the_picture_that_it_is_and_nothing_is_left() -> None:
    cells = Cells(8)
    ids = np.arange(tiles.CELL_COUNT, dtype=np.uint8)[None]
    pictures, _ = cells(torch.from_numpy(tiles.draw_frame(ids)))
    torch.testing.assert_close(pictures[0], cells.picture.weight[: tiles.CELL_COUNT])


def test_the_mirrored_world_turns_the_other_way_and_shows_what_it_would_show(groups: list[Group]) -> None:
    for group in groups:
        other = mirrored(group)
        for each, twin in zip(group.candidates, other.candidates, strict=True):
            np.testing.assert_array_equal(twin.truth, each.truth)
            assert consistency(twin.ids, twin.actions, twin.actions) == 1.0
            turns = np.isin(each.actions, (pose.LEFT, pose.RIGHT))
            assert (twin.actions[turns] == 1 - each.actions[turns]).all()
            np.testing.assert_array_equal(twin.actions[~turns], each.actions[~turns])
        again = mirrored(other)
        for each, twin in zip(group.candidates, again.candidates, strict=True):
            np.testing.assert_array_equal(twin.frames(), each.frames())
    # where cells come from after a left turn, mirrored, is where they come from after a right one
    shifts, side = view_shifts().numpy(), tiles.VIEW_CELLS
    flip = np.arange(tiles.CELL_COUNT).reshape(side, side)[:, ::-1].flatten()
    np.testing.assert_array_equal(shifts[0][flip][:, flip], shifts[1])


def test_cells_come_from_where_the_simulator_shows_that_they_do() -> None:
    start = Start("MiniGrid-PutNear-8x8-N3-v0", 2, ())  # seen through walls, so that nothing hides
    rollout = play(start, Player(np.random.default_rng(1), None, slips=0.0, style="wander"), None, 12)
    shifts = view_shifts().numpy()
    moves = {pose.LEFT: 0, pose.RIGHT: 1}
    looked = 0
    for step in range(1, 13):
        move = moves.get(int(rollout.actions[step]))
        if move is None:
            continue
        looked += 1
        came = shifts[move] @ rollout.ids[step - 1]
        known = shifts[move].sum(1) > 0
        known[[tiles.AGENT_CELL]] = False
        np.testing.assert_array_equal(came[known], rollout.ids[step][known])
    assert looked


def test_an_adapter_begins_as_nothing() -> None:
    torch.manual_seed(1)
    fresh = DoubleLayer()
    features, dense = torch.rand(3, 256 + CHANGES), torch.randn(3, 128)
    expert = fresh.experts["hazard"]
    torch.testing.assert_close(expert.steps(features, dense)[:, :128], torch.relu(dense))
    torch.testing.assert_close(expert.steps(features, dense)[:, 128:], features[:, -CHANGES:])


def test_chances_of_pairs_are_those_of_normal_draws() -> None:
    mean = torch.tensor([[0.0, 1.0, 1.0, -2.0]])
    deviation = torch.tensor([[1.0, 1.0, 2.0, 0.5]])
    found = chance_of(Opinion(mean, deviation))[0]
    normal = torch.distributions.Normal(0.0, 1.0)
    for place, (a, b) in enumerate(PAIRS):
        z = (mean[0, a] - mean[0, b]) / (deviation[0, a].square() + deviation[0, b].square()).sqrt()
        torch.testing.assert_close(found[place], normal.cdf(z))


def test_with_noisy_labels_the_truth_is_still_what_costs_least() -> None:
    """Of 10 labels of one pair 7 say it is so: the loss is least where the chance is 1, not where it is 0.7."""
    labels = torch.full((10, len(PAIRS)), float("nan"))
    labels[:7, 0], labels[7:, 0] = 1.0, 0.0

    def loss(gap: float) -> float:
        mean = torch.tensor([[gap, 0.0, 0.0, 0.0]]).expand(10, -1)
        return float(pair_loss(Opinion(mean, torch.ones_like(mean)), labels, 0.3))

    assert loss(6.0) < loss(0.75) < loss(-1.0)
    plain = torch.tensor([[6.0, 0.0, 0.0, 0.0]]).expand(10, -1)
    assert float(pair_loss(Opinion(plain, torch.ones_like(plain)), labels, 0.0)) > loss(6.0)


def test_labels_are_wrong_as_often_as_they_are_to_be_and_the_same_each_time(groups: list[Group]) -> None:
    many = groups * 60
    clean, noisy = labels_of(many, 0.0, 0), labels_of(many, 0.3, 0)
    told = (clean.dimensions == 0) | (clean.dimensions == 1)
    assert (noisy.dimensions[told] != clean.dimensions[told]).mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(noisy.dimensions, labels_of(many, 0.3, 0).dimensions)
    assert ((clean.dimensions == 0.5) == (noisy.dimensions == 0.5)).all()
    truth = np.array([[each.truth for each in group.candidates] for group in groups])
    assert (np.isnan(truth).any(1) <= np.isnan(clean.dimensions[: len(groups)]).any(1)).all()


def test_a_router_learns_from_wrong_labels_what_is_right() -> None:
    truth = torch.zeros(1, len(CATEGORY_NAMES) + 1)
    truth[0, 2] = 1.0
    said = _said(truth, 0.3)[0]
    assert float(said[2]) == pytest.approx(0.7, abs=1e-3)
    assert float(said[:-1].sum()) == pytest.approx(1.0, abs=1e-3)
    assert float(said[-1]) < 1e-4


@pytest.mark.parametrize("shape", [DoubleLayer, OneExpert, Dense])
def test_every_shape_learns_from_the_same_batches(shape: type, groups: list[Group]) -> None:
    torch.manual_seed(0)
    network = shape()
    labels = labels_of(groups, 0.3, 0)
    rows = batches(groups, 1, np.random.default_rng(0))[0]
    given = batch(groups, labels, rows, np.random.default_rng(0))
    loss = loss_of(network(given.frames, given.actions, given.words), given, 0.3)
    loss.backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert not silent
    assert torch.isfinite(loss)


def test_a_step_at_a_time_is_what_the_whole_clip_is(model: DoubleLayer, groups: list[Group], tmp_path: Path) -> None:
    write_graphs(model, Router(model.trunk.config), tmp_path)
    write_expert(model.experts["progress"], tmp_path / "progress.onnx", "{}", "worldtree")
    trunk, expert = (ort.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("trunk", "progress"))
    group = groups[0]
    frames, actions = clips([group])
    words = word_ids([group.goal]).repeat_interleave(SIZE, dim=0)
    assert words.shape == (SIZE, MAX_WORDS)
    config = model.trunk.config
    before = np.zeros((SIZE, tiles.CELL_COUNT, config.width), np.float32)
    memory = np.zeros((SIZE, config.memory), np.float32)
    total = most = np.zeros((SIZE, config.dense + CHANGES), np.float32)
    mean = np.zeros(SIZE, np.float32)
    for step in range(frames.shape[1]):
        before, memory, features, dense = trunk.run(
            None,
            {
                "frames": frames[:, step].numpy(),
                "before": before,
                "actions": actions[:, step].numpy(),
                "words": words.numpy(),
                "memory": memory,
            },
        )
        count = np.full((SIZE, 1), step + 1, np.float32)
        total, most, mean, _ = expert.run(
            None, {"features": features, "dense": dense, "total": total, "most": most, "count": count}
        )
    whole = model(frames, actions, words).dimensions
    assert whole is not None
    np.testing.assert_allclose(mean, whole.mean[:, DIMENSION_NAMES.index("progress")].numpy(), atol=1e-3)


def test_groups_of_all_lengths_are_judged_in_their_order(model: DoubleLayer, groups: list[Group]) -> None:
    together = judge(model, groups)
    for row in (0, 3, 9):
        alone = judge(model, [groups[row]])
        np.testing.assert_allclose(together.whole[row], alone.whole[0], atol=1e-4)
        assert together.dimensions is not None
        assert alone.dimensions is not None
        np.testing.assert_allclose(together.dimensions[row], alone.dimensions[0], atol=1e-4)
