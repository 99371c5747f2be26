"""Tensors as the Open Inference Protocol carries them: raw bytes or typed contents in, the same out.

Raw is row-major and little endian; an element of BYTES is four bytes of length and then itself.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, Unimplemented

BYTES = "BYTES"
MAX_DIMENSIONS = 8
MAX_INPUTS = 64
MAX_TEXTS = 65_536  # elements of BYTES in one input: each is a step of Python
MAX_TYPED = 1 << 20  # elements of an answer in typed contents
STEP_COUNT = 8192  # elements that become Python's at once: who takes them has the interpreter to himself
_MAX_ELEMENTS = 1 << 40  # far beyond any message: what a shape says is multiplied before it is believed
_LENGTH = struct.Struct("<I")
_SHARED = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class _Kind:
    """One datatype: how NumPy calls it, and the field of typed contents that holds it (None: raw only)."""

    dtype: "np.dtype[Any]"
    contents: str | None


def _kind(name: str, contents: str | None) -> _Kind:
    return _Kind(np.dtype(name).newbyteorder("<"), contents)


_KINDS = {
    "BOOL": _kind("bool", "bool_contents"),
    "UINT8": _kind("uint8", "uint_contents"),
    "UINT16": _kind("uint16", "uint_contents"),
    "UINT32": _kind("uint32", "uint_contents"),
    "UINT64": _kind("uint64", "uint64_contents"),
    "INT8": _kind("int8", "int_contents"),
    "INT16": _kind("int16", "int_contents"),
    "INT32": _kind("int32", "int_contents"),
    "INT64": _kind("int64", "int64_contents"),
    "FP16": _kind("float16", None),
    "FP32": _kind("float32", "fp32_contents"),
    "FP64": _kind("float64", "fp64_contents"),
}
DATATYPES = (*_KINDS, BYTES)
NUMBERS = {name: kind.dtype for name, kind in _KINDS.items()}  # by datatype, how NumPy calls it


@dataclass(frozen=True, slots=True)
class Head:
    """What an input says of itself."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """`data` is the raw form, whichever way it came."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def array(self) -> npt.NDArray[Any]:
        """The elements of any datatype but BYTES, in their shape; not to be written to."""
        return np.frombuffer(self.data, _KINDS[self.datatype].dtype).reshape(self.shape)

    @property
    def texts(self) -> list[bytes]:
        """The elements of BYTES."""
        return _split(self.data)


def from_array(array: npt.NDArray[Any], datatype: str) -> Tensor:
    """Numbers as a tensor of their own shape."""
    return Tensor(datatype, array.shape, np.ascontiguousarray(array, _KINDS[datatype].dtype).tobytes())


def from_texts(texts: Sequence[str], shape: tuple[int, ...] | None = None) -> Tensor:
    """Texts as BYTES, UTF-8."""
    data = b"".join(_LENGTH.pack(len(raw)) + raw for raw in (text.encode() for text in texts))
    return Tensor(BYTES, (len(texts),) if shape is None else shape, data)


