"""The REST form of the inference protocol and its binary extension, as the messages of the gRPC form, and back.

In binary, tensors follow the JSON, one after the other, raw; how many bytes each has is its parameter
`binary_data_size`, and how many the JSON has is the header Inference-Header-Content-Length.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_tensors import BYTES, NUMBERS, STEP_COUNT, Tensor, from_texts

LENGTH_HEADER = "Inference-Header-Content-Length"
_BINARY, _BINARY_SIZE, _BINARY_OUTPUT = "binary_data", "binary_data_size", "binary_data_output"
_DEPTH = 8
_LENGTH_DIGITS = 20  # far beyond any body; more would be read as another number by who looks at some of them
ELEMENT_BYTES = 4  # of a UINT8 as JSON, at most, with its comma


class JsonAnswer:
    """Which outputs of a request are wanted in binary: those in `named`, and of others all or none."""

    def __init__(self, named: Mapping[str, bool], *, others: bool) -> None:
        self._named = named
        self._others = others

    def json_bytes(self, response: pb.ModelInferResponse) -> int:
        """How many bytes of tensors become JSON."""
        sizes = zip(response.outputs, map(len, response.raw_output_contents), strict=True)
        return sum(size for output, size in sizes if not self.is_binary(output.name))

    def body(self, response: pb.ModelInferResponse, *, limit_bytes: int) -> tuple[tuple[bytes, ...], dict[str, str]]:
        """The parts of the body, and its headers. Raises InvalidRequest for more JSON than `limit_bytes`, as soon as
        there is so much.
        """
        answer: dict[str, Any] = {"model_name": response.model_name}
        if response.model_version:
            answer["model_version"] = response.model_version
        if response.id:
            answer["id"] = response.id
        if response.parameters:
            answer["parameters"] = {name: _parameter(value) for name, value in sorted(response.parameters.items())}
        head, blobs = bytearray(to_json(answer)), []
        head[-1:] = b',"outputs":['
        for place, (output, raw) in enumerate(zip(response.outputs, response.raw_output_contents, strict=True)):
            told: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
            head += b"," if place else b""
            if self.is_binary(output.name):
                head += to_json({**told, "parameters": {_BINARY_SIZE: len(raw)}})
                blobs.append(raw)
                continue
            head += to_json(told)
            head[-1:] = b',"data":['
            for step, part in enumerate(_written(Tensor(output.datatype, tuple(output.shape), raw))):
                head += b"," if step else b""
                head += part
                check_answer(len(head), limit_bytes)
            head += b"]}"
        head += b"]}"
        check_answer(len(head), limit_bytes)
        if not blobs:
            return (bytes(head),), {"Content-Type": "application/json"}
        return (bytes(head), *blobs), {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}

    def is_binary(self, name: str) -> bool:
        return self._named.get(name, self._others)


def read_length(said: str) -> int:
    """How many bytes are JSON, as the header says. Raises InvalidRequest."""
    if not (said.isascii() and said.isdigit() and len(said) <= _LENGTH_DIGITS):
        raise InvalidRequest(
            f"headers[{LENGTH_HEADER}]",
            f"{LENGTH_HEADER} must be a number of {_LENGTH_DIGITS} digits at most, got {said[:40]!r} of {len(said)}",
            limit=_LENGTH_DIGITS,
            characters=len(said),
        )
    return int(said)


def read_infer(body: bytes, json_length: str | None) -> tuple[pb.ModelInferRequest, JsonAnswer]:
    """`json_length`: what the header says of how many bytes are JSON; None: all. Raises InvalidRequest."""
    length = len(body) if json_length is None else read_length(json_length)
    if length > len(body):
        raise InvalidRequest(
            f"headers[{LENGTH_HEADER}]",
            f"{LENGTH_HEADER} must be up to the {len(body)} bytes of the body, got {length}",
            limit=len(body),
        )
    document = read_object(body[:length])
    # KServe's client names the model in here too, and writes null for what it leaves out
    _check_keys(document, "", {"id", "model_name", "model_version", "parameters", "inputs", "outputs"})
    request = pb.ModelInferRequest(id=_text(_said(document, "id", ""), "id"))
    parameters = _object(_said(document, "parameters", {}), "parameters")
    binary_output = _flag(parameters.get(_BINARY_OUTPUT, False), f"parameters.{_BINARY_OUTPUT}")
    _set_parameters(request.parameters, {name: each for name, each in parameters.items() if name != _BINARY_OUTPUT})
    offset = length
    for place, given in enumerate(_list(_said(document, "inputs", []), "inputs")):
        offset = _read_input(request, _object(given, f"inputs[{place}]"), f"inputs[{place}]", body, offset)
    if offset != len(body):
        raise InvalidRequest(
            "body", f"the tensors of the request end after {offset} bytes, its body after {len(body)}", bytes=len(body)
        )
    named: dict[str, bool] = {}
    for place, given in enumerate(_list(_said(document, "outputs", []), "outputs")):
        where = f"outputs[{place}]"
        wanted = _object(given, where)
        _check_keys(wanted, where, {"name", "parameters"})
        name = _text(wanted.get("name", ""), f"{where}.name")
        options = dict(_object(_said(wanted, "parameters", {}), f"{where}.parameters"))
        named[name] = _flag(options.pop(_BINARY, binary_output), f"{where}.parameters.{_BINARY}")
        _set_parameters(request.outputs.add(name=name).parameters, options)
    return request, JsonAnswer(named, others=binary_output)


def read_object(body: bytes) -> Mapping[str, Any]:
    """A JSON object; nothing at all is an empty one. Raises InvalidRequest."""
    if not body.strip():
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", f"the body must be JSON: {str(error)[:80]}", reason="NOT_JSON") from error
    return _object(document, "body")


def check_answer(size_bytes: int, limit_bytes: int) -> None:
    """Refuses an answer of so much JSON, where that is too much."""
    if size_bytes > limit_bytes:
        raise InvalidRequest(
            f"parameters[{_BINARY_OUTPUT}]",
            f"an answer must have {limit_bytes} bytes of JSON at most (setting gateway.http_json_bytes): ask for "
            f"binary data, with the parameter {_BINARY_OUTPUT} of the request or {_BINARY} of an output, or for less",
            reason="ANSWER_TOO_LARGE",
            limit=limit_bytes,
        )


def to_json(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def plain(message: Message, *, defaults: bool = False) -> dict[str, Any]:
    """A message as JSON has it, by the names of its fields, numbers as numbers. `defaults`: also what is 0 or empty."""
    fields: Iterable[Any] = message.DESCRIPTOR.fields if defaults else [each for each, _ in message.ListFields()]
    return {each.name: _plain(each, getattr(message, each.name), defaults) for each in fields}


def _plain(field: Any, value: Any, defaults: bool) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _plain(of, value[key], defaults) for key in sorted(value)}
    if field.is_repeated:
        return [_one(field, each, defaults) for each in value]
    return _one(field, value, defaults)


def _one(field: Any, value: Any, defaults: bool) -> Any:
    if field.message_type is not None:
        return plain(value, defaults=defaults)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _read_input(request: pb.ModelInferRequest, given: Mapping[str, Any], where: str, body: bytes, offset: int) -> int:
    """Adds an input, always raw; where the next binary one begins."""
    _check_keys(given, where, {"name", "shape", "datatype", "parameters", "data"})
    name = _text(given.get("name", ""), f"{where}.name")
    datatype = _text(given.get("datatype", ""), f"{where}.datatype")
    shape = _list(given.get("shape"), f"{where}.shape")
    for side in shape:
        if not isinstance(side, int) or isinstance(side, bool) or not 0 <= side < 1 << 62:
            raise InvalidRequest(f"{where}.shape", f"{where}.shape must hold numbers of 0 and more, got {shape}"[:200])
    parameters = dict(_object(_said(given, "parameters", {}), f"{where}.parameters"))
    size = parameters.pop(_BINARY_SIZE, None)
    added = request.inputs.add(name=name, datatype=datatype, shape=shape)
    _set_parameters(added.parameters, parameters)
    if size is None:
        if given.get("data") is None:
            raise InvalidRequest(f"inputs[{name}]", f"input {name} must have data, or the parameter {_BINARY_SIZE}")
        request.raw_input_contents.append(_raw(given["data"], name, datatype))
        return offset
    if given.get("data") is not None:
        raise InvalidRequest(f"inputs[{name}]", f"input {name} must have data or {_BINARY_SIZE}, not both")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - offset:
        raise InvalidRequest(
            f"inputs[{name}].parameters[{_BINARY_SIZE}]",
            f"{_BINARY_SIZE} of input {name} must be 0 to the {len(body) - offset} bytes that are left, got {size}",
            limit=len(body) - offset,
        )
    request.raw_input_contents.append(body[offset : offset + size])
    return offset + size


def _raw(data: Any, name: str, datatype: str) -> bytes:
    """JSON elements, flat or nested, in the raw form. Whether they fit their shape is looked at with all tensors."""
    flat: list[Any] = []
    _flatten(_list(data, f"inputs[{name}].data"), flat, name, depth=0)
    if datatype == BYTES:
        for each in flat:
            if not isinstance(each, str):
                raise InvalidRequest(
                    f"inputs[{name}]", f"input {name} is BYTES: its data must be texts, got {each!r}"[:200]
                )
        return from_texts(flat).data
    dtype = NUMBERS.get(datatype)
    if dtype is None:
        return b""  # no datatype of the protocol, as will be told with all tensors
    for each in flat:
        _check_element(each, name, datatype, dtype)
    try:
        return np.array(flat, dtype).tobytes()
    except OverflowError as error:
        raise InvalidRequest(f"inputs[{name}]", f"input {name} has a number that no {datatype} holds") from error


def _check_element(each: Any, name: str, datatype: str, dtype: "np.dtype[Any]") -> None:
    if dtype.kind == "b":
        fits = isinstance(each, bool)
    else:
        fits = isinstance(each, int | float if dtype.kind == "f" else int) and not isinstance(each, bool)
    if not fits:
        raise InvalidRequest(f"inputs[{name}]", f"input {name} is {datatype}, which {each!r} is not"[:200])
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if not limits.min <= each <= limits.max:
            raise InvalidRequest(
                f"inputs[{name}]",
                f"input {name} is {datatype}: its elements must be {limits.min} to {limits.max}, got {each}"[:200],
            )


def _flatten(data: list[Any], flat: list[Any], name: str, *, depth: int) -> None:
    if depth > _DEPTH:
        raise InvalidRequest(f"inputs[{name}]", f"input {name} must be lists in lists up to {_DEPTH} deep")
    for each in data:
        if isinstance(each, list):
            _flatten(each, flat, name, depth=depth + 1)
        else:
            flat.append(each)


def _written(tensor: Tensor) -> Iterator[bytes]:
    """The elements as JSON, flat, row by row, some at a time. What JSON has no word for (NaN, infinities) is null."""
    if tensor.datatype == BYTES:
        texts = tensor.texts
        for begin in range(0, len(texts), STEP_COUNT):
            yield to_json([each.decode(errors="replace") for each in texts[begin : begin + STEP_COUNT]])[1:-1]
        return
    elements = tensor.array.ravel()
    for begin in range(0, len(elements), STEP_COUNT):
        values: list[Any] = elements[begin : begin + STEP_COUNT].tolist()
        if tensor.datatype.startswith("FP"):
            values = [each if math.isfinite(each) else None for each in values]
        yield to_json(values)[1:-1]


def _set_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                target[name].bool_param = value
            case int() if -(1 << 63) <= value < 1 << 63:
                target[name].int64_param = value
            case int() if 0 <= value < 1 << 64:
                target[name].uint64_param = value
            case float():
                target[name].double_param = value
            case str():
                target[name].string_param = value
            case _:
                shown = repr(value)[:80]
                raise InvalidRequest(f"parameters[{name[:80]}]", f"parameter {name[:80]} must be plain, got {shown}")


def _parameter(value: pb.InferParameter) -> Any:
    return getattr(value, value.WhichOneof("parameter_choice"))


def _said(given: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    """What an object says under a key; null is as good as nothing."""
    value = given.get(key)
    return otherwise if value is None else value


def _check_keys(given: Mapping[str, Any], where: str, known: set[str]) -> None:
    for key in given:
        if key not in known:
            place = f"{where}.{key[:80]}" if where else key[:80]
            raise InvalidRequest(
                place, f'{where or "a request"} must have no keys but {", ".join(sorted(known))}, got "{key[:80]}"'
            )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(where, f"{where} must be an object, got {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(where, f"{where} must be a list, got {type(value).__name__}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(where, f"{where} must be a text, got {type(value).__name__}")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(where, f"{where} must be true or false, got {type(value).__name__}")
    return value
