"""What a replica says of itself to its operators: frozen values, and how they are read off the wire."""

from dataclasses import dataclass, field
from datetime import datetime

from worldtree.convert import duration_from_pb, session_from_pb, storage_from_pb, time_from_pb
from worldtree.types import SessionInfo, Storage
from worldtree.video.v1 import video_generator_pb2 as pb


@dataclass(frozen=True, slots=True)
class CachePurge:
    """How many answers a gateway has forgotten, its own and in Redis. `all_gateways`: others were told."""

    local_count: int
    shared_count: int
    all_gateways: bool


@dataclass(frozen=True, slots=True)
class Tier:
    """A model's blocks in one place: "pool", "host", "redis" or "folder". `storage` is None for what is not a pool.

    Below the pools there are copies, all of them `cached`; of "redis" and "folder" those that this replica has written
    or read lately: others may have put more there, and some of these may be lost.
    """

    name: str
    storage: Storage | None
    capacity_block_count: int  # 0: not limited in blocks
    held_block_count: int
    cached_block_count: int  # held by nobody, kept because their content may be asked for again
    in_flight_block_count: int  # to be written by unfinished chunks
    shared_block_count: int  # of the held ones
    used_bytes: int
    capacity_bytes: int  # 0: not limited here; of "host": for all models of the replica together

    @property
    def label(self) -> str:
        """What people call it: "pool int8", "host"."""
        return self.name if self.storage is None else f"{self.name} {self.storage}"

    @property
    def free_block_count(self) -> int | None:
        """None: not limited in blocks."""
        if not self.capacity_block_count:
            return None
        used = self.held_block_count + self.cached_block_count + self.in_flight_block_count
        return max(self.capacity_block_count - used, 0)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Another session that lists some of the same blocks."""

    session: str
    block_count: int


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A session, who owns it, and what it is doing."""

    session: SessionInfo
    tenant: str
    call: str | None  # the call that runs on it
    sharing: tuple[Sharing, ...]  # those that share most with it
    journal_behind_count: int  # chunks that its journal is behind


@dataclass(frozen=True, slots=True)
class PlayStatus:
    """A play and its clock."""

    session: str
    fps: float  # its target; 0: as fast as it goes
    slack_s: float  # until its next chunk is due; negative: late
    chunk_count: int
    missed_count: int  # of these, made after they were due
    degraded_count: int  # of these, made with fewer evaluations than the session's own


@dataclass(frozen=True, slots=True)
class Tick:
    """One run of the model, and for whom it was."""

    end_time: datetime
    duration_s: float
    play_count: int
    step_count: int
    bulk_count: int
    commit_count: int  # of all members, those that were committed in it


@dataclass(frozen=True, slots=True)
class TenantShare:
    """What a tenant has had of the bulk work: rollouts and clips."""

    tenant: str
    chunk_count: int
    waiting_count: int  # of its runs, those that wait for a place


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A served model: its blocks, sessions, plays and last ticks (oldest first)."""

    name: str
    version: str
    digest: str
    tiers: tuple[Tier, ...]
    session_count: int
    sessions: tuple[SessionStatus, ...] = field(repr=False)  # up to the limit asked for, the busiest first
    plays: tuple[PlayStatus, ...] = field(repr=False)
    ticks: tuple[Tick, ...] = field(repr=False)
    tenants: tuple[TenantShare, ...] = field(repr=False)
    prefix_hit_count: int  # chunks served from known blocks, without a tick
    play_load: float  # share of the engine's time that plays have been promised, 0 to 1
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What a replica is doing."""

    replica: str
    time: datetime  # by its own clock
    uptime_s: float
    draining: bool  # it is stopping: it takes on nothing new and saves what it has
    models: tuple[ModelStatus, ...]


def replica_from_pb(message: pb.IntrospectResponse) -> ReplicaStatus:
    return ReplicaStatus(
        replica=message.replica,
        time=time_from_pb(message.time),
        uptime_s=duration_from_pb(message.uptime_duration),
        draining=message.draining,
        models=tuple(_model(each) for each in message.models),
    )


def _model(message: pb.IntrospectResponse.ModelStatus) -> ModelStatus:
    return ModelStatus(
        name=message.model.name,
        version=message.model.version,
        digest=message.model.digest,
        tiers=tuple(_tier(each) for each in message.tiers),
        session_count=message.session_count,
        sessions=tuple(_session(each) for each in message.sessions),
        plays=tuple(_play(each) for each in message.plays),
        ticks=tuple(_tick(each) for each in message.ticks),
        tenants=tuple(TenantShare(each.tenant, each.chunk_count, each.waiting_count) for each in message.tenants),
        prefix_hit_count=message.prefix_hit_count,
        play_load=message.play_load,
        max_batch_size=message.max_batch_size,
    )


def _tier(message: pb.IntrospectResponse.Tier) -> Tier:
    return Tier(
        name=message.name,
        storage=storage_from_pb(message.storage) if message.name == "pool" else None,
        capacity_block_count=message.capacity_block_count,
        held_block_count=message.held_block_count,
        cached_block_count=message.cached_block_count,
        in_flight_block_count=message.in_flight_block_count,
        shared_block_count=message.shared_block_count,
        used_bytes=message.used_bytes,
        capacity_bytes=message.capacity_bytes,
    )


def _session(message: pb.IntrospectResponse.SessionStatus) -> SessionStatus:
    return SessionStatus(
        session=session_from_pb(message.session),
        tenant=message.tenant,
        call=message.call or None,
        sharing=tuple(Sharing(each.session, each.block_count) for each in message.sharing),
        journal_behind_count=message.journal_behind_count,
    )


def _play(message: pb.IntrospectResponse.PlayStatus) -> PlayStatus:
    return PlayStatus(
        session=message.session,
        fps=message.fps,
        slack_s=duration_from_pb(message.slack_duration),
        chunk_count=message.chunk_count,
        missed_count=message.missed_count,
        degraded_count=message.degraded_count,
    )


def _tick(message: pb.IntrospectResponse.Tick) -> Tick:
    return Tick(
        end_time=time_from_pb(message.end_time),
        duration_s=duration_from_pb(message.duration),
        play_count=message.play_count,
        step_count=message.step_count,
        bulk_count=message.bulk_count,
        commit_count=message.commit_count,
    )
