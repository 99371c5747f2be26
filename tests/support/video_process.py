"""The video service as a process of its own, asked by a plain grpcio client."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub

_FLAGS = {"port": 0, "metrics-port": 0, "pool-mib": 1, "fp16-pool-mib": 1, "int8-pool-mib": 1}


@asynccontextmanager
async def video_process(**flags: Any) -> AsyncIterator[tuple[Any, asyncio.subprocess.Process]]:
    """A stub of it, and the process; killed at the end."""
    known = _FLAGS | {flag.replace("_", "-"): value for flag, value in flags.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worldtree_video"),
        *(f"--{flag}={value}" for flag, value in known.items()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if not key.startswith("WORLDTREE_")},
    )
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        address = dict(part.split("=", 1) for part in line.split()[2:])["grpc"]
        async with grpc.aio.insecure_channel(address) as channel:
            yield VideoGeneratorStub(channel), process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
