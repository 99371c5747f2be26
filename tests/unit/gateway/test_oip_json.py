"""The REST form of the inference protocol: what is written as JSON or binary is read as the same tensors, and back."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype
from worldtree_gateway import oip_json
from worldtree_gateway.oip_json import LENGTH_HEADER, plain, read_infer, to_json
from worldtree_gateway.oip_tensors import BYTES, NUMBERS, from_array, from_texts, read_inputs
from worldtree_runtime.errors import InvalidRequest

ARRAYS = st.sampled_from(list(NUMBERS)).flatmap(
    lambda name: hnp.arrays(
        np.dtype(triton_to_np_dtype(name)), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    )
)
LIMIT = 1 << 20
KEYS = st.sampled_from(
    ["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "binary_data", "binary_data_size"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def written(array: Any, **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": np_to_triton_dtype(array.dtype), "shape": list(array.shape), **more}


@given(ARRAYS, st.booleans())
def test_lists_flat_and_nested_are_the_tensor(array: Any, nested: bool) -> None:
    if array.dtype.kind == "f":
        array = np.where(np.isfinite(array), array, 0).astype(array.dtype)
    data = array.tolist() if nested else array.ravel().tolist()
    request, _ = read_infer(json.dumps({"inputs": [written(array, data=data)]}).encode(), None)
    assert read_inputs(request)["x"].array.tobytes() == array.tobytes()


@given(st.lists(ARRAYS, max_size=3))
def test_binary_tensors_follow_the_json_one_after_the_other(arrays: list[Any]) -> None:
    inputs = [
        {**written(array), "name": str(place), "parameters": {"binary_data_size": array.nbytes}}
        for place, array in enumerate(arrays)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    request, _ = read_infer(head + b"".join(array.tobytes() for array in arrays), str(len(head)))
    read = read_inputs(request)
    assert [read[str(place)].data for place in range(len(arrays))] == [array.tobytes() for array in arrays]


@given(st.lists(st.text(max_size=5), max_size=5))
def test_texts_are_read_and_written(texts: list[str]) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    told = {"name": "x", "datatype": BYTES, "shape": [len(texts)], "data": texts}
    request, form = read_infer(json.dumps({"inputs": [told]}).encode(), None)
    assert [each.decode() for each in read_inputs(request)["x"].texts] == texts
    response = pb.ModelInferResponse(outputs=[{"name": "x", "datatype": BYTES, "shape": [len(texts)]}])
    response.raw_output_contents.append(from_texts(texts).data)
    (body,), headers = form.body(response, limit_bytes=LIMIT)
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body)["outputs"][0]["data"] == texts


@pytest.mark.parametrize(
    ("asked", "binary"),
    [
        ({}, []),
        ({"parameters": {"binary_data_output": True}}, ["a", "b"]),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]}, ["a"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
            },
            ["b"],
        ),
    ],
    ids=["nothing", "all", "one", "all but one"],
)
def test_outputs_are_binary_where_that_is_asked_for(asked: dict[str, Any], binary: list[str]) -> None:
    request, form = read_infer(json.dumps({"inputs": [], **asked}).encode(), None)
    assert "binary_data_output" not in request.parameters
    assert not any("binary_data" in each.parameters for each in request.outputs)
    array = np.array([1.5, np.inf, np.nan], np.float32)
    response = pb.ModelInferResponse(model_name="m", model_version="3", id="i")
    for name in ("a", "b"):
        response.outputs.add(name=name, datatype="FP32", shape=[3])
        response.raw_output_contents.append(from_array(array, "FP32").data)
    body, headers = form.body(response, limit_bytes=LIMIT)
    answer = json.loads(body[0])
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "3", "i")
    assert [each["name"] for each in answer["outputs"] if "data" not in each] == binary
    assert all(each["data"] == [1.5, None, None] for each in answer["outputs"] if "data" in each)
    assert all(each["parameters"] == {"binary_data_size": 12} for each in answer["outputs"] if "data" not in each)
    assert body[1:] == (array.tobytes(),) * len(binary)
    assert headers.get(LENGTH_HEADER) == (str(len(body[0])) if binary else None)


@given(st.lists(ARRAYS, max_size=3), st.integers(1, 5))
def test_answers_are_what_json_itself_would_write(arrays: list[Any], step_count: int) -> None:
    response = pb.ModelInferResponse(model_name="m")
    for place, array in enumerate(arrays):
        datatype = np_to_triton_dtype(array.dtype)
        response.outputs.add(name=str(place), datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(from_array(array, datatype).data)
    _, form = read_infer(b"{}", None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(oip_json, "STEP_COUNT", step_count)
        (body,), _ = form.body(response, limit_bytes=LIMIT)
    outputs = [
        {
            **written(array),
            "name": str(place),
            "data": [None if not np.isfinite(each) else each for each in array.ravel().tolist()],
        }
        for place, array in enumerate(arrays)
    ]
    assert json.loads(body) == {
        "model_name": "m",
        "outputs": [{key: each[key] for key in ("name", "datatype", "shape", "data")} for each in outputs],
    }
    assert form.json_bytes(response) == sum(array.nbytes for array in arrays)


def answer_of(count: int) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="m")
    response.outputs.add(name="frames", datatype="UINT8", shape=[count])
    response.raw_output_contents.append(b"\xff" * count)
    return response


def test_an_answer_has_so_much_json_and_no_more() -> None:
    _, form = read_infer(b"{}", None)
    (body,), _ = form.body(answer_of(100), limit_bytes=LIMIT)
    assert form.body(answer_of(100), limit_bytes=len(body))[0] == (body,)
    with pytest.raises(InvalidRequest, match=f"{len(body) - 1} bytes of JSON .*http_json_bytes.* binary") as caught:
        form.body(answer_of(100), limit_bytes=len(body) - 1)
    assert caught.value.reason == "ANSWER_TOO_LARGE"


def test_an_answer_that_is_too_large_is_not_written_to_its_end() -> None:
    _, form = read_infer(b"{}", None)
    response = answer_of(48 << 20)
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="binary"):
        form.body(response, limit_bytes=LIMIT)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 << 20  # the bytes themselves are copied once


def test_what_goes_in_binary_has_no_part_in_the_limit() -> None:
    _, form = read_infer(json.dumps({"parameters": {"binary_data_output": True}}).encode(), None)
    response = answer_of(4096)
    assert form.json_bytes(response) == 0
    body, _ = form.body(response, limit_bytes=1024)
    assert body[1] == response.raw_output_contents[0]


@given(ANYTHING, st.none() | st.integers(-3, 90).map(str) | st.text(max_size=3))
def test_no_document_breaks_the_reading(document: Any, length: str | None) -> None:
    try:
        request, _ = read_infer(json.dumps(document).encode(), length)
    except InvalidRequest:
        return
    assert len(request.inputs) == len(request.raw_input_contents)


@given(st.binary(max_size=80))
def test_no_bytes_break_the_reading(body: bytes) -> None:
    try:
        read_infer(body, None)
    except InvalidRequest:
        return


def test_what_kserve_writes_besides_is_let_be() -> None:
    told = {"name": "x", "datatype": "UINT8", "shape": [1], "data": [7], "parameters": None}
    document = {"model_name": "m", "model_version": None, "id": None, "parameters": None, "inputs": [told]}
    request, _ = read_infer(json.dumps({**document, "outputs": None}).encode(), None)
    assert request.id == ""
    assert read_inputs(request)["x"].array.tolist() == [7]


def test_parameters_keep_their_kind() -> None:
    parameters = {"sequence_id": 2**63 + 1, "sequence_start": True, "priority": 3, "x": 0.5, "y": "text"}
    request, _ = read_infer(json.dumps({"parameters": parameters}).encode(), None)
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()}
    assert kinds == {
        "sequence_id": "uint64_param",
        "sequence_start": "bool_param",
        "priority": "int64_param",
        "x": "double_param",
        "y": "string_param",
    }


def test_messages_are_told_with_numbers_as_numbers() -> None:
    metadata = pb.ModelMetadataResponse(name="m", inputs=[{"name": "x", "datatype": "UINT8", "shape": [-1, 3]}])
    assert plain(metadata) == {"name": "m", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 3]}]}
    assert plain(metadata, defaults=True)["versions"] == []
    statistics = pb.ModelStatistics(inference_count=2**40)
    assert json.loads(to_json(plain(statistics, defaults=True)))["inference_count"] == 2**40
    assert plain(statistics, defaults=True)["inference_stats"]["success"] == {"count": 0, "ns": 0}
