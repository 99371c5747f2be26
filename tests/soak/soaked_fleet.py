"""The client processes of the soak: started, counted, paused, killed."""

import asyncio
import itertools
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WALKER = Path(__file__).with_name("walker.py")
_ANSWER_TIMEOUT_S = 60.0  # an operation, a play in time included, ends well within


class WalkerError(Exception):
    """A walker met what must not be."""


class _Walker:
    """One process, and what it has said last."""

    def __init__(self, process: asyncio.subprocess.Process, seed: str) -> None:
        self.process = process
        self.seed = seed
        self.said: dict[str, Any] = {}
        self.failed: dict[str, Any] | None = None
        self.paused = asyncio.Event()
        self.killed = False
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            said = json.loads(line)
            if "failed" in said:
                self.failed = said["failed"]
            elif "paused" in said:
                self.paused.set()
            else:
                self.said = said
        code = await self.process.wait()
        if code and not self.killed and self.failed is None:
            self.failed = {"seed": self.seed, "error": f"exit code {code}"}

    async def say(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n".encode())
        await self.process.stdin.drain()


class Fleet:
    """Walkers under one seed, always as many as were started."""

    def __init__(self, flags: Sequence[str], *, seed: int) -> None:
        self._flags = flags
        self._seed = seed
        self._numbers = itertools.count()
        self._chance = random.Random(seed)
        self._walkers: list[_Walker] = []
        self._gone: Counter[str] = Counter()
        self._gone_refused: Counter[str] = Counter()
        self._gone_checked_chunks = 0
        self.killed_count = 0

    async def __aenter__(self) -> "Fleet":
        return self

    async def __aexit__(self, *_: object) -> None:
        for walker in self._walkers:
            if walker.process.returncode is None:
                walker.killed = True
                walker.process.kill()
            await walker.reading

    @property
    def done(self) -> Counter[str]:
        """Operations by name, the refused ones included."""
        return self._gone + sum((Counter(walker.said.get("done", {})) for walker in self._walkers), Counter[str]())

    @property
    def refused(self) -> Counter[str]:
        """Refusals by reason."""
        said = (Counter(walker.said.get("refused", {})) for walker in self._walkers)
        return self._gone_refused + sum(said, Counter[str]())

    @property
    def checked_chunks(self) -> int:
        """Chunks compared with the reference."""
        return self._gone_checked_chunks + sum(walker.said.get("checked_chunks", 0) for walker in self._walkers)

    async def start(self, count: int) -> None:
        """More walkers."""
        for _ in range(count):
            seed = f"{self._seed}.{next(self._numbers)}"
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(WALKER),
                *("--seed", seed, *self._flags),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 20,
            )
            self._walkers.append(_Walker(process, seed))

    def check(self) -> None:
        """Raises WalkerError with the operation and the seed."""
        for walker in self._walkers:
            if walker.failed:
                raise WalkerError("\n".join(f"{name}: {value}" for name, value in walker.failed.items()))

    async def replace_one(self) -> None:
        """Kills one with SIGKILL, in the middle of whatever it does, and starts another."""
        walker = self._chance.choice(self._walkers)
        walker.killed = True
        walker.process.send_signal(signal.SIGKILL)
        await self._end(walker)
        self.killed_count += 1
        await self.start(1)

    async def pause(self) -> None:
        """Until nobody has a call under way."""
        for walker in self._walkers:
            walker.paused.clear()
            await walker.say("pause")
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            for walker in self._walkers:
                ends = [asyncio.create_task(walker.paused.wait()), walker.reading]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                ends[0].cancel()
        self.check()

    async def go_on(self) -> None:
        """After a pause."""
        for walker in self._walkers:
            await walker.say("go")

    async def stop(self) -> None:
        """All of them, each at the end of its operation; their sessions stay behind."""
        for walker in self._walkers:
            await walker.say("stop")
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            await asyncio.gather(*(walker.reading for walker in self._walkers))
        self.check()
        for walker in list(self._walkers):
            await self._end(walker)

    async def _end(self, walker: _Walker) -> None:
        await walker.reading
        self._walkers.remove(walker)
        self._gone.update(walker.said.get("done", {}))
        self._gone_refused.update(walker.said.get("refused", {}))
        self._gone_checked_chunks += walker.said.get("checked_chunks", 0)
