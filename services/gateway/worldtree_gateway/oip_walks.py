"""Requests to worlds: clips, and the sequences that walk through one."""

from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from uuid import uuid4

from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, Kind, WorldtreeError

from worldtree_gateway import oip_worlds
from worldtree_gateway.oip_answer import Answer, Answers, is_cached, seconds
from worldtree_gateway.oip_calls import Asker, Calls, explained, next_of
from worldtree_gateway.oip_json import ELEMENT_BYTES, check_answer
from worldtree_gateway.oip_models import Model
from worldtree_gateway.oip_requests import InferRequest
from worldtree_gateway.oip_sequences import Sequence as Turn
from worldtree_gateway.oip_sessions import Sessions
from worldtree_gateway.oip_statistics import Spent
from worldtree_gateway.oip_tensors import check_typed

_ANSWER_BYTES = 64 * 1024  # of an answer, beside its frames
_CHUNK_BYTES = 128  # of what comes with each chunk's frames


class Walks:
    """`lease_s`: of a sequence's session. `message_bytes`: the largest answer. `chosen_for`: names of models whose
    version the gateway chooses where none is asked for; it does not tell of a clip which one it was.
    """

    def __init__(
        self, calls: Calls, sessions: Sessions, *, lease_s: float, message_bytes: int, chosen_for: Collection[str] = ()
    ) -> None:
        self._calls = calls
        self._sessions = sessions
        self._lease_s = lease_s
        self._message_bytes = message_bytes
        self._chosen_for = chosen_for

    async def clip(self, request: InferRequest, model: Model, asker: Asker, *, stream: bool) -> Answers:
        """A request of no sequence: the same inputs, the same frames. In a `stream` each chunk as it is made."""
        message = oip_worlds.generate_request(model, request.inputs, version=request.version)
        if not stream:
            self._check_fits(len(message.actions), model, request)
        version = "" if not request.version and model.name in self._chosen_for else None
        start: common.Frames | None = None
        chunks: list[pb.Chunk] = []
        made_count = 0
        async with explained(oip_worlds.WORDS):
            call = self._calls.video.Generate(message, **asker.options)
            try:
                while (piece := await next_of(call)) is not None:
                    if piece.HasField("start_frames"):
                        start = piece.start_frames
                        continue
                    made_count += 1
                    chunks.append(piece.chunk)
                    if stream and made_count < piece.chunk_count:
                        made = oip_worlds.outputs(model, chunks, start)
                        yield Answer(made, _spent(chunks), final=False, version=version)
                        start, chunks = None, []
                spent = _spent(chunks, cached=await is_cached(call))
            finally:
                call.cancel()
            yield Answer(oip_worlds.outputs(model, chunks, start), spent, version=version)

    async def in_turn(self, request: InferRequest, model: Model, turn: Turn, asker: Asker, *, stream: bool) -> Answers:
        """A request of a sequence, whose turn it is."""
        options, inputs = request.options, request.inputs
        actions = oip_worlds.actions(inputs)
        if not options.start:
            oip_worlds.check_goes_on(inputs)
            if not options.end:
                model.check_complete(inputs)
        if not stream:
            self._check_fits(len(actions), model, request)
        begun: common.Frames | None = None
        try:
            async with explained(oip_worlds.WORDS):
                if options.start:
                    begun = await self._begin(turn, model, request, asker)
                session, version = turn.session, (turn.model or model).version
                last: list[pb.Chunk] = []
                if stream and len(actions) > 1:
                    async with aclosing(self._sessions.play(session, actions, asker)) as played:
                        async for chunk, final in played:
                            if final:
                                last = [chunk]
                                break
                            made = oip_worlds.outputs(model, [chunk], begun)
                            begun = None
                            yield Answer(made, _spent([chunk]), final=False, session=session, version=version)
                elif actions:
                    last = await self._sessions.step(session, actions, asker)
        except Exception as error:
            # what never began well is no sequence, and neither is one that its service has forgotten
            if options.start or _is_gone(error):
                await self.give_back(turn)
            raise
        if options.end:
            await self.give_back(turn)
        yield Answer(oip_worlds.outputs(model, last, begun), _spent(last), session=session, version=version)

    async def give_back(self, turn: Turn) -> None:
        """Deletes the session of a sequence, if there is one."""
        session, turn.session = turn.session, ""
        if session:
            await self._sessions.give_back(session, turn.asker)

    async def _begin(self, turn: Turn, model: Model, request: InferRequest, asker: Asker) -> common.Frames:
        """Makes the session of a sequence; the frames that it begins with."""
        wanted = oip_worlds.create_request(
            model, request.inputs, version=request.version, ttl_s=self._lease_s, request_id=str(uuid4())
        )
        await self.give_back(turn)  # it is started anew
        created = await self._sessions.create(wanted, asker)
        turn.session = created.session.session
        turn.model = replace(model, version=created.session.model.version)
        return created.frames

    def _check_fits(self, count: int, model: Model, request: InferRequest) -> None:
        """Refuses what one message cannot answer, before it is made."""
        frames_bytes = count * oip_worlds.chunk_bytes(model) if "frames" in request.outputs else 0
        if not request.options.raw:
            check_typed(frames_bytes)
        if request.options.json_bytes is not None:
            check_answer(frames_bytes * ELEMENT_BYTES, request.options.json_bytes)
        each = oip_worlds.chunk_bytes(model) + _CHUNK_BYTES
        limit = max(0, self._message_bytes - _ANSWER_BYTES) // each
        if count > limit:
            raise InvalidRequest(
                "inputs[actions]",
                f"input actions must hold {limit} at most, whose frames one message of {self._message_bytes} bytes can "
                f"carry, got {count}: use ModelStreamInfer, which answers chunk by chunk",
                limit=limit,
                count=count,
            )


def _spent(chunks: Sequence[pb.Chunk], *, cached: bool = False) -> Spent:
    total = Spent(cached=cached)
    for chunk in chunks:
        timing = chunk.timing
        total.add(
            Spent(
                inference_count=1,
                queue_s=seconds(timing.queue_duration),
                infer_s=seconds(timing.denoise_duration) + seconds(timing.commit_duration),
                batch_size=round(timing.mean_batch_size),
            )
        )
    return total


def _is_gone(error: Exception) -> bool:
    return isinstance(error, WorldtreeError) and error.kind is Kind.NOT_FOUND and error.resource_type == "session"
