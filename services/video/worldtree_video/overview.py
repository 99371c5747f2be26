"""What a replica is doing, as the message that its operators get."""

import time
from collections import Counter

from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.messages import from_seconds

from worldtree_video import replies
from worldtree_video.adoption import Adoption
from worldtree_video.catalog import Catalog, Served
from worldtree_video.config import VideoSettings
from worldtree_video.introspection import PlayRecord, TickRecord
from worldtree_video.kv_cache import BlockPool
from worldtree_video.sessions import Session

_SHARING_COUNT = 8
_STARTED_S = time.monotonic()


def from_catalog(
    catalog: Catalog, adoption: Adoption, settings: VideoSettings, session_limit: int
) -> pb.IntrospectResponse:
    """All models of this replica, with at most so many sessions of each."""
    return pb.IntrospectResponse(
        replica=settings.replica,
        time=replies.from_time(time.time()),
        uptime_duration=from_seconds(time.monotonic() - _STARTED_S),
        models=[_from_served(served, session_limit) for served in catalog],
        draining=adoption.draining,
    )


def _from_served(served: Served, session_limit: int) -> pb.IntrospectResponse.ModelStatus:
    engine = served.worlds.engine
    with engine.lock:
        sessions = sorted(engine.sessions, key=lambda session: (bool(session.claim), session.expires_s - session.ttl_s))
        shown = sessions[::-1][:session_limit]
        holders = _holders(sessions)
        return pb.IntrospectResponse.ModelStatus(
            model=served.ref,
            tiers=[*(_from_pool(pool, served) for pool in engine.pools.values()), *_from_tiers(served)],
            sessions=[_from_session(session, served, holders) for session in shown],
            session_count=len(sessions),
            plays=[
                _from_play(session.name, session.claim.record())
                for session in sessions
                if session.claim and session.claim.record
            ],
            ticks=[_from_tick(tick, engine.clock()) for tick in engine.scheduler.ticks],
            tenants=[
                pb.IntrospectResponse.TenantShare(
                    tenant=share.tenant, chunk_count=share.chunk_count, waiting_count=share.waiting_count
                )
                for share in engine.scheduler.agenda.shares.shares()
            ],
            prefix_hit_count=engine.known_count,
            play_load=engine.play_load,
            max_batch_size=engine.scheduler.max_batch,
        )


def _from_pool(pool: BlockPool, served: Served) -> pb.IntrospectResponse.Tier:
    used_count = pool.held_count + pool.cached_count + pool.in_flight_count
    return pb.IntrospectResponse.Tier(
        name="pool",
        storage=replies.STORAGES[pool.storage],
        capacity_block_count=pool.block_count,
        held_block_count=pool.held_count,
        cached_block_count=pool.cached_count,
        in_flight_block_count=pool.in_flight_count,
        shared_block_count=pool.shared_count(),
        used_bytes=used_count * served.worlds.model.block_bytes(pool.storage),
        capacity_bytes=pool.block_count * served.worlds.model.block_bytes(pool.storage),
    )


def _from_tiers(served: Served) -> list[pb.IntrospectResponse.Tier]:
    """The model's copies in host memory and in the store. Both take bytes, whatever the format, of all models."""
    residency = served.worlds.residency
    tiers, digest, shown = residency.tiers, residency.digest, []
    if tiers.host.max_bytes:
        shown.append(
            pb.IntrospectResponse.Tier(
                name="host",
                cached_block_count=tiers.host.shares.block_count(digest),
                used_bytes=tiers.host.shares.used_bytes(digest),
                capacity_bytes=tiers.host.max_bytes,
            )
        )
    if tiers.has_store:
        shown.append(
            pb.IntrospectResponse.Tier(
                name=tiers.store_name,
                cached_block_count=tiers.store_shares.block_count(digest),
                used_bytes=tiers.store_shares.used_bytes(digest),
            )
        )
    return shown


def _from_play(session: str, record: PlayRecord) -> pb.IntrospectResponse.PlayStatus:
    return pb.IntrospectResponse.PlayStatus(
        session=session,
        fps=record.fps,
        slack_duration=from_seconds(record.slack_s),
        chunk_count=record.chunk_count,
        missed_count=record.missed_count,
        degraded_count=record.degraded_count,
    )


def _from_tick(tick: TickRecord, clock_s: float) -> pb.IntrospectResponse.Tick:
    return pb.IntrospectResponse.Tick(
        end_time=replies.from_time(time.time() - (clock_s - tick.end_s)),
        duration=from_seconds(tick.seconds),
        play_count=tick.play_count,
        step_count=tick.step_count,
        bulk_count=tick.bulk_count,
        commit_count=tick.commit_count,
    )


def _from_session(
    session: Session, served: Served, holders: dict[tuple[BlockPool, int], list[str]]
) -> pb.IntrospectResponse.SessionStatus:
    table = session.branch.table
    others = Counter(
        name for block in table.blocks.values() for name in holders[table.pool, block] if name != session.name
    )
    return pb.IntrospectResponse.SessionStatus(
        session=replies.from_session(session, served),
        tenant=session.tenant,
        call=session.claim.call if session.claim else "",
        sharing=[
            pb.IntrospectResponse.SessionStatus.Sharing(session=name, block_count=count)
            for name, count in others.most_common(_SHARING_COUNT)
        ],
        journal_behind_count=served.worlds.protection.behind(session),
    )


def _holders(sessions: list[Session]) -> dict[tuple[BlockPool, int], list[str]]:
    """Names of the sessions that list each block."""
    holders: dict[tuple[BlockPool, int], list[str]] = {}
    for session in sessions:
        table = session.branch.table
        for block in table.blocks.values():
            holders.setdefault((table.pool, block), []).append(session.name)
    return holders
