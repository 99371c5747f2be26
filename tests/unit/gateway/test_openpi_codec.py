"""openpi's msgpack with NumPy: what its own client packs is read here, and the other way round; all else is refused."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worldtree_gateway.openpi_codec import MAX_DEPTH, MAX_DIMENSIONS, MAX_ITEMS, MAX_TEXT_BYTES, pack, unpack
from worldtree_runtime.errors import InvalidRequest

msgpack_numpy = pytest.importorskip("openpi_client.msgpack_numpy", reason="openpi-client is installed by make install")

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
ARRAYS = NUMBERS.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=5, min_side=0)))
# np.float64 is a float, and packed as one
SCALARS = NUMBERS.filter(lambda dtype: dtype.name != "float64" and dtype.isnative).flatmap(
    lambda dtype: hnp.arrays(dtype, ()).map(lambda array: array[()])
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    PLAIN | ARRAYS | SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.ndarray | np.generic):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    return type(first) is type(second) and (first == second or first != first)


def array(**changes: Any) -> dict[Any, Any]:
    """An array as it is packed, with some of it wrong; None: left out."""
    packed = {b"__ndarray__": True, b"data": bytes(6), b"dtype": "|u1", b"shape": [2, 3]}
    packed |= {key.encode(): value for key, value in changes.items()}
    return {key: value for key, value in packed.items() if value is not None}


def scalar(data: Any, dtype: Any) -> dict[Any, Any]:
    return {b"__npgeneric__": True, b"data": data, b"dtype": dtype}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def place_of_fault(data: bytes) -> str | None:
    """The field of a refusal; None: it was read."""
    try:
        unpack(data)
    except InvalidRequest as error:
        return error.field
    return None


@given(VALUES)
def test_what_the_stock_client_packs_is_read_as_it_was(value: Any) -> None:
    assert same(value, unpack(msgpack_numpy.packb(value)))


@given(VALUES)
def test_what_is_packed_here_the_stock_client_reads_as_it_was(value: Any) -> None:
    assert same(value, msgpack_numpy.unpackb(pack(value)))


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    assert place_of_fault(data) != ""


@given(VALUES, st.data())
def test_a_message_that_was_cut_or_changed_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    packed = bytearray(pack({"value": value}))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] = data.draw(st.integers(0, 255))
    for damaged in (bytes(packed), bytes(packed[:place])):
        assert place_of_fault(damaged) != ""


def test_an_array_cannot_be_written_to() -> None:
    read: Any = unpack(pack({"image": np.zeros((2, 2), np.uint8)}))
    assert not read["image"].flags.writeable


@pytest.mark.parametrize(
    ("value", "field", "said"),
    [
        (array(dtype="|O"), "x.dtype", "must be one of bool, int8"),
        (array(dtype="|V1"), "x.dtype", "got '|V1'"),
        (array(dtype="<c8"), "x.dtype", "got '<c8'"),
        (array(dtype="<U1"), "x.dtype", "got '<U1'"),
        (array(dtype="<M8[s]"), "x.dtype", "got '<M8[s]'"),
        (array(dtype="u1,u1"), "x.dtype", "got 'u1,u1'"),
        (array(dtype=[["a", "|u1"]]), "x.dtype", "got [['a', '|u1']]"),
        (array(dtype=b"|u1"), "x.dtype", "got b'|u1'"),
        (array(data=bytes(5)), "x.data", "must be 6 bytes for uint8 [2, 3], got 5"),
        (array(data=bytes(7)), "x.data", "must be 6 bytes for uint8 [2, 3], got 7"),
        (array(data="abcdef"), "x.data", "got 'abcdef'"),
        (array(data=b"\0\1\2\0\1\0", dtype="|b1"), "x.data", "0 and 1 for bool"),
        (array(shape=[-2, -3]), "x.shape", "got [-2, -3]"),
        (array(shape=[2, 3.0]), "x.shape", "got [2, 3.0]"),
        (array(shape=[True, 6]), "x.shape", "got [True, 6]"),
        (array(shape=[0, 1 << 40], data=b""), "x.shape", "got [0, 1099511627776]"),
        (array(shape=6), "x.shape", "got 6"),
        (array(shape=[1] * 9, data=b"a"), "x.shape", f"{MAX_DIMENSIONS} dimensions at most, got 9"),
        (array(shape=None), "x", "must be a map of __ndarray__, data, dtype, shape"),
        (array(more=1), "x", "must be a map of __ndarray__, data, dtype, shape"),
        ({**array(), b"__ndarray__": b"pickled"}, "x", "must be a map of"),
        (scalar(256, "|u1"), "x.data", "must be of uint8, got 256"),
        (scalar(-1, "<u4"), "x.data", "must be of uint32, got -1"),
        (scalar(1.5, "<i4"), "x.data", "must be of int32, got 1.5"),
        (scalar(True, "<i4"), "x.data", "must be of int32, got True"),
        (scalar(1, "|b1"), "x.data", "must be of bool, got 1"),
        (scalar(1e300, "<f4"), "x.data", "must be of float32, got 1e+300"),
        (scalar(b"\x80\x04.", "|O"), "x.dtype", "got '|O'"),
        (scalar({"a": 1}, "<i4"), "x.data", "must be of int32"),
        ({**scalar(1, "<i4"), b"more": 1}, "x", "must be a map of __npgeneric__, data, dtype"),
        ({b"bytes": 1}, "x", "must have texts as keys, got b'bytes'"),
        (nested(MAX_DEPTH), "x" + "[0]" * (MAX_DEPTH - 1), f"nested {MAX_DEPTH} deep at most"),
        (msgpack.Timestamp(1), "x", "must be of a plain type"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_refused_by_its_place(value: Any, field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        unpack(msgpack.packb({"x": value}))
    assert caught.value.field == field
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "incomplete"),
        (b"\xc1", "must be msgpack"),
        (b"\x80\x80", "extra data"),
        (b"\xa1\xff", "utf-8"),
        (b"\x81\x01\x02", "int is not allowed"),
        (b"\x91" * 2000 + b"\x01", "must be msgpack"),
        (b"\xdd\xff\xff\xff\xff", "4294967295 exceeds"),
        (b"\xdf\xff\xff\xff\xff", "4294967295 exceeds"),
        (msgpack.packb([0] * (MAX_ITEMS + 1)), f"{MAX_ITEMS + 1} exceeds"),
        (msgpack.packb([[]] * 1000), "more than 256 maps and lists"),
        (msgpack.packb("a" * (MAX_TEXT_BYTES + 1)), f"{MAX_TEXT_BYTES + 1} exceeds"),
        (msgpack.packb(msgpack.ExtType(5, b"code")), "extension type 5"),
        (b"\x80\x04\x95.", "must be msgpack"),
    ],
)
def test_what_is_no_message_is_refused_as_a_whole(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        unpack(data)
    assert (caught.value.field, caught.value.reason) == ("observation", "NOT_MSGPACK")
    assert said in caught.value.message


@pytest.mark.parametrize("value", [np.array([object()]), np.array([1j]), np.array(["a"]), object(), {1, 2}])
def test_what_the_stock_client_could_not_read_is_not_packed(value: Any) -> None:
    with pytest.raises(TypeError, match="is not packed here"):
        pack({"x": value})
