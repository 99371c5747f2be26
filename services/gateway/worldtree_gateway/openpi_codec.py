"""msgpack with NumPy arrays, as openpi speaks it. What is read is checked, and nothing is ever unpickled."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import msgpack
import numpy as np
from worldtree_runtime.errors import InvalidRequest

MAX_DEPTH = 8  # maps and lists inside one another
MAX_CONTAINERS = 256  # maps and lists of one message
MAX_ITEMS = 1024  # of one map or list
MAX_TEXT_BYTES = 8192
MAX_DIMENSIONS = 8
MAX_SIDE = 1 << 24  # of an array

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_ARRAY_KEYS = {_ARRAY, b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {_SCALAR, b"data", b"dtype"}
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_NAMES = ["bool", *_INTEGERS, "float16", "float32", "float64"]
_DTYPES = {dtype.str: dtype for name in _NAMES for dtype in (np.dtype(name), np.dtype(name).newbyteorder(">"))}
_SHOWN_CHARS = 80


def pack(value: object) -> bytes:
    """`value`: maps, lists, texts, numbers, NumPy scalars and arrays of bools, integers and floats."""
    packed: bytes = msgpack.packb(value, default=_to_map)
    return packed


def unpack(data: bytes) -> object:
    """The value; arrays are views of `data` that cannot be written to. Raises InvalidRequest."""
    count = _Count()
    try:
        raw = msgpack.unpackb(
            data,
            object_hook=count,
            list_hook=count,
            ext_hook=_refuse_extension,
            max_bin_len=len(data),
            max_str_len=MAX_TEXT_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except ValueError as error:  # msgpack's own are all of this kind, as is that of a text that is not UTF-8
        reason = str(error)[:_SHOWN_CHARS] or type(error).__name__
        raise InvalidRequest("observation", f"observation must be msgpack: {reason}", reason="NOT_MSGPACK") from error
    return _read(raw, "", 1)


def shown(value: object) -> str:
    """What a message shows of what a caller sent."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


class _Count:
    """Ends the reading of a message that is small on the wire and huge in memory: many empty lists."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, container: Any) -> Any:
        self._count += 1
        if self._count > MAX_CONTAINERS:
            raise ValueError(f"it has more than {MAX_CONTAINERS} maps and lists")
        return container


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not read here")


def _to_map(value: object) -> dict[bytes, object]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.str not in _DTYPES:
        what = value.dtype if isinstance(value, np.ndarray | np.generic) else type(value).__name__
        raise TypeError(f"{what} is not packed here")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}


def _read(value: Any, field: str, depth: int) -> object:
    """`field`: where it lies, for messages; empty for the whole."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return _read_array(value, field or "observation")
        if _SCALAR in value:
            return _read_scalar(value, field or "observation")
    if isinstance(value, dict | list) and depth > MAX_DEPTH:
        raise _invalid(field, f"must be nested {MAX_DEPTH} deep at most, got more", limit=MAX_DEPTH)
    match value:
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise _invalid(field or "observation", f"must have texts as keys, got {shown(key)}")
            return {key: _read(each, _inside(field, key), depth + 1) for key, each in value.items()}
        case list():
            return [_read(each, f"{field}[{place}]", depth + 1) for place, each in enumerate(value)]
        case None | bool() | int() | float() | str() | bytes():
            return value
    raise _invalid(field or "observation", f"must be of a plain type, got {shown(value)}")


def _read_array(value: Mapping[bytes, Any], field: str) -> np.ndarray[Any, Any]:
    _check_keys(value, _ARRAY_KEYS, field)
    dtype, shape, data = _dtype(value, field), value[b"shape"], value[b"data"]
    if not isinstance(shape, list) or not all(type(side) is int and 0 <= side <= MAX_SIDE for side in shape):
        raise _invalid(f"{field}.shape", f"must be sizes from 0 to {MAX_SIDE}, got {shown(shape)}", limit=MAX_SIDE)
    if len(shape) > MAX_DIMENSIONS:
        raise _invalid(
            f"{field}.shape", f"must have {MAX_DIMENSIONS} dimensions at most, got {len(shape)}", limit=MAX_DIMENSIONS
        )
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != expected:
        got = f"{len(data)}" if isinstance(data, bytes) else shown(data)
        raise _invalid(f"{field}.data", f"must be {expected} bytes for {dtype.name} {shape}, got {got}", limit=expected)
    if dtype.kind == "b" and data.strip(b"\0\1"):
        raise _invalid(f"{field}.data", "must be bytes of 0 and 1 for bool, got others")
    return np.ndarray(shape, dtype, data)


def _read_scalar(value: Mapping[bytes, Any], field: str) -> np.generic:
    _check_keys(value, _SCALAR_KEYS, field)
    dtype, data = _dtype(value, field), value[b"data"]
    match dtype.kind:
        case "b":
            fits = type(data) is bool
        case "f":
            fits = type(data) is float and not (abs(data) > float(np.finfo(dtype).max) and math.isfinite(data))
        case _:
            limits = np.iinfo(dtype)
            fits = type(data) is int and int(limits.min) <= data <= int(limits.max)
    if not fits:
        raise _invalid(f"{field}.data", f"must be of {dtype.name}, got {shown(data)}")
    scalar: np.generic = dtype.type(data)
    return scalar


def _dtype(value: Mapping[bytes, Any], field: str) -> "np.dtype[Any]":
    name = value[b"dtype"]
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise _invalid(f"{field}.dtype", f"must be one of {', '.join(_NAMES)}, got {shown(name)}", reason="BAD_DTYPE")
    return dtype


def _check_keys(value: Mapping[Any, Any], keys: set[bytes], field: str) -> None:
    mark = _ARRAY if _ARRAY in keys else _SCALAR
    if set(value) != keys or value[mark] is not True:
        expected = ", ".join(sorted(key.decode() for key in keys))
        raise _invalid(field, f"must be a map of {expected}, got {shown(sorted(map(str, value)))}")


def _inside(field: str, key: str) -> str:
    name = key if key.isprintable() and len(key) <= _SHOWN_CHARS else shown(key)
    return f"{field}.{name}" if field else name


def _invalid(field: str, message: str, *, reason: str = "INVALID_FIELD", **metadata: object) -> InvalidRequest:
    return InvalidRequest(field, f"{field} {message}", reason=reason, **metadata)
