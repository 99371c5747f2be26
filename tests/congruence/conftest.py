"""One client, three ways: the engine in this process, the service over gRPC, the service behind the gateway."""

import asyncio
import random
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pytest
import worldtree
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from worldtree.common.v1 import common_pb2 as common
from worldtree_video import snapshot as snapshots
from worldtree_video.catalog import Catalog, Served, load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.live import LivePlay
from worldtree_video.metrics import VideoMetrics
from worldtree_video.play import Played
from worldtree_video.recipe import Recipe

MODELS = str(Path(__file__).parents[2] / "models")
POOL_MIB = 256
Frames = NDArray[np.uint8]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Walk:
    """What the tests do: from a start of a model by these actions, a chunk each."""

    model: str
    start: str
    actions: tuple[int, ...]
    frames_per_chunk: int

    def chunks(self, frames: Frames) -> Frames:
        """Frames as [chunks, frames_per_chunk, height, width, 3]."""
        return frames.reshape(-1, self.frames_per_chunk, *frames.shape[1:])


def _walk(model: str, start: str, choices: tuple[int, ...], count: int, frames_per_chunk: int) -> Walk:
    chance = random.Random(20261124)
    return Walk(model, start, tuple(chance.choice(choices) for _ in range(count)), frames_per_chunk)


# The long one goes far beyond window and reserve. The other is for what a latent model adds: decoded, encoded again.
WALKS = {
    "minigrid": _walk("minigrid", "four-rooms", (0, 1, 2, 2, 2, 3, 5), 64, 1),
    "doom": _walk("doom", "lamps", (1, 1, 1, 3, 4, 5, 6), 18, 4),
}


class WorldLike(Protocol):
    """What the tests do with a world, whoever holds it."""

    def step(self, actions: list[int]) -> Frames: ...
    def fork(self) -> "WorldLike": ...
    def rewind(self, chunk_count: int) -> object: ...
    def rollout(self, sequences: list[list[int]]) -> list[Frames]: ...
    def play(self, actions: list[int]) -> Frames: ...
    def saved_and_restored(self, *, as_bytes: bool) -> "WorldLike": ...
    def close(self) -> None: ...


class ClientLike(Protocol):
    """Opens worlds on the start of its walk under seed 7 and nfe 2."""

    def world(self, *, seed: int = 7) -> WorldLike: ...
    def generate(self, actions: list[int]) -> Frames: ...
    def held_block_count(self) -> int: ...


