"""The losses of few-step distillation and the sessions that they are taken in, on the real teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra")

from training.minigrid import distill, matching, pose  # noqa: E402
from training.minigrid.data import pack, record  # noqa: E402
from training.minigrid.distill import Distillation, learner  # noqa: E402
from training.minigrid.model import QUALITY_BOUNDS, WorldModel, gather_past  # noqa: E402
from training.minigrid.rollout import Crops, gaps, open_sessions, seeds  # noqa: E402
from training.minigrid.states import load_state, save_state  # noqa: E402

ROOT = Path(__file__).parents[3]
TEACHER = ROOT / "training/minigrid/weights/teacher.npz"


@pytest.fixture(scope="module")
def teacher() -> WorldModel:
    torch.set_num_threads(1)
    return load_state(TEACHER)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.npz"
    np.savez_compressed(path, **pack([record("MiniGrid-FourRooms-v0", seed, length=30) for seed in range(4)]))
    return path


@pytest.fixture(scope="module")
def crop(recorded: Path) -> tuple[torch.Tensor, torch.Tensor]:
    rng, _ = seeds(0, 0)
    ids, actions, _ = Crops(recorded, length=12).draw(rng, 2, new_from=8, window=8)
    return ids, actions


def test_sessions_show_what_teacher_forcing_shows(
    teacher: WorldModel, recorded: Path, crop: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, actions = crop
    sessions = open_sessions(teacher, ids, actions, 8)
    everything = torch.ones(2, 8, dtype=torch.bool)
    x, t = torch.randn(2, 49, 192), torch.tensor([0.6, 1.0])
    served = teacher.denoise(x, t, actions[:, 8], sessions.pasts((teacher,), actions[:, 8], everything)[0])
    places = [(0, 0, 0)] * 2
    poses = torch.zeros(2, 9, 3, dtype=torch.int64)
    for k in range(1, 9):
        can_move = teacher.move_logit(teacher.codebook[ids[:, k - 1]]) > 0
        places = [
            pose.step_pose(here, int(actions[row, k]), can_move=bool(can_move[row])) for row, here in enumerate(places)
        ]
        poses[:, k] = torch.tensor(places)
    chosen = torch.tensor([8, 9 + 8])
    past = gather_past(teacher, teacher.codebook[ids[:, :9]], poses, chosen)
    forced = teacher.denoise(x, t, actions[:, 8], past)
    assert torch.allclose(served, forced, atol=1e-3)


def test_two_updates_along_one_answer_end_where_one_does() -> None:
    x, x0 = torch.randn(3, 49, 192), torch.randn(3, 49, 192)
    high, middle, low = (torch.full((3,), t) for t in (0.9, 0.5, 0.2))
    two = matching.euler(matching.euler(x, x0, high, middle), x0, middle, low)
    assert torch.allclose(two, matching.euler(x, x0, high, low), atol=1e-6)


def test_answers_that_agree_along_the_path_have_no_gradient_left(teacher: WorldModel) -> None:
    logits = torch.randn(2, 49, 60, requires_grad=True)
    matching.soft_cross_entropy(logits, logits.detach().softmax(-1)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7


def test_a_critic_that_says_what_the_teacher_says_moves_nothing(
    teacher: WorldModel, crop: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, actions = crop
    sessions = open_sessions(teacher, ids, actions, 8)
    _, generator = seeds(0, 1)
    past, other = sessions.pasts((teacher, teacher), actions[:, 8], gaps(2, 8, generator))
    logits = torch.randn(2, 49, 60, requires_grad=True)
    loss, apart = matching.matching_loss(logits, teacher, teacher, actions[:, 8], (past, other), generator)
    loss.backward()
    assert logits.grad is not None
    assert apart == 0.0
    assert not logits.grad.any()


def test_given_frames_are_read_as_if_there_were_no_quality() -> None:
    model = load_state(TEACHER)
    for table in (model.quality_key, model.quality_value, model.quality_bias):
        table.copy_(torch.arange(1.0, 4.0).reshape(1, 3, *(1,) * (table.ndim - 2)).expand_as(table))
    evaluations = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 8]])
    for marks in model.quality_marks(1, evaluations):
        found = marks.reshape(8, -1)[:, 0].tolist()
        assert found == [0, 1, 2, 3, 3, 3, 3, 3]
    assert len(QUALITY_BOUNDS) == model.quality_key.shape[1]


@pytest.mark.parametrize("method", ["pairs", "dmd", "sc-dmd", "salt"])
def test_an_update_changes_the_student_and_never_the_teacher(
    method: str, crop: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, actions = crop
    frozen = load_state(TEACHER)
    learners = [learner(load_state(TEACHER), lr=(1e-3, 1e-4)) for _ in range(2)]
    job = Distillation(method, frozen, *learners)  # type: ignore[arg-type]
    _, generator = seeds(0, 2)
    everything = torch.ones_like(ids[:, :10], dtype=torch.bool)
    found = job.rollout(ids[:, :10], actions[:, :10], everything, 8, 1.0, generator)
    assert len(found["nfe"]) == 2
    before = load_state(TEACHER).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in learners[0].model.state_dict().items())
    marked = any(p.any() for name, p in learners[0].model.named_parameters() if "quality" in name)
    assert marked == (method == "salt")


def test_a_run_that_was_cut_short_ends_with_the_same_weights(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "SESSIONS", 2)
    monkeypatch.setattr(distill, "CHUNKS", 1)
    models = []
    for name, stops in (("whole", (2,)), ("cut", (1, 2))):
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            model = distill.run("pairs", recorded, folder, 0, stop, of=2)
        models.append(model)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_parameters_come_back_by_name_and_strangers_are_refused(teacher: WorldModel, tmp_path: Path) -> None:
    save_state(teacher, tmp_path / "same.npz")
    again = load_state(tmp_path / "same.npz").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in teacher.state_dict().items())
    np.savez(tmp_path / "other.npz", stranger=np.zeros(3))
    with pytest.raises(ValueError, match="has no"):
        load_state(tmp_path / "other.npz")
