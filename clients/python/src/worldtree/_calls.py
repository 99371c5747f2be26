"""The calls themselves, knowing neither a channel nor sync from async: what to ask, how to read the answer.

Both clients run these same values, so they cannot drift apart.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from google.protobuf.message import Message

from worldtree import convert
from worldtree._stubs import Service
from worldtree.actions import ActionsLike, actions_to_pb
from worldtree.common.v1 import common_pb2
from worldtree.errors import InvalidRequest
from worldtree.folds import ClipFold, RolloutFold
from worldtree.introspection import ReplicaStatus, replica_from_pb
from worldtree.types import Clip, Detail, Frames, KvPolicy, ModelInfo, Progress, Rollout, Seconds, SessionInfo, Snapshot
from worldtree.video.v1 import video_generator_pb2 as pb

# A gateway names the replicas that it knows here, separated by commas.
REPLICAS_KEY = "worldtree-replicas"
CACHE_KEY = "worldtree-cache"  # and here whether it had the answer

Metadata = Iterable[tuple[str, str | bytes]]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def was_cached(metadata: Metadata) -> bool:
    """Whether a gateway had the answer."""
    return any(key == CACHE_KEY and value in ("hit", b"hit") for key, value in metadata)


class Fold(Protocol[T_co]):
    """Gathers a stream's messages into one result."""

    def add(self, message: Any) -> None: ...

    def result(self) -> T_co: ...


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A unary call. `retry`: a repeat changes nothing, because it reads only or carries a request_id.

    `heed` is for a call whose answer lies partly in its metadata: given what was read, and what came before and after.
    """

    method: str
    request: Message
    read: Callable[[Any], T]
    retry: bool
    heed: Callable[[T, Metadata], T] | None = None
    service: Service = "video"


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """A call whose answer is a stream. A repeat changes no more than one call does: it may come until one has begun."""

    method: str
    request: Message
    fold: Callable[[], Fold[T]]
    service: Service = "video"


@dataclass(frozen=True, slots=True)
class Opened:
    """A session and the frames that came with it: of its start, or its last one."""

    session: SessionInfo
    frames: Frames
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Sessions, and the token of the next page (empty: none)."""

    sessions: list[SessionInfo]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """The frames of a step, and where the session stands after it."""

    frames: Frames
    chunk_index: int
    state_hash: str


def request_id() -> str:
    return str(uuid4())


def list_models() -> Call[list[ModelInfo]]:
    return Call(
        "ListModels",
        pb.ListModelsRequest(),
        lambda answer: [convert.model_from_pb(model) for model in answer.models],
        retry=True,
    )


def get_model(model: str | ModelInfo) -> Call[ModelInfo]:
    return Call(
        "GetModel",
        pb.GetModelRequest(model=convert.model_ref(model)),
        lambda answer: convert.model_from_pb(answer.model),
        retry=True,
    )


def action_names(session: SessionInfo) -> Call[tuple[str, ...]]:
    """The names of a session's actions by id; none for a continuous model."""
    ref = common_pb2.ModelRef(name=session.model, version=session.version, digest=session.digest)
    return Call(
        "GetModel",
        pb.GetModelRequest(model=ref),
        lambda answer: tuple(answer.model.action_space.discrete.names),
        retry=True,
    )


def create_session(
    model: str | ModelInfo,
    *,
    start: str | None,
    frames: Any,
    actions: ActionsLike | None,
    prompt: str | None,
    seed: int,
    nfe: int,
    kv: KvPolicy | Mapping[str, Any] | None,
    ttl: Seconds | None,
) -> Call[Opened]:
    request = pb.CreateSessionRequest(
        model=convert.model_ref(model),
        origin=convert.origin_to_pb(start=start, frames=frames, actions=actions, prompt=prompt),
        seed=convert.integer(seed, field="seed"),
        nfe=convert.integer(nfe, field="nfe", bits=32),
        kv=convert.kv_to_pb(kv),
        ttl=convert.duration_to_pb(ttl, field="ttl"),
        request_id=request_id(),
    )
    return Call("CreateSession", request, _opened_at_start, retry=True)


