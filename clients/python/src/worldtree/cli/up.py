"""`worldtree up`: serve everything on this machine until Ctrl-C."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worldtree.cli.stack import Stack, StackOptions, ending_on_sigterm


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def up(
    port: Annotated[
        int | None,
        typer.Option(
            help="gRPC port of the gateway; 0 picks free ports for everything.",
            min=0,
            max=65535,
            show_default="7070",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="HTTP port of /metrics, /healthz, /readyz.", min=0, max=65535, show_default="port + 1"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    models: Annotated[str | None, typer.Option(help="Model repository.", show_default="models")] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Redis shared by the services (WORLDTREE_REDIS_URL).", show_default="in memory"),
    ] = None,
    journal_folder: Annotated[
        Path | None,
        typer.Option(
            help="Keep sessions there, so that they outlive us; with Redis they do anyway.", show_default="none"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file.", exists=True, dir_okay=False, show_default="worldtree.yaml")
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="Least level to log.", show_default="info")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without authentication.")
    ] = False,
) -> None:
    """Serve everything on this machine until Ctrl-C.

    Prints one line on stdout when ready: worldtree ready grpc=HOST:PORT metrics=HOST:PORT. Logs go to stderr,
    and among them the address of robots that speak openpi (port + 2, or a free one).
    With --port the services behind the gateway take free ports; else 7110 and up.
    """
    options = StackOptions(
        port=port,
        metrics_port=metrics_port,
        host=host,
        models=models,
        redis_url=redis_url,
        config=config,
        journal_folder=journal_folder,
        log_level=log_level,
        insecure=insecure,
    )
    try:
        with ending_on_sigterm(), Stack(options, on_log=_log) as stack:
            _log(f"robots that speak openpi: ws://{stack.openpi_address}")
            print(f"worldtree ready grpc={stack.grpc_address} metrics={stack.metrics_address}", flush=True)
            stack.watch()
    except (KeyboardInterrupt, SystemExit):
        # Being told to end is how a server ends well.
        raise typer.Exit(0) from None


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
