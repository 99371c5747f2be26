"""`python -m worldtree_gateway.worker`: one of several processes of a gateway. Started by `workers.py`, nobody else.

What it is to do comes as one line on stdin, which then stays open for as long as whoever started it lives.
"""

import asyncio
import json
import os
import signal
import sys

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import serve_gateway

_STDIN = 0


def main() -> None:
    """Serves until SIGTERM, or until whoever started it is gone."""
    given = json.loads(sys.stdin.readline())
    settings = GatewaySettings(**given["settings"])
    configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        asyncio.get_running_loop().add_reader(_STDIN, _end_with_parent)
        await serve_gateway(settings, worker=given["index"])

    run(serve)


def _end_with_parent() -> None:
    if os.read(_STDIN, 1) == b"":
        asyncio.get_running_loop().remove_reader(_STDIN)
        # as a signal: the first drains, and the second, where it drains already, ends it at once
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