def get_session(session: str) -> Call[Opened]:
    return Call("Get", pb.GetRequest(session=session), _opened, retry=True)


def list_sessions(page_token: str) -> Call[Page]:
    return Call(
        "List",
        pb.ListRequest(page_size=1000, page_token=page_token),
        lambda answer: Page([convert.session_from_pb(session) for session in answer.sessions], answer.next_page_token),
        retry=True,
    )


def delete_session(session: str) -> Call[int]:
    return Call("Delete", pb.DeleteRequest(session=session), lambda answer: int(answer.freed_block_count), retry=True)


def keep_alive(session: str, *, ttl: Seconds | None) -> Call[Any]:
    request = pb.KeepAliveRequest(session=session, ttl=convert.duration_to_pb(ttl, field="ttl"))
    return Call("KeepAlive", request, lambda answer: convert.time_from_pb(answer.expire_time), retry=True)


def step(session: str, actions: ActionsLike) -> Call[Stepped]:
    request = pb.StepRequest(session=session, actions=actions_to_pb(actions), request_id=request_id())
    return Call("Step", request, _stepped, retry=True)


def fork(session: str, *, count: int, seeds: Sequence[int] | None, ttl: Seconds | None) -> Call[list[SessionInfo]]:
    request = pb.ForkRequest(
        session=session,
        count=integer_from_one(count, field="count"),
        seeds=[] if seeds is None else [convert.integer(seed, field="seeds") for seed in seeds],
        ttl=convert.duration_to_pb(ttl, field="ttl"),
        request_id=request_id(),
    )
    return Call(
        "Fork",
        request,
        lambda answer: [convert.session_from_pb(child) for child in answer.sessions],
        retry=True,
    )


def rewind(session: str, chunk_count: int, *, expected_chunk_index: int) -> Call[Opened]:
    request = pb.RewindRequest(
        session=session,
        chunk_count=convert.integer(chunk_count, field="chunk_count"),
        expected_chunk_index=expected_chunk_index,
    )
    # Not retried: after a lost answer the repeat would be refused by expected_chunk_index although all went well.
    return Call("Rewind", request, _opened, retry=False)


def save(session: str, *, include_data: bool, ttl: Seconds | None) -> Call[Snapshot]:
    request = pb.SaveRequest(session=session, include_data=include_data, ttl=convert.duration_to_pb(ttl, field="ttl"))
    # Not retried: it has no request_id, and each repeat would leave one more snapshot in the store.
    return Call("Save", request, _snapshot, retry=False)


def restore(snapshot: Snapshot | str | bytes, *, ttl: Seconds | None) -> Call[Opened]:
    if isinstance(snapshot, str):
        snapshot = Snapshot(id=snapshot)
    elif isinstance(snapshot, bytes):
        snapshot = Snapshot.from_bytes(snapshot)
    request = pb.RestoreRequest(ttl=convert.duration_to_pb(ttl, field="ttl"), request_id=request_id())
    # The bytes where we hold them: they outlive the server's store.
    if snapshot.data is not None:
        request.data = snapshot.data
    else:
        request.snapshot = snapshot.id
    return Call("Restore", request, _opened, retry=True)


