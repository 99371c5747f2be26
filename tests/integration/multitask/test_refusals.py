"""Bad requests name field, value and limit, and change nothing."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_experts import TinyExperts

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def parameters(**values: Any) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


@pytest.mark.parametrize(
    ("weights", "tasks", "said"),
    [
        ([0.5, 0.5], [], "must be 3"),
        ([0.5, 0.5], ["hue"], "must be one a named task, 1, got 2"),
        ([1, -0.1, 1], [], r"preference.weights\[1\] must be finite and 0 or more, got -0.1"),
        ([0, 0, 0], [], "must not all be 0"),
        ([1, math.nan, 1], [], r"preference.weights\[1\] must be finite"),
        ([1, math.inf, 1], [], r"preference.weights\[1\] must be finite"),
        ([1], ["taste"], "'taste'"),
        ([1, 1], ["hue", "hue"], "twice"),
        ([], [], "must be 3"),
    ],
)
async def test_a_preference_that_is_none(
    service: Any, tools: Any, weights: list[float], tasks: list[str], said: str
) -> None:
    refusal = await tools.refused(service.predict(preference=pb.Preference(weights=weights, tasks=tasks)))
    assert refusal.code is INVALID
    assert refusal.field == "preference.weights"
    assert re.search(said, refusal.message), refusal.message


FRAMES: dict[str, tuple[Callable[[Any], common.Frames], str, str]] = {
    "too small": (lambda tools: tools.images(1, 7), "images.tensor.shape", "[frames, 8, 8, 3]"),
    "none": (lambda tools: tools.images(0), "images", "1 to 256 images, got 0"),
    "too many": (lambda tools: tools.images(257), "images", "1 to 256 images, got 257"),
    "nothing": (lambda tools: common.Frames(), "images", "exactly one of tensor and png"),
    "a bomb": (lambda tools: common.Frames(png=[tools.bomb()]), "images.png[0]", "at most 1048576 pixels"),
    "no png": (lambda tools: common.Frames(png=[b"GIF89a"]), "images.png[0]", "must be a PNG"),
    "floats": (
        lambda tools: common.Frames(tensor=common.Tensor(dtype=common.Tensor.D_TYPE_FLOAT32, shape=[1, 8, 8, 3])),
        "images.tensor.dtype",
        "must be D_TYPE_UINT8, got D_TYPE_FLOAT32",
    ),
    "cut short": (
        lambda tools: common.Frames(
            tensor=common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=[1, 8, 8, 3], data=b"short")
        ),
        "images.tensor.data",
        "192 bytes",
    ),
}


@pytest.mark.parametrize("case", FRAMES)
async def test_images_that_are_none(service: Any, tools: Any, case: str) -> None:
    make, field, said = FRAMES[case]
    refusal = await tools.refused(service.stub.Predict(pb.PredictRequest(images=make(tools))))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert said in refusal.message


@pytest.mark.parametrize(
    ("request_of", "code", "said"),
    [
        (lambda t: pb.PredictRequest(images=t.images(), tasks=["taste"]), NOT_FOUND, 'task "taste" not found'),
        (lambda t: pb.PredictRequest(images=t.images(), tasks=["hue", "hue"]), INVALID, "once"),
        (lambda t: pb.PredictRequest(images=t.images(), name="none"), NOT_FOUND, 'merge "none" not found'),
        (
            lambda t: pb.PredictRequest(images=t.images(), model=common.ModelRef(name="other")),
            NOT_FOUND,
            'model "other" not found',
        ),
        (
            lambda t: pb.PredictRequest(images=t.images(), recipe=pb.Recipe(method="magic")),
            NOT_FOUND,
            'method "magic" not found',
        ),
        (lambda t: pb.PredictRequest(images=t.images(), recipe=pb.Recipe()), INVALID, "must name a method"),
        (
            lambda t: pb.PredictRequest(images=t.images(), recipe=pb.Recipe(method="adamerging")),
            INVALID,
            "CreateMerge",
        ),
        (
            lambda t: pb.PredictRequest(
                images=t.images(), recipe=pb.Recipe(method="task_arithmetic", parameters=parameters(scale=9))
            ),
            INVALID,
            "recipe.parameters.scale",
        ),
        (
            lambda t: pb.PredictRequest(
                images=t.images(), recipe=pb.Recipe(method="task_arithmetic", parameters=parameters(scale=math.nan))
            ),
            INVALID,
            "must hold finite numbers",
        ),
        (
            lambda t: pb.PredictRequest(
                images=t.images(), recipe=pb.Recipe(method="task_arithmetic", parameters=parameters(size=1))
            ),
            INVALID,
            "recipe.parameters.size",
        ),
        (
            lambda t: pb.PredictRequest(
                images=t.images(), recipe=pb.Recipe(method="expert", parameters=parameters(expert="taste"))
            ),
            INVALID,
            "'taste'",
        ),
    ],
)
async def test_a_prediction_of_what_is_not_there(
    service: Any, tools: Any, request_of: Any, code: grpc.StatusCode, said: str
) -> None:
    refusal = await tools.refused(service.stub.Predict(request_of(tools)))
    assert refusal.code is code
    assert said in refusal.message


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"name": "No Spaces"}, INVALID, "name must be 1 to 64"),
        ({"image_set": "holidays"}, NOT_FOUND, 'image set "holidays" not found'),
        ({"image_set": "scoring", "images": [pb.TaskImages()]}, INVALID, "must not both be set"),
        ({"images": [pb.TaskImages(task="taste")]}, NOT_FOUND, 'task "taste" not found'),
        ({"images": [pb.TaskImages(task="hue")]}, INVALID, "images[0].images must set exactly one"),
    ],
)
async def test_a_merge_that_cannot_be_made(
    service: Any, tools: Any, more: dict[str, Any], code: grpc.StatusCode, said: str
) -> None:
    request = pb.CreateMergeRequest(recipe=pb.Recipe(method="average"), **more)
    refusal = await tools.refused(service.stub.CreateMerge(request))
    assert refusal.code is code
    assert said in refusal.message
    assert not (await service.stub.ListMerges(pb.ListMergesRequest())).merges


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("", [0, 1], "images[0].task must be set where labels are"),
        ("hue", [0], "images[0].labels must be 2, one an image, got 1"),
        ("hue", [0, 3], "images[0].labels[1] must be a class 0 to 2, got 3"),
        ("hue", [-1, 0], "images[0].labels[0] must be a class 0 to 2, got -1"),
    ],
)
async def test_labels_that_fit_no_images(service: Any, tools: Any, task: str, labels: list[int], said: str) -> None:
    own = pb.TaskImages(task=task, images=tools.images(2), labels=labels)
    recipe = pb.Recipe(method="scalearn", parameters=parameters(target="hue"))
    refusal = await tools.refused(service.stub.CreateMerge(pb.CreateMergeRequest(recipe=recipe, images=[own])))
    assert refusal.code is INVALID
    assert said in refusal.message


async def test_parameters_that_do_not_go_together(service: Any, tools: Any) -> None:
    recipe = pb.Recipe(method="adamerging", parameters=parameters(objective="entropy", optimizer="gauss_newton"))
    refusal = await tools.refused(service.stub.CreateMerge(pb.CreateMergeRequest(recipe=recipe)))
    assert (refusal.code, refusal.field) == (INVALID, "recipe.parameters")
    assert refusal.message == (
        "recipe.parameters: optimizer must be gradient or evolution for objective entropy, got gauss_newton: "
        "it needs objective distill"
    )


async def test_more_images_to_learn_from_than_are_taken(serve: Any, tools: Any) -> None:
    service = await serve(max_learning_images=3)
    own = [pb.TaskImages(task=task, images=tools.images(2)) for task in ("hue", "side")]
    request = pb.CreateMergeRequest(recipe=pb.Recipe(method="average"), images=own)
    refusal = await tools.refused(service.stub.CreateMerge(request))
    assert (refusal.code, refusal.field) == (INVALID, "images[1].images")


async def test_what_is_no_page_no_front_and_no_merge(service: Any, tools: Any) -> None:
    await service.create("average", name="plain")
    for request in (pb.ListMergesRequest(page_size=1001), pb.ListMergesRequest(page_token="next")):
        assert (await tools.refused(service.stub.ListMerges(request))).code is INVALID
    front = await tools.refused(service.stub.ParetoFront(pb.ParetoFrontRequest(name="plain")))
    assert (front.code, front.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_A_FRONT")
    for call in (
        service.stub.ParetoFront(pb.ParetoFrontRequest(name="none")),
        service.stub.GetMerge(pb.GetMergeRequest(name="none")),
        service.stub.DeleteMerge(pb.DeleteMergeRequest(name="none")),
    ):
        refusal = await tools.refused(call)
        assert (refusal.code, refusal.reason) == (NOT_FOUND, "MERGE_NOT_FOUND")
        assert "plain" in refusal.message


async def test_a_corrupt_task_vector_is_named_and_keeps_no_other_model_from_being_served(
    serve: Any, models: Path
) -> None:
    broken = TinyExperts(name="broken").write(models) / "experts/hue.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    service = await serve()
    assert [each.stored.name for each in service.catalog] == ["tiny-experts"]
    (models / "tiny-experts").rename(models.parent / "gone")
    with pytest.raises(PackageError, match=r"hue\.safetensors: tasks\.hue\.expert: must be a readable safetensors"):
        async with serve_multitask(MultitaskSettings(port=0, metrics_port=0, models=str(models))):
            pass


async def test_a_repository_without_experts_is_served_and_says_so(serve: Any, tools: Any, tmp_path: Path) -> None:
    TinyWorld().write(tmp_path / "worlds")
    service = await serve(models=str(tmp_path / "worlds"))
    refusal = await tools.refused(service.stub.ListTasks(pb.ListTasksRequest()))
    assert refusal.code is NOT_FOUND
    assert str(tmp_path / "worlds") in refusal.message
