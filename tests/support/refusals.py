"""What a plain client sees of a server that refuses: the status, its details, and what the server counted."""

import asyncio
import struct
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

_DETAILS = (
    "ErrorInfo",
    "BadRequest",
    "ResourceInfo",
    "RetryInfo",
    "QuotaFailure",
    "PreconditionFailure",
    "RequestInfo",
)


@dataclass(frozen=True)
class Refusal:
    """A status and its details by type."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]

    @property
    def reason(self) -> str:
        return str(self.details["ErrorInfo"].reason)

    @property
    def field(self) -> str | None:
        bad = self.details.get("BadRequest")
        return None if bad is None else str(bad.field_violations[0].field)


async def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    status = rpc_status.from_call(_WithTrailers(error))
    assert status is not None, f"{error.code()} {error.details()} brought no google.rpc.Status"
    details: dict[str, Any] = {}
    for packed in status.details:
        kind = next(kind for kind in _DETAILS if packed.Is(getattr(error_details_pb2, kind).DESCRIPTOR))
        assert kind not in details, f"two {kind}"
        details[kind] = getattr(error_details_pb2, kind)()
        packed.Unpack(details[kind])
    assert details["ErrorInfo"].domain == "worldtree"
    return Refusal(error.code(), status.message, details)


class _WithTrailers:
    """What grpc_status asks of a call, from the error that it raised."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def trailing_metadata(self) -> list[Any]:
        return list(self._error.trailing_metadata() or ())

    def code(self) -> grpc.StatusCode:
        return self._error.code()

    def details(self) -> str | None:
        return self._error.details()


async def _ended(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        [each async for each in call]
    else:
        await call


async def refused(call: Any) -> Refusal:
    """What a call is refused with; fails where it is not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _ended(call)
    return await refusal_of(caught.value)


async def samples(metrics_address: str, name: str) -> dict[str, float]:
    """The samples of a metric by their labels."""
    host, _, port = metrics_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return {line.rpartition(" ")[0].removeprefix(name): float(line.rpartition(" ")[2]) for line in lines}


def bomb() -> bytes:
    """The header of a PNG that promises 100,000 x 100,000 pixels."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 100_000, 100_000, 8, 2, 0, 0, 0)
