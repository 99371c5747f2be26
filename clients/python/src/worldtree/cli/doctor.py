"""`worldtree doctor`: what stands in the way, and what to do about it."""

import platform
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from worldtree.cli.connection import AddressOption, Connection, connection
from worldtree.cli.console import out, print_json
from worldtree.cli.finding import Finding, Verdict
from worldtree.cli.gauges import size_text
from worldtree.cli.model_folder import model_repository
from worldtree.cli.redis_finding import redis
from worldtree.cli.top import Watch
from worldtree.client import Client
from worldtree.errors import NotFound, Unavailable, Unimplemented, WorldtreeError
from worldtree.introspection import ModelStatus, Tier

PYTHONS = ((3, 11), (3, 13))
PACKAGES = (
    ("worldtree", "", True),
    ("grpcio", "", True),
    ("numpy", "", True),
    ("protobuf", "", True),
    ("worldtree-server", "pip install 'worldtree-server[cpu]' to serve from this machine", False),
    ("onnxruntime", "pip install 'worldtree-server[cpu]' (or [gpu]) to serve from this machine", False),
    ("pillow", "pip install 'worldtree[media]' to save pictures", False),
    ("av", "pip install 'worldtree[media]' to save films", False),
    ("matplotlib", "pip install 'worldtree[cli]' to draw merges", False),
)
PORTS = (
    (7070, "gateway"),
    (7071, "gateway metrics"),
    (7110, "video"),
    (7111, "video metrics"),
    (7120, "multitask"),
    (7121, "multitask metrics"),
    (7130, "reward"),
    (7131, "reward metrics"),
    (7140, "navigator"),
    (7141, "navigator metrics"),
)
PROBE_TIMEOUT_S = 2.0


