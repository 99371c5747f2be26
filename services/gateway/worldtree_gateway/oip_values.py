"""Values out of inputs, as the messages of the services hold them; each refusal names the input and what it may be."""

from collections.abc import Mapping

from worldtree.common.v1 import common_pb2 as common
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_tensors import BYTES, Tensor

_INT32, _INT64 = 31, 63  # bits of the largest value


def text(inputs: Mapping[str, Tensor], name: str) -> str:
    """The one text of an input; empty where the input is not there."""
    tensor = inputs.get(name)
    return "" if tensor is None else _decoded(tensor.texts[0], name)


def texts(tensor: Tensor, name: str) -> list[str]:
    return [_decoded(each, f"{name}[{place}]") for place, each in enumerate(tensor.texts)]


def integer(inputs: Mapping[str, Tensor], name: str, *, bits: int = _INT64) -> int:
    """The one number of an input; 0 where the input is not there."""
    tensor = inputs.get(name)
    return 0 if tensor is None else _bounded(int(tensor.array.ravel()[0]), name, bits)


def integers(tensor: Tensor, name: str, *, bits: int = _INT32) -> list[int]:
    return [_bounded(each, f"{name}[{place}]", bits) for place, each in enumerate(tensor.array.ravel().tolist())]


def integers_or_texts(tensor: Tensor, name: str) -> list[int] | list[str]:
    """What names its elements by id or by name."""
    return texts(tensor, name) if tensor.datatype == BYTES else integers(tensor, name)


def images(tensor: Tensor) -> common.Frames:
    """UINT8 [n, height, width, 3], or one of them without its n."""
    shape = tensor.shape if len(tensor.shape) == 4 else (1, *tensor.shape)
    return common.Frames(tensor=common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=shape, data=tensor.data))


def check_count(tensor: Tensor, name: str, limit: int) -> None:
    """Refuses a list that nobody takes, before its elements are looked at one by one."""
    count = tensor.shape[0] if tensor.shape else 1
    if count > limit:
        raise InvalidRequest(
            f"inputs[{name}]", f"input {name} must hold {limit} elements at most, got {count}", limit=limit, count=count
        )


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"inputs[{name}]", f"input {name} must be UTF-8, got {raw[:40]!r}") from error


def _bounded(value: int, name: str, bits: int) -> int:
    if not -(1 << bits) <= value < 1 << bits:
        raise InvalidRequest(
            f"inputs[{name}]", f"input {name} must be {-(1 << bits)} to {(1 << bits) - 1}, got {value}"
        )
    return value
