"""Merges made, named, predicted with, deleted; each once for all who ask for it."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree_runtime.testing_experts import TinyExperts

ALL = ("hue", "bright", "side")


def slow() -> pb.Recipe:
    """A recipe that takes seconds: many small steps."""
    parameters = Struct()
    parameters.update({"objective": "infomax", "optimizer": "gradient", "steps": 500})
    return pb.Recipe(method="adamerging", parameters=parameters)


def probabilities(answer: pb.PredictResponse) -> dict[str, bytes]:
    return {each.task: each.probabilities.data for each in answer.predictions}


async def test_tasks_methods_and_sets_are_told(service: Any) -> None:
    told = await service.stub.ListTasks(pb.ListTasksRequest())
    assert [task.name for task in told.tasks] == list(ALL)
    assert [task.expert_score for task in told.tasks] == [1.0, 1.0, 1.0]
    assert all(task.base_score <= 0.5 for task in told.tasks)
    assert {"average", "ties", "adamerging", "fw_merging", "mm_mo", "scalearn"} <= {each.name for each in told.methods}
    assert [(each.name, each.image_count, each.labeled) for each in told.image_sets] == [
        ("calibration", 72, False),
        ("scoring", 72, True),
    ]


async def test_an_expert_answers_its_task_and_a_preference_for_it_does(service: Any) -> None:
    scoring = service.catalog.get().contents.image_sets["scoring"]
    for index, task in enumerate(ALL):
        message = _frames(scoring.images[task])
        expert = Struct()
        expert.update({"expert": task})
        weights = [float(index == each) for each in range(3)]
        for more in (
            {"recipe": pb.Recipe(method="expert", parameters=expert)},
            {"preference": pb.Preference(weights=weights)},
            {"preference": pb.Preference(weights=[2.0], tasks=[task])},
        ):
            answer = await service.predict(message, tasks=[task], **more)
            assert list(answer.predictions[0].class_ids) == scoring.labels[task].tolist()


async def test_probabilities_have_a_row_an_image_that_sums_to_1(service: Any, tools: Any) -> None:
    answer = await service.predict(tools.images(5))
    assert [each.task for each in answer.predictions] == list(ALL)
    for each in answer.predictions:
        rows = np.frombuffer(each.probabilities.data, "<f4").reshape(each.probabilities.shape)
        assert len(rows) == 5
        assert np.allclose(rows.sum(axis=1), 1)
        assert rows.argmax(axis=1).tolist() == list(each.class_ids)


async def test_the_card_says_each_tasks_score_against_its_expert_and_the_base(service: Any) -> None:
    merge = await service.create("task_arithmetic", name="plain")
    assert merge.name == "plain"
    assert {each.task: each.expert_score for each in merge.scores} == dict.fromkeys(ALL, 1.0)
    assert merge.mean_score == pytest.approx(np.mean([each.score for each in merge.scores]))
    assert merge.kept_share == pytest.approx(merge.mean_score)
    assert merge.recipe.parameters["scale"] == pytest.approx(0.3)
    assert list(merge.coefficients.experts) == list(ALL)
    values = np.frombuffer(merge.coefficients.values.data, "<f4")
    assert np.allclose(values, 0.3)
    assert (await service.stub.GetMerge(pb.GetMergeRequest(name="plain"))).merge == merge


async def test_a_merge_worse_than_the_base_says_so(service: Any) -> None:
    parameters = Struct()
    parameters.update({"scale": -1.0})
    request = pb.CreateMergeRequest(recipe=pb.Recipe(method="task_arithmetic", parameters=parameters))
    *_, last = [each async for each in service.stub.CreateMerge(request)]
    merge = last.merge
    base = np.mean([each.base_score for each in merge.scores])
    assert merge.worse_than_base == (merge.mean_score < base)
    assert bool([note for note in merge.notes if "worse than the base" in note]) == merge.worse_than_base
    assert merge.name == f"task_arithmetic-{merge.digest[:8]}"


async def test_a_merge_predicts_by_its_name_what_its_recipe_does(service: Any, tools: Any) -> None:
    recipe = pb.Recipe(method="ties")
    await service.create("ties", name="signs")
    frames = tools.images(7)
    named = await service.predict(frames, name="signs")
    made = await service.predict(frames, recipe=recipe)
    assert named.merge_digest == made.merge_digest
    assert probabilities(named) == probabilities(made)
    assert not made.timing.merge_duration.ToNanoseconds() > named.timing.merge_duration.ToNanoseconds() + 10**9


async def test_a_name_stands_for_one_content_also_after_it_is_deleted(service: Any, tools: Any) -> None:
    first = await service.create("average", name="mine")
    assert (await service.create("average", name="mine")).create_time == first.create_time
    taken = pb.CreateMergeRequest(recipe=pb.Recipe(method="ties"), name="mine")
    assert (await tools.refused(service.stub.CreateMerge(taken))).reason == "MERGE_NAME_TAKEN"
    await service.stub.DeleteMerge(pb.DeleteMergeRequest(name="mine"))
    assert (await tools.refused(service.predict(name="mine"))).reason == "MERGE_NOT_FOUND"
    refusal = await tools.refused(service.stub.CreateMerge(taken))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "MERGE_NAME_TAKEN")
    assert "1200 s" in refusal.message
    assert (await service.create("average", name="mine")).digest == first.digest


async def test_a_name_is_free_again_after_a_while(serve: Any) -> None:
    service = await serve(name_reuse_s=0.05)
    await service.create("average", name="mine")
    await service.stub.DeleteMerge(pb.DeleteMergeRequest(name="mine"))
    await asyncio.sleep(0.1)
    assert (await service.create("ties", name="mine")).recipe.method == "ties"


async def test_no_more_merges_get_a_name_than_are_allowed(serve: Any, tools: Any) -> None:
    service = await serve(max_merges=1)
    await service.create("average", name="one")
    refusal = await tools.refused(
        service.stub.CreateMerge(pb.CreateMergeRequest(recipe=pb.Recipe(method="ties"), name="two"))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MERGES_FULL")


async def test_merges_are_listed_page_by_page_oldest_first(service: Any) -> None:
    for name in ("c", "a", "b"):
        await service.create("average", name=name)
    first = await service.stub.ListMerges(pb.ListMergesRequest(page_size=2))
    rest = await service.stub.ListMerges(pb.ListMergesRequest(page_size=2, page_token=first.next_page_token))
    assert [merge.name for merge in (*first.merges, *rest.merges)] == ["c", "a", "b"]
    assert not rest.next_page_token


async def test_a_merge_deleted_while_it_is_used_ends_its_predictions_well(service: Any, tools: Any) -> None:
    await service.create("average", name="mine")
    frames = tools.images(64)
    whole = await service.predict(frames, name="mine")
    calls = [asyncio.create_task(service.predict(frames, name="mine")) for _ in range(40)]
    await asyncio.sleep(0.005)
    await service.stub.DeleteMerge(pb.DeleteMergeRequest(name="mine"))
    ends = await asyncio.gather(*calls, return_exceptions=True)
    answers = [end for end in ends if not isinstance(end, BaseException)]
    assert all(probabilities(answer) == probabilities(whole) for answer in answers)
    codes = {end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)}
    assert codes <= {grpc.StatusCode.NOT_FOUND}
    assert (await tools.refused(service.predict(frames, name="mine"))).reason == "MERGE_NOT_FOUND"


async def test_a_new_preference_of_fifty_at_once_is_made_once(service: Any, tools: Any) -> None:
    preference = pb.Preference(weights=[0.2, 0.3, 0.5])
    calls = [service.predict(tools.images(2, seed=seed), preference=preference) for seed in range(50)]
    assert len({answer.merge_digest for answer in await asyncio.gather(*calls)}) == 1
    made = await service.metric("worldtree_merge_weights_total")
    assert made['{model="tiny-experts",result="made"}'] == 1


async def test_a_merge_asked_for_by_fifty_at_once_is_made_once(service: Any) -> None:
    merges = await asyncio.gather(*(service.create("adamerging", name=f"copy-{index}") for index in range(50)))
    assert len({merge.digest for merge in merges}) == 1
    seconds = await service.metric("worldtree_merge_seconds_count")
    assert seconds == {'{method="adamerging",model="tiny-experts"}': 1}


async def test_answers_do_not_depend_on_company_nor_on_room(serve: Any, tools: Any) -> None:
    roomy, tight = await serve(), await serve(shelf_mib=1, max_batch=4)
    for each in tight.catalog:
        each.engine.shelf.budget_bytes = 1  # room for one merge at a time
    preferences = [pb.Preference(weights=[1, seed, 2]) for seed in range(6)]
    requests = [(tools.images(1 + seed % 3, seed=seed), preferences[seed % 6]) for seed in range(36)]
    alone = [await roomy.predict(frames, preference=preference) for frames, preference in requests]
    together = await asyncio.gather(*(tight.predict(frames, preference=each) for frames, each in requests))
    assert [probabilities(answer) for answer in together] == [probabilities(answer) for answer in alone]
    assert max(answer.timing.batch_size for answer in together) <= 4
    for each in tight.catalog:
        assert len(each.engine.shelf) == 1


async def test_progress_is_told_and_the_last_who_leaves_ends_the_making(serve: Any, tools: Any) -> None:
    service = await serve(max_creations=1)
    calls = [service.stub.CreateMerge(pb.CreateMergeRequest(recipe=slow(), name="gone")) for _ in range(2)]
    steps = [await call.read() for call in calls]
    assert all(step.WhichOneof("event") == "progress" for step in steps)
    calls[0].cancel()
    later = [await calls[1].read() for _ in range(3)]  # one of two has left: it goes on
    assert all(step.progress.phase for step in later)
    calls[1].cancel()
    for _ in range(500):
        codes = await asyncio.gather(service.create("average", name="gone"), return_exceptions=True)
        if not isinstance(codes[0], grpc.aio.AioRpcError):
            break
        await asyncio.sleep(0.02)
    # the only place is free again, and the name was never taken
    assert [merge.name for merge in (await service.stub.ListMerges(pb.ListMergesRequest())).merges] == ["gone"]
    counted = await service.metric("worldtree_merge_creations_total")
    assert counted['{model="tiny-experts",result="cancelled"}'] == 2


async def test_more_merges_in_the_making_than_are_taken_are_refused(serve: Any, tools: Any) -> None:
    service = await serve(max_creations=1)
    call = service.stub.CreateMerge(pb.CreateMergeRequest(recipe=slow()))
    await call.read()
    request = pb.CreateMergeRequest(recipe=pb.Recipe(method="average"))
    refusal = await tools.refused(service.stub.CreateMerge(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CREATIONS_FULL")
    assert refusal.details["RetryInfo"].retry_delay.ToSeconds() > 0
    call.cancel()


async def test_a_front_has_points_that_are_merges_and_go_with_it(service: Any, tools: Any) -> None:
    parameters = Struct()
    parameters.update({"evaluations": 40})
    request = pb.CreateMergeRequest(recipe=pb.Recipe(method="mm_mo", parameters=parameters), name="front")
    *_, last = [each async for each in service.stub.CreateMerge(request)]
    assert last.merge.front_point_count > 0
    front = await service.stub.ParetoFront(pb.ParetoFrontRequest(name="front"))
    assert [point.merge for point in front.points] == [f"front.{each}" for each in range(last.merge.front_point_count)]
    means = [np.mean([score.score for score in point.scores]) for point in front.points]
    assert means == sorted(means, reverse=True)
    assert 0 < front.hypervolume <= 1
    assert (await service.predict(name="front.0")).merge_digest
    await service.stub.DeleteMerge(pb.DeleteMergeRequest(name=front.points[-1].merge))
    fewer = await service.stub.ParetoFront(pb.ParetoFrontRequest(name="front"))
    assert list(fewer.points) == list(front.points)[:-1]
    await service.stub.DeleteMerge(pb.DeleteMergeRequest(name="front"))
    assert (await tools.refused(service.predict(name="front.0"))).reason == "MERGE_NOT_FOUND"


async def test_a_merge_learns_from_the_callers_own_images(service: Any) -> None:
    own = [pb.TaskImages(task=task, images=_frames(TinyExperts().images(task, seed=5)[0])) for task in ALL]
    merge = await service.create("adamerging", name="own", images=own)
    assert merge.image_count == 72
    for_all = await service.create("adamerging", name="hue-only", images=[pb.TaskImages(images=own[0].images)])
    assert for_all.digest != merge.digest


def _frames(pixels: Any) -> Any:
    frames = pb.TaskImages().images
    frames.tensor.dtype = frames.tensor.D_TYPE_UINT8
    frames.tensor.shape.extend(pixels.shape)
    frames.tensor.data = pixels.tobytes()
    return frames
