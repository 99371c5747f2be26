"""Models of the inference protocol: what a request of one must be, and how its answers are counted."""

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as multitask_pb
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_gateway import oip_experts, oip_judges, oip_planners, oip_worlds
from worldtree_gateway.oip_requests import read_options, read_request
from worldtree_gateway.oip_statistics import Spent, Statistics
from worldtree_gateway.oip_tensors import from_array
from worldtree_runtime.errors import InvalidRequest

REF = common.ModelRef(name="grid", version="3", digest="d" * 64)
WORLD = oip_worlds.describe(
    video_pb.Model(
        ref=REF,
        height_px=4,
        width_px=6,
        frames_per_chunk=2,
        action_space=video_pb.ActionSpace(discrete=video_pb.ActionSpace.Discrete(names=["left", "right"])),
        starts=[video_pb.Start(name="dawn"), video_pb.Start(name="dusk")],
    )
)
EXPERTS = oip_experts.describe(
    multitask_pb.ListTasksResponse(
        model=REF, height_px=4, width_px=4, tasks=[multitask_pb.Task(name="hue", classes=["red", "green", "blue"])]
    )
)
JUDGE = oip_judges.describe(
    reward_pb.ListRubricsResponse(model=REF, height_px=4, width_px=4, dimensions=[reward_pb.Dimension(name="progress")])
)


def request(**parameters: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="grid")
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(made.parameters[name], kind, value)
    return made


@pytest.mark.parametrize("model", [WORLD, EXPERTS, JUDGE], ids=lambda model: model.section)
def test_metadata_and_config_agree(model: Any) -> None:
    metadata, config = model.metadata(), model.config(idle_s=2.5)
    assert metadata.name == config.name == "grid"
    assert list(metadata.versions) == ["3"]
    assert list(config.version_policy.specific.versions) == [3]
    assert config.parameters["digest"].string_value == "d" * 64
    for told, also in ((metadata.inputs, config.input), (metadata.outputs, config.output)):
        assert [(each.name, list(each.shape)) for each in told] == [(each.name, list(each.dims)) for each in also]
    assert config.HasField("sequence_batching") == (model is WORLD)
    assert config.sequence_batching.max_sequence_idle_microseconds == (2_500_000 if model is WORLD else 0)
    assert all(each.optional for each in config.input if each.name not in ("actions", "image", "frames"))


def test_a_world_begins_with_the_first_start_where_nothing_else_is_said() -> None:
    inputs = {"actions": from_array(np.array([1, 0]), "INT64")}
    made = oip_worlds.generate_request(WORLD, inputs, version="")
    assert made.origin.start == "dawn"
    assert [each.id for each in made.actions] == [1, 0]
    assert not made.model.digest
    frames = {**inputs, "start_frames": from_array(np.zeros((2, 4, 6, 3), np.uint8), "UINT8")}
    assert oip_worlds.generate_request(WORLD, frames, version="").origin.start == ""


def test_a_version_that_is_no_number_has_no_version_policy() -> None:
    model = oip_worlds.describe(video_pb.Model(ref=common.ModelRef(name="grid", version="2026-a")))
    assert list(model.metadata().versions) == ["2026-a"]
    assert not model.config(idle_s=1).HasField("version_policy") or not list(
        model.config(idle_s=1).version_policy.specific.versions
    )


@pytest.mark.parametrize("sequence", [0, ""])
def test_a_sequence_of_0_is_none(sequence: Any) -> None:
    assert read_options(request(sequence_id=sequence, sequence_start=False)).sequence is None
    with pytest.raises(InvalidRequest, match="sequence_id"):
        read_options(request(sequence_id=sequence, sequence_end=True))


def test_options_are_read_and_triton_s_own_are_let_through() -> None:
    options = read_options(
        request(
            sequence_id="a",
            sequence_start=True,
            timeout=1500,
            priority=3,
            binary_data_output=False,
            triton_enable_empty_final_response=True,
        )
    )
    assert (options.sequence, options.start, options.end) == ("a", True, False)
    assert options.timeout_s == pytest.approx(0.0015)
    assert not options.raw


