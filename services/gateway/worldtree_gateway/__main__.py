"""`python -m worldtree_gateway`: settings -> serve. No logic."""

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import serve_gateway
from worldtree_gateway.workers import serve_workers


def main() -> None:
    """Serves until SIGTERM or SIGINT. The ready line comes once each configured service has a backend."""
    settings = GatewaySettings.from_command_line("python -m worldtree_gateway")
    configure(settings.log_level, settings.log_format)
    run(lambda: serve_workers(settings) if settings.workers > 1 else serve_gateway(settings))


if __name__ == "__main__":
    main()
