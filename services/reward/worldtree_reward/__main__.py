"""`python -m worldtree_reward`: settings -> serve. No logic."""

from worldtree_runtime.logs import configure
from worldtree_runtime.server import run

from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = RewardSettings.from_command_line("worldtree-reward")
    configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        async with serve_reward(settings) as (server, _):
            server.announce()
            await server.wait_closed()

    run(serve)


if __name__ == "__main__":
    main()
