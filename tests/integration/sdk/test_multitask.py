"""`client.multitask`, one test body for both clients, over a real socket."""

import asyncio
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import worldtree
import worldtree.aio
from PIL import Image
from worldtree.multitask_client import MultiTask


class Awaited:
    """The synchronous service, awaited, so that one body serves both."""

    def __init__(self, inner: MultiTask) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        async def call(*given: Any, **named: Any) -> Any:
            return await asyncio.to_thread(getattr(self._inner, name), *given, **named)

        return call


@pytest.fixture(params=["sync", "asyncio"])
async def multitask(request: pytest.FixtureRequest, echo: Any) -> AsyncIterator[Any]:
    if request.param == "sync":
        with worldtree.Client(echo.address) as client:
            yield Awaited(client.multitask)
    else:
        async with worldtree.aio.Client(echo.address) as client:
            yield client.multitask


def images(*first: int) -> np.ndarray:
    shown = np.zeros((len(first), 4, 4, 3), np.uint8)
    shown[:, 0, 0, 0] = first
    return shown


def png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


async def test_tasks_tell_what_can_be_asked_and_how_experts_are_merged(multitask: Any) -> None:
    model = await multitask.tasks()
    assert (model.name, model.version, model.height_px, model.layers) == ("echo-tasks", "1", 4, ("embed", "read"))
    assert [(task.name, task.classes) for task in model.tasks] == [
        ("front_object", ("empty", "wall")), ("door_state", ("none", "open", "closed")),
    ]  # fmt: skip
    assert model.tasks[0].expert_score == pytest.approx(0.9)
    assert [(method.name, method.immediate, method.needs) for method in model.methods][1:3] == [
        ("ties", True, "nothing"), ("slow", False, "images"),
    ]  # fmt: skip
    assert model.methods[1].parameters["properties"]["density"]["default"] == 0.2
    assert model.image_sets == (worldtree.ImageSet("calibration", "", 8, labeled=False),)


async def test_an_answer_is_a_mapping_by_task_with_classes_by_name(multitask: Any, echo: Any) -> None:
    answer = await multitask.predict(images(0, 1, 2), merge={"front_object": 0.7, "door_state": 0.3})
    assert list(answer) == ["front_object", "door_state"]
    assert len(answer) == 2
    assert answer["front_object"].labels == ["empty", "wall", "empty"]
    assert answer["door_state"].labels == ["none", "open", "closed"]
    assert answer["door_state"].class_ids.tolist() == [0, 1, 2]
    assert answer["door_state"].probabilities.shape == (3, 3)
    assert answer["door_state"].confidence == pytest.approx([0.9] * 3)
    assert (answer.merge_digest, answer.timing.batch_size, answer.cached) == ("f" * 64, 3, False)
    assert answer.timing.run_s == pytest.approx(0.002)
    with pytest.raises(KeyError):
        answer["no_task"]
    await multitask.predict(images(1))
    assert echo.multitask.calls["ListTasks"] == 1, "the names of a model's classes are asked for once"


async def test_a_gateway_that_had_the_answer_is_told(multitask: Any, echo: Any) -> None:
    echo.multitask.hits = True
    assert (await multitask.predict(images(1))).cached


async def test_a_model_that_is_gone_leaves_the_class_ids(multitask: Any, echo: Any) -> None:
    echo.multitask.gone = True
    answer = await multitask.predict(images(1))
    assert answer["front_object"].labels == ["1"]


@pytest.mark.parametrize(
    "shown",
    [
        images(1)[0],
        images(1),
        [images(1)[0]],
        [images(1)],
        png(images(1)[0]),
        [png(images(1)[0])],
        Image.fromarray(images(1)[0]),
        [Image.fromarray(images(1)[0]).convert("RGBA")],
    ],
    ids=["image", "batch", "list of images", "list of chunks", "png", "list of png", "pil", "list of pil"],
)
async def test_images_may_be_pixels_files_or_pictures(multitask: Any, shown: Any) -> None:
    answer = await multitask.predict(shown, tasks="front_object")
    assert list(answer) == ["front_object"]
    assert answer["front_object"].labels == ["wall"]