def doctor(
    context: typer.Context,
    address: AddressOption = None,
    models: Annotated[Path, typer.Option(help="Model repository.")] = Path("models"),
    redis_url: Annotated[
        str | None, typer.Option(envvar="WORLDTREE_REDIS_URL", help="Redis to look at.", show_default="none")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at Python, packages, the server, models, Redis and ports, and say what to do.

    Exit code 1 when something is bad; notes are fine.
    """
    findings = [
        python(),
        *packages(),
        *server(connection(context, address)),
        *model_repository(models),
        redis(redis_url),
        *ports(),
    ]
    if as_json:
        print_json(findings)
    else:
        out.print(_table(findings))
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise typer.Exit(1)


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    oldest, newest = PYTHONS
    if sys.version_info[:2] < oldest:
        return Finding("python", Verdict.BAD, found, "use Python 3.11, 3.12 or 3.13")
    if sys.version_info[:2] > newest:
        return Finding("python", Verdict.NOTE, found, "newer than the tested 3.11 to 3.13")
    return Finding("python", Verdict.OK, found)


def packages() -> Iterator[Finding]:
    for name, advice, required in PACKAGES:
        try:
            yield Finding(f"package {name}", Verdict.OK, version(name))
        except PackageNotFoundError:
            yield Finding(f"package {name}", Verdict.BAD if required else Verdict.NOTE, "not installed", advice)


def server(to: Connection) -> Iterator[Finding]:
    with to.open() as client:
        subject = f"server {client.address}"
        try:
            served = client.wait_ready(PROBE_TIMEOUT_S)
        except WorldtreeError as error:
            yield _silence(subject, error)
            return
        if not served:
            yield Finding(subject, Verdict.BAD, "reachable, serves no model", "look at the server's --models folder")
        else:
            yield Finding(subject, Verdict.OK, f"reachable, serves {', '.join(model.name for model in served)}")
        yield from replicas(client)
        yield service("multitask", lambda: experts(client))
        yield service("reward", lambda: judges(client))


def service(kind: str, found: Callable[[], str]) -> Finding:
    """One that a server may do without, or have no model for; `found` says what it serves."""
    try:
        return Finding(kind, Verdict.OK, found())
    except (Unimplemented, NotFound) as error:
        advice = "" if isinstance(error, Unimplemented) else f"put a package of kind {kind} into the repository"
        return Finding(kind, Verdict.NOTE, error.message.splitlines()[0], advice)
    except WorldtreeError as error:
        return _silence(kind, error)


def experts(client: Client) -> str:
    model = client.multitask.tasks()
    merge_count = len(client.multitask.merges())
    return f"serves {', '.join(model.models)}: {len(model.tasks)} tasks, {merge_count} merges that have a name"


def judges(client: Client) -> str:
    rubrics = client.reward.rubrics()
    found = f"serves {', '.join(rubrics.models)}: {len(rubrics.categories)} categories"
    return f"{found}, {len(rubrics.dimensions)} dimensions"


def replicas(client: Client) -> Iterator[Finding]:
    """Each replica's blocks by tier, and whether its sessions would outlive it."""
    try:
        readings = Watch(client, interval_s=PROBE_TIMEOUT_S).look()
    except WorldtreeError as error:
        yield _silence("replicas", error)
        return
    for reading in readings:
        subject = f"replica {reading.replica}"
        if reading.status is None:
            lost = reading.error.message.splitlines()[0] if reading.error else "does not answer"
            yield Finding(subject, Verdict.BAD, lost, "start it again, or take it out of the gateway's --video")
            continue
        if reading.status.draining:
            yield Finding(subject, Verdict.NOTE, "draining: it takes on nothing new")
        for model in reading.status.models:
            tiers = ", ".join(map(_blocks, model.tiers))
            yield Finding(f"{subject}: blocks of {model.name}", Verdict.OK, tiers or "no tiers")
            yield _journal(subject, model)


def _silence(subject: str, error: WorldtreeError) -> Finding:
    # Where nothing listens, nothing need be amiss. A gateway that has nobody to ask is.
    down = isinstance(error, Unavailable) and error.reason != "CONNECTION_FAILED"
    return Finding(subject, Verdict.BAD if down else Verdict.NOTE, error.message.splitlines()[0], error.remedy)


def _blocks(tier: Tier) -> str:
    text = f"{tier.label} {tier.held_block_count + tier.cached_block_count}"
    if tier.capacity_block_count:
        return f"{text} of {tier.capacity_block_count}"
    if tier.capacity_bytes:
        return f"{text} ({size_text(tier.used_bytes)} of {size_text(tier.capacity_bytes)})"
    return text


def _journal(replica: str, model: ModelStatus) -> Finding:
    subject = f"{replica}: journal of {model.name}"
    if not model.sessions:
        return Finding(subject, Verdict.OK, "no session to see it by")
    bare = sum(not each.session.journaled for each in model.sessions)
    behind = sum(each.journal_behind_count > 0 for each in model.sessions)
    count, total = len(model.sessions), model.session_count
    sessions = f"{count} sessions" if count >= total else f"the {count} sessions looked at, {total} in all,"
    if bare:
        return Finding(
            subject,
            Verdict.NOTE,
            f"{bare} of {sessions} have none: they end with their replica",
            "does its Redis or its folder answer? If the services were given none, set WORLDTREE_REDIS_URL or name a "
            "folder (see `worldtree serve video --help`)",
        )
    if behind:
        return Finding(
            subject, Verdict.NOTE, f"written, behind for {behind} of {sessions}".rstrip(","), "is its store slow?"
        )
    return Finding(subject, Verdict.OK, f"written for all {sessions}".rstrip(","))


def ports() -> Iterator[Finding]:
    for port, owner in PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                yield Finding(
                    f"port {port}",
                    Verdict.NOTE,
                    f"in use ({owner})",
                    "fine if a worldtree is up; else use `worldtree up --port 0`",
                )
            else:
                yield Finding(f"port {port}", Verdict.OK, f"free for {owner}")


def _table(findings: list[Finding]) -> Table:
    styles = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}
    table = Table("", "what", "found", "what to do")
    for finding in findings:
        verdict = Text(finding.verdict, styles[finding.verdict])
        table.add_row(verdict, finding.subject, finding.found, finding.advice)
    return table
