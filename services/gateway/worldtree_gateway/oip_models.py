"""A served model as the Open Inference Protocol tells of it: its inputs, its outputs, and how it answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_tensors import BYTES, Head

ANY_SIZE = -1  # of a side: it is the request's to choose


@dataclass(frozen=True, slots=True)
class Spec:
    """One input or output. `shape` may have sides of ANY_SIZE.

    `also`: datatypes that an input takes beside its own. `bare`: an input may lack its first side, which then is 1.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    also: tuple[str, ...] = ()
    bare: bool = False

    def check(self, head: Head) -> None:
        """Raises InvalidRequest where an input is not as it must be."""
        field = f"inputs[{self.name}]"
        if head.datatype not in (self.datatype, *self.also):
            wanted = " or ".join((self.datatype, *self.also))
            raise InvalidRequest(f"{field}.datatype", f"input {self.name} must be {wanted}, got {head.datatype[:40]}")
        shapes = [self._shape_of(head.datatype)]
        if self.bare:
            shapes.append(shapes[0][1:])
        if not any(_fits(head.shape, shape) for shape in shapes):
            wanted = " or ".join(_words(shape) for shape in shapes)
            raise InvalidRequest(
                f"{field}.shape", f"input {self.name} must have the shape {wanted}, got {list(head.shape)}"
            )

    def _shape_of(self, datatype: str) -> tuple[int, ...]:
        # a name stands for a whole action, also where actions are vectors
        return self.shape[:1] if datatype == BYTES else self.shape


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model. `section`: the service that serves it. `about`: that service's own message about it.

    `stateful`: its requests may be of sequences. `decoupled`: a stream brings several responses to a request.
    `labels`: by output, what its last side's places are called, or the ids that it holds.
    """

    name: str
    version: str
    digest: str
    section: str
    description: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    about: Any
    stateful: bool = False
    decoupled: bool = False
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def platform(self) -> str:
        return f"worldtree_{self.section}"

    @property
    def output_names(self) -> list[str]:
        return [each.name for each in self.outputs]

    def has_classes(self, output: str) -> bool:
        """Whether an output holds a number for each of its labels, of which some are the best."""
        (spec,) = (each for each in self.outputs if each.name == output)
        count = len(self.labels.get(output, ()))
        return count > 0 and spec.datatype.startswith("FP") and spec.shape[-1:] == (count,)

    def check(self, inputs: Mapping[str, Head]) -> None:
        """Raises InvalidRequest for inputs that the model does not have, or that are not as they must be."""
        known = {each.name: each for each in self.inputs}
        for name, head in inputs.items():
            if name not in known:
                raise InvalidRequest(
                    f"inputs[{name[:80]}]",
                    f'input must be one of {", ".join(known)}, got "{name[:80]}"',
                    reason="UNKNOWN_INPUT",
                )
            known[name].check(head)

    def check_complete(self, inputs: Collection[str]) -> None:
        """Raises InvalidRequest where an input is missing that has to be there."""
        for each in self.inputs:
            if not each.optional and each.name not in inputs:
                raise InvalidRequest(
                    f"inputs[{each.name}]",
                    f"input {each.name} must be there: {each.datatype} {_words(each.shape)}",
                    reason="MISSING_INPUT",
                )

    def metadata(self) -> pb.ModelMetadataResponse:
        response = pb.ModelMetadataResponse(
            name=self.name, versions=[self.version] if self.version else [], platform=self.platform
        )
        for specs, listed in ((self.inputs, response.inputs), (self.outputs, response.outputs)):
            for each in specs:
                listed.add(name=each.name, datatype=each.datatype, shape=each.shape)
        return response

    def config(self, *, idle_s: float) -> config_pb.ModelConfig:
        """`idle_s`: how long a sequence may wait for its next request."""
        config = config_pb.ModelConfig(name=self.name, platform=self.platform, backend="worldtree", max_batch_size=0)
        config.version_policy.specific.versions.extend([int(self.version)] if self.version.isdecimal() else [])
        for each in self.inputs:
            config.input.add(
                name=each.name, data_type=_config_type(each.datatype), dims=each.shape, optional=each.optional
            )
        for each in self.outputs:
            config.output.add(name=each.name, data_type=_config_type(each.datatype), dims=each.shape)
        for name, text in {
            "description": self.description,
            "digest": self.digest,
            **{f"labels.{name}": "\n".join(labels) for name, labels in self.labels.items()},
        }.items():
            config.parameters[name].string_value = text
        if self.stateful:
            config.sequence_batching.max_sequence_idle_microseconds = round(idle_s * 1e6)
        config.model_transaction_policy.decoupled = self.decoupled
        return config


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        side in (given, ANY_SIZE) for given, side in zip(shape, wanted, strict=True)
    )


def _words(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('n' if side == ANY_SIZE else str(side) for side in shape)}]"


def _config_type(datatype: str) -> int:
    name = "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"
    number: int = config_pb.DataType.Value(name)
    return number
