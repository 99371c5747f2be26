"""The gateway as an operator runs it: one command, one ready line, a clean end."""

import asyncio
import re
import signal
from pathlib import Path

import grpc.aio
import pytest
from gateway_process import gateway_process, ready_line
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub


def resident_mib(process: asyncio.subprocess.Process) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def test_it_is_ready_once_a_backend_answered_and_ends_well_after_the_calls_under_way(start_backend) -> None:
    backend = await start_backend("a")
    async with gateway_process("--port", "0", "--video", backend.address, "--drain-timeout-s", "10") as process:
        ready = await ready_line(process)
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            held = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
            step = asyncio.ensure_future(VideoGeneratorStub(channel).Step(held))
            await asyncio.wait_for(backend.begun["Step"].wait(), 5)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            backend.hold.set()
            assert (await step).chunk_index == 1
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert process.stdout is not None
        assert await process.stdout.read() == b"", "one line is all that stdout gets"


async def test_it_waits_for_a_backend_and_says_so(spawn_backend) -> None:
    backend = spawn_backend("a")
    backend.kill()
    async with gateway_process("--port", "0", "--video", backend.address, "--probe-timeout-s", "0.3") as process:
        assert process.stderr is not None
        said = b""
        while b"does not answer" not in said:
            said += await asyncio.wait_for(process.stderr.readline(), 10)
        assert b"waiting for a backend of each of: video" in said
        spawn_backend("a", backend.port)
        assert (await ready_line(process))["metrics"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "--insecure"),
        (("--video", "nonsense"), "HOST:PORT"),
        (("--cache-bytes", "-1"), "--cache-bytes"),
    ],
)
async def test_a_bad_setting_is_one_line_that_names_it(flags: tuple[str, ...], said: str) -> None:
    async with gateway_process("--port", "0", *flags) as process:
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert said in errors.decode()
    assert len(errors.decode().splitlines()) == 1


async def test_callers_who_leave_in_the_middle_leave_no_memory_behind(spawn_backend) -> None:
    backend = spawn_backend("a")
    request = pb.GenerateRequest(
        model=common_pb2.ModelRef(name="echo"), actions=[pb.Action(instruction="size:400000")] * 20
    )

    async def leave(stub: VideoGeneratorStub, message_count: int) -> None:
        call = stub.Generate(request, metadata=(("cache-control", "no-store"),))
        for _ in range(message_count):
            await call.read()
        call.cancel()

    async with gateway_process("--port", "0", "--video", backend.address) as process:
        ready = await ready_line(process)

        async def mib_after(round_count: int) -> float:
            async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
                stub = VideoGeneratorStub(channel)
                for _ in range(round_count):
                    await asyncio.gather(*(leave(stub, 1 + index % 5) for index in range(8)))
            await asyncio.sleep(0.3)
            return resident_mib(process)

        before = await mib_after(25)
        after = await mib_after(75)
        assert after - before < 40, f"600 callers left, and memory went from {before:.0f} to {after:.0f} MiB"
