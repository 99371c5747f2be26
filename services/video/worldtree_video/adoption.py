"""Sessions that come to this replica: those it had before it died, and those of a replica that died or drained."""

import asyncio
import logging
from contextlib import suppress

from worldtree.common.v1 import common_pb2 as common
from worldtree_runtime.errors import NotFound, WorldtreeError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.video_package import VideoPackage

from worldtree_video.caller import Caller
from worldtree_video.catalog import Catalog, Served
from worldtree_video.errors import (
    Draining,
    JournalBehind,
    JournalCorrupt,
    JournalLost,
    ModelNotLoaded,
    SessionNotFound,
)
from worldtree_video.journal import Adopted, Head, Journal
from worldtree_video.recipe import from_head
from worldtree_video.scribe import Scribe

log = logging.getLogger(__name__)
_CALLS_SHARE = 0.6  # of a drain's time, for calls to end by themselves; the rest is for writing their sessions


class Adoption:
    """Finds the model of a session; one that is not here is looked up in the journal. For one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        repository: ModelRepository[VideoPackage],
        journal: Journal | None,
        scribe: Scribe | None = None,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._journal = journal
        self._scribe = scribe
        self._adopting: dict[str, tuple[str, asyncio.Task[Served]]] = {}  # by session: who is dead, and the attempt
        self.draining = False

    def check_admitting(self) -> None:
        """Raises Draining once this replica is stopping: it takes on nothing new."""
        if self.draining:
            raise Draining

    async def find(self, session: str, caller: Caller) -> Served:
        """The model that a caller's session belongs to, after adopting it if need be.

        A session has one owner, the tenant that opened it, which is told to the journal with all else that it is made
        of. So whoever holds it knows whose it is, without asking anyone, also after restarts of replicas and gateways;
        to every other tenant there is no such session.

        Raises SessionNotFound; SessionMoved when another replica owns it and the caller does not say that it is dead;
        StoreUnavailable when the journal does not answer; ModelNotLoaded; Draining.
        """
        served = await self._find(session, caller)
        if served.worlds.get(session).tenant != caller.tenant:
            raise SessionNotFound(session)
        return served

    async def _find(self, session: str, caller: Caller) -> Served:
        """The same for whoever asks."""
        while True:
            self.check_admitting()
            try:
                return self._catalog.of_session(session)
            except SessionNotFound:
                # One that has just been closed here must not come back while the journal is being told.
                if self._journal is None or (self._scribe and self._scribe.leaving(session)):
                    raise
            if session not in self._adopting:
                # A task of its own: the first caller may vanish in the middle, and others may wait for the same.
                task = asyncio.create_task(self._adopt(session, caller.dead), name=f"adopt {session}")
                self._adopting[session] = (caller.dead, task)
                task.add_done_callback(lambda done: self._adopted(session, done))
            dead, adopting = self._adopting[session]
            if dead == caller.dead:
                return await asyncio.shield(adopting)
            await asyncio.wait([adopting])  # it may fail for one who knows less of who is dead

    async def adopt_owned(self) -> int:
        """Takes up the sessions that this replica had before it was started anew; returns how many."""
        count = 0
        for session in await self._journal.owned() if self._journal else ():
            try:
                await self._find(session, Caller())
                count += 1
            except WorldtreeError as error:  # one that cannot be read must not keep the others away
                log.warning("session %s of the journal stays where it is: %s", session, error)
        return count

    async def drain(self, timeout_s: float) -> None:
        """Takes on nothing new, lets each call finish its chunk or its steps, and gives every session up."""
        self.draining = True
        async with asyncio.timeout(timeout_s):
            # What comes in the middle of an adoption is given up with the others.
            await asyncio.gather(*(task for _, task in self._adopting.values()), return_exceptions=True)
            wait_s = timeout_s * _CALLS_SHARE
            await asyncio.gather(*(served.archive.drain(wait_s) for served in self._catalog))

    async def aclose(self) -> None:
        """Ends adoptions under way."""
        tasks = [task for _, task in self._adopting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _adopted(self, session: str, task: "asyncio.Task[Served]") -> None:
        del self._adopting[session]
        if not task.cancelled():
            task.exception()  # looked at: whoever asked may have left

    async def _adopt(self, session: str, dead: str) -> Served:
        assert self._journal is not None, "there is no journal to adopt from"
        try:
            adopted = await self._journal.adopt(session, dead=dead or None)
            served = await self._taken_on(session, adopted) if adopted else None
        except (JournalCorrupt, NotFound, ModelNotLoaded):
            # For a replica that serves its model and its format, or that understands what is written.
            with suppress(JournalBehind, JournalLost):  # it was not even ours
                await self._journal.release(session)
            raise
        if adopted is None or served is None:
            raise SessionNotFound(session)
        log.info("adopted a session", extra={"session": session, "from": dead, "steps": len(adopted.history.steps)})
        return served

    async def _taken_on(self, session: str, adopted: Adopted) -> Served:
        """Raises NotFound for what is not served here, ModelNotLoaded for what may soon be, JournalCorrupt for what
        cannot be.
        """
        head = adopted.head
        try:
            served = await self._model_of(head)
            recipe = from_head(head)
            if not served.worlds.offers(recipe.policy.storage):
                raise NotFound("storage format", recipe.policy.storage.value)
            served.archive.adopt(adopted, recipe)
        except (ValueError, TypeError, KeyError) as error:
            raise JournalCorrupt(session, f"its head says what cannot be: {error}") from error
        return served

    async def _model_of(self, head: Head) -> Served:
        try:
            model = common.ModelRef(name=head.model, version=head.version, digest=head.digest)
            return self._catalog.resolve(model, leaving=True)  # it is an old session, wherever it was
        except NotFound:
            served = {(entry.stored.name, entry.stored.version) for entry in self._catalog}
            if (head.model, head.version) in served or not await asyncio.to_thread(
                self._repository.holds, head.model, head.version
            ):
                raise
            raise ModelNotLoaded(head.model, head.version) from None
