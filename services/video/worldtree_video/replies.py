"""The words of domain.py to messages: pure functions."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.messages import from_seconds
from worldtree_runtime.video_package import DiscreteActions, VideoPackage

from worldtree_video import domain
from worldtree_video.catalog import Served
from worldtree_video.play import Played
from worldtree_video.policies import plugin_names
from worldtree_video.sessions import Session

_POLICY_KINDS = {
    domain.PolicyKind.SLIDING: pb.KvPolicy.KIND_SLIDING,
    domain.PolicyKind.SINK_WINDOW: pb.KvPolicy.KIND_SINK_WINDOW,
    domain.PolicyKind.FULL: pb.KvPolicy.KIND_FULL,
    domain.PolicyKind.RETRIEVE: pb.KvPolicy.KIND_RETRIEVE,
    domain.PolicyKind.PLUGIN: pb.KvPolicy.KIND_PLUGIN,
}
STORAGES = {
    domain.Storage.FP32: pb.KvPolicy.STORAGE_FP32,
    domain.Storage.FP16: pb.KvPolicy.STORAGE_FP16,
    domain.Storage.INT8: pb.KvPolicy.STORAGE_INT8,
}


def from_frames(pixels: bytes, package: VideoPackage) -> common.Frames:
    """Pixels of any number of frames, [frames, height, width, 3] uint8 in C order."""
    frame = package.frame
    frame_bytes = frame.height_px * frame.width_px * frame.channels
    shape = [len(pixels) // frame_bytes, frame.height_px, frame.width_px, frame.channels]
    return common.Frames(tensor=common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=shape, data=pixels))


def from_last_frame(pixels: bytes, package: VideoPackage) -> common.Frames:
    """The last frame of a chunk's pixels."""
    return from_frames(pixels[-(len(pixels) // package.frames_per_chunk) :], package)


def from_action(action: domain.Action) -> pb.Action:
    """An action, discrete ones by id."""
    if isinstance(action.value, int):
        return pb.Action(id=action.value)
    return pb.Action(vector=pb.Action.Vector(values=action.value))


def from_chunk(chunk: domain.Chunk, package: VideoPackage, *, frames: bool = True) -> pb.Chunk:
    """A generated chunk, with its frames or without."""
    record, timing = chunk.record, chunk.timing
    assert record.action is not None, f"chunk {record.chunk_index} was not generated"
    return pb.Chunk(
        index=record.chunk_index,
        action=from_action(record.action),
        frames=from_frames(chunk.frames, package) if frames else None,
        timing=common.Timing(
            queue_duration=from_seconds(timing.queue_s),
            denoise_duration=from_seconds(timing.denoise_s),
            commit_duration=from_seconds(timing.commit_s),
            tick_count=timing.tick_count,
            mean_batch_size=timing.mean_batch_size,
            nfe=record.nfe,
        ),
        state_hash=record.key.hex(),
    )


def from_played(played: Played, package: VideoPackage, now_s: float) -> pb.PlayResponse:
    """A chunk of a play."""
    latency_s = None if played.control_arrival_s is None else max(0.0, now_s - played.control_arrival_s)
    return pb.PlayResponse(
        played=pb.PlayResponse.Played(
            chunk=from_chunk(played.chunk, package),
            control_latency=None if latency_s is None else from_seconds(latency_s),
            late_duration=from_seconds(played.late_s),
            queued_count=played.queued_count,
            done_action_count=played.done_action_count,
        )
    )


def from_session(session: Session, served: Served) -> pb.Session:
    """A session as it stands."""
    with served.worlds.engine.lock:  # a play may be moving it
        return _from_session(session, served)


def _from_session(session: Session, served: Served) -> pb.Session:
    branch, package = session.branch, served.package
    policy = branch.table.policy
    return pb.Session(
        session=session.name,
        model=served.ref,
        chunk_index=branch.chunk_index,
        start_frame_count=branch.start_count * package.frames_per_chunk,
        seed=branch.seed,
        nfe=branch.nfe,
        kv=pb.KvPolicy(
            kind=_POLICY_KINDS[policy.kind],
            window_chunks=policy.window_chunks,
            sink_chunks=policy.sink_chunks,
            storage=STORAGES[policy.storage],
            recent_chunks=policy.recent_chunks,
            bank_chunks=policy.bank_chunks,
            plugin=policy.plugin,
        ),
        state=_state(session),
        parent=session.parent,
        create_time=from_time(session.created_s),
        expire_time=from_time(session.expires_s),
        block_count=branch.table.held_count,
        shared_block_count=branch.table.shared_count(),
        state_hash=branch.key.hex(),
        start=branch.origin.name,
        journaled=served.worlds.protection.protected(session),
    )


def _state(session: Session) -> "pb.Session.State.ValueType":
    if session.claim:
        return pb.Session.STATE_BUSY
    return pb.Session.STATE_SPILLED if session.spilled else pb.Session.STATE_IDLE


def from_model(served: Served) -> pb.Model:
    """A model as a client needs to know it."""
    package = served.package
    if isinstance(package.action, DiscreteActions):
        space = pb.ActionSpace(discrete=pb.ActionSpace.Discrete(names=package.action.names))
    else:
        action = package.action
        space = pb.ActionSpace(continuous=pb.ActionSpace.Continuous(size=action.size, low=action.low, high=action.high))
    return pb.Model(
        ref=served.ref,
        description=package.description,
        height_px=package.frame.height_px,
        width_px=package.frame.width_px,
        fps=package.frame.fps,
        frames_per_chunk=package.frames_per_chunk,
        action_space=space,
        nfe_choices=sorted(package.sampler.schedules),
        nfe_default=package.sampler.default_nfe,
        window_chunks=package.kv.window,
        block_bytes=package.kv.block_bytes,
        starts=[
            pb.Start(
                name=start.name,
                description=start.description,
                frame_count=len(served.starts[start.name].chunks) * package.frames_per_chunk,
            )
            for start in sorted(package.starts, key=lambda start: start.name)
        ],
        license=package.license,
        prompt_supported=package.prompt is not None,
        prompt_space=None
        if package.prompt is None
        else pb.PromptSpace(
            words=package.prompt.words, token_limit=package.prompt.tokens, examples=package.prompt.examples
        ),
        storage_formats=[
            pb.StorageFormat(
                storage=STORAGES[storage],
                block_bytes=served.worlds.model.block_bytes(storage),
                block_count=pool.block_count,
            )
            for storage, pool in served.worlds.engine.pools.items()
        ],
        policy_plugins=plugin_names(),
    )


def from_time(seconds: float) -> Timestamp:
    """An instant, from seconds of the wall clock."""
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return message
