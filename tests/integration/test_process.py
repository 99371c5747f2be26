"""A service's process as its supervisor sees it: signals, exit codes, stdout and stderr."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

SERVICE = '''
import asyncio
import sys
import grpc
from worldtree_runtime import logs
from worldtree_runtime.errors import DataLoss
from worldtree_runtime.server import run, start_server
from worldtree_runtime.settings import ServiceSettings


class EchoSettings(ServiceSettings):
    """Answers slowly."""

    section = "echo"


async def answer(request, context):
    print("entered", file=sys.stderr, flush=True)
    await asyncio.sleep(float(request))
    return request


def register(server):
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    return ["test.Echo"]


async def main():
    async with start_server(settings, service="echo", register=register) as server:
        server.announce()
        await server.wait_closed()


async def corrupt():
    raise DataLoss("MODEL_CORRUPT", "models/minigrid/1/denoise.onnx is corrupt")


async def bug():
    raise RuntimeError("a bug")


settings = EchoSettings.from_command_line("echo")
logs.configure(settings.log_level, settings.log_format)
run({"main": main, "corrupt": corrupt, "bug": bug}[settings.models])
'''


@asynccontextmanager
async def started(tmp_path: Path, *flags: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    script = tmp_path / "echo_service.py"
    script.write_text(SERVICE)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        "--models=main",
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
        cwd=tmp_path,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(process: asyncio.subprocess.Process) -> str:
    """The gRPC address out of the ready line."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    word, state, service, address, metrics = line.split()
    assert (word, state, service) == ("worldtree", "ready", "service=echo")
    assert metrics.startswith("metrics=127.0.0.1:")
    return address.removeprefix("grpc=")


async def entered(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    assert b"serving" in await asyncio.wait_for(process.stderr.readline(), 10)
    assert await asyncio.wait_for(process.stderr.readline(), 10) == b"entered\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_running_call_end_and_the_process_end_well(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with started(tmp_path) as process, grpc.aio.insecure_channel(await ready(process)) as channel:
        call = channel.unary_unary("/test.Echo/Echo")(b"0.5")
        await entered(process)
        process.send_signal(number)
        assert await call == b"0.5"
        out, err = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0
    assert out == b""  # the ready line was the only one
    lines = [json.loads(line) for line in err.decode().splitlines()]
    assert [line["message"] for line in lines] == [f"{number.name}: stopping", "draining", "stopped"]
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    async with started(tmp_path) as process, grpc.aio.insecure_channel(await ready(process)) as channel:
        call = channel.unary_unary("/test.Echo/Echo")(b"60")
        await entered(process)
        process.terminate()
        await asyncio.sleep(0.3)
        assert process.returncode is None
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGTERM
        call.cancel()


@pytest.mark.parametrize(
    ("flags", "environ", "code", "message"),
    [
        (["--port=http"], {}, 2, "--port: Input should be a valid integer"),
        ([], {"WORLDTREE_LOG_LEVEL": "loud"}, 2, "$WORLDTREE_LOG_LEVEL: "),
        (["--config=nowhere.yaml"], {}, 2, "nowhere.yaml: no such file"),
        (["--models=corrupt"], {}, 1, "models/minigrid/1/denoise.onnx is corrupt"),
    ],
)
async def test_a_start_that_cannot_succeed_is_one_line_and_a_code(
    tmp_path: Path, flags: list[str], environ: dict[str, str], code: int, message: str
) -> None:
    async with started(tmp_path, *flags, **environ) as process:
        out, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == code
    assert out == b""
    (line,) = err.decode().splitlines()
    assert message in line


async def test_a_taken_port_is_one_line_and_a_code(tmp_path: Path) -> None:
    async with started(tmp_path) as first:
        port = (await ready(first)).rpartition(":")[2]
        async with started(tmp_path, f"--port={port}", "--metrics-port=0") as second:
            out, err = await asyncio.wait_for(second.communicate(), 20)
        assert (second.returncode, out) == (1, b"")
        assert f"cannot listen on 127.0.0.1:{port}" in err.decode().splitlines()[-1]
        assert "Traceback" not in err.decode()


async def test_a_bug_ends_the_process_with_its_traceback(tmp_path: Path) -> None:
    async with started(tmp_path, "--models=bug") as process:
        _, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 1
    assert "Traceback" in err.decode()
    assert "RuntimeError: a bug" in err.decode()


async def test_help_lists_every_knob_with_its_variable(tmp_path: Path) -> None:
    async with started(tmp_path, "--help") as process:
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
    text = " ".join(out.decode().split())
    for knob in ("--port INT", "$WORLDTREE_ECHO_PORT", "--drain-timeout-s FLOAT", "$WORLDTREE_REDIS_URL"):
        assert knob in text
    assert "(default: 20.0; $WORLDTREE_DRAIN_TIMEOUT_S)" in text
