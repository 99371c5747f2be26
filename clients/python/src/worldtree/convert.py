"""Protobuf to the SDK's values and back: pure functions, no channel."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from operator import index
from typing import Any, Literal, Protocol, get_args

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from worldtree.actions import action_from_pb, actions_to_pb
from worldtree.common.v1 import common_pb2
from worldtree.errors import InvalidRequest
from worldtree.types import (
    Chunk,
    ContinuousActions,
    Frames,
    KvPolicy,
    ModelInfo,
    PlayedChunk,
    PromptSpace,
    Resumed,
    Seconds,
    SessionInfo,
    Start,
    Storage,
    StorageFormat,
    Timing,
)
from worldtree.video.v1 import video_generator_pb2 as pb

DTYPES = {
    np.dtype(np.uint8): common_pb2.Tensor.D_TYPE_UINT8,
    np.dtype(np.int32): common_pb2.Tensor.D_TYPE_INT32,
    np.dtype(np.int64): common_pb2.Tensor.D_TYPE_INT64,
    np.dtype(np.float16): common_pb2.Tensor.D_TYPE_FLOAT16,
    np.dtype(np.float32): common_pb2.Tensor.D_TYPE_FLOAT32,
    np.dtype(np.bool_): common_pb2.Tensor.D_TYPE_BOOL,
}
KV_KINDS = get_args(KvPolicy.__annotations__["kind"])
KV_STORAGES = get_args(Storage)
KV_KEYS = tuple(field.name for field in fields(KvPolicy))
# The wire's names of the same things.
KV_SPELLINGS = {f"{key}_chunks": key for key in ("window", "sink", "recent", "bank")}
MAX_DURATION_S = 315_576_000_000  # 10,000 years: what a Duration of the wire holds


def integer(value: Any, *, field: str, bits: int = 64) -> int:
    """An integer as the wire has it, NumPy's too. Raises InvalidRequest; the range that makes sense is the server's to
    say."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else index(value)
    except TypeError:
        number = None
    if number is None or not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise InvalidRequest(f"{field} must be a {bits}-bit integer, got {value!r}", field=field)
    return number


def seconds(value: Seconds, *, field: str) -> float:
    """A duration as seconds. Raises InvalidRequest unless it is finite and positive."""
    value_s = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 < value_s <= MAX_DURATION_S:  # a NaN fails both comparisons
        raise InvalidRequest(f"{field} must be above 0 to {MAX_DURATION_S} seconds, got {value!r}", field=field)
    return value_s


def duration_to_pb(value: Seconds | None, *, field: str) -> Duration | None:
    if value is None:
        return None
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds(value, field=field)))
    return message


