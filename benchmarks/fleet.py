"""Ten thousand sessions on a hundred replicas, simulated: who holds what, what a lost tenth costs, what Redis must do.

A discrete-event simulation, driven by costs that `capacity.py` measured (`capacity_costs.json`). What decides is the
real code: sessions fall to replicas by `worldtree_gateway.placements`, each gateway remembers moved ones in a bounded
`Placements` of its own, and a replica takes a session on by the share of its time that is promised (`play_load_max`).
What is simulated: each session asks for a chunk each period through the gateway that its client is connected to;
clients come and go, and connect to another gateway now and then; a replica makes chunks in order of their deadlines.

The time: sessions come (nothing is counted); a steady state; `lost` replicas are killed at once, and their sessions
taken on by others, from the journal, made again chunk by chunk; the lost ones come back, empty; a steady state again,
with a tenth of the sessions living away from their homes, of which most gateways have never heard.

Replicas are as many times as fast as one measured core as 100 of them need to be to hold all sessions with `lost` of
them away (told as `speed`). Bars: calls that find their session where they ask >= 0.99 in both steady states; the last
lost session goes on within 5 s; the Redis servers that are planned for hold what is asked of them in the worst second.

`--plan` writes the figures of docs/capacity.md.
"""

import heapq
import json
import math
import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from report import Bar, publish
from rich.progress import Progress
from worldtree_gateway.placements import Placements, chosen

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs/capacity.md"
REHOME_LIMIT_S = 5.0
REDIS_BUSY_MAX = 0.6  # of a Redis's one thread in the worst second: beyond it waiting grows
_SECONDS = {"fill": 6.0, "steady": 8.0, "away": 8.0, "after": 12.0}
_LIFE_S, _STAY_S = 300.0, 60.0  # of a session; of a client at one gateway
_MOVED_LIMIT = 100_000  # sessions a gateway remembers that have moved, as its settings have it
_HOP_S = 0.002  # a call that asked the wrong replica, and is sent on
_JOURNAL_S = 0.005  # reading a journal


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is asked for."""

    sessions: int = 10_000
    replicas: int = 100
    lost: int = 10
    fps: float = 10.0
    gateways: int = 20


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured on one core. `work_s`: a chunk of one evaluation, made and sent, at the knee."""

    work_s: float
    gateway_s: float
    window_chunks: int
    reserve_chunks: int
    chunk_bytes: int
    block_bytes: int
    play_load_max: float
    redis: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, file: Path) -> "Costs":
        told = json.loads(file.read_text())
        names = set(cls.__dataclass_fields__) - {"work_s"}
        # Of the ramps' first, which is of one evaluation: what is predicted there may be too good.
        return cls(work_s=1 / told["rows"][0]["measured"], **{name: told[name] for name in names})


@dataclass(slots=True)
class Session:
    name: str
    home: int
    at: int  # the replica that has it
    gateway: int
    ends_s: float
    moves_s: float  # to another gateway
    lost_s: float | None = None  # its replica died then


@dataclass(slots=True)
class Replica:
    up: bool = True
    busy_until_s: float = 0.0
    promised: float = 0.0  # share of its time


@dataclass
class Seen:
    """What the simulation saw."""

    calls: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    rehomed_s: list[float] = field(default_factory=list)
    refused: int = 0
    redis_commands: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))  # by second
    redis_cpu_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    load: list[float] = field(default_factory=list)  # promised, of replicas in the steady state


