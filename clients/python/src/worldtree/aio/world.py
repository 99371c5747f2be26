"""The asyncio World: the same names as worldtree.World, awaited."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import overload

from worldtree import _calls
from worldtree._play_plan import DEFAULT_LOOKAHEAD, ForkedSessions, PlayPlan
from worldtree._world_state import WorldState, settle_delays_s
from worldtree.actions import ActionsLike
from worldtree.aio._stream import Stream
from worldtree.aio._transport import Transport
from worldtree.aio.play import Play, PlayActions
from worldtree.errors import NotFound
from worldtree.play import OnEvent
from worldtree.types import Degrade, Detail, Frames, Idle, Progress, Rollout, Seconds, SessionInfo, Snapshot


class World(WorldState):
    """One branch of a world's history. Made by Client.world, .session, .restore and by World.fork.

    Closing it (or leaving its `with`) deletes the session; a world that is merely forgotten lives until its lease ends.
    """

    def __init__(
        self,
        transport: Transport,
        session: SessionInfo,
        *,
        last_frame: Frames,
        start_frames: Frames | None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(session, last_frame=last_frame, start_frames=start_frames, warnings=warnings)
        self._transport = transport

    async def step(self, actions: ActionsLike, *, timeout: Seconds | None = None) -> Frames:
        """Applies one action or a list, a chunk each; all their frames, uint8 [frames, height, width, 3]."""
        await self._settle()
        stepped = await self._transport.call(_calls.step(self.id, actions), timeout=timeout)
        self._saw_step(stepped)
        return stepped.frames

    @overload
    async def fork(self, count: None = None, *, seeds: None = None, ttl: Seconds | None = None) -> "World": ...

    @overload
    async def fork(
        self, count: int, *, seeds: Sequence[int] | None = None, ttl: Seconds | None = None
    ) -> "list[World]": ...

    async def fork(
        self, count: int | None = None, *, seeds: Sequence[int] | None = None, ttl: Seconds | None = None
    ) -> "World | list[World]":
        """A child that stands where this world stands, or a list of `count` of them. No frame is computed.

        Without `seeds`, one for each child, children keep the seed: equal actions give equal futures.
        """
        await self._settle()
        children = await self._transport.call(
            _calls.fork(self.id, count=1 if count is None else count, seeds=seeds, ttl=ttl)
        )
        worlds = [await self._child(child) for child in children]
        return worlds[0] if count is None else worlds

    async def rewind(self, chunk_count: int = 1) -> Frames:
        """Goes back; the image it stands at then, [height, width, 3]."""
        await self._settle()
        opened = await self._transport.call(_calls.rewind(self.id, chunk_count, expected_chunk_index=self.chunk_index))
        self._saw_opened(opened)
        return self.last_frame

    async def rollout(
        self,
        sequences: Sequence[ActionsLike],
        *,
        seeds: Sequence[int | None] | None = None,
        detail: Detail = "all",
        progress: Progress | None = None,
        timeout: Seconds | None = None,
    ) -> list[Rollout]:
        """Imagines one future a sequence; this world does not move. Common prefixes are generated once."""
        await self._settle()
        call = _calls.rollout(self.id, sequences, seeds=seeds, detail=detail, progress=progress)
        return await self._transport.gather(call, timeout=timeout)

    def play(
        self,
        actions: PlayActions,
        *,
        fps: float = 10.0,
        lookahead: int = DEFAULT_LOOKAHEAD,
        idle: Idle = "wait",
        degrade: Degrade | None = None,
        on_event: OnEvent | None = None,
    ) -> Play:
        """Plays in real time; iterate the chunks as they come.

        `actions` is any iterable (drawn from a few ahead of the play), a queue.Queue (None in it ends the play) or
        LiveActions. `fps` 0 plays as fast as it goes; at most `lookahead` chunks are made ahead of the clock. An fps
        that cannot be held is refused as FpsUnavailable. With `degrade` "nfe" a chunk that would be late is made with
        fewer evaluations instead (chunk.timing.nfe).
        """
        return Play(self, self, PlayPlan(self.id, fps, lookahead, idle, degrade), actions, on_event=on_event)

    async def save(self, *, include_data: bool = False, ttl: Seconds | None = None) -> Snapshot:
        """Saves the world in the server's store; with `include_data` the snapshot also comes as bytes."""
        await self._settle()
        return await self._transport.call(_calls.save(self.id, include_data=include_data, ttl=ttl))

    async def refresh(self) -> SessionInfo:
        """Asks the server where the world stands, for one that others may have moved."""
        self._saw_opened(await self._transport.call(_calls.get_session(self.id)))
        return self._session

    async def keep_alive(self, *, ttl: Seconds | None = None) -> datetime:
        """Renews the lease; when it ends then."""
        expire_time: datetime = await self._transport.call(_calls.keep_alive(self.id, ttl=ttl))
        return expire_time

    async def close(self) -> None:
        """Deletes the session. Closing what is already gone is fine."""
        with suppress(NotFound):
            await self._transport.call(_calls.delete_session(self.id))

    async def __aenter__(self) -> "World":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open_play(self) -> Stream:
        """For Play: opens its stream."""
        await self._settle()
        return self._transport.stream("Play")

    async def action_names(self) -> Sequence[str]:
        """For Play: servers speak of actions by id."""
        return await self._transport.action_names(self._session)

    async def adopt(self, sessions: ForkedSessions) -> "tuple[World, ...]":
        """For Play: its children as worlds."""
        return tuple([await self._child(session) for session in sessions.sessions])

    async def _child(self, session: SessionInfo) -> "World":
        last_frame = (
            self.last_frame
            if self._stands_like(session)
            else (await self._transport.call(_calls.get_session(session.id))).frames[-1]
        )
        return World(self._transport, session, last_frame=last_frame, start_frames=self.start_frames)

    async def _settle(self) -> None:
        """After an abandoned play: waits until the server has noticed, and learns where the world stands."""
        if not self._unsettled:
            return
        for delay_s in settle_delays_s():
            if (await self.refresh()).state != "busy":
                return
            self._unsettled = True
            await asyncio.sleep(delay_s)
