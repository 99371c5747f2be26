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

_DETAILS = ("ErrorInfo", "BadRequest", "ResourceInfo", "RetryInfo", "PreconditionFailure")


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


async def refused(call: Any) -> Refusal:
    """What a call is refused with; fails where it is not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _ended(call)
    status = rpc_status.from_call(_WithTrailers(caught.value))
    assert status is not None, f"{caught.value.code()} {caught.value.details()} brought no google.rpc.Status"
    details: dict[str, Any] = {}
    for packed in status.details:
        for name in _DETAILS:
            message = getattr(error_details_pb2, name)()
            if packed.Unpack(message):
                details[name] = message
    assert details["ErrorInfo"].domain == "worldtree"
    return Refusal(caught.value.code(), status.message, details)


async def _ended(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        [each async for each in call]
    else:
        await call


class _WithTrailers:
    """What grpc_status reads of an asynchronous call's error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        return self._error.code()

    def details(self) -> str | None:
        return self._error.details()

    def trailing_metadata(self) -> Any:
        return tuple(self._error.trailing_metadata())


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
