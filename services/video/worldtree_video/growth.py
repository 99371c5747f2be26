"""Grows a branch by a plan and waits for the end of it."""

from collections.abc import Sequence as Seq

from worldtree_video.branch import Branch
from worldtree_video.domain import Chunk, Priority
from worldtree_video.engine import Engine
from worldtree_video.mailbox import Mailbox
from worldtree_video.sequence import Planned, Sequence


async def grow(
    engine: Engine,
    branch: Branch,
    planned: Seq[Planned],
    *,
    priority: Priority = Priority.STEP,
    mailbox: "Mailbox[Chunk] | None" = None,
    tenant: str = "anonymous",
) -> list[Chunk]:
    """Makes what a branch's start lacks and then what is planned; returns the generated chunks.

    Closing the mailbox from outside ends it with that error. Cancelled, it leaves the branch where it got to.
    """
    mailbox = mailbox or Mailbox()
    sequence = Sequence(branch, planned, priority=priority, sink=mailbox, tenant=tenant)
    if sequence.over:
        return []
    try:
        engine.submit(sequence)
        chunks = [chunk async for chunk in mailbox if not chunk.record.given]
        mailbox.reopen()  # the same call may go on growing under it
        return chunks
    finally:
        engine.cancel(sequence)
