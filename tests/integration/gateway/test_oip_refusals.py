"""What the inference protocol cannot answer: a canonical status, and a message with the input, its value, the limit."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from inference_servers import Servers
from refusals import Refusal, refused
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from worldtree_gateway.serving import RunningGateway

Refuse = Callable[..., Awaitable[Refusal]]


@pytest.fixture(scope="module")
def gateway(servers: Servers) -> RunningGateway:
    return servers.gateway()


@pytest.fixture
async def stub(gateway: RunningGateway) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(gateway.server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def refuse(stub: Any) -> Refuse:
    """What a request is refused with."""

    async def refuse(*inputs: Any, model: str = "tiny", raw: list[bytes] | None = None, **more: Any) -> Refusal:
        parameters = more.pop("parameters", {})
        request = pb.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw or [], **more)
        for name, value in parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
            setattr(request.parameters[name], kind, value)
        return await refused(stub.ModelInfer(request))

    return refuse


def tensor(name: str, datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest.InferInputTensor:
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(pb.InferTensorContents(**contents))
    return made


def ids(*values: int) -> pb.ModelInferRequest.InferInputTensor:
    return tensor("actions", "INT64", [len(values)], int64_contents=values)


def texts(name: str, *values: bytes) -> pb.ModelInferRequest.InferInputTensor:
    return tensor(name, "BYTES", [len(values)], bytes_contents=values)


RAW_IDS = np.array([0, 1], np.int64).tobytes()
IMAGE = np.zeros((1, 8, 8, 3), np.uint8).tobytes()

# By what is wrong: the request, and what the message says of it.
BAD_INPUTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no actions": ({"inputs": []}, ["actions", "INT64", "[n]"]),
    "unknown input": ({"inputs": [ids(0), texts("speed", b"x")]}, ["speed", "actions, start"]),
    "input twice": ({"inputs": [ids(0), ids(1)]}, ["actions", "once"]),
    "nameless input": ({"inputs": [tensor("", "INT64", [0])]}, ["without a name", "place 0"]),
    "wrong datatype": ({"inputs": [tensor("actions", "FP32", [1], fp32_contents=[1.0])]}, ["INT64 or", "FP32"]),
    "unheard datatype": ({"inputs": [tensor("actions", "COMPLEX", [1])]}, ["datatype", "INT64", "COMPLEX"]),
    "wrong dimensions": ({"inputs": [tensor("actions", "INT64", [1, 1], int64_contents=[1])]}, ["[n]", "[1, 1]"]),
    "wrong sides": (
        {"inputs": [ids(0), tensor("start_frames", "UINT8", [1, 4, 4, 3], uint_contents=[0] * 48)]},
        ["start_frames", "[n, 4, 6, 3]", "[1, 4, 4, 3]"],
    ),
    "negative side": ({"inputs": [tensor("actions", "INT64", [-1])]}, ["shape", "[-1]"]),
    "endless sides": ({"inputs": [tensor("actions", "INT64", [1 << 62, 1 << 62])]}, ["shape", "elements at most"]),
    "many sides": ({"inputs": [tensor("actions", "INT64", [1] * 9)]}, ["8 dimensions", "9"]),
    "too few elements": ({"inputs": [tensor("actions", "INT64", [2], int64_contents=[1])]}, ["2 elements", "got 1"]),
    "too few bytes": ({"inputs": [tensor("actions", "INT64", [3])], "raw": [RAW_IDS]}, ["24 bytes", "got 16"]),
    "raw and typed": ({"inputs": [ids(0, 1)], "raw": [RAW_IDS]}, ["actions", "raw", "typed"]),
    "raw for some": (
        {"inputs": [tensor("actions", "INT64", [2]), texts("start", b"dawn")], "raw": [RAW_IDS]},
        ["raw_input_contents", "2 inputs", "got 1"],
    ),
    "typed in the wrong place": (
        {"inputs": [tensor("actions", "INT64", [1], int_contents=[1])]},
        ["int64_contents", "int_contents"],
    ),
    "typed beyond its width": ({"inputs": [tensor("actions", "UINT8", [1], uint_contents=[256])]}, ["0 to 255", "256"]),
    "bytes that do not end": (
        {"inputs": [tensor("actions", "BYTES", [1])], "raw": [struct.pack("<I", 900) + b"left"]},
        ["actions", "BYTES", "8 bytes"],
    ),
    "too many names": (
        {"inputs": [tensor("actions", "BYTES", [1])], "raw": [2 * (struct.pack("<I", 4) + b"left")]},
        ["1 elements", "got more"],
    ),
    "no text": ({"inputs": [texts("actions", b"\xff\xfe")]}, ["actions[0]", "UTF-8"]),
    "two scalars": ({"inputs": [ids(0), tensor("seed", "INT64", [2], int64_contents=[1, 2])]}, ["seed", "[1]", "[2]"]),
    "unknown action": ({"inputs": [ids(0, 44)]}, ["actions[1]", "0 to 3", "44"]),
    "unknown name": ({"inputs": [texts("actions", b"fly")]}, ["actions[0]", "left, right", "fly"]),
    "action beyond all": ({"inputs": [ids(1 << 40)]}, ["actions[0]", str(1 << 40)]),
    "seed beyond all": (
        {"inputs": [ids(0), tensor("seed", "INT64", [1], int64_contents=[1 << 60])]},
        ["seed", str(1 << 60)],
    ),
    "nfe that is none": ({"inputs": [ids(0), tensor("nfe", "INT32", [1], int_contents=[3])]}, ["nfe", "[1, 2]", "3"]),
    "two beginnings": (
        {
            "inputs": [
                ids(0),
                texts("start", b"dawn"),
                tensor("start_frames", "UINT8", [1, 4, 6, 3], uint_contents=[0] * 72),
            ]
        },
        ["one of start, start_frames and prompt", "start and start_frames"],
    ),
    "too many frames": (
        {"inputs": [ids(0), tensor("start_frames", "UINT8", [9, 4, 6, 3], uint_contents=[0] * 648)]},
        ["start_frames", "1 to 4 frames", "9"],
    ),
    "a prompt for a model that takes none": ({"inputs": [ids(0), texts("prompt", b"a door")]}, ["prompt"]),
    "vectors of another size": (
        {"model": "tiny-arm", "inputs": [tensor("actions", "FP32", [1, 3], fp32_contents=[0] * 3)]},
        ["[n, 2]", "[1, 3]"],
    ),
    "a vector that is not finite": (
        {"model": "tiny-arm", "inputs": [tensor("actions", "FP32", [1, 2], fp32_contents=[0.0, float("nan")])]},
        ["actions[0]", "finite"],
    ),
    "text of another shape, whatever its bytes are": (
        {"inputs": [tensor("start", "BYTES", [1 << 20])], "raw": [bytes(64)]},
        ["start", "[1] or []", "1048576"],
    ),
    "more names than anyone takes": (
        {"inputs": [tensor("actions", "BYTES", [1 << 20])], "raw": [bytes(64)]},
        ["actions", "65536", "1048576"],
    ),
    "half floats as typed contents": (
        {"model": "tiny-arm", "inputs": [tensor("actions", "FP16", [1, 2], fp32_contents=[0.0, 0.0])]},
        ["FP16", "raw_input_contents"],
    ),
    "an image of another size": (
        {"model": "tiny-experts", "inputs": [tensor("image", "UINT8", [1, 9, 9, 3], uint_contents=[0] * 243)]},
        ["image", "[n, 8, 8, 3] or [8, 8, 3]", "[1, 9, 9, 3]"],
    ),
    "no images": (
        {"model": "tiny-experts", "inputs": [tensor("image", "UINT8", [0, 8, 8, 3])]},
        ["image", "1 to 256 images", "0"],
    ),
    "a preference of nothing": (
        {
            "model": "tiny-experts",
            "inputs": [tensor("image", "UINT8", [1, 8, 8, 3]), tensor("preference", "FP32", [3])],
            "raw": [IMAGE, bytes(12)],
        },
        ["preference"],
    ),
    "actions that do not fit their frames": (
        {
            "model": "tiny-judge",
            "inputs": [tensor("frames", "UINT8", [1, 8, 8, 3]), tensor("actions", "INT64", [2])],
            "raw": [IMAGE, RAW_IDS],
        },
        ["frames", "3", "got 1"],
    ),
    "a sequence of a model that keeps nothing": (
        {"model": "tiny-experts", "inputs": [], "parameters": {"sequence_id": 4, "sequence_start": True}},
        ["tiny-experts", "sequence_id"],
    ),
    "a start of no sequence": ({"inputs": [ids(0)], "parameters": {"sequence_start": True}}, ["sequence_id"]),
    "an unknown parameter": ({"inputs": [ids(0)], "parameters": {"sequense_id": 4}}, ["sequense_id", "sequence_id"]),
    "a parameter of another kind": (
        {"inputs": [ids(0)], "parameters": {"sequence_id": 0.5}},
        ["int64_param", "double"],
    ),
    "a time before now": ({"inputs": [ids(0)], "parameters": {"timeout": -1}}, ["timeout", "-1"]),
    "an output of another model": (
        {"inputs": [ids(0)], "outputs": [pb.ModelInferRequest.InferRequestedOutputTensor(name="depth")]},
        ["depth", "frames, start_frames"],
    ),
    "an output twice": (
        {"inputs": [ids(0)], "outputs": 2 * [pb.ModelInferRequest.InferRequestedOutputTensor(name="frames")]},
        ["frames", "twice"],
    ),
    "classes of what has none": (
        {
            "inputs": [ids(0)],
            "outputs": [
                pb.ModelInferRequest.InferRequestedOutputTensor(
                    name="frames", parameters={"classification": pb.InferParameter(int64_param=2)}
                )
            ],
        },
        ["frames", "classes"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
async def test_a_bad_input_is_told_by_its_name_its_value_and_the_limit(case: str, refuse: Refuse) -> None:
    request, said = BAD_INPUTS[case]
    refusal = await refuse(*request["inputs"], **{name: value for name, value in request.items() if name != "inputs"})
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal.message
    for part in said:
        assert part in refusal.message, refusal.message
    assert refusal.field
    assert "origin" not in refusal.message + refusal.field


async def test_what_there_is_not_is_not_found(refuse: Refuse, stub: Any) -> None:
    nobody = await refuse(ids(0), model="nobody")
    assert (nobody.code, nobody.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert "tiny-experts" in nobody.message
    for model in ("tiny", "tiny-experts", "tiny-judge"):
        version = await refuse(model=model, model_version="7")
        assert version.code is grpc.StatusCode.NOT_FOUND, model
        assert "7" in version.message
    start = await refuse(ids(0), texts("start", b"noon"))
    assert start.code is grpc.StatusCode.NOT_FOUND
    assert "dawn, dusk" in start.message
    for method, request in (
        (stub.ModelMetadata, pb.ModelMetadataRequest(name="nobody")),
        (stub.ModelConfig, pb.ModelConfigRequest(name="tiny", version="7")),
        (stub.ModelStatistics, pb.ModelStatisticsRequest(name="nobody")),
    ):
        assert (await refused(method(request))).code is grpc.StatusCode.NOT_FOUND


async def test_what_triton_offers_and_we_do_not_is_unimplemented(refuse: Refuse, stub: Any) -> None:
    for method, request in (
        (stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest()),
        (stub.SystemSharedMemoryRegister, pb.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=8)),
        (stub.SystemSharedMemoryUnregister, pb.SystemSharedMemoryUnregisterRequest()),
        (stub.CudaSharedMemoryStatus, pb.CudaSharedMemoryStatusRequest()),
        (stub.CudaSharedMemoryRegister, pb.CudaSharedMemoryRegisterRequest(name="x", byte_size=8)),
        (stub.CudaSharedMemoryUnregister, pb.CudaSharedMemoryUnregisterRequest()),
        (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny")),
        (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="tiny")),
        (stub.TraceSetting, pb.TraceSettingRequest()),
        (stub.LogSettings, pb.LogSettingsRequest()),
    ):
        refusal = await refused(method(request))
        assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
        assert type(request).__name__.removesuffix("Request") in refusal.message
    shared = ids()
    shared.parameters["shared_memory_region"].string_param = "region"
    assert (await refuse(shared)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_clip_that_no_message_holds_is_refused_before_it_is_made(servers: Servers) -> None:
    gateway = servers.gateway(max_message_bytes=128 * 1024)
    async with grpc.aio.insecure_channel(gateway.server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="tiny", inputs=[ids(*[0] * 400)])
        refusal = await refused(stub.ModelInfer(request))
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "400" in refusal.message
        assert "ModelStreamInfer" in refusal.message


async def test_a_clip_that_typed_contents_should_not_hold_is_refused_before_it_is_made(refuse: Refuse) -> None:
    refusal = await refuse(ids(*[0] * 20_000), parameters={"binary_data_output": False})
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ANSWER_TOO_LARGE")
    assert "1440000" in refusal.message
    assert "1048576" in refusal.message


async def test_a_request_gets_no_more_time_than_it_says(refuse: Refuse) -> None:
    late = await refuse(ids(*[0] * 200), parameters={"timeout": 2_000})
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_models_of_a_service_that_is_down_are_unavailable_and_the_others_go_on(servers: Servers) -> None:
    gateway = servers.gateway(wait=False, multitask=["127.0.0.1:1"], digest_ttl_s=0.0)
    for router in gateway.routers:
        if router.section != "multitask":
            servers.loop.run(router.wait_ready())
    async with grpc.aio.insecure_channel(gateway.server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
        answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", inputs=[ids(0)]))
        assert len(answer.outputs) == 4
        refusal = await refused(stub.ModelInfer(pb.ModelInferRequest(model_name="tiny-experts")))
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert "multitask" in refusal.message
        index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        assert {each.name for each in index.models} == {"tiny", "tiny-arm", "tiny-scene", "tiny-judge"}
