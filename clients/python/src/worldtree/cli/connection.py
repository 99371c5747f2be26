"""How a command reaches its server: options of the whole command line, and --address on each command."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from worldtree.client import Client
from worldtree.tls import TlsLike

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="WORLDTREE_ADDRESS",
        help="The server, HOST:PORT.",
        show_default="localhost:7070",
        metavar="HOST:PORT",
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """What the command line said about the server."""

    address: str | None
    api_key: str | None
    tls: TlsLike
    timeout_s: float | None

    def open(self) -> Client:
        return Client(self.address, api_key=self.api_key, tls=self.tls, timeout=self.timeout_s)


def connection(context: typer.Context, address: str | None) -> Connection:
    """The connection that the command line asked for; --address of the command wins."""
    known: Connection = context.obj
    return replace(known, address=address) if address else known


def connect(context: typer.Context, address: str | None) -> Client:
    return connection(context, address).open()