async def test_chunks_of_frames_follow_one_another(multitask: Any) -> None:
    answer = await multitask.predict([images(0, 1), images(1)[0], images(0)], tasks=["front_object"])
    assert answer["front_object"].labels == ["empty", "wall", "wall", "empty"]


async def test_the_merge_that_answers_is_said_in_any_of_its_forms(multitask: Any, echo: Any) -> None:
    made = await multitask.create_merge("mm_mo", name="front")
    front = await multitask.pareto_front(made)
    echo.multitask.merges["front.0"] = echo.multitask.merges["front"]

    async def asked(merge: Any) -> Any:
        await multitask.predict(images(1), merge=merge)
        return echo.multitask.requests["Predict"]

    assert (await asked("front")).name == (await asked(made)).name == "front"
    assert (await asked(front.points[0])).name == "front.0"
    assert (await asked(None)).WhichOneof("merge") is None
    by_task = (await asked({"door_state": 3})).preference
    assert (list(by_task.tasks), list(by_task.weights)) == (["door_state"], [3.0])
    for row in ([1, 2], (1.0, 2.0), np.array([1, 2])):
        in_order = (await asked(row)).preference
        assert (list(in_order.tasks), list(in_order.weights)) == ([], [1.0, 2.0])
    recipe = (await asked(worldtree.Recipe("ties", density=np.float32(0.25), experts=("door_state",)))).recipe
    assert (recipe.method, dict(recipe.parameters)) == (
        "ties", {"density": 0.25, "experts": recipe.parameters["experts"]},
    )  # fmt: skip
    assert list(recipe.parameters["experts"]) == ["door_state"]


async def test_a_merge_comes_with_its_card_and_tells_its_progress(multitask: Any) -> None:
    told: list[worldtree.MergeProgress] = []
    made = await multitask.create_merge("mm_mo", name="front", progress=told.append, budget=40)
    assert [(each.phase, each.done, each.total, each.objective) for each in told] == [
        ("searching", 0, 3, 3.0), ("searching", 1, 3, 2.0), ("searching", 2, 3, 1.0),
    ]  # fmt: skip
    assert (made.name, made.model, made.front_point_count, made.front) == ("front", "echo-tasks", 2, None)
    assert made.recipe == worldtree.Recipe("mm_mo", budget=40)
    assert made.coefficients is not None
    assert made.coefficients.shape == (len(made.layers), len(made.experts)) == (2, 2)
    assert made.scores[0] == worldtree.TaskScore("front_object", *map(np.float32, (0.8, 0.9, 0.5)))
    assert made.notes == ("made of echoes",)
    assert made == await multitask.merge("front") == (await multitask.merges())[0]
    told.clear()
    ties = await multitask.create_merge(worldtree.Recipe("ties", density=0.3), progress=told.append)
    assert {each.objective for each in told} == {None}
    assert ties.coefficients is None
    assert ties.name.startswith("ties-")
    assert [each.name for each in await multitask.merges()] == ["front", ties.name]
    await multitask.delete_merge(made)
    assert [each.name for each in await multitask.merges()] == [ties.name]
    with pytest.raises(worldtree.NotFound):
        await multitask.merge("front")


async def test_a_merge_learns_from_the_callers_images(multitask: Any, echo: Any) -> None:
    def sent() -> list[tuple[str, int, list[int]]]:
        request = echo.multitask.requests["CreateMerge"]
        return [(each.task, each.images.tensor.shape[0], list(each.labels)) for each in request.images]

    await multitask.create_merge("average", images=images(1, 2))
    assert sent() == [("", 2, [])]
    await multitask.create_merge("average", images={"front_object": images(1), "door_state": images(1, 2)})
    assert sent() == [("front_object", 1, []), ("door_state", 2, [])]
    await multitask.create_merge("average", images={"door_state": images(1, 2)}, labels=np.array([1, 2]))
    assert sent() == [("door_state", 2, [1, 2])]
    shown = {"front_object": images(1), "door_state": images(1, 2)}
    await multitask.create_merge("average", images=shown, labels={"front_object": [1]}, image_set="calibration")
    assert sent() == [("front_object", 1, [1]), ("door_state", 2, [])]
    assert echo.multitask.requests["CreateMerge"].image_set == "calibration"