class EventLoop:
    """An event loop in a thread, so that synchronous test bodies can use coroutines, several at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        future: Future[Result] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(timeout=120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class EngineWorld:
    """A session of the engine in this process."""

    client: "EngineClient"
    name: str

    def step(self, actions: list[int]) -> Frames:
        chunks = self.client.run(self.client.worlds.step(self.name, _actions(actions)))
        return self.client.pixels([chunk.frames for chunk in chunks])

    def fork(self) -> "EngineWorld":
        return EngineWorld(self.client, self.client.worlds.fork(self.name, seeds=[None], ttl_s=600)[0].name)

    def rewind(self, chunk_count: int) -> object:
        return self.client.run(self.client.worlds.rewind(self.name, chunk_count))

    def rollout(self, sequences: list[list[int]]) -> list[Frames]:
        return self.client.run(self._rollout(sequences))

    def play(self, actions: list[int]) -> Frames:
        return self.client.run(self._play(actions))

    def saved_and_restored(self, *, as_bytes: bool) -> "EngineWorld":
        del as_bytes  # there is no store below the transport
        data, _ = self.client.run(self.client.served.archive.save(self.name))
        session, identical = self.client.run(self.client.served.archive.restore(snapshots.decode(data), ttl_s=600))
        assert identical
        return EngineWorld(self.client, session.name)

    def close(self) -> None:
        self.client.worlds.delete(self.name)

    async def _rollout(self, sequences: list[list[int]]) -> list[Frames]:
        pieces: list[dict[int, bytes]] = [{} for _ in sequences]
        edges = [[(Action(action), 7) for action in sequence] for sequence in sequences]
        async with self.client.worlds.rollout(self.name, edges) as rollout:
            async for node, chunk in rollout.nodes:
                for index in node.sequences:
                    pieces[index][node.depth] = chunk.frames
        return [self.client.pixels([piece[depth] for depth in sorted(piece)]) for piece in pieces]

    async def _play(self, actions: list[int]) -> Frames:
        chunks = []
        async with LivePlay.open(self.client.worlds, self.name, fps=0, lookahead_chunks=2, repeat=False) as play:
            play.act(_actions(actions))
            play.finish()
            async for item in play.chunks:
                assert isinstance(item, Played)
                chunks.append(item.chunk.frames)
                play.taken()
        return self.client.pixels(chunks)


class EngineClient:
    """The engine in this process, no transport."""

    def __init__(self, loop: EventLoop, catalog: Catalog, walk: Walk) -> None:
        self.walk = walk
        self.served: Served = catalog.resolve(common.ModelRef(name=walk.model))
        self.worlds = self.served.worlds
        self.run = loop.run

    def world(self, *, seed: int = 7) -> EngineWorld:
        return EngineWorld(self, self.run(self.worlds.create(self._recipe(seed), ttl_s=600)).name)

    def generate(self, actions: list[int]) -> Frames:
        async def collect() -> list[bytes]:
            return [chunk.frames async for chunk in self.worlds.generate(self._recipe(7), _actions(actions))]

        return self.pixels(self.run(collect()))

    def held_block_count(self) -> int:
        self.worlds.engine.check_integrity()
        return self.worlds.engine.pool.held_count

    def pixels(self, chunks: Sequence[bytes]) -> Frames:
        frame = self.served.package.frame
        shape = (-1, frame.height_px, frame.width_px, 3)
        return np.frombuffer(b"".join(chunks), np.uint8).reshape(shape)

    def _recipe(self, seed: int) -> Recipe:
        policy = KvPolicy(PolicyKind.SINK_WINDOW, self.served.package.kv.window, 1)
        return Recipe(self.served.starts[self.walk.start], seed, 2, policy)


@dataclass
class RemoteWorld:
    """A world of the SDK."""

    client: "RemoteClient"
    world: worldtree.World

    def step(self, actions: list[int]) -> Frames:
        return self.world.step(actions)

    def fork(self) -> "RemoteWorld":
        return RemoteWorld(self.client, self.world.fork())

    def rewind(self, chunk_count: int) -> object:
        return self.world.rewind(chunk_count)

    def rollout(self, sequences: list[list[int]]) -> list[Frames]:
        return [future.frames for future in self.world.rollout(sequences)]

    def play(self, actions: list[int]) -> Frames:
        return np.concatenate([chunk.frames for chunk in self.world.play(actions, fps=0)])

    def saved_and_restored(self, *, as_bytes: bool) -> "RemoteWorld":
        snapshot = self.world.save(include_data=as_bytes)
        if as_bytes:
            snapshot = worldtree.Snapshot.from_bytes(snapshot.to_bytes())
        return RemoteWorld(self.client, self.client.sdk.restore(snapshot))

    def close(self) -> None:
        self.world.close()


class RemoteClient:
    """The SDK, against the service or the gateway."""

    def __init__(self, address: str, video_metrics: str, walk: Walk) -> None:
        self.walk = walk
        self.sdk = worldtree.Client(address)
        self._metrics = video_metrics

    def world(self, *, seed: int = 7) -> RemoteWorld:
        return RemoteWorld(self, self.sdk.world(self.walk.model, start=self.walk.start, seed=seed, nfe=2))

    def generate(self, actions: list[int]) -> Frames:
        walk = self.walk
        return self.sdk.generate(walk.model, start=walk.start, seed=7, nfe=2, actions=actions).frames

    def held_block_count(self) -> int:
        # The gauges are set once a second: wait for one that was set after the last call.
        threading.Event().wait(1.2)
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        blocks = [line for line in lines if line.startswith("worldtree_kv_blocks{")]
        counts = [line.rsplit(" ", 1)[1] for line in blocks if '"free"' not in line and '"cached"' not in line]
        return int(sum(map(float, counts)))


@contextmanager
def process(module: str, *flags: str) -> Iterator[dict[str, str]]:
    """A service as a process of its own; its addresses."""
    command = [sys.executable, "-m", module, "--port", "0", "--metrics-port", "0", "--log-level", "warning", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            line = child.stdout.readline()
            assert line.startswith("worldtree ready"), f"{module} said {line!r}"
            yield dict(field.split("=", 1) for field in line.split() if "=" in field)
        finally:
            child.terminate()
            child.wait(timeout=30)


@pytest.fixture(scope="session")
def clients() -> Iterator[dict[tuple[str, str], ClientLike]]:
    """One engine in this process, and one service reached directly and through a gateway."""
    with ExitStack() as stack:
        settings = VideoSettings(models=MODELS, pool_mib=POOL_MIB)
        catalog = load_catalog(settings, VideoMetrics(CollectorRegistry()))
        loop = EventLoop()
        stack.callback(loop.close)
        catalog.start()
        stack.callback(catalog.stop)
        video = stack.enter_context(process("worldtree_video", "--models", MODELS, "--pool-mib", str(POOL_MIB)))
        gateway = stack.enter_context(process("worldtree_gateway", "--video", video["grpc"]))
        known: dict[tuple[str, str], ClientLike] = {}
        for name, walk in WALKS.items():
            known["engine", name] = EngineClient(loop, catalog, walk)
            for kind, address in (("grpc", video["grpc"]), ("gateway", gateway["grpc"])):
                known[kind, name] = remote = RemoteClient(address, video["metrics"], walk)
                stack.callback(remote.sdk.close)
        yield known


@pytest.fixture(params=list(WALKS))
def walk(request: pytest.FixtureRequest) -> Walk:
    """Each shipped world in turn."""
    return WALKS[request.param]


@pytest.fixture(params=["engine", "grpc", "gateway"])
def client(
    request: pytest.FixtureRequest, walk: Walk, clients: dict[tuple[str, str], ClientLike]
) -> Iterator[ClientLike]:
    """Each client in turn; a test that leaves a block behind fails."""
    chosen = clients[request.param, walk.model]
    yield chosen
    assert chosen.held_block_count() == 0


@pytest.fixture(scope="session")
def _alone(clients: dict[tuple[str, str], ClientLike]) -> Callable[[Walk], Frames]:
    known: dict[Walk, Frames] = {}

    def frames(walk: Walk) -> Frames:
        if walk not in known:
            world = clients["engine", walk.model].world()
            known[walk] = np.stack([world.step([action]) for action in walk.actions])
            world.close()
        return known[walk]

    return frames


@pytest.fixture
def expected(walk: Walk, _alone: Callable[[Walk], Frames]) -> Frames:
    """The chunks of a session that is alone in the engine of this process: [chunks, frames, height, width, 3]."""
    return _alone(walk)


def _actions(values: list[int]) -> list[Action]:
    return [Action(value) for value in values]
