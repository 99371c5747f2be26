"""Starts a child that can't outlive its parent: `python _launch.py PARENT_PID COMMAND...`.

A parent that is killed outright can't clean up; the kernel does it here. Runs by path and imports nothing of ours, so
that it costs a few milliseconds; the setting survives the exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            # The parent was gone before the kernel knew that we care.
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - our own interpreter, no shell


if __name__ == "__main__":
    main()
