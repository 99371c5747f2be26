"""A gateway as an operator starts it: one command, one ready line."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def gateway_process(*flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Killed at the end, if it has not ended by then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worldtree_gateway", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ready_line(process: asyncio.subprocess.Process, within_s: float = 20) -> dict[str, str]:
    """What it says, by name."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), within_s)).decode()
    assert line.startswith("worldtree ready service=gateway grpc="), line
    return dict(part.split("=", 1) for part in line.split()[2:])
