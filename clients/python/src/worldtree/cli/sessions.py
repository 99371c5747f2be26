"""`worldtree sessions`: the live sessions of a server."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Column, Table

from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, out, print_json
from worldtree.types import KvPolicy, SessionInfo

app = typer.Typer(help="List, show and delete live sessions.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SessionArgument = Annotated[str, typer.Argument(help="A session's id.", metavar="SESSION")]


@app.command("list")
def list_(context: typer.Context, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the live sessions, oldest first."""
    with connect(context, address) as client:
        sessions = client.sessions()
    if as_json:
        print_json(sessions)
        return
    # The id whole, however narrow the terminal: it is what the other commands want to be told.
    width = max((len(session.id) for session in sessions), default=0)
    table = Table(
        Column("session", no_wrap=True, min_width=width),
        "model",
        "start",
        "chunks",
        "state",
        "journal",
        "blocks (shared)",
    )
    table.add_column("expires in", justify="right")
    table.add_column("parent", no_wrap=True)
    now = datetime.now(UTC)
    for session in sessions:
        table.add_row(
            session.id,
            session.model,
            session.start or "",
            str(session.chunk_index),
            session.state,
            "written" if session.journaled else "none",
            f"{session.block_count} ({session.shared_block_count})",
            f"{(session.expire_time - now).total_seconds():.0f} s",
            session.parent or "",
        )
    out.print(table)


@app.command()
def get(
    context: typer.Context, session: SessionArgument, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Show one session."""
    with connect(context, address) as client:
        info = client.session(session).refresh()
    if as_json:
        print_json(info)
        return
    out.print(_session_table(info))


@app.command()
def delete(
    context: typer.Context,
    sessions: Annotated[list[str], typer.Argument(help="Ids of sessions.", metavar="SESSION...")],
    address: AddressOption = None,
) -> None:
    """Delete sessions; what runs on them ends."""
    with connect(context, address) as client:
        for session in sessions:
            client.session(session).close()
            err.print(f"deleted {session}")


def _kv_text(kv: KvPolicy) -> str:
    parts = [f"{kv.kind} {kv.plugin}".strip(), f"window {kv.window}"]
    if kv.sink is not None:
        parts.append(f"sink {kv.sink}")
    parts += [f"{name} {count}" for name, count in (("recent", kv.recent), ("bank", kv.bank)) if count]
    return ", ".join((*parts, kv.storage))


def _session_table(info: SessionInfo) -> Table:
    table = Table(show_header=False, title=info.id, title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for label, value in (
        ("model", f"{info.model}/{info.version} ({info.digest[:16]})"),
        ("start", info.start or "the client's frames or a prompt"),
        ("chunks", str(info.chunk_index)),
        ("state", info.state),
        ("seed, nfe", f"{info.seed}, {info.nfe}"),
        ("journal", "written: it outlives its replica" if info.journaled else "none: it ends with its replica"),
        ("kv", _kv_text(info.kv)),
        ("blocks", f"{info.block_count}, of them shared {info.shared_block_count}"),
        ("parent", info.parent or "none"),
        ("made", f"{info.create_time:%Y-%m-%d %H:%M:%S} UTC"),
        ("expires", f"{info.expire_time:%Y-%m-%d %H:%M:%S} UTC"),
        ("state hash", info.state_hash),
    ):
        table.add_row(label, value)
    return table
