"""Tensors on the wire: what the stock client packs is read here and the other way round, raw and typed alike."""

import struct
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2 as pb
from worldtree_gateway.oip_tensors import (
    BYTES,
    DATATYPES,
    MAX_INPUTS,
    MAX_TEXTS,
    MAX_TYPED,
    STEP_COUNT,
    Head,
    Tensor,
    add_outputs,
    from_array,
    from_texts,
    read_inputs,
    typed_count,
)
from worldtree_runtime.errors import InvalidRequest, Unimplemented

NUMBERS = [name for name in DATATYPES if name != BYTES]
ARRAYS = st.sampled_from(NUMBERS).flatmap(
    lambda name: hnp.arrays(
        np.dtype(triton.triton_to_np_dtype(name)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
TEXTS = st.lists(st.binary(max_size=9), max_size=9)
TYPED = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def packed(name: str, array: Any, datatype: str) -> pb.ModelInferRequest:
    """A request as the stock client writes it."""
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return pb.ModelInferRequest(inputs=[tensor._get_tensor()], raw_input_contents=[tensor._get_content()])


def typed(name: str, array: Any, datatype: str) -> pb.ModelInferRequest:
    contents = pb.InferTensorContents(**{TYPED[datatype]: array.ravel().tolist()})
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=array.shape, contents=contents)
    return pb.ModelInferRequest(inputs=[made])


@given(ARRAYS)
def test_what_the_stock_client_packs_is_read(array: Any) -> None:
    datatype = triton.np_to_triton_dtype(array.dtype)
    tensor = read_inputs(packed("x", array, datatype))["x"]
    assert (tensor.datatype, tensor.shape) == (datatype, array.shape)
    assert tensor.array.tobytes() == array.tobytes()
    assert tensor.array.dtype == array.dtype


@given(ARRAYS)
def test_typed_contents_are_the_same_tensor(array: Any) -> None:
    datatype = triton.np_to_triton_dtype(array.dtype)
    if datatype in TYPED:
        expected = read_inputs(packed("x", array, datatype))["x"]
        read = read_inputs(typed("x", array, datatype))["x"]
        assert read.shape == expected.shape
        assert np.array_equal(read.array, expected.array, equal_nan=array.dtype.kind == "f")


@given(TEXTS)
def test_texts_are_read_raw_and_typed(texts: list[bytes]) -> None:
    array = np.array(texts, dtype=object)
    raw = read_inputs(packed("x", array, BYTES))["x"]
    contents = pb.InferTensorContents(bytes_contents=texts)
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=BYTES, shape=[len(texts)], contents=contents)
    assert raw.texts == texts
    assert read_inputs(pb.ModelInferRequest(inputs=[made]))["x"] == raw


@given(ARRAYS)
def test_the_stock_client_reads_what_is_answered(array: Any) -> None:
    datatype = triton.np_to_triton_dtype(array.dtype)
    response = pb.ModelInferResponse()
    add_outputs(response, [("before", from_texts(["a", "bc"])), ("x", from_array(array, datatype))], raw=True)
    result = triton.InferResult(response)
    assert result.as_numpy("x").tobytes() == array.tobytes()
    assert result.as_numpy("x").shape == array.shape
    assert result.as_numpy("before").tolist() == [b"a", b"bc"]


@given(ARRAYS)
def test_answers_that_are_wanted_typed_hold_the_same_elements(array: Any) -> None:
    datatype = triton.np_to_triton_dtype(array.dtype)
    if datatype not in TYPED:
        return
    response = pb.ModelInferResponse()
    add_outputs(response, [("x", from_array(array, datatype))], raw=False)
    assert not response.raw_output_contents
    elements = np.array(getattr(response.outputs[0].contents, TYPED[datatype]), array.dtype)
    assert np.array_equal(elements, array.ravel(), equal_nan=array.dtype.kind == "f")


@given(st.binary(max_size=40), st.integers(0, 5))
def test_no_bytes_break_the_reading_of_texts(data: bytes, count: int) -> None:
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=BYTES, shape=[count])
    try:
        tensor = read_inputs(pb.ModelInferRequest(inputs=[made], raw_input_contents=[data]))["x"]
    except InvalidRequest:
        return
    assert len(tensor.texts) == count
    assert b"".join(struct.pack("<I", len(each)) + each for each in tensor.texts) == data


@given(st.sampled_from([*NUMBERS, "BF16", ""]), st.lists(st.integers(-2, 3), max_size=10), st.binary(max_size=64))
def test_no_shape_or_length_breaks_the_reading_of_numbers(datatype: str, shape: list[int], data: bytes) -> None:
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
    try:
        tensor = read_inputs(pb.ModelInferRequest(inputs=[made], raw_input_contents=[data]))["x"]
    except InvalidRequest:
        return
    assert tensor.array.shape == tuple(shape)


