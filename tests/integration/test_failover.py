"""A replica's death is a pause: real video replicas behind a real gateway over a real Redis, killed at random chunks.

Few rounds by default; `make failover` runs WORLDTREE_FAILOVER_ROUNDS=20 of them and writes what it saw to
WORLDTREE_FAILOVER_JSON. What an undisturbed run would have shown is made by a replica apart, which shares no store.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_runtime.testing import TinyWorld

ROUND_COUNT = int(os.environ.get("WORLDTREE_FAILOVER_ROUNDS", "2"))
REPORT = os.environ.get("WORLDTREE_FAILOVER_JSON")

STREAM_COUNT = 16
WALK_COUNT = 4  # sessions beside them that step, one action a call
CHUNK_COUNT = 24
FPS = 4.0  # of every other play; those between are steered by their clients, a chunk at a time
THINKING_S = 0.2
PAUSE_MAX_S = 30.0  # the gateway's bound: beyond it a play would have ended


class Replica:
    """A video replica in a process of its own, on one port for all its lives."""

    def __init__(self, name: str, models: Path, logs: Path, redis_url: str | None) -> None:
        self.name = name
        self._models = models
        self._log = logs / f"{name}.log"
        self._redis_url = redis_url
        self._port = 0
        self.address = ""
        self.metrics_address = ""
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("WORLDTREE_")}
        if self._redis_url is not None:
            environ["WORLDTREE_REDIS_URL"] = self._redis_url
        flags = {
            "models": self._models,
            "replica": self.name,
            "port": self._port,
            "metrics-port": 0,
            "pool-mib": 8,
            "max-batch": 8,
            "drain-timeout-s": 10,
        }
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worldtree_video"),
                *(f"--{flag}={value}" for flag, value in flags.items()),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environ,
            )
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode()
        assert line.startswith("worldtree ready service=video"), self._log.read_text()[-3000:]
        said = dict(part.split("=", 1) for part in line.split()[2:])
        self.address, self.metrics_address = said["grpc"], said["metrics"]
        self._port = int(self.address.rpartition(":")[2])

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """The exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(number)
        return await asyncio.wait_for(process.wait(), 30)


@dataclass
class Seen:
    """What one play's client saw."""

    session: str
    chunks: list[tuple[int, int, bytes, str]] = field(default_factory=list)
    resumed: list[pb.PlayResponse.Resumed] = field(default_factory=list)
    gap_s: float = 0.0  # the longest time between two chunks
    done_counts: list[int] = field(default_factory=list)


def actions_of(seed: int) -> list[pb.Action]:
    dice = random.Random(seed)
    return [pb.Action(id=dice.randrange(3)) for _ in range(CHUNK_COUNT)]


async def create(stub: Any, seed: int) -> str:
    request = pb.CreateSessionRequest(
        model=common_pb2.ModelRef(name="tiny"), origin=pb.Origin(start="dusk"), seed=seed, nfe=2
    )
    return str((await stub.CreateSession(request)).session.session)


async def play(stub: Any, session: str, seed: int, *, fps: float, live: bool = False, on_chunk: Any = None) -> Seen:
    """Plays to the end. `live`: an action is sent a moment after a chunk has come; else all are queued at once."""
    seen = Seen(session)
    actions = actions_of(seed)
    ahead = 3 if live else CHUNK_COUNT
    call = stub.Play(timeout=120)
    begin = pb.PlayRequest.Begin(fps=fps, actions=actions[:ahead])
    await call.write(pb.PlayRequest(session=session, begin=begin))
    sent_count = ahead
    if sent_count == CHUNK_COUNT:
        await call.done_writing()
    last_s = time.monotonic()
    while (message := await call.read()) is not grpc.aio.EOF:
        if message.HasField("resumed"):
            seen.resumed.append(message.resumed)
        if not message.HasField("played"):
            continue
        now_s = time.monotonic()
        seen.gap_s, last_s = max(seen.gap_s, now_s - last_s), now_s
        chunk = message.played.chunk
        seen.chunks.append((chunk.index, chunk.action.id, chunk.frames.tensor.data, chunk.state_hash))
        seen.done_counts.append(message.played.done_action_count)
        if on_chunk is not None:
            on_chunk()
        if sent_count < CHUNK_COUNT:
            await asyncio.sleep(THINKING_S)
            await call.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[actions[sent_count]])))
            sent_count += 1
            if sent_count == CHUNK_COUNT:
                await call.done_writing()
    return seen


@dataclass
class Walked:
    """What a client that steps saw."""

    chunks: list[tuple[int, int, bytes, str]] = field(default_factory=list)
    wait_s: float = 0.0  # the longest time that an answer took


