"""`worldtree serve SERVICE`: one service in this very process."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from worldtree.cli.child import module_of


class Service(StrEnum):
    VIDEO = "video"
    GATEWAY = "gateway"


def serve(
    context: typer.Context,
    service: Annotated[Service, typer.Argument(help="Which service.")],
) -> None:
    """Serve one service in the foreground; further flags are its own (`worldtree serve video --help` lists them)."""
    command = [sys.executable, "-P", "-m", module_of(service.value), *context.args]
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - our own interpreter, no shell