async def test_a_front_tells_its_points(multitask: Any) -> None:
    await multitask.create_merge("mm_mo", name="front")
    front = await multitask.pareto_front("front")
    assert (front.name, front.hypervolume, front.evaluation_count) == ("front", 0.5, 40)
    assert [(point.merge, point.preference, round(point.mean_score, 3)) for point in front.points] == [
        ("front.0", (0.75, 0.25), 0.65), ("front.1", (0.25, 0.75), 0.55),
    ]  # fmt: skip


async def test_calls_that_read_and_the_making_of_a_merge_are_repeated_and_a_deletion_is_not(
    multitask: Any, echo: Any
) -> None:
    await multitask.create_merge("average", name="first")
    for method in ("Predict", "ListTasks", "CreateMerge", "GetMerge", "ListMerges", "DeleteMerge"):
        echo.multitask.failing[method] = 1
    await multitask.predict(images(1), merge="first")
    await multitask.create_merge("average", name="first")
    await multitask.merge("first")
    await multitask.merges()
    assert echo.multitask.calls["Predict"] == echo.multitask.calls["GetMerge"] == 2
    with pytest.raises(worldtree.Unavailable):
        await multitask.delete_merge("first")
    assert echo.multitask.calls["DeleteMerge"] == 1


async def test_an_exception_of_the_progress_ends_the_making_on_the_server(multitask: Any, echo: Any) -> None:
    def stop(progress: worldtree.MergeProgress) -> None:
        raise InterruptedError(progress.phase)

    with pytest.raises(InterruptedError, match="searching"):
        await multitask.create_merge("slow", progress=stop)
    assert await asyncio.to_thread(echo.multitask.cancelled.wait, 20)
    assert not echo.multitask.merges


async def test_cancelling_the_task_ends_the_making_on_the_server(echo: Any) -> None:
    async with worldtree.aio.Client(echo.address) as client:
        making = asyncio.create_task(client.multitask.create_merge("slow"))
        assert await asyncio.to_thread(echo.multitask.begun.wait, 5)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    assert await asyncio.to_thread(echo.multitask.cancelled.wait, 20)


def test_threads_may_share_one(echo: Any) -> None:
    with worldtree.Client(echo.address) as client:
        labels: list[list[str]] = []
        threads = [
            threading.Thread(
                target=lambda: labels.append(
                    client.multitask.predict(images(1), tasks="front_object")["front_object"].labels
                )
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert labels == [["wall"]] * 8


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"images": []}, "images"),
        ({"images": [images(1)[0], png(images(1)[0])]}, "images"),
        ({"images": [images(1)[0], np.zeros((5, 5, 3), np.uint8)]}, "images"),
        ({"images": np.zeros((4, 4, 3), np.complex64)}, "images"),
        ({"images": images(1), "merge": ""}, "merge"),
        ({"images": images(1), "merge": []}, "merge"),
        ({"images": images(1), "merge": 0.5}, "merge"),
        ({"images": images(1), "merge": {"door_state": "much"}}, "preference.door_state"),
        ({"images": images(1), "merge": [1, "much"]}, "preference[1]"),
        ({"images": images(1), "merge": worldtree.Recipe("ties", density={1})}, "recipe.parameters.density"),
        ({"images": images(1), "merge": worldtree.Recipe("ties", density=float("nan"))}, "recipe.parameters.density"),
    ],
    ids=[
        "no image", "files and pixels", "two sizes", "no pixels", "no name", "no weight", "no merge",
        "no number by task", "no number in order", "no JSON", "not finite",
    ],
)  # fmt: skip
async def test_what_the_wire_cannot_carry_is_refused_before_it_is_sent(
    multitask: Any, echo: Any, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(worldtree.InvalidRequest) as refused:
        await multitask.predict(**arguments)
    assert refused.value.field == field
    assert not echo.multitask.calls


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": [1]},
        {"images": images(1), "labels": [1]},
        {"images": {"door_state": images(1), "front_object": images(1)}, "labels": [1]},
        {"images": {"door_state": images(1)}, "labels": {"front_object": [1]}},
    ],
    ids=["no images", "no task", "two tasks", "another task"],
)
async def test_labels_without_their_images_are_refused(multitask: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(worldtree.InvalidRequest) as refused:
        await multitask.create_merge("average", **arguments)
    assert refused.value.field == "labels"
