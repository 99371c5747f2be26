"""`worldtree merge` as a user runs it: a process of its own, against a real server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worldtree
from PIL import Image

COMMAND = [sys.executable, "-P", "-m", "worldtree.cli", "merge"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(echo: Any, tmp_path: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WORLDTREE_ADDRESS": echo.address, "NO_COLOR": "1", "COLUMNS": "160"}
        return subprocess.run(
            [*COMMAND, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def made(echo: Any) -> None:
    """A front, an average and a merge that is no sum."""
    with worldtree.Client(echo.address) as client:
        for name, method in (("front", "mm_mo"), ("mean", "average"), ("ties", "ties")):
            client.multitask.create_merge(method, name=name)


def image(first: int) -> np.ndarray:
    shown = np.zeros((4, 4, 3), np.uint8)
    shown[0, 0, 0] = first
    return shown


def test_tasks_and_methods_are_listed(run: Run) -> None:
    done = run("tasks")
    assert done.returncode == 0, done.stderr
    assert "none, open, closed" in done.stdout
    assert "90.0%" in done.stdout
    assert "image set calibration: 8 images" in done.stdout
    assert json.loads(run("tasks", "--json").stdout)["tasks"][1]["classes"] == ["none", "open", "closed"]
    done = run("methods")
    assert "density = 0.2" in done.stdout
    assert "immediate" in done.stdout
    assert [each["name"] for each in json.loads(run("methods", "--json").stdout)] == [
        "average",
        "ties",
        "slow",
        "mm_mo",
    ]


def test_a_merge_is_made_listed_shown_and_deleted(run: Run, echo: Any) -> None:
    assert "no merges yet" in run("list").stderr
    done = run("create", "average", "--name", "mine", "--set", "density=0.25", "--image-set", "calibration")
    assert done.returncode == 0, done.stderr
    assert "average (density=0.25)" in done.stdout
    request = echo.multitask.requests["CreateMerge"]
    assert (request.name, request.image_set, request.recipe.parameters["density"]) == ("mine", "calibration", 0.25)
    assert request.model.digest == "e" * 64, "what was looked up is what is merged"
    for text in ("mine", "average", "80.0%", "88.9%", "echo-tasks/1"):
        assert text in run("list").stdout
    shown = run("show", "mine").stdout
    for text in ("made of echoes", "front_object", "embed", "0.500", "of the expert"):
        assert text in shown
    (merge,) = json.loads(run("list", "--json").stdout)
    assert merge == json.loads(run("show", "mine", "--json").stdout)
    assert merge["coefficients"] == [[0.5, 0.5], [0.5, 0.5]]
    assert "deleted mine" in run("delete", "mine").stderr
    assert not echo.multitask.merges


@pytest.mark.usefixtures("made")
def test_a_front_is_tabulated(run: Run) -> None:
    done = run("pareto", "front")
    assert "front: 2 points, hypervolume 0.5000, 40 merges tried" in done.stdout
    assert "front.1" in done.stdout
    assert len(json.loads(run("pareto", "front", "--json").stdout)["points"]) == 2


@pytest.mark.usefixtures("made")
def test_pictures_of_a_front_and_of_coefficients_are_drawn(run: Run, tmp_path: Path) -> None:
    for arguments, file in (
        (("front",), "front.png"),
        (("front", "--preference", "door_state=1", "--out", "sub/marked.png"), "sub/marked.png"),
        (("front", "--what", "coefficients", "-o", "of_front.png"), "of_front.png"),
        (("mean", "-o", "mean.png"), "mean.png"),
    ):
        done = run("plot", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"wrote {file}"
        with Image.open(tmp_path / file) as picture:
            picture.load()
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert (tmp_path / "front.png").read_bytes() != (tmp_path / "sub/marked.png").read_bytes()


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plot", "front", "-o", "front.jpg"), "a picture of a merge is a .png, got 'front.jpg'"),
        (("plot", "front", "-p", "nonsense=1"), "--preference names nonsense; the tasks are front_object, door_state"),
        (("plot", "front", "-p", "1"), "one weight for each of front_object, door_state, got 1"),
        (("plot", "ties"), "method ties does more than to add experts"),
        (("show", "nonsense"), "no merge nonsense"),
        (("create", "average", "--set", "density"), "--set takes key=value, got 'density'"),
        (("create", "average", "--images", "empty"), "empty holds no image"),
        (("create", "average", "--images", "text.png"), "text.png is no image that can be read"),
        (("predict",), "give image files, or --world"),
        (("predict", "one.png", "--merge", "front", "--method", "ties"), "exclude one another"),
        (("predict", "one.png", "--preference", "front_object"), "--preference takes task=weight,task=weight"),
        (("predict", "one.png", "big.png"), "images must be of one size, got 4 x 4, 8 x 8 pixels"),
        (("predict", "floats.npy"), "floats.npy must be uint8 [n, height, width, 3], got float64 [2]"),
        (("predict", "one.png", "--set", "density=1"), "--set is of a --method"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(image(1)).save(tmp_path / "one.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "big.png")
    np.save(tmp_path / "floats.npy", np.zeros(2))
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("worldtree: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_images_to_learn_from_come_in_folders_of_tasks_or_arrays_with_labels(
    run: Run, echo: Any, tmp_path: Path
) -> None:
    def sent() -> list[tuple[str, int, list[int]]]:
        request = echo.multitask.requests["CreateMerge"]
        return [(each.task, each.images.tensor.shape[0], list(each.labels)) for each in request.images]

    for task, count in (("door_state", 2), ("front_object", 1)):
        (tmp_path / "by_task" / task).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(image(index)).save(tmp_path / "by_task" / task / f"{index}.png")
    assert run("create", "average", "--images", "by_task").returncode == 0
    assert sent() == [("door_state", 2, []), ("front_object", 1, [])]
    assert run("create", "average", "-i", "by_task/door_state", "-i", "by_task/front_object/0.png").returncode == 0
    assert sent() == [("", 3, [])]
    np.savez(
        tmp_path / "sets.npz", door_state=np.stack([image(0), image(2)]), **{"door_state.labels": np.array([0, 2])}
    )
    assert run("create", "average", "--images", "sets.npz").returncode == 0
    assert sent() == [("door_state", 2, [0, 2])]


def test_predictions_are_a_row_an_image(run: Run, echo: Any, tmp_path: Path) -> None:
    for first in range(2):
        Image.fromarray(image(first)).save(tmp_path / f"{first}.png")
    done = run("predict", "0.png", "1.png", "--preference", "front_object=0.7,door_state=0.3")
    assert done.returncode == 0, done.stderr
    assert "wall 90%" in done.stdout
    assert "echo-tasks/1, merge ffffffffffffffff: 2.0 ms in the network" in done.stdout
    assert list(echo.multitask.requests["Predict"].preference.tasks) == ["front_object", "door_state"]
    np.save(tmp_path / "many.npy", np.stack([image(0), image(1)]))
    report = json.loads(
        run("predict", "many.npy", "-t", "door_state", "--method", "ties", "-s", "density=0.5", "--json").stdout
    )
    assert [each["image"] for each in report["images"]] == ["many.npy[0]", "many.npy[1]"]
    assert [each["answers"]["door_state"]["label"] for each in report["images"]] == ["none", "open"]
    assert echo.multitask.requests["Predict"].recipe.parameters["density"] == 0.5


def test_predictions_are_made_on_generated_frames_of_a_world(run: Run) -> None:
    done = run("predict", "--world", "echo", "--actions", "forward*2,left", "--json")
    assert done.returncode == 0, done.stderr
    assert [each["image"] for each in json.loads(done.stdout)["images"]] == ["1 forward", "2 forward", "3 left"]


def test_ctrl_c_ends_the_making_and_leaves_nothing(echo: Any) -> None:
    environment = {**os.environ, "WORLDTREE_ADDRESS": echo.address}
    with subprocess.Popen(
        [*COMMAND, "create", "slow", "--name", "mine"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert echo.multitask.begun.wait(30)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert echo.multitask.cancelled.wait(5)
    assert not echo.multitask.merges