def test_a_bool_is_0_or_1() -> None:
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype="BOOL", shape=[2])
    assert read_inputs(pb.ModelInferRequest(inputs=[made], raw_input_contents=[b"\x00\x01"]))["x"].array.tolist() == [
        False,
        True,
    ]
    with pytest.raises(InvalidRequest, match="0 or 1"):
        read_inputs(pb.ModelInferRequest(inputs=[made], raw_input_contents=[b"\x00\x02"]))


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 256), ("INT8", -129), ("INT16", 40_000), ("UINT16", 1 << 16)]
)
def test_a_typed_element_fits_its_datatype(datatype: str, value: int) -> None:
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[2])
    getattr(made.contents, TYPED[datatype]).extend([0, value])
    with pytest.raises(InvalidRequest, match=str(value)):
        read_inputs(pb.ModelInferRequest(inputs=[made]))


@pytest.mark.parametrize("place", [0, STEP_COUNT - 1, STEP_COUNT, 3 * STEP_COUNT])
def test_each_typed_element_is_looked_at(place: int) -> None:
    values = np.arange(3 * STEP_COUNT + 1) % 256
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=values.shape)
    made.contents.uint_contents.extend(values.tolist())
    request = pb.ModelInferRequest(inputs=[made])
    assert typed_count(request) == len(values)
    assert read_inputs(request)["x"].array.tolist() == values.tolist()
    request.inputs[0].contents.uint_contents[place] = 256
    with pytest.raises(InvalidRequest, match="0 to 255, got 256"):
        read_inputs(request)


def test_typed_contents_are_read_in_little_room() -> None:
    count = 4 << 20
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[count])
    made.contents.uint_contents.extend([7] * count)
    request = pb.ModelInferRequest(inputs=[made])
    tracemalloc.start()
    read = read_inputs(request)["x"]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.data == b"\x07" * count
    assert peak_bytes < 3 * count


def test_inputs_have_an_end() -> None:
    made = [
        pb.ModelInferRequest.InferInputTensor(name=str(n), datatype="UINT8", shape=[0]) for n in range(MAX_INPUTS + 1)
    ]
    assert len(read_inputs(pb.ModelInferRequest(inputs=made[:-1]))) == MAX_INPUTS
    with pytest.raises(InvalidRequest, match=str(MAX_INPUTS)):
        read_inputs(pb.ModelInferRequest(inputs=made))


@pytest.mark.parametrize("count", [1, 0, MAX_TEXTS])
def test_texts_are_counted_no_further_than_their_shape(count: int) -> None:
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=BYTES, shape=[count])
    request = pb.ModelInferRequest(inputs=[made], raw_input_contents=[bytes(64 << 20)])
    began_s = time.process_time()
    with pytest.raises(InvalidRequest, match=f"must hold {count} elements .* got more"):
        read_inputs(request)
    assert time.process_time() - began_s < 1


def test_an_input_has_so_many_texts_and_no_more() -> None:
    def read(count: int) -> Tensor:
        made = pb.ModelInferRequest.InferInputTensor(name="x", datatype=BYTES, shape=[count])
        return read_inputs(pb.ModelInferRequest(inputs=[made], raw_input_contents=[bytes(4 * count)]))["x"]

    assert read(MAX_TEXTS).texts == [b""] * MAX_TEXTS
    with pytest.raises(InvalidRequest, match=f"{MAX_TEXTS} elements at most, got {MAX_TEXTS + 1}"):
        read(MAX_TEXTS + 1)


def test_inputs_are_refused_by_what_they_say_of_themselves_before_their_elements_are_looked_at() -> None:
    def check(heads: Mapping[str, Head]) -> None:
        assert heads == {"x": Head(BYTES, (2,)), "y": Head("UINT8", (1, 3))}
        raise InvalidRequest("inputs[y]", "by its head")

    made = [
        pb.ModelInferRequest.InferInputTensor(name="x", datatype=BYTES, shape=[2]),
        pb.ModelInferRequest.InferInputTensor(name="y", datatype="UINT8", shape=[1, 3]),
    ]
    with pytest.raises(InvalidRequest, match="by its head"):
        read_inputs(pb.ModelInferRequest(inputs=made, raw_input_contents=[b"nonsense", b""]), check)


def test_typed_contents_carry_so_much_and_no_more() -> None:
    most = from_array(np.arange(MAX_TYPED, dtype=np.uint32), "UINT32")
    response = pb.ModelInferResponse()
    add_outputs(response, [("x", most)], raw=False)
    assert list(response.outputs[0].contents.uint_contents) == list(range(MAX_TYPED))
    one = from_array(np.zeros(1, np.uint8), "UINT8")
    with pytest.raises(InvalidRequest, match=f"{MAX_TYPED} elements at most .*raw"):
        add_outputs(pb.ModelInferResponse(), [("x", most), ("y", one)], raw=False)
    add_outputs(pb.ModelInferResponse(), [("x", most), ("y", one)], raw=True)


def test_shared_memory_is_not_read() -> None:
    made = pb.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[1])
    made.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unimplemented):
        read_inputs(pb.ModelInferRequest(inputs=[made]))


def test_a_tensor_is_not_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Tensor("UINT8", (2,), b"ab").array[0] = 1