def read_inputs(
    request: pb.ModelInferRequest, check: Callable[[Mapping[str, Head]], None] | None = None
) -> dict[str, Tensor]:
    """The inputs of a request by name. `check`: refuses them by their heads, before any element is looked at.

    Raises InvalidRequest, which names the input, its value and the limit.
    """
    if len(request.inputs) > MAX_INPUTS:
        count = len(request.inputs)
        raise InvalidRequest("inputs", f"inputs must be {MAX_INPUTS} at most, got {count}", limit=MAX_INPUTS)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            "raw_input_contents",
            f"raw_input_contents must hold one element for each of the {len(request.inputs)} inputs, got {len(raw)}",
            limit=len(request.inputs),
        )
    heads: dict[str, Head] = {}
    for place, given in enumerate(request.inputs):
        field = f"inputs[{given.name[:80]}]"
        if not given.name or given.name in heads:
            got = f"{given.name[:80]} twice" if given.name else f"one without a name at place {place}"
            raise InvalidRequest(field, f"each input must be given once, by its name; got {got}")
        _check_not_shared(given.parameters, field)
        _check_known(given.datatype, field)
        heads[given.name] = Head(given.datatype, _shape(given.shape, field))
        if raw and given.HasField("contents"):
            raise InvalidRequest(
                f"{field}.contents",
                f"input {given.name} has typed contents beside raw_input_contents: a request must be all raw or all "
                "typed",
            )
    if check is not None:
        check(heads)
    found: dict[str, Tensor] = {}
    for place, (given, head) in enumerate(zip(request.inputs, heads.values(), strict=True)):
        field = f"inputs[{given.name[:80]}]"
        if head.datatype == BYTES and math.prod(head.shape) > MAX_TEXTS:
            raise InvalidRequest(
                f"{field}.shape",
                f"{field} is BYTES: it must hold {MAX_TEXTS} elements at most, got {math.prod(head.shape)}",
                limit=MAX_TEXTS,
            )
        if raw:
            data = _checked(raw[place], head.datatype, head.shape, field)
        else:
            data = _from_typed(given.contents, head.datatype, head.shape, field)
        found[given.name] = Tensor(head.datatype, head.shape, data)
    return found


def typed_count(request: pb.ModelInferRequest) -> int:
    """How many elements its inputs have in typed contents, of which each has to be looked at."""
    return sum(len(values) for each in request.inputs for _, values in each.contents.ListFields())


def requested_outputs(request: pb.ModelInferRequest, known: Sequence[str]) -> list[str]:
    """Names of the outputs that are wanted, in the order asked. None asked: all. Raises InvalidRequest."""
    names: list[str] = []
    for each in request.outputs:
        field = f"outputs[{each.name[:80]}]"
        _check_not_shared(each.parameters, field)
        if each.name not in known:
            raise InvalidRequest(
                field, f'output must be one of {", ".join(known)}, got "{each.name[:80]}"', reason="UNKNOWN_OUTPUT"
            )
        if each.name in names:
            raise InvalidRequest(field, f"each output must be asked for once, got {each.name} twice")
        names.append(each.name)
    return names or list(known)


def add_outputs(response: pb.ModelInferResponse, outputs: Iterable[tuple[str, Tensor]], *, raw: bool) -> None:
    """Writes outputs into a response. Not `raw`: as typed contents, which FP16 has none of.

    Raises InvalidRequest for more than typed contents should carry.
    """
    typed_count = 0
    for name, tensor in outputs:
        if not raw:
            typed_count += math.prod(tensor.shape)
            check_typed(typed_count)
        added = response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(tensor.data)
        elif tensor.datatype == BYTES:
            added.contents.bytes_contents.extend(tensor.texts)
        else:
            contents = _KINDS[tensor.datatype].contents
            assert contents is not None, f"{name} is {tensor.datatype}, which has no typed contents"
            field, elements = getattr(added.contents, contents), tensor.array.ravel()
            for begin in range(0, len(elements), STEP_COUNT):
                field.extend(elements[begin : begin + STEP_COUNT].tolist())


def check_typed(count: int) -> None:
    """Refuses an answer in typed contents of so many elements, where that are too many."""
    if count > MAX_TYPED:
        raise InvalidRequest(
            "parameters[binary_data_output]",
            f"an answer must have {MAX_TYPED} elements at most to go as typed contents, got {count} or more: ask for "
            "it raw, without the parameter binary_data_output, or for fewer outputs",
            reason="ANSWER_TOO_LARGE",
            limit=MAX_TYPED,
            count=count,
        )


def _check_not_shared(parameters: Any, field: str) -> None:
    if _SHARED in parameters:
        raise Unimplemented(
            "SHARED_MEMORY", f"{field} is in shared memory, which this server does not read or write", field=field
        )


def _shape(given: Sequence[int], field: str) -> tuple[int, ...]:
    shape = tuple(given)
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(
            f"{field}.shape",
            f"{field}.shape must have {MAX_DIMENSIONS} dimensions at most, got {len(shape)}",
            limit=MAX_DIMENSIONS,
        )
    if any(side < 0 for side in shape) or math.prod(shape) > _MAX_ELEMENTS:
        raise InvalidRequest(
            f"{field}.shape",
            f"{field}.shape must have sides of 0 and more, {_MAX_ELEMENTS} elements at most, got {list(shape)}",
            limit=_MAX_ELEMENTS,
        )
    return shape


