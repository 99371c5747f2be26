"""A video replica without a model that keeps the contract of failover: its frames are hashes of a session's history,
its journal is a folder that all replicas of a test share. A process that a test may kill, or that an action's
instruction kills or drains at an exact place. Files in the folder make a replica refuse: `full-NAME`, `busy-NAME`,
`hang-NAME`, `circle`, and `queued-NAME` once, when it has taken a session on.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2_grpc
from worldtree_runtime.errors import (
    Aborted,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from worldtree_runtime.server import start_server
from worldtree_runtime.settings import ServiceSettings

SERVICE = "worldtree.video.v1.VideoGenerator"


def state_hash(actions: list[str]) -> str:
    """Of a history; the frames after it are made of it too."""
    return hashlib.sha256("/".join(actions).encode()).hexdigest()


def chunk_of(actions: list[str]) -> pb.Chunk:
    """The last chunk of a history."""
    digest = state_hash(actions)
    tensor = common_pb2.Tensor(dtype=common_pb2.Tensor.D_TYPE_UINT8, data=bytes.fromhex(digest) * 2)
    return pb.Chunk(
        index=len(actions) - 1,
        action=pb.Action.FromString(bytes.fromhex(actions[-1])),
        frames=common_pb2.Frames(tensor=tensor),
        timing=common_pb2.Timing(nfe=2),
        state_hash=digest,
    )


class JournalBackend(video_generator_pb2_grpc.VideoGeneratorServicer):
    """One replica. A session is a file: its owner, its actions, the last request_id."""

    def __init__(self, replica: str, journal: Path) -> None:
        self.replica = replica
        self.journal = journal
        self.draining = False

    def _path(self, session: str) -> Path:
        return self.journal / f"session-{session}"

    def _load(self, session: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path(session).read_text())
        return found

    def _save(self, session: str, **fields: Any) -> None:
        known = self._load(session) if self._path(session).exists() else {}
        part = self._path(session).with_suffix(f".part-{self.replica}")
        part.write_text(json.dumps({**known, **fields}))
        part.replace(self._path(session))

    def _log(self, word: str, text: str) -> None:
        with (self.journal / f"log-{word}").open("a") as file:
            file.write(text + "\n")

    async def _own(self, session: str, context: Any) -> None:
        """The journal's say: ours, taken on by the gateway's word, or somebody else's."""
        metadata = dict(context.invocation_metadata())
        self._log("calls", f"{self.replica} {metadata.get('worldtree-rehome')} {metadata.get('worldtree-tenant')}")
        if "worldtree-admitted" in metadata:
            self._log("admitted", f"{session} {self.replica}")
        if (self.journal / f"hang-{self.replica}").exists():
            await asyncio.sleep(60)
        if self.draining:
            raise Unavailable("DRAINING", f"replica {self.replica} is leaving", retry_after_s=1, replica=self.replica)
        if (self.journal / "circle").exists():
            other = "b" if self.replica == "a" else "a"
            raise FailedPrecondition("SESSION_MOVED", f"{session} lives at {other}", subject=session, replica=other)
        if (self.journal / "journal-down").exists():
            raise Unavailable("STORE_UNAVAILABLE", "the journal does not answer", retry_after_s=1)
        if not self._path(session).exists():
            raise NotFound("session", session)
        owner = self._load(session)["owner"]
        if owner == self.replica:
            return
        if metadata.get("worldtree-rehome") != owner:
            raise FailedPrecondition("SESSION_MOVED", f"{session} lives at {owner}", subject=session, replica=owner)
        if (self.journal / f"full-{self.replica}").exists():
            raise Exhausted("KV_CACHE_FULL", "no block is free", retry_after_s=0.1)
        self._save(session, owner=self.replica)
        self._log("adopted", f"{session} {owner} {self.replica}")
        queued = self.journal / f"queued-{self.replica}"
        if queued.exists():
            queued.unlink()
            raise Exhausted("QUEUE_FULL", "too much waits", retry_after_s=0.1)

    async def _obey(self, action: pb.Action, session: str, *, made: bool) -> None:
        """What an instruction asks for, before its chunk is made or when it is in the journal."""
        word, _, value = action.instruction.partition(":")
        if made is not word.endswith("-made"):
            return
        marker = self.journal / f"done-{hashlib.sha256(action.SerializeToString()).hexdigest()}"
        match word.removesuffix("-made"):
            case "sleep":
                await asyncio.sleep(float(value))
            case "die" if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "drain" if not marker.exists():
                marker.touch()
                self.draining = True
            case "moved" if not marker.exists():
                marker.touch()
                self._save(session, owner=value)
            case "broken" if not marker.exists():
                marker.touch()
                raise Unavailable("ENGINE_BROKEN", "the engine has ended by a bug", retry_after_s=5, model="m")
            case "refuse":
                raise InvalidRequest("actions", "this action is refused")

    async def _make(self, session: str, action: pb.Action, request_id: str = "") -> pb.Chunk:
        await self._obey(action, session, made=False)
        journal = self._load(session)
        if journal["owner"] != self.replica:
            raise FailedPrecondition("SESSION_MOVED", "it moved", subject=session, replica=journal["owner"])
        actions = [*journal["actions"], action.SerializeToString().hex()]
        self._save(session, actions=actions, request_id=request_id)
        await self._obey(action, session, made=True)
        return chunk_of(actions)

    def _session(self, session: str) -> pb.Session:
        return pb.Session(session=session, chunk_index=len(self._load(session)["actions"]), start=self.replica)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        await context.send_initial_metadata((("worldtree-replica", self.replica),))
        return pb.ListModelsResponse()

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.CreateSessionResponse:
        name = f"s{len(list(self.journal.glob('session-*')))}.{self.replica}"
        self._save(name, owner=self.replica, actions=[], request_id="")
        if request.origin.start == "die" and not (self.journal / "died-creating").exists():
            (self.journal / "died-creating").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pb.CreateSessionResponse(session=self._session(name))

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:
        await self._own(request.session, context)
        return pb.GetResponse(session=self._session(request.session))

    async def Step(self, request: pb.StepRequest, context: Any) -> pb.StepResponse:
        await self._own(request.session, context)
        journal = self._load(request.session)
        if request.request_id and journal["request_id"] == request.request_id:
            return pb.StepResponse(chunks=[chunk_of(journal["actions"])], chunk_index=len(journal["actions"]))
        chunks = [await self._make(request.session, action, request.request_id) for action in request.actions]
        return pb.StepResponse(chunks=chunks, chunk_index=chunks[-1].index + 1)

    async def Rewind(self, request: pb.RewindRequest, context: Any) -> pb.RewindResponse:
        await self._own(request.session, context)
        actions = self._load(request.session)["actions"]
        if request.HasField("expected_chunk_index") and request.expected_chunk_index != len(actions):
            raise Aborted("CHUNK_INDEX_MISMATCH", "it stands elsewhere")
        self._save(request.session, actions=actions[: len(actions) - request.chunk_count])
        if (self.journal / "die-rewinding").exists():
            (self.journal / "die-rewinding").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return pb.RewindResponse(session=self._session(request.session))

    async def Rollout(self, request: pb.RolloutRequest, context: Any) -> AsyncIterator[pb.RolloutResponse]:
        await self._own(request.session, context)
        start = self._load(request.session)["actions"]
        nodes: dict[tuple[bytes, ...], list[int]] = {}
        for index, sequence in enumerate(request.sequences):
            path = tuple(action.SerializeToString() for action in sequence.actions)
            for depth in range(len(path)):
                nodes.setdefault(path[: depth + 1], []).append(index)
        # another replica may walk the trie in another order, as long as a node comes after its parent
        order = sorted(nodes) if self.replica < "b" else sorted(nodes, key=lambda each: (len(each), each))
        for path in order:
            await self._obey(pb.Action.FromString(path[-1]), request.session, made=False)
            chunk = chunk_of([*start, *(action.hex() for action in path)])
            yield pb.RolloutResponse(
                chunk=chunk, depth=len(path) - 1, sequences=nodes[path], node_count=len(nodes), chunk_count=0
            )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        ref = common_pb2.ModelRef(name=request.model.name, version="1", digest="d" * 64)
        return pb.GetModelResponse(model=pb.Model(ref=ref))

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        for action in request.actions:
            await self._obey(action, "", made=False)
            yield pb.GenerateResponse(chunk=chunk_of([action.SerializeToString().hex()]))

    async def Introspect(self, request: pb.IntrospectRequest, context: Any) -> pb.IntrospectResponse:
        return pb.IntrospectResponse(replica=self.replica)

    async def Play(self, requests: AsyncIterator[pb.PlayRequest], context: Any) -> AsyncIterator[pb.PlayResponse]:
        first = await anext(aiter(requests))
        session, begin = first.session, first.begin
        await self._own(session, context)
        if (self.journal / f"busy-{self.replica}").exists():
            raise Aborted("SESSION_BUSY", "another play has not ended yet", session=session)
        if (self.journal / "die-beginning").exists():
            (self.journal / "die-beginning").unlink()
            await self._die_before_begun_arrives(session, begin, aiter(requests))
        if begin.HasField("resume_from"):
            yield self._resume(session, begin.resume_from)
        else:
            yield pb.PlayResponse(begun=pb.PlayResponse.Begun(session=self._session(session)))
        steering = _Steering(self, session, begin)
        task = asyncio.create_task(steering.steer(requests))
        try:
            while (event := await steering.next()) is not None:
                yield event
        finally:
            task.cancel()

    async def _die_before_begun_arrives(
        self, session: str, begin: pb.PlayRequest.Begin, requests: AsyncIterator[pb.PlayRequest]
    ) -> None:
        """All that was asked for until now is done and in the journal; what was said of it is still on its way."""
        actions = list(begin.actions)
        with suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(0.3):
                while True:
                    actions += (await anext(requests)).act.actions
        for action in actions:
            await self._make(session, action)
        os.kill(os.getpid(), signal.SIGKILL)

    def _resume(self, session: str, place: pb.PlayRequest.Continue) -> pb.PlayResponse:
        actions = self._load(session)["actions"][: place.chunk_index]
        for delivered in place.delivered:
            if delivered.index == len(actions):  # the journal was behind
                actions.append(delivered.action.SerializeToString().hex())
            assert state_hash(actions[: delivered.index + 1]) == delivered.state_hash
        assert len(actions) == place.chunk_index
        self._save(session, actions=actions)
        resumed = pb.PlayResponse.Resumed(
            chunk_index=place.chunk_index, rehomed=True, replica=self.replica, bit_identical=True
        )
        return pb.PlayResponse(resumed=resumed)


