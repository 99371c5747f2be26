"""Triton's own clients, unchanged, against a real gateway before real services: what is there, and what it answers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import worldtree
from inference_servers import Servers, actions, given
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException
from worldtree_gateway import oip_infer
from worldtree_gateway.oip_requests import InferRequest
from worldtree_gateway.serving import RunningGateway


@pytest.fixture(scope="module")
def gateway(servers: Servers) -> RunningGateway:
    return servers.gateway()


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(gateway.server.address) as client:
        yield client


@pytest.fixture
def sdk(gateway: RunningGateway) -> Iterator[worldtree.Client]:
    with worldtree.Client(gateway.server.address) as client:
        yield client


def typed(name: str, datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )


def pixels(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_a_client_learns_that_the_server_lives_and_which_models_are_ready(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert all(client.is_model_ready(name) for name in ("tiny", "tiny-arm", "tiny-experts", "tiny-judge"))
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nobody")


def test_the_server_says_who_it_is_and_what_it_can(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "worldtree"
    assert metadata.version
    assert {"sequence", "sequence(string_id)", "statistics", "classification"} <= set(metadata.extensions)


def test_the_index_lists_the_models_of_all_services(client: triton.InferenceServerClient) -> None:
    index = {each.name: (each.version, each.state) for each in client.get_model_repository_index().models}
    assert index == dict.fromkeys(("tiny", "tiny-arm", "tiny-scene", "tiny-experts", "tiny-judge"), ("1", "READY"))


def test_metadata_is_what_the_services_say_of_their_models(client: triton.InferenceServerClient) -> None:
    def told(name: str) -> dict[str, tuple[str, list[int]]]:
        metadata = client.get_model_metadata(name)
        assert (metadata.name, list(metadata.versions)) == (name, ["1"])
        return {each.name: (each.datatype, list(each.shape)) for each in (*metadata.inputs, *metadata.outputs)}

    tiny = told("tiny")
    assert tiny["actions"] == ("INT64", [-1])
    assert tiny["frames"] == tiny["start_frames"] == ("UINT8", [-1, 4, 6, 3])
    assert "prompt" not in tiny
    assert told("tiny-scene")["prompt"] == ("BYTES", [1])
    assert told("tiny-arm")["actions"] == ("FP32", [-1, 2])
    experts = told("tiny-experts")
    assert experts["image"] == ("UINT8", [-1, 8, 8, 3])
    assert experts["hue"] == ("FP32", [-1, 3])
    assert told("tiny-judge")["scores"] == ("FP32", [2])


def test_the_config_tells_of_sequences_of_streams_and_of_digests(
    client: triton.InferenceServerClient, sdk: worldtree.Client
) -> None:
    config = client.get_model_config("tiny").config
    assert config.sequence_batching.max_sequence_idle_microseconds == 60_000_000
    assert config.model_transaction_policy.decoupled
    assert config.parameters["digest"].string_value == sdk.model("tiny").digest
    assert {each.name: each.optional for each in config.input} == {
        "actions": False,
        **dict.fromkeys(("start", "start_frames", "start_actions", "seed", "nfe"), True),
    }
    plain = client.get_model_config("tiny-experts", as_json=True)["config"]
    assert "sequence_batching" not in plain
    assert plain["parameters"]["labels.hue"]["string_value"].split("\n") == ["red", "green", "blue"]


def test_a_clip_is_the_sdks_bit_for_bit(client: triton.InferenceServerClient, sdk: worldtree.Client) -> None:
    told = [
        actions(0, 1, 2),
        given("start", ["dusk"], "BYTES"),
        given("seed", [41], "INT64"),
        given("nfe", [1], "INT32"),
    ]
    answer = client.infer("tiny", told, request_id="seventh")
    clip = sdk.generate("tiny", start="dusk", seed=41, nfe=1, actions=[0, 1, 2])
    assert answer.get_response().id == "seventh"
    assert answer.get_response().model_version == "1"
    assert answer.as_numpy("frames").tobytes() == clip.frames.tobytes()
    assert answer.as_numpy("start_frames").tobytes() == clip.start_frames.tobytes()
    assert answer.as_numpy("chunk_index").tolist() == [0, 1, 2]
    assert [each.decode() for each in answer.as_numpy("state_hash")] == [each.state_hash for each in clip.chunks]


def test_actions_may_be_names_and_vectors_of_any_float(
    client: triton.InferenceServerClient, sdk: worldtree.Client
) -> None:
    ids = client.infer("tiny", [actions(0, 1, 2)]).as_numpy("frames")
    names = client.infer("tiny", [given("actions", ["left", "right", "stay"], "BYTES")]).as_numpy("frames")
    assert names.tobytes() == ids.tobytes()
    vectors = [[0.5, -0.25], [0.0, 1.0]]
    clip = sdk.generate("tiny-arm", start="dawn", actions=vectors)
    for datatype in ("FP16", "FP32", "FP64"):
        frames = client.infer("tiny-arm", [given("actions", vectors, datatype)]).as_numpy("frames")
        assert frames.tobytes() == clip.frames.tobytes(), datatype


def test_a_world_may_begin_with_frames_or_with_words(
    client: triton.InferenceServerClient, sdk: worldtree.Client
) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (2, 4, 6, 3), np.uint8)
    begun = [actions(1), given("start_frames", frames, "UINT8"), given("start_actions", [0], "INT64")]
    with sdk.world("tiny", frames=frames, actions=[0]) as world:
        assert client.infer("tiny", begun).as_numpy("frames").tobytes() == world.step(1).tobytes()
    clip = sdk.generate("tiny-scene", prompt="red door", seed=5, actions=[1])
    told = [actions(1), given("prompt", ["red door"], "BYTES"), given("seed", [5], "INT64")]
    answer = client.infer("tiny-scene", told)
    assert answer.as_numpy("frames").tobytes() == clip.frames.tobytes()
    assert answer.as_numpy("start_frames").tobytes() == clip.start_frames.tobytes()


def test_a_stream_brings_a_clip_chunk_by_chunk_and_says_which_is_the_last(
    client: triton.InferenceServerClient, sdk: worldtree.Client
) -> None:
    answers: list[Any] = []
    client.start_stream(lambda result, error: answers.append(error or result))
    client.async_stream_infer("tiny", [actions(0, 1, 2)], request_id="a", enable_empty_final_response=True)
    client.async_stream_infer("tiny-experts", [given("image", pixels(1), "UINT8")], request_id="b")
    client.stop_stream()
    told = [
        (each.get_response().id, each.get_response().parameters["triton_final_response"].bool_param) for each in answers
    ]
    assert told == [("a", False), ("a", False), ("a", True), ("b", True)]
    frames = np.concatenate([each.as_numpy("frames") for each in answers[:3]])
    assert frames.tobytes() == sdk.generate("tiny", start="dawn", actions=[0, 1, 2]).frames.tobytes()
    assert [len(each.as_numpy("start_frames")) for each in answers[:3]] == [1, 0, 0]


def test_networks_answer_each_task_and_by_preference(
    client: triton.InferenceServerClient, sdk: worldtree.Client
) -> None:
    images = pixels(3)
    answer = client.infer("tiny-experts", [given("image", images, "UINT8")])
    expected = sdk.multitask.predict(images)
    for task in ("hue", "bright", "side"):
        assert answer.as_numpy(task).tobytes() == expected[task].probabilities.tobytes(), task
    one = client.infer("tiny-experts", [given("image", images[0], "UINT8")])
    assert one.as_numpy("hue").shape == (3,)
    preferred = client.infer("tiny-experts", [given("image", images, "UINT8"), given("preference", [1, 0, 0], "FP32")])
    alone = sdk.multitask.predict(images, merge={"hue": 1.0})
    assert preferred.as_numpy("hue").tobytes() == alone["hue"].probabilities.tobytes()


def test_outputs_are_those_asked_for_and_may_be_the_best_classes(client: triton.InferenceServerClient) -> None:
    image = given("image", pixels(2), "UINT8")
    wanted = [triton.InferRequestedOutput("side", class_count=1), triton.InferRequestedOutput("hue", class_count=9)]
    answer = client.infer("tiny-experts", [image], outputs=wanted)
    assert [each.name for each in answer.get_response().outputs] == ["side", "hue"]
    everything = client.infer("tiny-experts", [image])
    best = [text.decode().split(":") for text in answer.as_numpy("side")[:, 0]]
    side = everything.as_numpy("side")
    assert [int(place) for _, place, _ in best] == side.argmax(axis=1).tolist()
    assert [name for *_, name in best] == [("left", "right")[each] for each in side.argmax(axis=1)]
    assert answer.as_numpy("hue").shape == (2, 3)


def test_a_clip_is_scored_as_the_sdk_has_it_scored(client: triton.InferenceServerClient, sdk: worldtree.Client) -> None:
    frames = pixels(3, seed=4)
    told = [
        given("frames", frames, "UINT8"),
        given("actions", ["go", "stay"], "BYTES"),
        given("goal", ["a bright clip"], "BYTES"),
    ]
    answer = client.infer("tiny-judge", told)
    expected = sdk.reward.score((frames, ["go", "stay"]), goal="a bright clip")
    assert answer.as_numpy("reward").tolist() == [np.float32(expected.reward)]
    assert answer.as_numpy("category").tolist() == [b"brightness"] == [str(expected.category).encode()]
    assert answer.as_numpy("scores").tolist() == [np.float32(each.score) for each in expected.dimensions.values()]
    labels = client.get_model_config("tiny-judge").config.parameters["labels.scores"].string_value.split("\n")
    assert labels == list(expected.dimensions)


def test_typed_contents_are_read_and_written_where_they_are_asked_for(gateway: RunningGateway) -> None:
    with grpc.insecure_channel(gateway.server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        ids = typed("actions", "INT64", [2], int64_contents=[0, 1])
        names = typed("actions", "BYTES", [2], bytes_contents=[b"left", b"right"])
        small = typed("actions", "UINT8", [2], uint_contents=[0, 1])
        raw = [stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", inputs=[each])) for each in (ids, names, small)]
        assert len({each.raw_output_contents[0] for each in raw}) == 1
        assert not any(output.HasField("contents") for output in raw[0].outputs)
        asked = pb.ModelInferRequest(model_name="tiny", inputs=[ids])
        asked.parameters["binary_data_output"].bool_param = False
        answer = stub.ModelInfer(asked)
        assert not answer.raw_output_contents
        frames, _, places, hashes = answer.outputs
        assert bytes(frames.contents.uint_contents) == raw[0].raw_output_contents[0]
        assert list(places.contents.int64_contents) == [0, 1]
        assert len(hashes.contents.bytes_contents) == 2


def test_long_typed_contents_are_read_and_written_beside_the_event_loop(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            threads.append(threading.current_thread().name.split("_")[0])
            return work(*given, **more)

        return run

    monkeypatch.setattr(oip_infer, "read_request", watched(oip_infer.read_request))
    monkeypatch.setattr(InferRequest, "response", watched(InferRequest.response))
    frames = typed("frames", "UINT8", [101, 8, 8, 3], uint_contents=[0] * (101 * 8 * 8 * 3))
    long = pb.ModelInferRequest(
        model_name="tiny-judge", inputs=[frames, typed("actions", "INT64", [100], int64_contents=[0] * 100)]
    )
    clip = pb.ModelInferRequest(model_name="tiny", inputs=[typed("actions", "INT64", [60], int64_contents=[0] * 60)])
    clip.parameters["binary_data_output"].bool_param = False
    with grpc.insecure_channel(gateway.server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(long)
        assert threads == ["json", "servers"]
        threads.clear()
        stub.ModelInfer(clip)
        assert threads == ["servers", "json"]


def test_statistics_count_what_was_done_and_what_the_cache_knew(servers: Servers) -> None:
    gateway = servers.gateway()
    with triton.InferenceServerClient(gateway.server.address) as client:
        images = given("image", pixels(3, seed=9), "UINT8")
        for _ in range(2):
            client.infer("tiny-experts", [images])
            client.infer("tiny", [actions(0, 1, 2, 1)])
        with pytest.raises(InferenceServerException):
            client.infer("tiny", [actions(99)])
        (experts,) = client.get_inference_statistics("tiny-experts").model_stats
        assert (experts.inference_count, experts.execution_count) == (3, 1)
        assert experts.inference_stats.success.count == 2
        assert experts.inference_stats.cache_hit.count == 1
        assert experts.inference_stats.compute_infer.ns > 0
        assert sum(each.compute_infer.count for each in experts.batch_stats) == 1
        (world,) = client.get_inference_statistics("tiny", "1").model_stats
        assert (world.inference_count, world.execution_count) == (4, 1)
        assert (world.inference_stats.success.count, world.inference_stats.fail.count) == (2, 1)
        assert world.inference_stats.success.ns >= world.inference_stats.compute_output.ns > 0
        assert world.last_inference > 1_600_000_000_000
        everyone = {each.name: each.execution_count for each in client.get_inference_statistics().model_stats}
        assert everyone == {"tiny": 1, "tiny-arm": 0, "tiny-scene": 0, "tiny-experts": 1, "tiny-judge": 0}


@pytest.fixture
async def asynchronous(gateway: RunningGateway) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(gateway.server.address) as client:
        yield client


async def test_the_asyncio_client_asks_all_of_it_too(
    asynchronous: triton_aio.InferenceServerClient, sdk: worldtree.Client
) -> None:
    client = asynchronous
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny")
    assert (await client.get_server_metadata()).name == "worldtree"
    assert (await client.get_model_metadata("tiny")).name == "tiny"
    assert (await client.get_model_config("tiny")).config.name == "tiny"
    assert len((await client.get_model_repository_index()).models) == 5
    assert (await client.get_inference_statistics("tiny")).model_stats[0].name == "tiny"
    clips = await asyncio.gather(
        *(client.infer("tiny", [actions(0, 1), given("seed", [seed], "INT64")]) for seed in range(8))
    )
    for seed, clip in enumerate(clips):
        expected = await asyncio.to_thread(sdk.generate, "tiny", start="dawn", seed=seed, actions=[0, 1])
        assert clip.as_numpy("frames").tobytes() == expected.frames.tobytes()


async def test_the_asyncio_client_streams(asynchronous: triton_aio.InferenceServerClient) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for place in range(3):
            yield {"model_name": "tiny", "inputs": [actions(0, 1)], "request_id": str(place)}

    told = []
    async for result, error in asynchronous.stream_infer(requests()):
        assert error is None
        told.append((result.get_response().id, len(result.as_numpy("frames"))))
    assert told == [("0", 1), ("0", 1), ("1", 1), ("1", 1), ("2", 1), ("2", 1)]


def test_reflection_and_health_know_the_service(gateway: RunningGateway) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(gateway.server.address) as channel:
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "inference.GRPCInferenceService" in names
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        assert health_pb2_grpc.HealthStub(channel).Check(request).status == health_pb2.HealthCheckResponse.SERVING
