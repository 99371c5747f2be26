"""`python -m worldtree_multitask`: settings -> serve. No logic."""

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = MultitaskSettings.from_command_line("worldtree-multitask")
    configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        async with serve_multitask(settings) as (server, _):
            server.announce()
            await server.wait_closed()

    run(serve)


if __name__ == "__main__":
    main()