def test_the_best_classes_are_told_by_value_id_and_name() -> None:
    made = request()
    made.outputs.add(name="hue").parameters["classification"].int64_param = 2
    read = read_request(made, EXPERTS, read_options(made))
    probabilities = from_array(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32), "FP32")
    response = read.response(EXPERTS, {"hue": probabilities}, final=True)
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
    assert response.parameters["triton_final_response"].bool_param
    assert b"0.500000:1:green" in response.raw_output_contents[0]
    assert response.raw_output_contents[0].count(b":") == 8


PLANNER = oip_planners.describe_all(
    navigator_pb.ListPlannersResponse(
        planners=[navigator_pb.Planner(name="joint", height_px=8, width_px=8, actions=["left", "right", "forward"])]
    )
)[0]


@pytest.mark.parametrize(
    ("model", "output", "holds"),
    [
        (EXPERTS, "hue", True),
        (JUDGE, "scores", True),
        (JUDGE, "reward", False),
        (PLANNER, "actions", False),
        (PLANNER, "confidence", False),
        (WORLD, "frames", False),
    ],
    ids=lambda given: getattr(given, "section", given),
)
def test_classes_are_for_outputs_with_a_number_for_each(model: Any, output: str, holds: bool) -> None:
    made = request()
    made.outputs.add(name=output).parameters["classification"].int64_param = 3
    assert model.has_classes(output) == holds
    if holds:
        assert read_request(made, model, read_options(made)).classes == {output: len(model.labels[output])}
    else:
        with pytest.raises(InvalidRequest, match=f"output {output} has no classes") as caught:
            read_request(made, model, read_options(made))
        assert caught.value.field == f"outputs[{output}].parameters[classification]"


def test_classes_of_a_version_whose_names_are_not_known_are_not_made_up() -> None:
    made = request()
    made.outputs.add(name="hue").parameters["classification"].int64_param = 2
    read = read_request(made, EXPERTS, read_options(made))
    with pytest.raises(InvalidRequest, match=r"output hue has the shape \[1, 4\] .* 3 classes"):
        read.response(EXPERTS, {"hue": from_array(np.zeros((1, 4), np.float32), "FP32")})


def test_statistics_count_inferences_and_executions_but_not_what_the_cache_knew() -> None:
    statistics = Statistics(wall=lambda: 1_700_000_000.5)
    spent = Spent(inference_count=3, queue_s=0.5, infer_s=0.25, batch_size=4)
    statistics.succeeded(WORLD, 1.0, spent, input_s=0.1, output_s=0.2)
    statistics.succeeded(WORLD, 0.125, Spent(inference_count=3, infer_s=0.25, cached=True), input_s=0.1, output_s=0.2)
    statistics.failed(WORLD, 2.0)
    told, nothing = statistics.response([WORLD, JUDGE]).model_stats[0], Statistics().response([JUDGE]).model_stats[0]
    assert (told.name, told.version, told.last_inference) == ("grid", "3", 1_700_000_000_500)
    assert (told.inference_count, told.execution_count) == (3, 1)
    stats = told.inference_stats
    assert (stats.success.count, stats.success.ns) == (2, 1_125_000_000)
    assert (stats.fail.count, stats.fail.ns) == (1, 2_000_000_000)
    assert (stats.cache_hit.count, stats.cache_hit.ns) == (1, 125_000_000)
    assert (stats.queue.ns, stats.compute_infer.ns) == (500_000_000, 250_000_000)
    assert (stats.compute_input.ns, stats.compute_output.ns) == (100_000_000, 200_000_000)
    assert [(each.batch_size, each.compute_infer.count) for each in told.batch_stats] == [(4, 1)]
    assert (nothing.inference_count, nothing.last_inference) == (0, 0)
