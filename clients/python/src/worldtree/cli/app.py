"""The command line as a whole: its groups, and the one place where errors become a line and an exit code."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

import worldtree
from worldtree.cli import (
    bench,
    cache,
    demo,
    doctor,
    generate,
    imagine,
    keys,
    merge,
    models,
    navigate,
    plan,
    play,
    rollout,
    score,
    serve,
    sessions,
    top,
    up,
)
from worldtree.cli.connection import AddressOption, Connection
from worldtree.cli.console import print_error, print_os_error
from worldtree.errors import WorldtreeError
from worldtree.tls import Tls

app = typer.Typer(
    help="Serve, steer, fork and rewind generative world models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `worldtree demo`, or `worldtree up` and `worldtree play minigrid`.",
)
app.command("up")(up.up)
app.command(
    "serve",
    cls=serve.ServeCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(serve.serve)
app.command("demo")(demo.demo)
app.command("play")(play.play)
app.command("generate")(generate.generate)
app.command("rollout")(rollout.rollout)
app.command("score")(score.score)
app.command("imagine")(imagine.imagine)
app.command("plan")(plan.plan)
app.command("navigate")(navigate.navigate)
app.add_typer(models.app, name="models")
app.add_typer(sessions.app, name="sessions")
app.add_typer(merge.app, name="merge")
app.add_typer(keys.app, name="keys")
app.add_typer(cache.app, name="cache")
app.command("top")(top.top)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    address: AddressOption = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="WORLDTREE_API_KEY", help="API key.", show_envvar=True, show_default=False)
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt, trusting the system's CAs.")] = False,
    ca_file: Annotated[
        Path | None, typer.Option(help="Encrypt, trusting the CA certificates of this file.", show_default=False)
    ] = None,
    client_cert: Annotated[
        Path | None, typer.Option(help="Show this certificate chain (PEM): mutual TLS.", show_default=False)
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", show_default=False)] = None,
    timeout: Annotated[
        float | None,
        typer.Option(envvar="WORLDTREE_TIMEOUT", help="Seconds a call may take.", min=0.001, show_default="60"),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        typer.echo(f"worldtree {worldtree.__version__}")
        raise typer.Exit
    shown = Tls(ca_file=ca_file, cert_file=client_cert, key_file=client_key)
    context.obj = Connection(address=address, api_key=api_key, tls=tls if shown == Tls() else shown, timeout_s=timeout)


def run() -> None:
    """Runs the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except WorldtreeError as error:
        print_error(error)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (head, less) is gone; so is whoever would read a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print_os_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
