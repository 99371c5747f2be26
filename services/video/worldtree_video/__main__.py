"""`python -m worldtree_video`: settings -> serve. No logic."""

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = VideoSettings.from_command_line("worldtree-video")
    configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        async with serve_video(settings) as (server, _):
            server.announce()
            await server.wait_closed()

    run(serve)


if __name__ == "__main__":
    main()