class _Steering:
    """The controls of one play, and what they lead to."""

    def __init__(self, backend: JournalBackend, session: str, begin: pb.PlayRequest.Begin) -> None:
        self._backend = backend
        self._session = session
        self._queue = deque(begin.actions)
        self._events: deque[pb.PlayResponse] = deque()
        self._changed = asyncio.Event()
        self._paused = self._ending = False
        self._done_count = 0
        self._failed: Exception | None = None

    async def steer(self, requests: AsyncIterator[pb.PlayRequest]) -> None:
        try:
            async for request in requests:
                await self._control(request)
                self._changed.set()
            self._ending = True
        except Exception as error:
            self._failed = error
        self._changed.set()

    async def next(self) -> pb.PlayResponse | None:
        while True:
            if self._events:
                return self._events.popleft()
            if self._failed is not None:
                raise self._failed
            if self._backend.draining:
                raise Unavailable("DRAINING", "leaving", retry_after_s=1, replica=self._backend.replica)
            if self._queue and not self._paused:
                action = self._queue.popleft()
                self._done_count += 1
                done_count = self._done_count
                chunk = await self._backend._make(self._session, action)
                played = pb.PlayResponse.Played(
                    chunk=chunk, queued_count=len(self._queue), done_action_count=done_count
                )
                return pb.PlayResponse(played=played)
            if self._ending:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _control(self, request: pb.PlayRequest) -> None:
        backend = self._backend
        index = len(backend._load(self._session)["actions"])
        match request.WhichOneof("control"):
            case "act":
                if request.act.replace:
                    self._forget()
                if len(self._queue) + len(request.act.actions) > 1024:
                    raise InvalidRequest("act.actions", "more than 1024 actions wait")
                self._queue.extend(request.act.actions)
            case "pause":
                self._paused = True
                self._events.append(pb.PlayResponse(paused=pb.PlayResponse.Paused(chunk_index=index)))
            case "resume":
                self._paused = False
                self._events.append(pb.PlayResponse(resumed=pb.PlayResponse.Resumed(chunk_index=index)))
            case "rewind":
                self._forget()
                actions = backend._load(self._session)["actions"][: index - request.rewind.chunk_count]
                backend._save(self._session, actions=actions)
                self._events.append(pb.PlayResponse(rewound=pb.PlayResponse.Rewound(chunk_index=len(actions))))
            case "fork":
                child = pb.Session(session=f"f{index}.{backend.replica}", chunk_index=index)
                self._events.append(pb.PlayResponse(forked=pb.PlayResponse.Forked(sessions=[child])))
            case "stop":
                self._forget()
                self._ending = True

    def _forget(self) -> None:
        self._done_count += len(self._queue)
        self._queue.clear()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replica", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    backend = JournalBackend(given.replica, given.journal)

    def register(server: grpc.aio.Server) -> list[str]:
        video_generator_pb2_grpc.add_VideoGeneratorServicer_to_server(backend, server)
        return [SERVICE]

    settings = ServiceSettings(replica=given.replica, port=given.port, metrics_port=0, drain_timeout_s=0.2)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with start_server(settings, service="video", register=register) as running:
        print(running.address, flush=True)
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(_main())
