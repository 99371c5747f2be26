"""Sessions that come to this replica: those it had before it died, and those of a replica that died or drained."""

import asyncio
import logging

from worldtree.common.v1 import common_pb2 as common
from worldtree_runtime.errors import NotFound, WorldtreeError

from worldtree_video.caller import Caller
from worldtree_video.catalog import Catalog, Served
from worldtree_video.errors import Draining, JournalCorrupt, SessionNotFound
from worldtree_video.journal import Journal
from worldtree_video.recipe import from_head

log = logging.getLogger(__name__)


class Adoption:
    """Finds the model of a session; one that is not here is looked up in the journal. For one event loop."""

    def __init__(self, catalog: Catalog, journal: Journal | None) -> None:
        self._catalog = catalog
        self._journal = journal
        self._adopting: dict[str, asyncio.Task[Served]] = {}
        self.draining = False

    def check_admitting(self) -> None:
        """Raises Draining once this replica is stopping: it takes on nothing new."""
        if self.draining:
            raise Draining

    async def find(self, session: str, caller: Caller) -> Served:
        """The model that a session belongs to, after adopting it if need be.

        Raises SessionNotFound; SessionMoved when another replica owns it and the caller does not say that it is dead;
        Draining.
        """
        self.check_admitting()
        try:
            return self._catalog.of_session(session)
        except SessionNotFound:
            if self._journal is None:
                raise
        adopting = self._adopting.get(session)
        if adopting is None:
            # A task of its own: the first caller may vanish in the middle, and others may wait for the same.
            adopting = asyncio.create_task(self._adopt(session, caller.dead), name=f"adopt {session}")
            self._adopting[session] = adopting
            adopting.add_done_callback(lambda _: self._adopting.pop(session, None))
        return await asyncio.shield(adopting)

    async def adopt_owned(self) -> int:
        """Takes up the sessions that this replica had before it was started anew; returns how many."""
        count = 0
        for session in await self._journal.owned() if self._journal else ():
            try:
                await self.find(session, Caller())
                count += 1
            except WorldtreeError as error:  # one that cannot be read must not keep the others away
                log.warning("session %s of the journal stays where it is: %s", session, error)
        return count

    async def drain(self, timeout_s: float) -> None:
        """Takes on nothing new, lets each call finish its chunk or its steps, and gives every session up."""
        self.draining = True
        async with asyncio.timeout(timeout_s):
            for served in self._catalog:
                await served.worlds.drain()

    async def aclose(self) -> None:
        """Ends adoptions under way."""
        for task in list(self._adopting.values()):
            task.cancel()
        await asyncio.gather(*self._adopting.values(), return_exceptions=True)

    async def _adopt(self, session: str, dead: str) -> Served:
        assert self._journal is not None, "there is no journal to adopt from"
        adopted = await self._journal.adopt(session, dead=dead or None)
        if adopted is None:
            raise SessionNotFound(session)
        head = adopted.head
        try:
            served = self._catalog.resolve(common.ModelRef(name=head.model, version=head.version, digest=head.digest))
            recipe = from_head(head)
            served.worlds.adopt(adopted, recipe)
        except (ValueError, TypeError, KeyError) as error:
            raise JournalCorrupt(session, f"its head says what cannot be: {error}") from error
        except NotFound:
            await self._journal.release(session)  # for a replica that serves its model
            raise
        log.info("adopted a session", extra={"session": session, "from": dead, "steps": len(adopted.history.steps)})
        return served