class Simulation:
    """Runs the time once."""

    def __init__(self, fleet: Fleet, costs: Costs, *, seed: int = 7, scale_s: float = 1.0) -> None:
        self.fleet, self.costs = fleet, costs
        self.seen = Seen()
        left = fleet.replicas - fleet.lost
        # All sessions on the replicas that are left: just what they may be promised.
        self.speed = fleet.sessions * fleet.fps * costs.work_s / (left * costs.play_load_max)
        self._work_s = costs.work_s / self.speed
        self._share = fleet.fps * self._work_s
        self._period_s = 1 / fleet.fps
        self._chance = random.Random(seed)
        self._replicas = [Replica() for _ in range(fleet.replicas)]
        self._names = [f"video-{index}" for index in range(fleet.replicas)]
        self._up = list(range(fleet.replicas))
        self._gateways = [Placements(_MOVED_LIMIT) for _ in range(fleet.gateways)]
        self._count = 0
        self._events: list[tuple[float, int, Session]] = []
        seconds = {name: scale_s * each for name, each in _SECONDS.items()}
        self._killed_s = seconds["fill"] + seconds["steady"]
        self._back_s = self._killed_s + seconds["away"]
        self.ends_s = self._back_s + seconds["after"]
        self._steady_s = seconds["fill"]
        self._settled_s = self._back_s + seconds["after"] / 4

    def run(self) -> Seen:
        for _ in range(self.fleet.sessions):
            # Chunks of one replica come one after another (`stagger.py`): here their phases are spread evenly.
            self._open(self._chance.random() * self._steady_s / 2)
        killed = back = False
        with Progress(transient=True) as progress:
            task = progress.add_task("simulating", total=self.ends_s)
            while self._events:
                now, _, session = heapq.heappop(self._events)
                if now >= self.ends_s:
                    break
                if not killed and now >= self._killed_s:
                    killed = True
                    self.seen.load = [replica.promised for replica in self._replicas]
                    self._kill(now)
                if not back and now >= self._back_s:
                    back = True
                    self._come_back()
                self._call(session, now)
                if self._count % 50_000 == 0:
                    progress.update(task, completed=now)
        return self.seen

    def _call(self, session: Session, now: float) -> None:
        """One session asks for its next chunk, or is closed and followed by another."""
        if now >= session.ends_s:
            self._promise(session.at, -self._share)
            self._redis(now, "session")
            self._open(now)
            return
        if now >= session.moves_s:
            session.gateway = self._chance.randrange(self.fleet.gateways)
            session.moves_s = now + self._chance.expovariate(1 / _STAY_S)
        phase = self._phase(now)
        asked, begins_s = self._route(session), now
        self.seen.calls[phase] += 1
        if asked == session.at:
            self.seen.hits[phase] += 1
        elif self._replicas[session.at].up:
            begins_s += _HOP_S  # SESSION_MOVED: the gateway follows
            self._gateways[session.gateway].put(session.name, self._names[session.at])
        else:
            begins_s = self._adopt(session, asked, now)
        replica = self._replicas[session.at]
        done_s = max(begins_s, replica.busy_until_s) + self._work_s
        replica.busy_until_s = done_s
        self._redis(now, "chunk")
        if session.lost_s is not None:
            self.seen.rehomed_s.append(done_s - session.lost_s)
            session.lost_s = None
        else:
            self.seen.late[phase] += done_s > now + self._period_s
        self._push(max(now + self._period_s, done_s), session)

    def _adopt(self, session: Session, asked: int, now: float) -> float:
        """A replica takes a session on from its journal: the chunks in view are made again. When it can go on."""
        session.at = asked
        self._promise(asked, self._share)  # it was admitted before: it is not refused
        self._gateways[session.gateway].put(session.name, self._names[asked])
        replica = self._replicas[asked]
        ready_s = max(now + _JOURNAL_S, replica.busy_until_s) + self.costs.window_chunks * self._work_s
        replica.busy_until_s = ready_s
        self._redis(now, "adoption")
        return ready_s

    def _route(self, session: Session) -> int:
        """The replica that the session's gateway asks."""
        known = self._gateways[session.gateway].get(session.name)
        place = session.home if known is None else int(known.removeprefix("video-"))
        if self._replicas[place].up:
            return place
        return int(chosen(session.name, [self._names[each] for each in self._up]).removeprefix("video-"))

    def _open(self, now: float) -> None:
        """A new session, at the replica with the least promised of those that are looked at, unless that is full."""
        order = sorted(
            self._chance.sample(self._up, min(4, len(self._up))), key=lambda each: self._replicas[each].promised
        )
        for home in order:
            if self._replicas[home].promised + self._share <= self.costs.play_load_max + 1e-9:
                break
            self.seen.refused += 1
        self._promise(home, self._share)
        self._count += 1
        session = Session(
            f"{self._count:x}.video-{home}",
            home,
            home,
            self._chance.randrange(self.fleet.gateways),
            now + self._chance.expovariate(1 / _LIFE_S),
            now + self._chance.expovariate(1 / _STAY_S),
        )
        self._push(now, session)

    def _kill(self, now: float) -> None:
        gone = set(self._chance.sample(self._up, self.fleet.lost))
        self._up = [each for each in self._up if each not in gone]
        for index in gone:
            self._replicas[index] = Replica(up=False)
        for _, _, session in self._events:
            if session.at in gone:
                session.lost_s = now

    def _come_back(self) -> None:
        for index, replica in enumerate(self._replicas):
            if not replica.up:
                self._replicas[index] = Replica()
        self._up = list(range(self.fleet.replicas))

    def _phase(self, now: float) -> str:
        if now < self._steady_s:
            return "fill"
        if now < self._killed_s:
            return "steady"
        return "after" if now >= self._settled_s else "away"

    def _promise(self, replica: int, share: float) -> None:
        self._replicas[replica].promised += share

    def _redis(self, now: float, what: str) -> None:
        if now >= self._steady_s:
            self.seen.redis_commands[int(now)] += self.costs.redis[what]["commands"]
            self.seen.redis_cpu_s[int(now)] += self.costs.redis[what]["cpu_s"]

    def _push(self, at_s: float, session: Session) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, session))


