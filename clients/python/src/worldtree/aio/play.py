"""A live play for asyncio: a task draws the controls, chunks come in by `async for`."""

import asyncio
import queue
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from threading import Event
from types import TracebackType
from typing import Any, Protocol

from worldtree._play_link import PlayLink
from worldtree._play_plan import ForkedSessions, PlayPlan, Rehomings, read_event
from worldtree._world_state import WorldState
from worldtree.actions import ActionLike, one_or_many
from worldtree.aio._stream import Stream
from worldtree.errors import Cancelled, WorldtreeError
from worldtree.live import LiveActions
from worldtree.play import OnEvent, next_of_queue
from worldtree.types import Forked, PlayedChunk, Resumed, Rewound
from worldtree.video.v1 import video_generator_pb2 as pb

# What steers a play: an iterable or async iterable of actions, a queue (None in it ends the play), or LiveActions.
PlayActions = Iterable[ActionLike] | AsyncIterable[ActionLike] | asyncio.Queue[Any] | queue.Queue[Any] | LiveActions


class Opener(Protocol):
    """Opens the stream and turns forked sessions into worlds: what a play needs of its client."""

    async def open_play(self) -> Stream: ...

    async def action_names(self) -> Sequence[str]: ...

    async def adopt(self, sessions: ForkedSessions) -> tuple[Any, ...]: ...


class Play(AsyncIterator[PlayedChunk]):
    """Iterates the chunks of a play as they come. It begins at the first chunk asked for, or on entering its
    `async with`; closing it, leaving the `async with` or dropping it ends the play at once."""

    def __init__(
        self, opener: Opener, world: WorldState, plan: PlayPlan, actions: PlayActions, *, on_event: OnEvent | None
    ) -> None:
        self._opener = opener
        self._world = world
        self._plan = plan
        self._on_event = on_event
        self._rehomings = Rehomings()
        self._ended = False
        self._action_names: Sequence[str] = ()
        self._link = PlayLink(plan)
        self._feed = Feed(plan, self._link, actions)
        self._stream: Stream | None = None
        self._drawing: asyncio.Task[None] | None = None

    @property
    def rehomed_count(self) -> int:
        """How often the session has moved to another replica, because its own was lost. The chunks do not show it."""
        return self._rehomings.count

    @property
    def last_rehoming(self) -> Resumed | None:
        """The last of these moves: where to, and how long the play stood still. None: it never moved."""
        return self._rehomings.last

    async def __anext__(self) -> PlayedChunk:
        try:
            chunk = await self._next_chunk()
        except BaseException:
            # Whatever it was (a cancellation, the program's on_event): nobody iterates on.
            self.close_now()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _next_chunk(self) -> PlayedChunk | None:
        await self._begin()
        while not self._ended:
            assert self._stream is not None
            try:
                message = await self._stream.read()
            except WorldtreeError as error:
                if self._feed.error is not None:
                    raise self._feed.error from None
                if self._ended and isinstance(error, Cancelled):  # closed by another task while we waited
                    break
                delay_s = self._link.broke(error)
                if delay_s is None:
                    raise
                await asyncio.sleep(delay_s)
                await self._connect()
                continue
            if self._feed.error is not None:
                raise self._feed.error
            if message is None:
                self._end()
                break
            if not self._link.heard(message):
                continue
            event = read_event(message, self._action_names)
            if isinstance(event, PlayedChunk):
                if self._plan.used_an_action(event):
                    self._feed.grant()
                self._world._saw_played(event)
                return event
            await self._tell(event)
        return None

    async def close(self) -> None:
        """Ends the play at once. Closing twice is fine."""
        self.close_now()

    def close_now(self) -> None:
        """As close(), where nothing can be awaited."""
        if not self._ended:
            self._world._unsettled = self._stream is not None
            self._end()

    async def _begin(self) -> None:
        if self._stream is None and not self._ended:
            self._action_names = await self._opener.action_names()
            await self._connect()
            self._drawing = asyncio.create_task(self._feed.draw())

    async def _connect(self) -> None:
        stream = await self._opener.open_play()
        if self._stream is not None:
            self._stream.cancel()  # the last one, whose thread waits for another read
        self._stream = stream
        self._link.connect(stream.write, stream.cancel)
        if self._ended or self._feed.error is not None:  # meanwhile
            stream.cancel()

    def _end(self) -> None:
        self._ended = True
        if self._stream is not None:
            self._stream.cancel()
        self._link.close()
        if self._drawing is not None:
            self._drawing.cancel()
        self._feed.stop()

    async def _tell(self, event: Any) -> None:
        if isinstance(event, ForkedSessions):
            event = Forked(await self._opener.adopt(event))
        elif isinstance(event, Rewound):
            self._world._saw_rewound(event)
        elif isinstance(event, Resumed) and event.rehomed:
            self._rehomings.saw(self._plan.session, event)
        if self._on_event is not None and event is not None:
            self._on_event(event)

    async def __aenter__(self) -> "Play":
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_now()

    def __del__(self) -> None:
        if getattr(self, "_stream", None) is not None:
            self.close_now()


