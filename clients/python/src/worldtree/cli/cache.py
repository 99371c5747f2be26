"""`worldtree cache`: the cached answers of a gateway."""

from typing import Annotated

import typer

from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, print_json

app = typer.Typer(help="Look after a gateway's cached answers.", no_args_is_help=True)


@app.callback()
def cache() -> None:
    """Look after a gateway's cached answers."""


@app.command()
def purge(
    context: typer.Context,
    tenant: Annotated[
        str | None, typer.Option(help="Those of this tenant, and of whom it shares with.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Those of this model of the video service.", metavar="NAME[/VERSION]")
    ] = None,
    digest: Annotated[str | None, typer.Option(help="Those of the model with this digest.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forget cached answers, in Redis and at all gateways that share it; for operators.

    With a tenant and a model, those that are of both. When it is done, nobody is served an answer from before.
    """
    if everything == bool(tenant or model or digest) or (model and digest):
        raise typer.BadParameter("say --tenant, --model or --digest, a tenant and one of the others, or --all")
    with connect(context, address) as client:
        found = client.model(model).digest if model else digest
        purged = client.purge_cache(tenant=tenant, digest=found, everything=everything)
    if as_json:
        print_json(purged)
        return
    where = "" if purged.all_gateways else "; without Redis, other gateways keep theirs"
    err.print(f"purged {purged.local_count} answers of the gateway, {purged.shared_count} in Redis{where}")