def _checked(data: bytes, datatype: str, shape: tuple[int, ...], field: str) -> bytes:
    """Raw contents that fit their shape."""
    count = math.prod(shape)
    if datatype == BYTES:
        got = _count(data, field, limit=count)
        if got != count:
            shown = "more" if got > count else got
            raise InvalidRequest(
                field, f"{field} must hold {count} elements for its shape {list(shape)}, got {shown}", expected=count
            )
        return data
    kind = _KINDS[datatype]
    expected = count * kind.dtype.itemsize
    if len(data) != expected:
        raise InvalidRequest(
            field,
            f"{field} must hold {expected} bytes for {datatype} of shape {list(shape)}, got {len(data)}",
            expected=expected,
            bytes=len(data),
        )
    if datatype == "BOOL" and data.translate(None, b"\x00\x01"):
        raise InvalidRequest(field, f"{field} is BOOL: each byte must be 0 or 1")
    return data


def _check_known(datatype: str, field: str) -> None:
    if datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise InvalidRequest(
            f"{field}.datatype",
            f'{field}.datatype must be one of {known}, got "{datatype[:40]}"',
        )


def _from_typed(contents: pb.InferTensorContents, datatype: str, shape: tuple[int, ...], field: str) -> bytes:
    """Typed contents in the raw form."""
    wanted = "bytes_contents" if datatype == BYTES else _KINDS[datatype].contents
    if wanted is None:
        raise InvalidRequest(
            f"{field}.contents", f"{field} is {datatype}, which typed contents cannot hold: use raw_input_contents"
        )
    filled = [each.name for each, _ in contents.ListFields()]
    if filled not in ([], [wanted]):
        raise InvalidRequest(
            f"{field}.contents", f"{field} is {datatype}: its contents must be in {wanted}, got {', '.join(filled)}"
        )
    values = getattr(contents, wanted)
    if len(values) != math.prod(shape):
        raise InvalidRequest(
            f"{field}.contents",
            f"{field} must hold {math.prod(shape)} elements for its shape {list(shape)}, got {len(values)}",
            expected=math.prod(shape),
            count=len(values),
        )
    if datatype == BYTES:
        return b"".join(_LENGTH.pack(len(each)) + each for each in values)
    steps = range(0, len(values), STEP_COUNT)
    return b"".join(_packed(values[begin : begin + STEP_COUNT], datatype, field) for begin in steps)


def _packed(values: Sequence[Any], datatype: str, field: str) -> bytes:
    dtype = _KINDS[datatype].dtype
    # left to itself, NumPy makes floats of large unsigned integers beside small ones
    array = np.array(values, {"u": np.uint64, "i": np.int64}.get(dtype.kind, dtype))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        least, most = int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            raise InvalidRequest(
                f"{field}.contents",
                f"{field} is {datatype}: its elements must be {limits.min} to {limits.max}, "
                f"got {least if least < limits.min else most}",
            )
    return array.astype(dtype).tobytes()


def _count(data: bytes, field: str, *, limit: int) -> int:
    """How many elements the raw form of BYTES holds; of more than `limit`, only that there are more."""
    count = offset = 0
    while offset < len(data):
        if count == limit:
            return count + 1
        if offset + _LENGTH.size > len(data):
            break
        offset += _LENGTH.size + _LENGTH.unpack_from(data, offset)[0]
        count += 1
    if offset != len(data):
        raise InvalidRequest(
            field,
            f"{field} is BYTES: after {count} elements it must end with its {len(data)} bytes, each four bytes of "
            "length and then itself",
        )
    return count


def _split(data: bytes) -> list[bytes]:
    elements, offset = [], 0
    while offset < len(data):
        begin = offset + _LENGTH.size
        offset = begin + _LENGTH.unpack_from(data, offset)[0]
        elements.append(data[begin:offset])
    return elements
