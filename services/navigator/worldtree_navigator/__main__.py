"""`python -m worldtree_navigator`: settings -> serve. No logic."""

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = NavigatorSettings.from_command_line("worldtree-navigator")
    configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        async with serve_navigator(settings) as server:
            server.announce()
            await server.wait_closed()

    run(serve)


if __name__ == "__main__":
    main()