@dataclass(frozen=True, slots=True)
class Result:
    """A simulation in figures."""

    fleet: Fleet
    costs: Costs
    simulation: Simulation
    seen: Seen

    def hit_share(self, phase: str) -> float:
        return self.seen.hits[phase] / max(1, self.seen.calls[phase])

    def late_share(self, phase: str) -> float:
        return self.seen.late[phase] / max(1, self.seen.calls[phase])

    @property
    def rehomed_s(self) -> list[float]:
        return sorted(self.seen.rehomed_s)

    @property
    def redis_per_s(self) -> float:
        return max(self.seen.redis_commands.values())

    @property
    def redis_threads(self) -> float:
        """Busy threads of Redis in the worst second."""
        return max(self.seen.redis_cpu_s.values())

    @property
    def redis_servers(self) -> int:
        return math.ceil(self.redis_threads / REDIS_BUSY_MAX)

    @property
    def one_redis_per_s(self) -> float:
        """Commands of these kinds that one Redis holds."""
        return REDIS_BUSY_MAX * self.redis_per_s / self.redis_threads


def simulate(fleet: Fleet, costs: Costs, *, scale_s: float = 1.0) -> Result:
    simulation = Simulation(fleet, costs, scale_s=scale_s)
    return Result(fleet, costs, simulation, simulation.run())


def plan_rows(result: Result) -> list[tuple[str, str]]:
    """What so many sessions need."""
    fleet, costs = result.fleet, result.costs
    per_s = fleet.sessions * fleet.fps
    per_core = math.floor(costs.play_load_max / (fleet.fps * costs.work_s))
    cores = math.ceil(fleet.sessions / per_core * fleet.replicas / (fleet.replicas - fleet.lost))
    viewed = fleet.sessions * costs.window_chunks * costs.block_bytes
    held = fleet.sessions * (costs.window_chunks + costs.reserve_chunks) * costs.block_bytes
    return [
        ("a chunk of one evaluation, made and sent, on one core", f"{1000 * costs.work_s:.2f} ms"),
        (f"sessions at {fleet.fps:g} fps that one core is promised to", f"{per_core}"),
        (f"such cores for {fleet.sessions:,} sessions, a tenth of them away", f"{cores:,}"),
        (f"or {fleet.replicas} replicas, each as fast as so many of these cores", f"{result.simulation.speed:.1f}"),
        ("chunks a second", f"{per_s:,.0f}"),
        ("KV of what is in view", f"{viewed / 2**30:.1f} GiB, {viewed / fleet.replicas / 2**20:.0f} MiB a replica"),
        (
            "KV with what is kept for rewinds",
            f"{held / 2**30:.1f} GiB, {held / fleet.replicas / 2**20:.0f} MiB a replica",
        ),
        (
            "frames on the network, replicas to gateways and again to clients",
            f"{8 * per_s * costs.chunk_bytes / 1e9:.1f} Gbit/s each",
        ),
        ("cores of gateways, each busy to 60%", f"{math.ceil(per_s * costs.gateway_s / 0.6)}"),
        ("commands a second of Redis, in the worst second", f"{result.redis_per_s:,.0f}"),
        ("which one Redis holds, busy to 60%", f"{result.one_redis_per_s:,.0f}"),
        ("so Redis servers, sessions spread over them by their ids", f"{result.redis_servers}"),
    ]


