"""Messages of any type at random: well formed with values at the edges, and bytes that nearly are such messages."""

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_DEPTH_MAX = 4
_INTEGERS = [0, 1, 2, 3, 7, 64, 1000, 2**31 - 1, -1, -(2**31)]
_LONG = [*_INTEGERS, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, 1.0, -1.0, 0.5, 1e-45, 3e38, float("inf"), float("-inf"), float("nan")]
_WORDS = ["", "a", "..", "0", "\x00", "ä\u202e", "x" * 300, "__proto__", "../../etc/passwd", "%s%n"]
_SCALARS: dict[int, Any] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from(_FLOATS),
    FieldDescriptor.TYPE_FLOAT: st.sampled_from(_FLOATS),
    FieldDescriptor.TYPE_INT32: st.sampled_from(_INTEGERS),
    FieldDescriptor.TYPE_INT64: st.sampled_from(_LONG),
    FieldDescriptor.TYPE_UINT32: st.sampled_from([0, 1, 2, 7, 2**32 - 1]),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([0, 1, 2, 7, 2**64 - 1]),
    FieldDescriptor.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, 99, -1]),
}


def messages(descriptor: Descriptor, words: list[str], depth: int = 0) -> st.SearchStrategy[Message]:
    """Of the type that `descriptor` describes. `words`: names that mean something where it is sent."""

    @st.composite
    def made(draw: Any) -> Message:
        message: Any = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if draw(st.integers(0, 9)) < (6 if depth < 2 else 3):
                _fill(draw, message, field, words, depth)
        return message  # type: ignore[no-any-return]

    return made()


@st.composite
def nearly(draw: Any, descriptor: Descriptor, words: list[str]) -> bytes:
    """The bytes of such a message, or of one that something happened to on its way, or any bytes."""
    data = bytearray(draw(messages(descriptor, words)).SerializePartialToString())
    match draw(st.sampled_from(["whole", "whole", "cut", "changed", "longer", "noise"])):
        case "cut":
            del data[draw(st.integers(0, len(data))) :]
        case "changed" if data:
            for _ in range(draw(st.integers(1, 3))):
                data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        case "longer":
            data += draw(st.binary(max_size=20))
        case "noise":
            return draw(st.binary(max_size=200))  # type: ignore[no-any-return]
    return bytes(data)


def _fill(draw: Any, message: Any, field: FieldDescriptor, words: list[str], depth: int) -> None:
    count = draw(st.integers(0, 3)) if field.is_repeated else 1
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return  # its entries are no message's own
    for _ in range(count):
        if field.message_type is not None:
            if depth >= _DEPTH_MAX:
                return
            inner = draw(messages(field.message_type, words, depth + 1))
            if field.is_repeated:
                getattr(message, field.name).append(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
            continue
        scalar = _SCALARS.get(field.type, st.sampled_from([*_WORDS, *words, *words]))
        value = draw(scalar)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
