"""The gRPC edge: validate, convert, call the worlds, stream. No tensor, no bookkeeping."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorServicer
from worldtree_runtime.errors import InvalidRequest, NotFound
from worldtree_runtime.messages import COST_KEY, REPLICA_KEY
from worldtree_runtime.stores import Store

from worldtree_video import convert, overview, replies
from worldtree_video import snapshot as snapshots
from worldtree_video.adoption import Adoption
from worldtree_video.caller import Caller, read_caller
from worldtree_video.catalog import Catalog, Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, Origin
from worldtree_video.errors import OutOfRange, SnapshotNotFound, SnapshotTooLarge
from worldtree_video.idempotency import Idempotency
from worldtree_video.metrics import VideoMetrics
from worldtree_video.play_call import PlayCall
from worldtree_video.recipe import Recipe
from worldtree_video.rollout import Edge
from worldtree_video.sessions import Session

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_PAGE_DEFAULT, _PAGE_MAX = 100, 1000
_SESSION_LIMIT_MAX = 10_000
_CHUNK_OVERHEAD_BYTES = 1024  # what a message holds beside the pixels: action, timing, hash


class VideoServicer(VideoGeneratorServicer):
    """Serves a catalog of models. What an RPC promises stands in the proto."""

    def __init__(
        self,
        catalog: Catalog,
        adoption: Adoption,
        settings: VideoSettings,
        store: Store,
        metrics: VideoMetrics,
    ) -> None:
        self._catalog = catalog
        self._adoption = adoption
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._calls = Idempotency(ttl_s=settings.session_ttl_s)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        return pb.ListModelsResponse(models=[replies.from_model(served) for served in self._catalog.newest()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        ref = request.model
        # A session's own model, as its replies name it, can be looked up for as long as there are sessions of it.
        served = self._model(ref, leaving=bool(ref.version and ref.digest))
        return pb.GetModelResponse(model=replies.from_model(served))

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Context) -> pb.CreateSessionResponse:
        self._adoption.check_admitting()
        ttl_s = self._ttl(request)
        tenant = _caller(context).tenant
        left_s = context.time_remaining()

        async def create() -> tuple[Session, Sequence[str]]:
            served = self._model(request.model)
            recipe, warnings = await self._recipe(request, served, session_count=1)
            return await served.worlds.create(recipe, ttl_s=ttl_s, tenant=tenant, left_s=left_s), warnings

        session, warnings = await self._calls.once(f"CreateSession {tenant}", request.request_id, create)
        served = self._still_open(session)
        return pb.CreateSessionResponse(
            session=replies.from_session(session, served),
            frames=replies.from_frames(b"".join(session.branch.origin.chunks), served.package),
            warnings=warnings,
        )

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        served = await self._adoption.find(request.session, _caller(context))
        # One message carries the whole answer: refused now, not when the session has already moved.
        most = self._settings.max_message_bytes // (served.package.chunk_bytes + _CHUNK_OVERHEAD_BYTES)
        actions = self._actions(request.actions, served, "actions", most=most)
        chunks = await served.worlds.step(
            request.session, actions, request_id=request.request_id, left_s=context.time_remaining()
        )
        _tell_cost(context, served, sum(chunk.record.nfe for chunk in chunks))
        return pb.StepResponse(
            chunks=[replies.from_chunk(chunk, served.package) for chunk in chunks],
            chunk_index=chunks[-1].record.chunk_index + 1,
        )

    async def Play(
        self, request_iterator: AsyncIterator[pb.PlayRequest], context: Context
    ) -> AsyncIterator[pb.PlayResponse]:
        call = PlayCall(self._adoption, self._settings, self._metrics)
        async with aclosing(call.answer(request_iterator, _caller(context))) as messages:
            async for message in messages:
                yield message

    async def Rollout(self, request: pb.RolloutRequest, context: Context) -> AsyncIterator[pb.RolloutResponse]:
        served = await self._adoption.find(request.session, _caller(context))
        sequences = self._sequences(request, served)
        worlds = served.worlds
        detail = request.detail or pb.RolloutRequest.DETAIL_ALL
        if detail not in pb.RolloutRequest.Detail.values():
            raise OutOfRange("detail", detail, 0, max(pb.RolloutRequest.Detail.values()))
        if request.frames_from_depth < 0:
            raise InvalidRequest(
                "frames_from_depth", f"frames_from_depth must be 0 or more, got {request.frames_from_depth}"
            )
        evaluations = 0
        async with worlds.rollout(request.session, sequences) as rollout:
            async for node, chunk in rollout.nodes:
                evaluations += chunk.record.nfe
                _tell_cost(context, served, evaluations)
                frames = node.depth >= request.frames_from_depth and (
                    detail == pb.RolloutRequest.DETAIL_ALL
                    or (detail == pb.RolloutRequest.DETAIL_LAST and bool(node.ends))
                )
                yield pb.RolloutResponse(
                    chunk=replies.from_chunk(chunk, served.package, frames=frames),
                    depth=node.depth,
                    sequences=node.sequences,
                    node_count=rollout.node_count,
                    chunk_count=rollout.chunk_count,
                )

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        self._adoption.check_admitting()
        served = self._model(request.model)
        actions = self._actions(request.actions, served, "actions")
        recipe, warnings = await self._recipe(request, served, session_count=0)
        count = len(actions)
        tenant = _caller(context).tenant
        async with aclosing(served.worlds.generate(recipe, actions, tenant=tenant)) as chunks:
            start = replies.from_frames(b"".join(recipe.origin.chunks), served.package)
            yield pb.GenerateResponse(start_frames=start, chunk_count=count, warnings=warnings)
            evaluations = 0
            async for chunk in chunks:
                evaluations += chunk.record.nfe
                _tell_cost(context, served, evaluations)
                yield pb.GenerateResponse(chunk=replies.from_chunk(chunk, served.package), chunk_count=count)

    async def Fork(self, request: pb.ForkRequest, context: Context) -> pb.ForkResponse:
        served = await self._adoption.find(request.session, _caller(context))
        seeds = convert.to_fork_seeds(request, self._settings)
        ttl_s = self._ttl(request)

        async def fork() -> list[Session]:
            children = served.worlds.fork(request.session, seeds=seeds, ttl_s=ttl_s)
            await served.worlds.protection.told(*(child.name for child in children))
            return children

        children = await self._calls.once(f"Fork {request.session}", request.request_id, fork)
        return pb.ForkResponse(sessions=[replies.from_session(child, served) for child in children])

    async def Rewind(self, request: pb.RewindRequest, context: Context) -> pb.RewindResponse:
        served = await self._adoption.find(request.session, _caller(context))
        expected = request.expected_chunk_index if request.HasField("expected_chunk_index") else None
        session = await served.worlds.rewind(request.session, request.chunk_count, expected_chunk_index=expected)
        described, last_frame = await self._standing(session, served)
        return pb.RewindResponse(session=described, last_frame=last_frame)

    async def Save(self, request: pb.SaveRequest, context: Context) -> pb.SaveResponse:
        served = await self._adoption.find(request.session, _caller(context))
        limit_s = self._settings.snapshot_ttl_s
        ttl_s = convert.to_ttl(request.ttl, request.HasField("ttl"), default_s=limit_s, limit_s=limit_s)
        data, state_hash = await served.archive.save(request.session)
        self._check_snapshot_size(len(data), request.include_data)
        # Like a session's id it names its home: without Redis, no other replica has it.
        snapshot = f"{secrets.token_hex(12)}.{self._settings.replica}"
        await self._store.set(snapshot_key(_caller(context).tenant, snapshot), data, ttl_s)
        return pb.SaveResponse(
            snapshot=snapshot,
            data=data if request.include_data else b"",
            size_bytes=len(data),
            state_hash=state_hash,
            expire_time=replies.from_time(served.worlds.now() + ttl_s),
        )

    async def Restore(self, request: pb.RestoreRequest, context: Context) -> pb.RestoreResponse:
        self._adoption.check_admitting()
        ttl_s = self._ttl(request)
        tenant = _caller(context).tenant

        async def restore() -> tuple[Session, bool]:
            saved = await asyncio.to_thread(snapshots.decode, await self._snapshot_bytes(request, tenant))
            served = self._model(common.ModelRef(name=saved.model, version=saved.version, digest=saved.digest))
            ours = bool(request.snapshot)
            return await served.archive.restore(saved, ttl_s=ttl_s, tenant=tenant, ours=ours)

        session, identical = await self._calls.once(f"Restore {tenant}", request.request_id, restore)
        served = self._still_open(session)
        described, last_frame = await self._standing(session, served)
        return pb.RestoreResponse(session=described, last_frame=last_frame, bit_identical=identical)

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        served = await self._adoption.find(request.session, _caller(context))
        described, last_frame = await self._standing(served.worlds.get(request.session), served)
        return pb.GetResponse(session=described, last_frame=last_frame)

    async def Introspect(self, request: pb.IntrospectRequest, context: Context) -> pb.IntrospectResponse:
        if request.replica not in ("", self._settings.replica):
            raise NotFound("replica", request.replica, known=[self._settings.replica])
        if not 0 <= request.session_limit <= _SESSION_LIMIT_MAX:
            raise OutOfRange("session_limit", request.session_limit, 0, _SESSION_LIMIT_MAX)
        return overview.from_catalog(
            self._catalog, self._adoption, self._settings, request.session_limit or _PAGE_DEFAULT
        )

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        size = request.page_size or _PAGE_DEFAULT
        if not 1 <= size <= _PAGE_MAX:
            raise OutOfRange("page_size", size, 1, _PAGE_MAX)
        tenant = _caller(context).tenant
        every = [
            (session, served)
            for served in self._catalog
            for session in served.worlds.live()
            if session.tenant == tenant
        ]
        every.sort(key=lambda entry: _page_token(entry[0]))
        after = [entry for entry in every if _page_token(entry[0]) > request.page_token]
        page = after[:size]
        return pb.ListResponse(
            sessions=[replies.from_session(session, served) for session, served in page],
            next_page_token=_page_token(page[-1][0]) if len(after) > size else "",
        )

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        served = await self._adoption.find(request.session, _caller(context))
        freed_count = served.worlds.delete(request.session)
        await served.worlds.protection.told(request.session)
        return pb.DeleteResponse(freed_block_count=freed_count)

    async def KeepAlive(self, request: pb.KeepAliveRequest, context: Context) -> pb.KeepAliveResponse:
        served = await self._adoption.find(request.session, _caller(context))
        ttl_s = self._ttl(request) if request.HasField("ttl") else None
        session = served.worlds.keep_alive(request.session, ttl_s)
        return pb.KeepAliveResponse(expire_time=replies.from_time(session.expires_s))

    def _still_open(self, session: Session) -> Served:
        """The model of a session that was just opened; a repeat of the call may come after it was closed, and when
        another version is the newest.
        """
        served = self._catalog.of_session(session.name)
        served.worlds.get(session.name)
        return served

    def _model(self, ref: common.ModelRef, *, leaving: bool = False) -> Served:
        if not ref.name:
            raise InvalidRequest("model.name", "model.name must be set")
        return self._catalog.resolve(ref, leaving=leaving)

    def _check_snapshot_size(self, size_bytes: int, include_data: bool) -> None:
        store_bytes = self._settings.snapshot_store_mib << 20
        if self._settings.redis_url is None and size_bytes > store_bytes // 2:
            raise SnapshotTooLarge(size_bytes, store_bytes // 2, "snapshot_store_mib")
        message_bytes = self._settings.max_message_bytes - _CHUNK_OVERHEAD_BYTES
        if include_data and size_bytes > message_bytes:
            raise SnapshotTooLarge(size_bytes, message_bytes, "max_message_bytes")

    def _actions(
        self, messages: Sequence[pb.Action], served: Served, field: str, *, most: int | None = None
    ) -> list[Action]:
        limit = self._settings.max_step_actions if most is None else max(1, min(self._settings.max_step_actions, most))
        return convert.to_actions(messages, served.package, field, limit=limit)

    def _sequences(self, request: pb.RolloutRequest, served: Served) -> list[list[Edge]]:
        limit = self._settings.max_rollout_sequences
        if not 1 <= len(request.sequences) <= limit:
            raise InvalidRequest(
                "sequences",
                f"sequences must hold 1 to {limit}, got {len(request.sequences)}",
                limit=limit,
                count=len(request.sequences),
            )
        total, most = sum(len(sequence.actions) for sequence in request.sequences), self._settings.max_rollout_chunks
        if total > most:
            raise InvalidRequest(
                "sequences", f"sequences may hold {most} actions in all, got {total}", limit=most, count=total
            )
        parent_seed = served.worlds.get(request.session).branch.seed
        sequences = []
        for index, message in enumerate(request.sequences):
            field = f"sequences[{index}]"
            seed = convert.to_seed(message.seed, f"{field}.seed") if message.HasField("seed") else parent_seed
            actions = convert.to_actions(message.actions, served.package, f"{field}.actions", limit=most)
            sequences.append([(action, seed) for action in actions])
        return sequences

    async def _recipe(
        self, request: pb.CreateSessionRequest | pb.GenerateRequest, served: Served, *, session_count: int
    ) -> tuple[Recipe, Sequence[str]]:
        """What a new world is made from, its scene drawn where it has a prompt; and what was ignored of that.

        Nothing is drawn for a request that is refused, or that opens more sessions than there is room for.
        """
        seed, nfe, policy = convert.to_terms(request, served, self._settings)
        prompt = convert.to_prompt(request.origin, served.package, self._settings)
        if prompt is None:
            return Recipe(convert.to_origin(request.origin, served, policy, self._settings), seed, nfe, policy), ()
        assert served.scene, "a package that takes prompts has the graph for them"
        served.worlds.admit(session_count, policy.storage)
        scene = await served.scene.draw(prompt.tokens, seed)
        return Recipe(Origin((scene,), ()), seed, nfe, policy), prompt.warnings

    def _ttl(
        self, request: pb.CreateSessionRequest | pb.ForkRequest | pb.RestoreRequest | pb.KeepAliveRequest
    ) -> float:
        return convert.to_ttl(
            request.ttl,
            request.HasField("ttl"),
            default_s=self._settings.session_ttl_s,
            limit_s=self._settings.session_ttl_max_s,
        )

    async def _standing(self, session: Session, served: Served) -> tuple[pb.Session, common.Frames]:
        while True:
            frames = await served.worlds.last_frames(session)
            with served.worlds.engine.lock:
                # A play may have moved it between the two.
                if frames == served.worlds.shown(session):
                    return replies.from_session(session, served), replies.from_last_frame(frames, served.package)

    async def _snapshot_bytes(self, request: pb.RestoreRequest, tenant: str) -> bytes:
        if bool(request.snapshot) == bool(request.data):
            raise InvalidRequest("snapshot", "a restore must set exactly one of snapshot and data")
        if request.data:
            return request.data
        data = await self._store.get(snapshot_key(tenant, request.snapshot))
        if data is None:
            raise SnapshotNotFound(request.snapshot)
        return data


def _tell_cost(context: Context, served: Served, evaluations: int) -> None:
    """In the trailers, those of a call that fails on the way too. `evaluations`: of all chunks together."""
    context.set_trailing_metadata(((COST_KEY, str(evaluations * served.package.frames_per_chunk)),))


def snapshot_key(tenant: str, snapshot: str) -> str:
    """Where a snapshot lies in the store: its owner's name is part of it, so that nobody else finds it."""
    # with its length, as either name may hold what stands between them
    return f"worldtree:snapshot:{len(tenant)}:{tenant}:{snapshot}"


def _page_token(session: Session) -> str:
    # Fixed width, so that the order of the text is the order of the times.
    return f"{int(session.created_s * 1e6):020d}.{session.name}"


def _caller(context: Context) -> Caller:
    return read_caller(context.invocation_metadata())