def rollout(
    session: str,
    sequences: Sequence[ActionsLike],
    *,
    seeds: Sequence[int | None] | None,
    detail: Detail,
    progress: Progress | None,
) -> StreamCall[list[Rollout]]:
    details = {
        "all": pb.RolloutRequest.DETAIL_ALL,
        "last": pb.RolloutRequest.DETAIL_LAST,
        "none": pb.RolloutRequest.DETAIL_NONE,
    }
    if detail not in details:
        raise InvalidRequest(f"detail must be one of {', '.join(details)}, got {detail!r}", field="detail")
    if seeds is not None and len(seeds) != len(sequences):
        raise InvalidRequest(
            f"seeds must be one for each of the {len(sequences)} sequences, got {len(seeds)}",
            field="seeds",
            metadata={"sequence_count": str(len(sequences)), "seed_count": str(len(seeds))},
        )
    planned = [
        pb.ActionSequence(
            actions=actions_to_pb(actions, field=f"sequences[{index}].actions"),
            seed=None if seeds is None or (seed := seeds[index]) is None else convert.integer(seed, field="seeds"),
        )
        for index, actions in enumerate(sequences)
    ]
    request = pb.RolloutRequest(session=session, sequences=planned, detail=details[detail])
    return StreamCall("Rollout", request, lambda: RolloutFold(planned, detail=detail, progress=progress))


def generate(
    model: str | ModelInfo,
    *,
    start: str | None,
    frames: Any,
    frame_actions: ActionsLike | None,
    prompt: str | None,
    actions: ActionsLike,
    seed: int,
    nfe: int,
    kv: KvPolicy | Mapping[str, Any] | None,
    progress: Progress | None,
) -> StreamCall[Clip]:
    request = pb.GenerateRequest(
        model=convert.model_ref(model),
        origin=convert.origin_to_pb(start=start, frames=frames, actions=frame_actions, prompt=prompt),
        actions=actions_to_pb(actions),
        seed=convert.integer(seed, field="seed"),
        nfe=convert.integer(nfe, field="nfe", bits=32),
        kv=convert.kv_to_pb(kv),
    )
    return StreamCall("Generate", request, lambda: ClipFold(list(request.actions), progress=progress))


def introspect(replica: str | None, *, session_limit: int) -> Call[ReplicaStatus]:
    limit = integer_from_one(session_limit, field="session_limit")
    request = pb.IntrospectRequest(replica=replica or "", session_limit=limit)
    # That the one asked for is down is what its operator wants to know, and now; "whoever answers" is worth a wait.
    return Call("Introspect", request, lambda answer: replica_from_pb(answer), retry=not replica)


def replicas() -> Call[list[str]]:
    return Call(
        "Introspect",
        pb.IntrospectRequest(session_limit=1),
        lambda answer: [str(answer.replica)],
        retry=True,
        heed=_named_replicas,
    )


def integer_from_one(value: int, *, field: str) -> int:
    """For a count whose 0 means a default on the wire: a program that computes 0 should hear of it."""
    number = convert.integer(value, field=field, bits=32)
    if number < 1:
        raise InvalidRequest(f"{field} must be 1 or more, got {number}", field=field, metadata={field: str(number)})
    return number


def _named_replicas(answering: list[str], metadata: Metadata) -> list[str]:
    """Those that a gateway names; without a gateway, the one that answered."""
    named = [
        value.decode("ascii", "replace") if isinstance(value, bytes) else value
        for key, value in metadata
        if key == REPLICAS_KEY
    ]
    found = {name.strip() for value in named for name in value.split(",")} - {""}
    return sorted(found) or answering


def _opened_at_start(answer: pb.CreateSessionResponse) -> Opened:
    return Opened(
        convert.session_from_pb(answer.session), convert.frames_from_pb(answer.frames), tuple(answer.warnings)
    )


def _opened(answer: pb.GetResponse | pb.RewindResponse | pb.RestoreResponse) -> Opened:
    return Opened(convert.session_from_pb(answer.session), convert.frames_from_pb(answer.last_frame))


def _stepped(answer: pb.StepResponse) -> Stepped:
    chunks = [convert.frames_from_pb(chunk.frames) for chunk in answer.chunks]
    return Stepped(convert.join(chunks), answer.chunk_index, answer.chunks[-1].state_hash)


def _snapshot(answer: pb.SaveResponse) -> Snapshot:
    return Snapshot(
        id=answer.snapshot,
        data=answer.data or None,
        size_bytes=answer.size_bytes,
        state_hash=answer.state_hash,
        expire_time=convert.time_from_pb(answer.expire_time),
    )
