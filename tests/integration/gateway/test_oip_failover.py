"""Sequences of the inference protocol outlive their replica: killed in the middle, they go on with the same frames."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from inference_servers import ANYWHERE, actions, given
from worldtree.aio import Client
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_runtime.testing import TinyWorld

WALK = [0, 1, 2, 1, 0, 2, 2, 1] * 3


class Replicas:
    """Two of the video service over one Redis, and the gateway before them."""

    def __init__(self, models: Path, redis_url: str) -> None:
        self._models, self._redis_url = models, redis_url
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.addresses: list[str] = []
        self.gateway: RunningGateway | None = None

    async def start(self, name: str) -> None:
        flags = ["--models", str(self._models), "--replica", name, "--port", "0", "--metrics-port", "0"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worldtree_video", *flags, "--pool-mib", "8", "--log-level", "error"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "WORLDTREE_REDIS_URL": self._redis_url},
        )
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        self.processes[name] = process
        self.addresses.append(dict(part.split("=", 1) for part in line.split()[2:])["grpc"])

    async def kill_home_of(self, session: str) -> None:
        """The session's id ends with the name of its replica."""
        process = self.processes[session.rpartition(".")[2]]
        process.kill()
        await process.wait()

    async def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def replicas(tmp_path: Path, valkey: Any) -> AsyncIterator[Replicas]:
    TinyWorld().write(tmp_path / "models")
    async with AsyncExitStack() as stack:
        replicas = Replicas(tmp_path / "models", valkey.url)
        stack.push_async_callback(replicas.end)
        for name in ("one", "two"):
            await replicas.start(name)
        settings = GatewaySettings(video=replicas.addresses, probe_interval_s=0.1, **ANYWHERE)
        replicas.gateway = await stack.enter_async_context(start_gateway(settings))
        await replicas.gateway.wait_ready()
        yield replicas


async def expected(address: str) -> bytes:
    async with Client(address) as sdk, await sdk.world("tiny", start="dusk", seed=3) as world:
        return b"".join([(await world.step(action)).tobytes() for action in WALK])


def begins() -> list[Any]:
    return [given("start", ["dusk"], "BYTES"), given("seed", [3], "INT64")]


async def test_a_sequence_of_requests_goes_on_where_its_replica_was_killed(replicas: Replicas) -> None:
    assert replicas.gateway is not None
    address = replicas.gateway.server.address
    wanted = await expected(address)
    frames = []
    async with triton.InferenceServerClient(address) as client:
        for place, action in enumerate(WALK):
            first, last = place == 0, place == len(WALK) - 1
            answer = await client.infer(
                "tiny",
                [actions(action), *(begins() if first else [])],
                sequence_id=1,
                sequence_start=first,
                sequence_end=last,
            )
            frames.append(answer.as_numpy("frames").tobytes())
            if place == len(WALK) // 2:
                await replicas.kill_home_of(answer.get_response().parameters["worldtree_session"].string_param)
    assert b"".join(frames) == wanted


async def test_a_stream_goes_on_in_the_middle_of_a_request(replicas: Replicas) -> None:
    assert replicas.gateway is not None
    address = replicas.gateway.server.address
    wanted = await expected(address)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        inputs = [actions(*WALK), *begins()]
        yield {"model_name": "tiny", "inputs": inputs, "sequence_id": 2, "sequence_start": True, "sequence_end": True}

    frames: list[Any] = []
    async with triton.InferenceServerClient(address) as client:
        async for answer, error in client.stream_infer(requests()):
            assert error is None, error
            frames.append(answer.as_numpy("frames"))
            if len(frames) == 3:
                await replicas.kill_home_of(answer.get_response().parameters["worldtree_session"].string_param)
    assert len(frames) == len(WALK)
    assert np.concatenate(frames).tobytes() == wanted
