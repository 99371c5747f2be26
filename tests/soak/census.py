"""What a process holds: resident memory over time, threads, open files."""

import asyncio
import gc
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20
_WARM_SHARE = 0.3  # of the time, left out of the slope: allocators and caches fill up first


def resident_mib(process: int | str = "self") -> float:
    """Resident memory of a process now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES / _MIB


def open_files() -> list[str]:
    """What this process has open, but for pipes and sockets of the event loop's own."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the one that listed them
            continue
    return sorted(found)


async def settled_files() -> list[str]:
    """What is open once that has been the same for a while: gRPC closes behind the back of the test before."""
    gc.collect()
    found = open_files()
    for _ in range(60):
        await asyncio.sleep(1.0)
        before, found = found, open_files()
        if found == before:
            break
    return found


def object_count() -> int:
    """Objects that Python's collector knows, garbage left out."""
    gc.collect()
    return len(gc.get_objects())


def thread_names() -> list[str]:
    """Threads of Python in this process."""
    return sorted(thread.name for thread in threading.enumerate())


@dataclass
class Series:
    """A figure over time: samples of (seconds since it was made, value)."""

    begun_s: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, float]] = field(default_factory=list)

    def add(self, value: float) -> None:
        """One more sample."""
        self.samples.append((time.monotonic() - self.begun_s, value))

    @property
    def warm(self) -> list[tuple[float, float]]:
        """The later ones, which the slope is taken from."""
        until_s = self.samples[-1][0] * _WARM_SHARE
        return [sample for sample in self.samples if sample[0] >= until_s]

    @property
    def warm_mean(self) -> float:
        """Mean of the later ones."""
        return sum(value for _, value in self.warm) / len(self.warm)

    def slope_per_min(self) -> float:
        """Least squares."""
        mean_s = sum(second for second, _ in self.warm) / len(self.warm)
        spread = sum((second - mean_s) ** 2 for second, _ in self.warm)
        together = sum((second - mean_s) * (value - self.warm_mean) for second, value in self.warm)
        return 60 * together / spread if spread else 0.0
