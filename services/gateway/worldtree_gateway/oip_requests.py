"""One request of the inference protocol, read and checked: its sequence, its inputs, what it wants of the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_models import Model
from worldtree_gateway.oip_tensors import Tensor, add_outputs, from_texts, read_inputs, requested_outputs

FINAL = "triton_final_response"
JSON_BYTES = "worldtree_json_bytes"  # what the REST side says of the JSON that frames become
# What begins so is Triton's own affair. Whether an empty final answer is wanted need not be heeded: the last answer of
# a request is known as such here, and says so itself.
_TRITON = "triton_"
_CLASSIFICATION = "classification"
# By name, the members of a parameter that each may be said in.
_PARAMETERS = {
    "sequence_id": ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "timeout": ("int64_param", "uint64_param"),
    "priority": ("int64_param", "uint64_param"),  # all are alike
    "binary_data_output": ("bool_param",),
    JSON_BYTES: ("int64_param",),
}
_ID_CHARS = 256


@dataclass(frozen=True, slots=True)
class Options:
    """What a request says beside its tensors. `sequence`: None where it is of none. `timeout_s`: None where unlimited.

    `raw`: whether tensors of the answer are raw, which is what Triton always sends. `json_bytes`: the most JSON that
    its frames may become; None where they do not.
    """

    sequence: int | str | None = None
    start: bool = False
    end: bool = False
    timeout_s: float | None = None
    raw: bool = True
    json_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Raw as it came, and what was read of it. `classes`: of outputs that are wanted as the best classes, how many."""

    message: pb.ModelInferRequest
    options: Options
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    classes: Mapping[str, int]

    def response(
        self, model: Model, outputs: Mapping[str, Tensor], *, final: bool | None = None, session: str = ""
    ) -> pb.ModelInferResponse:
        """The wanted ones of `outputs`. `final`: whether it is the request's last; None: there are no others."""
        response = pb.ModelInferResponse(
            model_name=self.message.model_name, model_version=model.version, id=self.message.id
        )
        wanted = [(name, self._as_wanted(name, outputs[name], model)) for name in self.outputs if name in outputs]
        add_outputs(response, wanted, raw=self.options.raw)
        if session:
            response.parameters["worldtree_session"].string_param = session
        if final is not None:
            response.parameters[FINAL].bool_param = final
        return response

    def element_bytes(self, outputs: Mapping[str, Tensor]) -> int:
        """How many bytes of the wanted ones are written element by element."""
        return 0 if self.options.raw else sum(len(outputs[name].data) for name in self.outputs if name in outputs)

    @property
    def version(self) -> str:
        """The one asked for; empty: any."""
        return str(self.message.model_version)

    def _as_wanted(self, name: str, tensor: Tensor, model: Model) -> Tensor:
        count = self.classes.get(name)
        if count is None:
            return tensor
        labels = model.labels[name]
        if tensor.shape[-1:] != (len(labels),):  # another version than the one whose names are known
            raise InvalidRequest(
                f"outputs[{name}].parameters[classification]",
                f"output {name} has the shape {list(tensor.shape)} in version {model.version or 'unknown'}, where the "
                f"names of {len(labels)} classes are known: ask for a version, or without classification",
                count=len(labels),
            )
        return _classified(tensor, labels, count)


def read_options(message: pb.ModelInferRequest) -> Options:
    """Raises InvalidRequest for what no request says."""
    if len(message.id) > _ID_CHARS:
        raise InvalidRequest("id", f"id must have {_ID_CHARS} characters at most, got {len(message.id)}")
    said: dict[str, Any] = {}
    for name, parameter in message.parameters.items():
        if name.startswith(_TRITON):
            continue
        accepted = _PARAMETERS.get(name)
        if accepted is None:
            known = ", ".join(_PARAMETERS)
            raise InvalidRequest(
                f"parameters[{name[:80]}]",
                f'parameter must be one of {known}, got "{name[:80]}"',
                reason="UNKNOWN_PARAMETER",
            )
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in accepted:
            wanted = " or ".join(accepted)
            raise InvalidRequest(f"parameters[{name}]", f"parameter {name} must be {wanted}, got {kind or 'nothing'}")
        said[name] = getattr(parameter, kind)
    sequence = said.get("sequence_id", 0)
    if isinstance(sequence, str) and len(sequence) > _ID_CHARS:
        raise InvalidRequest(
            "parameters[sequence_id]",
            f"parameter sequence_id must have {_ID_CHARS} characters at most, got {len(sequence)}",
        )
    start, end = said.get("sequence_start", False), said.get("sequence_end", False)
    if (start or end) and not sequence:
        raise InvalidRequest(
            "parameters[sequence_id]",
            "parameter sequence_id must be there, and neither 0 nor empty, where sequence_start or sequence_end is",
        )
    timeout_us = said.get("timeout", 0)
    if timeout_us < 0:
        raise InvalidRequest("parameters[timeout]", f"parameter timeout must be 0 or more, in µs, got {timeout_us}")
    return Options(
        sequence=sequence or None,
        start=start,
        end=end,
        timeout_s=timeout_us / 1e6 if timeout_us else None,
        raw=said.get("binary_data_output", True),
        json_bytes=said.get(JSON_BYTES),
    )


def read_request(message: pb.ModelInferRequest, model: Model, options: Options) -> InferRequest:
    """Raises InvalidRequest, which names the input or output, its value and what it may be."""
    if options.sequence is not None and not model.stateful:
        raise InvalidRequest(
            "parameters[sequence_id]",
            f"model {model.name} keeps nothing from one request to the next: it takes no sequence_id",
        )
    inputs = read_inputs(message, model.check)
    outputs = requested_outputs(message, model.output_names)
    return InferRequest(message, options, inputs, outputs, _classes(message, model))


def _classes(message: pb.ModelInferRequest, model: Model) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in message.outputs:
        if _CLASSIFICATION in each.parameters:
            field = f"outputs[{each.name}].parameters[classification]"
            count = each.parameters[_CLASSIFICATION].int64_param or each.parameters[_CLASSIFICATION].uint64_param
            if not model.has_classes(each.name):
                raise InvalidRequest(field, f"output {each.name} has no classes: it holds no number for each of them")
            if count < 1:
                raise InvalidRequest(field, f"parameter classification must be 1 or more, got {count}")
            found[each.name] = min(count, len(model.labels[each.name]))
    return found


def _classified(tensor: Tensor, labels: Sequence[str], count: int) -> Tensor:
    """Triton's classification: for each row its best classes, each "value:id:label"."""
    rows = tensor.array.reshape(-1, tensor.shape[-1])
    best = np.argsort(-rows, axis=-1, kind="stable")[:, :count]
    texts = [f"{row[each]:f}:{each}:{labels[each]}" for row, order in zip(rows, best, strict=True) for each in order]
    return from_texts(texts, (*tensor.shape[:-1], count))
