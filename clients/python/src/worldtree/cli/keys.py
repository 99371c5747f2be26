"""`worldtree keys`: API keys for a gateway. The server's own tool makes them."""

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worldtree.cli.child import module_of
from worldtree.cli.console import err, out, print_json
from worldtree.errors import FailedPrecondition, InvalidRequest

app = typer.Typer(help="Make API keys for a gateway.", no_args_is_help=True)


class KeyRole(StrEnum):
    USER = "user"
    OPERATOR = "operator"


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Who owns what is opened with it.")],
    role: Annotated[
        KeyRole, typer.Option(help="An operator may also make merges, and see what all do.")
    ] = KeyRole.USER,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Add the line to this file, which is made if need be.", dir_okay=False, show_default="print it"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key. It is shown this once, and kept nowhere; the gateway keeps a line with its hash.

    The line belongs into the gateway's --keys-file, or into the hash worldtree:keys of its Redis, under the key's id.
    To revoke a key, take its line away. A gateway that runs notices either within seconds.
    """
    made = subprocess.run(  # noqa: S603 - our own interpreter, no shell
        [sys.executable, "-P", "-m", f"{module_of('gateway')}.key_tool", "--tenant", tenant, "--role", role.value],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(made.stdout)
    except json.JSONDecodeError as error:
        raise FailedPrecondition(f"no key was made (code {made.returncode})", reason="TOOL_FAILED") from error
    if "error" in answer:
        raise InvalidRequest(answer["error"], field="tenant")
    if file is not None:
        _add(file, answer["line"])
    if as_json:
        print_json(answer)
        return
    out.print(answer["key"], soft_wrap=True)
    err.print(f"That is the key of {tenant}, for {role.value}s: it is shown this once, and kept nowhere.")
    if file is None:
        err.print("Its line, for the gateway's keys file:")
        out.print(answer["line"], soft_wrap=True)
    else:
        err.print(f"Its line was added to {file}.")


def _add(file: Path, line: str) -> None:
    """At once, so that no gateway sees half of it; and for nobody else's eyes where the file is new."""
    before = file.read_bytes() if file.exists() else b""
    between = "\n" if before and not before.endswith(b"\n") else ""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{between}{line}\n".encode())
    finally:
        os.close(descriptor)