async def walk(stub: Any, session: str, seed: int, *, thinking_s: float = THINKING_S) -> Walked:
    """Steps one action at a time, each a call of its own."""
    walked = Walked()
    for count, action in enumerate(actions_of(seed), 1):
        step = pb.StepRequest(session=session, actions=[action], request_id=str(uuid.uuid4()))
        begun_s = time.monotonic()
        answer = await stub.Step(step, timeout=PAUSE_MAX_S)
        walked.wait_s = max(walked.wait_s, time.monotonic() - begun_s)
        assert answer.chunk_index == count, "a step was made twice, or lost"
        (chunk,) = answer.chunks
        walked.chunks.append((chunk.index, chunk.action.id, chunk.frames.tensor.data, chunk.state_hash))
        await asyncio.sleep(thinking_s)
    return walked


class Deployment:
    """Two replicas that share a Redis, one apart that shows what is right, and a gateway before the two."""

    def __init__(self, replicas: list[Replica], reference: Replica, gateway: RunningGateway) -> None:
        self.replicas = replicas
        self.gateway = gateway
        self._stack = AsyncExitStack()
        self._reference = reference

    async def __aenter__(self) -> "Deployment":
        open_channel = grpc.aio.insecure_channel
        channel = await self._stack.enter_async_context(open_channel(self.gateway.server.address))
        apart = await self._stack.enter_async_context(open_channel(self._reference.address))
        self.stub: Any = VideoGeneratorStub(channel)
        self.reference: Any = VideoGeneratorStub(apart)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def both_up(self) -> None:
        await self.until(lambda: all(backend.usable for backend in self.gateway.routers[0].backends))

    async def quiet(self) -> None:
        """The gateway holds no call any more."""
        await self.until(lambda: all(backend.in_flight == 0 for backend in self.gateway.routers[0].backends))
        await self.until(lambda: not [each for each in asyncio.all_tasks() if each.get_name().startswith("play: ")])

    @staticmethod
    async def until(holds: Any, timeout_s: float = 20.0) -> None:
        ends_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < ends_s, "it did not come true"
            await asyncio.sleep(0.02)

    async def undisturbed_walk(self, seed: int) -> Walked:
        session = await create(self.reference, seed)
        found = await walk(self.reference, session, seed, thinking_s=0.0)
        await self.reference.Delete(pb.DeleteRequest(session=session))
        return found

    async def undisturbed(self, seeds: list[int]) -> list[Seen]:
        sessions = [await create(self.reference, seed) for seed in seeds]
        found = await asyncio.gather(
            *(play(self.reference, session, seed, fps=0) for session, seed in zip(sessions, seeds, strict=True))
        )
        for session in sessions:
            await self.reference.Delete(pb.DeleteRequest(session=session))
        return found


@asynccontextmanager
async def deployed(tmp_path: Path, redis_url: str) -> AsyncIterator[Deployment]:
    models = tmp_path / "models"
    TinyWorld(work=4).write(models)
    replicas = [Replica(name, models, tmp_path, redis_url) for name in ("video-a", "video-b")]
    reference = Replica("video-apart", models, tmp_path, None)
    everyone = [*replicas, reference]
    try:
        await asyncio.gather(*(each.start() for each in everyone))
        settings = GatewaySettings(
            video=[each.address for each in replicas],
            port=0,
            metrics_port=0,
            drain_timeout_s=0.0,
            probe_interval_s=0.1,
            rehome_timeout_s=PAUSE_MAX_S,
            start_load_factor=0,  # half of the plays at each, so that neither refuses one
        )
        async with start_gateway(settings) as gateway, Deployment(replicas, reference, gateway) as deployment:
            await deployment.both_up()
            yield deployment
    finally:
        for each in everyone:
            await each.end()


def check(seen: list[Seen], expected: list[Seen]) -> None:
    for each, right in zip(seen, expected, strict=True):
        assert [chunk[0] for chunk in each.chunks] == list(range(CHUNK_COUNT)), each.session
        assert each.chunks == right.chunks, f"{each.session} shows another world"
        assert each.done_counts == list(range(1, CHUNK_COUNT + 1)), each.session


