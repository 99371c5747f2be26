"""The sessions of sequences at the video service: made, moved, given back. None is left, whoever cancels what."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from uuid import uuid4

import grpc
import grpc.aio
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.errors import Unavailable

from worldtree_gateway.oip_calls import Asker, Calls, next_of
from worldtree_gateway.relay import write

_LOOKAHEAD_CHUNKS = 2  # of a play: made while the one before is on its way
_GIVE_BACK_S = 10.0

_log = logging.getLogger(__name__)


class Sessions:
    """`close` waits for what is under way."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, request: pb.CreateSessionRequest, asker: Asker) -> pb.CreateSessionResponse:
        """One whose caller has gone before it was made is given back."""

        async def ask() -> pb.CreateSessionResponse:
            answer: pb.CreateSessionResponse = await self._calls.video.CreateSession(request, **asker.options)
            return answer

        making = asyncio.create_task(ask(), name="create a session")
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(self._unwanted(making, asker), name="give back an unwanted session"))
            raise

    async def step(self, session: str, actions: Sequence[pb.Action], asker: Asker) -> list[pb.Chunk]:
        """Moves it by all actions or, if it is refused, by none."""
        request = pb.StepRequest(session=session, actions=actions, request_id=str(uuid4()))
        answer: pb.StepResponse = await self._calls.video.Step(request, **asker.options)
        return list(answer.chunks)

    async def play(
        self, session: str, actions: Sequence[pb.Action], asker: Asker
    ) -> AsyncGenerator[tuple[pb.Chunk, bool]]:
        """Each chunk as it is made, and whether it is the last: then the session is free for the next call."""
        call = self._calls.video.Play(**asker.options)
        begin = pb.PlayRequest.Begin(lookahead_chunks=_LOOKAHEAD_CHUNKS, actions=actions)
        left_count = len(actions)
        try:
            try:
                await write(call, pb.PlayRequest(session=session, begin=begin).SerializeToString())
                await call.done_writing()
            except asyncio.InvalidStateError:
                pass  # it has ended, and reading tells why
            while (answer := await next_of(call)) is not None:
                if not answer.HasField("played"):
                    continue
                left_count -= 1
                if not left_count:
                    break
                yield answer.played.chunk, False
            else:
                raise Unavailable(
                    "PLAY_ENDED",
                    f"the play ended {left_count} chunks before the last of {len(actions)}",
                    retry_after_s=1.0,
                    left_count=left_count,
                )
            chunk = answer.played.chunk
            while await next_of(call) is not None:
                pass
            yield chunk, True
        finally:
            call.cancel()

    async def give_back(self, session: str, asker: Asker) -> None:
        """Never raises what the service says: what cannot be deleted now ends with its lease."""
        await asyncio.shield(self._keep(asyncio.create_task(self._delete(session, asker), name="give back a session")))

    async def close(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _delete(self, session: str, asker: Asker) -> None:
        try:
            options = Asker(asker.metadata).within(_GIVE_BACK_S).options
            await self._calls.video.Delete(pb.DeleteRequest(session=session), **options)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                fields = {"session": session, "code": error.code().name, "reason": error.details()}
                _log.warning("a sequence's session could not be deleted; its lease will end it", extra=fields)

    async def _unwanted(self, making: "asyncio.Task[pb.CreateSessionResponse]", asker: Asker) -> None:
        try:
            answer = await making
        except grpc.aio.AioRpcError:
            return
        await self._delete(answer.session.session, asker)

    def _keep(self, task: "asyncio.Task[None]") -> "asyncio.Task[None]":
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
