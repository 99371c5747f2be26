"""`python clients/loadtest/with_stack.py SCENARIO ...`: `worldtree bench` against a stack that is started for it.

Further arguments are those of `worldtree bench`. The stack ends with the run; its log is shown where it fails to start.
"""

import subprocess
import sys

from worldtree.cli.stack import Stack, StackOptions


def main() -> int:
    log: list[str] = []
    with Stack(StackOptions(port=0), on_log=log.append) as stack:
        command = [sys.executable, "-P", "-m", "worldtree.cli", "bench", *sys.argv[1:], "--target", stack.grpc_address]
        return subprocess.run(command, check=False).returncode  # noqa: S603 - our own interpreter, no shell


if __name__ == "__main__":
    sys.exit(main())
