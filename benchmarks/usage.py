"""What a process has used."""

import time
from pathlib import Path


def processor_s(pid: int) -> float:
    """Seconds of processors so far, of all its threads together, also those that have ended."""
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) of Linux makes it


def resident_bytes(pid: int) -> int:
    """Of memory, now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"process {pid} tells no VmRSS")