def simulated_rows(result: Result) -> list[tuple[str, str]]:
    """What the simulation saw."""
    rehomed_s = result.rehomed_s
    return [
        ("calls simulated", f"{result.seen.calls.total():,}"),
        ("calls that find their session where they ask, steady state", f"{result.hit_share('steady'):.4f}"),
        ("the same, a tenth of the sessions away from their homes", f"{result.hit_share('after'):.4f}"),
        ("late chunks in these two", f"{result.late_share('steady'):.4f}, {result.late_share('after'):.4f}"),
        (f"sessions that lost their replica, of {result.fleet.lost} killed", f"{len(rehomed_s)}"),
        ("from the kill to their next chunk, median", f"{statistics.median(rehomed_s):.2f} s"),
        ("99 of 100", f"{rehomed_s[int(0.99 * (len(rehomed_s) - 1))]:.2f} s"),
        ("the last", f"{rehomed_s[-1]:.2f} s"),
        ("late chunks of all while they were taken on", f"{result.late_share('away'):.4f}"),
    ]


def replica_rows(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `capacity.py` measured of one replica."""
    rows = [
        (f"{row['scenario']}: predicted, measured", f"{row['predicted']:.1f}, {row['measured']:.1f}")
        for row in told["rows"]
    ]
    return [*rows, *((f"{bar['name']} (bar: {bar['limit']})", f"{bar['value']:.3g}") for bar in told["bars"])]


def table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)])


def write(document: Path, tables: Mapping[str, str]) -> None:
    """Puts tables into a document, between their marks."""
    text = document.read_text()
    for name, rows in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = mark.subn(rf"\g<1>{rows}\n\g<2>", text)
        if count != 1:
            raise ValueError(f"{document} must hold the mark {name} once, got {count}")
    document.write_text(text)


def main(
    quick: Annotated[bool, typer.Option(help="A tenth of the sessions, replicas and gateways.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    costs_file: Annotated[Path, typer.Option("--costs", help="What was measured.")] = HERE / "capacity_costs.json",
    plan: Annotated[bool, typer.Option("--plan", help="Write the tables of docs/capacity.md.")] = False,
) -> None:
    """Ten thousand sessions on a hundred replicas, a tenth of them lost: simulated."""
    fleet = Fleet(sessions=1000, replicas=10, lost=1, gateways=4) if quick else Fleet()
    result = simulate(fleet, Costs.read(costs_file))
    told = json.loads(costs_file.read_text())
    if plan:
        tables = {"replica": replica_rows(told), "plan": plan_rows(result), "simulated": simulated_rows(result)}
        write(DOCUMENT, {name: table(rows) for name, rows in tables.items()})
    last_s = result.rehomed_s[-1]
    bars = [
        Bar("affinity in steady state", result.hit_share("steady"), 0.99),
        Bar("affinity with a tenth away from home", result.hit_share("after"), 0.99),
        Bar("seconds until the last lost session goes on", last_s, REHOME_LIMIT_S, "lower"),
        Bar("busiest second of each Redis", result.redis_threads / result.redis_servers, REDIS_BUSY_MAX, "lower"),
    ]
    keys = {
        "affinity_steady": result.hit_share("steady"),
        "affinity_after": result.hit_share("after"),
        "rehomed_last_s": last_s,
        "redis_per_s": result.redis_per_s,
        "redis_servers": float(result.redis_servers),
    }
    rows = [{"figure": name, "value": value} for name, value in (*plan_rows(result), *simulated_rows(result))]
    settings = {"sessions": fleet.sessions, "replicas": fleet.replicas, "lost": fleet.lost, "fps": fleet.fps}
    publish("A fleet, simulated", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
