"""`worldtree serve SERVICE`: one service in this very process."""

import os
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from worldtree.cli.child import module_of


class Service(StrEnum):
    VIDEO = "video"
    MULTITASK = "multitask"
    REWARD = "reward"
    NAVIGATOR = "navigator"
    GATEWAY = "gateway"


class ServeCommand(TyperCommand):
    """Has help of its own, but only before a service is named: behind it, every flag is the service's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] in (["-h"], ["--help"]):
            typer.echo(ctx.get_help())
            ctx.exit()
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def serve(
    context: typer.Context,
    service: Annotated[Service, typer.Argument(help="Which service.")],
) -> None:
    """Serve one service in the foreground; further flags are its own (`worldtree serve video --help` lists them)."""
    command = [sys.executable, "-P", "-m", module_of(service.value), *context.args]
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - our own interpreter, no shell