async def one_round(deployment: Deployment, number: int, ending: signal.Signals) -> dict[str, Any]:
    """All streams run, other sessions step beside them; one replica ends when a random chunk of a stream has come."""
    dice = random.Random(1000 + number)
    seeds = [number * 100 + index for index in range(STREAM_COUNT)]
    victim = deployment.replicas[number % 2]
    ends_at = dice.randrange(STREAM_COUNT, STREAM_COUNT * (CHUNK_COUNT - 4))
    come_count = 0
    reached = asyncio.Event()

    def on_chunk() -> None:
        nonlocal come_count
        come_count += 1
        if come_count >= ends_at:
            reached.set()

    async def strike() -> int:
        await reached.wait()
        return await victim.end(ending)

    sessions = [await create(deployment.stub, seed) for seed in seeds]
    homes = [session.rpartition(".")[2] for session in sessions]
    assert homes.count(victim.name) == STREAM_COUNT // 2
    streams = [
        play(deployment.stub, session, seed, live=index % 4 >= 2, fps=FPS * (index % 4 < 2), on_chunk=on_chunk)
        for index, (session, seed) in enumerate(zip(sessions, seeds, strict=True))
    ]
    walk_seeds = [number * 100 + 90 + index for index in range(WALK_COUNT)]
    walkers = [await create(deployment.stub, seed) for seed in walk_seeds]
    walk_homes = [session.rpartition(".")[2] for session in walkers]
    assert walk_homes.count(victim.name) == WALK_COUNT // 2
    walks = [walk(deployment.stub, session, seed) for session, seed in zip(walkers, walk_seeds, strict=True)]
    walking = asyncio.gather(*walks)
    *seen, code, walked = await asyncio.gather(*streams, strike(), walking)
    check(seen, await deployment.undisturbed(seeds))
    right = await asyncio.gather(*(deployment.undisturbed_walk(seed) for seed in walk_seeds))
    assert [each.chunks for each in walked] == [each.chunks for each in right], "steps showed another world"
    for each, home in zip(seen, homes, strict=True):
        assert len(each.resumed) <= (home == victim.name), "a play stands still once, and nobody else's does"
        for resumed in each.resumed:
            assert resumed.rehomed
            assert resumed.bit_identical
            assert resumed.replica != victim.name
    pauses_s = [resumed.pause_duration.ToNanoseconds() / 1e9 for each in seen for resumed in each.resumed]
    assert pauses_s, "no play was running at the replica that ended"
    # who has moved is found: at its new place, by its old name
    for session, home in zip([*sessions, *walkers], [*homes, *walk_homes], strict=True):
        got = (await deployment.stub.Get(pb.GetRequest(session=session), timeout=30)).session
        assert got.chunk_index == CHUNK_COUNT, f"{session} of {home}"
        await deployment.stub.Delete(pb.DeleteRequest(session=session), timeout=30)
    await deployment.quiet()
    await victim.start()
    await deployment.both_up()
    return {
        "round": number,
        "ended_after_chunks": ends_at,
        "rehomed_count": len(pauses_s),
        "pause_max_s": round(max(pauses_s), 3),
        "chunk_gap_max_s": round(max(each.gap_s for each in seen), 3),
        "step_wait_max_s": round(max(each.wait_s for each in walked), 3),
        "exit_code": code,
    }


@pytest.mark.timeout(120 + 60 * ROUND_COUNT)
async def test_sixteen_plays_outlive_a_replica_that_is_killed_at_a_random_chunk(tmp_path: Path, valkey: Any) -> None:
    rows: list[dict[str, Any]] = []
    async with deployed(tmp_path, valkey.url) as deployment:
        for number in range(ROUND_COUNT):
            rows.append(await one_round(deployment, number, signal.SIGKILL))
            print(f"failover: {json.dumps(rows[-1])}")
    longest_s = max(row["pause_max_s"] for row in rows)
    print(f"failover: {ROUND_COUNT} rounds, {STREAM_COUNT} plays each; the longest pause was {longest_s:.3f} s")
    assert all(row["exit_code"] == -signal.SIGKILL for row in rows)
    if REPORT:
        write_report(Path(REPORT), rows, longest_s)