def duration_from_pb(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9


def time_from_pb(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def frames_to_pb(frames: Any, *, field: str = "frames") -> common_pb2.Frames:
    """Pixels [frames, height, width, 3] or one image [height, width, 3]; or a list of PNG files as bytes.

    The server judges sizes and values; only what the wire can't carry is refused here.
    """
    if isinstance(frames, bytes):
        return common_pb2.Frames(png=[frames])
    if isinstance(frames, Sequence) and len(frames) > 0 and all(isinstance(image, bytes) for image in frames):
        return common_pb2.Frames(png=frames)
    pixels = np.asarray(frames)
    if pixels.ndim == 3:
        pixels = pixels[np.newaxis]
    if pixels.dtype not in DTYPES:
        accepted = ", ".join(str(dtype) for dtype in DTYPES)
        raise InvalidRequest(
            f"{field} must be uint8 [frames, height, width, 3], got dtype {pixels.dtype} (the wire has {accepted})",
            field=field,
            metadata={"dtype": str(pixels.dtype)},
        )
    data = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return common_pb2.Frames(
        tensor=common_pb2.Tensor(dtype=DTYPES[pixels.dtype], shape=pixels.shape, data=data.tobytes())
    )


def frames_from_pb(message: common_pb2.Frames) -> Frames:
    """Pixels [frames, height, width, 3], the caller's own copy."""
    if message.png:
        from worldtree.media import decode_png

        return np.stack([decode_png(image) for image in message.png])
    pixels: Frames = np.frombuffer(message.tensor.data, np.uint8).reshape(tuple(message.tensor.shape))
    return pixels.copy()


def last_frame_from_pb(message: common_pb2.Frames) -> Frames:
    """The last image, [height, width, 3]."""
    image: Frames = frames_from_pb(message)[-1]
    return image


class Listed(Protocol):
    """A model as its service lists it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def digest(self) -> str: ...


def model_ref(model: str | Listed | None) -> common_pb2.ModelRef:
    """A model by "name", by "name/version", or as listed, which pins the digest; None: the only one there is."""
    if model is None:
        return common_pb2.ModelRef()
    if not isinstance(model, str):
        return common_pb2.ModelRef(name=model.name, version=model.version, digest=model.digest)
    name, _, version = model.partition("/")
    return common_pb2.ModelRef(name=name, version=version)


def model_from_pb(message: pb.Model) -> ModelInfo:
    space = message.action_space
    continuous = None
    if space.WhichOneof("kind") == "continuous":
        continuous = ContinuousActions(space.continuous.size, space.continuous.low, space.continuous.high)
    return ModelInfo(
        name=message.ref.name,
        version=message.ref.version,
        digest=message.ref.digest,
        description=message.description,
        license=message.license,
        height_px=message.height_px,
        width_px=message.width_px,
        fps=message.fps,
        frames_per_chunk=message.frames_per_chunk,
        actions=tuple(space.discrete.names),
        continuous=continuous,
        nfe_choices=tuple(message.nfe_choices),
        nfe_default=message.nfe_default,
        window_chunks=message.window_chunks,
        block_bytes=message.block_bytes,
        starts=tuple(
            Start(start.name, description=start.description, frame_count=start.frame_count) for start in message.starts
        ),
        prompt_supported=message.prompt_supported,
        prompt_space=PromptSpace(
            words=tuple(message.prompt_space.words),
            token_limit=message.prompt_space.token_limit,
            examples=tuple(message.prompt_space.examples),
        )
        if message.prompt_supported
        else None,
        storage_formats=tuple(
            StorageFormat(storage_from_pb(each.storage), block_bytes=each.block_bytes, block_count=each.block_count)
            for each in message.storage_formats
        ),
        policy_plugins=tuple(message.policy_plugins),
    )


def kv_to_pb(kv: KvPolicy | Mapping[str, Any] | None) -> pb.KvPolicy | None:
    """A KV policy, also as a mapping with the same keys: {"kind": "sink_window", "window": 8, "sink": 1}, or with the
    wire's: {"window_chunks": 8, "sink_chunks": 1}."""
    if kv is None:
        return None
    if not isinstance(kv, KvPolicy):
        kv = _kv_of_mapping(kv)
    for key, value, choices in (("kind", kv.kind, KV_KINDS), ("storage", kv.storage, KV_STORAGES)):
        if value not in choices:
            raise InvalidRequest(f"kv.{key} must be one of {', '.join(choices)}, got {value!r}", field=f"kv.{key}")
    if kv.kind == "sliding" and kv.sink is not None:
        # A window that slides but keeps a sink has a name of its own on the wire; without a sink there is none to name.
        kv = replace(kv, kind="sink_window") if kv.sink else replace(kv, sink=None)
    if not isinstance(kv.plugin, str):
        raise InvalidRequest(f"kv.plugin must be a policy's name, got {kv.plugin!r}", field="kv.plugin")
    return pb.KvPolicy(
        kind=pb.KvPolicy.Kind.Value("KIND_" + ("UNSPECIFIED" if kv.kind == "default" else kv.kind.upper())),
        window_chunks=integer(kv.window, field="kv.window", bits=32),
        sink_chunks=None if kv.sink is None else integer(kv.sink, field="kv.sink", bits=32),
        storage=pb.KvPolicy.Storage.Value(
            "STORAGE_" + ("UNSPECIFIED" if kv.storage == "default" else kv.storage.upper())
        ),
        recent_chunks=integer(kv.recent, field="kv.recent", bits=32),
        bank_chunks=integer(kv.bank, field="kv.bank", bits=32),
        plugin=kv.plugin,
    )


def _kv_of_mapping(kv: Mapping[str, Any]) -> KvPolicy:
    given: dict[str, Any] = {}
    for key, value in kv.items():
        name = KV_SPELLINGS.get(key, key)
        if name not in KV_KEYS:
            accepted = ", ".join((*KV_KEYS, *KV_SPELLINGS))
            raise InvalidRequest(f"kv has no {key!r} (got {value!r}); it takes {accepted}", field=f"kv.{key}")
        if name in given:
            raise InvalidRequest(f"kv.{key} is kv.{name} in another spelling: give one of them", field=f"kv.{key}")
        given[name] = value
    if given.get("plugin"):
        given.setdefault("kind", "plugin")
    return KvPolicy(**given)


def kv_from_pb(message: pb.KvPolicy) -> KvPolicy:
    # A kind of a newer server than this SDK reads as the default.
    kind: Any = KV_KINDS[message.kind] if 0 <= message.kind < len(KV_KINDS) else "default"
    return KvPolicy(
        kind=kind,
        window=message.window_chunks,
        sink=message.sink_chunks if message.HasField("sink_chunks") else None,
        storage=storage_from_pb(message.storage),
        recent=message.recent_chunks,
        bank=message.bank_chunks,
        plugin=message.plugin,
    )


def storage_from_pb(storage: pb.KvPolicy.Storage.ValueType) -> Storage:
    """A format of a newer server than this SDK reads as the default."""
    known: Storage = KV_STORAGES[storage] if 0 <= storage < len(KV_STORAGES) else "default"
    return known


def state_from_pb(state: pb.Session.State.ValueType) -> Literal["idle", "busy", "spilled", "unknown"]:
    match state:
        case pb.Session.STATE_IDLE:
            return "idle"
        case pb.Session.STATE_BUSY:
            return "busy"
        case pb.Session.STATE_SPILLED:
            return "spilled"
        case _:
            return "unknown"


def session_from_pb(message: pb.Session) -> SessionInfo:
    return SessionInfo(
        id=message.session,
        model=message.model.name,
        version=message.model.version,
        digest=message.model.digest,
        chunk_index=message.chunk_index,
        start_frame_count=message.start_frame_count,
        seed=message.seed,
        nfe=message.nfe,
        kv=kv_from_pb(message.kv),
        state=state_from_pb(message.state),
        parent=message.parent or None,
        start=message.start or None,
        create_time=time_from_pb(message.create_time),
        expire_time=time_from_pb(message.expire_time),
        block_count=message.block_count,
        shared_block_count=message.shared_block_count,
        state_hash=message.state_hash,
        journaled=message.journaled,
    )


def timing_from_pb(message: common_pb2.Timing) -> Timing:
    return Timing(
        queue_s=duration_from_pb(message.queue_duration),
        denoise_s=duration_from_pb(message.denoise_duration),
        commit_s=duration_from_pb(message.commit_duration),
        tick_count=message.tick_count,
        mean_batch_size=message.mean_batch_size,
        nfe=message.nfe,
    )


def chunk_from_pb(message: pb.Chunk) -> Chunk:
    return Chunk(
        index=message.index,
        actions=(action_from_pb(message.action),),
        frames=frames_from_pb(message.frames) if message.HasField("frames") else None,
        timing=timing_from_pb(message.timing),
        state_hash=message.state_hash,
    )


def played_from_pb(message: pb.PlayResponse.Played, action_names: Sequence[str]) -> PlayedChunk:
    chunk = message.chunk
    return PlayedChunk(
        index=chunk.index,
        actions=(action_from_pb(chunk.action, action_names),),
        frames=frames_from_pb(chunk.frames),
        timing=timing_from_pb(chunk.timing),
        state_hash=chunk.state_hash,
        control_latency_s=(duration_from_pb(message.control_latency) if message.HasField("control_latency") else None),
        late_s=duration_from_pb(message.late_duration),
        queued_count=message.queued_count,
        done_action_count=message.done_action_count,
    )


def resumed_from_pb(message: pb.PlayResponse.Resumed) -> Resumed:
    if not message.rehomed:
        return Resumed(message.chunk_index)
    return Resumed(
        message.chunk_index,
        rehomed=True,
        replica=message.replica,
        bit_identical=message.bit_identical,
        pause_s=duration_from_pb(message.pause_duration) if message.HasField("pause_duration") else None,
    )


def origin_to_pb(*, start: str | None, frames: Any, actions: Any, prompt: str | None) -> pb.Origin:
    """Where a world begins. Which of them may go together is for the server to say."""
    return pb.Origin(
        start=start or "",
        frames=None if frames is None else frames_to_pb(frames),
        actions=() if actions is None else actions_to_pb(actions),
        prompt=prompt or "",
    )


def join(chunks: Sequence[Frames]) -> Frames:
    """Chunks one after the other: [frames, height, width, 3]."""
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