class Feed:
    """What the drawing task runs. It holds no reference to the Play, so that a dropped Play is collected."""

    def __init__(self, plan: PlayPlan, link: PlayLink, actions: PlayActions) -> None:
        self.error: BaseException | None = None
        self._plan = plan
        self._link = link
        known = (LiveActions, asyncio.Queue, queue.Queue, AsyncIterable)
        self._actions = actions if isinstance(actions, known) else one_or_many(actions)
        self._stopped = Event()
        # Ours to detach: actions that already steer another play are refused, and stay with it.
        self._attached: LiveActions | None = None
        self._credit = asyncio.Semaphore(plan.credit)

    async def draw(self) -> None:
        """Asks for the play's controls until they end or the play does."""
        try:
            async for request in self._controls():
                self._link.ask(request)
            self._link.end()
        except Exception as error:  # the program's own iterable failed: iterating the play raises it
            self.error = error
            self._link.abort()

    def grant(self) -> None:
        """A chunk used up an action: one more may be sent."""
        self._credit.release()

    def stop(self) -> None:
        self._stopped.set()
        if self._attached is not None:
            self._attached.detach()

    async def _controls(self) -> AsyncIterator[pb.PlayRequest]:
        match self._actions:
            case LiveActions() as live:
                inbox: asyncio.Queue[pb.PlayRequest | None] = asyncio.Queue()
                loop = asyncio.get_running_loop()
                live.attach(lambda request: loop.call_soon_threadsafe(inbox.put_nowait, request))
                self._attached = live
                while (request := await inbox.get()) is not None:
                    yield request
            case asyncio.Queue() as actions:
                while (action := await actions.get()) is not None:
                    yield self._plan.act(action)
            case queue.Queue() as actions:
                while (action := await asyncio.to_thread(next_of_queue, actions, self._stopped)) is not None:
                    yield self._plan.act(action)
            case actions:
                async for action in _each(actions, self._credit):
                    yield self._plan.act(action)


async def _each(
    actions: Iterable[ActionLike] | AsyncIterable[ActionLike], credit: asyncio.Semaphore
) -> AsyncIterator[ActionLike]:
    """Draws actions as credit allows. An iterable that may block (any but a plain sequence) is drawn in a thread."""
    if isinstance(actions, AsyncIterable):
        await credit.acquire()
        async for action in actions:
            yield action
            await credit.acquire()
        return
    iterator = iter(actions)
    end = object()
    while True:
        await credit.acquire()
        if isinstance(actions, Sequence):
            action = next(iterator, end)
        else:
            action = await asyncio.to_thread(next, iterator, end)
        if action is end:
            return
        yield action