def write_report(path: Path, rows: list[dict[str, Any]], longest_s: float) -> None:
    """As the benchmarks write theirs."""
    bar = {
        "name": "rounds in which all plays ended with the frames of an undisturbed run",
        "value": len(rows),
        "bar": ROUND_COUNT,
        "better": "higher",
        "holds": len(rows) == ROUND_COUNT,
    }
    settings = {
        "rounds": ROUND_COUNT,
        "plays": STREAM_COUNT,
        "walks": WALK_COUNT,
        "chunks": CHUNK_COUNT,
        "fps": FPS,
        "thinking_s": THINKING_S,
    }
    machine = {"cpu_count": os.cpu_count(), "python": sys.version.split()[0]}
    report = {"machine": machine, "settings": settings, "longest_pause_s": longest_s, "bars": [bar], "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


@pytest.mark.timeout(180)
async def test_sixteen_plays_outlive_a_replica_that_drains(tmp_path: Path, valkey: Any) -> None:
    async with deployed(tmp_path, valkey.url) as deployment:
        row = await one_round(deployment, 500, signal.SIGTERM)
        assert row["exit_code"] == 0


async def chunk_after(call: Any, last: pb.Chunk | None) -> pb.Chunk:
    """The next chunk of a play, which must follow on the one before; Resumed and Begun are passed over."""
    while True:
        message = await asyncio.wait_for(call.read(), PAUSE_MAX_S)
        assert message is not grpc.aio.EOF, await call.code()
        if message.HasField("played"):
            chunk: pb.Chunk = message.played.chunk
            assert last is None or chunk.index == last.index + 1
            assert message.played.done_action_count == 1
            return chunk


@pytest.mark.timeout(180)
async def test_a_play_that_repeats_goes_on_and_a_paused_one_stands_still(tmp_path: Path, valkey: Any) -> None:
    async with deployed(tmp_path, valkey.url) as deployment:
        victim = deployment.replicas[0]
        sessions: list[str] = []
        while len(sessions) < 2:
            session = await create(deployment.stub, 900)
            if session.endswith(victim.name):
                sessions.append(session)
        plays, last = [], []
        for session in sessions:
            call = deployment.stub.Play(timeout=120)
            begin = pb.PlayRequest.Begin(fps=10, idle=pb.PlayRequest.IDLE_REPEAT, actions=[pb.Action(id=2)])
            await call.write(pb.PlayRequest(session=session, begin=begin))
            plays.append(call)
            chunk = None
            for _ in range(3):
                chunk = await chunk_after(call, chunk)
            last.append(chunk)
        moving, standing = plays
        await standing.write(pb.PlayRequest(pause=pb.PlayRequest.Pause()))
        while not (message := await standing.read()).HasField("paused"):
            last[1] = message.played.chunk
        await victim.end()
        for _ in range(10):
            last[0] = await chunk_after(moving, last[0])
        message = await asyncio.wait_for(standing.read(), PAUSE_MAX_S)
        assert message.resumed.rehomed
        reading = asyncio.ensure_future(chunk_after(standing, last[1]))
        await asyncio.sleep(0.5)
        assert not reading.done(), "it is paused"
        await standing.write(pb.PlayRequest(resume=pb.PlayRequest.Resume()))
        last[1] = await reading
        for _ in range(3):
            last[1] = await chunk_after(standing, last[1])
        for call in plays:
            call.cancel()
        undisturbed = await create(deployment.reference, 900)
        actions = [pb.Action(id=2)] * (max(chunk.index for chunk in last) + 1)
        right = (await deployment.reference.Step(pb.StepRequest(session=undisturbed, actions=actions))).chunks
        for chunk in last:
            assert (chunk.frames, chunk.state_hash) == (right[chunk.index].frames, right[chunk.index].state_hash)
        await deployment.quiet()


@pytest.mark.timeout(180)
async def test_plays_go_on_without_redis_and_are_shown_as_unprotected(tmp_path: Path, valkey: Any) -> None:
    seeds = list(range(700, 700 + STREAM_COUNT))
    async with deployed(tmp_path, valkey.url) as deployment:
        sessions = [await create(deployment.stub, seed) for seed in seeds]
        come_count = 0

        def on_chunk() -> None:
            nonlocal come_count
            come_count += 1
            if come_count == STREAM_COUNT * 4:
                valkey.kill()

        seen = await asyncio.gather(
            *(
                play(deployment.stub, session, seed, live=index % 4 >= 2, fps=FPS * (index % 4 < 2), on_chunk=on_chunk)
                for index, (session, seed) in enumerate(zip(sessions, seeds, strict=True))
            )
        )
        check(list(seen), await deployment.undisturbed(seeds))
        assert not any(each.resumed for each in seen)

        def unprotected() -> float:
            total = 0.0
            for replica in deployment.replicas:
                url = f"http://{replica.metrics_address}/metrics"
                text = urllib.request.urlopen(url, timeout=5).read().decode()
                total += sum(
                    float(line.rpartition(" ")[2])
                    for line in text.splitlines()
                    if line.startswith("worldtree_unprotected_sessions{")
                )
            return total

        ends_s = time.monotonic() + 20
        while (count := await asyncio.to_thread(unprotected)) != STREAM_COUNT:
            assert time.monotonic() < ends_s, f"{count:g} of {STREAM_COUNT} sessions are shown as unprotected"
            await asyncio.sleep(0.2)
