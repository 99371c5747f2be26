"""`python -m worldtree_gateway`: settings -> serve. No logic."""

import logging

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import start_gateway

_log = logging.getLogger(__name__)


def main() -> None:
    """Serves until SIGTERM or SIGINT. The ready line comes once each configured service has a backend."""
    settings = GatewaySettings.from_command_line("python -m worldtree_gateway")
    configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        async with start_gateway(settings) as gateway:
            _log.info("waiting for a backend of each of: %s", ", ".join(each.section for each in gateway.routers))
            await gateway.wait_ready()
            gateway.server.announce()
            await gateway.wait_closed()

    run(serve)


if __name__ == "__main__":
    main()
